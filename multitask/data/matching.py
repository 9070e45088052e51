"""A row's path -> the file that it means, where the list and the disk spell it differently.

The one rule: the exact file wins; otherwise the one file whose path is the same after the
differences below are removed on both sides; never one of two. `merge_tables` applies it, so that
every room after it sees paths of files.
"""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

BACKSLASH, IMAGE_FOLDER = "backslash for slash", "image folder repeated"
UNICODE, PERCENT, ACCENTS = "Unicode form (NFC or NFD)", "percent-encoding", "damaged accents"
SPACES, CASE = "spaces at an end", "letter case"
_IN_NAMES = (UNICODE, PERCENT, ACCENTS, SPACES, CASE)
_UNUSUAL = re.compile(r"[%\\\s]|(?:^|/)\.?(?:/|$)")
_FOLDERS = 3  # of the image folder's own path, that a row may repeat

# Names were lower-cased after they had been garbled: `Ã©` became `ã©`. Back, for U+00E0 to U+00FE.
_RAISED = str.maketrans({chr(c): chr(c - 0x20) for c in range(0xE0, 0xFF) if c != 0xF7})


def repair_mojibake(text: str) -> str | None:
    """What a text was before its UTF-8 was read as Latin-1 or cp1252 (and then lower-cased).

    All of it must be valid UTF-8 when it is written back, which a name that is meant as it
    stands hardly ever is: `é` alone is not.

    Returns:
        The repaired text, or None where the text is no mojibake.
    """
    if text.isascii():
        return None
    for encoding in ("latin-1", "cp1252"):
        for candidate in (text, text.translate(_RAISED)):
            try:
                return candidate.encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
    return None


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def fold(name: str, *, keep: str = "") -> str:
    """A file's or folder's name without the differences in spelling; `keep`: all but this one."""
    if name.isascii() and "%" not in name:
        name = name if keep == SPACES else name.strip()
        return name if keep == CASE else name.lower()

    def composed(text: str) -> str:
        return text if keep == UNICODE else unicodedata.normalize("NFC", text)

    name = composed(name)
    if keep != PERCENT:
        name = composed(_unquoted(name))
    if keep != ACCENTS:
        name = composed(repair_mojibake(name) or name)
    if keep != SPACES:
        name = name.strip()
    return name if keep == CASE else composed(name.lower())


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".")]


def _fold_path(path: str) -> str:
    if path.isascii() and not _UNUSUAL.search(path):  # as nearly all are
        return path.lower()
    return "/".join(map(fold, _parts(path)))


@dataclass(frozen=True)
class Match:
    """The files that a path may mean.

    Attributes:
        files: relative to the image folder, sorted; several: none of them is taken.
        kind: in what the spelling differs, e.g. `letter case + backslash for slash`.
    """

    files: tuple[str, ...]
    kind: str

    @property
    def file(self) -> str | None:
        """The one file, or None where there are several."""
        return self.files[0] if len(self.files) == 1 else None


class _Disk:
    """The image folder. A folder in it is listed when a path is looked for there, once."""

    def __init__(self, image_dir: Path):
        self.root = str(image_dir)
        # Of the absolute path, links and all: a list repeats what its author typed.
        own = [fold(part) for part in Path(os.path.abspath(image_dir)).parts[1:]]
        self.repeated = [own[-count:] for count in range(1, min(_FOLDERS, len(own)) + 1)]
        self._listed: dict[str, dict[str, list[str]]] = {}

    def stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):
            return None

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Folded name -> names, of what lies in a folder."""
        if folder not in self._listed:
            found: dict[str, list[str]] = {}
            try:
                for name in os.listdir(os.path.join(self.root, folder)):
                    found.setdefault(fold(name), []).append(name)
            except OSError:  # no folder, or one that may not be read
                pass
            self._listed[folder] = found
        return self._listed[folder]

    def _readings(self, path: str) -> Iterator[list[str]]:
        """A path's parts; and those after the image folder, where the path begins with that."""
        parts = _parts(path)
        yield parts
        for own in self.repeated:
            if len(parts) > len(own) and [fold(part) for part in parts[: len(own)]] == own:
                yield parts[len(own) :]

    def look_for(self, path: str) -> Match | None:
        """What a path that does not exist may mean; None where there is no such file.

        Only names that a listing gave are joined: no path leads out of the image folder.
        """
        files, repeats = set(), False
        for place, parts in enumerate(self._readings(path)):
            found = [""]
            for part in parts:
                found = [
                    f"{folder}/{name}" if folder else name
                    for folder in found
                    for name in self._names(folder).get(fold(part), ())
                ]
            found = [file for file in found if os.path.isfile(os.path.join(self.root, file))]
            repeats |= bool(found) and place > 0
            files.update(found)
        if not files:
            return None
        first = min(files)
        kind = describe_difference(path, first, repeats=repeats)
        return Match(tuple(sorted(files)), kind)


def describe_difference(path: str, file: str, *, repeats: bool = False) -> str:
    """In what a path is spelt otherwise than a file that it means."""
    kinds = [BACKSLASH] if "\\" in path and "\\" not in file else []
    kinds += [IMAGE_FOLDER] * repeats
    there = _parts(file)
    pairs = zip(_parts(path)[-len(there) :], there, strict=True)
    pairs = [(one, other) for one, other in pairs if one != other]
    kinds += [
        kind
        for kind in _IN_NAMES
        if any(fold(a, keep=kind) != fold(b, keep=kind) for a, b in pairs)
    ]
    return " + ".join(kinds) or "spelling"


def match_files(paths: Sequence[str], image_dir: Path) -> dict[str, Match]:
    """The paths that are not spelt as their file is.

    Args:
        paths: of rows, each once, relative to the image folder and safe.
        image_dir: the image folder.

    Returns:
        path -> what it may mean, of the paths that do not exist as they stand and that one file or
        several are spelt like; and of those that are one file under several spellings, as on a
        file system that ignores case. {} in the usual case, which costs a look at each file.
    """
    disk, found = _Disk(image_dir), {}
    there: dict[str, str] = {}  # path -> file
    for path in paths:
        if disk.stat(path) is not None:
            there[path] = path
        elif match := disk.look_for(path):
            found[path] = match
            if match.file:
                there[path] = match.file
    # One file, one path: two spellings would be two images, one of them maybe of the test set.
    alike: dict[str, list[str]] = {}
    for path, file in there.items():
        alike.setdefault(_fold_path(file), []).append(path)
    for group in alike.values():
        files = sorted({there[path] for path in group})
        first_of: dict[tuple[int, int], str] = {}
        for file in files if len(files) > 1 else ():
            stat = disk.stat(file)
            if stat and stat.st_ino:
                first = first_of.setdefault((stat.st_dev, stat.st_ino), file)
                for path in group:
                    if there[path] == file != first:
                        found[path] = Match((first,), describe_difference(path, first))
    return found


def why_missing(path: str, image_dir: Path, reason: str) -> str:
    """A reason why there is no file, with what is there instead."""
    match = _Disk(image_dir).look_for(path)
    if match is None or match.file:
        return reason
    files = ", ".join(match.files[:3])
    return f"{reason}; {len(match.files)} files are spelt alike, none is taken: {files}"
