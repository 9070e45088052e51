"""Choose installed fonts that have the characters of a text.

Matplotlib draws a character that its fonts lack as a box. It takes each character from the first
family of a list that has it; this module makes the list.
"""

import contextlib
import functools
import logging
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib import font_manager
from matplotlib.font_manager import FontEntry
from matplotlib.ft2font import FT2Font

BASE = "DejaVu Sans"  # comes with Matplotlib
_NAMED = 5  # characters in a message
# These have a box for every code point.
_NO_LETTERS = ("last resort", "lastresort", "adobe blank", "notdef")
# One code point may look different in each region; these writing systems identify the region.
_REGIONS = (("HIRAGANA", "JP"), ("KATAKANA", "JP"), ("HANGUL", "KR"), ("BOPOMOFO", "TC"))
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "KANGXI")

_reported: set[str] = set()  # families that were recommended, each once per process


def families(text: str) -> tuple[list[str], str]:
    """Return the font families for a text, and the characters without a font.

    Args:
        text: all text of one plot.

    Returns:
        (names for Matplotlib's `font.family`, DejaVu Sans first; the characters of the text that
        are in none of them, each once, in the order of the text). If DejaVu Sans is enough, it
        is the only family, and no other font is read.
    """
    wanted = [c for c in dict.fromkeys(text) if not _is_invisible(c)]
    left = _lacking(_entry(BASE), wanted)
    names = [BASE]
    fonts = _fonts() if left else []
    region = _region(text)
    while left:
        counts = [len(left) - len(_lacking(font, left)) for font in fonts]
        # The font with most of the remaining characters; on a tie, the most like DejaVu Sans.
        best = max(
            range(len(fonts)),
            key=lambda i: (counts[i], fonts[i].name.endswith(region), *_likeness(fonts[i].name)),
            default=None,
        )
        if best is None or not counts[best]:
            break
        names.append(fonts[best].name)
        left = _lacking(fonts[best], left)
    return names, "".join(left)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Matplotlib's warnings about missing characters and missing bold faces."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            yield
    finally:
        logger.setLevel(level)


def report_lacking(characters: str) -> None:
    """Print one line on stderr about characters that no font has, unless it was printed before.

    Args:
        characters: the second result of `families`.
    """
    recommended = dict.fromkeys(map(_recommended, characters))
    if recommended.keys() <= _reported:
        return
    _reported.update(recommended)
    named = " ".join(characters[:_NAMED])
    more = f" and {len(characters) - _NAMED:,} more" if len(characters) > _NAMED else ""
    line = (
        f"Plots: no installed font has {named}{more}: boxes are shown instead. "
        f"Install fonts that have them, e.g. {', '.join(list(recommended)[:4])}."
    )
    sys.stdout.flush()
    # The line is for the terminal, whose encoding may lack the characters as well.
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def _recommended(character: str) -> str:
    """A freely available family that has a character."""
    script = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    if script in _CJK:
        return "Noto Sans CJK"
    if unicodedata.category(character)[0] in "LM" and script:
        return f"Noto Sans {script.title()}"
    if ord(character) >= 0x1F000:
        return "Noto Emoji"  # Noto Color Emoji has bitmaps, which Matplotlib cannot draw
    return "Noto Sans Symbols"


def _region(text: str) -> str:
    """The ending of the font names for the ideographs of a language: SC, TC, JP or KR."""
    scripts = {unicodedata.name(c, "").split(" ")[0] for c in set(text)}
    return next((region for script, region in _REGIONS if script in scripts), "SC")


def _likeness(name: str) -> tuple[bool, bool, bool, list[int]]:
    """Sort key: how similar a family is to DejaVu Sans, then the alphabet."""
    words = name.lower().split()
    odd = {"mono", "serif", "condensed", "looped", "ui", "display"} & set(words)
    return "noto" in words, "sans" in words, not odd, [-ord(c) for c in name]


def _is_invisible(character: str) -> bool:
    """Whether a character is invisible: a space, line end, joiner or variation selector."""
    kind = unicodedata.category(character)
    return kind[0] in "ZC" or "VARIATION SELECTOR" in unicodedata.name(character, "")


@functools.cache
def _fonts() -> list[FontEntry]:
    """The most regular face of each family."""
    manager = font_manager.fontManager
    # Matplotlib caches its list of fonts in a file, without the fonts that were installed later.
    # A font that it cannot draw with (a bitmap font, a broken file) is skipped.
    known = {entry.fname for entry in manager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):
        with contextlib.suppress(Exception):
            manager.addfont(file)
    faces: dict[str, FontEntry] = {}
    for entry in manager.ttflist:
        old = faces.get(entry.name)
        if old is None or _oddness(entry) < _oddness(old):
            faces[entry.name] = entry
    return [e for e in faces.values() if not any(n in e.name.lower() for n in _NO_LETTERS)]


def _oddness(entry: FontEntry) -> tuple[bool, int]:
    weight = entry.weight if isinstance(entry.weight, int) else 400
    return entry.style != "normal", abs(weight - 400)


def _entry(name: str) -> FontEntry:
    path = font_manager.findfont(name)
    return FontEntry(fname=str(path), name=name)


def _lacking(font: FontEntry, characters: Iterable[str]) -> list[str]:
    """The characters that a font lacks."""
    characters = list(characters)
    codes = np.array([ord(c) for c in characters], np.int64)
    has = np.isin(codes, _codes(font.fname, getattr(font, "index", 0)))
    return [c for c, there in zip(characters, has, strict=True) if not there]


@functools.cache
def _codes(file: str, index: int) -> np.ndarray:
    """The code points of a face, int32 [n]; none if the file is missing or broken."""
    try:
        font = FT2Font(file, face_index=index) if index else FT2Font(file)
        return np.fromiter(font.get_charmap(), np.int32)
    except Exception as error:  # FreeType raises RuntimeError and other types
        logging.getLogger(__name__).debug("%s: %s", file, error)
        return np.zeros(0, np.int32)
