"""The text of lists: line ends, separators, headers, joined files, and indices or names."""

import pytest

from multitask.data.lists import are_names, as_index, lines, read_labels_as, read_rows
from multitask.spec import MISSING, InputError

CLASSES = ("red", "green", "blue")


def read(text, classes=CLASSES):
    return read_rows(text, "list.csv", lambda cell: cell.isdecimal() or cell in classes)


# === Lines ===


@pytest.mark.parametrize(
    "mark", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
def test_lines_end_at_line_ends_alone(mark):
    assert f"a{mark}b".splitlines() == ["a", "b"]
    assert lines(f"a{mark}b\nc\r\nd\re") == [f"a{mark}b", "c", "d", "e"]


# === Rows ===


PLAIN = [("a.jpg", "0"), ("b.jpg", "2")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg;0\nb.jpg;2\n", "separated by semicolons"),
        ("a.jpg\t0\r\nb.jpg\t2\r\n", "separated by tabs"),
        ("path;class\na.jpg;0\nb.jpg;2\n", "a header row ('path;class')"),
        ("a.jpg;red\nb.jpg;red\n", "separated by semicolons"),
        ("a.jpg,0\n\ufeffb.jpg,2\n", "1 byte order mark inside the file"),
        ('a.jpg,0\r\n\ufeff"b.jpg",2\r\n', "1 byte order mark inside the file"),
        ("path,class\na.jpg,0\npath,class\nb.jpg,2\n", "('path,class'), 2 times, was skipped"),
        ("p,c\na.jpg,0\n\ufeffp,c\nb.jpg,2\n", "('p,c'), 2 times, was skipped"),
        ("path,class\na.jpg,nonsense\nb.jpg,2\n", "header row"),
    ],
)
def test_what_can_be_read_is_read_and_noted(text, expected):
    rows = read(text)
    assert [name for name, _ in rows.pairs] == ["a.jpg", "b.jpg"]
    assert any(expected in note for note in rows.notes), rows.notes


def test_a_separator_inside_a_path_is_part_of_it():
    assert read("a;b.jpg,0\nc;d.jpg,1\n").pairs == [("a;b.jpg", "0"), ("c;d.jpg", "1")]
    assert read("a, b.jpg;0\nc.jpg;1\n").pairs == [("a, b.jpg", "0"), ("c.jpg", "1")]
    assert read("a, b.jpg;0\nc, d.jpg;1\n").pairs == [("a, b.jpg", "0"), ("c, d.jpg", "1")]


@pytest.mark.parametrize("text", ["path,class\n", "path,,class\r\n", "path;class", "file\tkind\n"])
def test_a_header_alone_has_no_rows(text):
    rows = read(text)
    assert rows.pairs == rows.numbers == []
    assert any("header row" in note for note in rows.notes)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_text_has_no_rows(text):
    assert read(text).pairs == []


@pytest.mark.parametrize("text", ["a.jpg,unknown\n", "scan.0001,unknown\n"])
def test_one_row_of_an_unknown_class_is_not_a_header(text):
    assert len(read(text).pairs) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a.jpg,0\nb.jpg,1\nDots/c, d.jpg,2\n",
            "line 3: 3 cells, the other lines have 2; a path with a comma needs double quotes: "
            '"a, b.jpg",3',
        ),
        (
            "a.jpg,0\nb.jpg,1\nc.jpg,2\ufeffd.jpg,2\ne.jpg,0\n",
            "line 3: 3 cells, the other lines have 2; it contains a byte order mark: two files "
            "were joined without a line break",
        ),
        ("a.jpg;0\nb.jpg;x;y\n", "found 1 column"),
        ("a.jpg 0\nb.jpg 1\n", "expected two columns, `path,class`; found 1 column"),
    ],
)
def test_what_cannot_be_read_names_the_line_and_the_remedy(text, expected):
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith("list.csv: ")
    assert expected in str(caught.value)


# === Indices or names ===


@pytest.mark.parametrize(
    ("cells", "classes", "names"),
    [
        (["0", "2"], CLASSES, False),
        (["red", "blue"], CLASSES, True),
        (["red", "purple"], CLASSES, True),  # one is unknown
        (["0", "1", "purple"], CLASSES, False),
        (["0", "7", "8"], CLASSES, False),
        (["purple"], CLASSES, False),
        (["Golf", "911", "Beetle"], ("Golf", "911", "Beetle"), True),
        (["911", "911"], ("Golf", "911", "Beetle"), True),
        (["0", "1", "2"], ("Golf", "911", "Beetle"), False),
        (["1901", "1902"], ("1901", "1902"), True),
        (["1", "2", "3"], ("1", "2", "3"), True),  # 3 is no index
        (["0", "1"], ("0", "1"), False),  # the same either way
        (["1", "2"], ("1", "2", "3"), None),
        (["0", "1"], ("1", "0"), None),
        ([], CLASSES, None),
    ],
)
def test_the_class_file_decides_what_the_cells_are(cells, classes, names):
    assert are_names(cells, classes) is names


def test_labels_of_either_kind():
    classes = ("1", "2", "3")
    assert read_labels_as(["1", "3", "9"], classes, names=True) == [0, 2, MISSING]
    assert read_labels_as(["1", "3", "+2"], classes, names=False) == [1, MISSING, 2]


@pytest.mark.parametrize(
    ("text", "index"),
    [("0", 0), ("+2", 2), ("002", 2), ("3", -1), ("-1", -1), ("9" * 5000, -1), ("x", -1), ("", -1)],
)
def test_an_index_of_any_length(text, index):
    assert as_index(text, 3) == index
