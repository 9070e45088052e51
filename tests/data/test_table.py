"""The rules of the data, on CSVs of a few rows whose answers are known by hand."""

import codecs
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from multitask.data.label_files import read_classes, read_labels
from multitask.data.splitting import class_weights
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    NO_LABEL,
    NOT_SAMPLED,
    TEST,
    TRAIN,
    UNKNOWN_LABEL,
    VALIDATION,
    Table,
    hold_out_validation,
    load_table,
    merge_tables,
    subset_table,
)
from multitask.spec import InputError, load_spec, parse_spec

CLASSES = ("red", "green", "blue")


def by_path(table):
    """{path: (split, {task: label} of the labels that are there)}."""
    return {
        path: (split, {t: int(v) for t, v in zip(table.tasks, row, strict=True) if v != -1})
        for path, split, row in zip(table.paths, table.splits, table.labels, strict=True)
    }


def notes_with(table, word):
    return [note for note in table.notes if word in note]


def random_table(rows=2000, seed=0, test=200):
    """Three tasks: style on all, genre on most, artist on some; classes of very unlike size."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(8))
    labels = np.stack(
        [
            np.where(rng.random(rows) < 0.3, rng.integers(0, 5, rows), -1),
            rng.choice(8, rows, p=shares),
            np.where(rng.random(rows) < 0.8, rng.integers(0, 4, rows), -1),
        ],
        axis=1,
    ).astype(np.int32)
    splits = np.full(rows, TRAIN, dtype=object)
    test_set = rng.choice(rows, test, replace=False)
    splits[test_set] = TEST
    labels[test_set[0]] = -1  # as a contradiction leaves it
    classes = {
        task: tuple(f"{task}{i}" for i in range(n))
        for task, n in (("artist", 5), ("style", 8), ("genre", 4))
    }
    paths = np.asarray([f"{i:05}.jpg" for i in range(rows)], dtype=object)
    return Table(classes, paths, labels, splits)


def assert_disjoint_and_whole(table):
    rows = [set(table.rows(split).tolist()) for split in (TRAIN, VALIDATION, TEST)]
    assert sum(len(r) for r in rows) == len(set().union(*rows)) == len(table)
    assert len(set(table.paths)) == len(table)


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
    assert notes_with(table, "style: 1 images are listed more than once with the same label")


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
    assert note.startswith("style: 1 images")
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


# === Rule 5 and the forms of a CSV ===


def read(tmp_path, content, *, max_unknown=0.0, classes=CLASSES):
    path = tmp_path / "colour_train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    frame, notes = read_labels(path, classes, max_unknown=max_unknown)
    frame = frame[frame["label"] != -1]
    return list(zip(frame["path"], frame["label"], strict=True)), notes


PLAIN = [("a.jpg", 0), ("b.jpg", 2)]


@pytest.mark.parametrize(
    ("content", "expected_note"),
    [
        ("a.jpg,0\nb.jpg,2\n", None),
        ("a.jpg,0\nb.jpg,2", None),
        ("a.jpg,0\r\nb.jpg,2\r\n", None),
        (codecs.BOM_UTF8 + b"a.jpg,0\nb.jpg,2\n", None),
        (codecs.BOM_UTF8 + b"path,class\r\na.jpg,0\r\nb.jpg,2\r\n", "header row ('path,class')"),
        ("path,class\na.jpg,0\nb.jpg,2\n", "header row ('path,class')"),
        ("path,,class\na.jpg,,0\n,,\nb.jpg,,2\n", "header row ('path,,class')"),
        ("path,,class\n\na.jpg,,0\n\nb.jpg,,2\n", "2 blank lines"),
        ("a.jpg,0\n\n\n  \nb.jpg,2\n", "3 blank lines"),
        ("a.jpg,red\nb.jpg,blue\n", None),
        ("path,class\na.jpg,red\nb.jpg,blue\n", "header row"),
        (" a.jpg , 0 \nb.jpg,+2\n", None),
        ("a.jpg,0,\nb.jpg,2,\n", None),
        ('"a.jpg","0"\n"b.jpg","2"\n', None),
    ],
)
def test_every_form_of_a_csv_reads_alike(tmp_path, content, expected_note):
    rows, notes = read(tmp_path, content)
    assert rows == PLAIN
    if expected_note is None:
        assert notes == []
    else:
        assert any(expected_note in note and "colour_train.csv" in note for note in notes)


def test_the_first_row_of_a_headerless_file_is_not_lost(tmp_path):
    rows, notes = read(tmp_path, "Dots/first.jpg,1\nDots/second.jpg,0\n")
    assert rows == [("Dots/first.jpg", 1), ("Dots/second.jpg", 0)]
    assert notes == []


def test_paths_survive_as_they_are(tmp_path):
    names = [
        "Dots/joaquã\xadn-sorolla_niã±os-\x85-en-la-playa.jpg",
        "Dots/o'keeffe_it's-(1918)-[a]-#2-50%.jpg",
        "Dots/a, b, and c.jpg",
        'Dots/the "great" wave.jpg',
        "Dots/日本\u2028x.jpg",
        "Dots/two  spaces and\\a backslash.jpg",
    ]
    text = "".join('"{}",1\n'.format(name.replace('"', '""')) for name in names)
    rows, notes = read(tmp_path, text)
    assert rows == [(name, 1) for name in names]
    assert notes == []


def test_unknown_labels_are_filtered_and_named(tmp_path):
    rows = "a.jpg,0\nb.jpg,3\nc.jpg,-1\nd.jpg,99999999999999999999\ne.jpg,2\n"
    kept, notes = read(tmp_path, rows, max_unknown=0.6)  # 3 of 5: inclusive
    assert [(path, int(label)) for path, label in kept] == [("a.jpg", 0), ("e.jpg", 2)]
    (note,) = notes
    assert "colour_train.csv: 3 of 5 rows have an unknown class" in note
    assert "line 2: '3'" in note
    with pytest.raises(InputError, match=r"3 of 5 rows .* max_unknown = 0.59"):
        read(tmp_path, rows, max_unknown=0.59)


def test_unknown_names_are_filtered_and_named(tmp_path):
    rows, notes = read(tmp_path, "a.jpg,blue\nb.jpg,grene\nc.jpg,red\n", max_unknown=0.34)
    assert rows == [("a.jpg", 2), ("c.jpg", 0)]
    assert "1 of 3 rows" in notes[0]
    assert "line 2: 'grene'" in notes[0]
    with pytest.raises(InputError, match="max_unknown"):
        read(tmp_path, "a.jpg,blue\nb.jpg,grene\nc.jpg,red\n", max_unknown=0.33)


def test_an_unknown_label_reaches_the_table_as_missing(tiny_data, tiny_spec):
    rows = {"style_train": [("x.jpg", 7), ("y.jpg", 1)], "genre_train": [("x.jpg", 1)]}
    data = tiny_data(only=True, images=False, rows=rows)
    table = merge_tables(tiny_spec(max_unknown=0.5), data)
    assert by_path(table)["x.jpg"] == (TRAIN, {"genre": 1})
    assert notes_with(table, "style_train.csv: 1 of 2 rows have an unknown class")
    with pytest.raises(InputError, match="max_unknown"):
        merge_tables(tiny_spec(), data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg,0\n../b.jpg,1\n", r"line 2: '../b.jpg': paths with `..` are refused"),
        ("a.jpg,0\nDots/../../b.jpg,1\n", r"line 2: .*`..`"),
        ("a.jpg,0\nDots\\..\\b.jpg,1\n", r"line 2: .*`..`"),
        ("a.jpg,0\n/etc/b.jpg,1\n", "line 2: '/etc/b.jpg': absolute paths are refused"),
        ("a.jpg,0\n\nC:\\art\\b.jpg,1\n", "line 3: .*absolute"),
        ("a.jpg,0\nC:b.jpg,1\n", "line 2: .*absolute"),
        ("a.jpg,0\n\\\\host\\share\\b.jpg,1\n", "line 2: .*absolute"),
        ('a.jpg,0\n"b\n.jpg",1\n', "line 3: .*control characters"),
        ("a.jpg\nb.jpg\n", "expected two columns, `path,class`; found 1 column$"),
        ("a.jpg,0,x\nb.jpg,1,y\n", "found 3 columns"),
        ("a.jpg,0\nb.jpg\n", "line 2: the class is empty"),
        ("a.jpg,0\n,1\n", "line 2: the path is empty"),
        ("a.jpg,0\nb.jpg,grene\n", "line 2: class 'grene': .*0 to 2. Did you mean \"green\""),
        ("a.jpg,0\nb.jpg,1.0\n", "line 2: class '1.0': expected an index"),
        ('a.jpg,0\n"b.jpg,1\n', "not CSV"),
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (codecs.BOM_UTF8, "the file is empty"),
        (b"a.jpg,0\n\xff\xfe.jpg,1\n", r"not UTF-8 text \(byte 8\)"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content, max_unknown=0.9)
    assert str(caught.value).startswith(str(tmp_path / "colour_train.csv"))
    assert "\n" not in str(caught.value)


def test_a_missing_csv_is_named_with_what_is_near(tiny_data, tiny_spec):
    data = tiny_data(images=False)
    (data / "wikiart_csv/style_val.csv").rename(data / "wikiart_csv/style_vall.csv")
    with pytest.raises(InputError, match=r'style_val.csv: no such file. Did you mean "style_vall'):
        merge_tables(tiny_spec(), data)
    with pytest.raises(InputError, match=r"data_dir: .*nowhere: is not a folder"):
        merge_tables(tiny_spec(), data / "nowhere")
    (data / "empty").mkdir()
    with pytest.raises(InputError, match=r"no such file \(there is no folder .*wikiart_csv\)"):
        merge_tables(tiny_spec(), data / "empty")


def test_a_folder_in_the_place_of_a_csv_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: it is a folder"):
        read_labels(tmp_path, CLASSES, max_unknown=0)


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


# === Class files ===


def test_classes_come_by_index_not_by_line_or_alphabet(tmp_path):
    path = tmp_path / "class.txt"
    names = [f"Name {chr(ord('z') - i)}" for i in range(12)]
    lines = [f"{i} {name}" for i, name in enumerate(names)]
    path.write_text("\ufeff" + "\r\n\r\n".join(reversed(lines)), encoding="utf-8")
    assert read_classes(path) == tuple(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 red\n2 blue\n", "index 1 is missing; 2 classes need 0 to 1"),
        ("1 red\n2 blue\n", "index 0 is missing"),
        ("0 red\n1 blue\n1 green\n", "line 3: index 1 is repeated"),
        ("0 red\n\n1 red\n", 'line 3: the name "red" is repeated'),
        ("0 red\ngreen\n", "line 2: 'green': expected `index name`"),
        ("0 red\n1\n", "line 2: '1': expected `index name`"),
        ("0 red\n-1 green\n", "line 2: '-1': expected"),
        ("red 0\n", "line 1: 'red': expected"),
        ("", "the file is empty"),
    ],
)
def test_a_wrong_class_file_is_refused(tmp_path, content, message):
    path = tmp_path / "class.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\x0b", "\x0c", "\x1c"])
def test_a_class_name_may_hold_what_python_takes_for_a_line_end(tmp_path, mark):
    path = tmp_path / "class.txt"
    path.write_bytes(f"0 Caf{mark}e\r\n\ufeff1 b\r2 c\n".encode())
    assert read_classes(path) == (f"Caf{mark}e", "b", "c")


@pytest.mark.parametrize(
    ("content", "expected_note"),
    [
        ("9" * 5000 + " a\n", "an index must be below 1,000,000"),
        ("x" * 5000 + " a\n", "expected `index name`"),
        ("\x1b[2J\x00 a\n", r"line 1: '\x1b[2J\x00': expected"),
        (f"0 {'n' * 5000}\n1 {'n' * 5000}\n", "is repeated"),
        ("secret of somebody\n", "line 1: 'secret': expected `index name`"),
    ],
)
def test_a_message_on_a_class_file_quotes_one_cell_in_short(tmp_path, content, expected_note):
    path = tmp_path / "class.txt"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_classes(path)
    message = str(caught.value).removeprefix(f"{path}: ")
    assert expected_note in message
    assert message.isprintable()
    assert len(message) < 200


def test_reading_a_class_file_takes_linear_time(tmp_path):
    """100,000 names; comparing each with each would take minutes."""
    path = tmp_path / "class.txt"
    path.write_text("".join(f"{i} name {i}\n" for i in range(100_000)))
    names = read_classes(path)
    assert (len(names), names[99_999]) == (100_000, "name 99999")


# === Names made of digits, and lists without rows ===


def digits(tiny_data, tiny_spec, classes, train, test):
    data = tiny_data(
        only=True,
        images=False,
        classes={"style": classes},
        rows={"style_train": train, "style_val": test},
    )
    return merge_tables(tiny_spec(tasks=("style",)), data)


def test_names_made_of_digits_are_names(tiny_data, tiny_spec):
    cars = ("Golf", "911", "Beetle")
    train = [("a.jpg", "Golf"), ("b.jpg", "911"), ("c.jpg", "Beetle")]
    table = digits(tiny_data, tiny_spec, cars, train=train, test=[("d.jpg", "911")])
    assert table.labels[:, 0].tolist() == [0, 1, 2, 1]
    assert table.notes == ()


def test_an_ambiguous_file_is_read_like_the_other_file_of_its_task(tiny_data, tiny_spec):
    grades = ("1", "2", "3")
    by_name = [("a.jpg", "1"), ("b.jpg", "2"), ("c.jpg", "3")]
    by_index = [("a.jpg", "0"), ("b.jpg", "1"), ("c.jpg", "2")]
    unclear = [("d.jpg", "1"), ("e.jpg", "2")]
    table = digits(tiny_data, tiny_spec, grades, train=by_name, test=unclear)
    assert table.labels[:, 0].tolist() == [0, 1, 2, 0, 1]
    table = digits(tiny_data, tiny_spec, grades, train=by_index, test=unclear)
    assert table.labels[:, 0].tolist() == [0, 1, 2, 1, 2]
    assert table.notes == ()
    table = digits(tiny_data, tiny_spec, grades, train=unclear, test=[("f.jpg", "2")])
    assert table.labels[:, 0].tolist() == [1, 2, 2]
    (note,) = table.notes
    assert note == (
        "style: every class in its lists can be read as an index and as a name; they are read as "
        "indices"
    )


@pytest.mark.parametrize("text", ["", "\ufeff\r\n", "path,class\n", "path;class\n", None])
def test_a_task_without_a_test_set(tiny_data, tiny_spec, text):
    data = tiny_data(images=False, rows={} if text is None else {"style_val": text})
    raw = tiny_spec().to_dict()
    if text is None:
        del raw["task"][1]["test"]
    spec = parse_spec(raw, source="tiny.toml")
    table = load_table(spec, data)
    assert table.without_test == ("style",)
    assert table.counts().loc["test"].to_dict() == {
        "images": 3, "artist/labels": 2, "style/labels": 0, "genre/labels": 3,
    }  # fmt: skip
    assert parse_spec(spec.to_dict(), source="again").tasks == spec.tasks
    # None of the tasks has one.
    raw["task"] = [{k: v for k, v in task.items() if k != "test"} for task in raw["task"]]
    table = load_table(parse_spec(raw, source="tiny.toml"), data)
    assert table.without_test == table.tasks
    assert (table.splits == TRAIN).all()


@pytest.mark.parametrize("text", ["", "path,class\n"])
def test_a_task_without_training_rows_is_refused(tiny_data, tiny_spec, text):
    data = tiny_data(images=False, rows={"style_train": text})
    message = r'style_train.csv: no training rows, .* "style" .*--tasks'
    with pytest.raises(InputError, match=message):
        merge_tables(tiny_spec(), data)
    table = merge_tables(tiny_spec(), data, strict=False)
    assert notes_with(table, "style_train.csv: no training rows")


def test_a_task_that_keeps_no_training_label_is_refused(tiny_data, tiny_spec):
    rows = {"style_train": [("a.jpg", 0), ("b.jpg", 1)], "genre_val": [("a.jpg", 0), ("b.jpg", 1)]}
    data = tiny_data(images=False, rows=rows)
    message = r'tiny.toml: task\[1\] "style": train: no training label of this task is left'
    with pytest.raises(InputError, match=message):
        load_table(tiny_spec(), data)


# === Rule 9: subset ===


def test_a_subset_has_its_share_of_every_class():
    table = random_table()
    shares = {"artist": 0.2, "style": 0.3, "genre": 1.0}
    small = subset_table(table, shares, seed=3)
    for task, share in shares.items():
        before = np.bincount(table.labels_of(task, TRAIN), minlength=len(table.classes[task]))
        after = np.bincount(small.labels_of(task, TRAIN), minlength=len(before))
        assert (before > 0).all()
        np.testing.assert_array_equal(after, np.maximum(1, np.round(share * before)))
    assert all(labels.max() >= 0 for labels in small.labels[small.rows(TRAIN)])
    assert_disjoint_and_whole(small)


def test_a_subset_keeps_labels_as_they_were_and_the_test_whole():
    table = random_table()
    small = subset_table(table, {"artist": 0.1, "style": 0.1, "genre": 0.1}, seed=0)
    old, new = by_path(table), by_path(small)
    for path, (split, labels) in new.items():
        assert split == old[path][0]
        assert labels.items() <= old[path][1].items()
    test_set = {path: value for path, value in old.items() if value[0] == TEST}
    assert {path: value for path, value in new.items() if value[0] == TEST} == test_set
    # One rank for all tasks: a tenth of the labels is not three tenths of the images.
    assert len(small.rows(TRAIN)) < 0.25 * len(table.rows(TRAIN))
    assert str(len(small.rows(TRAIN))) in small.notes[-1]


def test_a_subset_keeps_one_example_of_a_rare_class():
    table = random_table(200, test=20)
    small = subset_table(table, {"artist": 0.001, "style": 0.001, "genre": 0.001}, seed=1)
    for task in table.tasks:
        labels = small.labels_of(task, TRAIN)
        assert len(labels) >= 4
        assert sorted(labels) == sorted(set(table.labels_of(task, TRAIN)))


def test_a_subset_is_a_function_of_the_seed():
    table, shares = random_table(), {"artist": 0.5, "style": 0.5, "genre": 0.5}
    first, again = (subset_table(table, shares, seed=7) for _ in range(2))
    other = subset_table(table, shares, seed=8)
    np.testing.assert_array_equal(first.paths, again.paths)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert set(first.paths) != set(other.paths)
    smaller = subset_table(table, {"artist": 0.2, "style": 0.2, "genre": 0.2}, seed=7)
    assert set(smaller.paths[smaller.rows(TRAIN)]) < set(first.paths[first.rows(TRAIN)])


def test_shares_of_1_keep_the_whole_table():
    table = random_table(50, test=5)
    assert subset_table(table, {"artist": 1.0, "style": 1.0, "genre": 1.0}, seed=0) is table


# === Rule 3: validation ===


def test_validation_takes_about_its_share_of_every_class():
    table = random_table(4000)
    split_table = hold_out_validation(table, 0.1, seed=2)
    assert_disjoint_and_whole(split_table)
    np.testing.assert_array_equal(split_table.labels, table.labels)
    np.testing.assert_array_equal(split_table.rows(TEST), table.rows(TEST))
    for task in table.tasks:
        before = np.bincount(table.labels_of(task, TRAIN), minlength=len(table.classes[task]))
        held = np.bincount(split_table.labels_of(task, VALIDATION), minlength=len(before))
        left = np.bincount(split_table.labels_of(task, TRAIN), minlength=len(before))
        np.testing.assert_array_equal(held + left, before)
        large = before >= 50
        assert large.any()
        share = held[large] / before[large]
        assert share.min() > 0.09, task
        assert share.max() < 0.16, task
    assert 0.09 < len(split_table.rows(VALIDATION)) / len(table.rows(TRAIN)) < 0.13


@pytest.mark.parametrize("seed", range(20))
def test_validation_never_takes_the_last_image_of_a_class(seed):
    # Style 1 has one image, which artist 0, a large class, would draw half of the time.
    labels = np.asarray([[0, 0, -1]] * 9 + [[0, 1, -1]], np.int32)
    classes = {"artist": ("a",), "style": ("common", "rare"), "genre": ("none",)}
    paths = np.asarray([f"{i}.jpg" for i in range(10)], dtype=object)
    table = Table(classes, paths, labels, np.full(10, TRAIN, dtype=object))
    split_table = hold_out_validation(table, 0.5, seed=seed)
    assert set(split_table.labels_of("style", TRAIN)) == {0, 1}
    assert 4 <= len(split_table.rows(VALIDATION)) <= 5


def test_validation_of_a_small_random_table_leaves_every_class_in_training():
    for seed in range(10):
        table = random_table(60, seed=seed, test=10)
        split_table = hold_out_validation(table, 0.5, seed=seed)
        assert len(split_table.rows(VALIDATION)) > 10
        for task in table.tasks:
            present = set(table.labels_of(task, TRAIN))
            assert set(split_table.labels_of(task, TRAIN)) == present


def test_validation_is_a_function_of_the_seed_and_may_be_off():
    table = random_table()
    first, again = (hold_out_validation(table, 0.05, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.splits, again.splits)
    assert (first.splits != hold_out_validation(table, 0.05, seed=2).splits).any()
    assert len(hold_out_validation(table, 0.0, seed=1).rows(VALIDATION)) == 0


# === Rule 10: weights ===


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.25])
def test_class_weights_are_balanced_to_a_power_with_mean_one(exponent):
    labels = np.repeat([0, 1, 3], [70, 20, 10])
    weights = class_weights(labels, 5, exponent=exponent)
    assert weights.dtype == np.float32
    assert weights[[2, 4]].tolist() == [0, 0]
    by_sklearn = compute_class_weight("balanced", classes=np.asarray([0, 1, 3]), y=labels)
    expected = by_sklearn**exponent
    expected /= (70 * expected[0] + 20 * expected[1] + 10 * expected[2]) / 100
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1, abs=1e-6)


def test_class_weights_by_hand():
    # Balanced: 4 / (2 * 3) and 4 / (2 * 1), of mean 1 already.
    labels = np.asarray([0, 0, 0, 1])
    assert class_weights(labels, 2, exponent=1) == pytest.approx([2 / 3, 2])
    np.testing.assert_allclose(
        class_weights(labels, 2, exponent=1)[labels],
        compute_sample_weight("balanced", labels),
        rtol=1e-6,
    )
    # Square roots are as 1 : sqrt(3); mean (3 + sqrt(3)) / 4.
    mean = (3 + 3**0.5) / 4
    assert class_weights(labels, 2, exponent=0.5) == pytest.approx([1 / mean, 3**0.5 / mean])


def test_exponent_zero_weighs_present_classes_alike():
    assert class_weights(np.asarray([0, 0, 2]), 4, exponent=0).tolist() == [1, 0, 1, 0]
    assert class_weights(np.asarray([], int), 3, exponent=1).tolist() == [0, 0, 0]


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
    assert contradiction.startswith("genre: 1 images")
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
