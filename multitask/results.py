"""The results folder of a run: the model that its files belong to, and their completeness.

`results/evaluation.json` is the last file that `evaluate` writes. An evaluation is complete if this
file exists and agrees with the model and with all the other files. An interrupted evaluation and
a later change are both detected.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from multitask.files import read_json, write_json
from multitask.reading import sha256
from multitask.run import Run

RECORD = "evaluation.json"


def write_record(run: Run, model_digest: str, files: Iterable[Path]) -> None:
    """Record that an evaluation is complete.

    Args:
        run: the evaluated run.
        model_digest: SHA-256 of the model file.
        files: the files that the evaluation wrote into results/.
    """
    digests = {path.name: sha256(path) for path in sorted(files)}
    write_json(run.results / RECORD, {"model_sha256": model_digest, "files": digests})


def is_complete(run: Run, model_digest: str) -> bool:
    """Whether results/ holds every file of a model's evaluation, unchanged."""
    record = _read_record(run)
    if record is None or record["model_sha256"] != model_digest:
        return False
    return are_unchanged(run, record["files"])


def is_of_model(run: Run, name: str, model_digest: str) -> bool:
    """Whether a file of results/ is unchanged since the evaluation of a model wrote it.

    True if there is no record: an older version wrote none.
    """
    record = _read_record(run)
    if record is None:
        return True
    return record["model_sha256"] == model_digest and are_unchanged(run, [name])


def are_unchanged(run: Run, names: Iterable[str]) -> bool:
    """Whether files of results/ are unchanged since the recorded evaluation wrote them.

    True if there is no record.
    """
    record = _read_record(run)
    if record is None:
        return True
    paths = {name: run.results / name for name in names}
    return all(
        path.is_file() and record["files"].get(name) == sha256(path) for name, path in paths.items()
    )


def _read_record(run: Run) -> dict[str, Any] | None:
    """The record; None if there is none, or if the file is not a record."""
    try:
        record = read_json(run.results / RECORD)
        return {"model_sha256": str(record["model_sha256"]), "files": dict(record["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
