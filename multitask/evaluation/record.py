"""`results/evaluation.json`: which model an evaluation is of, and what it wrote.

It is the last file that `evaluate` writes. An evaluation is done where this file stands and
agrees with the model and the other files; a stop in between, or a change since, is noticed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from multitask.files import read_json, write_json
from multitask.reading import sha256
from multitask.run import Run

RECORD = "evaluation.json"


def write_record(run: Run, model: str, files: Iterable[Path]) -> None:
    """Note that an evaluation is done.

    Args:
        run: whose results the files are.
        model: SHA-256 of the file of the model.
        files: that the evaluation wrote into results/.
    """
    digests = {path.name: sha256(path) for path in sorted(files)}
    write_json(run.results / RECORD, {"model_sha256": model, "files": digests})


def is_evaluated(run: Run, model_file: Path) -> bool:
    """Whether every file of results/ is there, as the evaluation of this model wrote it."""
    record = _read(run)
    if record is None or not model_file.is_file():
        return False
    return record["model_sha256"] == sha256(model_file) and are_of_one_evaluation(
        run, record["files"]
    )


def is_of_model(run: Run, name: str, model_file: Path) -> bool:
    """Whether a file of results/ is what the evaluation of this model wrote.

    True where no record says otherwise: an older version wrote none.
    """
    record = _read(run)
    if record is None:
        return True
    return record["model_sha256"] == sha256(model_file) and are_of_one_evaluation(run, [name])


def are_of_one_evaluation(run: Run, names: Iterable[str]) -> bool:
    """Whether files of results/ are there as the evaluation of the record wrote them.

    True where there is no record.
    """
    record = _read(run)
    if record is None:
        return True
    files = {name: run.results / name for name in names}
    return all(
        path.is_file() and record["files"].get(name) == sha256(path) for name, path in files.items()
    )


def _read(run: Run) -> dict[str, Any] | None:
    """The record; None where there is none, or something else."""
    try:
        record = read_json(run.results / RECORD)
        return {"model_sha256": str(record["model_sha256"]), "files": dict(record["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
