"""Find the file that a row's path means, even if the CSV and the disk spell it differently.

An exact match takes precedence. Otherwise a path means the one file whose path is equal after the
differences below are removed from both; if there are several such files, none of them is used.
`merge_tables` applies this rule, so that all later code sees the paths of files.
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
_FOLDERS = 3  # how many of the last folders of the image folder's path a row may repeat

# Names were lower-cased after they had been garbled: `Ã©` became `ã©`. This undoes the lower-casing
# for U+00E0 to U+00FE.
_RAISED = str.maketrans({chr(c): chr(c - 0x20) for c in range(0xE0, 0xFF) if c != 0xF7})


def repair_mojibake(text: str) -> str | None:
    """Undo reading a text's UTF-8 as Latin-1 or cp1252 (and lower-casing it).

    The whole text must be valid UTF-8 when it is encoded back. An intact name hardly ever is: even
    a single `é` is not.

    Returns:
        The repaired text, or None where the text is not mojibake.
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
    """Remove all differences in spelling from a file or folder name, except the kind `keep`."""
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
    if path.isascii() and not _UNUSUAL.search(path):  # nearly all paths
        return path.lower()
    return "/".join(map(fold, _parts(path)))


@dataclass(frozen=True)
class Match:
    """The files that a path may mean.

    Attributes:
        files: relative to the image folder, sorted; if there are several, none is used.
        kind: how the spelling differs, e.g. `letter case + backslash for slash`.
    """

    files: tuple[str, ...]
    kind: str

    @property
    def file(self) -> str | None:
        """The one file, or None where there are several."""
        return self.files[0] if len(self.files) == 1 else None


class _Disk:
    """The image folder. Each folder in it is listed once, when a path in it is first searched."""

    def __init__(self, image_dir: Path):
        self.root = str(image_dir)
        # The absolute path, links not resolved: a CSV repeats the path that its author typed.
        own = [fold(part) for part in Path(os.path.abspath(image_dir)).parts[1:]]
        self.repeated = [own[-count:] for count in range(1, min(_FOLDERS, len(own)) + 1)]
        self._listed: dict[str, dict[str, list[str]]] = {}

    def stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):
            return None

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Folded name -> names, of the files and folders in a folder."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(os.path.join(self.root, folder)):
                    names.setdefault(fold(name), []).append(name)
            except OSError:  # not a folder, or not readable
                pass
            self._listed[folder] = names
        return self._listed[folder]

    def _readings(self, path: str) -> Iterator[list[str]]:
        """Yield a path's parts; also those after the image folder, if the path repeats it."""
        parts = _parts(path)
        yield parts
        for own in self.repeated:
            if len(parts) > len(own) and [fold(part) for part in parts[: len(own)]] == own:
                yield parts[len(own) :]

    def look_for(self, path: str) -> Match | None:
        """Find the files that a non-existent path may mean; None if there are none.

        Only names from listings are joined, so that no path leads out of the image folder.
        """
        files, repeats = set(), False
        for reading, parts in enumerate(self._readings(path)):
            matches = [""]
            for part in parts:
                matches = [
                    f"{folder}/{name}" if folder else name
                    for folder in matches
                    for name in self._names(folder).get(fold(part), ())
                ]
            matches = [file for file in matches if os.path.isfile(os.path.join(self.root, file))]
            repeats |= bool(matches) and reading > 0
            files.update(matches)
        if not files:
            return None
        first = min(files)
        kind = describe_difference(path, first, repeats=repeats)
        return Match(tuple(sorted(files)), kind)


def describe_difference(path: str, file: str, *, repeats: bool = False) -> str:
    """Describe how the spelling of a path differs from that of its file."""
    kinds = [BACKSLASH] if "\\" in path and "\\" not in file else []
    kinds += [IMAGE_FOLDER] * repeats
    parts = _parts(file)
    zipped = zip(_parts(path)[-len(parts) :], parts, strict=True)
    pairs = [(one, other) for one, other in zipped if one != other]
    kinds += [
        kind
        for kind in _IN_NAMES
        if any(fold(a, keep=kind) != fold(b, keep=kind) for a, b in pairs)
    ]
    return " + ".join(kinds) or "spelling"


def match_files(paths: Sequence[str], image_dir: Path) -> dict[str, Match]:
    """Find the paths that are spelled differently from their file.

    Args:
        paths: of rows, each once, relative to the image folder and safe.
        image_dir: the image folder.

    Returns:
        path -> the files that it may mean, for the paths that do not exist as written but match one
        or several files, and for those that are one file under several spellings, as on a file
        system that ignores case. The result is usually {}, at the cost of one `stat` per file.
    """
    disk = _Disk(image_dir)
    matches: dict[str, Match] = {}
    file_of: dict[str, str] = {}
    for path in paths:
        if disk.stat(path) is not None:
            file_of[path] = path
        elif match := disk.look_for(path):
            matches[path] = match
            if match.file:
                file_of[path] = match.file
    # One path per file: two spellings would count as two images, and one could be a test image.
    alike: dict[str, list[str]] = {}
    for path, file in file_of.items():
        alike.setdefault(_fold_path(file), []).append(path)
    for group in alike.values():
        files = sorted({file_of[path] for path in group})
        first_of: dict[tuple[int, int], str] = {}
        for file in files if len(files) > 1 else ():
            stat = disk.stat(file)
            if stat and stat.st_ino:
                first = first_of.setdefault((stat.st_dev, stat.st_ino), file)
                for path in group:
                    if file_of[path] == file != first:
                        matches[path] = Match((first,), describe_difference(path, first))
    return matches


def why_missing(path: str, image_dir: Path, reason: str) -> str:
    """Add the files of similar spelling to the reason why a path has no file."""
    match = _Disk(image_dir).look_for(path)
    if match is None or match.file:
        return reason
    files = ", ".join(match.files[:3])
    return f"{reason}; {len(match.files)} files have a similar spelling, none is used: {files}"
