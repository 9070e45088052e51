"""Mixing: the labels' weights are the shares of the pixels, and no label is lost."""

import functools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from multitask.annexes.mixing import (
    MIXES,
    Patch,
    build_mixing,
    cutmix,
    mix_batch,
    mixup,
    mixup_cutmix,
    sample_lambda,
    sample_partners,
)
from multitask.data.pipeline import training_dataset
from multitask.data.records import prepare
from multitask.spec import SpecError, override

SIZE = 24
# Two tasks' labels, every kind of missing pattern: both (0, 3, 5), the first alone (1, 4), the
# second alone (2), none (6).
LABELS = np.asarray(
    [[10, 20], [11, -1], [-1, 22], [13, 23], [14, -1], [15, 25], [-1, -1]], np.int32
)


def seed(*numbers):
    return tf.constant(numbers or (0, 0), tf.int64)


def alphas(kind, value=5.0):
    """The options that are mixup's alpha."""
    return {"mixup": {"alpha": value}, "mixup_cutmix": {"mixup_alpha": value}}.get(kind, {})


def mixed(images, labels, *numbers, draw):
    images, labels = tf.constant(images, tf.float32), tf.constant(labels, tf.int32)
    result = mix_batch(images, labels, seed(*numbers), draw=draw)
    return [value.numpy() for value in result]


def noise(count, rng_seed=0, channels=3):
    rng = np.random.default_rng(rng_seed)
    return rng.uniform(0, 255, (count, SIZE, SIZE, channels)).astype(np.float32)


# === Lambda ===


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 5.0])
def test_lambda_is_of_the_beta_distribution(alpha):
    samples = sample_lambda(20_000, seed(3, 2), alpha).numpy()
    assert samples.dtype == np.float64
    assert ((samples >= 0) & (samples <= 1)).all()
    assert scipy.stats.kstest(samples, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.02
    # Each image's own: neighbours know nothing of one another.
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.05


def test_the_least_alpha_gives_numbers_too():
    """Nearest to 1, float64 has no room for its draws; so the lower half, and how much is there."""
    samples = sample_lambda(20_000, seed(3, 1), 0.05).numpy()
    assert np.isfinite(samples).all()
    low = samples[samples < 0.5]
    assert abs(len(low) / len(samples) - 0.5) < 0.015
    beta = scipy.stats.beta(0.05, 0.05)
    assert scipy.stats.kstest(low, lambda value: 2 * beta.cdf(value)).pvalue > 0.02


def test_mixup_shows_the_partner_everywhere_by_one_minus_lambda():
    strength, box = mixup(4000, SIZE, seed(5, 2), alpha=0.4)
    assert strength.dtype == tf.float32
    np.testing.assert_array_equal(box, [[0, 0, SIZE, SIZE]] * 4000)
    assert (
        scipy.stats.kstest(strength.numpy().astype(float), scipy.stats.beta(0.4, 0.4).cdf).pvalue
        > 0.02
    )


def boxes_by_numpy(count, size_px, alpha, rng_seed):
    """Yun et al. 2019, eq. 2: one box after the other."""
    rng = np.random.default_rng(rng_seed)
    boxes = []
    for _ in range(count):
        half = size_px * np.sqrt(1 - rng.beta(alpha, alpha)) / 2
        x, y = rng.uniform(0, size_px, 2)
        ends = [y - half, x - half, y + half, x + half]
        boxes.append(np.clip(np.round(ends), 0, size_px))
    return np.asarray(boxes)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_are_drawn_as_the_paper_draws_them(alpha):
    size_px = 224
    strength, box = cutmix(4000, size_px, seed(8, 2), alpha=alpha)
    np.testing.assert_array_equal(strength, np.ones(4000))
    box = box.numpy()
    assert box.dtype == np.int32
    wanted = boxes_by_numpy(4000, size_px, alpha, 1)

    def area(boxes):
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    for ours, theirs in ((area(box), area(wanted)), *zip(box.T, wanted.T, strict=True)):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 0.02
    # Squares, but for what the border cuts off.
    inside = ((box > 0) & (box < size_px)).all(axis=1)
    assert inside.sum() > 400
    sides = np.stack([box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]])
    np.testing.assert_array_equal(*sides[:, inside])
    assert (sides[0] != sides[1]).sum() > 400


@pytest.mark.parametrize("kind", MIXES)
def test_probability_is_that_of_an_image(kind):
    for probability in (0.0, 0.3, 1.0):
        strength, _ = MIXES[kind](3000, SIZE, seed(1, 2), probability=probability, **alphas(kind))
        chosen = float((strength.numpy() > 0).mean())
        assert abs(chosen - probability) < 0.03  # more than 3 standard deviations
        assert probability in (0.3, chosen)


def test_half_of_the_images_are_cut_and_half_are_mixed():
    strength, box = (v.numpy() for v in mixup_cutmix(4000, 224, seed(4, 4), mixup_alpha=2.0))
    cut = strength == 1
    assert abs(cut.mean() - 0.5) < 0.03
    np.testing.assert_array_equal(box[~cut], [[0, 0, 224, 224]] * (~cut).sum())
    assert scipy.stats.kstest(strength[~cut], scipy.stats.beta(2, 2).cdf).pvalue > 0.02
    whole = (box[cut] == [0, 0, 224, 224]).all(axis=1)
    assert whole.mean() < 0.02
    assert scipy.stats.ks_2samp(box[cut][:, 0], boxes_by_numpy(2000, 224, 1, 2)[:, 0]).pvalue > 0.02


# === Partners ===


def test_a_partner_has_labels_of_exactly_the_same_tasks():
    groups = [{0, 3, 5}, {1, 4}, {2}, {6}]
    seen = set()
    for number in range(60):
        partner = sample_partners(tf.constant(LABELS), seed(number, 9)).numpy()
        assert partner.dtype == np.int32
        assert sorted(partner) == list(range(7))
        for group in groups:
            # One cycle: from any of the group, its partners lead through all of it.
            walked = [min(group)]
            for _ in group:
                walked.append(partner[walked[-1]])
            assert set(walked) == group
            assert walked[-1] == walked[0]
        seen.add(tuple(partner))
    assert len(seen) == 2  # both cycles of the three


def test_others_are_mixed_with_others_alone():
    """-2 is an image that is known to have none of the task's classes; -1 one that may have any."""
    labels = np.asarray([[-2, 0], [3, 1], [-2, 2], [-1, 3], [4, 4], [-1, 5]], np.int32)
    _, pair, weights = mixed(noise(6), labels, 4, 4, draw=functools.partial(mixup, alpha=5.0))
    np.testing.assert_array_equal(pair[:, 1, 1], [2, 4, 0, 5, 1, 3])
    np.testing.assert_array_equal(
        pair[:, 0], [[-2, -2], [3, 4], [-2, -2], [-1, -1], [4, 3], [-1, -1]]
    )
    np.testing.assert_array_equal(weights[:, 0].sum(axis=1) > 0, labels[:, 0] >= 0)


def test_every_partner_is_as_likely():
    labels = tf.constant([[0]] * 5 + [[-1]] * 3)
    draw = tf.function(sample_partners)
    samples = np.stack([draw(labels, seed(n, 0)).numpy() for n in range(1500)])
    for own in range(8):
        counts = np.bincount(samples[:, own], minlength=8)
        group = set(range(5)) if own < 5 else {5, 6, 7}
        others = sorted(group - {own})
        assert counts[others].sum() == 1500
        assert scipy.stats.chisquare(counts[others]).pvalue > 0.001


# === Labels and pixels ===


def test_labels_are_mixed_where_both_have_one_and_missing_where_neither():
    """By hand: a quarter of every image is its partner's."""

    def quarter(count, size_px, seed):
        box = [[0, 0, size_px // 2, size_px // 2]]
        return Patch(tf.ones([count]), tf.tile(tf.constant(box), [count, 1]))

    images = noise(7)
    got, labels, weights = mixed(images, LABELS, 2, 2, draw=quarter)
    assert labels.dtype == np.int32
    assert weights.dtype == np.float32
    three = {10: [10, 13], 13: [13, 15], 15: [15, 10]}
    if labels[0, 0, 1] == 15:  # the three with both labels, the other way round
        three = {10: [10, 15], 13: [13, 10], 15: [15, 13]}
    wanted = [
        [three[10], [label + 10 for label in three[10]]],
        [[11, 14], [-1, -1]],
        [[-1, -1], [22, 22]],
        [three[13], [label + 10 for label in three[13]]],
        [[14, 11], [-1, -1]],
        [three[15], [label + 10 for label in three[15]]],
        [[-1, -1], [-1, -1]],
    ]
    np.testing.assert_array_equal(labels, wanted)
    mix, alone, none = [0.75, 0.25], [1, 0], [0, 0]
    np.testing.assert_array_equal(
        weights,
        [[mix, mix], [mix, none], [none, alone], [mix, mix], [mix, none], [mix, mix], [none, none]],
    )
    np.testing.assert_array_equal(got[[2, 6]], images[[2, 6]])
    np.testing.assert_array_equal(got[1, :12, :12], images[4, :12, :12])
    np.testing.assert_array_equal(got[1, 12:], images[1, 12:])
    np.testing.assert_array_equal(got[1, :, 12:], images[1, :, 12:])


@pytest.mark.parametrize(
    ("kind", "channels"), [*((kind, 3) for kind in MIXES), ("mixup_cutmix", 7)]
)
def test_the_weights_are_the_shares_of_the_pixels(kind, channels):
    """Of images, and of maps with more channels."""
    count = 40
    images, labels = noise(count, channels=channels), np.arange(count, dtype=np.int32)[:, None]
    # Alphas under which a mixture is too weak to be seen in float32 hardly ever comes.
    draw = functools.partial(MIXES[kind], **alphas(kind))
    got, pair, weights = mixed(images, labels, 6, 1, draw=draw)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(pair[:, 0, 0], np.arange(count))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-7)
    own, other = pair[:, 0, 0], pair[:, 0, 1]
    assert ((own != other) == (weights[:, 0, 1] > 0)).all()
    for i in range(count):
        first, second = weights[i, 0].astype(np.float64)
        if kind == "mixup":
            wanted = first * images[own[i]] + second * images[other[i]]
        else:  # where it is not its own image, it is the partner, or lambda of it everywhere
            moved = (got[i] != images[i]).any(axis=-1, keepdims=True)
            strength = 1.0 if kind == "cutmix" or not moved.all() else second
            assert second == pytest.approx(strength * moved.mean(), rel=1e-6)
            wanted = images[own[i]] + strength * moved * (images[other[i]] - images[own[i]])
        np.testing.assert_allclose(got[i], wanted, atol=1e-4)
        total = got[i].sum(dtype=np.float64)
        assert total == pytest.approx(wanted.sum(dtype=np.float64), rel=1e-6)
    assert len(np.unique(weights[:, 0, 1])) > count / 2  # each image's own lambda


def test_the_area_of_the_box_is_one_minus_lambda_to_the_pixel():
    # Of one colour, their own number; their labels contain it.
    labels = np.arange(60, dtype=np.int32)[:, None]
    images = np.tile(labels[:, :, None, None], (1, SIZE, SIZE, 3))
    compared = 0
    for number in range(3):
        got, pair, weights = mixed(images, labels, number, 7, draw=cutmix)
        for own, other in pair[:, 0]:
            partner = (got[own] == other).all(axis=-1)
            assert (partner | (got[own] == own).all(axis=-1)).all()
            pixels = int(partner.sum()) if other != own else 0
            share = np.float32(pixels / SIZE**2)
            assert weights[own, 0, 1] == share
            assert weights[own, 0, 0] == 1 - share
            if pixels:
                rows, columns = np.nonzero(partner)
                assert np.ptp(rows) + 1 == partner.any(axis=1).sum()
                assert pixels == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                compared += 1
    assert compared > 150


def test_an_image_that_is_not_chosen_stays_as_it_is():
    images, labels = noise(200), np.arange(200, dtype=np.int32)[:, None]
    for kind in MIXES:
        draw = functools.partial(MIXES[kind], probability=0.5)
        got, pair, weights = mixed(images, labels, 1, 1, draw=draw)
        kept = weights[:, 0, 1] == 0
        assert 60 < kept.sum() < 140
        np.testing.assert_array_equal(got[kept], images[kept])
        np.testing.assert_array_equal(pair[kept, 0, 1], pair[kept, 0, 0])
        np.testing.assert_array_equal(weights[kept, 0], [[1, 0]] * kept.sum())
        assert (got[~kept] != images[~kept]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_small_batches(count):
    images, labels = noise(count), np.arange(count, dtype=np.int32)[:, None]
    got, pair, weights = mixed(images, labels, 1, 3, draw=functools.partial(mixup, alpha=5))
    if count == 1:
        np.testing.assert_array_equal(got, images)
        assert (pair.tolist(), weights.tolist()) == ([[[0, 0]]], [[[1, 0]]])
    else:
        assert (pair[:, 0, 0] != pair[:, 0, 1]).all()
        assert (weights[:, 0] > 0).all()


def test_the_same_seed_mixes_alike_in_a_graph_and_another_otherwise():
    images = noise(7)
    mix = functools.partial(mix_batch, draw=mixup_cutmix)
    data = tf.data.Dataset.from_tensors((images, LABELS, seed(1, 1))).repeat(2)
    first, second = data.map(mix).as_numpy_iterator()
    eager = mixed(images, LABELS, 1, 1, draw=mixup_cutmix)
    for one, other, plain in zip(first, second, eager, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, plain, rtol=0, atol=1e-4)
    for numbers in ((1, 2), (2, 1)):
        assert (mixed(images, LABELS, *numbers, draw=mixup_cutmix)[2] != eager[2]).any()


# === From a spec ===


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("mixup", "mix: 'mixup': input should be a table, { field = value, … }"),
        ({"alpha": 1.0}, "mix.kind: this field is missing"),
        (
            {"kind": "mixpu"},
            'mix.kind: unknown kind "mixpu". Expected one of: cutmix, mixup, mixup_cutmix. '
            'Did you mean "mixup"?',
        ),
        (
            {"kind": "mixup", "alfa": 1.0},
            'mix: unknown option "alfa" of "mixup". Expected one of: alpha, probability. '
            'Did you mean "alpha"?',
        ),
        (
            {"kind": "mixup", "alpha": 0},
            "mix.alpha: 0: input should be greater than or equal to 0.05",
        ),
        (
            {"kind": "cutmix", "probability": 1.5},
            "mix.probability: 1.5: input should be less than or equal to 1",
        ),
    ],
)
@pytest.mark.parametrize("place", ["", "phases.finetune."])
def test_a_wrong_mix_is_one_line(tiny_spec, place, mix, message):
    fields = {"phases": {"finetune": {"epochs": 1, "mix": mix}}} if place else {"mix": mix}
    with pytest.raises(SpecError) as caught:
        build_mixing(tiny_spec(**fields))
    assert str(caught.value) == f"tiny.toml: {place}{message}"


def test_options_reach_the_mixing_of_their_phases(tiny_spec):
    images, labels = noise(5), np.asarray([[0]] * 5, np.int32)
    never = {"kind": "cutmix", "probability": 0.0}
    assert build_mixing(tiny_spec()) == {}
    both = build_mixing(tiny_spec(mix=never))
    finetune = build_mixing(override(tiny_spec(), {"phases.finetune.mix": never}))
    assert (list(both), list(finetune)) == (["heads", "finetune"], ["finetune"])
    for mix in (*both.values(), *finetune.values()):
        np.testing.assert_array_equal(mix(images, labels, seed())[2][:, 0], [[1, 0]] * 5)


def test_images_are_not_mixed_twice(tiny_spec):
    mix = {"kind": "cutmix"}
    with pytest.raises(SpecError) as caught:
        build_mixing(override(tiny_spec(mix=mix), {"phases.finetune.mix": mix}))
    assert str(caught.value) == (
        "tiny.toml: phases.finetune.mix: mix already mixes the images of both phases; remove one "
        "of them"
    )


STRONG = {"flip": True, "brightness": 0.3, "contrast": [0.5, 1.5], "crop": [0.5, 0.9]}


def test_the_batches_of_a_run(tiny_data, tiny_spec):
    """The images of the run without mixing, mixed; a late start gives the same batches."""
    spec = tiny_spec(
        of_tasks={"augment": STRONG}, seed=3, mix={"kind": "mixup_cutmix", "mixup_alpha": 1.0}
    )
    prepared = prepare(spec, tiny_data(), progress=False)
    plain = training_dataset(prepared, spec)
    plain = list(plain.take(6).as_numpy_iterator())
    mix = build_mixing(spec)["finetune"]
    batches = list(training_dataset(prepared, spec, transform=mix).take(6).as_numpy_iterator())
    assert [len(images) for images, *_ in batches] == [5, 5, 2] * 2
    lost = 0
    for (before, own, own_weights), (images, labels, weights) in zip(plain, batches, strict=True):
        assert (images.dtype, images.shape) == (np.float32, before.shape)
        assert list(labels) == list(weights) == list(spec.task_names)
        for task in spec.task_names:
            assert labels[task].dtype == np.int32
            assert weights[task].dtype == np.float32
            assert labels[task].shape == weights[task].shape == (len(images), 2)
            np.testing.assert_array_equal(labels[task][:, 0], own[task])
            np.testing.assert_array_equal(labels[task][:, 1] == -1, own[task] == -1)
            np.testing.assert_allclose(weights[task].sum(axis=1), own_weights[task], atol=1e-7)
        # Each is somewhere between itself and one other of its batch.
        changed = (images != before).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(weights["style"][:, 1] > 0, changed)
        for i in np.flatnonzero(changed):
            # Best partner's share by least squares, over the pixels that changed.
            where = images[i] != before[i]
            for j in set(range(len(images))) - {i}:
                away = (before[j] - before[i])[where].astype(np.float64)
                moved = (images[i] - before[i])[where].astype(np.float64)
                strength = away @ moved / (away @ away)
                if np.abs(moved - strength * away).max() < 0.01:
                    np.testing.assert_array_equal(
                        [labels[task][i, 1] for task in labels], [own[task][j] for task in own]
                    )
                    share = strength if strength < 0.999 else where.any(axis=-1).mean()
                    np.testing.assert_allclose(weights["style"][i, 1], share, atol=0.01)
                    break
            else:
                lost += 1
    assert lost == 0
    assert sum((weights["style"][:, 1] > 0).sum() for *_, weights in batches) > 8

    late = training_dataset(prepared, spec, first_epoch=1, first_step=1, transform=mix)
    late = list(late.take(2).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, late, batches[4:])
    other = training_dataset(prepared, spec.model_copy(update={"seed": 4}), transform=mix).take(1)
    ((other, *_),) = other.as_numpy_iterator()
    assert (other != batches[0][0]).any(axis=(1, 2, 3)).all()
