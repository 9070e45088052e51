"""Names for plots and pages: one line, no control characters, cut to a width."""

import functools
import unicodedata

# These also change the direction of the text that follows, e.g. of the counts after a name.
_DIRECTIONS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shorten(text: str, limit: int, *, spaces: bool = True) -> str:
    """Put a text on one line, with `_` as spaces; replace its middle by `…` if it is too wide.

    Args:
        text: of any length, with any characters.
        limit: columns; a wide character (Chinese, Japanese, Korean, most emoji) is two, any other
            one is one.
        spaces: whether `_` becomes a space.

    Returns:
        At most `limit` columns, and so at most `limit` characters.
    """
    # Only the part that could be shown is processed, as a name may be megabytes long.
    text = str(text)
    if len(text) > 8 * limit:
        text = f"{text[: 4 * limit]}…{text[-4 * limit :]}"
    return _one_line(text, limit, spaces)


@functools.lru_cache(maxsize=2**14)  # a page has each of its names hundreds of times
def _one_line(text: str, limit: int, spaces: bool) -> str:
    text = " ".join(text.replace("_", " " if spaces else "_").split())
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text  # as nearly every name is; a page has tens of thousands
    text = "".join(c for c in text if _is_shown(c)).encode("utf-8", "replace").decode("utf-8")
    if sum(map(_columns, text)) <= limit:
        return text
    tail = (limit - 1) // 2
    head = _first_columns(text, limit - 1 - tail).rstrip()
    end = _first_columns(text[::-1], tail)[::-1]
    while end and unicodedata.combining(end[0]):  # a mark without its letter
        end = end[1:]
    return f"{head}…{end.lstrip()}"


def _is_shown(character: str) -> bool:
    return unicodedata.category(character) != "Cc" and character not in _DIRECTIONS


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _first_columns(text: str, limit: int) -> str:
    """The longest beginning of at most `limit` columns."""
    for place, character in enumerate(text):
        limit -= _columns(character)
        if limit < 0:
            return text[:place]
    return text
