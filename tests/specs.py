"""The builder of specs for tests; `tiny_spec` and `colour_spec` are this with their own files."""

from multitask.spec import DataSpec, parse_spec

RATE = {"kind": "constant", "rate": 1e-3}


def task_of(name, **fields):
    """The fields of a task with a linear head."""
    return {
        "name": name,
        "train": "t.csv",
        "test": "v.csv",
        "classes": "c.txt",
        "head": {"kind": "linear"},
        "loss": {"kind": "focal"},
        "schedule": RATE,
        **fields,
    }


def lists_of(tasks, folder):
    """The files of each task in ArtGAN's layout, as tasks for `spec_of`."""
    kinds = {"train": "train.csv", "test": "val.csv", "classes": "class.txt"}
    return [
        {"name": task} | {field: f"{folder}/{task}_{name}" for field, name in kinds.items()}
        for task in tasks
    ]


def spec_of(*tasks, of_tasks=None, trunk=None, file="toy.toml", **fields) -> DataSpec:
    """A spec.

    Args:
        tasks: their names, or their fields with a name.
        of_tasks: fields of every task that gives none of its own.
        trunk: fields of the trunk, whose weights are random.
        file: its name in messages.
        fields: at the top of the spec.
    """
    own = [{"name": task} if isinstance(task, str) else task for task in tasks]
    raw = {
        "name": "toy",
        **fields,
        "trunk": {"weights": "none", "schedule": RATE, **(trunk or {})},
        "task": [task_of(**{**(of_tasks or {}), **task}) for task in own],
    }
    return parse_spec(raw, source=file)


def spec_file(spec, folder):
    """Write a spec as spec.toml in a folder; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.toml").write_text(spec.to_toml(), encoding="utf-8")
    return folder / "spec.toml"
