"""Temperature scaling against SciPy and a grid; thresholds against plain loops."""

import numpy as np
import pytest
import scipy.special

from multitask.evaluation.calibration import (
    FEWEST_ANSWERED,
    TEMPERATURES,
    Calibration,
    calibrate,
    fit_temperature,
    judge_calibration,
    mean_nll,
    scaled,
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
            ]
            expected = pytest.approx(reached[0]) if reached else None
            assert found.threshold(wished, calibrated=calibrated) == expected
    highest = found.highest()
    assert found.threshold(highest) is not None
    assert found.threshold(highest + 1e-9) is None


def test_it_comes_back_from_json():
    labels, logits = drawn(3)
    found = calibrate(labels, scipy.special.softmax(logits, axis=1))
    assert Calibration.from_dict(found.to_dict()) == found
    for broken in ({}, {"temperature": 0, "fitted_on": 1, "steps": {}}, {"temperature": "x"}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            Calibration.from_dict(broken)


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


def test_an_exam_without_labels():
    found = judge_calibration(Calibration(2.0, 30, {}), np.zeros(0, int), np.ones((0, 2)))
    assert found == {"temperature": 2.0, "fitted_on": 30}


def test_a_very_sure_model_is_scaled_exactly():
    """Logits so far apart that the smaller probabilities are 0 in float32."""
    logits = np.array([[0.0, -150.0, -400.0]])
    found = scaled(softmax(logits), 20.0)
    expected = scipy.special.softmax(logits / 20, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert expected[0, 1] > 5e-4
