"""Excel and Parquet tables, and files that are not tables; written by openpyxl, pandas, pyarrow."""

import datetime
import decimal
import os
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multitask.data.draft import draft_spec
from multitask.data.sources import EmbeddedImages, open_source, tables
from multitask.errors import InputError


def cells(source):
    return {name: source.frame[name].tolist() for name in source.frame}


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place.parent}/", "")


# === Excel ===


@pytest.fixture
def workbook(tmp_path):
    """A function: sheets, title -> rows of cells -> the path of a workbook."""
    openpyxl = pytest.importorskip("openpyxl")

    def make(name="t.xlsx", **sheets):
        book = openpyxl.Workbook()
        book.remove(book.active)
        for title, rows in sheets.items():
            sheet = book.create_sheet(title)
            for row in rows:
                sheet.append(row)
        book.save(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    "cover", [[["Inventory of the collection"]], [["Inventory"], [None], ["of 2019"], ["by Ann"]]]
)
def test_a_cover_sheet_is_not_the_table(workbook, cover):
    source = open_source(
        workbook(cover=cover, works=[["image", "style"], ["a.jpg", "x"]], more=[["a", "b"], [1, 2]])
    )
    assert cells(source) == {"image": ["a.jpg"], "style": ["x"]}
    assert source.notes[:2] == (
        "sheet 'works'",
        "only the first sheet with a table is read; not read: cover, more",
    )


def test_a_workbook(workbook):
    day = datetime.datetime(1888, 9, 1)
    rows = [
        [],
        ["image", " style ", "year", "when", None],
        ["a.jpg", "x", 1888, day],
        [],
        ["b.jpg", None, 2.5, None],
        ["c.jpg", "007", True, "text"],
    ]
    source = open_source(workbook(empty=[], works=rows, more=[["a", "b"], [1, 2]]))
    assert cells(source) == {
        "image": ["a.jpg", "b.jpg", "c.jpg"],
        "style": ["x", None, "007"],
        "year": [1888, 2.5, True],
        "when": ["1888-09-01T00:00:00", None, "text"],
    }
    assert [type(value) for value in source.frame["year"]] == [int, float, bool]
    assert source.rows.tolist() == ["row 3", "row 5", "row 6"]
    assert source.notes[:2] == (
        "sheet 'works'",
        "only the first sheet with a table is read; not read: more",
    )


def test_a_workbook_by_pandas(tmp_path):
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"image": ["é.jpg", "b.jpg"], "n": [1, 2], "x": [0.5, None]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    assert cells(open_source(tmp_path / "t.xlsx")) == {
        "image": ["é.jpg", "b.jpg"],
        "n": [1, 2],
        "x": [0.5, None],
    }


def test_a_workbook_under_another_name(workbook):
    place = workbook("export.csv", works=[["image", "style"], ["a.jpg", "x"]])
    assert cells(open_source(place)) == {"image": ["a.jpg"], "style": ["x"]}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], "t.xlsx: the file is empty"),
        (
            [["image", "style"]],
            "t.xlsx: sheet 'works': only a header (image, style), no rows below it",
        ),
        (
            [["image", "a", "a"], ["x.jpg", 1, 2]],
            "t.xlsx: sheet 'works': the column name 'a' is repeated (columns 2 and 3)",
        ),
        (
            [["image", "a"], ["x.jpg", 1, 2]],
            "t.xlsx: sheet 'works': column 3 has no name in the header",
        ),
    ],
)
def test_bad_workbooks_are_one_line(workbook, rows, line):
    assert refusal(workbook(works=rows)) == line


def test_workbooks_that_cannot_be_opened(tmp_path, workbook, monkeypatch):
    (tmp_path / "cut.xlsx").write_bytes(b"PK\x03\x04" + b"x" * 50)
    assert refusal(tmp_path / "cut.xlsx") == (
        "cut.xlsx: not a readable Excel file: File is not a zip file"
    )
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "x")
    assert refusal(tmp_path / "photos.zip") == (
        "photos.zip: a ZIP archive, not an Excel file; unpack it first"
    )
    with zipfile.ZipFile(tmp_path / "odd.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x>")
    assert refusal(tmp_path / "odd.xlsx").startswith("odd.xlsx: not a readable Excel file: ")
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    assert refusal(tmp_path / "old.xls") == (
        "old.xls: an old Excel file (.xls); save it as .xlsx or CSV"
    )
    monkeypatch.setattr(tables, "_MOST_UNPACKED", 100)
    place = workbook(works=[["image"], ["a.jpg"]])
    assert refusal(place) == "t.xlsx: larger than 100 bytes when unpacked"


def test_without_openpyxl_the_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    assert refusal(tmp_path / "t.xlsx") == (
        "t.xlsx: reading Excel files needs openpyxl; install it with pip install '.[excel]' (in "
        "the folder of this project), or save the sheet as CSV"
    )


# === Parquet ===


def test_a_parquet_table_of_paths(tmp_path):
    frame = pd.DataFrame(
        {
            "file": ["a.jpg", "b.jpg", "c.jpg"],
            "n": pd.array([1, None, 3], "Int64"),
            "x": [0.5, np.nan, 2.0],
            "kind": pd.Categorical(["p", "q", None]),
            "tags": [["a"], [], None],
            "day": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
            "box": [{"x": 1}] * 3,
        },
        index=[5, 6, 9],
    )
    frame.to_parquet(tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert (source.kind, source.image, source.embedded) == ("table", "file", False)
    assert cells(source) == {
        "file": ["a.jpg", "b.jpg", "c.jpg"],
        "n": [1, None, 3],
        "x": [0.5, None, 2.0],
        "kind": ["p", "q", None],
        "tags": [["a"], [], None],
        "day": ["2020-01-01T00:00:00", None, "2020-01-03T00:00:00"],
    }
    assert source.rows.tolist() == ["row 0", "row 1", "row 2"]
    assert source.notes[:2] == (
        "1 parquet file, 3 rows",
        "skipped columns, which hold no plain values: box, __index_level_0__",
    )


def images_of(count):
    return [bytes([i % 256]) * (i % 50 + 1) for i in range(count)]


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("group", [1, 7, 1000])
def test_a_parquet_table_with_bytes(tmp_path, struct, group):
    data = images_of(60)
    values = [{"bytes": item, "path": f"{i}.jpg"} for i, item in enumerate(data)]
    table = pa.table({"scan": values if struct else data, "style": ["x", "y"] * 30})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    source = open_source(tmp_path / "t.parquet")
    assert (source.kind, source.image, source.embedded) == ("table", "scan", True)
    assert (source.images, source.shards) == (None, ("t.parquet",))
    assert source.frame["scan"].iloc[17] == "t.parquet#00000017"
    assert source.frame["style"].tolist() == ["x", "y"] * 30
    assert list(source.frame) == ["scan", "style", *["scan.path"] * struct]
    if struct:
        assert source.frame["scan.path"].iloc[17] == "17.jpg"
    references = source.frame["scan"].tolist()
    order = np.random.default_rng(0).permutation(60)
    with EmbeddedImages(source) as images:
        assert [images.read(references[i]) for i in order] == [data[i] for i in order]
        some = [references[i] for i in order[:20]]
        assert list(images.iterate([*some, some[0]])) == [
            (references[i], data[i]) for i in sorted(order[:20])
        ]


def test_a_choice_between_columns_of_bytes(tmp_path):
    pq.write_table(pa.table({"front": [b"f"], "back": [b"b"], "n": [1]}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == (
        "image_column: t.parquet: several columns hold images (front, back); choose one"
    )
    source = open_source(tmp_path / "t.parquet", image_column="back")
    assert list(source.frame) == ["back", "n"]
    assert EmbeddedImages(source).read(source.frame["back"].iloc[0]) == b"b"
    assert refusal(tmp_path / "t.parquet", image_column="bock") == (
        'image_column: t.parquet: no column "bock". Expected one of: back, front, n. '
        'Did you mean "back"?'
    )


def test_structs_without_bytes_are_paths(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = pa.array([{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}], kind)
    pq.write_table(pa.table({"image": values, "n": [1, 2]}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert (source.image, source.embedded, source.images) == ("image", False, tmp_path)
    assert cells(source) == {"n": [1, 2], "image": ["a.jpg", "b.jpg"]}
    with pytest.raises(ValueError, match="are files"):
        EmbeddedImages(source)
    empty = pa.array([{"bytes": None, "path": None}], kind)
    pq.write_table(pa.table({"image": empty}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == (
        't.parquet: column "image" has neither bytes nor paths'
    )


def test_a_row_without_bytes(tmp_path):
    pq.write_table(pa.table({"image": [b"a", None]}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert "rows without image bytes: 1" in source.notes
    with EmbeddedImages(source) as images:
        assert images.read("t.parquet#00000000") == b"a"
        with pytest.raises(InputError, match=r"t\.parquet: row 1: column 'image' has no bytes$"):
            images.read("t.parquet#00000001")


@pytest.mark.parametrize("name", ["../t.parquet#0", "t.parquet", "t.parquet#-1", "t.parquet#x", ""])
def test_references_of_something_else(tmp_path, name):
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "t.parquet")
    images = EmbeddedImages(open_source(tmp_path / "t.parquet"))
    with pytest.raises(InputError, match="no embedded image"):
        images.read(name)


def test_a_row_beyond_the_file(tmp_path):
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "t.parquet")
    images = EmbeddedImages(open_source(tmp_path / "t.parquet"))
    with pytest.raises(InputError, match=r"t\.parquet: no row 1; it has 1 row$"):
        images.read("t.parquet#1")


def test_damage_in_the_middle_of_a_file(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"style": ["x"] * 40, "image": [os.urandom(500) for _ in range(40)]})
    pq.write_table(table, path, compression="none", use_dictionary=["style"])
    data = bytearray(path.read_bytes())
    data[200:15_000] = b"\xff" * 14_800
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(InputError, match=r"t\.parquet: (not a readable Parquet|damaged)") as caught:
        list(EmbeddedImages(source).iterate(source.frame["image"].tolist()))
    assert "\n" not in str(caught.value)


def test_parquet_files_that_are_not_parquet(tmp_path):
    place = tmp_path / "t.parquet"
    place.write_bytes(b"PAR1" + b"x" * 100)
    assert refusal(place).startswith("t.parquet: not a readable Parquet file: ")
    place.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refusal(place) == (
        "t.parquet: a Git LFS pointer, not the file; run `git lfs pull` first"
    )
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), place)
    assert refusal(place) == "t.parquet: no rows"
    names = pa.table([[1], [2]], names=["a", "a"])
    pq.write_table(names, place)
    assert refusal(place) == "t.parquet: the column name 'a' is repeated (columns 1 and 2)"


# === Files ===


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "catalogue.csv").write_text("image\na.jpg\n")
    assert refusal(tmp_path / "catalog.csv") == (
        'catalog.csv: no such file or folder. Did you mean "catalogue.csv"?'
    )
    place = tmp_path / "nowhere" / "t.csv"
    assert refusal(place) == f"t.csv: no such file or folder. There is no folder {place.parent}."
    os.mkfifo(tmp_path / "pipe.csv")
    assert refusal(tmp_path / "pipe.csv") == (
        "pipe.csv: cannot be read: it is a named pipe (FIFO), not a regular file"
    )
    (tmp_path / "link.csv").symlink_to("gone.csv")
    assert refusal(tmp_path / "link.csv").startswith("link.csv: no such file.")
    assert refusal(tmp_path / "catalogue.csv", levels=["x"]) == (
        "levels: only class folders have levels, not a table"
    )


def test_a_given_column_of_paths_next_to_one_of_bytes(tmp_path):
    table = pa.table(
        {"thumb": [b"t"], "file": ["a.jpg"], "price": pa.array([decimal.Decimal("1.50")])}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet", image_column="file")
    assert (source.image, source.embedded) == ("file", False)
    assert cells(source) == {"file": ["a.jpg"], "price": ["1.50"]}
    assert open_source(tmp_path / "t.parquet").image == "thumb"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_structs_of_bytes_alone(tmp_path, suffix):
    table = pa.table({"image": pa.array([{"bytes": b"a"}, {"bytes": b"b"}])})
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    source = open_source(path)
    assert list(source.frame) == ["image"]
    with EmbeddedImages(source) as images:
        assert [data for _, data in images.iterate(source.frame["image"].tolist())] == [b"a", b"b"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_of_100_000_rows_is_read_in_seconds(tmp_path, form):
    """From the file to the spec: 6 to 8 s of CPU time where this was written."""
    numbers, random = np.arange(100_000), np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "file": [f"rooms/{i % 200:03}/{i:06}.jpg" for i in numbers],
            "inventory": [f"SK-A-{i // 2}" for i in numbers],
            "title": [f"A view of the town number {i} with a river" for i in numbers],
            "style": random.choice([f"style {k}" for k in range(27)], len(numbers)),
            "artist": random.choice([f"artist {k}" for k in range(900)], len(numbers)),
            "support": random.choice(["oil | canvas", "oil", "canvas", "ink"], len(numbers)),
        }
    )
    place = tmp_path / f"t.{form}"
    if form == "csv":
        frame.to_csv(place, index=False, sep=";")
    elif form == "jsonl":
        frame.to_json(place, orient="records", lines=True)
    else:
        frame.to_parquet(place)
    start = time.process_time()
    guesses = draft_spec(str(place)).guesses
    assert time.process_time() - start < 30
    assert (guesses.rows, guesses.group) == (100_000, "inventory")
    assert {task.column: task.classes for task in guesses.tasks} == {
        "style": frame["style"].value_counts().to_dict(),
        "artist": frame["artist"].value_counts().to_dict(),
        "support": frame["support"].value_counts().drop("oil | canvas").to_dict(),
    }
