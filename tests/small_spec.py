"""The fields of a small spec, one of which a test changes."""

import copy

import pytest

from multitask.spec import SpecError, parse_spec

TASK = {
    "name": "artist",
    "train": "train.csv",
    "test": "val.csv",
    "classes": "classes.txt",
    "head": {"kind": "linear", "dropout": 0.2},
    "loss": {"kind": "focal", "gamma": 2.0},
    "schedule": {"kind": "constant", "rate": 1e-3},
}
RAW = {
    "name": "small",
    "trunk": {"schedule": {"kind": "constant", "rate": 1e-3}},
    "task": [{**TASK, "name": name} for name in ("artist", "style", "genre")],
}
ABSENT = object()


def changed(where, value):
    """RAW with one field set (or removed), e.g. `task.2.head.kind`."""
    raw = copy.deepcopy(RAW)
    *tables, name = [int(part) if part.isdigit() else part for part in where.split(".")]
    target = raw
    for table in tables:
        target = target.setdefault(table, {}) if isinstance(target, dict) else target[table]
    if value is ABSENT:
        del target[name]
    else:
        target[name] = value
    return raw


def refusal(raw):
    with pytest.raises(SpecError) as caught:
        parse_spec(raw, source="a.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("a.toml: ")
    return message.removeprefix("a.toml: ")


def kind(choice):
    return {"kind": choice.kind, **choice.options}
