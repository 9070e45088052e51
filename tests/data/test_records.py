"""Records: exactly the usable rows of the table, and their images as they should be."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image, ImageOps
from prepared import content, quiet, read_by_tfds

from multitask.data import records, records_builder
from multitask.data.merging import load_table, merge_tables
from multitask.data.records import describe_table
from multitask.data.records_builder import VERSION
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    NO_LABEL,
    NOT_SAMPLED,
    TEST,
    TRAIN,
    VALIDATION,
)
from multitask.spec import load_spec, override

TASKS = ("artist", "style", "genre")


@pytest.fixture
def flawed(tiny_data, tiny_spec, write_image):
    """(spec, folder): every reason for which an image is excluded, and each split."""
    rows = [(f"Dots/plain-{i:02}.jpg", i % 2) for i in range(40)]
    leaked = [("Lines/leaked.jpg", 0)]
    data = tiny_data(
        only=True,
        rows={
            "style_train": [
                *rows,
                ("Dots/missing.jpg", 1),
                ("Dots/broken.jpg", 0),
                ("Dots/joaquÃ\xadn's (1).jpg", 1),
                ("Dots/twice.jpg", 0),
                ("Dots/twice.jpg", 1),
            ],
            "genre_train": [*rows[::3], *leaked],
            "artist_train": rows[::5],
            "style_val": [*leaked, ("Lines/test set.jpg", 1), ("Lines/broken-test set.jpg", 0)],
        },
    )
    images = data / "wikiart"
    (images / "Dots/missing.jpg").unlink()
    (images / "Dots/broken.jpg").write_bytes((images / "Dots/plain-00.jpg").read_bytes()[:200])
    (images / "Lines/broken-test set.jpg").write_text("<html>")
    for task in TASKS:  # the rows that `only` adds
        for split in ("train", "val"):
            if f"{task}_{split}" not in ("style_train", "genre_train", "artist_train", "style_val"):
                write_image(images / f"other/{task}_{split}.jpg")
    # Two of the forty are left to the validation by a share of .05; half is sampled for the subset.
    return tiny_spec(validation=0.1, max_missing=0.1, of_tasks={"subset": 0.5}), data


def test_they_hold_exactly_the_usable_rows_and_every_other_has_its_reason(flawed):
    spec, data = flawed
    prepared = quiet(spec, data)
    merged = merge_tables(spec, data)
    held = {split: read_by_tfds(prepared.folder, split) for split in (TRAIN, VALIDATION)}
    paths = [example["path"].decode() for split in held for example in held[split]]
    assert len(paths) == len(set(paths))
    excluded = pd.read_csv(prepared.folder / "excluded.csv").set_index("path")["reason"].to_dict()
    test_set = {p for p, s in zip(merged.paths, merged.splits, strict=True) if s == TEST}
    # Nothing lost, nothing twice: each row of the CSVs is a record, an image of the test set, or
    # has a reason.
    assert set(paths) | (test_set - excluded.keys()) | excluded.keys() == set(merged.paths)
    assert not set(paths) & (test_set | excluded.keys())
    assert excluded.pop("Dots/missing.jpg") == MISSING_FILE
    assert "JPEG" in excluded.pop("Dots/broken.jpg")
    assert "HTML" in excluded.pop("Lines/broken-test set.jpg")
    assert excluded.pop("Dots/twice.jpg") == NO_LABEL
    assert excluded
    assert set(excluded.values()) == {NOT_SAMPLED}
    assert len(held[TRAIN]) + len(held[VALIDATION]) + len(excluded) == 41
    assert len(held[VALIDATION]) > 0

    # The same table comes out of the CSVs and excluded.csv alone.
    table = load_table(spec, data, excluded=prepared.table.excluded_frame())
    for split, examples in held.items():
        rows = table.rows(split)
        assert table.paths[rows].tolist() == [e["path"].decode() for e in examples]
        got = [[e["label"][task] for task in TASKS] for e in examples]
        np.testing.assert_array_equal(got, table.labels[rows])
    for name in ("paths", "labels", "splits"):
        np.testing.assert_array_equal(getattr(table, name), getattr(prepared.table, name))
    assert table.excluded == prepared.table.excluded


def test_labels_are_those_of_the_csvs(there):
    prepared = quiet(*there)
    got = {
        example["path"].decode(): [int(example["label"][task]) for task in TASKS]
        for example in read_by_tfds(prepared.folder, TRAIN)
    }
    kinds = ("Dots", "Lines", "Waves")
    want = {
        f"{kinds[i % 3]}/someone_train-{i:02}.jpg": [
            i % 2 if i < 6 else -1,
            i % 3,
            i % 2 if i < 9 else -1,
        ]
        for i in range(12)
    }
    assert got == want


@pytest.mark.parametrize(
    ("margin", "sizes"),
    [
        (
            1.15,  # of 32 px: 36.8
            {
                (400, 300): (49, 37),
                (300, 400): (37, 49),
                (30, 20): (30, 20),  # small ones stay as they are
                (37, 90): (37, 90),
            },
        ),
        (1.5, {(64, 64): (48, 48)}),
        (1.0, {(900, 40): (720, 32)}),
    ],
)
def test_images_are_upright_and_of_bounded_shorter_side(tiny_data, tiny_spec, margin, sizes):
    made = {
        f"Dots/{width}x{height}-{turn}.jpg": (width, height, turn)
        for width, height in sizes
        for turn in (1, 3, 6, 8)
    }
    data = tiny_data(rows={"style_train": [(path, 0) for path in made]})
    coarse = np.random.default_rng(1).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    for path, (width, height, turn) in made.items():
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = turn
        image.save(data / "wikiart" / path, quality=98, exif=exif)
    spec = tiny_spec(tasks=("style",), records={"margin": margin, "quality": 98})
    examples = read_by_tfds(quiet(spec, data).folder, TRAIN)
    assert len(examples) == len(made)
    for example in examples:
        path = example["path"].decode()
        width, height, turn = made[path]
        expected = sizes[width, height][:: -1 if turn > 4 else 1]
        assert example["image"].shape == (*expected[::-1], 3)
        upright = ImageOps.exif_transpose(Image.open(data / "wikiart" / path))
        # Pillow's own antialiased bilinear; the rest is JPEG's loss, mostly of colour's resolution.
        want = np.asarray(upright.resize(expected, Image.Resampling.BILINEAR), np.float32)
        assert np.abs(example["image"] - want).mean() < 4


def test_quality_is_that_of_jpeg(there, tiny_spec):
    """The quantisation tables are those that libjpeg writes for the quality."""
    _, data = there  # of quality 92
    for quality in (50, 92):
        prepared = quiet(tiny_spec(records={"quality": quality}), data)
        one = tf.data.Dataset.from_tensors(tf.constant(0, tf.int64))
        ((_, image),) = prepared.reader(TRAIN)(one).as_numpy_iterator()
        (file := data / "got.jpg").write_bytes(image)
        Image.new("RGB", (8, 8)).save(data / "want.jpg", quality=quality)
        got, want = Image.open(file), Image.open(data / "want.jpg")
        assert got.quantization == want.quantization


def test_metadata_state_what_they_were_made_from(there):
    prepared = quiet(*there)
    info = tfds.builder_from_directory(prepared.folder).info
    assert str(info.version) == VERSION == prepared.folder.name
    assert info.metadata["fingerprint"] == prepared.fingerprint
    assert info.metadata["spec"] == "tiny"
    assert (info.metadata["shorter_side_px"], info.metadata["jpeg_quality"]) == (37, 92)
    assert prepared.folder.parent.name == f"tiny-{prepared.fingerprint[:12]}"
    assert info.features["label"]["style"].names == ["Dots", "Lines", "Waves"]
    assert info.splits[TRAIN].num_examples == 12
    assert list(info.splits) == [
        TRAIN
    ]  # no validation split was requested, and the test set is not in the records


@pytest.mark.parametrize(
    ("indices", "parts"),
    [
        (range(7), [[0, 1, 2], [0, 1], [0, 1]]),
        ([0, 3, 6], [[0], [0], [1]]),  # the others cannot be read
        ([1, 2], [[1, 2], [], []]),
        ([5], [[], [], [0]]),
        ([], [[], [], []]),
    ],
)
def test_a_stream_is_divided_into_shards(indices, parts):
    stream = iter([(index, {"path": index}) for index in indices])
    shards = [list(read()) for read in records_builder.split_stream(stream, [0, 3, 5, 7])]
    assert [[index for index, _ in shard] for shard in shards] == parts
    assert [example["path"] for shard in shards for _, example in shard] == list(indices)


def test_many_shards_are_one_split(there, parts):
    whole = quiet(*there)
    assert len(content(whole.folder)) == 1
    assert len(content(parts.folder)) == 3
    assert parts.builder.paths(TRAIN) == whole.builder.paths(TRAIN)
    assert parts.builder.paths(TRAIN) == sorted(whole.table.paths[whole.table.rows(TRAIN)])


def test_near_duplicates_of_test_images_are_excluded(tiny_data, tiny_spec, write_image):
    data = tiny_data()
    test_set = data / "wikiart/Dots/someone_val-00.jpg"
    write_image(test_set, width=300, height=200, seed=77, cells=(24, 18))
    with Image.open(test_set) as image:
        for name, width in (("Lines/someone_train-01", 150), ("Dots/someone_train-03", 240)):
            smaller = image.resize((width, width * 2 // 3))
            smaller.save(data / f"wikiart/{name}.jpg", quality=70)
    plain = quiet(tiny_spec(), data)
    assert plain.near_duplicates is None
    spec = tiny_spec(exclude_near_duplicates=True)
    prepared = quiet(spec, data)
    gone = ["Dots/someone_train-03.jpg", "Lines/someone_train-01.jpg"]
    assert prepared.table.excluded == dict.fromkeys(gone, NEAR_DUPLICATE)
    assert not set(gone) & set(prepared.builder.paths(TRAIN))
    assert len(prepared.builder.paths(TRAIN)) == 10
    pairs = prepared.near_duplicates
    assert pairs[["first", "second"]].to_numpy().tolist() == [
        ["Dots/someone_train-03.jpg", "Dots/someone_val-00.jpg"],
        ["Dots/someone_train-03.jpg", "Lines/someone_train-01.jpg"],
        ["Dots/someone_val-00.jpg", "Lines/someone_train-01.jpg"],
    ]
    again = quiet(spec, data)
    assert (again.fresh, again.table.excluded) == (False, prepared.table.excluded)
    assert not quiet(tiny_spec(), data).fresh


def test_images_come_in_the_order_of_the_positions(parts, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 3)
    stored = [bytes(x) for x in parts.builder.read(TRAIN)]
    order = [7, 0, 11, 3, 3, 5, 1, 10]
    requested = tf.data.Dataset.from_tensor_slices(tf.constant(order, tf.int64))
    for _ in range(3):  # whichever thread is first
        got = list(parts.reader(TRAIN)(requested).as_numpy_iterator())
        assert [int(position) for position, _ in got] == order
        for position, image in got:
            assert image in stored[position]


def test_opening_leaves_no_temporary_files(tiny_data, tiny_spec, tmp_path, monkeypatch):
    data, spec, scratch = tiny_data(), tiny_spec(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    records_builder.RecordsBuilder(
        spec,
        load_table(spec, data),
        image_dir=data / "wikiart",
        fingerprint="0" * 12,
        records_dir=tmp_path / "records",
    )
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_the_real_images_are_all_there(tmp_path):
    """How many, by counting files and rows of the CSVs with pandas alone."""
    if not os.environ.get("WIKIART_DIR"):
        pytest.skip("WIKIART_DIR is not set: the folder with wikiart/ and wikiart_csv/ of ArtGAN")
    data = Path(os.environ["WIKIART_DIR"])
    spec = override(load_spec("wikiart"), {"max_missing": 0.99})
    prepared = quiet(spec, data, tmp_path)
    read = {
        split: pd.concat(
            pd.read_csv(data / f"wikiart_csv/{task}_{split}.csv", header=None)[0] for task in TASKS
        )
        for split in ("train", "val")
    }
    on_disk = {f"{p.parent.name}/{p.name}" for p in (data / "wikiart").glob("*/*.jpg")}
    wanted = (set(read["train"]) - set(read["val"])) & on_disk
    held = [path for split in (TRAIN, VALIDATION) for path in prepared.builder.paths(split)]
    assert sorted(held) == sorted(wanted)
    assert prepared.table.excluded.keys() == (set(read["train"]) | set(read["val"])) - on_disk
    assert set(prepared.table.excluded.values()) == {MISSING_FILE}


@pytest.mark.parametrize(("images", "few"), [(36, True), (240, False)])
def test_few_validation_images_are_noted(tiny_data, tiny_spec, half_labelled, images, few):
    """The best epoch is chosen by them; from 20 labels on there is no note."""
    root = tiny_data(rows=half_labelled(images), images=False)
    table = load_table(tiny_spec(validation=0.3), root)
    counts = {task: len(table.labels_of(task, VALIDATION)) for task in table.tasks}
    assert all(count > 0 for count in counts.values())
    assert any(count < 20 for count in counts.values()) == few
    lines = [line for line in describe_table(table) if "few validation images" in line]
    named = ", ".join(f"{task} {count}" for task, count in counts.items() if count < 20)
    expected_line = (
        f"  few validation images ({named}): the choice of the best epoch is partly chance"
    )
    assert lines == ([expected_line] if few else [])
    assert not [x for x in describe_table(load_table(tiny_spec(), root)) if "few test" in x]
