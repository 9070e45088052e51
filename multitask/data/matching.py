"""Find the file that a row's path means, even if the CSV and the disk spell it differently.

An exact match takes precedence. Otherwise a path means the one file whose path is equal after the
differences below are removed from both; if there are several such files, none of them is used. In
a copy of a data set, names may have been rewritten: a path without such a file then means the one
file with the same letters and digits, if no other path means it.
`merge_tables` applies this rule, so that all later code sees the paths of files.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

BACKSLASH, IMAGE_FOLDER = "backslash for slash", "image folder repeated"
UNICODE, PERCENT, ACCENTS = "Unicode form (NFC or NFD)", "percent-encoding", "damaged accents"
ESCAPES, SPACES, CASE = "characters as #U…", "spaces at an end", "letter case"
_IN_NAMES = (UNICODE, PERCENT, ESCAPES, ACCENTS, SPACES, CASE)
LETTERS = "same letters and digits"  # the kind of a match by letters and digits alone
_UNUSUAL = re.compile(r"[%#\\\s]|(?:^|/)\.?(?:/|$)")
# How `unzip` writes other characters if the locale is not UTF-8.
_ESCAPE = re.compile(r"#U((?!00[0-7])[0-9a-fA-F]{4})")
_OTHERS = re.compile(r"[^a-z0-9]+")
_TWO_LETTERS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})
_FOLDERS = 3  # how many of the last folders of the image folder's path a row may repeat

# Names were lower-cased after they had been garbled: `Ã©` became `ã©`. This undoes the lower-casing
# for U+00E0 to U+00FE.
_RAISED = str.maketrans({chr(c): chr(c - 0x20) for c in range(0xE0, 0xFF) if c != 0xF7})


def repair_mojibake(text: str) -> str | None:
    """Repair UTF-8 text that was read as Latin-1, cp1252 or cp437, and perhaps lower-cased.

    The whole text must be valid UTF-8 when it is encoded back. An intact name hardly ever is: even
    a single `é` is not. A text may be garbled twice, because programs that unpack ZIP files read
    names as cp437, including garbled names.

    Returns:
        The repaired text, or None if the text is not mojibake.
    """
    if text.isascii():
        return None
    for encoding in ("latin-1", "cp1252", "cp437"):
        for candidate in (text, text.translate(_RAISED)):
            try:
                repaired = candidate.encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
            return repair_mojibake(repaired) or repaired
    return None


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)


def fold(name: str, *, keep: str = "") -> str:
    """Remove all differences in spelling from a file or folder name, except the kind `keep`."""
    if name.isascii() and "%" not in name and "#" not in name:
        name = name if keep == SPACES else name.strip()
        return name if keep == CASE else name.lower()

    def composed(text: str) -> str:
        return text if keep == UNICODE else unicodedata.normalize("NFC", text)

    name = composed(name)
    if keep != PERCENT:
        name = composed(_unquoted(name))
    if keep != ESCAPES:
        name = composed(_unescaped(name))
    if keep != ACCENTS:
        name = composed(repair_mojibake(name) or name)
    if keep != SPACES:
        name = name.strip()
    return name if keep == CASE else composed(name.lower())


def letters(name: str) -> frozenset[str]:
    """The letters and digits of a file or folder name, in each usual transliteration.

    The suffix is dropped. An accented letter becomes its base letter, two letters (`oe`) or
    nothing. A garbled name gives its garbled and its repaired letters. For example,
    `bã¶cklin_(1).jpg` gives backlin1, bcklin1, bocklin1 and boecklin1.
    """
    name = _unescaped(_unquoted(os.path.splitext(name)[0])).lower()
    if name.isascii():
        return frozenset({_OTHERS.sub("", name)} - {""})
    garbled = unicodedata.normalize("NFC", name)
    intact = unicodedata.normalize("NFC", repair_mojibake(garbled) or garbled).lower()
    forms = {
        _OTHERS.sub("", unicodedata.normalize(form, text))
        for text in (garbled, intact, intact.translate(_TWO_LETTERS))
        for form in ("NFC", "NFD", "NFKD")
    }
    return frozenset(forms - {""})


def _folded(name: str) -> Collection[str]:
    return (fold(name),)


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
        shared: whether another path means the file too, so that it is not used.
    """

    files: tuple[str, ...]
    kind: str
    shared: bool = False

    @property
    def file(self) -> str | None:
        """The one file; None if there are several, or if another path means it too."""
        return self.files[0] if len(self.files) == 1 and not self.shared else None


class _Disk:
    """The image folder. Each folder in it is listed once, when a path in it is first searched."""

    def __init__(self, image_dir: Path):
        self.root = str(image_dir)
        # The absolute path, links not resolved: a CSV repeats the path that its author typed.
        own = [fold(part) for part in Path(os.path.abspath(image_dir)).parts[1:]]
        self.repeated = [own[-count:] for count in range(1, min(_FOLDERS, len(own)) + 1)]
        self._listed: dict[tuple[str, Callable], dict[str, list[str]]] = {}

    def stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):
            return None

    def _names(self, folder: str, keys: Callable[[str], Collection[str]]) -> dict[str, list[str]]:
        """Key -> names, of the files and folders in a folder."""
        if (folder, keys) not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(os.path.join(self.root, folder)):
                    for key in keys(name):
                        names.setdefault(key, []).append(name)
            except OSError:  # not a folder, or not readable
                pass
            self._listed[folder, keys] = names
        return self._listed[folder, keys]

    def _readings(self, path: str) -> Iterator[list[str]]:
        """Yield a path's parts; also those after the image folder, if the path repeats it."""
        parts = _parts(path)
        yield parts
        for own in self.repeated:
            if len(parts) > len(own) and [fold(part) for part in parts[: len(own)]] == own:
                yield parts[len(own) :]

    def look_for(self, path: str, keys: Callable[[str], Collection[str]] = _folded) -> Match | None:
        """Find the files that a non-existent path may mean; None if there are none.

        Only names from listings are joined, so that no path leads out of the image folder.

        Args:
            path: the path of a row.
            keys: name -> its keys; two names are alike if they have a key in common.
        """
        files, repeats = set(), False
        for reading, parts in enumerate(self._readings(path)):
            matches = [""]
            for part in parts:
                own = keys(part)
                matches = [
                    f"{folder}/{name}" if folder else name
                    for folder in matches
                    for name in {n for key in own for n in self._names(folder, keys).get(key, ())}
                ]
            matches = [file for file in matches if os.path.isfile(os.path.join(self.root, file))]
            repeats |= bool(matches) and reading > 0
            files.update(matches)
        if not files:
            return None
        first = min(files)
        kind = describe_difference(path, first, repeats=repeats) if keys is _folded else LETTERS
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


def match_files(
    paths: Sequence[str], image_dir: Path, *, by_letters: bool = False
) -> dict[str, Match]:
    """Find the paths that are spelled differently from their file.

    Args:
        paths: the paths of the rows, each once, safe and relative to the image folder.
        image_dir: the image folder.
        by_letters: match the remaining paths by letters and digits alone.

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
    if by_letters:
        rest = [path for path in paths if path not in file_of and path not in matches]
        matches |= _match_letters(rest, set(file_of.values()), disk)
    return matches


def _match_letters(paths: Sequence[str], taken: set[str], disk: _Disk) -> dict[str, Match]:
    """Match paths by letters and digits alone, each file to one path at most.

    Args:
        paths: the paths without a file.
        taken: the files of the other paths.
        disk: the image folder.
    """
    matches = {path: match for path in paths if (match := disk.look_for(path, letters))}
    claims = Counter(file for match in matches.values() for file in match.files)
    return {
        path: replace(match, shared=any(claims[f] > 1 or f in taken for f in match.files))
        for path, match in matches.items()
    }


def why_missing(path: str, image_dir: Path, reason: str) -> str:
    """Add the files of similar spelling to the reason why a path has no file."""
    match = _Disk(image_dir).look_for(path)
    if match is None or match.file:
        return reason
    files = ", ".join(match.files[:3])
    return f"{reason}; {len(match.files)} files have a similar spelling, none is used: {files}"
