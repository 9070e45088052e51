"""Specs of a search, from their tasks."""

from multitask.spec import parse_spec


def task(name, head, loss=None, schedule=None, **fields):
    return {
        "name": name,
        "train": "t.csv",
        "test": "v.csv",
        "classes": "c.txt",
        "head": head,
        "loss": loss or {"kind": "focal"},
        "schedule": schedule or {"kind": "constant", "rate": 1e-3},
        **fields,
    }


def spec_of(*tasks):
    schedule = {"kind": "constant", "rate": 1e-3}
    raw = {"name": "toy", "trunk": {"schedule": schedule}, "task": list(tasks)}
    return parse_spec(raw, source="toy.toml")
