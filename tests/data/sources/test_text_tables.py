"""CSV, TSV and JSON Lines: every cell against a value written by hand, and each error line."""

import json

import numpy as np
import pandas as pd
import pytest

from multitask.data.sources import open_source
from multitask.errors import InputError


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def cells(source):
    """{column: [values]} of a source's frame."""
    return {name: source.frame[name].tolist() for name in source.frame}


def refusal(place, **options):
    """The one line with which a source is refused, without the folder."""
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{place.parent}/", "")


# === Cells ===


def test_every_cell_of_a_csv_stays_text(tmp_path):
    text = 'image,style,year,note\na.jpg,001,1e3,NA\nb.jpg,,True,"x, ""y"""\n'
    source = open_source(write(tmp_path / "t.csv", text))
    assert source.kind == "table"
    assert source.place == tmp_path / "t.csv"
    assert (source.image, source.embedded, source.images) == ("image", False, tmp_path)
    assert (source.split, source.class_names, source.shards) == (None, {}, ())
    assert cells(source) == {
        "image": ["a.jpg", "b.jpg"],
        "style": ["001", ""],
        "year": ["1e3", "True"],
        "note": ["NA", 'x, "y"'],
    }
    assert source.rows.tolist() == ["line 2", "line 3"]
    assert source.frame.index.equals(pd.RangeIndex(2))
    assert {*source.frame.dtypes, source.rows.dtype} == {np.dtype(object)}


@pytest.mark.parametrize(
    ("delimiter", "name"),
    [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_other_delimiters(tmp_path, delimiter, name, suffix):
    rows = [["image", "title"], ["a.jpg", "Still life, with fruit"], ["b.jpg", "Sea, sky, sand"]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    source = open_source(write(tmp_path / f"t{suffix}", text))
    assert cells(source) == {
        "image": ["a.jpg", "b.jpg"],
        "title": ["Still life, with fruit", "Sea, sky, sand"],
    }
    assert f"columns separated by {name}" in source.notes


def test_a_csv_of_commas_may_hold_semicolons(tmp_path):
    text = "image,materials,style\na.jpg,oil; canvas,x\nb.jpg,ink; paper; glue,y\n"
    source = open_source(write(tmp_path / "t.csv", text))
    assert source.frame["materials"].tolist() == ["oil; canvas", "ink; paper; glue"]
    assert not any("separated" in note for note in source.notes)


def test_the_line_in_which_excel_states_the_separator(tmp_path):
    source = open_source(write(tmp_path / "t.csv", "sep=;\r\nimage;style\r\na.jpg;x,y,z\r\n"))
    assert cells(source) == {"image": ["a.jpg"], "style": ["x,y,z"]}
    assert source.rows.tolist() == ["line 3"]


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None),
        ("utf-8-sig", "encoding UTF-8 with a byte order mark"),
        ("utf-16", "encoding UTF-16"),
        ("utf-32", "encoding UTF-32"),
        ("cp1252", "encoding Windows-1252, because the file is not UTF-8; check accents"),
    ],
)
def test_encodings(tmp_path, encoding, note):
    text = "image,artist\né.jpg,Courbet – “Gustave”\n"
    source = open_source(write(tmp_path / "t.csv", text, encoding))
    assert cells(source) == {"image": ["é.jpg"], "artist": ["Courbet – “Gustave”"]}
    assert [line for line in source.notes if line.startswith("encoding")] == [note] * bool(note)


@pytest.mark.parametrize(("big", "mark"), [("utf-16-be", b"\xfe\xff"), ("utf-16-le", b"\xff\xfe")])
def test_both_orders_of_utf_16(tmp_path, big, mark):
    (tmp_path / "t.tsv").write_bytes(mark + "image\tname\nā.jpg\tŽ\n".encode(big))
    assert cells(open_source(tmp_path / "t.tsv")) == {"image": ["ā.jpg"], "name": ["Ž"]}


def test_line_breaks_in_cells_and_the_line_where_a_row_begins(tmp_path):
    text = 'image,note\na.jpg,"one\ntwo\r\nthree"\n\nb.jpg,x\n,\nc.jpg,y\n   \n'
    source = open_source(write(tmp_path / "t.csv", text))
    assert source.frame["note"].tolist() == ["one\ntwo\r\nthree", "x", "y"]
    assert source.rows.tolist() == ["line 2", "line 6", "line 8"]
    assert "3 blank lines skipped" in source.notes


def test_a_mark_inside_joined_files(tmp_path):
    source = open_source(write(tmp_path / "t.csv", "image,x\na.jpg,1\n\ufeffb.jpg,2\n"))
    assert source.frame["image"].tolist() == ["a.jpg", "b.jpg"]


def test_what_pandas_writes_with_its_index(tmp_path):
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg"], "style": ["x", "y"]})
    frame.to_csv(tmp_path / "t.csv")
    source = open_source(tmp_path / "t.csv")
    assert cells(source) == {"image": ["a.jpg", "b.jpg"], "style": ["x", "y"]}
    assert "the first column has no name and holds row numbers; skipped" in source.notes


def test_empty_columns_and_cells_of_spreadsheets(tmp_path):
    text = "image,style,,\na.jpg,x,,\nb.jpg,y,,,,\n,,,\n"
    source = open_source(write(tmp_path / "t.csv", text))
    assert cells(source) == {"image": ["a.jpg", "b.jpg"], "style": ["x", "y"]}
    assert "column 4 has neither name nor content; skipped" in source.notes


def test_the_values_are_those_of_pandas(tmp_path):
    frame = pd.DataFrame(
        {
            "image": [f"{i % 7}/{i}.jpg" for i in range(500)],
            "text": [f'a "{i}"\n, {"é" * (i % 3)}; |' for i in range(500)],
            "number": [str(i / 7) for i in range(500)],
        }
    )
    for separator in (",", ";", "\t"):
        frame.to_csv(tmp_path / "t.csv", index=False, sep=separator)
        assert open_source(tmp_path / "t.csv").frame.equals(frame.astype(object))


def test_the_delimiter_of_a_file_longer_than_the_sample(tmp_path):
    """A row that the sample cuts off has fewer cells, and does not count."""
    long = "x, " * 3_000
    text = "image;note;style\n" + "".join(f"{i}.jpg;{long};s\n" for i in range(60))
    source = open_source(write(tmp_path / "t.csv", text))
    assert source.frame["style"].tolist() == ["s"] * 60
    assert "columns separated by semicolons" in source.notes


def test_a_cell_beyond_the_limit_of_a_cell(tmp_path):
    text = f"image,note\na.jpg,{'x' * 200_000}\n"
    assert refusal(write(tmp_path / "t.csv", text)) == (
        "t.csv: line 2: not CSV: field larger than field limit (131072)"
    )


# === JSON Lines ===


def test_json_lines(tmp_path):
    rows = [
        {"image": "a.jpg", "style": "x", "year": 1, "tags": ["p", "q"], "box": {"x": 1}},
        {"image": "b.jpg", "year": None, "tags": [], "score": 0.5, "ok": True},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows) + "\n"
    source = open_source(write(tmp_path / "t.jsonl", text.replace('"x"', '"x\u2028"', 1)))
    assert cells(source) == {
        "image": ["a.jpg", "b.jpg"],
        "style": ["x\u2028", None],
        "year": [1, None],
        "tags": [["p", "q"], []],
        "score": [None, 0.5],
        "ok": [None, True],
    }
    assert type(source.frame["year"].iloc[0]) is int
    assert source.rows.tolist() == ["line 1", "line 3"]
    assert "column 'box' holds objects; skipped" in source.notes


def test_not_a_number_is_no_value(tmp_path):
    text = '{"image": "a.jpg", "x": NaN}\n{"image": "b.jpg", "x": 1.5}\n'
    assert open_source(write(tmp_path / "t.jsonl", text)).frame["x"].tolist() == [None, 1.5]


# === Refusals ===


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "t.csv: the file is empty"),
        ("  \n\n", "t.csv: the file is empty"),
        ("image,style\n", "t.csv: only a header (image, style), no rows below it"),
        (
            "image,a,a\nx.jpg,1,2\n",
            "t.csv: the column name 'a' is repeated (columns 2 and 3)",
        ),
        (
            "image,a\nx.jpg,1\ny.jpg\nz.jpg,1\n",
            "t.csv: line 3: 1 cell, the header has 2; a cell with the separator in it needs "
            'double quotes: "a, b"',
        ),
        (
            'image,a\nx.jpg,"1\n2"\ny.jpg,1,2\n',
            "t.csv: line 4: 3 cells, the header has 2; a cell with the separator in it needs "
            'double quotes: "a, b"',
        ),
        ('image,a\nx.jpg,1\ny.jpg,"2\n', "t.csv: line 3: not CSV: a quotation mark is not closed"),
        (
            'image,a\nx.jpg,"1"2\n',
            "t.csv: line 2: not CSV: text after a closing quotation mark",
        ),
        ("image,\nx.jpg,1\n", "t.csv: column 2 has no name in the header"),
        (
            "a.jpg,3\nb.jpg,4\n",
            "t.csv: line 1 has 'a.jpg' where the names of the columns should be; add a header line",
        ),
        (
            "image,a\nx\0.jpg,1\n",
            "t.csv: not text: a NUL character in line 2; if it is UTF-16 without a byte order "
            "mark, save it as UTF-8",
        ),
    ],
)
def test_bad_csv_is_one_line(tmp_path, text, line):
    assert refusal(write(tmp_path / "t.csv", text)) == line


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"image,a\nx.jpg,\x81\n")
    assert refusal(tmp_path / "t.csv") == (
        "t.csv: neither UTF-8 (byte 14) nor Windows-1252 text (byte 14); save it as UTF-8"
    )
    (tmp_path / "t.csv").write_bytes(b"\xff\xfeimage")
    assert refusal(tmp_path / "t.csv") == "t.csv: not UTF-16 text (byte 6)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "t.jsonl: the file is empty"),
        ('[{"a": 1}]', "t.jsonl: it is one JSON array; JSON Lines has one object per line"),
        (
            '{"image": "a.jpg"}\n{"image": \n',
            "t.jsonl: line 2, column 11: not JSON: Expecting value",
        ),
        ('{"image": "a.jpg"}\n3\n', "t.jsonl: line 2: 3: expected a JSON object such as "
         '{"image": "a.jpg"}'),
        ("{}\n{}\n", "t.jsonl: its objects have no keys"),
    ],
)  # fmt: skip
def test_bad_json_lines_are_one_line(tmp_path, text, line):
    assert refusal(write(tmp_path / "t.jsonl", text)) == line


def test_a_compressed_table(tmp_path):
    pd.DataFrame({"image": ["a.jpg"], "style": ["Cubism"]}).to_csv(tmp_path / "t.csv.gz")
    assert refusal(tmp_path / "t.csv.gz") == "t.csv.gz: compressed with gzip; unpack it first"


def test_json_lines_too_deep_for_python(tmp_path):
    line = refusal(write(tmp_path / "t.jsonl", '{"a": ' + "[" * 100_000 + "\n"))
    assert line.startswith("t.jsonl: line 1: not JSON: ")


def test_json_lines_in_another_encoding(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"image": "é.jpg"}', "cp1252")
    assert refusal(path) == "t.jsonl: not UTF-8 text (byte 11)"
