"""Read a data set that TFDS prepared, by its name or by its folder.

No code of the data set runs, and nothing is downloaded: the folder describes itself.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from multitask.data.sources.embedded import reference
from multitask.data.sources.source import (
    CELL,
    TFDS,
    Source,
    free_name,
    input_errors,
    object_frame,
    one_line,
    plain_column,
    read_bytes,
    shorten,
)
from multitask.data.sources.tfds_shards import open_tfds_shard
from multitask.errors import InputError, counted, expected, near, quoted, shown
from multitask.reading import check_regular

PREFIX = "tfds:"
_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.+-]+))?(?::(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FEATURES, _INFO = "features.json", "dataset_info.json"
_OWN = "tensorflow_datasets."  # the package of TFDS's own feature classes
# The keys of a feature's class: two spellings, and one of older versions. A feature may itself have
# such a name; its value is then not a string.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


# === Folders ===


def is_prepared(folder: Path) -> bool:
    """Whether TFDS wrote a folder."""
    return (folder / _FEATURES).is_file() and (folder / _INFO).is_file()


def prepared_folders(folder: Path) -> list[Path]:
    """The folder itself, or else the version folders in it or in its configurations, sorted."""
    if is_prepared(folder):
        return [folder]
    versions = _versions(folder)
    for config in _folders(folder):
        versions += _versions(config)
    return sorted(versions)


def _folders(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _versions(folder: Path) -> list[Path]:
    return [
        entry for entry in _folders(folder) if _VERSION.fullmatch(entry.name) and is_prepared(entry)
    ]


def newest(folders: Sequence[Path], place: str) -> Path:
    """The folder of the newest version; InputError if there are several configurations."""
    parents = sorted({folder.parent.name for folder in folders})
    if len(parents) > 1:
        raise InputError(f"{place}: several configurations ({shorten(parents)}); name one")
    return max(folders, key=lambda folder: [int(part) for part in folder.name.split(".")]
               if _VERSION.fullmatch(folder.name) else [])  # fmt: skip


def folder_of_name(place: str) -> Path:
    """The folder of `tfds:NAME[/CONFIG][:VERSION]` in TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        InputError: the name has another form, or no such data set is prepared.
    """
    match = _NAME.fullmatch(place.removeprefix(PREFIX))
    if match is None:
        raise InputError(f"{place}: expected {PREFIX}NAME, {PREFIX}NAME/CONFIG or …:1.0.0")
    stated = os.environ.get("TFDS_DATA_DIR")
    root = Path(stated) if stated else Path.home() / "tensorflow_datasets"
    folder = root / match["name"] / (match["config"] or "")
    folders = prepared_folders(folder)
    if match["version"]:
        folders = [path for path in folders if path.name == match["version"]]
    if not folders:
        names = [path.name for path in _folders(root)]
        raise InputError(
            f"{place}: not prepared in {root}.{near(match['name'], names)} Prepare it with TFDS, "
            "or set TFDS_DATA_DIR; nothing is downloaded"
        )
    return newest(folders, place)


# === Features ===


@dataclass
class _Features:
    """How the features of a data set become columns.

    Attributes:
        readers: column -> a function from the values of its feature to a cell.
        images: the features that are images.
        classes: column -> its class names.
        skipped: features that are neither values nor lists of them.
    """

    readers: dict[str, Callable[[list[Any]], Any]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def _scalar(values: list[Any]) -> Any:
    return values[0] if values else None


def _flags(values: list[Any]) -> Any:
    return bool(values[0]) if values else None


def _plan(features: Any, plan: _Features, prefix: str = "") -> _Features:
    import numpy as np
    import tensorflow_datasets as tfds

    kinds = tfds.features
    for key, feature in sorted(features.items()):  # their order in the file is arbitrary
        name = f"{prefix}{key}"
        inner = feature.feature if isinstance(feature, kinds.Sequence) else feature
        if isinstance(feature, kinds.FeaturesDict):
            _plan(feature, plan, f"{name}/")
        elif type(feature) is kinds.Image:
            plan.images.append(name)
        elif _is_plain(inner):
            several = inner is not feature or bool(feature.shape)
            flags = feature.np_dtype == np.bool_
            plan.readers[name] = list if several else _flags if flags else _scalar
            if isinstance(inner, kinds.ClassLabel) and inner.names:
                plan.classes[name] = tuple(inner.names)
        else:
            plan.skipped.append(name)
    return plan


def _is_plain(feature: Any) -> bool:
    """Whether a feature is stored as a value or a flat list of values."""
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Tensor) or len(feature.shape) > 1:
        return False
    encoding = getattr(feature, "_encoding", tfds.features.Encoding.NONE)
    return encoding == tfds.features.Encoding.NONE


def _values(feature: Any) -> list[Any]:
    """The values of a `tf.train.Feature`; bytes become text."""
    kind = feature.WhichOneof("kind")
    if kind is None:
        return []
    values = getattr(feature, kind).value
    if kind == "bytes_list":
        return [value.decode("utf-8", "replace") for value in values]
    return list(values)


# === Reading ===


def read_tfds(place: Path, image_column: str | None = None) -> Source:
    """Read a folder that TFDS wrote; images are not decoded.

    Args:
        place: the folder with features.json.
        image_column: the image feature; None: the only one.

    Raises:
        InputError: the folder is damaged or incomplete, or does not have exactly one image feature.
    """
    import tensorflow_datasets as tfds

    with input_errors(place):
        check_regular(place)  # TFDS opens these files itself
    _refuse_foreign(place / _FEATURES)
    try:
        info = tfds.builder_from_directory(place).info
        plan = _plan(info.features, _Features())
        shards = _shards(info.splits)
    except Exception as error:  # TFDS documents no exceptions
        raise InputError(f"{place}: not a readable TFDS folder: {one_line(error)}") from None
    image = _choose_image(plan.images, image_column, place)
    columns: dict[str, list[Any]] = {name: [] for name in plan.readers}
    references, split_values, rows = [], [], []
    for split, file, expected_count in shards:
        count = _read_shard(place / file, plan, columns, expected_count)
        references += [reference(file, row) for row in range(count)]
        split_values += [split] * count
        rows += [f"row {row} of {file}" for row in range(count)]
    if not references:
        raise InputError(f"{place}: no rows")
    frame = object_frame({image: references} | {
        name: _cells(values, plan.classes.get(name), f"{place}: feature {shown(name, CELL)}")
        for name, values in columns.items()
    })  # fmt: skip
    split_column = free_name("split", frame.columns)
    frame.insert(1, split_column, pd.Series(split_values, dtype=object))
    notes = [f"TFDS {info.full_name}, {counted(len(frame), 'row')}, splits {shorten(info.splits)}"]
    if plan.skipped:
        notes.append(f"skipped features, which hold no plain values: {shorten(plan.skipped)}")
    return Source(
        TFDS,
        place,
        frame,
        image,
        embedded=True,
        shards=tuple(file for _, file, _ in shards),
        split=split_column,
        class_names=plan.classes,
        rows=pd.Series(rows, dtype=object),
        notes=tuple(notes),
    )


def _refuse_foreign(path: Path) -> None:
    """Raise InputError for a feature class from another package: TFDS would import its module."""
    try:
        todo = [json.loads(read_bytes(path))]
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}") from None
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
            for key in _CLASS_KEYS:
                name = item.get(key, _OWN)
                if isinstance(name, str) and not name.startswith(_OWN):
                    raise InputError(
                        f"{path}: the feature class {shown(name)} is not part of TFDS and is not "
                        "supported"
                    )


def _shards(splits: Any) -> list[tuple[str, str, int]]:
    """Split, file and number of records of each shard; a file's name has no folder."""
    return [
        (name, file, count)
        for name, split in splits.items()
        for file, count in zip(split.filenames, split.shard_lengths, strict=True)
    ]


def _choose_image(images: Sequence[str], given: str | None, place: Path) -> str:
    if given is not None:
        if given not in images:
            raise InputError(
                f"{place}: no image feature {quoted(given)}. {expected(given, images)}",
                field="image_column",
            )
        return given
    if len(images) > 1:
        raise InputError(
            f"{place}: several features are images ({shorten(images)}); choose one",
            field="image_column",
        )
    if not images:
        raise InputError(f"{place}: no feature is an image")
    return images[0]


def _read_shard(
    path: Path, plan: _Features, columns: dict[str, list[Any]], expected_count: int
) -> int:
    """Add the values of a file's records to the columns; return the number of records."""
    shard = open_tfds_shard(path)
    try:
        if shard.row_count != expected_count:
            raise InputError(
                f"{path}: {counted(shard.row_count, 'record')}; {_INFO} says {expected_count:,}. "
                "The file is incomplete or from another version"
            )
        for example in shard.examples():
            for name, read in plan.readers.items():
                columns[name].append(read(_values(example[name])) if name in example else None)
    finally:
        shard.close()
    return shard.row_count


def _cells(values: Iterable[Any], names: Sequence[str] | None, place: str) -> Sequence[Any]:
    from multitask.data.sources.shards import as_names

    cells = plain_column(list(values))
    return cells if names is None else as_names(cells, names, place)
