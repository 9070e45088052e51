"""Labels from columns: every count and label is known by hand or counted by pandas."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from multitask.data.cells import cell_values, clean_text, distinct_cells
from multitask.data.columns import MISSING_VALUES, label_column
from multitask.spec import InputError


def frame_of(*cells, name="style"):
    return pd.DataFrame({name: pd.Series(list(cells), dtype=object)})


def names_of(result):
    """The class name of each row; None where it has no label."""
    return [None if label < 0 else result.classes[label] for label in result.labels]


def notes_with(result, word):
    return [note for note in result.notes if word in note]


# === Cells ===


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        (None, []),
        (float("nan"), []),
        (pd.NA, []),
        (pd.NaT, []),
        ("Realism", ["Realism"]),
        ("  Realism \n", ["Realism"]),
        (["Realism"], ["Realism"]),
        (("a", None, "b"), ["a", "b"]),
        (np.asarray(["a", "b"]), ["a", "b"]),
        ("['Impressionism', 'Realism']", ["Impressionism", "Realism"]),
        ("['Impressionism']", ["Impressionism"]),
        ('["L\'Estaque", "b"]', ["L'Estaque", "b"]),
        ("['L\\'Estaque']", ["L'Estaque"]),
        ("['a' 'b']", ["a", "b"]),  # NumPy's text of an array
        ("[1, 2]", ["1", "2"]),
        ("['a', None]", ["a"]),
        ("[]", []),
        ('["caf\\u00e9"]', ["café"]),
        # A title in brackets is not a list, and half a list is text.
        ("[Portrait of a man]", ["[Portrait of a man]"]),
        ("['a', 'b'", ["['a', 'b'"]),
        ("['a'b]", ["['a'b]"]),
        (3, ["3"]),
        (3.0, ["3"]),
        (np.float32(3.5), ["3.5"]),
        (True, ["True"]),
        (b"caf\xc3\xa9", ["café"]),
    ],
)
def test_a_cell_has_the_values_that_its_writer_meant(cell, values):
    assert cell_values(cell) == values


def test_python_and_json_texts_of_lists_are_read_as_their_own_readers_do():
    rng = np.random.default_rng(0)
    alphabet = np.asarray(list("ab '\",[]é–"))
    for _ in range(300):
        words = ["".join(rng.choice(alphabet, 5)).strip() or "x" for _ in range(rng.integers(1, 4))]
        expected = [clean_text(word) for word in words]
        assert cell_values(str(words)) == expected
        assert cell_values(json.dumps(words)) == expected


def test_a_separator_splits_only_where_it_is_given():
    assert cell_values("a; b;c") == ["a; b;c"]
    assert cell_values("a; b;c", ";") == ["a", "b", "c"]
    assert cell_values("Monet, Claude|Renoir", "|") == ["Monet, Claude", "Renoir"]


def test_composed_and_decomposed_accents_are_one_value():
    assert clean_text("Ce\u0301zanne\u00a0 Paul") == clean_text("C\u00e9zanne Paul")


def test_halves_of_surrogate_pairs_become_text_that_can_be_written():
    assert cell_values('["\\ud83d\\ude00"]') == ["\U0001f600"]
    assert clean_text("a\udcff") == "a\ufffd"


def test_distinct_cells_are_numbered_by_first_occurrence():
    codes, cells = distinct_cells(["b", None, "a", float("nan"), "b", ["a"], ["a"], True, 1])
    assert codes.tolist() == [0, 1, 2, 1, 0, 3, 3, 4, 5]
    assert cells == ["b", None, "a", ["a"], True, 1]


# === Labels ===


def test_classes_are_sorted_and_labels_are_their_indices():
    result = label_column(frame_of("b", "a", None, "c", "a"), "style")
    assert result.classes == ("a", "b", "c")
    assert result.labels.tolist() == [1, 0, -1, 2, 0]
    assert result.labels.dtype == np.int32
    assert result.notes == ('style: 1 of 5 rows have no label ("" 1)',)


@pytest.mark.parametrize("value", [*MISSING_VALUES, "Unknown", " N/A ", "NONE", None, np.nan])
def test_each_missing_value_is_no_label(value):
    result = label_column(frame_of("a", value, "b"), "style")
    assert names_of(result) == ["a", None, "b"]


def test_own_missing_values_replace_the_usual_ones():
    result = label_column(frame_of("unknown", "tbd", "b", ""), "style", missing=["TBD"])
    assert names_of(result) == ["unknown", None, "b", None]
    assert result.counts.missing == {"": 1, "tbd": 1}


def test_cells_with_several_values_lose_their_label_and_are_counted():
    frame = frame_of("a", "['a', 'b']", "['b']", ["a", "b"], ["a", "a"], ["unknown", "b"], "a; b")
    result = label_column(frame, "style", separator=";")
    assert names_of(result) == ["a", None, "b", None, "a", "b", None]
    assert result.counts.several == {"['a', 'b']": 1, "a, b": 1, "a; b": 1}
    assert notes_with(result, "several")[0].startswith(
        "style: 3 of 7 rows hold several values; they have no label ("
    )
    first = label_column(frame, "style", separator=";", several="first")
    assert names_of(first) == ["a", "a", "b", "a", "a", "b", "a"]


def test_map_joins_values_before_anything_else_is_decided():
    frame = frame_of("Impressionnisme", "Impressionism", "tbd", "a; b", "unknown", "x", ["x", "y"])
    result = label_column(
        frame,
        "style",
        separator=";",
        map={"Impressionnisme": "Impressionism", "tbd": "", "a; b": "b", "x": "y"},
    )
    assert names_of(result) == ["Impressionism", "Impressionism", None, "b", None, "y", "y"]
    assert result.counts.mapped == {"x": 2, "Impressionnisme": 1, "a; b": 1, "tbd": 1}
    assert notes_with(result, "map replaces values in 5 rows")


def test_a_value_may_be_missing_by_default_and_a_class_by_map():
    result = label_column(frame_of("unknown", "a"), "style", map={"unknown": "Anonymous"})
    assert names_of(result) == ["Anonymous", "a"]


def test_map_keys_that_never_occur_are_named_with_what_is_near():
    result = label_column(frame_of("Impressionism", "Realism"), "style", map={"Impresionism": "x"})
    (note,) = result.notes
    assert note == (
        'style: map: 1 of 1 keys never occur: "Impresionism". Did you mean "Impressionism"?'
    )


def test_rare_classes_are_excluded_or_joined():
    cells = ["a"] * 5 + ["b"] * 4 + ["c"] * 2 + ["d"]
    result = label_column(frame_of(*cells), "style", min_examples=3)
    assert result.classes == ("a", "b")
    assert result.counts.rare == {"c": 2, "d": 1}
    assert notes_with(result, "fewer than") == [
        'style: 2 classes with fewer than 3 training examples are excluded, 3 labels ("c" 2, "d" 1)'
    ]
    joined = label_column(frame_of(*cells), "style", min_examples=3, rare="other")
    assert joined.classes == ("a", "b", "other")
    assert Counter(names_of(joined)) == {"a": 5, "b": 4, "other": 3}


def test_rare_classes_together_may_be_too_rare():
    frame = frame_of(*"aaabbbc")
    result = label_column(frame, "style", min_examples=3, rare="other")
    assert result.classes == ("a", "b")
    assert names_of(result)[-1] is None


def test_a_value_called_other_is_part_of_the_joined_class():
    frame = frame_of(*["a"] * 3, *["b"] * 3, "other", "other", "c")
    result = label_column(frame, "style", min_examples=3, rare="other")
    assert Counter(names_of(result)) == {"a": 3, "b": 3, "other": 3}


def test_only_training_rows_count_as_examples():
    frame = frame_of(*"aabbbcc")
    train = np.asarray([1, 1, 1, 1, 0, 0, 1], bool)
    result = label_column(frame, "style", min_examples=2, train=train)
    assert result.counts.examples == {"a": 2, "b": 2, "c": 1}
    assert names_of(result) == ["a", "a", "b", "b", "b", None, None]
    # A class that only test rows have cannot be learnt.
    train = np.asarray([1, 1, 1, 1, 0, 0, 0], bool)
    assert label_column(frame, "style", train=train).classes == ("a", "b")


def test_given_classes_keep_their_order_and_new_values_are_one_line():
    frame = frame_of("Realism", "Impresionism", "Impresionism", "Dada", None)
    result = label_column(frame, "style", classes=["Realism", "Impressionism"], min_examples=5)
    assert result.classes == ("Realism", "Impressionism")
    assert result.labels.tolist() == [0, -1, -1, -1, -1]
    assert result.counts.unknown == {"Impresionism": 2, "Dada": 1}
    assert notes_with(result, "unknown labels") == [
        "style: 3 rows have one of 2 unknown labels, not among the 2 classes; they have no label: "
        '"Impresionism": 2. Did you mean "Impressionism"? "Dada": 1.'
    ]


def test_given_classes_with_other_take_the_rest_where_rare_classes_were_joined():
    frame = frame_of("a", "new", None)
    joined = label_column(frame, "style", classes=["a", "other"], rare="other")
    assert joined.labels.tolist() == [0, 1, -1]
    assert label_column(frame, "style", classes=["a", "other"]).labels.tolist() == [0, -1, -1]


def test_given_classes_allow_rows_without_any_label():
    assert (
        label_column(frame_of(None, None), "style", classes=["a", "b"]).labels.tolist() == [-1] * 2
    )


def test_classes_with_several_spellings_are_named():
    result = label_column(frame_of("Art Nouveau", "art-nouveau", "Dada"), "style")
    assert notes_with(result, "spellings") == [
        'style: 1 class has several spellings (first: "Art Nouveau" 1, "art-nouveau" 1); map '
        "can join them"
    ]


def test_numbers_with_gaps_are_the_same_classes_as_without():
    whole = label_column(pd.DataFrame({"n": [3, 1, 2]}), "n")
    gaps = label_column(pd.DataFrame({"n": [3, 1, 2, None]}), "n")
    assert whole.classes == gaps.classes == ("1", "2", "3")


@pytest.mark.parametrize("dtype", ["str", "category", "object"])
def test_every_type_of_text_column_gives_the_same(dtype):
    frame = pd.DataFrame({"style": pd.Series(["b", None, "a"], dtype=dtype)})
    assert label_column(frame, "style").labels.tolist() == [1, -1, 0]


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(1)
    cells = rng.choice(["a", "b", "c", "", "['a', 'b']"], 500)
    order = rng.permutation(500)
    one = label_column(frame_of(*cells), "style", min_examples=3)
    two = label_column(frame_of(*cells[order]), "style", min_examples=3)
    assert one.classes == two.classes
    assert one.notes == two.notes
    assert (one.labels[order] == two.labels).all()
    counts = pd.Series(cells).value_counts()
    assert one.counts.values == {name: counts[name] for name in one.counts.values}
    assert one.counts.several == {"['a', 'b']": counts["['a', 'b']"]}


# === Bad input ===


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (
            frame_of("a"),
            {"column": "stlye"},
            'task "style": column: unknown column "stlye". Expected one of: style. '
            'Did you mean "style"?',
        ),
        (
            frame_of("unknown", None, None),
            {},
            'task "style": column: "style": none of 3 rows has a value ("" 2, "unknown" 1); '
            "choose another column",
        ),
        (
            frame_of("a", "a", None),
            {},
            'task "style": column: "style": only one value: "a" 2; a task needs at least 2',
        ),
        (
            frame_of(["a", "b"], ["b", "c"]),
            {},
            'task "style": column: "style": no row has a single value (2 rows hold several, '
            'first: "a, b" 1 and 1 more); set several = "first"',
        ),
        (
            frame_of(*range(10_001)),
            {},
            'task "style": column: "style": 10,001 different values, more than the allowed '
            "10,000 classes: is it an identifier?",
        ),
        (
            frame_of(*"aab"),
            {"min_examples": 2},
            'task "style": min_examples: 2: 1 class has at least 2 examples ("a" 2, "b" 1); a '
            "task needs at least 2 classes",
        ),
        (
            frame_of(*"ab"),
            {"rare": "exlude"},
            'task "style": rare: unknown choice "exlude". Expected one of: exclude, other. '
            'Did you mean "exclude"?',
        ),
        (
            frame_of(*"ab"),
            {"several": "all", "place": "mine.toml: task[0]"},
            'mine.toml: task[0]: several: unknown choice "all". Expected one of: exclude, first.',
        ),
        (
            frame_of(*"ab"),
            {"min_examples": 0},
            'task "style": min_examples: 0: must be at least 1',
        ),
        (
            frame_of(*"ab"),
            {"separator": ""},
            'task "style": separator: "": must not be empty',
        ),
    ],
)
def test_bad_input_is_one_line(frame, options, message):
    with pytest.raises(InputError) as error:
        label_column(frame, **{"column": "style", "task": "style", **options})
    assert str(error.value) == message


def test_exactly_as_many_classes_as_allowed():
    assert len(label_column(frame_of(*range(10_000)), "style").classes) == 10_000


def test_two_columns_of_one_name_are_refused():
    frame = pd.DataFrame([["a", "b"]], columns=["style", "style"])
    with pytest.raises(InputError, match="2 columns are called"):
        label_column(frame, "style")


def test_a_message_does_not_list_hundreds_of_columns():
    frame = pd.DataFrame({f"c{i}": [1] for i in range(300)})
    with pytest.raises(InputError) as error:
        label_column(frame, "c2999")
    assert "The table has 300 columns. Did you mean" in str(error.value)
