"""Scores, probabilities and metrics of open-set recognition, against other implementations."""

import numpy as np
import pytest
from scipy.special import expit, logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from multitask import calibration, open_set
from multitask.open_set import Rejection
from multitask.spec import OTHER_LABEL


def scores_of(seed=0, known=400, other=700):
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 1.5, known), rng.normal(0.5, 1.0, other)


def test_a_score_is_the_free_energy():
    logits = np.random.default_rng(0).normal(0, 5, (50, 7))
    assert open_set.known_scores(logits) == pytest.approx(logsumexp(logits, axis=1))


def test_the_classes_compete_with_a_class_of_logit_zero():
    logits = np.random.default_rng(0).normal(0, 2, (20, 4))
    extended = np.concatenate([logits, np.zeros((20, 1))], axis=1)
    known = Rejection().known(open_set.known_scores(logits))
    result = open_set.open_probabilities(softmax(logits, axis=1), known)
    assert result == pytest.approx(softmax(extended, axis=1))


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_logistic_regression(seed):
    known, other = scores_of(seed)
    fitted = open_set.fit_rejection(known, other)
    # A smoothed target is an example of each class, weighted.
    high, low = (len(known) + 1) / (len(known) + 2), 1 / (len(other) + 2)
    scores = np.concatenate([known, other])
    target = np.repeat([high, low], [len(known), len(other)])
    model = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(
        np.tile(scores, 2)[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    assert fitted.slope == pytest.approx(model.coef_[0, 0], rel=1e-3)
    assert fitted.offset == pytest.approx(model.intercept_[0], rel=1e-3, abs=1e-3)
    assert (fitted.others, fitted.reason) == (len(other), None)
    assert fitted.known(scores) == pytest.approx(expit(fitted.slope * scores + fitted.offset))


def test_separable_scores_have_a_finite_slope():
    fitted = open_set.fit_rejection(np.linspace(5, 6, 40), np.linspace(0, 1, 40))
    assert fitted.reason is None
    assert 0 < fitted.slope < 100
    known = fitted.known(np.array([0.5, 5.5]))
    assert known[0] < 0.1 < 0.9 < known[1]


@pytest.mark.parametrize(
    ("known", "other", "reason"),
    [
        (np.ones(29), np.zeros(99), "29 validation images with one of the classes, at least 30"),
        (np.ones(99), np.zeros(29), "29 validation images without one of the classes"),
        (np.linspace(0, 1, 50), np.linspace(2, 3, 50), "do not separate"),
        (np.ones(50), np.ones(50), "do not separate"),
    ],
)
def test_without_evidence_it_stays_as_trained(known, other, reason):
    fitted = open_set.fit_rejection(known, other)
    assert (fitted.slope, fitted.offset, fitted.others) == (1.0, 0.0, len(other))
    assert reason in fitted.reason


def test_a_rejection_survives_json():
    one = Rejection(1.5, -0.25, 77, None)
    assert Rejection.from_dict(one.to_dict()) == one
    for broken in ({"slope": -1.0}, {"offset": float("nan")}, {"reason": 3}):
        with pytest.raises(ValueError, match="re"):
            Rejection.from_dict(one.to_dict() | broken)


def test_auroc_counts_ties_half():
    known, other = scores_of()
    known, other = known.round(1), other.round(1)
    expected = roc_auc_score(
        np.repeat([1, 0], [len(known), len(other)]), np.concatenate([known, other])
    )
    assert open_set.auroc(known, other) == pytest.approx(expected)
    assert open_set.auroc(np.array([1.0]), np.array([1.0])) == 0.5


@pytest.mark.parametrize("count", [1, 19, 20, 21, 100])
def test_fpr_at_the_highest_threshold_that_keeps_enough(count):
    rng = np.random.default_rng(count)
    known, other = rng.normal(1, 1, count), rng.normal(0, 1, 57)
    rates = [
        (other >= threshold).mean() for threshold in known if (known >= threshold).mean() >= 0.95
    ]
    assert open_set.fpr_at_tpr(known, other) == min(rates)


def test_the_oscr_curve_counts_at_every_threshold():
    rng = np.random.default_rng(1)
    confidence, other = rng.random(60).round(1), rng.random(90).round(1)
    correct = rng.random(60) < 0.7
    false, right = open_set.oscr_curve(confidence, correct, other)
    thresholds = sorted({*confidence, *other}, reverse=True)
    assert false.tolist() == [0.0, *((other >= t).mean() for t in thresholds)]
    assert right.tolist() == [0.0, *(((confidence >= t) & correct).mean() for t in thresholds)]
    area = sum(
        (false[i + 1] - false[i]) * (right[i + 1] + right[i]) / 2 for i in range(len(thresholds))
    )
    assert open_set.oscr_area(false, right) == pytest.approx(area)


def test_the_area_of_perfect_rejection_is_the_accuracy():
    correct = np.arange(10) < 7
    false, right = open_set.oscr_curve(np.full(10, 0.9), correct, np.full(5, 0.1))
    assert open_set.oscr_area(false, right) == pytest.approx(0.7)


def test_intervals_hold_the_value_and_are_repeatable():
    known, other = scores_of()
    result = open_set.open_set_metrics(known, other, draws=200)
    assert result == open_set.open_set_metrics(known, other, draws=200)
    assert result["images"] == len(other)
    for name in ("auroc", "fpr95"):
        low, high = result["intervals"][name]
        assert low < result[name] < high
    # The standard error of an AUROC (Hanley and McNeil 1982).
    area, n, m = result["auroc"], len(known), len(other)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt(
        (area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    )
    low, high = result["intervals"]["auroc"]
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.3)


@pytest.mark.parametrize(("known", "other"), [(0, 9), (9, 0), (9, 19)])
def test_few_images(known, other):
    result = open_set.open_set_metrics(np.ones(known), np.zeros(other))
    assert result["auroc"] == (1.0 if known and other else None)
    assert result["intervals"]["auroc"] is None


# === The calibration of an open task ===


def open_task(seed=0, count=600, classes=3):
    """Labels, half of them OTHER_LABEL, and logits that are lower there."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(count) < 0.5, rng.integers(0, classes, count), OTHER_LABEL)
    logits = rng.normal(0, 1, (count, classes)) - 1.0
    known = np.flatnonzero(labels >= 0)
    logits[known, labels[known]] += 3.0
    return labels, logits


def test_thresholds_hold_over_all_images():
    labels, logits = open_task()
    probabilities, scores = softmax(logits, axis=1), open_set.known_scores(logits)
    fitted = calibration.calibrate(labels, probabilities, scores)
    threshold = fitted.threshold(0.9)
    known = expit(fitted.rejection.slope * scores + fitted.rejection.offset)
    scaled = softmax(logits / fitted.temperature, axis=1)
    confidence = known * scaled.max(axis=1)
    named = confidence > 1 - known
    answered = named & (confidence >= threshold)
    right = scaled.argmax(axis=1) == labels
    assert right[answered].mean() >= 0.9
    # It is the lowest: every lower threshold misses the accuracy.
    for lower in np.unique(confidence[named & (confidence < threshold)]):
        assert right[named & (confidence >= lower)].mean() < 0.9
    step = next(s for s in fitted.steps["calibrated"] if s[0] == threshold)
    assert step[2] == pytest.approx(answered.mean())
    # The same threshold without the other images would be too low.
    closed = calibration.calibrate(labels[labels >= 0], probabilities[labels >= 0]).threshold(0.9)
    assert closed < threshold


def test_the_reason_for_no_threshold_counts_all_images():
    """The thresholds of an open task are over the images without a label too."""
    steps = {"calibrated": ((0.5, 0.7, 1.0),), "raw": ()}
    rejection = open_set.Rejection(others=20)
    few = calibration.Calibration(1.0, 12, steps, None, rejection)
    assert few.why_no_threshold(0.8) == "this accuracy is never reached, at most 0.700"
    fewer = calibration.Calibration(1.0, 2, steps, None, open_set.Rejection(others=10))
    assert fewer.why_no_threshold(0.8) == (
        "only 12 validation images have a label or none of the classes, at least 15 are needed"
    )


def test_the_temperature_is_that_of_the_labelled_images():
    labels, logits = open_task()
    probabilities = softmax(logits, axis=1)
    fitted = calibration.calibrate(labels, probabilities, open_set.known_scores(logits))
    closed = calibration.calibrate(labels[labels >= 0], probabilities[labels >= 0])
    assert (fitted.temperature, fitted.fitted_on) == (closed.temperature, closed.fitted_on)
    assert closed.rejection is None
    assert fitted.rejection.others == (labels == OTHER_LABEL).sum()
    assert calibration.Calibration.from_dict(fitted.to_dict()) == fitted
    assert "rejection" not in closed.to_dict()


def test_metrics_of_an_open_calibration_are_those_of_all_answers():
    labels, logits = open_task(1)
    probabilities, scores = softmax(logits, axis=1), open_set.known_scores(logits)
    fitted = calibration.calibrate(
        *open_task(2)[:1], softmax(open_task(2)[1], axis=1), open_set.known_scores(open_task(2)[1])
    )
    result = calibration.calibration_metrics(fitted, labels, probabilities, scores)
    answers = fitted.answers(
        calibration.scale_probabilities(probabilities, fitted.temperature), scores
    )
    row = next(row for row in result["thresholds"] if row["target_accuracy"] == 0.9)
    named = answers.argmax(axis=1) < 3
    answered = named & (answers.max(axis=1) >= row["threshold"])
    right = answers.argmax(axis=1) == labels
    assert row["test"]["accuracy"] == pytest.approx(right[answered].mean())
    assert row["test"]["coverage"] == pytest.approx(answered.mean())
    # Errors of calibration are those of the labelled images.
    closed = calibration.calibration_metrics(
        fitted, labels[labels >= 0], probabilities[labels >= 0]
    )
    assert result["ece"] == closed["ece"]
