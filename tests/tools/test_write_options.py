"""docs/options.md is what the descriptions of the fields give."""

import importlib.util
from pathlib import Path

from multitask.spec_description import described_fields
from multitask.spec_fields import DataSpec

ROOT = Path(__file__).parents[2]


def load_tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "write_options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == load_tool().page()


def test_every_field_has_a_description():
    fields = list(described_fields())
    assert [field.place for field in fields if not field.description] == []
    places = {field.place for field in fields}
    assert len(places) == len(fields)
    # One field of each depth; `tasks` is the table `task` in a file.
    assert {"seed", "trunk.name", "phases.heads.epochs", "task.augment.flip"} <= places


def test_defaults_are_those_of_a_spec():
    """A phase's default is that of the phases, not of any phase."""
    defaults = {field.place: field.default for field in described_fields()}
    schedule = {"kind": "constant", "rate": 1e-3}
    task = dict.fromkeys(("train", "classes"), "x") | dict.fromkeys(
        ("head", "loss", "schedule"), schedule
    )
    spec = DataSpec.model_validate(
        {"name": "s", "trunk": {"schedule": schedule}, "task": [{"name": "t", **task}]}
    ).to_dict()
    for place, default in defaults.items():
        value = spec
        # A spec has either files, or a table with columns, or labels from paths.
        if place.startswith(("table.", "task.label_from.")) or place in (
            "task.train",
            "task.classes",
        ):
            continue
        for name in place.split("."):
            value = value[0][name] if isinstance(value, list) else value[name]
        if default is not ...:
            assert value == default, place
