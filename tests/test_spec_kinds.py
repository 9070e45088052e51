"""Kinds of heads, losses and schedules: their options are checked by their functions."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from multitask.spec import Kind, SpecError, check_kind


def linear(x, name, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0):
    """A head."""


def dense_stack(x, name, *, units: tuple[PositiveInt, ...], mode: Literal["a", "bb"] = "a"):
    """A head."""


def nothing(x, name):
    """A head without options."""


REGISTRY = {
    "linear": linear,
    "dense_stack": dense_stack,
    "gru": nothing,
    "residual_se": nothing,
}
PLACE = 'data_specs/wikiart.toml: task[2] "genre": head'


def test_an_unknown_kind_reads_as_the_design_says():
    with pytest.raises(SpecError) as caught:
        check_kind(Kind(kind="linaer"), REGISTRY, place=PLACE)
    assert str(caught.value) == (
        'data_specs/wikiart.toml: task[2] "genre": head.kind: unknown kind "linaer". Expected one '
        'of: dense_stack, gru, linear, residual_se. Did you mean "linear"?'
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "linear", "dropuot": 0.1},
            ': unknown option "dropuot" of "linear". Expected one of: dropout. '
            'Did you mean "dropout"?',
        ),
        ({"kind": "linear", "x": 1}, ': unknown option "x" of "linear". Expected one of: dropout.'),
        ({"kind": "dense_stack"}, ': "dense_stack" needs the option "units"'),
        ({"kind": "linear", "dropout": 1}, ".dropout: 1: input should be less than 1"),
        ({"kind": "linear", "dropout": "0.1"}, ".dropout: '0.1': input should be a valid number"),
        ({"kind": "dense_stack", "units": 3}, ".units: 3: input should be a list"),
        (
            {"kind": "dense_stack", "units": [3, 0]},
            ".units.1: 0: input should be greater than 0",
        ),
        (
            {"kind": "dense_stack", "units": [3], "mode": "b"},
            ".mode: 'b': Expected one of: a, bb. Did you mean",
        ),
    ],
)
def test_a_wrong_option_is_named(choice, message):
    with pytest.raises(SpecError) as caught:
        check_kind(Kind(**choice), REGISTRY, place=PLACE)
    assert str(caught.value).startswith(PLACE + message)


def test_options_come_back_checked_with_their_defaults():
    assert check_kind(Kind(kind="linear"), REGISTRY, place=PLACE) == {"dropout": 0.0}
    choice = Kind(kind="dense_stack", units=[3, 4])
    assert check_kind(choice, REGISTRY, place=PLACE) == {"units": (3, 4), "mode": "a"}
    assert check_kind(Kind(kind="gru"), REGISTRY, place=PLACE) == {}
