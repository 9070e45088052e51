"""The sampler: each row's probability, the sampled rows, and the shares of the classes."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tensorflow as tf
from sklearn.utils.class_weight import compute_sample_weight

from multitask.annexes.mixing import build_mixing
from multitask.annexes.sampler import balanced, build_order, class_shares, sample_rows
from multitask.data.order import SHUFFLED
from multitask.data.pipeline import training_dataset
from multitask.data.records import prepare
from multitask.data.table import Table
from multitask.spec import SpecError

# Of two tasks: the first has classes of 4, 2 and 1 rows of 7, the second of 3 and 1 rows of 4.
LABELS = np.asarray(
    [[0, 0], [0, 0], [0, 1], [0, -1], [1, -1], [1, -1], [2, -1], [-1, 0], [-1, -1]], np.int32
)


def long_tailed(rows=3000, seed=0):
    """int32 [rows, 3]: many classes, rare and common, two thirds of the labels missing."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric([0.5, 0.3, 0.1], (rows, 3)), [5, 8, 20]) - 1
    labels[rng.uniform(size=labels.shape) < [0.7, 0.05, 0.3]] = -1
    return labels.astype(np.int32)


# === Probabilities ===


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_probabilities_by_hand(power):
    first = {0: (7 / 4) ** power, 1: (7 / 2) ** power, 2: 7**power}
    second = {0: (4 / 3) ** power, 1: 4**power}
    first_mean = (4 * first[0] + 2 * first[1] + first[2]) / 7
    second_mean = (3 * second[0] + second[1]) / 4
    first = {label: factor / first_mean for label, factor in first.items()}
    second = {label: factor / second_mean for label, factor in second.items()}
    weights = [
        (first[0] + second[0]) / 2,
        (first[0] + second[0]) / 2,
        (first[0] + second[1]) / 2,
        first[0],
        first[1],
        first[1],
        first[2],
        second[0],
    ]
    weights.append(sum(weights) / 8)
    wanted = np.asarray(weights) / sum(weights)
    np.testing.assert_allclose(balanced(LABELS, power=power), wanted, rtol=1e-12)


def test_probabilities_match_sklearn_for_each_task():
    """n_task / n_class is scikit-learn's balanced weight times the number of classes present."""
    labels = long_tailed()
    table = pd.DataFrame(labels).replace(-1, np.nan)
    of_tasks = pd.DataFrame(
        {
            task: pd.Series(
                compute_sample_weight("balanced", known) * known.nunique(), index=known.index
            )
            for task, known in ((task, table[task].dropna()) for task in table)
        }
    ).reindex(table.index)
    factors = of_tasks**0.5
    wanted = (factors / factors.mean()).mean(axis=1)
    wanted = wanted.fillna(wanted.mean())
    np.testing.assert_allclose(balanced(labels), wanted / wanted.sum(), rtol=1e-10)


def test_power_0_is_every_row_alike():
    np.testing.assert_allclose(balanced(LABELS, power=0.0), np.full(9, 1 / 9), rtol=1e-12)


def test_power_1_with_one_task_is_every_class_alike():
    labels = long_tailed()[:, 2:]
    labels = labels[labels[:, 0] >= 0]
    shares = class_shares(labels[:, 0], 22, balanced(labels, power=1.0))
    np.testing.assert_allclose(shares[:20], np.full(20, 1 / 20), rtol=1e-10)
    assert shares[20:].tolist() == [0, 0]


def test_rows_without_a_label_are_sampled_too():
    probabilities = balanced(long_tailed(), power=1.0)
    assert probabilities.dtype == np.float64
    assert (probabilities > 0).all()
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    nothing = np.full((4, 2), -1, np.int32)
    np.testing.assert_array_equal(balanced(nothing), [0.25] * 4)


# === Samples ===


def test_rows_are_sampled_by_their_probabilities():
    probabilities = balanced(LABELS, power=1.0)
    draw = tf.function(lambda epoch: sample_rows(np.tile(probabilities / 1000, 1000), 5, epoch))
    counts = np.zeros(9)
    for epoch in range(10):
        rows = draw(tf.constant(epoch)).numpy()
        assert rows.dtype == np.int32
        assert rows.shape == (9000,)
        assert rows.min() >= 0
        assert rows.max() < 9000
        counts += np.bincount(rows % 9, minlength=9)
    assert scipy.stats.chisquare(counts, probabilities * 90_000).pvalue > 0.02


def test_classes_are_sampled_by_their_shares():
    labels = long_tailed()
    probabilities = balanced(labels, power=0.5)
    epochs = [sample_rows(probabilities, 1, tf.constant(epoch)).numpy() for epoch in range(20)]
    sampled = labels[np.concatenate(epochs)]
    for task in range(3):
        of_task = sampled[sampled[:, task] >= 0, task]
        counts = np.bincount(of_task)
        shares = class_shares(labels[:, task], len(counts), probabilities)
        assert scipy.stats.chisquare(counts, shares * len(of_task)).pvalue > 0.01
        plain = np.bincount(labels[labels[:, task] >= 0, task])
        assert counts[-1] / counts[0] > 1.3 * plain[plain.argmin()] / plain.max()


def test_samples_are_independent():
    rows = sample_rows(np.full(20_000, 1 / 20_000), 0, tf.constant(0)).numpy()
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(rows, np.arange(20_000))[0, 1]) < 0.02
    # With replacement, a row is missed with a probability of 1/e.
    assert abs(len(np.unique(rows)) / 20_000 - (1 - np.exp(-1))) < 0.01


def test_a_probability_too_small_for_float32_counts():
    """In float32, 200,000 + 1e-4 is 200,000: the second half would never be sampled."""
    probabilities = np.full(400_000, 1.0)
    probabilities[-200_000:] = 1e-4
    rows = sample_rows(probabilities / probabilities.sum(), 0, tf.constant(0)).numpy()
    assert abs((rows >= 200_000).sum() - 40) < 20
    assert rows.max() < 400_000


def test_the_same_seed_and_epoch_sample_the_same_rows():
    probabilities = balanced(LABELS)

    def draw(seed, epoch):
        return (
            sample_rows(np.tile(probabilities / 10, 10), seed, tf.constant(epoch)).numpy().tolist()
        )

    assert draw(3, 1) == draw(3, 1)
    assert len({tuple(draw(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


# === Shares of the classes ===


def test_class_shares_by_hand():
    probabilities = np.asarray([1, 1, 2, 4, 8, 16, 32, 64, 128]) / 256
    np.testing.assert_allclose(
        class_shares(LABELS[:, 0], 4, probabilities), np.asarray([8, 24, 32, 0]) / 64
    )
    np.testing.assert_allclose(
        class_shares(LABELS[:, 1], 2, probabilities), np.asarray([66, 2]) / 68
    )
    assert class_shares(np.asarray([-1, -1]), 2, np.ones(2)).tolist() == [0, 0]


def test_the_rarest_and_the_majority_class_are_described(tiny_spec):
    """Power 1, one task of 6, 3 and 1 rows: a third each; the task without labels has no line."""
    labels = np.asarray([[0, -1]] * 6 + [[2, -1]] * 3 + [[3, -1]] + [[1, 0]] * 50, np.int32)
    table = Table(
        classes={"shade": ("ash", "bone", "coal", "dew"), "mood": ("calm",)},
        paths=np.asarray([f"{i}.jpg" for i in range(60)]),
        labels=labels,
        splits=np.asarray(["train"] * 10 + ["test"] * 50),
    )
    spec = tiny_spec(sampler={"kind": "balanced", "power": 1.0})
    assert build_order(spec).describe(table) == [
        "Share of a task's labels as sampled (balanced)",
        "  shade: rarest dew 10.00% -> 33.33%, most frequent ash 60.00% -> 33.33%",
    ]


# === From a spec ===


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (True, "sampler: True: input should be a table, { field = value, … }"),
        (
            {"kind": "balnced"},
            'sampler.kind: unknown kind "balnced". Expected one of: balanced. '
            'Did you mean "balanced"?',
        ),
        (
            {"kind": "balanced", "pwoer": 1.0},
            'sampler: unknown option "pwoer" of "balanced". Expected one of: power. '
            'Did you mean "power"?',
        ),
        (
            {"kind": "balanced", "power": -0.5},
            "sampler.power: -0.5: input should be greater than or equal to 0",
        ),
        (
            {"kind": "balanced", "power": 2},
            "sampler.power: 2: input should be less than or equal to 1",
        ),
    ],
)
def test_a_wrong_sampler_is_one_line(tiny_spec, sampler, message):
    with pytest.raises(SpecError) as caught:
        build_order(tiny_spec(sampler=sampler))
    assert str(caught.value) == f"tiny.toml: {message}"


def test_options_reach_the_sampler(tiny_spec):
    assert build_order(tiny_spec()) is SHUFFLED
    for options in ({}, {"power": 1.0}):
        spec = tiny_spec(sampler={"kind": "balanced", **options})
        np.testing.assert_array_equal(
            build_order(spec).probabilities(LABELS), balanced(LABELS, **options)
        )


def test_the_batches_of_a_run(tiny_data, tiny_spec):
    """The sampled rows, each augmented separately; a late start gives the same batches."""
    rows = [(f"Dots/{i:02}.jpg", i) for i in range(12)]
    data = tiny_data(
        classes={"style": tuple(f"image {i}" for i in range(12))},
        rows={
            "style_train": rows,
            "genre_train": [(path, int(i == 5)) for path, i in rows],
            "artist_train": rows[:1],
        },
    )
    augment = {"brightness": 0.3}
    sampler = {"kind": "balanced", "power": 1.0}
    spec = tiny_spec(of_tasks={"augment": augment}, sampler=sampler)
    prepared = prepare(spec, data, progress=False)
    order = build_order(spec)
    batches = training_dataset(prepared, spec, order=order).take(12)
    batches = list(batches.as_numpy_iterator())
    assert [len(images) for images, *_ in batches] == [5, 5, 2] * 4
    style = [labels["style"] for _, labels, _ in batches]
    probabilities = balanced(prepared.table.labels[prepared.table.rows("train")], power=1.0)
    brightness = []
    for epoch in range(4):
        sampled = np.concatenate(style[3 * epoch : 3 * epoch + 3])
        np.testing.assert_array_equal(
            sampled, sample_rows(probabilities, spec.seed, tf.constant(epoch))
        )
        means = [images.mean(axis=(1, 2, 3)) for images, *_ in batches[3 * epoch : 3 * epoch + 3]]
        brightness += list(zip(sampled.tolist(), np.concatenate(means).tolist(), strict=True))
    for number in {number for number, _ in brightness}:
        of_one = [mean for other, mean in brightness if other == number]
        assert len(set(of_one)) == len(of_one)
    assert len({number for number, _ in brightness}) < len(brightness)

    late = training_dataset(prepared, spec, first_epoch=2, first_step=1, order=order)
    late = list(late.take(5).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, late, batches[7:])

    mix = build_mixing(tiny_spec(mix={"kind": "cutmix"}))["heads"]
    both = training_dataset(prepared, spec, order=order, transform=mix).take(3)
    for (images, labels, _), want in zip(both.as_numpy_iterator(), style, strict=False):
        assert images.shape == (len(want), 32, 32, 3)
        np.testing.assert_array_equal(labels["style"][:, 0], want)
