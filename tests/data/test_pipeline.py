"""Batches: every row once an epoch, the same batches for the same seed, weights of 0 and 1."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from multitask.annexes.mixing import build_mixing
from multitask.annexes.sampler import build_order
from multitask.data.decode import resize_image
from multitask.data.image_files import why_unreadable
from multitask.data.order import Shard, epoch_order
from multitask.data.pipeline import (
    evaluation_dataset,
    load_image,
    readable_images,
    steps_per_epoch,
    training_dataset,
)
from multitask.data.records import prepare
from multitask.data.table import TRAIN, VALIDATION
from multitask.spec import Augmentation

COUNT = 12  # training images; the style label of each is its number
STRONG = {"flip": True, "brightness": 0.3, "contrast": [0.5, 1.5], "crop": [0.5, 0.9]}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Records that a test has made, for the others with equal images and labels."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def numbered(tiny_data, tiny_spec, shelf):
    """A function: fields of the spec -> (prepared records, spec); the style is the image's number.

    Args:
        augment: policy of every task.
        augments: task -> policy, instead.
        count: how many images to train on.
        repaint: called with each image's file before the records are made.
    """

    def make(*, augment=None, augments=None, count=COUNT, repaint=None, **fields):
        paths = [f"Dots/{i:02}.jpg" for i in range(count)]
        data = tiny_data(
            classes={"style": tuple(f"image {i}" for i in range(COUNT))},
            rows={
                "style_train": [(path, i) for i, path in enumerate(paths)],
                "genre_train": [(path, i % 2) for i, path in enumerate(paths) if i % 3]
                or [("Dots/00.jpg", 1)],
                "artist_train": [(path, 1) for path in paths[:4]],
            },
        )
        spec = tiny_spec(of_tasks={"augment": augment or {}}, **fields)
        tasks = [
            task.model_copy(update={"augment": (augments or {}).get(task.name, task.augment)})
            for task in spec.tasks
        ]
        spec = spec.model_copy(update={"tasks": tuple(tasks)})
        for path in paths if repaint else []:
            repaint(data / spec.images / path)
        return prepare(spec, data, shelf, progress=False), spec

    return make


def stored(prepared, number, *, split=TRAIN):
    """A record's image, by Pillow: uint8 [height, width, 3]."""
    positions = tf.data.Dataset.from_tensors(tf.constant(number, tf.int64))
    ((_, source),) = prepared.reader(split)(positions).as_numpy_iterator()
    return np.asarray(Image.open(io.BytesIO(source)))


def squashed(prepared, number, *, size_px=32):
    """float32 [size, size, 3]: the record's image as a model takes it."""
    return tf.image.resize(stored(prepared, number), [size_px, size_px], antialias=True).numpy()


def epochs(dataset, prepared, spec, count=1):
    """The first epochs' batches, a list of (images, labels, weights) each."""
    steps = steps_per_epoch(prepared.table, spec)
    batches = list(dataset.take(steps * count).as_numpy_iterator())
    return [batches[i * steps : (i + 1) * steps] for i in range(count)]


def order(batches):
    return np.concatenate([labels["style"] for _, labels, _ in batches]).tolist()


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for (image, labels, weights), (image2, labels2, weights2) in zip(first, second, strict=True):
        np.testing.assert_array_equal(image, image2)
        for task in labels:
            np.testing.assert_array_equal(labels[task], labels2[task])
            np.testing.assert_array_equal(weights[task], weights2[task])


# === Training ===


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5, 2]), (4, [4, 4, 4]), (50, [12])])
def test_an_epoch_is_every_row_once(numbered, batch_size, sizes):
    prepared, spec = numbered(batch_size=batch_size)
    assert steps_per_epoch(prepared.table, spec) == len(sizes)
    two = epochs(training_dataset(prepared, spec), prepared, spec, 2)
    for epoch in two:
        assert [len(image) for image, *_ in epoch] == sizes
        assert sorted(order(epoch)) == list(range(COUNT))
    assert order(two[0]) != order(two[1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_rows_are_an_epoch_too(numbered, count):
    prepared, spec = numbered(batch_size=2, count=count)
    for epoch in epochs(training_dataset(prepared, spec), prepared, spec, 3):
        assert sorted(order(epoch)) == list(range(count))


def test_images_labels_and_weights_stay_together(numbered):
    prepared, spec = numbered()
    (epoch,) = epochs(training_dataset(prepared, spec), prepared, spec)
    for image, labels, weights in epoch:
        assert image.dtype == np.float32
        assert image.shape[1:] == (32, 32, 3)
        assert list(labels) == list(weights) == ["artist", "style", "genre"]
        for task in labels:
            assert labels[task].dtype == np.int32
            assert weights[task].dtype == np.float32
        for i, number in enumerate(labels["style"]):
            np.testing.assert_allclose(image[i], squashed(prepared, number), atol=255e-4)
            genre = number % 2 if number % 3 else -1
            artist = 1 if number < 4 else -1
            assert (labels["genre"][i], weights["genre"][i]) == (genre, float(genre >= 0))
            assert (labels["artist"][i], weights["artist"][i]) == (artist, float(artist >= 0))
            assert weights["style"][i] == 1


def test_the_same_seed_gives_the_same_batches_and_another_others(numbered):
    prepared, spec = numbered(augment=STRONG, seed=3)
    first, again = (epochs(training_dataset(prepared, spec), prepared, spec, 2) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert_same(one, other)
    other_seed = spec.model_copy(update={"seed": 4})
    (other,) = epochs(training_dataset(prepared, other_seed), prepared, spec)
    assert order(other) != order(first[0])


def test_a_run_that_starts_at_an_epoch_sees_what_an_unbroken_one_saw(numbered):
    prepared, spec = numbered(augment=STRONG)
    whole = epochs(training_dataset(prepared, spec), prepared, spec, 3)
    for start in (1, 2):
        late = training_dataset(prepared, spec, first_epoch=start)
        assert_same(epochs(late, prepared, spec)[0], whole[start])


def test_each_image_is_augmented_differently_in_each_epoch(numbered):
    # All images are the same mid grey: only the sampled brightness differs.
    grey = Image.new("RGB", (40, 30), (128, 128, 128))
    prepared, spec = numbered(
        augment={"brightness": 0.3}, batch_size=COUNT, repaint=lambda file: grey.save(file)
    )
    ((one,), (two,)) = epochs(training_dataset(prepared, spec), prepared, spec, 2)
    brightness = []
    for image, labels, _ in (one, two):
        brightness.append(image.mean(axis=(1, 2, 3))[np.argsort(labels["style"])])
    assert np.abs(np.stack(brightness) - 128).max() <= 0.3 * 255 + 0.5
    for values in brightness:
        assert np.diff(np.sort(values)).min() > 1e-3
        assert np.ptp(values) > 30
    assert np.abs(brightness[0] - brightness[1]).min() > 1e-3


def test_each_image_gets_the_policy_of_its_own_labels(numbered):
    bright = Augmentation(brightness=0.3)
    prepared, spec = numbered(augments={"artist": bright, "style": bright})
    (epoch,) = epochs(training_dataset(prepared, spec), prepared, spec)
    changed = {}
    for image, labels, _ in epoch:
        for i, number in enumerate(labels["style"].tolist()):
            plain = squashed(prepared, number)
            changed[number] = np.abs(image[i] - plain).max() > 0.1
    # Genre knows no brightness, and is missing for every third image.
    assert changed == {number: number % 3 == 0 for number in range(COUNT)}


def test_only_training_rows_are_trained_on(tiny_data, tiny_spec):
    """Two classes of eight, half of them held out: each image is in the one or the other."""
    rows = [(f"Dots/{i:02}.jpg", i % 2) for i in range(16)]
    data = tiny_data(rows={"style_train": rows})
    spec = tiny_spec(tasks=("style",), validation=0.5)
    prepared = prepare(spec, data, progress=False)
    table = prepared.table
    assert len(table.rows(VALIDATION)) == 8
    (trained,) = epochs(training_dataset(prepared, spec), prepared, spec)
    held = list(evaluation_dataset(prepared, spec, split=VALIDATION).as_numpy_iterator())
    for split, batches in ((TRAIN, trained), (VALIDATION, held)):
        assert sorted(order(batches)) == [0] * 4 + [1] * 4
        want = sorted(squashed_mean(prepared, i, split) for i in range(8))
        got = sorted(float(m) for image, *_ in batches for m in image.mean(axis=(1, 2, 3)))
        np.testing.assert_allclose(got, want, atol=0.01)


def squashed_mean(prepared, number, split):
    source = stored(prepared, number, split=split)
    return float(tf.reduce_mean(tf.image.resize(source, [32, 32], antialias=True)))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_run_that_starts_at_a_step_sees_what_an_unbroken_one_saw(numbered, step):
    prepared, spec = numbered(augment=STRONG)
    whole = list(training_dataset(prepared, spec).take(9).as_numpy_iterator())
    late = training_dataset(prepared, spec, first_epoch=1, first_step=step)
    late = list(late.take(6 - step).as_numpy_iterator())
    assert_same(late, whole[3 + step :])  # to the end of that epoch, and the next one whole


def test_what_is_skipped_is_not_read(numbered, monkeypatch):
    prepared, spec = numbered(batch_size=1)
    read = []
    source = prepared.builder.read(TRAIN)

    class Watched:
        def __getitems__(self, positions):
            read.extend(positions)
            return source.__getitems__(positions)

    monkeypatch.setattr(type(prepared.builder), "read", lambda self, split: Watched())
    monkeypatch.setattr("multitask.data.records.CHUNK", 1)
    (batch,) = training_dataset(prepared, spec, first_step=COUNT - 1).take(1)
    expected = epoch_order(COUNT, spec.seed, tf.constant(0)).numpy()[-1]
    assert read[0] == batch[1]["style"].numpy()[0] == expected


# === Evaluation ===


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_a_split_is_read_in_row_order_without_augmentation(numbered, how):
    prepared, spec = numbered(augment=STRONG, resize=how)
    table = prepared.table
    batches = list(evaluation_dataset(prepared, spec, split=TRAIN).as_numpy_iterator())
    assert [len(image) for image, *_ in batches] == [5, 5, 2]
    assert order(batches) == list(range(COUNT))
    assert list(table.paths[table.rows(TRAIN)]) == [f"Dots/{i:02}.jpg" for i in range(COUNT)]
    got = np.concatenate([image for image, *_ in batches])
    images = [stored(prepared, i) for i in range(COUNT)]
    plain = np.stack([resize_image(source, size_px=32, how=how) for source in images])
    np.testing.assert_allclose(got, plain, atol=1e-3)
    again = list(evaluation_dataset(prepared, spec, split=TRAIN).as_numpy_iterator())
    assert_same(batches, again)


def test_load_image_is_the_image(tmp_path):
    # Halves of one colour each: squashed to 2 x 2, they are those colours.
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = (200, 10, 30)
    pixels[:, 4:] = (0, 90, 250)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    got = load_image(str(tmp_path / "halves.png"), size_px=8, how="squash").numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, pixels)


def test_missing_labels_have_weight_zero(tiny_data, tiny_spec):
    prepared = prepare(tiny_spec(), tiny_data(), progress=False)
    (first, *_) = evaluation_dataset(prepared, tiny_spec(), split=TRAIN)
    _, labels, weights = first
    # Dots 00, 03, 06, 09, Lines 01 in path order; genre has nine labels, artist six.
    assert labels["style"].numpy().tolist() == [0, 0, 0, 0, 1]
    assert labels["genre"].numpy().tolist() == [0, 1, 0, -1, 1]
    assert labels["artist"].numpy().tolist() == [0, 1, -1, -1, 1]
    assert weights["genre"].numpy().tolist() == [1, 1, 1, 0, 1]
    assert weights["artist"].numpy().tolist() == [1, 1, 0, 0, 1]


# === Any images ===


def test_unreadable_images_are_left_out_and_the_indices_stay(tmp_path, write_image):
    names = [str(tmp_path / f"{i}.jpg") for i in range(9)]
    for seed, name in enumerate(names):
        write_image(tmp_path / name, seed=seed)
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "4.jpg").write_text("text")
    (tmp_path / "8.jpg").write_bytes((tmp_path / "7.jpg").read_bytes()[:100])
    batches = list(readable_images(names, size_px=16, how="crop", batch_size=4))
    assert [indices.tolist() for indices, _ in batches] == [[1, 2, 3, 5], [6, 7]]
    assert batches[0][0].dtype == np.int64
    for indices, images in batches:
        for index, image in zip(indices, images, strict=True):
            plain = load_image(names[index], size_px=16, how="crop")
            np.testing.assert_allclose(image, plain, atol=1e-3)
    left_out = set(range(9)) - {i for indices, _ in batches for i in indices.tolist()}
    assert {i for i, name in enumerate(names) if why_unreadable(name)} == left_out


def test_no_image_at_all_gives_no_batch(tmp_path):
    for names in ([], [str(tmp_path / "none.jpg")]):
        assert list(readable_images(names, size_px=16, how="squash", batch_size=4)) == []


# === Shared by several processes ===


def shared(make, processes, devices):
    """Each step's batch, put together from what the processes read."""
    of_all = [make(Shard(i, processes, devices)).as_numpy_iterator() for i in range(processes)]
    for batches in zip(*of_all, strict=True):
        assert len({len(images) for images, *_ in batches}) == 1
        yield tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)


@pytest.mark.parametrize("sampler", [None, {"kind": "balanced"}])
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_processes_share_the_batches_of_one(numbered, kind, sampler):
    """The last batch, of 3, is filled up to 4 with an image that has no label."""
    prepared, spec = numbered(augment=STRONG, count=11, batch_size=4, sampler=sampler)

    def make(shard):
        if kind == "evaluation":
            return evaluation_dataset(prepared, spec, split=TRAIN, shard=shard)
        place = {"first_epoch": 1, "first_step": 1}
        order = build_order(spec)
        return training_dataset(prepared, spec, **place, shard=shard, order=order).take(5)

    whole = list(make(Shard()).as_numpy_iterator())
    assert {len(images) for images, *_ in whole} == {3, 4}
    together = list(shared(make, processes=2, devices=4))
    assert len(together) == len(whole)
    for (images, labels, weights), merged in zip(whole, together, strict=True):
        assert len(merged[0]) == 4
        count = len(images)
        np.testing.assert_array_equal(merged[0][:count], images)
        for task in spec.task_names:
            np.testing.assert_array_equal(merged[1][task][:count], labels[task])
            np.testing.assert_array_equal(merged[2][task][:count], weights[task])
            assert (merged[1][task][count:] == -1).all()
            assert (merged[2][task][count:] == 0).all()


def test_each_process_transforms_with_its_own_seed(numbered):
    prepared, spec = numbered(count=12, batch_size=12, mix={"kind": "mixup"})
    mix = build_mixing(spec)["heads"]
    mine, other = (
        next(
            training_dataset(
                prepared, spec, shard=Shard(i, 2, 2), transform=mix
            ).as_numpy_iterator()
        )
        for i in range(2)
    )
    weights = [batch[2]["style"].max(axis=1) for batch in (mine, other)]
    assert (np.abs(np.sort(weights[0]) - np.sort(weights[1])) > 1e-3).any()
