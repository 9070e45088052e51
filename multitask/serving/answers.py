"""Answers on disk, as they come: CSV, JSON Lines or Parquet.

While it grows, `answers.csv.partial` stands beside the file: its first line is what it was made
with, each other one a picture's record as JSON, and a torn last one does not count. It becomes the
file at the end, whole or not at all.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from multitask.files import parse_json, replacing, writing
from multitask.run import refuse_other_settings
from multitask.serving.predict import TOP
from multitask.spec import InputError, field_of

ROWS = 10_000  # of a row group of Parquet
FLUSH_EVERY = 64  # records
ESCAPED = "backslashreplace"  # a file's name may be no text
RESUME = "then run the same command again with --resume"


class Answers:
    """The records of one file of answers, and those that an interrupted run left.

    Args:
        path: its suffix, one of WRITERS, says what it becomes.
        settings: that the answers depend on; JSON.
        classes: task -> class names.
        resume: go on with what is there.

    Raises:
        InputError: something is there and is not to be gone on with, or was made otherwise.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        classes: Mapping[str, Sequence[str]],
        *,
        resume: bool,
    ):
        self.path, self.classes = path, classes
        self.partial = path.with_name(path.name + ".partial")
        self.done: set[str] = set()
        if not self.partial.exists() or not self.partial.stat().st_size:
            # Whole with its first line: one that is empty holds no answers to lose.
            with replacing(self.partial) as temporary:
                temporary.write_text(_json_line(settings), encoding="utf-8", errors=ESCAPED)
            self._file = self._opened()
        elif not resume:
            raise InputError(
                f"--out: {self.partial}: of a prediction that was interrupted; --resume goes on "
                "with it, or remove it to begin anew"
            )
        else:
            self._go_on(dict(settings))

    def _go_on(self, settings: dict[str, Any]) -> None:
        with self.partial.open("rb+") as file:
            whole = 0
            for number, line in enumerate(file):
                try:
                    if not line.endswith(b"\n"):
                        break
                    record = parse_json(line)
                    if number:
                        self.done.add(record["path"])
                    else:
                        there = dict(record)
                except (ValueError, KeyError, TypeError):
                    raise InputError(
                        f"--resume: {self.partial}: line {number + 1} is none of ours; remove the "
                        "file to begin anew"
                    ) from None
                whole += len(line)
            if not whole:
                raise InputError(
                    f"--resume: {self.partial}: has no whole line; remove it to begin anew"
                )
            refuse_other_settings(self.partial, there, settings, what="prediction", flag="--resume")
            file.truncate(whole)
        self._file = self._opened()

    def _opened(self) -> TextIO:
        return self.partial.open("a", encoding="utf-8", errors=ESCAPED)

    def _line(self, record: Mapping[str, Any]) -> None:
        with self._writing():
            self._file.write(_json_line(record))

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.path.absolute().parent, again=RESUME)

    def has(self, file: str) -> bool:
        """Whether the file was answered before."""
        return _written(file) in self.done

    def add(self, file: str, said: Mapping[str, Any] | str) -> None:
        """One picture's answers, `predict.answer` a task, or why it cannot be read."""
        name = _written(file)
        if isinstance(said, str):
            self._line({"path": name, "error": said})
        else:
            tasks = {
                task: {
                    "answer": found["answer"],
                    "top": [{"name": n, "probability": p} for n, p in found["top"]],
                }
                for task, found in said.items()
            }
            self._line({"path": name, "tasks": tasks})
        self.done.add(name)
        if len(self.done) % FLUSH_EVERY == 0:
            with self._writing():
                self._file.flush()

    def close(self) -> None:
        """Keep what there is, to go on with later."""
        with self._writing():
            self._file.close()

    def finish(self) -> None:
        """Make the file of it."""
        self.close()
        with replacing(self.path, again=RESUME) as temporary:
            WRITERS[self.path.suffix.lower()](temporary, self._records, self.classes)
        os.unlink(self.partial)

    def _records(self) -> Iterator[str]:
        with self.partial.open(encoding="utf-8") as file:
            next(file)
            yield from file


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _written(file: str) -> str:
    return file.encode("utf-8", ESCAPED).decode("utf-8")


def columns(classes: Mapping[str, Sequence[str]]) -> dict[str, type]:
    """Of a row a picture: name -> str or float.

    `path` and `error`, then of each task `artist/predicted` and, from the most probable on,
    `artist/1` and `artist/1_probability`.
    """
    found: dict[str, type] = {"path": str, "error": str}
    for task, names in classes.items():
        found[field_of(task, "predicted")] = str
        for place in range(1, min(TOP, len(names)) + 1):
            found[field_of(task, f"{place}")] = str
            found[field_of(task, f"{place}_probability")] = float
    return found


def _row(line: str) -> dict[str, Any]:
    record = json.loads(line)
    row: dict[str, Any] = {"path": record["path"], "error": record.get("error", "")}
    for task, found in record.get("tasks", {}).items():
        row[field_of(task, "predicted")] = found["answer"]
        for place, one in enumerate(found["top"], start=1):
            row[field_of(task, f"{place}")] = one["name"]
            row[field_of(task, f"{place}_probability")] = one["probability"]
    return row


Records = Callable[[], Iterator[str]]


def _write_csv(path: Path, records: Records, classes: Mapping[str, Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns(classes), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_row, records()))


def _write_json_lines(path: Path, records: Records, classes: Mapping[str, Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(records())


def _write_parquet(path: Path, records: Records, classes: Mapping[str, Sequence[str]]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {str: pyarrow.string(), float: pyarrow.float32()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns(classes).items()])
    with parquet.ParquetWriter(path, schema) as writer:
        rows: list[dict[str, Any]] = []
        for line in records():
            rows.append(_row(line))
            if len(rows) == ROWS:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))


WRITERS = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
