"""Texts for messages."""

import pytest

from multitask.errors import counted


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "epoch"), "1 epoch"),
        ((0, "epoch"), "0 epochs"),
        ((1200, "class", "classes"), "1,200 classes"),
        ((1, "group has", "groups have"), "1 group has"),
        ((2, "group has", "groups have"), "2 groups have"),
    ],
)
def test_a_noun_and_its_verb_follow_the_number(arguments, text):
    assert counted(*arguments) == text
