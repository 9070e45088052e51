"""Classes as folders, and metadata files beside images."""

import json
import os

import pandas as pd
import pytest

from multitask.data.sources import open_source
from multitask.errors import InputError


@pytest.fixture
def tree(tmp_path):
    """A function: names of files (with an optional text) -> the folder that has them."""

    def make(*names, **texts):
        for name in names:
            path = tmp_path / "c" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path / "c"

    return make


def put(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def rows(source):
    """The frame as tuples."""
    return list(source.frame.itertuples(index=False, name=None))


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "").replace(str(place), ".")


# === Classes ===


def test_one_level_of_folders(tree):
    source = open_source(tree("Dots/b.jpg", "Dots/a.JPG", "Lines/[1]*.png", "Lines/notes.txt"))
    assert (source.kind, source.image, source.embedded) == ("folders", "path", False)
    assert (source.images, source.split, source.rows) == (source.place, None, None)
    assert list(source.frame) == ["path", "class"]
    assert rows(source) == [
        ("Dots/a.JPG", "Dots"),
        ("Dots/b.jpg", "Dots"),
        ("Lines/[1]*.png", "Lines"),
    ]
    assert source.notes == (
        "Skipped 1 file: 1 of another type (.txt)",
        "class: 2 classes, named by folders",
    )


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "val"), ("train", "dev"), ("learn", "Holdout")]
)
def test_splits_above_the_classes(tree, names):
    first, second = names
    source = open_source(tree(f"{first}/x/a.jpg", f"{first}/y/b.jpg", f"{second}/x/c.jpg"))
    assert source.split == "split"
    assert sorted(rows(source)) == sorted(
        [
            (f"{first}/x/a.jpg", first, "x"),
            (f"{first}/y/b.jpg", first, "y"),
            (f"{second}/x/c.jpg", second, "x"),
        ]
    )


def test_a_class_may_be_called_like_a_split(tree):
    source = open_source(tree("train/a.jpg", "car/b.jpg"))
    assert source.split is None
    assert rows(source) == [("car/b.jpg", "car"), ("train/a.jpg", "train")]


def test_several_levels_are_named(tree):
    place = tree("train/Cubism/Ann/a.jpg", "train/Cubism/Bo/x/b.jpg", "test/Dots/c.jpg")
    source = open_source(place, levels=["style", "artist"])
    assert list(source.frame) == ["path", "split", "style", "artist"]
    assert rows(source) == [
        ("test/Dots/c.jpg", "test", "Dots", None),
        ("train/Cubism/Ann/a.jpg", "train", "Cubism", "Ann"),
        ("train/Cubism/Bo/x/b.jpg", "train", "Cubism", "Bo"),
    ]
    assert source.notes == (
        "splits by folder: test, train",
        "images fewer than 2 folders deep, which lack a class: 1 (first: 'test/Dots/c.jpg')",
        "images in deeper folders, whose names are not used: 1",
        "style: 2 classes, named by folders",
        "artist: 2 classes, named by folders",
    )
    assert open_source(place, levels=["path", "split"]).image == "path_"


def test_levels_that_are_not_named_or_not_there(tree):
    place = tree("Cubism/Ann/a.jpg", "Cubism/b.jpg")
    assert refusal(place) == (
        "levels: .: its images are 2 folders deep ('Cubism/Ann/a.jpg'); name each level, from "
        "the top, such as style,artist"
    )
    assert refusal(place, levels=["style", "artist", "year"]) == (
        "levels: 3 names (style, artist, year), but the images in . are only 2 folders deep"
    )
    assert refusal(place, levels=["a", "a"]) == (
        "levels: the column name 'a' is repeated (columns 1 and 2)"
    )
    for levels in ([], [""]):
        assert refusal(place, levels=levels) == (
            "levels: expected at least one name, and none empty"
        )


def test_splits_mixed_with_something_else(tree):
    assert refusal(tree("train/x/a.jpg", "test/x/b.jpg", "extra/x/c.jpg")) == (
        ".: test, train look like splits, extra do not; move the others into a split folder, or "
        "elsewhere"
    )


def test_images_in_splits_without_classes(tree):
    assert refusal(tree("train/a.jpg", "test/b.jpg")) == (
        ".: its images are not in class folders, and there is no metadata.csv"
    )


def test_links_and_loops_and_hidden_files(tree, tmp_path):
    place = tree("Dots/a.jpg", "Dots/.b.jpg", ".git/x.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(b"x")
    (place / "Lines").symlink_to(tmp_path / "elsewhere")
    (place / "Again").symlink_to(place / "Dots")
    (place / "Dots" / "loop").symlink_to(place)
    os.mkfifo(place / "Dots" / "pipe.jpg")
    source = open_source(place)
    assert rows(source) == [("Dots/a.jpg", "Dots"), ("Lines/b.jpg", "Lines")]
    assert "not a regular file" in source.notes[0]
    assert "2 hidden" in source.notes[0]


def test_a_folder_without_images(tree):
    assert refusal(tree("Dots/a.txt", "Dots/b.docx")) == (
        ".: no image files in it. Skipped 2 files: 2 of another type (.docx, .txt)."
    )


# === metadata.csv ===


def test_metadata_with_the_images(tree):
    place = tree("a.jpg", "x/b.jpg")
    put(place, "metadata.csv", "file_name,style,year\na.jpg,Dots,1888\nx/b.jpg,,1889\n")
    source = open_source(place)
    assert (source.kind, source.image, source.images) == ("folders", "file_name", place)
    assert source.split is None
    assert rows(source) == [("a.jpg", "Dots", "1888"), ("x/b.jpg", "", "1889")]
    assert source.rows.tolist() == ["line 2", "line 3"]
    assert source.notes == ("metadata.csv, 2 rows",)


def test_metadata_in_each_split(tree):
    place = tree("train/a.jpg", "train/b.jpg", "test/c.jpg")
    put(place, "train/metadata.jsonl",
        '{"file_name": "a.jpg", "style": "Dots"}\n{"file_name": "./b.jpg", "n": 3}\n')  # fmt: skip
    put(place, "test/metadata.csv", "file_name,style\nc.jpg,Lines\n")
    source = open_source(place)
    assert source.split == "split"
    frame = source.frame.set_index("file_name")
    assert list(frame.index) == ["test/c.jpg", "train/a.jpg", "train/b.jpg"]
    assert frame["split"].tolist() == ["test", "train", "train"]
    assert frame["style"].tolist() == ["Lines", "Dots", None]
    assert frame["n"].tolist() == [None, None, 3]
    assert source.rows.tolist() == [
        "test/metadata.csv: line 2",
        "train/metadata.jsonl: line 1",
        "train/metadata.jsonl: line 2",
    ]


def test_metadata_at_the_top_of_splits(tree):
    place = tree("train/a.jpg", "test/b.jpg")
    put(place, "metadata.jsonl", "\n".join(
        json.dumps({"file_name": name}) for name in ("train/a.jpg", "test/b.jpg")))  # fmt: skip
    assert rows(open_source(place)) == [("train/a.jpg", "train"), ("test/b.jpg", "test")]


def test_metadata_as_parquet(tree):
    place = tree("a.jpg")
    frame = pd.DataFrame({"file_name": ["a.jpg", "b.jpg"], "n": [1, 2], "box": [{"x": 1}] * 2})
    frame.to_parquet(place / "metadata.parquet")
    assert rows(open_source(place)) == [("a.jpg", 1), ("b.jpg", 2)]


def test_metadata_that_is_wrong(tree):
    place = tree("train/a.jpg", "test/b.jpg")
    put(place, "train/metadata.csv", "filename,style\na.jpg,x\n")
    assert refusal(place) == (
        'train/metadata.csv: no column "file_name"; it has filename, style. '
        'Did you mean "filename"?'
    )
    put(place, "train/metadata.csv", "file_name,style\na.jpg,x\n")
    assert refusal(place) == "test: no metadata file, but 'train' has one"
    put(place, "test/metadata.csv", "file_name,style\n")
    assert refusal(place) == (
        "test/metadata.csv: only a header (file_name, style), no rows below it"
    )
