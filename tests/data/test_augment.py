"""Rule 7: which policy an image gets, and what each operation does, against NumPy."""

import colorsys
import itertools

import numpy as np
import pytest
import tensorflow as tf

from multitask.data.augment import (
    COLUMNS,
    augment_image,
    image_policies,
    merge_policies,
    policy_row,
)
from multitask.data.decode import resize_crop, resize_image
from multitask.data.image_limits import RESIZE_KINDS
from multitask.spec import Augmentation, load_spec

SIZE_PX = 24
NEUTRAL = {
    "flip": 0,
    "brightness": 0,
    "contrast_low": 1,
    "contrast_high": 1,
    "saturation_low": 1,
    "saturation_high": 1,
    "crop_low": 1,
    "crop_high": 1,
    "crop_probability": 0,
}
SEEDS = [(3, i) for i in range(8)]
EVERYTHING = Augmentation(
    flip=True,
    brightness=0.3,
    contrast=(0.5, 1.6),
    saturation=(0.2, 1.9),
    crop=(0.4, 0.8),
    crop_probability=0.5,
)


ATOL = 1e-3  # of 255 levels


def source(height=30, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def columns(row):
    return dict(zip(COLUMNS, row.tolist(), strict=True))


def draws(seed):
    return tf.random.stateless_uniform([8], seed).numpy().astype(np.float64)


def augment(image, policy, seed, how="squash"):
    row = policy_row(policy) if isinstance(policy, Augmentation) else policy
    return augment_image(
        tf.constant(image), tf.constant(row), tf.constant(seed), size_px=SIZE_PX, how=how
    ).numpy()


def saturate(image, factor):
    """In HSV, pixel by pixel, by the standard library."""
    flat = []
    for pixel in image.reshape(-1, 3):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        flat.append(colorsys.hsv_to_rgb(hue, min(1, saturation * factor), value))
    return np.asarray(flat).reshape(image.shape)


def by_hand(image, policy, seed):
    """What the documentation says, in NumPy; only the resize is the project's own."""
    draw = draws(seed)

    def between(ends, d):
        return ends[0] + d * (ends[1] - ends[0])

    if policy.crop and draw[1] < policy.crop_probability:
        share = between(policy.crop, draw[0])
        height, width = image.shape[:2]
        top, left = (
            round(side * d * (1 - share))
            for side, d in zip((height, width), draw[2:4], strict=True)
        )
        image = image[top : top + round(share * height), left : left + round(share * width)]
    image = resize_image(image, size_px=SIZE_PX, how="squash").numpy() / 255.0
    if policy.flip and draw[4] < 0.5:
        image = np.flip(image, axis=1)
    image = image + (2 * draw[5] - 1) * (policy.brightness or 0)
    factor = between(policy.contrast or (1, 1), draw[6])
    mean = image.mean(axis=(0, 1))
    image = np.clip(mean + factor * (image - mean), 0, 1)
    image = saturate(image, between(policy.saturation or (1, 1), draw[7]))
    return np.clip(image, 0, 1) * 255


def by_plain_ops(image, row, seed, how):
    """The augmentation as one would write it: TensorFlow's own ops, one after the other."""
    value = dict(zip(COLUMNS, tf.unstack(row), strict=True))
    draw = tf.unstack(tf.random.stateless_uniform([8], seed))

    def between(name, d):
        return value[f"{name}_low"] + d * (value[f"{name}_high"] - value[f"{name}_low"])

    share = tf.where(draw[1] < value["crop_probability"], between("crop", draw[0]), 1.0)
    box = tf.stack([draw[2] * (1 - share), draw[3] * (1 - share), share, share])
    image = resize_crop(image, box=box, size_px=SIZE_PX, how=how) / 255.0
    image = tf.where((draw[4] < 0.5) & (value["flip"] > 0), image[:, ::-1], image)
    image = tf.image.adjust_brightness(image, (2 * draw[5] - 1) * value["brightness"])
    image = tf.clip_by_value(tf.image.adjust_contrast(image, between("contrast", draw[6])), 0, 1)
    image = tf.image.adjust_saturation(image, between("saturation", draw[7]))
    return tf.clip_by_value(image, 0, 1) * 255.0


# === Rule 7 ===


def test_an_absent_operation_is_neutral():
    assert columns(policy_row(Augmentation())) == NEUTRAL
    # A chance without a crop is no crop.
    assert columns(policy_row(Augmentation(crop_probability=0.7))) == NEUTRAL
    row = columns(policy_row(EVERYTHING))
    assert row == pytest.approx(
        {
            "flip": 1,
            "brightness": 0.3,
            "contrast_low": 0.5,
            "contrast_high": 1.6,
            "saturation_low": 0.2,
            "saturation_high": 1.9,
            "crop_low": 0.4,
            "crop_high": 0.8,
            "crop_probability": 0.5,
        }
    )


def merged(*policies):
    return columns(merge_policies(np.stack([policy_row(policy) for policy in policies])))


def test_the_mildest_of_every_operation_wins():
    a = Augmentation(
        flip=True, brightness=0.2, contrast=(0.8, 1.1), saturation=(0.9, 1.3), crop=(0.9, 0.95)
    )
    b = Augmentation(
        flip=True,
        brightness=0.1,
        contrast=(0.9, 1.2),
        saturation=(0.7, 1.2),
        crop=(0.8, 1.0),
        crop_probability=0.5,
    )
    assert (
        merged(a, b)
        == merged(b, a)
        == pytest.approx(
            {
                "flip": 1,
                "brightness": 0.1,
                "contrast_low": 0.9,
                "contrast_high": 1.1,
                "saturation_low": 0.9,
                "saturation_high": 1.2,
                "crop_low": 0.9,
                "crop_high": 1.0,
                "crop_probability": 0.5,
            }
        )
    )
    assert merged(a) == columns(policy_row(a))


@pytest.mark.parametrize(
    "policy",
    [
        Augmentation(flip=True),
        Augmentation(brightness=0.2),
        Augmentation(contrast=(0.8, 1.2)),
        Augmentation(contrast=(1.1, 1.3)),  # without 1 in it
        Augmentation(contrast=(0.6, 0.8)),
        Augmentation(saturation=(1.1, 1.3)),
        Augmentation(crop=(0.5, 0.6)),
        EVERYTHING,
    ],
)
def test_an_operation_that_one_task_lacks_is_not_applied(policy):
    assert merged(policy, Augmentation()) == NEUTRAL
    assert merged(Augmentation(), policy, policy) == NEUTRAL


def test_an_image_gets_the_policy_of_its_labels():
    spec = load_spec("wikiart")
    assert spec.task_names == ("artist", "style", "genre")
    labels = np.asarray(
        [[-1, 4, -1], [3, 4, -1], [-1, 4, 2], [3, 4, 2], [-1, -1, -1], [-1, -1, 0], [5, -1, -1]]
    )
    policies, index = image_policies(labels, [task.augment for task in spec.tasks])
    assert index.dtype == np.int32
    assert policies.dtype == np.float32
    of_row = [columns(policies[i]) for i in index]
    for row, (artist, *_) in zip(of_row, labels, strict=True):
        if artist != -1:
            assert (row["crop_low"], row["crop_high"], row["crop_probability"]) == (1, 1, 0)
    crops = [(row["crop_low"], row["crop_probability"]) for row in of_row]
    assert crops[0] == pytest.approx((0.9, 1.0))
    assert crops[2] == pytest.approx((0.95, 0.5))
    assert crops[5] == pytest.approx((0.95, 0.5))
    assert of_row[6]["brightness"] == pytest.approx(0.2)
    assert of_row[3]["brightness"] == pytest.approx(0.1)
    assert of_row[3]["saturation_low"] == pytest.approx(0.9)
    assert of_row[4] == NEUTRAL


def test_one_row_and_one_task_have_their_policy_too():
    policies, index = image_policies(np.asarray([[0]]), [EVERYTHING])
    assert index.tolist() == [0]
    np.testing.assert_array_equal(policies, policy_row(EVERYTHING)[None])


# === The operations ===


@pytest.mark.parametrize(
    "policy",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(brightness=0.4),
        Augmentation(contrast=(0.3, 1.8)),
        Augmentation(saturation=(0.0, 2.5)),
        Augmentation(crop=(0.3, 0.9)),
        Augmentation(crop=(0.3, 0.9), crop_probability=0.5),
        EVERYTHING,
    ],
    ids=lambda p: "-".join(sorted(p.model_fields_set)) if p != EVERYTHING else "everything",
)
def test_each_operation_against_numpy(policy):
    image = source()
    plain = resize_image(image, size_px=SIZE_PX, how="squash").numpy()
    differences = []
    for seed in SEEDS:
        got = augment(image, policy, seed)
        np.testing.assert_allclose(got, by_hand(image, policy, seed), atol=ATOL)
        differences.append(np.abs(got - plain).max())
    if policy == Augmentation():
        assert max(differences) < 1e-3
    else:
        assert max(differences) > 10
    assert got.dtype == np.float32
    assert got.shape == (SIZE_PX, SIZE_PX, 3)


WIKIART = [policy_row(task.augment) for task in load_spec("wikiart").tasks]


POLICIES = {
    **dict(zip(("artist", "style", "genre"), WIKIART, strict=True)),
    "merged": merge_policies(np.stack(WIKIART)),
    "extremes": policy_row(Augmentation(brightness=0.9, contrast=(0, 3), saturation=(0, 5))),
    "everything": policy_row(EVERYTHING),
}


def special_images():
    """Images of several sizes, one of them with grey, black, white and pure colours."""
    special = [[0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0], [0, 1, 0], [254, 255, 255]]
    colours = np.repeat(np.asarray(special, np.uint8), 12, axis=0).reshape(8, 9, 3)
    return [source(258, 300), source(30, 40), source(9, 5), colours]


@pytest.mark.parametrize("how", RESIZE_KINDS)
def test_as_the_plain_ops(how):
    """Each policy on each image, eagerly and inside `tf.data`, whose one graph is traced once."""
    images = special_images()
    cases = list(itertools.product(POLICIES, range(len(images)), range(12)))

    def examples():
        for name, index, number in cases:
            yield images[index], POLICIES[name], np.array([7, number], np.int32)

    kinds = (([None, None, 3], tf.uint8), ([len(COLUMNS)], tf.float32), ([2], tf.int32))
    both = tf.data.Dataset.from_generator(
        examples, output_signature=tuple(tf.TensorSpec(*kind) for kind in kinds)
    ).map(
        lambda image, row, seed: (
            augment_image(image, row, seed, size_px=SIZE_PX, how=how),
            by_plain_ops(image, row, seed, how),
        )
    )
    results = list(both.as_numpy_iterator())
    for case, (got, expected) in zip(cases, results, strict=True):
        np.testing.assert_allclose(got, expected, atol=ATOL, err_msg=str(case))
    for (name, index, number), (got, _) in zip(cases, results, strict=True):
        if number == 11:
            eager = augment(images[index], POLICIES[name], (7, number), how)
            np.testing.assert_allclose(eager, got, atol=ATOL, err_msg=f"{name} {index}")


def test_the_draws_take_both_sides_of_every_chance():
    """Else the comparisons above would prove less than they seem to."""
    flips = {draws(seed)[4] < 0.5 for seed in SEEDS}
    crops = {draws(seed)[1] < 0.5 for seed in SEEDS}
    assert flips == crops == {True, False}


@pytest.mark.parametrize("how", RESIZE_KINDS)
def test_the_neutral_policy_is_the_plain_resize(how):
    image = source(50, 31)
    plain = resize_image(image, size_px=SIZE_PX, how=how).numpy()
    got = augment(image, Augmentation(), (1, 2), how)
    np.testing.assert_allclose(got, plain, atol=1e-3)


def test_nothing_leaves_0_to_255():
    policy = Augmentation(
        flip=True, brightness=1.0, contrast=(0, 10), saturation=(0, 10), crop=(0.05, 1)
    )
    flat = [np.zeros((9, 7, 3), np.uint8), np.full((9, 7, 3), 255, np.uint8), source(9, 7)]
    for image in flat:
        for seed in SEEDS:
            got = augment(image, policy, seed)
            assert np.isfinite(got).all()
            assert got.min() >= 0
            assert got.max() <= 255


def test_a_crop_stays_inside_and_keeps_its_share():
    # Red tells the column and green the row, so that a crop shows where it was cut.
    height, width = 200, 240
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    shares = []
    for seed in SEEDS:
        got = augment(image, Augmentation(crop=(0.5, 0.7)), seed)
        shares.append((got[..., 0].max() - got[..., 0].min()) / width * SIZE_PX / (SIZE_PX - 1))
        rows = (got[..., 1].max() - got[..., 1].min()) / height * SIZE_PX / (SIZE_PX - 1)
        assert rows == pytest.approx(shares[-1], abs=0.03)
    assert 0.47 < min(shares) < max(shares) < 0.73


def test_the_seed_alone_decides():
    image = source()
    first, other = augment(image, EVERYTHING, (5, 1)), augment(image, EVERYTHING, (5, 2))
    tf.random.set_seed(99)
    np.testing.assert_array_equal(augment(image, EVERYTHING, (5, 1)), first)
    assert np.abs(first - other).max() > 5


def test_eager_and_inside_tf_data_agree():
    images = [source(30, 40, seed) for seed in range(len(SEEDS))]
    seeds = tf.constant(SEEDS, tf.int32)
    row = tf.constant(policy_row(EVERYTHING))
    dataset = tf.data.Dataset.from_tensor_slices((np.stack(images), seeds)).map(
        lambda image, seed: augment_image(image, row, seed, size_px=SIZE_PX, how="squash")
    )
    assert dataset.element_spec.shape == (SIZE_PX, SIZE_PX, 3)
    for image, seed, got in zip(images, SEEDS, dataset.as_numpy_iterator(), strict=True):
        np.testing.assert_allclose(got, augment(image, EVERYTHING, seed), atol=1e-2)
