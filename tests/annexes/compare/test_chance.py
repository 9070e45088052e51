"""Chance in comparisons, against SciPy, scikit-learn and loops over resampled images."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from compared_runs import sampled_test_set

from multitask import bootstrap as bootstrap_module
from multitask import metrics
from multitask.annexes.compare.comparison import mcnemar
from multitask.bootstrap import PairedPredictions, bootstrap, scores


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),  # 2 · 1/2
        (5, 0, 2 / 32),
        (1, 6, 2 * (1 + 7) / 128),
        (3, 3, 1),
        (4, 3, 1),
    ],
)
def test_mcnemar_by_hand(first, second, p):
    """The two-sided share of the tail of a fair coin thrown once a discordant pair."""
    one = np.repeat([True, False, True, False], [first, second, 4, 3])
    two = np.repeat([False, True, True, False], [first, second, 4, 3])
    assert mcnemar(one, two) == pytest.approx(p)
    assert mcnemar(two, one) == pytest.approx(p)


def test_mcnemar_is_scipys_binomial_test():
    rng = np.random.default_rng(0)
    for share in rng.random(40):
        one, two = rng.random(300) < share, rng.random(300) < 0.5
        a, b = int((one & ~two).sum()), int((two & ~one).sum())
        expected = scipy.stats.binomtest(a, a + b, 0.5).pvalue
        assert mcnemar(one, two) == pytest.approx(expected, rel=1e-9)


def test_scores_are_those_of_metrics_and_scikit_learn():
    test_set, labels, probabilities = sampled_test_set()
    samples = scores(test_set, np.ones((1, len(labels))))
    for run, own in enumerate(probabilities):
        expected = metrics.classification_metrics(labels, own, classes=6)
        assert set(samples) == set(expected) - {"labelled", "classes_present"}
        for name, values in samples.items():
            assert values.shape == (1, 2)
            assert values[0, run] == pytest.approx(expected[name])
        predicted = own.argmax(axis=1)
        macro = sklearn.metrics.f1_score(labels, predicted, average="macro")
        assert samples["macro_f1"][0, run] == pytest.approx(macro)


def test_scores_of_weighted_examples_are_those_of_repeated_ones():
    """The averages exclude a class that is not in the sample."""
    test_set, labels, probabilities = sampled_test_set(count=25)
    weights = np.random.default_rng(3).multinomial(25, np.ones(25) / 25, 5)
    weights[:, labels == labels[0]] = 0
    samples = scores(test_set, weights * 1.0)
    for draw, counts in enumerate(weights):
        sample = np.repeat(np.arange(25), counts)
        for run, own in enumerate(probabilities):
            expected = metrics.classification_metrics(labels[sample], own[sample], classes=6)
            for name, values in samples.items():
                assert values[draw, run] == pytest.approx(expected[name]), name


def test_intervals_are_those_of_a_loop_over_resampled_images():
    test_set, labels, probabilities = sampled_test_set(count=150)
    samples = bootstrap(test_set, draws=4000, seed=1)
    rng = np.random.default_rng(11)
    predicted = [own.argmax(axis=1) for own in probabilities]
    looped = {"top1": [], "macro_f1": [], "top5": [], "balanced_accuracy": []}
    for _ in range(1500):
        at = rng.integers(0, 150, 150)
        true = labels[at]
        of = []
        for classes, probability in zip(predicted, probabilities, strict=True):
            classes, probability = classes[at], probability[at]
            f1, recall = [], []
            for label in np.unique(true):
                right = ((true == label) & (classes == label)).sum()
                f1.append(2 * right / ((true == label).sum() + (classes == label).sum()))
                recall.append(right / (true == label).sum())
            best = np.argsort(-probability, axis=1)[:, :5]
            of.append(
                {
                    "top1": np.mean(true == classes),
                    "macro_f1": np.mean(f1),
                    "top5": np.mean((best == true[:, None]).any(axis=1)),
                    "balanced_accuracy": np.mean(recall),
                }
            )
        for name, values in looped.items():
            values.append(of[1][name] - of[0][name])
    for name, values in looped.items():
        sampled = samples[name][:, 1] - samples[name][:, 0]
        spread = np.std(values)
        assert np.std(sampled) == pytest.approx(spread, rel=0.1)
        # A 2.5 % point has a standard error of about 2.7 spreads over the root of the draws.
        error = 4 * 2.7 * spread * math.sqrt(1 / 1500 + 1 / 4000)
        for end in (0.025, 0.975):
            assert np.quantile(sampled, end) == pytest.approx(np.quantile(values, end), abs=error)


def test_draws_are_seeded_and_taken_in_parts(monkeypatch):
    test_set, _, _ = sampled_test_set()
    whole = bootstrap(test_set, draws=50, seed=3)
    monkeypatch.setattr(bootstrap_module, "_CELLS", 300)
    parts = bootstrap(test_set, draws=50, seed=3)
    other = bootstrap(test_set, draws=50, seed=4)
    for name, values in whole.items():
        assert values.shape == (50, 2)
        np.testing.assert_array_equal(parts[name], values)
        assert (other[name] != values).any()


def test_of_a_single_class_that_is_always_right_nothing_is_chance():
    test_set = PairedPredictions(np.zeros(9, int), np.zeros((2, 9), int), np.ones((2, 9), bool))
    for values in bootstrap(test_set, draws=20).values():
        assert (values == 1).all()
