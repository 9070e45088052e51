"""The rules of the data, on CSVs of a few rows whose answers are known by hand."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from table_checks import assert_disjoint_and_whole, by_path, notes_with

from multitask.data.merging import load_table, merge_tables
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    NO_LABEL,
    NOT_SAMPLED,
    TEST,
    TRAIN,
    UNKNOWN_LABEL,
    VALIDATION,
    hold_out_validation,
)
from multitask.spec import InputError, load_spec

# === Rules 1, 2 and 4: merging, leaks, contradictions ===


def test_tasks_merge_into_one_row_an_image(tiny_data, tiny_spec):
    data = tiny_data(
        only=True,
        images=False,
        rows={
            "artist_train": [("a.jpg", 1), ("b.jpg", 0)],
            "style_train": [("b.jpg", 2), ("c.jpg", 1)],
            "genre_train": [("c.jpg", 0), ("b.jpg", 1)],
        },
    )
    table = merge_tables(tiny_spec(), data)
    rows = by_path(table)
    assert rows["a.jpg"] == (TRAIN, {"artist": 1})
    assert rows["b.jpg"] == (TRAIN, {"artist": 0, "style": 2, "genre": 1})
    assert rows["c.jpg"] == (TRAIN, {"style": 1, "genre": 0})
    assert rows["other/style_val.jpg"] == (TEST, {"style": 0})
    assert len(table) == 6
    assert list(table.paths) == sorted(table.paths)
    assert table.labels.dtype == np.int32
    assert table.notes == ()
    assert table.classes["style"] == ("Dots", "Lines", "Waves")


def test_counts_are_those_of_the_default_data(tiny_data, tiny_spec):
    table = load_table(tiny_spec(), tiny_data(images=False))
    assert table.counts().loc[TRAIN].to_dict() == {
        "images": 12,
        "artist/labels": 6,
        "style/labels": 12,
        "genre/labels": 9,
    }
    assert table.counts().loc[TEST].to_dict() == {
        "images": 4,
        "artist/labels": 2,
        "style/labels": 4,
        "genre/labels": 3,
    }
    assert table.counts().loc[VALIDATION].sum() == 0
    assert_disjoint_and_whole(table)


def test_an_image_that_is_test_for_one_task_is_trained_on_for_none(tiny_data, tiny_spec):
    data = tiny_data(
        only=True,
        images=False,
        rows={
            "artist_val": [("leak.jpg", 1)],
            "style_train": [("leak.jpg", 2), ("too.jpg", 1), ("fine.jpg", 0)],
            "genre_train": [("leak.jpg", 1), ("fine.jpg", 1)],
            "genre_val": [("too.jpg", 0)],
        },
    )
    table = merge_tables(tiny_spec(), data)
    rows = by_path(table)
    assert rows["leak.jpg"] == (TEST, {"artist": 1})  # neither its style nor its genre is kept
    assert rows["too.jpg"] == (TEST, {"genre": 0})
    assert rows["fine.jpg"] == (TRAIN, {"style": 0, "genre": 1})
    (note,) = notes_with(table, "test for one task and train for another")
    assert note.startswith("2 images")
    assert "artist 0, style 2, genre 1" in note


def test_an_image_in_train_and_val_of_one_task_is_a_test_image(tiny_data, tiny_spec):
    rows = {"style_train": [("x.jpg", 1), ("y.jpg", 0)], "style_val": [("x.jpg", 1)]}
    table = merge_tables(tiny_spec(), tiny_data(only=True, images=False, rows=rows))
    assert by_path(table)["x.jpg"] == (TEST, {"style": 1})
    assert notes_with(table, "style: 1 image is listed more than once with the same label")


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ([("x.jpg", 0), ("x.jpg", 1)], [], TRAIN),
        ([("x.jpg", 0)], [("x.jpg", 1)], TEST),
        ([], [("x.jpg", 0), ("x.jpg", 1)], TEST),
        ([("x.jpg", 0)], [("x.jpg", 1), ("x.jpg", 1)], TEST),
        ([("x.jpg", 2), ("x.jpg", 1), ("x.jpg", 2)], [], TRAIN),
    ],
)
def test_a_contradiction_loses_its_label_for_that_task_alone(
    tiny_data, tiny_spec, train, test, split
):
    data = tiny_data(
        only=True,
        images=False,
        rows={
            "style_train": [*train, ("t.jpg", 2)],
            "style_val": [*test, ("v.jpg", 1)],
            "genre_train": [("x.jpg", 1)],
        },
    )
    table = merge_tables(tiny_spec(), data)
    # A test image stays one although it lost its label, so its genre is not trained on.
    assert by_path(table)["x.jpg"] == (split, {"genre": 1} if split == TRAIN else {})
    (note,) = notes_with(table, "two labels")
    assert note.startswith("style: 1 image is listed")
    assert "x.jpg" in note


def test_a_contradictory_image_without_other_labels_is_not_trained_on(tiny_data, tiny_spec):
    rows = {"style_train": [("x.jpg", 0), ("x.jpg", 1), ("y.jpg", 1)]}
    data = tiny_data(only=True, images=False, rows=rows)
    assert "x.jpg" in by_path(merge_tables(tiny_spec(), data))
    assert "x.jpg" not in by_path(load_table(tiny_spec(), data))


def test_two_spellings_of_one_path_are_one_image(tiny_data, tiny_spec):
    rows = {"style_train": [("./Dots//x.jpg", 2), ("y.jpg", 0)], "genre_val": [("Dots/x.jpg", 1)]}
    table = merge_tables(tiny_spec(), tiny_data(only=True, images=False, rows=rows))
    assert by_path(table)["Dots/x.jpg"] == (TEST, {"genre": 1})
    assert "./Dots//x.jpg" not in by_path(table)


def test_the_order_of_the_rows_changes_nothing(tiny_data, tiny_spec):
    spec = tiny_spec(validation=0.3, of_tasks={"subset": 0.7}, seed=5)
    first = tiny_data(images=False, folder="first")
    second = tiny_data(images=False, folder="second")
    for csv in sorted((second / "wikiart_csv").glob("*.csv")):
        csv.write_text("".join(reversed(csv.read_text().splitlines(keepends=True))))
    a, b = load_table(spec, first), load_table(spec, second)
    assert len(a.rows(VALIDATION)) > 0
    np.testing.assert_array_equal(a.paths, b.paths)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.splits, b.splits)


def excluded(**reasons):
    return pd.DataFrame({"path": list(reasons), "reason": list(reasons.values())}, dtype=object)


def test_unusable_images_are_excluded_from_every_split(tiny_data, tiny_spec):
    data = tiny_data(images=False)
    gone = {"Dots/someone_train-00.jpg": "broken", "Lines/someone_val-01.jpg": MISSING_FILE}
    table = load_table(tiny_spec(), data, excluded=excluded(**gone))
    assert len(table) == 14
    assert not gone.keys() & set(table.paths)
    assert table.excluded == gone


def test_missing_images_are_excluded_before_sampling_and_unreadable_ones_after(
    tiny_data, tiny_spec
):
    """Other images replace missing ones in the sample, but not unreadable ones."""
    rows = [(f"Dots/{i:02}.jpg", 0) for i in range(40)]
    data = tiny_data(only=True, rows={"style_train": rows}, images=False)
    spec = tiny_spec(tasks=("style",), validation=0.25)
    held = load_table(spec, data).paths[load_table(spec, data).rows(VALIDATION)]
    assert len(held) == 10
    gone = dict.fromkeys(held[:8], MISSING_FILE)
    assert len(load_table(spec, data, excluded=excluded(**gone)).rows(VALIDATION)) == 8  # of 32
    gone = dict.fromkeys(held[:8], "it is empty")
    assert len(load_table(spec, data, excluded=excluded(**gone)).rows(VALIDATION)) == 2


def test_every_image_is_in_the_table_or_has_its_reason(tiny_data, tiny_spec):
    rows = [(f"Dots/{i:02}.jpg", i % 3) for i in range(30)]
    rows += [("Dots/twice.jpg", 0), ("Dots/twice.jpg", 1), ("Dots/unknown.jpg", 9)]
    data = tiny_data(only=True, rows={"style_train": rows}, images=False)
    spec = tiny_spec(tasks=("style",), of_tasks={"subset": 0.5}, max_unknown=0.1)
    gone = {"Dots/00.jpg": MISSING_FILE, "Dots/03.jpg": NEAR_DUPLICATE}
    table = load_table(spec, data, excluded=excluded(**gone))
    merged = merge_tables(spec, data)
    assert table.excluded.keys() | set(table.paths) == {*merged.paths, "Dots/unknown.jpg"}
    assert not table.excluded.keys() & set(table.paths)
    # Half of the classes of 8, 10 and 10 is sampled; the other file has one row, never excluded.
    assert Counter(table.excluded.values()) == {
        MISSING_FILE: 1,
        NEAR_DUPLICATE: 1,
        UNKNOWN_LABEL: 1,
        NO_LABEL: 1,
        NOT_SAMPLED: 14,
    }
    again = load_table(spec, data, excluded=table.excluded_frame())
    np.testing.assert_array_equal(again.paths, table.paths)
    assert again.excluded == table.excluded


def test_nothing_left_to_train_on_is_refused(tiny_data, tiny_spec):
    data = tiny_data(images=False)
    names = [p for p in merge_tables(tiny_spec(), data).paths if "train" in p]
    with pytest.raises(InputError, match="no image is left to train on"):
        load_table(tiny_spec(), data, excluded=excluded(**dict.fromkeys(names, MISSING_FILE)))


# === Findings ===


def finding_rows(frame, *columns):
    return list(frame[["file", "line", "path", *columns]].itertuples(index=False, name=None))


def test_findings_have_the_rows_that_the_notes_count(tiny_data, tiny_spec):
    rows = {
        "style_train": "x.jpg,0\n\nx.jpg,1\ny.jpg,2\n./y.jpg,2\nleak.jpg,1\nu.jpg,7\n",
        "style_val": [("y.jpg", 2), ("z.jpg", 1)],
        "genre_val": [("leak.jpg", 0), ("x.jpg", 1)],
    }
    data = tiny_data(only=True, images=False, rows=rows)
    table = merge_tables(tiny_spec(max_unknown=0.5), data)
    findings = table.findings
    train, test, genre = (f"wikiart_csv/{n}.csv" for n in ("style_train", "style_val", "genre_val"))
    assert finding_rows(findings.contradictory, "label") == [
        (train, 1, "x.jpg", 0),
        (train, 3, "x.jpg", 1),
    ]
    assert finding_rows(findings.repeated, "split") == [
        (train, 4, "y.jpg", "train"),
        (train, 5, "y.jpg", "train"),
        (test, 1, "y.jpg", "test"),
    ]
    assert finding_rows(findings.unknown, "value", "task") == [(train, 7, "u.jpg", "7", "style")]
    # x lost its style by contradiction, so it does not leak.
    assert finding_rows(findings.leaks, "split") == [
        (train, 6, "leak.jpg", "train"),
        (genre, 1, "leak.jpg", "test"),
    ]
    assert len(findings.unsafe) == 0
    files = findings.files.set_index("file")["rows"].to_dict()
    assert (files[train], files[test], files[genre]) == (6, 2, 2)
    assert len(table.notes) == 5  # a blank line and each of the four frames


def test_clean_lists_have_no_findings(tiny_data, tiny_spec):
    findings = merge_tables(tiny_spec(), tiny_data(images=False)).findings
    assert findings.files["rows"].tolist() == [6, 2, 12, 4, 9, 3]
    for kind, frame in vars(findings).items():
        assert kind == "files" or (len(frame) == 0 and "path" in frame)


def test_what_is_refused_can_be_collected_instead(tiny_data, tiny_spec):
    rows = {
        "style_train": '../a.jpg,0\n/b.jpg,1\n"c\td.jpg",1\ne.jpg,grene\nf.jpg,9\ng.jpg,2\n',
        "genre_train": [("../a.jpg", 1), ("g.jpg", 0)],
    }
    data = tiny_data(only=True, images=False, rows=rows)
    with pytest.raises(InputError, match=r"line 1: '../a.jpg': paths with `..` are refused"):
        merge_tables(tiny_spec(), data)
    table = merge_tables(tiny_spec(), data, strict=False)
    style, genre = "wikiart_csv/style_train.csv", "wikiart_csv/genre_train.csv"
    assert finding_rows(table.findings.unsafe, "reason") == [
        (style, 1, "../a.jpg", "paths with `..` are refused"),
        (style, 2, "/b.jpg", "absolute paths are refused"),
        (style, 3, "c\td.jpg", "control characters are refused"),
        (genre, 1, "../a.jpg", "paths with `..` are refused"),
    ]
    assert finding_rows(table.findings.unknown, "value") == [
        (style, 4, "e.jpg", "grene"),
        (style, 5, "f.jpg", "9"),
    ]
    assert by_path(table)["g.jpg"] == (TRAIN, {"style": 2, "genre": 0})
    assert not {"../a.jpg", "/b.jpg", "e.jpg", "f.jpg"} & set(table.paths)
    assert notes_with(table, "style_train.csv: 2 of 6 rows have an unknown class")
    assert notes_with(table, "style_train.csv: 3 of 6 rows have an unsafe path (first: line 1:")
    assert table.findings.leaks.empty


def test_sampling_keeps_the_findings(tiny_data, tiny_spec):
    rows = {"style_train": [("x.jpg", 0), ("x.jpg", 1), ("y.jpg", 1)]}
    table = load_table(tiny_spec(), tiny_data(only=True, images=False, rows=rows))
    assert len(table.findings.contradictory) == 2


# === The real CSVs ===


@pytest.mark.slow
def test_the_real_csvs_give_the_published_numbers():
    folder = os.environ.get("WIKIART_DIR")
    if not folder:
        pytest.skip("WIKIART_DIR is not set: the folder with wikiart_csv/ of ArtGAN")
    if not (Path(folder) / "wikiart_csv").is_dir():
        pytest.skip(f"WIKIART_DIR={folder} holds no wikiart_csv/")
    spec = load_spec("wikiart").model_copy(update={"validation": 0.0})
    merged = merge_tables(spec, Path(folder))
    assert len(merged) == 81_446
    assert [len(merged.classes[t]) for t in ("artist", "style", "genre")] == [23, 27, 10]
    (leak,) = notes_with(merged, "test for one task and train for another")
    assert leak.startswith("566 images")
    (contradiction,) = notes_with(merged, "two labels")
    assert contradiction.startswith("genre: 1 image is listed")
    assert "Post_Impressionism/maurice-de-vlaminck_the-village.jpg" in contradiction

    table = load_table(spec, Path(folder))
    counts = table.counts()
    assert counts.loc[TRAIN].to_dict() == {
        "images": 56_774,
        "artist/labels": 13_201,
        "style/labels": 56_774,
        "genre/labels": 45_194,
    }
    test_sets = {"artist/labels": 5_706, "style/labels": 24_421, "genre/labels": 19_490}
    assert counts.loc[TEST, list(test_sets)].to_dict() == test_sets
    assert_disjoint_and_whole(table)

    # The same, from the files themselves.
    frames = {
        name: pd.read_csv(Path(folder) / f"wikiart_csv/{name}.csv", header=None, names=["p", "l"])
        for name in (f"{t}_{s}" for t in ("artist", "style", "genre") for s in ("train", "val"))
    }
    test_set = set().union(*(set(f["p"]) for n, f in frames.items() if n.endswith("val")))
    train = set().union(*(set(f["p"]) for n, f in frames.items() if n.endswith("train")))
    assert set(table.paths[table.rows(TRAIN)]) == train - test_set
    held = hold_out_validation(table, 0.05, seed=0)
    assert 0.045 < len(held.rows(VALIDATION)) / 56_774 < 0.06
    for task in held.tasks:
        assert set(held.labels_of(task, TRAIN)) == set(range(len(held.classes[task])))
