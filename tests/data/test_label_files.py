"""The files of one task: the forms of a CSV, class files and names made of digits."""

import codecs

import pytest
from table_checks import by_path, notes_with

from multitask.data.label_files import read_classes, read_labels
from multitask.data.merging import load_table, merge_tables
from multitask.data.table import TRAIN
from multitask.spec import InputError, parse_spec

CLASSES = ("red", "green", "blue")


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
    message = r'style_train.csv: no training rows, .* "style" .*`tasks`'
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
