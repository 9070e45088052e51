"""Use another copy of a data set: images from the copy, labels and split from the original lists.

File names in a copy may differ from the lists, because its author repaired damaged names, or
removed accents and punctuation. `match = "letters"` in a spec matches such names. Images inside
Parquet or Arrow files are first written to files with the names and folders of the lists.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from multitask.data.extracted import extract_images
from multitask.data.image_kinds import SUFFIXES
from multitask.data.label_files import LabelledRows, read_lists
from multitask.data.matching import fold, letters
from multitask.data.merging import merge_tables
from multitask.data.sources import Source, open_source
from multitask.data.sources.class_folders import LevelsNeededError
from multitask.data.sources.image_column import USUAL, has_image_suffix
from multitask.data.table import Table
from multitask.errors import counted
from multitask.files import check_is_folder
from multitask.spec import MISSING, DataSpec, InputError, override, why_unsafe

logger = logging.getLogger(__name__)

FIRST = 5  # paths without an image that are listed
_MOST_BYTES = 200  # of the name of an extracted image
_CLEAR = 0.9  # share of a task's rows whose folder is the usual one of their class


def with_copy(
    spec: DataSpec, data_dir: Path | None, copy: Path, *, images: Path | None = None
) -> tuple[DataSpec, Path]:
    """The spec with the images of a copy, and the folder of the lists.

    The spec's `images` becomes the copy's folder, so that a run knows it. Matched and missing
    images are counted on the console.

    Args:
        spec: a spec whose tasks have lists.
        data_dir: the folder that the spec's paths start at; None: the copy, if the lists are there.
        copy: a folder with the image folders that the lists name, such as Kaggle's copy of WikiArt;
            or a data set of the Hub with the images inside its files.
        images: the folder to write images inside files to; None: a folder in data_dir.

    Raises:
        InputError: the lists or the images are not there, or the images have no names.
        DiskError: the disk has no room for the images.
    """
    if spec.table is not None:
        raise InputError(
            f"is for a spec whose tasks have lists; {spec.source_file} has a [table]", field="data"
        )
    data_dir = data_dir or copy
    check_is_folder(data_dir, field="data_dir")
    _check_lists(spec, data_dir)
    rows = read_lists(spec, data_dir, strict=False)
    folders = {_folder(path) for frame in rows.frames.values() for path in frame["path"]}
    root = next((place for place in (copy, copy / spec.images) if _has(place, folders)), None)
    if root is None:
        root = images or data_dir / f"{copy.resolve().stem}_images"
        _extract(rows, copy, root)
    elif images is not None:
        raise InputError(f"the images of {copy} are in {root}", field="images")
    below, home = root.absolute(), data_dir.absolute()
    inside = below.is_relative_to(home)
    place = below.relative_to(home).as_posix() if inside else str(below)
    spec = override(spec, {"images": place, "match": "letters"})
    for line in _describe(merge_tables(spec, data_dir, strict=False), copy, root):
        logger.info(line)
    return spec, data_dir


def _check_lists(spec: DataSpec, data_dir: Path) -> None:
    """Raise InputError if a training list is missing; the message says where to get it."""
    for task in spec.tasks:
        if not (data_dir / task.train).is_file():
            what = PurePosixPath(task.train).parts[0]
            raise InputError(
                f"{data_dir}: no {task.train}: a copy has the images, but not the labels and the "
                f"split; get {what} from {spec.source}, and name the folder that it is in",
                field="data_dir",
            )


def _folder(path: str) -> str:
    return path.partition("/")[0]


def _has(place: Path, folders: set[str]) -> bool:
    """Whether a folder contains a folder of the lists, in any spelling."""
    if not place.is_dir():
        return False
    wanted = {key for folder in folders for key in letters(folder)}
    names = (entry.name for entry in place.iterdir() if entry.is_dir())
    return any(key in wanted for name in names for key in letters(name))


def _describe(table: Table, copy: Path, root: Path) -> list[str]:
    """Count the images by matching rule, and name the missing ones."""
    respelt = table.findings.respelt.drop_duplicates("path")
    respelt = respelt[respelt["file_path"].isin(table.paths)]
    missing = [path for path in table.paths if not os.path.isfile(root / path)]
    exact = len(table) - respelt["file_path"].nunique() - len(missing)
    kinds = {"same path": exact} if exact else {}
    kinds |= respelt["kind"].value_counts().to_dict() | {"missing": len(missing)}
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    lines = [f"{copy}: {counted(len(table), 'image')} of the lists: {counts}"]
    if missing:
        more = ", …" if len(missing) > FIRST else ""
        lines.append(
            f"  missing: {', '.join(missing[:FIRST])}{more} (all: `multitask audit`, and "
            "excluded.csv of a run)"
        )
    return lines


# === Images inside files ===


def _extract(rows: LabelledRows, copy: Path, root: Path) -> None:
    """Write the images inside a copy's files to the folders of the lists."""
    try:
        source = open_source(copy)
    except LevelsNeededError:  # folders of images, but not those of the lists
        source = None
    if source is None or not source.embedded:
        first = next(_folder(path) for frame in rows.frames.values() for path in frame["path"])
        raise InputError(
            f"{copy}: has neither the folders of the lists ({first}, …) nor files with images "
            "inside",
            field="data",
        )
    files = _file_names(source)
    if files is None:
        raise InputError(
            f"{copy}: the images inside its files have no file names (as in {source.image}.path) "
            "to match them by; use a copy with file names",
            field="data",
        )
    references = [str(one) for one in source.frame[source.image]]
    folders = {_folder(path) for frame in rows.frames.values() for path in frame["path"]}
    names = _names(source, files, folders, _folders_of_classes(rows))
    extract_images(source, references, root, names=names)


def _folders_of_classes(rows: LabelledRows) -> dict[str, dict[str, str]]:
    """Task -> class name -> its folder, for tasks whose classes are the folders."""
    result = {}
    for task, frame in rows.frames.items():
        frame = frame[frame["label"] != MISSING]
        pairs = Counter(
            (rows.classes[task][label], _folder(path))
            for label, path in zip(frame["label"], frame["path"], strict=True)
        )
        usual: dict[str, tuple[int, str]] = {}
        for (name, folder), count in pairs.items():
            usual[name] = max(usual.get(name, (0, "")), (count, folder))
        folders = {name: folder for name, (_, folder) in usual.items()}
        agreeing = sum(count for count, _ in usual.values())
        if len(set(folders.values())) == len(folders) and agreeing >= _CLEAR * pairs.total() > 0:
            result[task] = folders
    return result


def _file_names(source: Source) -> list[str | None] | None:
    """The file name of each image, as the source has it; None where it has none."""
    for column in (f"{source.image}.path", *USUAL):
        if column in source.frame and column != source.image:
            values = list(source.frame[column])
            texts = [value if isinstance(value, str) else None for value in values]
            if any(text is not None and has_image_suffix(text) for text in texts):
                return texts
    return None


def _names(
    source: Source,
    files: Sequence[str | None],
    folders: Collection[str],
    folders_of: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Reference -> `folder/name` without the suffix, for each image that has it to itself.

    Args:
        source: a source with embedded images.
        files: the file name of each image.
        folders: the folders of the lists.
        folders_of: task -> class name -> folder. A file name without a folder gets the folder of
            its class. Without such a task, it gets the folder that has the name of its class.
    """
    folder_of = {key: folder for folder in folders for key in letters(folder)}
    columns = [task for task in folders_of if task in source.frame]
    for task in columns:
        own = folders_of[task]
        folder_of |= {key: folder for name, folder in own.items() for key in letters(name)}
    labels_of = (source.frame[name] for name in columns or source.class_names)
    rows = zip(source.frame[source.image], files, *labels_of, strict=True)
    named = defaultdict(list)
    for reference, file, *labels in rows:
        *above, name = (file or "").replace("\\", "/").split("/")
        stem, suffix = os.path.splitext(name)
        stem = stem if suffix.lower() in SUFFIXES else name
        texts = [text for text in (*above[-1:], *labels) if isinstance(text, str)]
        folder = next((folder_of[k] for text in texts for k in letters(text) if k in folder_of), "")
        if folder and _is_plain(stem):
            named[folder, fold(stem)].append((str(reference), f"{folder}/{stem}"))
    several = sum(len(images) for images in named.values() if len(images) > 1)
    unnamed = len(files) - sum(map(len, named.values()))
    if several or unnamed:
        logger.info(
            f"  not matched: {counted(several, 'image')} with the folder and name of another, "
            f"{unnamed:,} without a name or folder"
        )
    return dict(images[0] for images in named.values() if len(images) == 1)


def _is_plain(name: str) -> bool:
    """Whether a new file in a folder can have this name."""
    hidden = name.startswith(".") or not name.strip()
    return not hidden and why_unsafe(name) is None and len(os.fsencode(name)) <= _MOST_BYTES
