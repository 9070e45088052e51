"""Temperature scaling against SciPy and a grid; thresholds against plain loops."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from multitask.calibration import (
    FOLD_SEED,
    FOLDS,
    MIN_ANSWERED,
    MIN_CLASSES,
    MIN_IMAGES,
    TEMPERATURES,
    Calibration,
    calibrate,
    calibration_metrics,
    fit_temperature,
    mean_nll,
    min_answered,
    scale_probabilities,
    usable_temperature,
)
from multitask.metrics import expected_calibration_error


def sampled(seed, *, examples=400, classes=5, sharpness=3.0):
    """Logits, and labels sampled from softmax(logits): at temperature 1 they are calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (examples, classes))
    chances = scipy.special.softmax(logits, axis=1)
    labels = (chances.cumsum(axis=1) > rng.random((examples, 1))).argmax(axis=1)
    return labels, logits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaling_is_the_softmax_of_divided_logits(temperature, dtype):
    _, logits = sampled(0)
    raw = scipy.special.softmax(logits, axis=1).astype(dtype)
    scaled = scale_probabilities(raw, temperature)
    assert scaled.dtype == dtype
    expected = scipy.special.softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(scaled, expected, atol=2e-6)


def test_scaling_accepts_probabilities_of_zero_and_one():
    scaled = scale_probabilities(np.array([[1, 0, 0]], np.float32), 2.0)
    np.testing.assert_allclose(scaled, [[1, 0, 0]], atol=1e-12)
    assert np.isfinite(scaled).all()


def test_mean_nll_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.2, 0.8]])
    assert mean_nll(np.array([0, 1]), probabilities) == pytest.approx(
        -(np.log(0.5) + np.log(0.8)) / 2
    )


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_is_recovered(true):
    """The logits are `true` times those that the labels are sampled from."""
    labels, logits = sampled(1, examples=4000)
    raw = scipy.special.softmax(logits * true, axis=1)
    temperature = fit_temperature(labels, raw)
    assert temperature == pytest.approx(true, rel=0.08)
    grid = np.exp(np.linspace(*np.log(TEMPERATURES), 2001))
    losses = [mean_nll(labels, scipy.special.softmax(logits * true / t, axis=1)) for t in grid]
    assert temperature == pytest.approx(grid[np.argmin(losses)], rel=0.01)


def test_without_images_nothing_is_scaled():
    calibration = calibrate(np.zeros(0, int), np.ones((0, 3), np.float32))
    assert calibration.temperature == 1
    assert calibration.fitted_on == 0
    assert calibration.reason == "no validation image has a label"
    assert calibration.threshold(0.5) is None
    assert calibration.highest() is None


def test_thresholds_by_a_loop():
    labels, logits = sampled(2, sharpness=1.5)
    raw = scipy.special.softmax(logits * 2, axis=1)
    calibration = calibrate(labels, raw)
    correct = raw.argmax(axis=1) == labels
    for calibrated in (True, False):
        confidence = scale_probabilities(raw, calibration.temperature if calibrated else 1.0).max(
            axis=1
        )
        for target in (0.5, 0.7, 0.9, 0.95, 1.0):
            reached = [
                t
                for t in sorted(confidence)
                if (confidence >= t).sum() >= MIN_ANSWERED
                and correct[confidence >= t].mean() >= target
                # Faultless answers of an accuracy just below are less likely than 1 in 20.
                and (confidence >= t).sum() >= min_answered(target)
            ]
            expected = pytest.approx(reached[0]) if reached else None
            assert calibration.threshold(target, calibrated=calibrated) == expected
            reason = calibration.why_no_threshold(target, calibrated=calibrated)
            assert (reason is None) == (expected is not None)
    assert calibration.threshold(calibration.highest() + 1e-9) is None


@pytest.mark.parametrize("accuracy", [0.75, 0.8, 0.9, 0.95, 0.99])
def test_the_minimum_number_of_images_for_an_accuracy(accuracy):
    """A model with a slightly lower accuracy makes no error in n images in 5 % of the cases."""
    least = min_answered(accuracy)
    assert accuracy**least <= 0.05 < accuracy ** (least * 0.85)


def test_why_there_is_no_threshold():
    steps = ((0.2, 0.7, 1.0), (0.5, 0.85, 0.4), (0.9, 1.0, 0.1))
    calibration = Calibration(1.0, 100, {"calibrated": steps, "raw": ()})
    assert calibration.threshold(0.8) == 0.5
    assert calibration.why_no_threshold(0.8) is None
    assert calibration.threshold(0.9) is None
    assert (
        calibration.why_no_threshold(0.9) == "10 validation images reach it, at least 30 are needed"
    )
    assert calibration.why_no_threshold(0.8, calibrated=False) == "this accuracy is never reached"
    assert calibration.why_no_threshold(1.0) == "no number of images can show an accuracy of 1"
    few = Calibration(1.0, 12, {"calibrated": steps, "raw": ()})
    line = "only 12 validation images have a label, at least 15 are needed"
    assert few.threshold(0.8) is None
    assert few.why_no_threshold(0.8) == line
    lower = Calibration(1.0, 100, {"calibrated": steps[:1], "raw": ()})
    assert lower.why_no_threshold(0.8) == "this accuracy is never reached, at most 0.700"
    none = Calibration(reason="there is no validation split")
    assert none.why_no_threshold(0.8) == "there is no validation split"


# === When the temperature is 1 ===


@pytest.mark.parametrize("count", [1, 5, 8, MIN_IMAGES - 1])
def test_few_images_give_no_temperature(count):
    """5 to 8 images, all predicted right, gave T = .05, which is the bound."""
    labels = np.arange(count) % 3
    raw = scipy.special.softmax(3.0 * np.eye(3)[labels], axis=1)
    assert fit_temperature(labels, raw) < 0.1
    calibration = calibrate(labels, raw)
    noun = "image has" if count == 1 else "images have"
    assert calibration.temperature == 1
    assert calibration.fitted_on == count
    assert calibration.reason == (
        f"only {count} validation {noun} a label, at least {MIN_IMAGES} are needed"
    )


def test_one_class_gives_no_temperature():
    _, logits = sampled(5, examples=200)
    calibration = calibrate(np.full(200, MIN_CLASSES - 1), scipy.special.softmax(logits, axis=1))
    assert calibration.temperature == 1
    assert calibration.reason == "the 200 validation images are all of one class"
    one = calibrate(np.zeros(200, int), np.ones((200, 1)))  # a task with a single class
    assert one.temperature == 1


@pytest.mark.parametrize("sharpness", [2.0, 12.0])
@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_at_its_bound_is_not_used(right, sharpness):
    """If all are right, a lower temperature is always better; if all are wrong, a higher one."""
    labels = np.arange(90) % 3
    predicted = labels if right else (labels + 1) % 3
    calibration = calibrate(labels, scipy.special.softmax(sharpness * np.eye(3)[predicted], axis=1))
    assert calibration.temperature == 1
    assert calibration.reason == "the validation images give no temperature between 0.05 and 20"


def test_the_temperature_is_chosen_by_cross_validation():
    """By a loop over the folds and images, with SciPy's softmax."""
    used = []
    for seed in range(30):
        true = (1.0, 1.4, 2.5)[seed % 3]
        labels, logits = sampled(100 + seed, examples=60, sharpness=2.0)
        raw = scipy.special.softmax(true * logits, axis=1)
        folds = np.random.default_rng(FOLD_SEED).permutation(60) % FOLDS
        gains = []
        for fold in range(FOLDS):
            fitted = fit_temperature(labels[folds != fold], raw[folds != fold])
            for row in np.flatnonzero(folds == fold):
                after = scipy.special.log_softmax(true * logits[row] / fitted)[labels[row]]
                gains.append(after - np.log(raw[row, labels[row]]))
        better = np.mean(gains) > scipy.stats.sem(gains)
        temperature, reason = usable_temperature(labels, raw)
        assert temperature == (fit_temperature(labels, raw) if better else 1)
        assert (reason is None) == better
        if reason:
            assert reason.endswith("on 60 validation images, is not clearly better in cross-valida"
                                   "tion")  # fmt: skip
        used.append(better)
    assert sum(used[2::3]) == 10  # of 2.5
    assert sum(used[::3]) <= 2  # of what is calibrated already


def test_the_used_temperature_costs_little():
    """A short version of `tools/measure_calibration.py`, which gives the two minimums."""
    for true in (0.6, 1.0, 2.0):
        labels, logits = sampled(7, examples=4000, classes=3, sharpness=2.0)
        raw = scipy.special.softmax(true * logits, axis=1)
        plain = mean_nll(labels, raw)
        costs = []
        for seed in range(40):
            few, some = sampled(1000 + seed, examples=MIN_IMAGES, classes=3, sharpness=2.0)
            temperature, _ = usable_temperature(few, scipy.special.softmax(true * some, axis=1))
            costs.append(mean_nll(labels, scale_probabilities(raw, temperature)) - plain)
        assert np.mean(costs) < 0.01
        assert np.mean(np.array(costs) > 0.02) <= 0.1


def test_a_calibration_is_restored_from_json():
    labels, logits = sampled(3)
    calibration = calibrate(labels, scipy.special.softmax(logits, axis=1))
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    for broken in ({}, {"temperature": 0, "fitted_on": 1, "steps": {}}, {"temperature": "x"}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            Calibration.from_dict(broken)
    with pytest.raises(ValueError, match="reason 3"):
        Calibration.from_dict(calibration.to_dict() | {"reason": 3})


def test_a_file_of_an_older_version_is_read():
    """Such a file has no reasons, a temperature at its bound and thresholds of 10 images."""
    steps = {"calibrated": [[0.2, 0.7, 1.0], [0.9, 1.0, 0.3125]], "raw": []}
    calibration = Calibration.from_dict({"temperature": 0.05, "fitted_on": 32, "steps": steps})
    assert (calibration.temperature, calibration.fitted_on, calibration.reason) == (0.05, 32, None)
    assert calibration.highest() == 1.0
    assert calibration.threshold(0.9) is None
    assert (
        calibration.why_no_threshold(0.9) == "10 validation images reach it, at least 30 are needed"
    )


def test_the_metrics_on_a_test_set():
    labels, logits = sampled(4, examples=900)
    raw = scipy.special.softmax(logits * 3, axis=1)
    calibration = calibrate(labels[:300], raw[:300])
    labels, raw = labels[300:], raw[300:]
    values = calibration_metrics(calibration, labels, raw)
    sure = scipy.special.softmax(logits[300:] * 3 / calibration.temperature, axis=1)
    assert values["ece"]["raw"] == expected_calibration_error(labels, raw)
    assert values["ece"]["calibrated"] == pytest.approx(expected_calibration_error(labels, sure))
    assert values["ece"]["calibrated"] < values["ece"]["raw"] / 2
    assert values["nll"]["calibrated"] == pytest.approx(mean_nll(labels, sure))
    for kind in ("raw", "calibrated"):
        assert sum(row["count"] for row in values["reliability"][kind]) == 600
    confidence, correct = sure.max(axis=1), sure.argmax(axis=1) == labels
    assert values["coverage"][0]["coverage"] == 1
    assert values["coverage"][0]["accuracy"] == pytest.approx(correct.mean())
    for at in values["thresholds"]:
        answered = confidence >= at["threshold"] - 1e-12
        assert at["test"]["coverage"] == pytest.approx(answered.mean())
        assert at["test"]["accuracy"] == pytest.approx(correct[answered].mean())
        assert at["validation"]["accuracy"] >= at["target_accuracy"]


def test_an_accuracy_that_is_never_reached_has_no_threshold():
    labels = np.array([0, 1] * 20)
    raw = np.tile([0.6, 0.4], (40, 1))
    values = calibration_metrics(calibrate(labels, raw), labels, raw)
    assert [at["threshold"] for at in values["thresholds"]] == [None] * 3
    assert values["thresholds"][0]["test"] is None
    assert values["thresholds"][0]["reason"] == "this accuracy is never reached, at most 0.500"


def test_the_metrics_without_labels():
    values = calibration_metrics(Calibration(2.0, 30, {}), np.zeros(0, int), np.ones((0, 2)))
    assert values == {"temperature": 2.0, "fitted_on": 30, "reason": None}


def test_extreme_probabilities_are_scaled_exactly():
    """The smaller probabilities underflow to 0 in float32."""
    logits = np.array([[0.0, -150.0, -400.0]])
    scaled = scale_probabilities(scipy.special.softmax(logits, axis=1), 20.0)
    expected = scipy.special.softmax(logits / 20, axis=1)
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)
    assert expected[0, 1] > 5e-4
