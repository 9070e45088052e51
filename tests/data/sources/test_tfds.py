"""Folders that TFDS wrote, in both of its formats."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multitask.data.sources import EmbeddedImages, open_source
from multitask.errors import InputError

STYLES = ["Cubism", "Ukiyo-e", "naïve art"]
FORMATS = ("tfrecord", "array_record")
ROWS = {"train": range(7), "test": range(7, 10)}


def image_bytes(i):
    file = io.BytesIO()
    Image.new("RGB", (4 + i, 5), (i, 2 * i, 255 - i)).save(file, "PNG")
    return file.getvalue()


def prepare(root, file_format, *, name="paintings", two=False, images=True):
    """Write a data set with TFDS; return its folder."""
    import tensorflow_datasets as tfds

    features = {
        "style": tfds.features.ClassLabel(names=STYLES),
        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["p", "q"])),
        "title": tfds.features.Text(),
        "year": np.int64,
        "scale": np.float32,
        "signed": np.bool_,
        "box": tfds.features.BBoxFeature(),
        "grid": tfds.features.Tensor(shape=(2, 2), dtype=np.int64),
        "place": {"town": tfds.features.Text()},
    }
    if images:
        features["image"] = tfds.features.Image()
    if two:
        features["back"] = tfds.features.Image()

    def example(i):
        values = {
            "style": i % 4 - 1,
            "tags": [0, 1][: i % 3],
            "title": f"Title é{i}",
            "year": 1800 + i,
            "scale": i / 2,
            "signed": i % 2 == 1,
            "box": tfds.features.BBox(0.0, 0.0, 1.0, 0.5),
            "grid": [[1, 2], [3, 4]],
            "place": {"town": f"T{i}"},
        }
        if images:
            values["image"] = io.BytesIO(image_bytes(i))
        if two:
            values["back"] = io.BytesIO(image_bytes(i + 100))
        return values

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        pkg_dir_path = root

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in ROWS.items()}

        def _generate_examples(self, rows):
            for i in rows:
                yield i, example(i)

    Written.name = name
    builder = Written(data_dir=root, file_format=file_format)
    builder.download_and_prepare()
    return root / name / "1.2.0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """File format -> the folder of a data set in it."""
    return {name: prepare(tmp_path_factory.mktemp("tfds"), name) for name in FORMATS}


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, folders):
    return folders[request.param]


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    text = str(caught.value)
    return text.replace(f"{place}/", "").replace(f"{place}: ", ".: ").replace(f" {place} ", " . ")


def test_every_feature_is_a_column(folder):
    source = open_source(folder)
    assert (source.kind, source.image, source.embedded) == ("tfds", "image", True)
    assert source.split == "split"
    assert source.class_names == {"style": tuple(STYLES), "tags": ("p", "q")}
    frame = source.frame.sort_values("year", ignore_index=True)
    rows = range(10)
    assert frame["year"].tolist() == [1800 + i for i in rows]
    assert frame["split"].tolist() == ["train"] * 7 + ["test"] * 3
    assert frame["style"].tolist() == [None if i % 4 == 0 else STYLES[i % 4 - 1] for i in rows]
    assert frame["tags"].tolist() == [["p", "q"][: i % 3] for i in rows]
    assert frame["title"].tolist() == [f"Title é{i}" for i in rows]
    assert frame["scale"].tolist() == [i / 2 for i in rows]
    assert frame["signed"].tolist() == [i % 2 == 1 for i in rows]
    assert frame["box"].tolist() == [[0.0, 0.0, 1.0, 0.5]] * 10
    assert frame["place/town"].tolist() == [f"T{i}" for i in rows]
    assert "grid" not in frame
    assert source.notes == (
        "TFDS paintings/1.2.0, 10 rows, splits train, test",
        "skipped features, which hold no plain values: grid",
    )


def test_the_bytes_are_those_that_were_written(folder):
    source = open_source(folder)
    year = dict(zip(source.frame["image"], source.frame["year"], strict=True))
    with EmbeddedImages(source) as images:
        for reference in np.random.default_rng(0).permutation(list(year)):
            assert images.read(reference) == image_bytes(year[reference] - 1800)
        assert [ref for ref, _ in images.iterate(list(year)[::-1])] == list(year)
        assert dict(images.iterate(list(year))) == {
            reference: image_bytes(value - 1800) for reference, value in year.items()
        }
        with pytest.raises(InputError, match="no row 99; it has 7 rows"):
            images.read(f"{source.shards[0]}#99")


def test_by_name(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder.parent.parent))
    for name in ("tfds:paintings", "tfds:paintings:1.2.0"):
        source = open_source(Path(name))
        assert source.place == folder
        assert len(source) == 10
    assert open_source(folder.parent).place == folder
    assert refusal(Path("tfds:painting")) == (
        f'.: not prepared in {folder.parent.parent}. Did you mean "paintings"? Prepare it with '
        "TFDS, or set TFDS_DATA_DIR; nothing is downloaded"
    )
    assert refusal(Path("tfds:paintings:9.9.9")).startswith(".: not prepared in ")
    for name in ("tfds:", "tfds:../x", "tfds:a/b/c"):
        assert "expected tfds:NAME, tfds:NAME/CONFIG or …:1.0.0" in refusal(Path(name))


def test_the_newest_version_and_several_configurations(tmp_path):
    from multitask.data.sources.tfds_folders import newest, prepared_folders

    for name in ("1.9.0", "1.10.0", "1.10.0.incomplete77", "2.0.0"):
        (tmp_path / "a" / name).mkdir(parents=True)
        if name != "2.0.0":
            (tmp_path / "a" / name / "features.json").write_text("{}")
            (tmp_path / "a" / name / "dataset_info.json").write_text("{}")
    folders = prepared_folders(tmp_path)
    assert [path.name for path in folders] == ["1.10.0", "1.9.0"]
    assert newest(folders, "x").name == "1.10.0"
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "1.9.0").rename(tmp_path / "b" / "1.9.0")
    assert refusal(tmp_path) == ".: several configurations (a, b); name one"


def test_images_must_be_one_feature(tmp_path):
    two = prepare(tmp_path, "array_record", name="two", two=True)
    assert refusal(two) == (
        "image_column: .: several features are images (back, image); choose one"
    )
    assert refusal(two, image_column="bak").startswith('image_column: .: no image feature "bak".')
    source = open_source(two, image_column="back")
    years = source.frame["year"].tolist()
    with EmbeddedImages(source) as images:
        assert images.read(source.frame["back"].iloc[0]) == image_bytes(years[0] - 1700)
    none = prepare(tmp_path, "array_record", name="none", images=False)
    assert refusal(none) == ".: no feature is an image"


def test_damaged_folders(tmp_path):
    folder = prepare(tmp_path, "tfrecord")
    shard = next(folder.glob("*train*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-30])
    assert refusal(folder) == (
        f"{shard.name}: damaged: cut off at byte {len(data) - 30:,}, or not TFRecord"
    )
    first = 12 + int.from_bytes(data[:8], "little") + 4
    shard.write_bytes(data[first:])
    assert refusal(folder) == (
        f"{shard.name}: 6 records; dataset_info.json says 7. The file is incomplete or from "
        "another version"
    )
    shard.write_bytes(data[:12] + b"\xff" * (first - 12) + data[first:])
    assert refusal(folder).startswith(f"{shard.name}: row 0: damaged: ")
    shard.unlink()
    assert refusal(folder).startswith(f"{shard.name}: no such file.")
    (folder / "features.json").write_text("{")
    assert refusal(folder).startswith("features.json: not JSON: ")
    (folder / "features.json").write_text("{}")
    assert refusal(folder).startswith(".: not a readable TFDS folder: ")


def test_a_damaged_array_record(tmp_path):
    folder = prepare(tmp_path, "array_record")
    shard = next(folder.glob("*train*array_record*"))
    shard.write_bytes(b"x" * 100)
    assert refusal(folder).startswith(f"{shard.name}: not a readable ArrayRecord: ")


def test_it_needs_no_tensorflow(folders):
    """TFDS reads its own descriptions without it."""
    code = (
        "import sys, pathlib; from multitask.data.sources import open_source\n"
        "for folder in sys.argv[1:]:\n"
        "    print(len(open_source(pathlib.Path(folder))), 'tensorflow' in sys.modules)\n"
    )
    argv = [sys.executable, "-c", code, *map(str, folders.values())]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "10 False\n" * len(FORMATS)


def test_no_options_that_have_no_meaning(folder, tmp_path):
    assert refusal(folder, images=tmp_path) == ("images: the images of . are inside its files")
    with pytest.raises(InputError, match="levels: only class folders have levels"):
        open_source(Path("tfds:paintings"), levels=["x"])


def test_pipes_are_not_waited_for(tmp_path):
    folder = prepare(tmp_path, "tfrecord")
    (folder / "style.labels.txt").unlink()
    os.mkfifo(folder / "style.labels.txt")
    assert refusal(folder) == ".: cannot be read: it is a named pipe (FIFO), not a regular file"


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_no_module_is_imported_because_a_folder_names_it(tmp_path, monkeypatch, key):
    folder = prepare(tmp_path, "tfrecord")
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    change(folder / "dataset_info.json", '"moduleName": "', '"moduleName": "evil_module.')
    assert len(open_source(folder)) == 10
    old = '"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"'
    change(folder / "features.json", old, f'"{key}": "evil_module.Text"')
    assert refusal(folder) == (
        "features.json: the feature class 'evil_module.Text' is not part of TFDS and is not "
        "supported"
    )


def test_a_feature_may_be_called_type(tmp_path):
    folder = prepare(tmp_path, "tfrecord")
    change(folder / "features.json", '"title": {', '"type": {')
    source = open_source(folder)  # the records still have the old name
    assert source.frame["type"].tolist() == [None] * 10


@pytest.mark.parametrize("name", ["../x", "/etc/passwd"])
def test_shards_are_looked_for_in_the_folder_alone(tmp_path, name):
    folder = prepare(tmp_path, "tfrecord")
    change(folder / "dataset_info.json", "{DATASET}-{SPLIT}.", f"{name}-{{DATASET}}-{{SPLIT}}.")
    shard = f"{Path(name).name}-paintings-train.tfrecord-00000-of-00001"
    assert refusal(folder).startswith(f"{shard}: no such file.")
