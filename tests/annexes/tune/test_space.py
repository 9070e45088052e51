"""The search space, written out by hand."""

import pytest
from specs import spec_of, task_of

from multitask.annexes.tune.space import GROUPS, search_space, with_values
from multitask.spec import InputError


def ranges(space):
    return {d.name: (d.value, d.low, d.high, d.log) for d in space}


def test_the_space_by_hand():
    """What a file leaves out has the builder's default: residual_se's units, focal's gamma."""
    spec = spec_of(
        task_of("one", head={"kind": "residual_se", "se_units": 10, "dropout": [0.4, 0.3]}),
        task_of(
            "two",
            head={"kind": "dense_stack", "units": [64, 32], "dropout": [0.5, 0]},
            loss={"kind": "focal", "gamma": 1},
            schedule={"kind": "exponential", "rate": 0.02, "decay": 0.1},
            weight=2,
            class_weight_exponent=0.5,
        ),
        task_of("three", head={"kind": "linear"}, loss={"kind": "cross_entropy"}),
    )
    assert ranges(search_space(spec, list(GROUPS))) == {
        "one.head.units": (1536, 384, 3072, True),
        "one.head.residual_units": (768, 192, 1536, True),
        "one.head.se_units": (10, 2, 20, True),
        "one.head.dropout[0]": (0.4, 0, 0.6, False),
        "one.head.dropout[1]": (0.3, 0, 0.6, False),
        "one.schedule.rate": (1e-3, pytest.approx(1e-4), pytest.approx(1e-2), True),
        "one.loss.gamma": (2, 0, 4, False),
        "one.class_weight_exponent": (1, 0, 1, False),
        "one.weight": (1, 0.25, 4, True),
        "two.head.units": (64, 16, 128, True),
        "two.head.dropout[0]": (0.5, 0, 0.6, False),
        "two.head.dropout[1]": (0, 0, 0.6, False),
        "two.schedule.rate": (0.02, pytest.approx(0.002), pytest.approx(0.2), True),
        "two.loss.gamma": (1, 0, 4, False),
        "two.class_weight_exponent": (0.5, 0, 1, False),
        "two.weight": (2, 0.5, 8, True),
        "three.head.dropout": (0, 0, 0.6, False),
        "three.schedule.rate": (1e-3, pytest.approx(1e-4), pytest.approx(1e-2), True),
        "three.class_weight_exponent": (1, 0, 1, False),
        "three.weight": (1, 0.25, 4, True),
    }
    assert all(
        isinstance(d.value, int) == d.name.endswith("units")
        for d in search_space(spec, list(GROUPS))
    )


def test_the_spec_lies_in_the_space_wherever_it_is():
    head = {"kind": "gru", "units": 1, "dropout": 0.8}
    loss = {"kind": "focal", "gamma": 5.5}
    spec = spec_of(task_of("one", head=head, loss=loss, class_weight_exponent=1.5, weight=0))
    space = ranges(search_space(spec, list(GROUPS)))
    del space["one.schedule.rate"]
    assert space == {  # a task of weight 0 is off, and stays so
        "one.head.units": (1, 1, 2, True),
        "one.head.dropout": (0.8, 0, 0.8, False),
        "one.loss.gamma": (5.5, 0, 5.5, False),
        "one.class_weight_exponent": (1.5, 0, 1.5, False),
    }


def test_groups():
    spec = spec_of(
        task_of("one", head={"kind": "linear"}, weight=0), task_of("two", head={"kind": "linear"})
    )
    names = [d.name for d in search_space(spec, ["weights", "rates"])]
    assert names == ["one.schedule.rate", "two.schedule.rate", "two.weight"]
    with pytest.raises(
        InputError,
        match=r'^search: "rate": expected one of: heads, losses, rates, weights. Did you mean '
        r'"rates"\?$',
    ):
        search_space(spec, ["heads", "rate"])
    only = spec_of(task_of("one", head={"kind": "linear"}, weight=0))
    with pytest.raises(InputError, match=r'^search: "weights": the spec has no numbers'):
        search_space(only, ["weights"])


def test_values_go_into_the_spec():
    spec = spec_of(
        task_of("one", head={"kind": "residual_se"}, weight=1.23456),
        task_of("two", head={"kind": "dense_stack"}),
    )
    space = search_space(spec, list(GROUPS))
    values = {d.name: d.value for d in space} | {
        "one.head.units": 700,
        "one.head.dropout[1]": 0.123456,
        "one.schedule.rate": 0.00123456,
        "two.head.units": 256,
        "two.head.dropout[2]": 0.5,
        "two.loss.gamma": 0.98765,
    }
    changed = with_values(spec, space, values)
    first, second = changed.tasks
    assert first.head.options == {
        "units": 700,
        "residual_units": 768,
        "se_units": 128,
        "dropout": [0.4, 0.123],
    }
    # A quarter of 1024, and of the others.
    assert second.head.options == {"units": [256, 128, 64], "dropout": [0.3, 0.3, 0.5]}
    assert first.schedule.options == {"rate": 0.00123}  # three digits
    assert first.weight == 1.23456  # the spec's own number keeps all of them
    assert (first.loss.options, second.loss.options) == ({"gamma": 2.0}, {"gamma": 0.988})
    # Nothing else is another.
    raw, before = changed.to_dict(), spec.to_dict()
    for task in (*raw["task"], *before["task"]):
        for field in ("head", "loss", "schedule"):
            del task[field]
    assert raw == before
