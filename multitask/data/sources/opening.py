"""Open a source: recognise its kind, and read it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from multitask.data.image_kinds import SUFFIXES
from multitask.data.sources import class_folders, hub, kaggle, tables, tfds_folders
from multitask.data.sources.source import Source, input_errors, near_sibling, shorten
from multitask.errors import InputError, counted, quoted
from multitask.files import check_image_folder

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # one slash, as Path collapses `//`
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LOOKED_FOR = (
    "classes.csv of Kaggle's WikiArt, features.json (TFDS), state.json (save_to_disk), Parquet or "
    "Arrow shards, metadata.csv or .jsonl, and folders of images"
)


def open_source(
    place: Path,
    *,
    images: Path | None = None,
    image_column: str | None = None,
    levels: Sequence[str] | None = None,
    strict: bool = True,
) -> Source:
    """Recognise a collection's form and read it as a table with one row per image.

    Args:
        place: a file (CSV, TSV, JSON Lines, Excel, Parquet), a folder (a data set of the Hub, of
            TFDS or Kaggle's WikiArt; classes as folders; images beside metadata.csv), or
            `tfds:NAME`.
        images: the folder that the table's paths are relative to; None: the table's own folder.
        image_column: the column of images; None: detect it.
        levels: names of the levels of class folders, from the top. With them, a folder is always
            read as class folders.
        strict: refuse `images` and `image_column` if the source has its images elsewhere.

    Raises:
        InputError: the source cannot be read; the message says what was expected.

    Example:
        >>> source = open_source(Path("catalogue.csv"), images=Path("photos"))  # doctest: +SKIP
        >>> source.frame[source.image].iloc[0]  # doctest: +SKIP
        'rooms/a.jpg'
    """
    if images is not None:
        check_image_folder(images, field="images")
    with input_errors(place):
        source = _open(place, images, image_column, levels)
        if strict:
            _refuse_unused(source, images, image_column)
    return source


def _refuse_unused(source: Source, images: Path | None, image_column: str | None) -> None:
    """Raise InputError if the source has its images in another column or folder."""
    if image_column not in (None, source.image):
        raise InputError(
            f"the images of {source.place} are in column {quoted(source.image)}",
            field="image_column",
        )
    if images is None:
        return
    if source.images is None:
        raise InputError(f"the images of {source.place} are inside its files", field="images")
    if not images.samefile(source.images):
        raise InputError(f"the images of {source.place} are in {source.images}", field="images")


def _open(
    place: Path, images: Path | None, image_column: str | None, levels: Sequence[str] | None
) -> Source:
    if str(place).startswith(tfds_folders.PREFIX):
        _refuse_levels(levels, "a TFDS data set")
        return tfds_folders.read_tfds(tfds_folders.folder_of_name(str(place)), image_column)
    if place.is_dir():
        return _open_folder(place, images, image_column, levels)
    if not place.exists() and not place.is_symlink():
        _refuse_remote(place)
        raise InputError(f"{place}: no such file or folder.{near_sibling(place)}")
    _refuse_levels(levels, "a table")
    if recognised := kaggle.recognise(place):
        return kaggle.read_kaggle(*recognised, place, images)
    return tables.read_table(place, images=images, image_column=image_column)


def _refuse_remote(place: Path) -> None:
    """Raise InputError for a URL, or what looks like the name of a data set of the Hub."""
    if _URL.match(str(place)):
        raise InputError(
            f"{place}: a URL; nothing is downloaded here. Download it, and give the path of the "
            "file or folder"
        )
    if _HUB_NAME.fullmatch(str(place)) and not place.parent.exists() and not place.suffix:
        raise InputError(
            f"{place}: no such folder. A data set of the Hugging Face Hub has to be on disk: "
            "download it, and give its folder"
        )


def _refuse_levels(levels: Sequence[str] | None, what: str) -> None:
    if levels is not None:
        raise InputError(f"only class folders have levels, not {what}", field="levels")


def _open_folder(
    place: Path, images: Path | None, image_column: str | None, levels: Sequence[str] | None
) -> Source:
    if levels is not None:
        return class_folders.read_class_folders(place, levels)
    if recognised := kaggle.recognise(place):
        return kaggle.read_kaggle(*recognised, place, images)
    if prepared := tfds_folders.prepared_folders(place):
        return tfds_folders.read_tfds(tfds_folders.newest(prepared, str(place)), image_column)
    if class_folders.metadata_files(place):
        return class_folders.read_metadata_folder(place)
    if hub.is_saved(place) or hub.shard_paths(place):
        return hub.read_hub(place, images=images, image_column=image_column)
    _refuse_other(place)
    return _class_folders(place)


def _class_folders(place: Path) -> Source:
    """Read class folders. A note names tables beside them, as one of these may be meant."""
    listed = sorted(
        entry.name
        for entry in place.iterdir()
        if entry.name.lower().endswith(tables.TABLE_SUFFIXES)
        and not entry.name.startswith(".")
        and entry.is_file()
    )
    if not listed:
        return class_folders.read_class_folders(place)
    try:
        source = class_folders.read_class_folders(place)
    except InputError as error:
        text = str(error).removeprefix(f"{error.field}: ")
        raise type(error)(
            f"{text}; or give the path of a table in it ({shorten(listed)})", field=error.field
        ) from None
    folders = source.frame["class"].dropna().unique()
    if len(folders) == 1:
        raise InputError(
            f"{place}: all its images are in {folders[0]}, so folders do not name classes; give "
            f"the path of a table in it ({shorten(listed)})"
        )
    note = f"tables beside the folders, which are not read: {shorten(listed)}"
    return replace(source, notes=(*source.notes, note))


def _refuse_other(place: Path) -> None:
    """Raise InputError for a folder without subfolders; the message says what it has."""
    names = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("."))
    if any((place / name).is_dir() for name in names):
        return  # it is read as class folders, or refused for having no images
    if not names:
        raise InputError(f"{place}: the folder is empty; looked for {_LOOKED_FOR}")
    listed = [name for name in names if name.lower().endswith(tables.TABLE_SUFFIXES)]
    if listed:
        raise InputError(
            f"{place}: a folder with tables ({shorten(listed)}); give the path of one of them"
        )
    images = sum(name.lower().endswith(SUFFIXES) for name in names)
    has = (
        f"{counted(images, 'image that is', 'images that are')} not in class folders"
        if images
        else shorten(names)
    )
    raise InputError(f"{place}: it has {has}; looked for {_LOOKED_FOR}")
