"""Specs: what is refused, and in which words."""

import copy
import math

import pytest
from small_spec import ABSENT, RAW, TASK, changed, refusal

from multitask.spec import (
    BALANCING,
    CONTRASTIVE,
    TRUNK,
    SpecError,
    field_of,
    near,
    parse_spec,
    quoted,
    refuse_outside,
    shown,
    why_unsafe,
)


@pytest.mark.parametrize(
    ("where", "place", "wrong", "meant"),
    [
        ("imagesize", "", "imagesize", "image_size"),
        ("trunk.wieghts", "trunk: ", "wieghts", "weights"),
        ("phases.heads.epoch", "phases.heads: ", "epoch", "epochs"),
        ("early_stopping.patient", "early_stopping: ", "patient", "patience"),
        ("plateau.factr", "plateau: ", "factr", "factor"),
        ("contrastive.temprature", "contrastive: ", "temprature", "temperature"),
        ("features.smoot", "features: ", "smoot", "smote"),
        ("task.2.freeze_dept", 'task[2] "genre": ', "freeze_dept", "freeze_depth"),
        ("task.1.augment.flp", 'task[1] "style": augment: ', "flp", "flip"),
    ],
)
def test_an_unknown_field_is_named_with_its_place_and_what_is_near(where, place, wrong, meant):
    message = refusal(changed(where, 1))
    start = f'{place}unknown field "{wrong}". Expected one of: '
    assert message.startswith(start)
    assert message.endswith(f'. Did you mean "{meant}"?')
    allowed = message[len(start) : message.rindex(". Did")].split(", ")
    assert meant in allowed
    assert allowed == sorted(allowed)


@pytest.mark.parametrize("name", ["trunk", "balancing", "contrastive", "shared"])
def test_a_task_may_be_called_as_a_part_of_ours(name):
    assert parse_spec(changed("task.1.name", name), source="a.toml").task_names[1] == name


@pytest.mark.parametrize("name", ["_trunk", "a/b", "a-head", "Trunk", ""])
def test_no_name_of_a_task_reaches_the_keys_of_ours(name):
    assert refusal(changed("task.1.name", name)).startswith(f'task[1] "{name}": name: ')


def test_names_of_fields_never_meet():
    """Whatever two tasks are called: of these many pairs `_` between them is ambiguous."""
    tasks = ["x", "x_1", "x_true", "val_x", "trunk", "test", "loss", "val_loss", "trunk_rate"]
    fields = ["true", "1", "1_true", "loss", "val_loss", "rate", "x_1"]
    owners = [*tasks, TRUNK, BALANCING, CONTRASTIVE]
    names = [field_of(owner, field) for owner in owners for field in fields]
    assert len(set(names)) == len(owners) * len(fields)
    assert (field_of("x", "top1"), field_of(TRUNK, "rate")) == ("x/top1", "trunk_rate")
    joined = {f"{task}_{field}" for task in tasks for field in fields}
    assert len(joined) < len(tasks) * len(fields)


def test_a_misspelt_field_is_named_rather_than_a_missing_one():
    raw = changed("task.1.train", ABSENT)
    raw["task"][1]["trian"] = "train.csv"
    assert refusal(raw).startswith('task[1] "style": unknown field "trian"')


@pytest.mark.parametrize(
    ("where", "printed"),
    [
        ("name", "name: this field is missing"),
        ("trunk", "trunk: this field is missing"),
        ("trunk.schedule", "trunk.schedule: this field is missing"),
        ("task", "task: this field is missing"),
        ("task.1.name", "task[1]: name: this field is missing"),
        *(
            (f"task.2.{field}", f'task[2] "genre": {field}: this field is missing')
            for field in ("train", "classes", "head", "loss", "schedule")
        ),
        ("task.0.head.kind", 'task[0] "artist": head.kind: this field is missing'),
        ("phases.heads.epochs", "phases.heads.epochs: this field is missing"),
    ],
)
def test_a_missing_field_is_named(where, printed):
    raw = copy.deepcopy(RAW)
    raw["phases"] = {"heads": {"epochs": 1}}
    *tables, name = [int(part) if part.isdigit() else part for part in where.split(".")]
    target = raw
    for table in tables:
        target = target[table]
    del target[name]
    assert refusal(raw) == printed


def test_two_tasks_of_one_name_are_refused():
    printed = 'task[2]: name: two tasks are called "artist"'
    assert refusal(changed("task.2.name", "artist")) == printed


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("image_size", "64"),
        ("image_size", 64.5),
        ("image_size", True),
        ("batch_size", "32"),
        ("seed", True),
        ("validation", "0.1"),
        ("title", 3),
        ("freeze_depth", 1.5),
        ("freeze_depth", True),
        ("trunk", 3),
        ("trunk.batchnorm_momentum", "quick"),
        ("phases.heads", 3),
        ("task.0.train", 3),
        ("task.0.freeze_depth", [40]),
        ("balancing", "uncertainty"),
        ("contrastive.width", 64.5),
        ("task.0.head", "linear"),
        ("task.0.head.kind", 3),
        ("task.0.augment", True),
        ("task.0.augment.flip", "yes"),
        ("task.0.augment.flip", 1),
        ("task.0.augment.crop", 0.9),
        ("task.0.augment.contrast", 1.1),
    ],
)
def test_a_value_of_another_type_is_refused_and_shown(where, value):
    message = refusal(changed(where, value))
    place = f'task[0] "artist": {where[7:]}' if where.startswith("task.") else where
    assert message.startswith(f"{place}: {value!r}: ")
    assert message.split(": ")[-1].startswith("input should be ")


@pytest.mark.parametrize(
    ("where", "wrong", "right"),
    [
        ("image_size", [31, 1025], [32, 1024]),
        ("batch_size", [0, -1], [1]),
        ("seed", [-1, 2**31], [0, 2**31 - 1]),
        ("validation", [-0.01, 0.51, math.nan], [0, 0.5]),
        ("max_missing", [-0.01, 1, math.nan], [0, 0.99]),
        ("max_unknown", [-0.01, 1], [0, 0.99]),
        ("trunk.weight_decay", [-1e-9, math.inf], [0, 1]),
        ("trunk.batchnorm_momentum", [-0.1, 1], [0, 0.99]),
        ("trunk.stochastic_depth", [-0.1, 1], [0, 0.99]),
        ("early_stopping.patience", [0], [1]),
        ("plateau.patience", [0], [1]),
        ("plateau.factor", [0, 1], [0.5]),
        ("plateau.least", [0, 1.1], [1]),
        ("contrastive.weight", [-0.1, math.inf], [0, 2]),
        ("contrastive.temperature", [0, -1], [0.01]),
        ("contrastive.width", [0], [1]),
        ("features.views", [-1], [0, 9]),
        ("features.smote", [-0.1, 1.1, math.nan], [0, 1]),
        ("features.cache", ["yes", "auto "], ["auto", "on", "off"]),
        ("features.dtype", ["float64", "float"], ["float16", "float32"]),
        (
            "features.runtime",
            ["onnx", "torch"],
            ["auto", "litert", "onnxruntime", "openvino", "tensorflow"],
        ),
        ("task.0.weight", [-1, math.inf, math.nan], [0, 7]),
        ("task.0.contrastive_weight", [-1, math.inf], [0, 7]),
        ("task.0.class_weight_exponent", [-0.5], [0, 2]),
        ("task.0.weight_decay", [-1], [0]),
        ("task.0.subset", [0, 1.01, -1], [1, 1e-6]),
        ("task.0.name", ["Artist", "art ist", "", "1st", "a" * 41, "../x"], ["a", "a" * 40]),
        ("task.0.augment.brightness", [-0.1, 1.1], [0, 1]),
        ("task.0.augment.crop_probability", [-0.1, 1.1], [0, 1]),
        ("task.0.augment.contrast", [[1.1, 0.9], [-1, 1], [1, 11]], [[0, 10], [1, 1]]),
        ("task.0.augment.saturation", [[1.1, 0.9], [-1, 1], [1, 11]], [[0, 10]]),
        ("task.0.augment.crop", [[0.9, 0.8], [0.01, 1], [0.9, 1.1]], [[0.05, 1], [1, 1]]),
    ],
)
def test_every_range_holds_its_ends_and_nothing_beyond(where, wrong, right):
    for value in wrong:
        message = refusal(changed(where, value))
        assert f"{where.rsplit('.', 1)[-1]}: {value!r}: " in message
    for value in right:
        spec = parse_spec(changed(where, value), source="a.toml")
        target = spec
        for part in where.replace("task.0", "tasks.0").split("."):
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        assert target == (tuple(value) if isinstance(value, list) else value)


def test_phases_have_their_ranges():
    for phases in ({"epochs": -1}, {"epochs": 1, "rate_factor": 0}, {"epochs": 1.5}):
        assert refusal(changed("phases.finetune", phases)).startswith("phases.finetune.")
    phases = {"epochs": 0, "rate_factor": 2}
    assert parse_spec(changed("phases.heads", phases), source="a").phases.heads.epochs == 0


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("resize", "sqash", "Expected one of: crop, pad, squash. Did you mean"),
        ("resize", "zzz", "Expected one of: crop, pad, squash."),
        ("trunk.batchnorm", "frzen", 'auto, frozen, train. Did you mean "frozen"?'),
    ],
)
def test_a_choice_names_what_is_allowed(where, value, message):
    text = refusal(changed(where, value))
    assert text.startswith(f"{where}: {value!r}: ")
    assert message in text


def test_a_spec_needs_tasks_and_each_its_own_table():
    assert refusal(changed("task", [])).startswith("task: []: ")
    assert "[[task]]" in refusal(changed("task", TASK))
    assert len(refusal(changed("title", ["x"] * 1000))) < 200


def test_near_offers_only_what_is_near():
    assert near("linaer", ["gru", "linear"]) == ' Did you mean "linear"?'
    assert near("zzz", ["gru", "linear"]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("a\x1b\0\n\u202eb", r"'a\x1b\x00\n\u202eb'"),
        ("x" * 10_000_000, "'" + "x" * 36 + "..."),
        ([1, "b"], "[1, 'b']"),
        ("x" * 38, "'" + "x" * 38 + "'"),
    ],
)
def test_a_value_is_quoted_escaped_and_in_short(value, text):
    assert shown(value, 40) == text


def test_a_name_is_quoted_as_a_value_is():
    assert quoted("trian") == '"trian"'
    assert quoted("a\tb") == r'"a\tb"'
    assert quoted("x" * 5000) == '"' + "x" * 76 + '..."'


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/b.csv", None),
        ("a..b/c...csv", None),
        (".", None),
        ("", None),
        ("~/a", None),  # a name like another: nothing expands it
        ("/etc/passwd", "absolute"),
        ("\\\\host\\share\\a", "absolute"),
        ("\\a", "absolute"),
        ("C:\\a", "absolute"),
        ("c:a", "absolute"),
        ("..", "`..`"),
        ("a/../../b", "`..`"),
        ("a\\..\\b", "`..`"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
    ],
)
def test_what_a_path_must_not_have(path, reason):
    result = why_unsafe(path)
    assert (result is None) == (reason is None)
    assert reason is None or reason in result


@pytest.mark.parametrize("field", ["images", "task.1.train", "task.1.test", "task.1.classes"])
def test_a_path_that_leaves_the_data_is_refused_unless_allowed(field):
    for path in ("/abs/a", "../a", "a/../../b", "C:a"):
        spec = parse_spec(changed(field, path), source="s.toml")
        with pytest.raises(SpecError) as caught:
            refuse_outside(spec, allowed=False)
        place = "images" if field == "images" else f'task[1] "style": {field.split(".")[-1]}'
        assert str(caught.value).startswith(f"s.toml: {place}: {path!r}: ")
        assert "`allow_outside`" in str(caught.value)
        refuse_outside(spec, allowed=True)
    spec = parse_spec(changed(field, "a\nb"), source="s.toml")
    for allowed in (False, True):
        with pytest.raises(SpecError, match=r"control characters are refused$"):
            refuse_outside(spec, allowed=allowed)
    refuse_outside(parse_spec(changed(field, "a/b..c"), source="s.toml"), allowed=False)
