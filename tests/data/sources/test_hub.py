"""Data sets of the Hub on disk, as `datasets` writes them: Parquet and Arrow files."""

import json

import pyarrow as pa
import pytest
from hub_files import (
    FEATURES,
    IMAGE,
    STYLES,
    check,
    image_bytes,
    save,
    style_of,
    table,
    write_arrow,
    write_parquet,
)

from multitask.data.sources import EmbeddedImages, open_source
from multitask.errors import InputError


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (
            ["data/test-00000-of-00001", "data/train-00000-of-00002", "data/train-00001-of-00002"],
            ["test", "train", "train"],
        ),
        (["test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
         ["test", "train", "train"]),
        (["test", "train", "validation"], ["test", "train", "validation"]),
        (["test/0000", "train/0000", "train/0001"], ["test", "train", "train"]),
        (["default/test/0000", "default/train/0000", "default/train/0001"],
         ["test", "train", "train"]),
        (["data/y2019-00000-of-00001", "data/y2020-00000-of-00002", "data/y2020-00001-of-00002"],
         ["y2019", "y2020", "y2020"]),
        (["my-test-set-Valid-00000-of-00001", "x_dev", "y_eval"], ["Valid", "dev", "eval"]),
        (["a", "b", "c"], None),
    ],
)  # fmt: skip
def test_parquet_shards_and_their_splits(tmp_path, names, split):
    for number, name in enumerate(names):
        write_parquet(tmp_path / f"{name}.parquet", table(5 * number, 5))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train.parquet").write_bytes(b"")
    (tmp_path / "README.md").write_text("# A data set")
    source = open_source(tmp_path)
    check(source, range(15), split and [name for name in split for _ in range(5)])
    assert source.frame["image"].iloc[6] == f"{names[1]}.parquet#00000001"
    assert source.rows.iloc[6] == f"row 1 of {names[1]}.parquet"
    assert source.shards == tuple(f"{name}.parquet" for name in names)
    assert source.notes[0] == "3 parquet files, 15 rows"


def test_one_file_of_a_data_set(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", table(0, 5))
    source = open_source(tmp_path / "train-00000-of-00002.parquet")
    assert (source.kind, source.split) == ("table", None)
    assert source.frame["style"].tolist() == [style_of(i) for i in range(5)]
    assert source.class_names == {"style": STYLES}
    assert EmbeddedImages(source).read(source.frame["image"].iloc[3]) == image_bytes(3)


def test_links_to_files_as_in_the_hubs_cache(tmp_path):
    write_parquet(tmp_path / "blobs" / "0a1b", table(0, 5))
    snapshot = tmp_path / "snapshots" / "c0ffee"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-00000-of-00001.parquet").symlink_to("../../../blobs/0a1b")
    check(open_source(snapshot), range(5), ["train"] * 5)


def test_a_column_of_splits_keeps_its_name(tmp_path):
    rows = table(0, 5).append_column("split", [["a"] * 5])
    write_parquet(tmp_path / "train.parquet", rows)
    source = open_source(tmp_path)
    assert source.split == "split_"
    assert source.frame["split"].tolist() == ["a"] * 5
    assert source.frame["split_"].tolist() == ["train"] * 5


def test_lists_of_classes(tmp_path):
    inner = {"names": list(STYLES), "_type": "ClassLabel"}
    for feature in ({"feature": inner, "_type": "List"}, {"feature": inner, "_type": "Sequence"},
                    [inner]):  # fmt: skip
        rows = table(0, 3, features=FEATURES | {"styles": feature})
        rows = rows.append_column("styles", pa.array([[0, 2], [], None], pa.list_(pa.int64())))
        write_parquet(tmp_path / "train.parquet", rows)
        source = open_source(tmp_path)
        assert source.frame["styles"].tolist() == [["Cubism", "naïve, art"], [], None]
        assert source.class_names["styles"] == STYLES


def test_classes_in_the_file_next_to_the_shards(tmp_path):
    write_parquet(tmp_path / "train.parquet", table(0, 5, features=None))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    check(open_source(tmp_path), range(5), ["train"] * 5)


def test_other_binary_columns_are_not_images_if_one_is_declared(tmp_path):
    rows = table(0, 4).append_column("thumbnail", [[b"t"] * 4])
    write_parquet(tmp_path / "train.parquet", rows)
    source = open_source(tmp_path)
    assert source.image == "image"
    assert "thumbnail" not in source.frame
    assert "skipped columns, which hold no plain values: thumbnail" in source.notes


def test_shards_with_paths_of_images(tmp_path):
    rows = table(0, 4).drop(["image"]).append_column("file", [[f"i/{i}.png" for i in range(4)]])
    write_parquet(tmp_path / "data" / "train.parquet", rows)
    source = open_source(tmp_path)
    assert (source.kind, source.image, source.embedded) == ("hub", "file", False)
    assert source.images == tmp_path
    assert source.frame["split"].tolist() == ["train"] * 4


def test_a_saved_data_set(tmp_path):
    save(tmp_path, table(0, 6, features=None), files=2)
    check(open_source(tmp_path), range(6), ["train"] * 6)
    save(tmp_path, table(0, 6), files=2, split=None)
    check(open_source(tmp_path), range(6), None)


def test_a_saved_dict_of_data_sets(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save(tmp_path / "train", table(0, 6), files=2)
    save(tmp_path / "test", table(6, 4), split="test")
    source = open_source(tmp_path)
    check(source, range(10), ["train"] * 6 + ["test"] * 4)
    assert source.frame["image"].iloc[9] == "test/data-00000-of-00001.arrow#00000003"


def test_the_librarys_cache(tmp_path):
    write_arrow(tmp_path / "wiki-test.arrow", table(0, 3))
    write_arrow(tmp_path / "wiki-train-00000-of-00001.arrow", table(3, 3))
    (tmp_path / "cache-0123.arrow").write_bytes(b"")
    check(open_source(tmp_path), range(6), ["test"] * 3 + ["train"] * 3)


def test_an_arrow_file_by_itself(tmp_path):
    write_arrow(tmp_path / "t.feather", table(0, 5), as_file=True)
    source = open_source(tmp_path / "t.feather")
    assert source.frame["style"].tolist() == [style_of(i) for i in range(5)]
    assert EmbeddedImages(source).read("t.feather#00000004") == image_bytes(4)


def test_a_row_whose_struct_is_missing(tmp_path):
    values = pa.array(
        [{"bytes": b"a", "path": "a.png"}, None, {"bytes": b"c", "path": None}], IMAGE
    )
    for write, suffix in ((write_arrow, "arrow"), (write_parquet, "parquet")):
        write(tmp_path / f"t.{suffix}", pa.table({"image": values}))
        source = open_source(tmp_path / f"t.{suffix}")
        assert source.frame["image.path"].tolist() == ["a.png", None, None]
        assert "rows without image bytes: 1" in source.notes
        with EmbeddedImages(source) as images:
            assert images.read(source.frame["image"].iloc[2]) == b"c"
            with pytest.raises(InputError, match="row 1: column 'image' has no bytes"):
                images.read(source.frame["image"].iloc[1])
            assert [data for _, data in images.iterate(source.frame["image"])] == [b"a", b"c"]
