"""What pandas and the library `datasets` themselves write."""

import datasets
import pandas as pd
import pytest
from hub_files import (
    STYLES,
    check,
    image_bytes,
    refusal,
    style_of,
)

from multitask.data.sources import EmbeddedImages, open_source


def test_partitioned_parquet_of_pandas(tmp_path):
    """Its folders are columns: `style=Cubism`. The files themselves lack them."""
    frame = pd.DataFrame(
        {
            "image": [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in range(12)],
            "style": ["Cubism", "Öl / Tempera", "a=b 100%"] * 4,
            "maker": (["Ann"] * 3 + [None] * 3) * 2,
            "split": ["train"] * 8 + ["test"] * 4,
        }
    )
    frame.to_parquet(tmp_path / "p", partition_cols=["style", "maker", "split"])
    assert not list((tmp_path / "p").glob("*.parquet"))
    source = open_source(tmp_path / "p")
    assert (source.kind, source.split) == ("hub", None)
    read = source.frame.set_index("image.path")
    written = frame.assign(path=[f"{i}.png" for i in range(12)]).set_index("path")
    assert sorted(read.index) == sorted(written.index)
    for column in ("style", "maker", "split"):
        expected = written[column].astype(object).where(written[column].notna(), None)
        assert read[column].to_dict() == expected.to_dict()
    with EmbeddedImages(source) as images:
        for path, reference in read["image"].items():
            assert images.read(reference) == image_bytes(int(path.removesuffix(".png")))


@pytest.fixture(scope="module")
def written():
    """A DatasetDict by `datasets`."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "style": datasets.ClassLabel(names=list(STYLES)),
            "title": datasets.Value("string"),
        }
    )

    def part(rows):
        columns = {
            "image": [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in rows],
            "style": [i % 4 - 1 for i in rows],
            "title": [f"Title {i}" if i % 2 else None for i in rows],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict({"train": part(range(7)), "test": part(range(7, 11))})


def test_what_datasets_saves(written, tmp_path):
    written.save_to_disk(tmp_path / "both", num_shards={"train": 2, "test": 1})
    check(open_source(tmp_path / "both"), range(11), ["train"] * 7 + ["test"] * 4)
    written["test"].save_to_disk(tmp_path / "one")
    check(open_source(tmp_path / "one"), range(7, 11), None)
    written["train"].select([4, 1, 6]).save_to_disk(tmp_path / "some")
    check(open_source(tmp_path / "some"), [4, 1, 6], None)


def test_what_datasets_writes_as_parquet(written, tmp_path):
    (tmp_path / "data").mkdir()
    for split, data in written.items():
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", batch_size=3)
    check(open_source(tmp_path), [*range(7, 11), *range(7)], ["test"] * 4 + ["train"] * 7)


def test_columns_of_other_types(tmp_path):
    """Large strings, lists of classes, missing class indices, and values that are not plain.

    Images with `decode=False` are stored like other images.
    """
    label = datasets.ClassLabel(names=list(STYLES))
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "style": label,
            "title": datasets.Value("large_string"),
            "styles": datasets.List(label),
            "views": datasets.List(datasets.Image()),
            "year": datasets.Value("int16"),
        }
    )
    columns = {
        "image": [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in range(6)],
        "style": [i % 4 - 1 if i % 4 else None for i in range(6)],
        "title": [f"Title {i}" if i % 2 else None for i in range(6)],
        "styles": [[0, 2], [], None] * 2,
        "views": [[{"bytes": b"x", "path": None}]] * 6,
        "year": [*range(1900, 1905), None],
    }
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "all.parquet")
    kept = data.filter(lambda year: year != 1902, input_columns="year")
    kept.save_to_disk(tmp_path / "filtered")
    for name, rows in (
        ("saved", [*range(6)]),
        ("parquet", [*range(6)]),
        ("filtered", [0, 1, *range(3, 6)]),
    ):
        source = open_source(tmp_path / name)
        assert source.class_names == {"style": STYLES, "styles": STYLES}
        lists = [["Cubism", "naïve, art"], [], None] * 2
        assert source.frame["styles"].tolist() == [lists[i] for i in rows]
        assert source.frame["style"].tolist() == [style_of(i) for i in rows]
        assert source.frame["title"].tolist() == [columns["title"][i] for i in rows]
        assert source.frame["year"].tolist() == [columns["year"][i] for i in rows]
        assert "skipped columns, which hold no plain values: views" in source.notes
        with EmbeddedImages(source) as images:
            read = dict(images.iterate(source.frame["image"]))
        assert list(read.values()) == [image_bytes(i) for i in rows]


def test_an_image_folder_that_datasets_has_read(tmp_path):
    """`to_parquet` stores the paths of the files, and `save_to_disk` the files."""
    for i in range(12):
        file = tmp_path / "photos" / ("train", "test")[i % 2] / STYLES[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image_bytes(i))
    photos, cache = tmp_path / "photos", str(tmp_path / "cache")
    data = datasets.load_dataset("imagefolder", data_dir=str(photos), cache_dir=cache)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split in data:
        data[split].to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    assert refusal(tmp_path / "parquet") == (
        f"images: .: column 'image' holds absolute paths, all below {photos} and none below .; "
        "name the folder that they are in"
    )
    expected = sorted(
        (file.parts[-3], file.parent.name, file.read_bytes()) for file in photos.rglob("*.png")
    )
    source = open_source(tmp_path / "parquet", images=photos)
    frame = source.frame
    assert expected == sorted(
        (split, style, (photos / path).read_bytes())
        for path, split, style in zip(frame["image"], frame["split"], frame["label"], strict=True)
    )
    source = open_source(tmp_path / "saved")
    frame = source.frame.set_index("image")
    with EmbeddedImages(source) as images:
        read = list(images.iterate(frame.index))
    assert expected == sorted(
        (frame["split"][ref], frame["label"][ref], content) for ref, content in read
    )
