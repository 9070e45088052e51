"""Temperature scaling against SciPy and a grid; thresholds against plain loops."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from multitask.evaluation.calibration import (
    FEWEST_ANSWERED,
    FEWEST_CLASSES,
    FEWEST_FITTED,
    FOLD_SEED,
    FOLDS,
    TEMPERATURES,
    Calibration,
    calibrate,
    fewest_answered,
    fit_temperature,
    judge_calibration,
    mean_nll,
    scaled,
    usable_temperature,
)
from multitask.evaluation.predictions import softmax
from multitask.metrics import expected_calibration_error


def drawn(seed, *, examples=400, classes=5, sharpness=3.0):
    """Logits, and labels drawn from softmax(logits): at temperature 1 they are calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (examples, classes))
    chances = scipy.special.softmax(logits, axis=1)
    labels = (chances.cumsum(axis=1) > rng.random((examples, 1))).argmax(axis=1)
    return labels, logits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_is_softmax_of_divided_logits(temperature, dtype):
    _, logits = drawn(0)
    raw = scipy.special.softmax(logits, axis=1).astype(dtype)
    found = scaled(raw, temperature)
    assert found.dtype == dtype
    expected = scipy.special.softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_scaled_takes_probabilities_of_zero_and_one():
    found = scaled(np.array([[1, 0, 0]], np.float32), 2.0)
    np.testing.assert_allclose(found, [[1, 0, 0]], atol=1e-12)
    assert np.isfinite(found).all()


def test_mean_nll_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.2, 0.8]])
    assert mean_nll(np.array([0, 1]), probabilities) == pytest.approx(
        -(np.log(0.5) + np.log(0.8)) / 2
    )


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(true):
    """Logits that are `true` times as sharp as the labels warrant."""
    labels, logits = drawn(1, examples=4000)
    raw = scipy.special.softmax(logits * true, axis=1)
    found = fit_temperature(labels, raw)
    assert found == pytest.approx(true, rel=0.08)
    grid = np.exp(np.linspace(*np.log(TEMPERATURES), 2001))
    losses = [mean_nll(labels, scipy.special.softmax(logits * true / t, axis=1)) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.01)


def test_without_pictures_nothing_is_scaled():
    found = calibrate(np.zeros(0, int), np.ones((0, 3), np.float32))
    assert found.temperature == 1 and found.fitted_on == 0
    assert found.reason == "no validation image has a label"
    assert found.threshold(0.5) is None and found.highest() is None


def test_thresholds_by_a_loop():
    labels, logits = drawn(2, sharpness=1.5)
    raw = scipy.special.softmax(logits * 2, axis=1)
    found = calibrate(labels, raw)
    correct = raw.argmax(axis=1) == labels
    for calibrated in (True, False):
        confidence = scaled(raw, found.temperature if calibrated else 1.0).max(axis=1)
        for wished in (0.5, 0.7, 0.9, 0.95, 1.0):
            reached = [
                t
                for t in sorted(confidence)
                if (confidence >= t).sum() >= FEWEST_ANSWERED
                and correct[confidence >= t].mean() >= wished
                # Faultless answers of an accuracy just below are less likely than 1 in 20.
                and (confidence >= t).sum() >= fewest_answered(wished)
            ]
            expected = pytest.approx(reached[0]) if reached else None
            assert found.threshold(wished, calibrated=calibrated) == expected
            reason = found.why_no_threshold(wished, calibrated=calibrated)
            assert (reason is None) == (expected is not None)
    assert found.threshold(found.highest() + 1e-9) is None


@pytest.mark.parametrize("accuracy", [0.75, 0.8, 0.9, 0.95, 0.99])
def test_fewer_images_cannot_show_an_accuracy(accuracy):
    """Of a model that is right slightly less often, all n answers are right in 5 % of the cases."""
    least = fewest_answered(accuracy)
    assert accuracy**least <= 0.05 < accuracy ** (least * 0.85)


def test_why_there_is_no_threshold():
    steps = ((0.2, 0.7, 1.0), (0.5, 0.85, 0.4), (0.9, 1.0, 0.1))
    found = Calibration(1.0, 100, {"calibrated": steps, "raw": ()})
    assert found.threshold(0.8) == 0.5
    assert found.why_no_threshold(0.8) is None
    assert found.threshold(0.9) is None
    assert found.why_no_threshold(0.9) == "10 validation images reach it, at least 30 are needed"
    assert found.why_no_threshold(0.8, calibrated=False) == "never right that often"
    assert found.why_no_threshold(1.0) == "no number of images can show that all are right"
    few = Calibration(1.0, 12, {"calibrated": steps, "raw": ()})
    line = "only 12 validation images have a label, at least 15 are needed"
    assert few.threshold(0.8) is None
    assert few.why_no_threshold(0.8) == line
    lower = Calibration(1.0, 100, {"calibrated": steps[:1], "raw": ()})
    assert lower.why_no_threshold(0.8) == "never right that often, at most 0.700"
    none = Calibration(reason="there is no validation split")
    assert none.why_no_threshold(0.8) == "there is no validation split"


# === When the temperature is 1 ===


@pytest.mark.parametrize("count", [1, 5, 8, FEWEST_FITTED - 1])
def test_of_few_images_no_temperature_is_fitted(count):
    """The case: 5 to 8 images, all of them right, had T = .05, the bound."""
    labels = np.arange(count) % 3
    raw = scipy.special.softmax(3.0 * np.eye(3)[labels], axis=1)
    assert fit_temperature(labels, raw) < 0.1
    found = calibrate(labels, raw)
    noun = "image has" if count == 1 else "images have"
    assert found.temperature == 1
    assert found.fitted_on == count
    assert found.reason == (
        f"only {count} validation {noun} a label, at least {FEWEST_FITTED} are needed"
    )


def test_of_one_class_no_temperature_is_fitted():
    _, logits = drawn(5, examples=200)
    found = calibrate(np.full(200, FEWEST_CLASSES - 1), scipy.special.softmax(logits, axis=1))
    assert found.temperature == 1
    assert found.reason == "the 200 validation images are all of one class"
    one = calibrate(np.zeros(200, int), np.ones((200, 1)))  # a task with a single class
    assert one.temperature == 1


@pytest.mark.parametrize("sharpness", [2.0, 12.0])
@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_at_its_bound_is_not_used(right, sharpness):
    """Always right: the sharper the better. Always wrong: the flatter the better."""
    labels = np.arange(90) % 3
    said = labels if right else (labels + 1) % 3
    found = calibrate(labels, scipy.special.softmax(sharpness * np.eye(3)[said], axis=1))
    assert found.temperature == 1
    assert found.reason == "the validation images give no temperature between 0.05 and 20"


def test_the_better_of_the_temperature_and_1_in_cross_validation():
    """Against a loop over the folds, image by image, with SciPy's softmax."""
    used = []
    for seed in range(30):
        true = (1.0, 1.4, 2.5)[seed % 3]
        labels, logits = drawn(100 + seed, examples=60, sharpness=2.0)
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


def test_what_is_used_costs_little_whatever_the_right_temperature_is():
    """The two numbers' reason, measured as `tools/measure_calibration.py` does, in short."""
    for true in (0.6, 1.0, 2.0):
        labels, logits = drawn(7, examples=4000, classes=3, sharpness=2.0)
        raw = scipy.special.softmax(true * logits, axis=1)
        plain = mean_nll(labels, raw)
        costs = []
        for seed in range(40):
            few, some = drawn(1000 + seed, examples=FEWEST_FITTED, classes=3, sharpness=2.0)
            temperature, _ = usable_temperature(few, scipy.special.softmax(true * some, axis=1))
            costs.append(mean_nll(labels, scaled(raw, temperature)) - plain)
        assert np.mean(costs) < 0.01
        assert np.mean(np.array(costs) > 0.02) <= 0.1


def test_it_comes_back_from_json():
    labels, logits = drawn(3)
    found = calibrate(labels, scipy.special.softmax(logits, axis=1))
    assert Calibration.from_dict(found.to_dict()) == found
    for broken in ({}, {"temperature": 0, "fitted_on": 1, "steps": {}}, {"temperature": "x"}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            Calibration.from_dict(broken)
    with pytest.raises(ValueError, match="reason 3"):
        Calibration.from_dict(found.to_dict() | {"reason": 3})


def test_a_file_of_an_older_version_is_read():
    """Without reasons, with a temperature at its bound, and with thresholds of 10 images."""
    steps = {"calibrated": [[0.2, 0.7, 1.0], [0.9, 1.0, 0.3125]], "raw": []}
    found = Calibration.from_dict({"temperature": 0.05, "fitted_on": 32, "steps": steps})
    assert (found.temperature, found.fitted_on, found.reason) == (0.05, 32, None)
    assert found.highest() == 1.0
    assert found.threshold(0.9) is None
    assert found.why_no_threshold(0.9) == "10 validation images reach it, at least 30 are needed"


def test_what_it_is_worth_on_an_exam():
    labels, logits = drawn(4, examples=900)
    raw = scipy.special.softmax(logits * 3, axis=1)
    found = calibrate(labels[:300], raw[:300])
    labels, raw = labels[300:], raw[300:]
    judged = judge_calibration(found, labels, raw)
    sure = scipy.special.softmax(logits[300:] * 3 / found.temperature, axis=1)
    assert judged["ece"]["raw"] == expected_calibration_error(labels, raw)
    assert judged["ece"]["calibrated"] == pytest.approx(expected_calibration_error(labels, sure))
    assert judged["ece"]["calibrated"] < judged["ece"]["raw"] / 2
    assert judged["nll"]["calibrated"] == pytest.approx(mean_nll(labels, sure))
    for kind in ("raw", "calibrated"):
        assert sum(row["count"] for row in judged["reliability"][kind]) == 600
    confidence, correct = sure.max(axis=1), sure.argmax(axis=1) == labels
    assert judged["coverage"][0]["coverage"] == 1
    assert judged["coverage"][0]["accuracy"] == pytest.approx(correct.mean())
    for at in judged["thresholds"]:
        answered = confidence >= at["threshold"] - 1e-12
        assert at["exam"]["coverage"] == pytest.approx(answered.mean())
        assert at["exam"]["accuracy"] == pytest.approx(correct[answered].mean())
        assert at["selection"]["accuracy"] >= at["wished"]


def test_an_accuracy_that_is_never_reached_has_no_threshold():
    labels = np.array([0, 1] * 20)
    raw = np.tile([0.6, 0.4], (40, 1))
    judged = judge_calibration(calibrate(labels, raw), labels, raw)
    assert [at["threshold"] for at in judged["thresholds"]] == [None] * 3
    assert judged["thresholds"][0]["exam"] is None
    assert judged["thresholds"][0]["reason"] == "never right that often, at most 0.500"


def test_an_exam_without_labels():
    found = judge_calibration(Calibration(2.0, 30, {}), np.zeros(0, int), np.ones((0, 2)))
    assert found == {"temperature": 2.0, "fitted_on": 30, "reason": None}


def test_a_very_sure_model_is_scaled_exactly():
    """Logits so far apart that the smaller probabilities are 0 in float32."""
    logits = np.array([[0.0, -150.0, -400.0]])
    found = scaled(softmax(logits), 20.0)
    expected = scipy.special.softmax(logits / 20, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert expected[0, 1] > 5e-4
