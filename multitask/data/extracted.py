"""Write the images inside a table's shards to files, once: all other code reads files."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask.console import progress_bar
from multitask.data.image_kinds import converted_kind, direct_kind
from multitask.data.sources import EmbeddedImages, Source
from multitask.disk import writing
from multitask.errors import counted
from multitask.files import check_writable, locked, read_json, replacing, write_json
from multitask.spec import InputError

logger = logging.getLogger(__name__)

INDEX = "images.json"  # written last: it exists only if every image does
_SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "BMP": ".bmp",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
    "HEIF": ".heic",
}


def extract_images(
    source: Source,
    references: Sequence[str],
    folder: Path,
    *,
    names: Mapping[str, str] | None = None,
) -> list[str | None]:
    """Write the embedded images of a source to files, unless they exist already.

    Images are read one after the other, never all at once. The folder's images.json names the
    shards that the images are from. It is written last, so that a killed call starts over.

    Args:
        source: a source with embedded images.
        references: the references of the images.
        folder: the folder to write to: new, empty, or from an earlier call.
        names: reference -> path without suffix, safe and unique. All remaining images are named by
            their shard and row.

    Returns:
        The path of each image below the folder; None for a row without bytes.

    Raises:
        InputError: the folder holds other files, or a shard is damaged.
        DiskError: the disk has no room.
    """
    facts = _facts(source)
    stems = _stems(source, names or {})
    known = _read_index(folder, facts, stems)
    if known is None:
        _refuse_other_files(folder)
        waiting = f"Another process is writing the images ({folder}); waiting for it …"
        with locked(_lock(folder), lambda: logger.info(waiting)):
            known = _read_index(folder, facts, stems) or _extract(source, facts, folder, stems)
    return [known.get(reference) for reference in references]


def _stems(source: Source, names: Mapping[str, str]) -> dict[str, str]:
    """Reference -> path without suffix of every image of the source."""
    references = [str(one) for one in source.frame[source.image] if one is not None]
    return {one: names.get(one) or _stem(one) for one in references}


def _facts(source: Source) -> dict[str, Any]:
    """Names, sizes and times of the shards."""
    facts = []
    for shard in source.shards:
        path = source.place / shard if source.place.is_dir() else source.place
        status = path.stat()
        facts.append([shard, status.st_size, status.st_mtime_ns])
    return {"shards": facts}


def _read_index(
    folder: Path, facts: dict[str, Any], stems: Mapping[str, str]
) -> dict[str, str] | None:
    """Reference -> path, of images written earlier; None if their shards or names differ."""
    try:
        content = read_json(folder / INDEX)
        paths: dict[str, str] = content["paths"]
        named = all(path.startswith(stems[one]) for one, path in paths.items())
        return paths if named and content["shards"] == facts["shards"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _refuse_other_files(folder: Path) -> None:
    check_writable(folder, field="images")
    # A call that was killed leaves its lock.
    ours = (folder / INDEX).exists() or _lock(folder).exists()
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder}: holds other files; the images inside the table are written to a folder "
            "of their own",
            field="images",
        )


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _extract(
    source: Source, facts: dict[str, Any], folder: Path, stems: Mapping[str, str]
) -> dict[str, str]:
    references, paths = list(stems), {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    logger.info(f"Writing {counted(len(references), 'image')} of {source.place} to {folder} …")
    with (
        writing(folder),
        EmbeddedImages(source) as images,
        progress_bar("writing images", len(references)) as bar,
    ):
        for reference, data in images.iterate(references):
            path = stems[reference] + _suffix(data)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / path) as temporary:
                temporary.write_bytes(data)
            paths[reference] = path
            bar.update(1)
        write_json(folder / INDEX, facts | {"paths": paths})
    return paths


def _suffix(data: bytes) -> str:
    return _SUFFIXES.get(direct_kind(data) or converted_kind(data) or "", "")


def _stem(reference: str) -> str:
    """`data/train-00000-of-00002.parquet#00000017` -> `data/train-00000-of-00002/00000017`."""
    shard, _, row = reference.rpartition("#")
    return f"{shard.rpartition('.')[0] or shard}/{row}"
