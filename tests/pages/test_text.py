"""Names are one line of bounded width, whatever characters they have."""

import unicodedata

import pytest

from multitask.pages.text import shorten


def columns(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_shorten():
    assert shorten("Mannerism_Late_Renaissance", 30) == "Mannerism Late Renaissance"
    assert shorten("a\n b__c", 30) == "a b c"
    assert shorten("a_b", 30, spaces=False) == "a_b"
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert all(len(shorten("x_y" * 40, limit)) <= limit for limit in range(4, 40))


def test_a_wide_character_is_two_columns():
    assert shorten("浮世絵の北斎", 12) == "浮世絵の北斎"
    assert shorten("浮世絵の北斎", 11) == "浮世…北斎"
    assert columns(shorten("🎨" * 30, 21)) <= 21


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31mc", "ab[31mc"),
        ("next\x85line", "next line"),
        ("\u202eevil\u202c 3", "evil 3"),  # would turn round what stands beside it
        ("half\udcff", "half?"),
        ("e\u0301" * 3, "e\u0301" * 3),
        ("\u200c\u200dx", "\u200c\u200dx"),  # joiners shape letters
    ],
)
def test_what_is_no_letter_does_no_harm(text, shown):
    assert shorten(text, 30) == shown


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "a" + "\u0301" * 10**5, "\x00" * 10**5, "字" * 10**5, " " * 10**5]
)
def test_the_longest_name_is_bounded(text):
    assert columns(shorten(text, 50)) <= 50


def test_a_mark_keeps_its_letter():
    short = shorten("abcdefghijk" + "e\u0301" * 2, 6)
    assert short == "abc…e\u0301"
