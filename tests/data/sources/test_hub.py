"""Data sets of the Hub on disk: written by pyarrow as `datasets` does, and by `datasets` itself."""

import io
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from multitask.data.sources import EmbeddedImages, open_source
from multitask.errors import InputError

STYLES = ("Cubism", "Ukiyo-e", "naïve, art")
FEATURES = {
    "image": {"_type": "Image"},
    "style": {"names": list(STYLES), "_type": "ClassLabel"},
    "title": {"dtype": "string", "_type": "Value"},
}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image_bytes(i):
    file = io.BytesIO()
    Image.new("RGB", (4 + i, 5), (i, 2 * i, 255 - i)).save(file, "PNG")
    return file.getvalue()


def table(first, count, *, features=FEATURES):
    """Rows first, first + 1, … with style = row % 4 - 1, which includes -1 (no style)."""
    rows = range(first, first + count)
    arrays = {
        "image": pa.array([{"bytes": image_bytes(i), "path": f"{i}.png"} for i in rows], IMAGE),
        "style": pa.array([i % 4 - 1 for i in rows], pa.int64()),
        "title": pa.array([f"Title {i}" if i % 2 else None for i in rows]),
    }
    result = pa.table(arrays)
    if features:
        text = json.dumps({"info": {"features": features}})
        result = result.replace_schema_metadata({"huggingface": text})
    return result


def style_of(i):
    return None if i % 4 == 0 else STYLES[i % 4 - 1]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=3)


def write_arrow(path, rows, *, as_file=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with new(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "").replace(str(place), ".")


def check(source, rows, splits):
    """Check that a source has these rows of `table`, in this order."""
    assert (source.kind, source.image, source.embedded) == ("hub", "image", True)
    assert source.class_names == {"style": STYLES}
    assert source.frame["style"].tolist() == [style_of(i) for i in rows]
    assert source.frame["title"].tolist() == [f"Title {i}" if i % 2 else None for i in rows]
    assert source.frame["image.path"].tolist() == [f"{i}.png" for i in rows]
    if splits is None:
        assert source.split is None
    else:
        assert source.frame[source.split].tolist() == splits
    assert len(source.rows) == len(source) == len(rows)
    references = source.frame["image"].tolist()
    with EmbeddedImages(source) as images:
        assert [images.read(reference) for reference in references] == [
            image_bytes(i) for i in rows
        ]
        mixed = list(np.random.default_rng(0).permutation(references))
        assert dict(images.iterate(mixed)) == {
            reference: image_bytes(i) for reference, i in zip(references, rows, strict=True)
        }
        assert [reference for reference, _ in images.iterate(mixed)] == references


# === Parquet ===


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


# === Arrow: what save_to_disk writes ===


def save(folder, rows, *, split="train", files=1, **state):
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(rows) // files
    names = [f"data-{i:05}-of-{files:05}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        write_arrow(folder / name, rows.slice(i * size, size))
    content = {"_data_files": [{"filename": name} for name in names], "_split": split} | state
    (folder / "state.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


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


# === Refusals ===


def test_a_shard_that_is_missing(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-00003.parquet", table(0, 3))
    write_parquet(tmp_path / "data" / "train-00000-of-00003.parquet", table(0, 3))
    assert refusal(tmp_path) == (".: the shard data/train-00002-of-00003.parquet is missing")


def test_shards_that_differ(tmp_path):
    write_parquet(tmp_path / "test.parquet", table(0, 3))
    write_parquet(tmp_path / "train.parquet", table(0, 3).drop(["title"]))
    assert refusal(tmp_path) == (
        'train.parquet: no column "title", which the first shard has; it has image, style'
    )
    other = FEATURES | {"style": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    write_parquet(tmp_path / "train.parquet", table(0, 3, features=other))
    assert refusal(tmp_path) == (
        "train.parquet: column 'style' has other classes than the first shard"
    )


def test_an_index_without_a_class(tmp_path):
    rows = table(0, 4)
    rows = rows.set_column(1, "style", [[0, 1, 3, 2]])
    write_parquet(tmp_path / "train.parquet", rows)
    assert refusal(tmp_path) == (
        "train.parquet: column 'style': row 2: class 3: expected -1 to 2, because the file names "
        "3 classes"
    )


def test_several_data_sets_in_one_folder(tmp_path):
    for name in ("artists/train", "styles/train", "styles/test"):
        write_parquet(tmp_path / f"{name}.parquet", table(0, 3))
    assert refusal(tmp_path) == (
        ".: shards of several data sets (artists, styles); give the folder of one of them"
    )
    check(open_source(tmp_path / "styles"), [*range(3), *range(3)], ["test"] * 3 + ["train"] * 3)


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


def test_partitions_of_several_kinds_are_refused(tmp_path):
    for name in ("style=a/x", "maker=b/style=c/x"):
        write_parquet(tmp_path / f"{name}.parquet", table(0, 3))
    assert refusal(tmp_path) == (
        ".: the folders of style=a/x.parquet name the columns style, those of "
        "maker=b/style=c/x.parquet maker, style"
    )


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_shards(tmp_path, suffix):
    place = tmp_path / f"train.{suffix}"
    (write_parquet if suffix == "parquet" else write_arrow)(place, table(0, 9))
    data = place.read_bytes()
    name = suffix.capitalize()
    for cut in (data[: len(data) // 2], data[:3], b"", b"x" * 100, b"\0" * 100):
        place.write_bytes(cut)
        assert refusal(tmp_path).startswith(f"train.{suffix}: not a readable {name} file: ")
    place.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "run `git lfs pull` first" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("state.json", "{", "state.json: not JSON: Expecting property name"),
        ("state.json", "[]", "state.json: expected a JSON object"),
        ("state.json", "{}", "state.json: no list of files (_data_files)"),
        (
            "state.json",
            '{"_data_files": [{"filename": "../x.arrow"}]}',
            "state.json: '../x.arrow': paths with `..` are refused",
        ),
        (
            "state.json",
            '{"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}',
            "state.json: it stores a selection of rows as indices; apply flatten_indices() of the "
            "library datasets and save it again",
        ),
        ("state.json", '{"_data_files": []}', ".: no rows"),
        (
            "state.json",
            '{"_data_files": [{"filename": "gone.arrow"}]}',
            "gone.arrow: no such file.",
        ),
        ("dataset_info.json", "{", "dataset_info.json: not JSON: Expecting property name"),
        ("dataset_dict.json", "{}", "dataset_dict.json: splits: expected a list of names"),
        (
            "dataset_dict.json",
            '{"splits": ["train"]}',
            "dataset_dict.json: names the split 'train', which has no state.json",
        ),
        (
            "dataset_dict.json",
            '{"splits": [".."]}',
            "dataset_dict.json: names the split '..', which has no state.json",
        ),
    ],
)
def test_damaged_saved_data_sets(tmp_path, file, text, line):
    save(tmp_path, table(0, 3))
    (tmp_path / file).write_text(text)
    assert refusal(tmp_path).startswith(line)


def test_wrong_offsets_in_an_arrow_file_do_not_end_the_process(tmp_path):
    """Arrow trusts them unless it is told to check."""
    right, wrong = (np.array([0, 3, end], "<i4").tobytes() for end in (6, 2**30))
    path = tmp_path / "t.arrow"
    write_arrow(path, pa.table({"image": [b"x"] * 2, "style": ["abc", "def"]}))
    assert path.read_bytes().count(right) == 1
    path.write_bytes(path.read_bytes().replace(right, wrong))
    with pytest.raises(InputError, match=r"t\.arrow: not a readable Arrow file: .*[Oo]ffset"):
        open_source(path)


# === Files of the library itself ===


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
