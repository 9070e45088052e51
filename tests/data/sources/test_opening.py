"""Which kind of source a place is, and the error for a place that is none."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from multitask.data.sources import KINDS, open_source
from multitask.data.sources.splits import missing_shards, split_of_path
from multitask.errors import InputError

LOOKED_FOR = (
    "looked for classes.csv of Kaggle's WikiArt, features.json (TFDS), state.json (save_to_disk), "
    "Parquet or Arrow shards, metadata.csv or .jsonl, and folders of images"
)


def put(folder, *names, data=b"x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "").replace(str(place), ".")


def test_the_kinds():
    assert KINDS == ("table", "hub", "folders", "tfds", "kaggle")


def test_levels_make_it_class_folders(tmp_path):
    put(tmp_path, "Dots/a.jpg")
    put(tmp_path, "metadata.csv", data=b"file_name,style\nDots/a.jpg,x\n")
    assert list(open_source(tmp_path).frame) == ["file_name", "style"]
    assert list(open_source(tmp_path, levels=["style"]).frame) == ["path", "style"]


def test_metadata_comes_before_shards_and_shards_before_folders(tmp_path):
    put(tmp_path, "data/Dots/a.jpg")
    pd.DataFrame({"image": ["data/Dots/a.jpg"]}).to_parquet(tmp_path / "data" / "train.parquet")
    assert open_source(tmp_path).kind == "hub"
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "data/Dots/a.jpg"}))
    assert open_source(tmp_path).kind == "folders"


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ([], f".: the folder is empty; {LOOKED_FOR}"),
        (
            ["a.csv", "b.xlsx", "c.jpg"],
            ".: a folder with tables (a.csv, b.xlsx); give the path of one of them",
        ),
        (["a.jpg", "b.PNG"], f".: it has 2 images that are not in class folders; {LOOKED_FOR}"),
        (["notes.docx"], f".: it has notes.docx; {LOOKED_FOR}"),
        (
            ["x/notes.docx"],
            ".: no image files in it. Skipped 1 file: 1 of another type (.docx).",
        ),
    ],
)
def test_folders_that_are_not_a_source(tmp_path, files, line):
    put(tmp_path, *files)
    assert refusal(tmp_path) == line


def test_tables_next_to_class_folders_are_noted(tmp_path):
    put(tmp_path, "photos/a.jpg", "Catalogue.CSV", ".hidden.csv")
    assert refusal(tmp_path) == (
        ".: all its images are in photos, so folders do not name classes; give the path of a table "
        "in it (Catalogue.CSV)"
    )
    put(tmp_path, "scans/a.jpg")
    assert open_source(tmp_path).notes[-1] == (
        "tables beside the folders, which are not read: Catalogue.CSV"
    )
    put(tmp_path, "photos/2020/b.jpg")
    assert refusal(tmp_path) == (
        "levels: .: its images are 2 folders deep ('photos/2020/b.jpg'); name each level, from the "
        "top, such as style,artist; or give the path of a table in it (Catalogue.CSV)"
    )


@pytest.mark.parametrize(
    "place", ["https://museum.example/catalogue.csv", "s3://bucket/a", "hf://datasets/huggan/x"]
)
def test_a_url_is_refused_with_what_to_do(place):
    with pytest.raises(InputError, match=r": a URL; nothing is downloaded here\. Download it, and"):
        open_source(Path(place))


def test_a_name_of_the_hub_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (
        "huggan/wikiart: no such folder. A data set of the Hugging Face Hub has to be on disk: "
        "download it, and give its folder"
    )
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        open_source(Path("huggan/wikiart"))
    put(tmp_path, "huggan/wikiarts/x/a.jpg")  # a folder of that name may be misspelled
    with pytest.raises(InputError, match=r'^huggan/wikiart: .*Did you mean "wikiarts"\?$'):
        open_source(Path("huggan/wikiart"))


def test_choices_that_a_source_does_not_offer(tmp_path):
    put(tmp_path, "Dots/a.jpg", "other/b.jpg")
    assert refusal(tmp_path, image_column="file") == (
        'image_column: the images of . are in column "path"'
    )
    assert refusal(tmp_path, images=tmp_path / "other") == "images: the images of . are in ."
    assert open_source(tmp_path, images=tmp_path / "Dots" / "..", image_column="path").kind
    pd.DataFrame({"image": [b"x"]}).to_parquet(tmp_path / "t.parquet")
    line = refusal(tmp_path / "t.parquet", images=tmp_path)
    assert line == "images: the images of . are inside its files"


def test_an_error_of_the_file_system_is_one_line(tmp_path, monkeypatch):
    put(tmp_path, "Dots/a.jpg")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    assert refusal(tmp_path) == ".: cannot be read: Permission denied"


def test_names_with_the_characters_of_patterns(tmp_path):
    folder = tmp_path / "[a-z]*?"
    put(folder, "Dots [1]/a*.jpg", "Dots 1/b.jpg")
    assert open_source(folder).frame["path"].tolist() == ["Dots 1/b.jpg", "Dots [1]/a*.jpg"]
    put(folder, "t[1].csv", data=b"image,style\nDots [1]/a*.jpg,x\n")
    assert open_source(folder / "t[1].csv").image == "image"


def test_a_message_escapes_and_cuts_a_cell(tmp_path):
    put(
        tmp_path,
        "t.csv",
        data=b"image,\x1b[31m" + b"y" * 500 + b",\x1b[31m" + b"y" * 500 + b"\n1,2,3\n",
    )
    line = refusal(tmp_path / "t.csv")
    assert "\x1b" not in line
    assert len(line) < 200


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.parquet", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/my_split-00000-of-00002.parquet", "my_split"),
        ("set-train-00000-of-00002.arrow", "train"),
        ("paintings_2.0-train-00000-of-00002.arrow", "train"),
        ("default/partial-train/0000.parquet", "train"),
        ("TEST/x.parquet", "TEST"),
        ("trainer.parquet", None),
        ("contest/latest.parquet", None),
    ],
)
def test_splits_in_paths(path, split):
    assert split_of_path(path) == split


def test_missing_shards():
    names = [f"a/x-{i:05}-of-00003.parquet" for i in (0, 2)]
    assert missing_shards(names) == "a/x-00001-of-00003.parquet"
    assert missing_shards([*names, "a/x-00001-of-00003.parquet"]) is None
    assert missing_shards(["b.parquet"]) is None
