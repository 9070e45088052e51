"""Records: exactly the table's usable rows, as they should be, made once, whole or not at all."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from logged import logged
from PIL import Image, ImageOps

from multitask.data import records, records_builder
from multitask.data.merging import load_table, merge_tables
from multitask.data.records import describe_table, prepare, table_fingerprint
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
from multitask.disk import DiskError
from multitask.spec import InputError, load_spec, override

TASKS = ("artist", "style", "genre")


def quiet(spec, data, *args, **options):
    return prepare(spec, data, *args, progress=False, **options)


def read_by_tfds(folder, split):
    """What someone without this package reads: a list of examples."""
    return list(tfds.builder_from_directory(folder).as_data_source(split))


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of each record file."""
    files = sorted(folder.glob("*.array_record*"))
    assert files
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Records of `tiny_data` and `tiny_spec`, made by the first test that needs them."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def there(tiny_data, tiny_spec, shelf):
    """(spec, folder) of a data set whose records are there."""
    spec, data = tiny_spec(), tiny_data()
    kept = shelf / "whole"
    if not kept.is_dir():
        quiet(spec, data, kept)
    shutil.copytree(kept, data / "records")
    return spec, data


@pytest.fixture
def parts(tiny_data, tiny_spec, shelf, monkeypatch):
    """The records of the same data in shards of 5 images."""
    monkeypatch.setattr(records_builder, "SHARD_IMAGES", 5)
    return quiet(tiny_spec(), tiny_data(folder="parts"), shelf / "parts")


# === What they hold ===


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


# === Reading ===


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


# === What makes new ones, and what does not ===

SAME = {
    "batch_size": 7,
    "trunk.name": "efficientnetb0",
    "phases.heads.epochs": 3,
    "max_missing": 0.5,
    "freeze_depth": "all",
    "early_stopping.patience": 2,
    "resize": "crop",
    "title": "another",
}
NEW = {
    "image_size": 48,
    "records.margin": 1.5,
    "records.quality": 80,
    "validation": 0.4,
    "task.subset": 0.75,
    "seed": 1,
}


def test_which_fields_make_new_records(tiny_data, tiny_spec):
    rows = [(f"Dots/{i:02}.jpg", i % 2) for i in range(24)]
    spec, data = tiny_spec(tasks=("style",)), tiny_data(rows={"style_train": rows})
    spec = override(spec, {"task.subset": 0.5})  # by the seed, and one split is made in less time
    first = quiet(spec, data)
    assert first.fresh
    for field, value in (SAME | NEW).items():
        second = quiet(override(spec, {field: value}), data)
        assert second.fresh is (field in NEW), field
        assert (second.folder == first.folder) is (field in SAME)
    again = quiet(spec, data)
    assert (again.fresh, again.folder) == (False, first.folder)  # all of them are there now


def test_fewer_tasks_make_new_records(there, tiny_spec):
    _, data = there
    assert not quiet(tiny_spec(), data).fresh
    assert quiet(tiny_spec(tasks=("style", "genre")), data).fresh
    assert not quiet(tiny_spec(), data).fresh


def test_which_changes_of_the_data_make_new_records(there, write_image):
    spec, data = there
    csv = data / "wikiart_csv/style_train.csv"
    text = csv.read_text()

    csv.write_text(text.replace('"', "").replace("\n", "\r\n") + "\r\n")  # says the same
    assert not quiet(spec, data).fresh
    lines = text.splitlines()
    csv.write_text("\n".join(reversed(lines)) + "\n")
    assert not quiet(spec, data).fresh

    csv.write_text(text.replace('train-00.jpg",0', 'train-00.jpg",2'))
    assert quiet(spec, data).fresh
    csv.write_text(text)
    assert not quiet(spec, data).fresh

    names = (data / "wikiart_csv/style_class.txt").read_text()
    (data / "wikiart_csv/style_class.txt").write_text(names.replace("Waves", "Ripples"))
    assert quiet(spec, data).fresh
    (data / "wikiart_csv/style_class.txt").write_text(names)

    image = data / "wikiart" / lines[0].split('"')[1]
    old = image.read_bytes()
    write_image(image, width=90, height=80, seed=99)
    changed = quiet(spec, data)
    assert changed.fresh
    assert read_by_tfds(changed.folder, TRAIN)[0]["image"].shape == (37, 42, 3)
    os.utime(image)  # only touched
    assert not quiet(spec, data).fresh
    image.write_bytes(old)

    write_image(data / "wikiart/Dots/new.jpg")
    assert not quiet(spec, data).fresh  # a file that no CSV names
    csv.write_text(text + "Dots/new.jpg,0\n")
    assert "Dots/new.jpg" in quiet(spec, data).builder.paths(TRAIN)


def test_the_test_set_is_part_of_the_fingerprint(there):
    """excluded.csv lists the unreadable images of the test set."""
    spec, data = there
    first = quiet(spec, data)
    csv = data / "wikiart_csv/style_val.csv"
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:-1]))
    assert quiet(spec, data).fingerprint != first.fingerprint


def test_paths_cannot_be_confused_with_each_other(tiny_data, tiny_spec):
    """The fingerprint knows where a path ends and which split it is in."""
    spec = tiny_spec(tasks=("style",))
    fingerprints = set()
    for rows in ([("a", 0), ("b", 0)], [("ab", 0), ("c", 0)], [("a", 0), ("b", 1)]):
        data = tiny_data(rows={"style_train": rows}, only=True, images=False, folder=str(rows))
        table = merge_tables(spec, data)
        fingerprints.add(table_fingerprint(spec, table, table, np.zeros(len(table), np.int64)))
    assert len(fingerprints) == 3


# === Whole or not at all ===


def test_an_interrupted_preparation_leaves_nothing_and_the_next_is_whole(there, monkeypatch):
    spec, data = there
    want = content(quiet(spec, data).folder)
    shutil.rmtree(data / "records")

    def interrupted(self, index, *image):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records_builder.RecordShard, "_encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quiet(spec, data)
    assert not [name for name in tree(data / "records") if "array_record" in name]
    prepared = quiet(spec, data)
    assert prepared.fresh
    assert content(prepared.folder) == want


SLOWLY = """
import logging, sys, time
from pathlib import Path
from multitask.data import records, records_builder
from multitask.spec import load_spec
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("multitask").setLevel(logging.INFO)
encode, gate = records_builder.RecordShard.__call__, Path(sys.argv[3])
def slowly(self):
    for example in encode(self):
        print("one", flush=True)
        while not gate.exists():
            time.sleep(0.05)
        yield example
records_builder.RecordShard.__call__ = slowly
prepared = records.prepare(
    load_spec(sys.argv[1]), Path(sys.argv[2]), progress=False
)
print("fresh" if prepared.fresh else "there", prepared.folder, flush=True)
"""


@pytest.fixture
def spec_file(tmp_path):
    """A spec of the one task style of `tiny_data`, as a file for another process."""
    text = """
        name = "tiny"
        image_size = 32
        validation = 0.0
        [trunk]
        weights = "none"
        schedule = { kind = "constant", rate = 1e-3 }
        [[task]]
        name = "style"
        train = "wikiart_csv/style_train.csv"
        test = "wikiart_csv/style_val.csv"
        classes = "wikiart_csv/style_class.txt"
        head = { kind = "linear" }
        loss = { kind = "cross_entropy" }
        schedule = { kind = "constant", rate = 1e-3 }
    """
    file = tmp_path / "tiny.toml"
    file.write_text(textwrap.dedent(text))
    return file


OFFLINE = """
import sys
requests = []
sys.addaudithook(
    lambda event, args: requests.append((event, args))
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
    else None
)
from pathlib import Path
import tensorflow as tf
for name in ("exists", "isdir", "listdir", "glob", "stat", "copy", "makedirs", "GFile"):
    def watched(*args, _call=getattr(tf.io.gfile, name), **options):
        requests.extend(("gfile", a) for a in args if "://" in str(a))
        return _call(*args, **options)
    setattr(tf.io.gfile, name, watched)
from multitask.data.records import prepare
from multitask.spec import load_spec
spec, data = load_spec(sys.argv[1]), Path(sys.argv[4])
for fresh in (True, False):
    prepared = prepare(spec, data, progress=False)
    assert prepared.fresh is fresh
    positions = tf.data.Dataset.range(12)
    assert len(list(prepared.reader("train")(positions))) == 12
print("requests", requests, flush=True)
"""


def start_slowly(spec_file, data, gate, *, before="", arguments=()):
    """A process that prepares one image and continues when the file `gate` exists.

    Args:
        spec_file: what is prepared.
        data: the data folder.
        gate: the file.
        before: Python that runs first.
        arguments: further ones of that.
    """
    return subprocess.Popen(
        [
            *(sys.executable, "-c", before + SLOWLY),
            *map(str, (spec_file, data, gate, *arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def until(process, start):
    """The first line of its output that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(process.stderr.read())


@pytest.fixture
def elsewhere(tiny_data, spec_file, shelf):
    """(the requests that a process printed, the folder of records during which it was killed)."""
    printed, data = shelf / "printed.txt", shelf / "killed"
    if not printed.is_file():
        whole = tiny_data(folder=shelf / "offline")
        never = tiny_data(folder=data) / "never"
        with start_slowly(spec_file, data, never, before=OFFLINE, arguments=[whole]) as process:
            requests = until(process, "requests")
            assert until(process, "one")
            process.send_signal(signal.SIGKILL)
        printed.write_text(requests)
    return printed.read_text(), data


def test_records_of_a_killed_process_are_not_used_and_the_next_starts_over(elsewhere, spec_file):
    _, data = elsewhere
    assert [name for name in tree(data / "records") if "incomplete" in name]
    prepared = quiet(load_spec(str(spec_file)), data)
    assert prepared.fresh
    assert len(read_by_tfds(prepared.folder, TRAIN)) == 12
    assert not [name for name in tree(data / "records") if "incomplete" in name]


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_the_other_waits(tiny_data, spec_file):
    data = tiny_data()
    first = start_slowly(spec_file, data, data / "gate")
    assert until(first, "one")
    second = start_slowly(spec_file, data, data / "gate")
    assert until(second, "Another process is preparing these records")
    (data / "gate").touch()
    message = [process.communicate(timeout=120)[0].splitlines() for process in (first, second)]
    assert message[0][-1].startswith("fresh ")
    assert message[1] == [message[0][-1].replace("fresh ", "there ")]


@pytest.mark.parametrize("harm", ["remove", "shorten", "forget"])
def test_records_that_are_not_whole_are_made_again(there, harm):
    spec, data = there
    prepared = quiet(spec, data)
    want = content(prepared.folder)
    file = next(prepared.folder.glob("*.array_record*"))
    if harm == "remove":
        file.unlink()
    elif harm == "shorten":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        (prepared.folder / "excluded.csv").unlink()
    again = quiet(spec, data)
    assert again.fresh
    assert content(again.folder) == want


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "*.array_record*"])
def test_a_named_pipe_among_the_records_is_refused(there, name):
    """TFDS would wait for it without end, so the test runs in a thread that it can leave."""
    spec, data = there
    file = next(quiet(spec, data).folder.glob(name))
    file.unlink()
    os.mkfifo(file)
    errors = []

    def attempt():
        with pytest.raises(InputError) as caught:
            quiet(spec, data)
        errors.append(str(caught.value))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    reason = "it is a named pipe (FIFO), not a regular file"
    remedy = "remove its folder, and the records are prepared again"
    assert errors == [f"{file}: cannot be read: {reason}; {remedy}"]


def test_records_of_an_older_version_are_named(tiny_data, tiny_spec):
    spec, data = tiny_spec(), tiny_data()
    older = data / "records/multitask/tiny-0123456789ab"
    (older / "1.0.0").mkdir(parents=True)
    (data / "records/multitask/other-0123456789ab/1.0.0").mkdir(parents=True)
    with logged() as lines:
        assert quiet(spec, data).fresh
    (line,) = [line for line in lines if "older version" in line]
    assert line.startswith("Not used: 1 folder of records")
    assert str(older) in line


def test_tfds_has_the_private_methods_that_the_builder_overrides():
    """Another name in TFDS would silently write other records."""
    base = tfds.core.ShardBasedBuilder
    for name in (
        "_create_builder_config",
        "_download_and_prepare",
        "_example_writer",
        "_info",
        "_log_download_bytes",
        "_log_download_done",
        "_shard_iterators_per_split",
    ):
        assert callable(getattr(base, name)), name


# === No network ===


def test_nothing_uses_the_network(elsewhere):
    requests, _ = elsewhere
    assert requests.strip() == "requests []"


# === The real data ===


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


# === Beam ===


@pytest.mark.parametrize(
    ("workers", "mode"),
    [(1, "in_memory"), pytest.param(2, "multi_processing", marks=pytest.mark.slow)],
)
def test_beam_makes_the_very_same_records(tiny_data, tiny_spec, monkeypatch, workers, mode):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(records_builder, "SHARD_IMAGES", 5)
    rows = [(f"Dots/{i:02}.jpg", i % 2) for i in range(21)]
    spec = tiny_spec(validation=0.25)
    data = tiny_data(rows={"style_train": rows, "genre_train": rows[::2], "artist_train": rows})
    (data / "wikiart/Dots/07.jpg").write_text("no image")
    spec = override(spec, {"max_missing": 0.1})
    here = quiet(spec, data, data / "here")
    beam = quiet(
        spec,
        data,
        data / "beam",
        beam_runner="DirectRunner",
        beam_options=[f"direct_num_workers={workers}", f"direct_running_mode={mode}"],
    )
    assert beam.fresh
    assert beam.fingerprint == here.fingerprint
    assert len(content(here.folder)) > 4
    assert content(beam.folder) == content(here.folder)
    assert beam.table.excluded == here.table.excluded != {}


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("DirektRunner", [], "beam_runner: 'DirektRunner'"),
        (None, ["a=1"], "beam_options: needs `beam_runner`"),
    ],
)
def test_wrong_beam_flags(tiny_data, tiny_spec, runner, options, message):
    data = tiny_data()
    before = tree(data)
    with pytest.raises(InputError, match=message):
        quiet(tiny_spec(), data, beam_runner=runner, beam_options=options)
    assert tree(data) == before


# === Refusals ===


def test_too_many_missing_are_refused_before_any_work(tiny_data, tiny_spec):
    data = tiny_data()
    for name in ("Dots/someone_train-00.jpg", "Dots/someone_val-00.jpg"):
        (data / "wikiart" / name).unlink()
    before = tree(data)
    with pytest.raises(InputError, match=r"2 of 16 images \(12.500%\) are missing.*first: Dots/"):
        quiet(tiny_spec(max_missing=0.12), data)
    assert tree(data) == before
    assert quiet(tiny_spec(max_missing=0.125), data).fresh


def test_too_many_unreadable_are_refused_and_the_work_is_kept(tiny_data, tiny_spec):
    data = tiny_data()
    (data / "wikiart/Dots/someone_train-00.jpg").write_text("no image")
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 of 16 images.*not a JPEG, PNG or WebP image"):
            quiet(tiny_spec(), data)
    allowed = quiet(tiny_spec(max_missing=0.1), data)
    assert not allowed.fresh
    assert len(allowed.table.rows(TRAIN)) == 11


def test_no_readable_image_at_all(tiny_data, tiny_spec):
    data = tiny_data()
    for file in (data / "wikiart").glob("*/*train*.jpg"):
        file.write_text("no image")
    with pytest.raises(InputError, match="no training image can be read"):
        quiet(tiny_spec(max_missing=0.9), data)


def test_a_records_dir_that_cannot_be_created(tiny_data, tiny_spec):
    data = tiny_data()
    (data / "file").write_text("")
    for folder in (data / "file", data / "file/below"):
        with pytest.raises(InputError, match=r"^records_dir: .*cannot be written to"):
            quiet(tiny_spec(), data, folder)


def test_too_little_space_is_an_error_before_the_work(tiny_data, tiny_spec, monkeypatch):
    data = tiny_data()
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskError, match=r"for 12 images, 10 bytes free.* `records_dir`") as caught:
        quiet(tiny_spec(), data)
    assert str(caught.value).startswith(f"{data / 'records/multitask'}: no room on the disk (")
    assert not [name for name in tree(data) if "array_record" in name]


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
