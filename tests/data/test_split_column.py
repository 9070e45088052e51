"""Splits and groups from columns, by hand; class counts as pandas counts them."""

import numpy as np
import pandas as pd
import pytest

from multitask.data.groups import join_units, leaking_rows, read_groups
from multitask.data.split_column import (
    class_counts,
    describe_class_counts,
    describe_leaks,
    read_splits,
)
from multitask.data.table import SPLITS
from multitask.spec import InputError


def frame_of(**columns):
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})


# === Splits ===


@pytest.mark.parametrize(
    ("values", "split"),
    [
        (("train", "Training", " LEARN ", "train"), "train"),
        (("validation", "valid", "VAL", "dev", "Development"), "validation"),
        (("test", "Testing", "eval", "Evaluation", "hold-out", "Hold out"), "test"),
        (("uncertain artist", "", None, np.nan, "trainee", "1"), ""),
    ],
)
def test_each_alias_means_its_split(values, split):
    splits, _ = read_splits(frame_of(s=["train", *values]), "s")
    assert splits.tolist() == ["train", *[split] * len(values)]


def test_other_values_are_excluded_counted_and_named():
    cells = ["train"] * 5 + ["test"] * 2 + ["uncertain artist"] * 3 + [None]
    splits, notes = read_splits(frame_of(subset=cells), "subset")
    assert splits.tolist() == ["train"] * 5 + ["test"] * 2 + [""] * 4
    assert notes == [
        "subset: 4 of 11 rows are neither train, validation nor test and are excluded "
        '("uncertain artist" 3, "" 1)'
    ]


def test_a_column_without_test_rows_is_noted():
    _, notes = read_splits(frame_of(s=["train", "val"]), "s")
    assert notes == [
        "s: no row is a test row (test, testing, eval, evaluation, holdout), so there is no test "
        "set"
    ]


def test_a_column_without_training_rows_is_refused():
    with pytest.raises(InputError) as error:
        read_splits(frame_of(s=["a", "b", "b"]), "s", place="mine.toml: table: split")
    assert str(error.value) == (
        'mine.toml: table: split: "s": no row is a training row (train, training, learn); its '
        'values: "b" 2, "a" 1'
    )


def test_an_unknown_split_column_is_refused_with_what_is_near():
    with pytest.raises(InputError, match=r'^table: split: unknown column "sbset".*"subset"\?$'):
        read_splits(frame_of(subset=["train"]), "sbset")


# === Groups ===


def test_groups_of_a_column():
    frame = frame_of(obj=[7, 7.0, "A 1", "unknown", None])
    groups, notes = read_groups(frame, "obj", list("abcde"))
    assert groups.tolist() == ["7", "7", "A 1", None, None]
    assert notes == ["group: 2 of 5 rows have no group; each of these images is a group of its own"]


def test_groups_of_a_pattern():
    names = ["Realism/monet_a.jpg", "Cubism/monet_b.jpg", "x/braque_c.jpg", "plain.jpg"]
    groups, notes = read_groups(frame_of(f=names), r"/([^/_]+)_", names)
    assert groups.tolist() == ["monet", "monet", "braque", None]
    assert notes == [
        "group: 1 of 4 rows do not match the pattern; each of these images is a group of its own"
    ]


def test_a_column_with_a_bracket_in_its_name_is_a_column():
    groups, _ = read_groups(frame_of(**{"object (id)": ["a", "a"]}), "object (id)", ["x", "y"])
    assert groups.tolist() == ["a", "a"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("objct", 'table: group: unknown column "objct". Expected one of: f, object. Did you mean'),
        (r"(?:a)", "table: group: '(?:a)': the pattern needs a group"),
        (r"(a", "table: group: '(a': not a regular expression: missing ), unterminated subpattern"),
        (r"(q)", 'table: group: "(q)": all 2 rows do not match the pattern'),
        ("f", 'table: group: "f": all 2 rows have no group'),
    ],
)
def test_a_wrong_group_is_one_line(group, message):
    with pytest.raises(InputError) as error:
        read_groups(frame_of(object=["1", "2"], f=[None, ""]), group, ["a", "b"])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# === Leaks and counts ===


def test_leaks_are_the_rows_whose_image_or_group_is_in_another_split():
    names = ["b", "a", "a", "c", "d", "e"]
    groups = [None, None, None, "g", "g", "h"]
    splits = np.asarray(["train", "train", "test", "validation", "test", "train"], object)
    units = join_units(names, groups)
    leaks = leaking_rows(units, splits, inner="train", outer="test")
    assert leaks.tolist() == [False, True, False, False, False, False]
    assert describe_leaks(units, splits, names) == [
        'leak: 1 train image belongs to the same image or group as a test image (first: "a")',
        'leak: 1 validation image belongs to the same image or group as a test image (first: "c")',
    ]


def test_class_counts_are_those_of_pandas():
    rng = np.random.default_rng(0)
    classes = {"style": ("a", "b", "c"), "genre": ("x", "y")}
    labels = np.stack([rng.integers(-1, 3, 300), rng.integers(-1, 2, 300)], axis=1)
    splits = rng.choice([*SPLITS, ""], 300).astype(object)
    counts = class_counts(classes, labels, splits)
    assert list(counts.columns) == ["task", "class", *SPLITS]
    assert counts["class"].tolist() == ["a", "b", "c", "x", "y"]
    for column, task in enumerate(classes):
        table = pd.crosstab(labels[:, column], splits)
        ours = counts[counts["task"] == task]
        for split in SPLITS:
            assert ours[split].tolist() == table.loc[0:, split].tolist()


def test_the_largest_classes_of_a_task_are_one_line():
    counts = pd.DataFrame(
        [("style", f"s{i}", i, 1, 2) for i in range(10)] + [("genre", "a, b\n", 1200, 0, 30)],
        columns=["task", "class", *SPLITS],
    )
    assert describe_class_counts(counts, most=3) == [
        'style, images in train/validation/test: "s9" 9/1/2, "s8" 8/1/2, "s7" 7/1/2 and 7 more',
        'genre, images in train/validation/test: "a, b\\n" 1200/0/30',
    ]
    assert describe_class_counts(counts.head(10), most=10)[0].endswith('"s1" 1/1/2, "s0" 0/1/2')
