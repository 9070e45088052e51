"""Batches: every row once an epoch, the same batches for the same seed, weights of 0 and 1."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from multitask.data.files import why_unreadable
from multitask.data.pipeline import (
    epoch_order,
    evaluation_dataset,
    file_names,
    load_picture,
    readable_pictures,
    steps_per_epoch,
    training_dataset,
)
from multitask.data.table import SELECTION, TRAIN, VAL, load_table
from multitask.spec import Augmentation

COUNT = 12  # training pictures; the style label of each is its number
STRONG = {"flip": True, "brightness": 0.3, "contrast": [0.5, 1.5], "crop": [0.5, 0.9]}


@pytest.fixture
def numbered(tiny_data, tiny_spec):
    """A function: fields of the spec -> (table, spec, picture folder); style tells the picture."""

    def make(*, augment=None, **fields):
        paths = [f"Dots/{i:02}.jpg" for i in range(COUNT)]
        data = tiny_data(
            classes={"style": tuple(f"picture {i}" for i in range(COUNT))},
            rows={
                "style_train": [(path, i) for i, path in enumerate(paths)],
                "genre_train": [(path, i % 2) for i, path in enumerate(paths) if i % 3],
                "artist_train": [(path, 1) for path in paths[:4]],
            },
        )
        spec = tiny_spec(of_tasks={"augment": augment or {}}, **fields)
        return load_table(spec, data), spec, data / spec.images

    return make


def epochs(dataset, table, spec, count=1):
    """The first epochs' batches, a list of (images, labels, weights) each."""
    steps = steps_per_epoch(table, spec)
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
    table, spec, images = numbered(batch_size=batch_size)
    assert steps_per_epoch(table, spec) == len(sizes)
    two = epochs(training_dataset(table, spec, images), table, spec, 2)
    for epoch in two:
        assert [len(image) for image, *_ in epoch] == sizes
        assert sorted(order(epoch)) == list(range(COUNT))
    assert order(two[0]) != order(two[1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_rows_are_an_epoch_too(numbered, count):
    table, spec, images = numbered(batch_size=2)
    few = table.keep(table.rows(TRAIN)[:count])
    for epoch in epochs(training_dataset(few, spec, images), few, spec, 3):
        assert sorted(order(epoch)) == list(range(count))


def test_pictures_labels_and_weights_stay_together(numbered):
    table, spec, images = numbered()
    (epoch,) = epochs(training_dataset(table, spec, images), table, spec)
    for image, labels, weights in epoch:
        assert image.dtype == np.float32
        assert image.shape[1:] == (32, 32, 3)
        assert list(labels) == list(weights) == ["artist", "style", "genre"]
        for task in labels:
            assert labels[task].dtype == np.int32
            assert weights[task].dtype == np.float32
        for i, number in enumerate(labels["style"]):
            plain = load_picture(str(images / f"Dots/{number:02}.jpg"), size_px=32, how="squash")
            np.testing.assert_allclose(image[i], plain, atol=255e-4)
            genre = number % 2 if number % 3 else -1
            artist = 1 if number < 4 else -1
            assert (labels["genre"][i], weights["genre"][i]) == (genre, float(genre >= 0))
            assert (labels["artist"][i], weights["artist"][i]) == (artist, float(artist >= 0))
            assert weights["style"][i] == 1


def test_the_same_seed_gives_the_same_batches_and_another_others(numbered):
    table, spec, images = numbered(augment=STRONG, seed=3)
    first, again = (epochs(training_dataset(table, spec, images), table, spec, 2) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert_same(one, other)
    other_seed = spec.model_copy(update={"seed": 4})
    (other,) = epochs(training_dataset(table, other_seed, images), table, spec)
    assert order(other) != order(first[0])


def test_a_run_that_starts_at_an_epoch_sees_what_an_unbroken_one_saw(numbered):
    table, spec, images = numbered(augment=STRONG)
    whole = epochs(training_dataset(table, spec, images), table, spec, 3)
    for start in (1, 2):
        late = training_dataset(table, spec, images, first_epoch=start)
        assert_same(epochs(late, table, spec)[0], whole[start])


def test_a_picture_is_augmented_anew_each_epoch_and_not_as_its_neighbour(numbered):
    table, spec, images = numbered(augment={"brightness": 0.3}, batch_size=COUNT)
    # All pictures alike, mid grey: what differs is the drawn brightness alone.
    for path in table.paths[table.rows(TRAIN)]:
        Image.new("RGB", (40, 30), (128, 128, 128)).save(images / path)
    ((one,), (two,)) = epochs(training_dataset(table, spec, images), table, spec, 2)
    brightness = []
    for image, labels, _ in (one, two):
        brightness.append(image.mean(axis=(1, 2, 3))[np.argsort(labels["style"])])
    assert np.abs(np.stack(brightness) - 128).max() <= 0.3 * 255 + 0.5
    for drawn in brightness:
        assert np.diff(np.sort(drawn)).min() > 1e-3
        assert np.ptp(drawn) > 30
    assert np.abs(brightness[0] - brightness[1]).min() > 1e-3


def test_each_picture_gets_the_policy_of_its_own_labels(numbered):
    table, spec, images = numbered()
    bright = Augmentation(brightness=0.3)
    tasks = [
        task.model_copy(update={"augment": bright}) if task.name != "genre" else task
        for task in spec.tasks
    ]
    spec = spec.model_copy(update={"tasks": tuple(tasks)})
    (epoch,) = epochs(training_dataset(table, spec, images), table, spec)
    changed = {}
    for image, labels, _ in epoch:
        for i, number in enumerate(labels["style"].tolist()):
            plain = load_picture(str(images / f"Dots/{number:02}.jpg"), size_px=32, how="squash")
            changed[number] = np.abs(image[i] - plain).max() > 0.1
    # Genre knows no brightness, and is missing for every third picture.
    assert changed == {number: number % 3 == 0 for number in range(COUNT)}


def test_only_training_rows_are_trained_on(numbered):
    table, spec, images = numbered(selection=0.4)
    # A class of one picture never loses it to the selection, so the numbered styles all stay.
    assert len(table.rows(SELECTION)) == 0
    splits = table.splits.copy()
    held = table.rows(TRAIN)[[2, 7]]
    splits[held] = SELECTION
    table = type(table)(table.classes, table.paths, table.labels, splits)
    (epoch,) = epochs(training_dataset(table, spec, images), table, spec)
    assert sorted(order(epoch)) == [i for i in range(COUNT) if i not in (2, 7)]
    (batch,) = evaluation_dataset(table, spec, images, split=SELECTION)
    assert batch[1]["style"].numpy().tolist() == [2, 7]


# === Evaluation ===


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_a_split_is_read_in_row_order_without_augmentation(numbered, how):
    table, spec, images = numbered(augment=STRONG, resize=how)
    batches = list(evaluation_dataset(table, spec, images, split=TRAIN).as_numpy_iterator())
    assert [len(image) for image, *_ in batches] == [5, 5, 2]
    assert order(batches) == list(range(COUNT))
    assert list(table.paths[table.rows(TRAIN)]) == [f"Dots/{i:02}.jpg" for i in range(COUNT)]
    got = np.concatenate([image for image, *_ in batches])
    names = file_names(table, table.rows(TRAIN), images)
    plain = np.stack([load_picture(name, size_px=32, how=how).numpy() for name in names])
    np.testing.assert_allclose(got, plain, atol=1e-3)
    again = list(evaluation_dataset(table, spec, images, split=TRAIN).as_numpy_iterator())
    assert_same(batches, again)


def test_load_picture_is_the_picture(tmp_path):
    # Halves of one colour each: squashed to 2 x 2, they are those colours.
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = (200, 10, 30)
    pixels[:, 4:] = (0, 90, 250)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    got = load_picture(str(tmp_path / "halves.png"), size_px=8, how="squash").numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, pixels)


def test_the_exam_has_its_labels_and_weights(tiny_data, tiny_spec):
    data, spec = tiny_data(), tiny_spec()
    table = load_table(spec, data)
    (batch,) = evaluation_dataset(table, spec, data / spec.images, split=VAL)
    _, labels, weights = batch
    # someone_val-00 … 03 in path order: Dots 0, Dots 3, Lines 1, Waves 2.
    assert labels["style"].numpy().tolist() == [0, 0, 1, 2]
    assert labels["genre"].numpy().tolist() == [0, -1, 1, 0]
    assert labels["artist"].numpy().tolist() == [0, -1, 1, -1]
    assert weights["genre"].numpy().tolist() == [1, 0, 1, 1]
    assert weights["artist"].numpy().tolist() == [1, 0, 1, 0]
    assert len(list(evaluation_dataset(table, spec, data / spec.images, split=SELECTION))) == 0


def test_a_picture_that_vanished_is_an_error_and_not_a_gap(numbered):
    table, spec, images = numbered()
    (images / table.paths[table.rows(TRAIN)[3]]).unlink()
    with pytest.raises(tf.errors.NotFoundError):
        epochs(training_dataset(table, spec, images), table, spec)
    with pytest.raises(tf.errors.NotFoundError):
        list(evaluation_dataset(table, spec, images, split=TRAIN))


# === Any pictures ===


def test_unreadable_pictures_are_left_out_and_the_indices_stay(tmp_path, write_picture):
    names = [str(tmp_path / f"{i}.jpg") for i in range(9)]
    for seed, name in enumerate(names):
        write_picture(tmp_path / name, seed=seed)
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "4.jpg").write_text("text")
    (tmp_path / "8.jpg").write_bytes((tmp_path / "7.jpg").read_bytes()[:100])
    dataset = readable_pictures(names, size_px=16, how="crop", batch_size=4)
    batches = list(dataset.as_numpy_iterator())
    assert [indices.tolist() for indices, _ in batches] == [[1, 2, 3, 5], [6, 7]]
    assert batches[0][0].dtype == np.int64
    for indices, images in batches:
        for index, image in zip(indices, images, strict=True):
            plain = load_picture(names[index], size_px=16, how="crop")
            np.testing.assert_allclose(image, plain, atol=1e-3)
    left_out = set(range(9)) - {i for indices, _ in batches for i in indices.tolist()}
    assert {i for i, name in enumerate(names) if why_unreadable(name)} == left_out


def test_no_picture_at_all_gives_no_batch(tmp_path):
    for names in ([], [str(tmp_path / "none.jpg")]):
        dataset = readable_pictures(names, size_px=16, how="squash", batch_size=4)
        assert list(dataset) == []


def test_the_order_of_an_epoch_is_a_fair_draw():
    """Batches of 32 from four blocks of rows (say, styles) are as mixed as NumPy's are."""

    def largest_share(order):
        blocks = np.asarray(order)[:768].reshape(-1, 32) // 200
        return np.mean([np.bincount(batch).max() / 32 for batch in blocks])

    orders = [epoch_order(800, 0, tf.constant(epoch)).numpy() for epoch in range(30)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(800))
    rng = np.random.default_rng(0)
    fair = np.mean([largest_share(rng.permutation(800)) for _ in range(30)])
    assert abs(np.mean([largest_share(order) for order in orders]) - fair) < 0.01
