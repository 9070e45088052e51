"""Every metric is compared with a value that is computed in another way."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from multitask import metrics
from multitask.bootstrap import FEWEST_EXAMPLES

# Six examples of four classes; class 3 has no label, but is predicted once (example 4).
LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],
        [0.4, 0.3, 0.2, 0.1],
        [0.2, 0.6, 0.1, 0.1],
        [0.1, 0.8, 0.1, 0.0],
        [0.0, 0.1, 0.0, 0.9],
        [0.3, 0.3, 0.3, 0.1],  # a tie: the lowest index is predicted
    ]
)
PREDICTIONS = np.array([0, 0, 1, 1, 3, 0])


def random_examples(seed, n=200, classes=7, present=5):
    """Return labels of the first `present` classes and coarse probabilities, which have ties."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(0, 4, (n, classes)) + 1e-3
    return rng.integers(0, present, n), probabilities / probabilities.sum(1, keepdims=True)


def test_classification_metrics_by_hand():
    # F1 = 2 TP / (2 TP + FP + FN): class 0: 4/6, class 1: 2/4, class 2: 0. Class 3 is absent.
    result = metrics.classification_metrics(LABELS, PROBABILITIES, classes=4)
    assert result == {
        "labelled": 6,
        "top1": pytest.approx(3 / 6),
        "top5": 1.0,
        "macro_f1": pytest.approx((4 / 6 + 2 / 4 + 0) / 3),
        "weighted_f1": pytest.approx((3 * 4 / 6 + 2 * 2 / 4 + 0) / 6),
        "balanced_accuracy": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),
        "classes_present": 3,
    }
    assert {type(value) for value in result.values()} == {int, float}


@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_by_loops_and_by_scikit_learn(seed):
    labels, probabilities = random_examples(seed)
    result = metrics.classification_metrics(labels, probabilities, classes=7)
    predictions = probabilities.argmax(1)
    present = np.unique(labels)
    top5 = 0
    for label, row in zip(labels, probabilities, strict=True):
        ranking = sorted(range(7), key=lambda index: (-row[index], index))
        top5 += label in ranking[:5]
    for average in ("macro", "weighted"):
        expected = sklearn.metrics.f1_score(
            labels, predictions, labels=present, average=average, zero_division=0
        )
        assert result[f"{average}_f1"] == pytest.approx(expected)
    recall = np.mean([(predictions[labels == k] == k).mean() for k in present])
    assert result["balanced_accuracy"] == pytest.approx(recall)
    assert result["top5"] == pytest.approx(top5 / len(labels))
    assert result["top1"] == pytest.approx((predictions == labels).mean())
    assert result["classes_present"] == len(present) == 5


def test_constant_probabilities_do_not_score_by_ties():
    result = metrics.classification_metrics(np.arange(10), np.full((10, 10), 0.1), classes=10)
    assert (result["top1"], result["top5"]) == (0.1, 0.5)


def test_one_class():
    result = metrics.classification_metrics([0, 0], np.ones((2, 1)), classes=1)
    assert (result["top1"], result["top5"], result["macro_f1"]) == (1, 1, 1)


def test_no_labelled_example():
    empty = np.zeros((0, 3))
    result = metrics.classification_metrics([], empty, classes=3)
    assert (result.pop("labelled"), result.pop("classes_present")) == (0, 0)
    assert list(result) == ["top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy"]
    assert set(result.values()) == {None}
    assert metrics.report_text([], [], names=["a", "b"]) == "n/a (no test set)\n"
    assert metrics.confusion([], [], classes=3).tolist() == [[0] * 3] * 3
    table = metrics.per_class([], [], classes=3)
    assert table["support"].tolist() == [0, 0, 0]
    assert table["f1"].isna().all()
    assert metrics.outliers([], empty).tolist() == []
    assert math.isnan(metrics.expected_calibration_error([], empty))


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, -1], np.ones((2, 3)), r"0\.\.2 \(only labelled examples belong here\)"),
        ([0, 3], np.ones((2, 3)), "3 at position 1"),
        ([0.0, 1.0], np.ones((2, 3)), "integer"),
        ([[0], [1]], np.ones((2, 3)), "one-dimensional"),
        ([0], np.ones((2, 3)), r"\(2, 3\) do not match 1 labels"),
        ([0, 1], np.ones((2, 4)), "do not match 2 labels and 3 classes"),
        ([0, 1], np.ones(2), "do not match"),
        ([], np.ones(0), "do not match"),
        ([0, 1], np.array([[1, 0, 0], [0, np.nan, 0]]), "Row 1 is not"),
        ([0, 1], np.array([[1, 0, np.inf], [0, 0, 0]]), "finite"),
    ],
)
def test_classification_metrics_errors(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification_metrics(labels, probabilities, classes=3)


def test_errors_of_other_functions():
    with pytest.raises(ValueError, match="2 labels do not match 1 predictions"):
        metrics.confusion([0, 1], [0], classes=2)
    with pytest.raises(ValueError, match=r"predictions must be in 0..1"):
        metrics.per_class([0], [2], classes=2)
    with pytest.raises(ValueError, match="train_labels"):
        metrics.majority_baseline([-1], [0], classes=2)
    with pytest.raises(ValueError, match="bins"):
        metrics.expected_calibration_error([0], np.ones((1, 1)), bins=0)
    with pytest.raises(ValueError, match=r"labels must be in 0..1"):
        metrics.outliers([2], np.ones((1, 2)))


def test_majority_baseline():
    # Classes 1 and 2 tie in training, 1 is lower; F1 is 4/5 for class 1 and 0 for class 0.
    result = metrics.majority_baseline([2, 1, 1, 2, 0], [1, 1, 0], classes=4)
    assert result == {
        "class": 1,
        "top1": pytest.approx(2 / 3),
        "macro_f1": pytest.approx((4 / 5 + 0) / 2),
    }


@pytest.mark.parametrize(("train", "labels"), [([], [0]), ([0], []), ([], [])])
def test_majority_baseline_without_labels(train, labels):
    result = metrics.majority_baseline(train, labels, classes=2)
    assert result == {"class": None, "top1": None, "macro_f1": None}


def test_majority_baseline_of_a_class_without_test_label():
    assert metrics.majority_baseline([1], [0, 2], classes=3) == {
        "class": 1,
        "top1": 0.0,
        "macro_f1": 0.0,
    }


def test_per_class():
    table = metrics.per_class(LABELS, PREDICTIONS, classes=5)
    assert list(table.columns) == ["precision", "recall", "f1", "support"]
    assert table["support"].tolist() == [3, 2, 1, 0, 0]
    np.testing.assert_allclose(table["precision"], [2 / 3, 1 / 2, 0, np.nan, np.nan])
    np.testing.assert_allclose(table["recall"], [2 / 3, 1 / 2, 0, np.nan, np.nan])
    np.testing.assert_allclose(table["f1"], [2 / 3, 1 / 2, 0, np.nan, np.nan])


def test_confusion_by_a_loop():
    expected = np.zeros((5, 5), dtype=int)
    for label, prediction in zip(LABELS, PREDICTIONS, strict=True):
        expected[label, prediction] += 1
    result = metrics.confusion(LABELS, PREDICTIONS, classes=5)
    assert result.dtype.kind == "i"
    np.testing.assert_array_equal(result, expected)


def test_report_text():
    lines = metrics.report_text(LABELS, PREDICTIONS, names=["a", "b", "c", "d"]).splitlines()
    assert lines[0].startswith("6 labelled; 3 of 4 classes have a test label")
    rows = {line[:19].strip(): line[19:].split() for line in lines[2:] if line}
    assert rows["b"] == ["0.500", "0.500", "0.500", "2"]
    assert rows["d"] == ["0.000", "0.000", "0.000", "0"]
    mean = f"{(2 / 3 + 1 / 2) / 3:.3f}"
    assert rows["macro avg (present)"] == [mean, mean, mean, "6"]
    assert rows["macro avg"][2] == f"{(2 / 3 + 1 / 2) / 4:.3f}"
    assert len({len(line) for line in lines[2:] if line}) == 1, "columns are not aligned"


def test_report_text_is_aligned_under_long_names():
    text = metrics.report_text([0, 1], [0, 1], names=["Mannerism_Late_Renaissance" * 2, "é$"])
    assert len({len(line) for line in text.splitlines()[2:] if line}) == 1


def test_expected_calibration_error_by_hand():
    # Confidences .6 (right), .6 (wrong) and .9 (right) in ten bins: 2/3 |.5 - .6| + 1/3 |1 - .9|.
    probabilities = [[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]]
    result = metrics.expected_calibration_error([0, 1, 1], probabilities, bins=10)
    assert result == pytest.approx(2 / 3 * 0.1 + 1 / 3 * 0.1)
    assert metrics.expected_calibration_error([0, 1], np.eye(2)) == 0


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_expected_calibration_error_by_a_loop(bins):
    labels, probabilities = random_examples(11)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    result = metrics.expected_calibration_error(labels, probabilities, bins=bins)
    assert result == pytest.approx(expected)


def test_outliers():
    # Wrong: 4 (.9), 2 (.6), 5 (.3); correct with low confidence: 1 (.4). 0 and 3: correct, high.
    assert metrics.outliers(LABELS, PROBABILITIES).tolist() == [4, 2, 5, 1]
    assert metrics.outliers(LABELS, PROBABILITIES, below=0.75).tolist() == [4, 2, 5, 1, 0]
    assert metrics.outliers(LABELS, PROBABILITIES, below=0).tolist() == [4, 2, 5]


def test_outliers_keep_the_order_of_equal_examples():
    probabilities = np.tile([0.4, 0.3, 0.3], (6, 1))
    assert metrics.outliers([0, 1, 0, 2, 1, 0], probabilities).tolist() == [1, 3, 4, 0, 2, 5]


# === Intervals ===


def test_bootstrap_intervals_by_a_loop_over_samples():
    """The loop has other random numbers; results agree within the noise of 500 samples."""
    labels, probabilities = random_examples(5, n=120)
    intervals = metrics.bootstrap_intervals(labels, probabilities, classes=7, seed=3)
    rng, loop = np.random.default_rng(9), {name: [] for name in intervals}
    for _ in range(500):
        rows = rng.integers(len(labels), size=len(labels))
        sample = metrics.classification_metrics(labels[rows], probabilities[rows], classes=7)
        for name in intervals:
            loop[name].append(sample[name])
    point = metrics.classification_metrics(labels, probabilities, classes=7)
    for name, values in loop.items():
        np.testing.assert_allclose(intervals[name], np.quantile(values, [0.025, 0.975]), atol=0.02)
        assert intervals[name][0] <= point[name] <= intervals[name][1]
    repeated = metrics.bootstrap_intervals(labels, probabilities, classes=7, seed=3)
    assert repeated == intervals


def test_bootstrap_intervals_of_constant_samples():
    """Thirty examples without an error have no interval.

    An interval from 1 to 1 would claim that errors are impossible; they may only be rare.
    """
    one = metrics.bootstrap_intervals([1] * 30, np.tile([0, 1.0, 0], (30, 1)), classes=3)
    assert set(one.values()) == {None}
    none = metrics.bootstrap_intervals([], np.ones((0, 3)), classes=3)
    assert set(none.values()) == {None}


@pytest.mark.parametrize("count", [1, 2, FEWEST_EXAMPLES - 1, FEWEST_EXAMPLES])
def test_few_examples_have_no_interval(count):
    labels = np.arange(count) % 3
    probabilities = np.eye(3)[(labels + (np.arange(count) % 4 == 0)) % 3]
    intervals = metrics.bootstrap_intervals(labels, probabilities, classes=3)
    assert (intervals["top1"] is None) == (count < FEWEST_EXAMPLES)


@pytest.mark.parametrize("accuracy", [0.3, 0.5, 0.7, 0.9])
def test_intervals_of_enough_examples_contain_the_true_value(accuracy):
    """Exact, over all outcomes: k of n correct have the interval of the binomial distribution."""
    contained = {}
    for count in (FEWEST_EXAMPLES, 5):
        correct = np.arange(count + 1)
        low, high = (scipy.stats.binom.ppf(q, count, correct / count) for q in (0.025, 0.975))
        contains = (low <= accuracy * count + 1e-9) & (accuracy * count <= high + 1e-9)
        contained[count] = scipy.stats.binom.pmf(correct, count, accuracy)[contains].sum()
    assert contained[FEWEST_EXAMPLES] > 0.87
    assert contained[5] < contained[FEWEST_EXAMPLES]


# === Confidence ===


def test_reliability_by_hand():
    # .5 is in (.25, .5], which is closed on the right.
    probabilities = [[0.6, 0.4], [0.5, 0.5], [0.1, 0.9], [0.2, 0.8]]
    table = metrics.reliability([0, 1, 1, 0], probabilities, bins=4)
    assert table["count"].tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(table["low"], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(table["confidence"], [np.nan, 0.5, 0.6, 0.85])
    np.testing.assert_allclose(table["accuracy"], [np.nan, 0, 1, 0.5])


def test_threshold_curve_by_a_loop():
    rng = np.random.default_rng(2)
    confidence = rng.integers(1, 12, 60) / 12  # with ties
    correct = rng.random(60) < confidence
    curve = metrics.threshold_curve(confidence, correct)
    assert curve["threshold"].tolist() == sorted(set(confidence))
    for row in curve.itertuples():
        answered = confidence >= row.threshold
        assert row.answered == answered.sum()
        assert row.share_answered == pytest.approx(answered.mean())
        assert row.accuracy == pytest.approx(correct[answered].mean())


def test_threshold_curve_of_no_examples_and_of_different_shapes():
    assert len(metrics.threshold_curve([], [])) == 0
    with pytest.raises(ValueError, match="does not match"):
        metrics.threshold_curve([0.5], [True, False])


@pytest.mark.parametrize("count", [0, 1, 500])
def test_confusion_pairs_are_the_nonzero_cells(count):
    rng = np.random.default_rng(count)
    labels, predictions = rng.integers(0, 30, (2, count))
    counts = metrics.confusion(labels, predictions, classes=30)
    pairs = metrics.confusion_pairs(labels, predictions, classes=30)
    cells = [(t, p, counts[t, p]) for t in range(30) for p in range(30) if counts[t, p]]
    cells.sort(key=lambda cell: -cell[2])
    assert list(pairs.itertuples(index=False, name=None)) == cells
    assert list(pairs.columns) == ["true", "predicted", "count"]


def most_confused_by_hand(counts, limit):
    """Select the classes pair by pair, with Python lists."""
    classes, chosen = len(counts), []
    both = {(a, b): counts[a, b] + counts[b, a] for a in range(classes) for b in range(a)}
    pairs = sorted((pair for pair in both if both[pair]), key=lambda p: (-both[p], p[1], p[0]))
    for a, b in pairs:
        chosen += [c for c in (b, a) if c not in chosen]
    rest = sorted(range(classes), key=lambda c: -counts[c].sum())
    chosen += [c for c in rest if c not in chosen]
    return sorted(chosen[:limit])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [1, 2, 7, 30, 99])
def test_most_confused_by_hand(seed, limit):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 30, 60 * seed)
    predictions = np.where(rng.random(len(labels)) < 0.6, labels, rng.integers(0, 30, len(labels)))
    pairs = metrics.confusion_pairs(labels, predictions, classes=30)
    result = metrics.most_confused(pairs, classes=30, limit=limit)
    counts = metrics.confusion(labels, predictions, classes=30)
    assert result.tolist() == most_confused_by_hand(counts, limit)


def test_most_confused_of_correct_predictions():
    labels = np.repeat([4, 1, 3], [5, 9, 7])
    pairs = metrics.confusion_pairs(labels, labels, classes=6)
    assert metrics.most_confused(pairs, classes=6, limit=2).tolist() == [1, 3]


def test_confusion_order_groups_confused_classes():
    """Three blocks of classes that are confused with each other are shuffled."""
    rng = np.random.default_rng(0)
    block = np.repeat([0, 1, 2], [3, 2, 4])[rng.permutation(9)]
    counts = np.where(block[:, None] == block, 10, 0) + np.diag([30] * 9)
    order = metrics.confusion_order(counts)
    assert sorted(order) == list(range(9))
    assert len(list(itertools.groupby(block[order]))) == 3


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_confusion_order_of_few_classes_and_of_no_examples(classes):
    assert sorted(metrics.confusion_order(np.zeros((classes, classes)))) == list(range(classes))
