"""Files of predictions, written continuously: CSV, JSON Lines or Parquet.

During a prediction, `answers.csv.partial` lies next to `answers.csv`. Its first line holds the
settings; each further line is the record of one image as JSON. An incomplete last line is ignored.
At the end it is converted to the file atomically.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from multitask.disk import writing
from multitask.files import parse_json, replacing
from multitask.run import refuse_other_settings
from multitask.serving.answers import DISTANCE_COLUMNS, SEPARATOR, Distance, columns, row
from multitask.spec import InputError, expected

ROWS = 10_000  # in a row group of Parquet
FLUSH_EVERY = 64  # records
ESCAPED = "backslashreplace"  # a file name may be invalid UTF-8
RESUME = "then run the same command again with `resume`"


def check_out(path: Path) -> None:
    """Raise InputError if predictions cannot be written to a file of this name."""
    if path.suffix.lower() not in WRITERS:
        raise InputError(f"{path}: {expected(path.suffix.lower(), WRITERS)}", field="out")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file", field="out")
    for one in (path, _partial(path)):
        if one.exists() and not one.is_file():
            raise InputError(f"{one}: is not a regular file; name another", field="out")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}", field="out")


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


class PredictionFile:
    """Writes a file of predictions; can resume an interrupted one.

    Args:
        path: the file; its suffix, one of WRITERS, is its format.
        settings: the settings that the predictions depend on; JSON.
        classes: task -> class names.
        resume: continue an interrupted prediction.
        sets: whether the predictions have sets of classes.
        distances: whether the images have distances to the training images.

    Attributes:
        done: names of the images that have a record.

    Raises:
        InputError: an interrupted prediction exists without `resume`, or had other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        classes: Mapping[str, Sequence[str]],
        *,
        resume: bool,
        sets: bool = False,
        distances: bool = False,
    ):
        self.path, self.columns = path, columns(classes, sets=sets, distances=distances)
        self.partial = _partial(path)
        self.done: set[str] = set()
        if not self.partial.exists() or not self.partial.stat().st_size:
            # Written atomically with its first line; an empty file contains no predictions.
            with replacing(self.partial) as temporary:
                temporary.write_text(_json_line(settings), encoding="utf-8", errors=ESCAPED)
            self._file = self._opened()
        elif not resume:
            raise InputError(
                f"{self.partial}: belongs to an interrupted prediction; continue it "
                "with `resume`, or remove the file to start again",
                field="out",
            )
        else:
            self._resume(dict(settings))

    def _resume(self, settings: dict[str, Any]) -> None:
        with self.partial.open("rb+") as file:
            complete_bytes = 0
            previous: dict[str, Any] = {}
            for number, line in enumerate(file):
                try:
                    if not line.endswith(b"\n"):
                        break
                    record = parse_json(line)
                    if number:
                        self.done.add(record["path"])
                    else:
                        previous = dict(record)
                except (ValueError, KeyError, TypeError):
                    raise InputError(
                        f"{self.partial}: line {number + 1} is not a valid record; "
                        "remove the file to start again",
                        field="resume",
                    ) from None
                complete_bytes += len(line)
            if not complete_bytes:
                raise InputError(
                    f"{self.partial}: has no complete line; remove it to start again",
                    field="resume",
                )
            refuse_other_settings(
                self.partial, previous, settings, kind="prediction", field="resume"
            )
            file.truncate(complete_bytes)
        self._file = self._opened()

    def _opened(self) -> TextIO:
        return self.partial.open("a", encoding="utf-8", errors=ESCAPED)

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._writing():
            self._file.write(_json_line(record))

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.path.absolute().parent, retry_hint=RESUME)

    def has(self, file: str) -> bool:
        """Return whether an image has a record."""
        return _name_as_text(file) in self.done

    def add(
        self, file: str, result: Mapping[str, Any] | str, distance: Distance | None = None
    ) -> None:
        """Add the record of one image.

        Args:
            file: the image.
            result: task -> `answers.answer`; or the reason why the image cannot be read.
            distance: of the image to the training images.
        """
        name = _name_as_text(file)
        if isinstance(result, str):
            self._write({"path": name, "error": result})
        else:
            tasks = {
                task: {
                    "answer": prediction["answer"],
                    "top": [{"name": n, "probability": p} for n, p in prediction["top"]],
                    **({"set": prediction["set"]} if "set" in prediction else {}),
                }
                for task, prediction in result.items()
            }
            fields = distance.fields if distance else {}
            self._write({"path": name, **fields, "tasks": tasks})
        self.done.add(name)
        if len(self.done) % FLUSH_EVERY == 0:
            with self._writing():
                self._file.flush()

    def close(self) -> None:
        """Close the partial file, which can be resumed."""
        with self._writing():
            self._file.close()

    def finish(self) -> None:
        """Convert the partial file to the final one."""
        self.close()
        with replacing(self.path, retry_hint=RESUME) as temporary:
            WRITERS[self.path.suffix.lower()](temporary, self._records, self.columns)
        os.unlink(self.partial)

    def _records(self) -> Iterator[str]:
        with self.partial.open(encoding="utf-8") as file:
            next(file)
            yield from file


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _name_as_text(file: str) -> str:
    return file.encode("utf-8", ESCAPED).decode("utf-8")


def _row(line: str) -> dict[str, Any]:
    record = json.loads(line)
    predictions = {
        task: {**one, "top": [(top["name"], top["probability"]) for top in one["top"]]}
        for task, one in record.get("tasks", {}).items()
    }
    fields = {name: record[name] for name in DISTANCE_COLUMNS if name in record}
    return row(record["path"], record.get("error") or predictions, fields)


Records = Callable[[], Iterator[str]]
Columns = Mapping[str, type]


def _write_csv(path: Path, records: Records, kinds: Columns) -> None:
    def cells(line: str) -> dict[str, Any]:
        values = _row(line)
        lists = {name: SEPARATOR.join(v) for name, v in values.items() if isinstance(v, list)}
        return values | lists

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, kinds, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(cells, records()))


def _write_json_lines(path: Path, records: Records, kinds: Columns) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(records())


def _write_parquet(path: Path, records: Records, kinds: Columns) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {
        str: pyarrow.string(),
        float: pyarrow.float32(),
        int: pyarrow.int32(),
        bool: pyarrow.bool_(),
        list: pyarrow.list_(pyarrow.string()),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        rows: list[dict[str, Any]] = []
        for line in records():
            rows.append(_row(line))
            if len(rows) == ROWS:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))


WRITERS = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
