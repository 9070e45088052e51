"""Read a data set of the Hugging Face Hub from disk: Parquet shards, or a `save_to_disk` folder.

The library `datasets` is not needed: the files are Parquet, Arrow and JSON.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from multitask.data.sources.columnar import ShardFile, read_shards
from multitask.data.sources.shards import ARROW_SUFFIXES, PARQUET_SUFFIXES
from multitask.data.sources.source import HUB, Source, one_line, read_bytes, shorten, walk_files
from multitask.data.sources.splits import missing_shards, split_of_path
from multitask.errors import InputError
from multitask.spec import why_unsafe

_DEPTH = 5  # levels of folders to search for shards, as in `default/train/0000.parquet`
_PARTITION = re.compile(r"([^=]+)=(.*)")  # a folder of partitioned Parquet: `style=Cubism`
_NULL = "__HIVE_DEFAULT_PARTITION__"  # the value in a folder's name for rows without a value
_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / _DICT).is_file() or (folder / _STATE).is_file()


def shard_paths(folder: Path) -> list[str]:
    """The Parquet files of a folder, relative to it; its Arrow files if it has no Parquet files."""
    files = walk_files(folder, _DEPTH)
    for suffixes in (PARQUET_SUFFIXES, ARROW_SUFFIXES):
        # `datasets` writes its cache files beside the data set.
        names = [name for name in files if name.lower().endswith(suffixes)
                 and not name.rsplit("/", 1)[-1].startswith("cache-")]  # fmt: skip
        if names:
            return names
    return []


def read_hub(place: Path, *, images: Path | None = None, image_column: str | None = None) -> Source:
    """Read a data set of the Hub from a folder.

    Args:
        place: the folder.
        images: the folder of the images, if the shards hold paths instead of bytes.
        image_column: the column of images; None: detect it.

    Raises:
        InputError: a shard is missing or unreadable, the folder holds several data sets, or there
            is no column of images.
    """
    if is_saved(place):
        files, features = _saved(place)
    else:
        names = shard_paths(place)
        plain, partitions = _partitioned(place, names)
        _refuse_several(place, plain)
        files = [
            ShardFile(name, place / name, split_of_path(path), constants)
            for name, path, constants in zip(names, plain, partitions, strict=True)
        ]
        features = _stated_features(place)
    names = [file.name for file in files]
    if absent := missing_shards(names):
        raise InputError(f"{place}: the shard {absent} is missing")
    return read_shards(
        HUB, place, files, features=features, images=images, image_column=image_column
    )


def _partitioned(
    place: Path, names: Sequence[str]
) -> tuple[list[str], list[dict[str, str | None]]]:
    """Read the columns of partitioned Parquet (pandas, Spark) from folders such as `style=Cubism`.

    Args:
        place: the data set, for messages.
        names: the paths of the shards below it.

    Returns:
        Two lists with one entry per shard: its path without these folders, and column -> the value
        of all its rows.

    Raises:
        InputError: the shards do not all have the same columns in their folders.
    """
    plain, partitions = [], []
    for name in names:
        *folders, file = name.split("/")
        matches = [_PARTITION.fullmatch(folder) for folder in folders]
        pairs = [(unquote(match[1]), unquote(match[2])) for match in matches if match]
        partitions.append({key: None if value == _NULL else value for key, value in pairs})
        rest = [folder for folder, match in zip(folders, matches, strict=True) if not match]
        plain.append("/".join([*rest, file]))
    for name, columns in zip(names, partitions, strict=True):
        if list(columns) != list(partitions[0]):
            raise InputError(
                f"{place}: the folders of {name} name the columns {shorten(columns) or 'none'}, "
                f"those of {names[0]} {shorten(partitions[0]) or 'none'}"
            )
    return plain, partitions


def _refuse_several(place: Path, names: Sequence[str]) -> None:
    """Raise InputError if the shards belong to several data sets (configurations)."""
    tops = {name.split("/")[0] for name in names if "/" in name}
    sets = sorted(top for top in tops if split_of_path(f"{top}/_") is None)
    if len(sets) > 1 or (
        sets and len(names) > sum(name.startswith(f"{sets[0]}/") for name in names)
    ):
        at_top = ["files beside them"] * any("/" not in name for name in names)
        raise InputError(
            f"{place}: shards of several data sets ({shorten([*sets, *at_top])}); "
            "give the folder of one of them"
        )


# === save_to_disk ===


def _saved(place: Path) -> tuple[list[ShardFile], dict[str, Any]]:
    """The shards of a Dataset, or of the Datasets of a DatasetDict, and their features."""
    if not (place / _DICT).is_file():
        return _saved_split(place, "", None), _stated_features(place)
    splits = _json(place / _DICT).get("splits")
    if not isinstance(splits, list) or not splits:
        raise InputError(f"{place / _DICT}: splits: expected a list of names")
    files: list[ShardFile] = []
    features: dict[str, Any] = {}
    for split in map(str, splits):
        if why_unsafe(split) or not (place / split / _STATE).is_file():
            raise InputError(f"{place / _DICT}: names the split {split!r}, which has no {_STATE}")
        files += _saved_split(place, f"{split}/", split)
        features = features or _stated_features(place / split)
    return files, features


def _saved_split(place: Path, prefix: str, split: str | None) -> list[ShardFile]:
    state_path = place / prefix / _STATE
    state = _json(state_path)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{state_path}: it stores a selection of rows as indices; apply flatten_indices() of "
            "the library datasets and save it again"
        )
    try:
        names = [str(item["filename"]) for item in state["_data_files"]]
    except (KeyError, TypeError):
        raise InputError(f"{state_path}: no list of files (_data_files)") from None
    for name in names:
        if why_unsafe(name):
            raise InputError(f"{state_path}: {name!r}: {why_unsafe(name)}")
    if split is None and isinstance(state.get("_split"), str):
        split = state["_split"]
    return [ShardFile(prefix + name, place / prefix / name, split) for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def _stated_features(folder: Path) -> dict[str, Any]:
    """The features in dataset_info.json; {} if there is no such file."""
    if not (folder / _INFO).is_file():
        return {}
    features = _json(folder / _INFO).get("features")
    return features if isinstance(features, dict) else {}
