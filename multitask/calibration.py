"""Calibration: temperature scaling, and the lowest confidence that reaches an accuracy.

Both are estimated on the validation split; the test set only measures the result. An estimate from
few images can be worse than none, so each estimate has a minimum number of images.

A temperature is used if MIN_IMAGES images of MIN_CLASSES classes have a label, if the best
temperature lies inside TEMPERATURES, and if it has the lower negative log-likelihood on images that
it was not fitted on (FOLDS-fold cross-validation). Otherwise the temperature is 1, and `reason`
has the cause.

A threshold for an accuracy needs `min_answered` images at or above it.

`tools/measure_calibration.py` measures the effect of these minimums:

- With 30 images, a temperature improves a model that is twice as confident as it should be, for
  any number of classes (by .009 nats with 2 classes, .217 with 10). A model with another optimal
  temperature loses at most .008. With 20 images, a task with 2 classes gains nothing.
- With 50 images of a single class the mean loss is up to .037 nats, with two classes up to .008.
- If 70 % of the predictions are right, independent of their confidence, 100 images yield a
  threshold for 90 % in 2.5 % of the samples. With a minimum of 10 images it would be 14 %.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize

from multitask import metrics
from multitask.open_set import Rejection, fit_rejection, open_probabilities

CALIBRATION = "calibration.json"  # in results/
TEMPERATURES = (0.05, 20.0)
MIN_IMAGES = 30  # labelled images that a temperature needs
MIN_CLASSES = 2  # that the labels of these images must contain
FOLDS, FOLD_SEED = 5, 0
# Nats; from the optimizer's steps and the floor of float32 probabilities.
LIKELIHOOD_ROUNDING = 1e-6
MIN_ANSWERED = 10  # images that a step needs at or above its confidence
TARGET_ACCURACIES = (0.8, 0.9, 0.95)  # the report shows their thresholds


def scale_probabilities(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of a softmax by a temperature.

    Args:
        probabilities: float [n, classes], of a softmax.
        temperature: > 0; above 1 lowers the confidences.

    Returns:
        float [n, classes] of the same type; `probabilities` itself if the temperature is 1.
    """
    if temperature == 1:
        return probabilities
    # The logits up to a constant per row, which softmax ignores.
    floor = np.finfo(probabilities.dtype).tiny
    logits = np.log(np.maximum(probabilities, floor)) / temperature
    logits = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (logits / logits.sum(axis=1, keepdims=True)).astype(probabilities.dtype)


def mean_nll(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood in nats, of int [n] and float [n, classes]."""
    return float(_nll(labels, probabilities).mean())


def _nll(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each example, float64 [n]."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(own, np.finfo(np.float32).tiny))


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Fit the temperature with the lowest negative log-likelihood (Guo et al. 2017, section 4.2).

    Args:
        labels: int [n].
        probabilities: float [n, classes], of a softmax.

    Returns:
        A value in TEMPERATURES; 1 if n is 0.
    """
    if not len(labels):
        return 1.0
    probabilities = probabilities.astype(np.float64)
    # The likelihood has one maximum in 1 / T, and therefore one in log T.
    optimum = scipy.optimize.minimize_scalar(
        lambda log_t: mean_nll(labels, scale_probabilities(probabilities, float(np.exp(log_t)))),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(optimum.x))


@dataclass(frozen=True)
class Calibration:
    """The calibration of one task, estimated on the validation split.

    Attributes:
        temperature: divisor of the logits.
        fitted_on: number of labelled images of the validation split.
        reason: why no temperature was fitted or used; None if one was.
        steps: "calibrated" and "raw" -> ascending (threshold, accuracy, share answered): each
            is the lowest confidence that reaches its accuracy. For an open task, accuracy is that
            of the answers that name a class, and the share is theirs of all validation images.
        rejection: the rejection of an open task; None if the task is not open.
    """

    temperature: float = 1.0
    fitted_on: int = 0
    steps: dict[str, tuple[tuple[float, float, float], ...]] | None = None
    reason: str | None = None
    rejection: Rejection | None = None

    def threshold(self, accuracy: float, *, calibrated: bool = True) -> float | None:
        """The lowest confidence that reaches an accuracy; None if too few images support one."""
        step = self._step(accuracy, calibrated)
        if step is None or self._answered(step) < min_answered(accuracy):
            return None
        return step[0]

    def highest(self, *, calibrated: bool = True) -> float | None:
        """The highest accuracy that a step reaches; None if there is no step."""
        steps = (self.steps or {}).get(_kind(calibrated), ())
        return steps[-1][1] if steps else None

    def why_no_threshold(self, accuracy: float, *, calibrated: bool = True) -> str | None:
        """The reason why `threshold` returns None; None if it returns a threshold."""
        if self.threshold(accuracy, calibrated=calibrated) is not None:
            return None
        least = min_answered(accuracy)
        if math.isinf(least):
            return "no number of images can show an accuracy of 1"
        if self.reason and not self.fitted_on:
            return self.reason
        if self._images < least:
            return _too_few(self._images, int(least), is_open=self.rejection is not None)
        step = self._step(accuracy, calibrated)
        if step is not None:
            count = self._answered(step)
            noun = "image reaches" if count == 1 else "images reach"
            return f"{count} validation {noun} it, at least {least:.0f} are needed"
        highest = self.highest(calibrated=calibrated)
        limit = "" if highest is None else f", at most {highest:.3f}"
        return f"this accuracy is never reached{limit}"

    def _step(self, accuracy: float, calibrated: bool) -> tuple[float, float, float] | None:
        """The step with the lowest confidence that reaches an accuracy."""
        steps = (self.steps or {}).get(_kind(calibrated), ())
        return next((step for step in steps if step[1] >= accuracy), None)

    def _answered(self, step: tuple[float, float, float]) -> int:
        """The number of validation images at or above a step's confidence."""
        return round(step[2] * self._images)

    @property
    def _images(self) -> int:
        """The number of validation images from which the steps were computed."""
        return self.fitted_on + (self.rejection.others if self.rejection else 0)

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON."""
        return {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "reason": self.reason,
            "steps": {kind: [list(step) for step in s] for kind, s in (self.steps or {}).items()},
            **({"rejection": self.rejection.to_dict()} if self.rejection else {}),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Calibration":
        """Restore a calibration from the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the content is not such a result.
        """
        temperature = float(content["temperature"])
        if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
            raise ValueError(f"temperature {temperature}")
        steps = {
            kind: tuple((float(a), float(b), float(c)) for a, b, c in content["steps"][kind])
            for kind in content["steps"]
        }
        reason = content.get("reason")  # files of older versions have none
        if not isinstance(reason, str | None):
            raise ValueError(f"reason {reason!r}")
        rejection = content.get("rejection")  # only open tasks have one
        return cls(
            temperature,
            int(content["fitted_on"]),
            steps,
            reason,
            None if rejection is None else Rejection.from_dict(rejection),
        )

    def answers(
        self, probabilities: np.ndarray, scores: np.ndarray | None, *, calibrated: bool = True
    ) -> np.ndarray:
        """Add the probability of `other` to the class probabilities, if the task is open.

        Args:
            probabilities: float [n, classes], with or without temperature scaling.
            scores: float [n], from `open_set.known_scores`; not used if the task is not open.
            calibrated: whether to use the fitted rejection; otherwise the rejection as trained.

        Returns:
            float [n, classes], or [n, classes + 1] with `other` last.
        """
        if self.rejection is None or scores is None:
            return probabilities
        rejection = self.rejection if calibrated else Rejection()
        return open_probabilities(probabilities, rejection.known(scores))


def _kind(calibrated: bool) -> str:
    return "calibrated" if calibrated else "raw"


def min_answered(accuracy: float) -> float:
    """The number of images needed to show an accuracy; infinite for an accuracy of 1.

    With fewer images, a model of lower accuracy would make no error in more than 5 % of the samples
    (the rule of three).
    """
    if accuracy >= 1:
        return math.inf
    return max(MIN_ANSWERED, math.ceil(round(3 / (1 - accuracy), 6)))


def _too_few(count: int, least: int, *, is_open: bool = False) -> str:
    """The reason for a missing estimate.

    Args:
        count: number of images that have an answer.
        least: number of images that it needs.
        is_open: whether the answer can also be that an image has none of the classes.
    """
    what = "a label or none of the classes" if is_open else "a label"
    if not count:
        return f"no validation image has {what}"
    noun = "image has" if count == 1 else "images have"
    return f"only {count} validation {noun} {what}, at least {least} are needed"


def usable_temperature(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, str | None]:
    """Fit a temperature, and use it only if the images show that it is better than 1.

    The gain of an image is its negative log-likelihood at temperature 1 minus that at a
    temperature fitted on the other folds. The mean gain has to exceed its standard error. Without
    this margin, one in seven samples of 30 images would worsen a model that is already calibrated.

    Args:
        labels: int [n].
        probabilities: float [n, classes], of a softmax.

    Returns:
        The temperature, and None or the reason why it is 1.
    """
    present = len(np.unique(labels))
    if len(labels) < MIN_IMAGES:
        return 1.0, _too_few(len(labels), MIN_IMAGES)
    if present < MIN_CLASSES:
        return 1.0, f"the {len(labels):,} validation images are all of one class"
    temperature = fit_temperature(labels, probabilities)
    folds = np.random.default_rng(FOLD_SEED).permutation(len(labels)) % FOLDS
    others = [(labels[folds != k], probabilities[folds != k]) for k in range(FOLDS)]
    fitted = [fit_temperature(*rest) for rest in others]
    if _at_bound(temperature, labels, probabilities) or any(
        _at_bound(one, *rest) for one, rest in zip(fitted, others, strict=True)
    ):
        low, high = TEMPERATURES
        return 1.0, f"the validation images give no temperature between {low:g} and {high:g}"
    gains = np.empty(len(labels))
    for fold, one in enumerate(fitted):
        rows = folds == fold
        before, after = (
            _nll(labels[rows], values)
            for values in (probabilities[rows], scale_probabilities(probabilities[rows], one))
        )
        gains[rows] = before - after
    if gains.mean() <= gains.std(ddof=1) / np.sqrt(len(gains)):
        return 1.0, (
            f"{temperature:.2f}, fitted on {len(labels):,} validation images, is not clearly "
            "better in cross-validation"
        )
    return temperature, None


def _at_bound(temperature: float, labels: np.ndarray, probabilities: np.ndarray) -> bool:
    """Whether a bound of TEMPERATURES is as good as the fitted temperature.

    The optimizer does not reach a bound exactly. If all predictions are right, it even stops far
    from the bound, because the likelihood rounds to 1 below some temperature.
    """
    least = mean_nll(labels, scale_probabilities(probabilities.astype(np.float64), temperature))
    ends = (
        mean_nll(labels, scale_probabilities(probabilities.astype(np.float64), t))
        for t in TEMPERATURES
    )
    return min(ends) <= least + LIKELIHOOD_ROUNDING


def calibrate(
    labels: np.ndarray, probabilities: np.ndarray, scores: np.ndarray | None = None
) -> Calibration:
    """Estimate temperature and thresholds of one task from its validation images.

    Args:
        labels: int [n], of labelled images; for an open task, also OTHER_LABEL.
        probabilities: float [n, classes], of a softmax.
        scores: float [n], from `open_set.known_scores`; None if the task is not open.
    """
    labelled = labels >= 0
    temperature, reason = usable_temperature(labels[labelled], probabilities[labelled])
    rejection = None
    if scores is not None:
        rejection = fit_rejection(scores[labelled], scores[~labelled])
    fitted = Calibration(temperature, int(labelled.sum()), None, reason, rejection)
    steps: dict[str, tuple[tuple[float, float, float], ...]] = {}
    for kind, values in (
        ("calibrated", scale_probabilities(probabilities, temperature)),
        ("raw", probabilities),
    ):
        answers = fitted.answers(values, scores, calibrated=kind == "calibrated")
        curve = answer_curve(labels, answers, classes=probabilities.shape[1])
        curve = curve[curve["answered"] >= MIN_ANSWERED]
        better = curve["accuracy"] > curve["accuracy"].cummax().shift(fill_value=-1.0)
        chosen = curve.loc[better, ["threshold", "accuracy", "share_answered"]]
        steps[kind] = tuple((float(t), float(a), float(s)) for t, a, s in chosen.to_numpy())
    return dataclasses.replace(fitted, steps=steps)


def answer_curve(labels: np.ndarray, answers: np.ndarray, *, classes: int) -> pd.DataFrame:
    """Compute `metrics.threshold_curve` of the answers that name a class, over all images.

    Args:
        labels: int [n]; an image with a negative label has none of the classes.
        answers: float [n, classes or more]; further columns do not belong to a class.
        classes: number of classes.
    """
    predicted = answers.argmax(axis=1)
    named = predicted < classes
    curve = metrics.threshold_curve(answers.max(axis=1)[named], (predicted == labels)[named])
    return curve.assign(share_answered=curve["answered"] / max(len(labels), 1))


def calibration_metrics(
    calibration: Calibration,
    labels: np.ndarray,
    probabilities: np.ndarray,
    scores: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measure a calibration on the test set, for `metrics.json`.

    Args:
        calibration: from `calibrate`, estimated on a different split.
        labels: int [n], of the test set; for an open task, also OTHER_LABEL.
        probabilities: float [n, classes], raw.
        scores: float [n], as for `calibrate`.

    Returns:
        temperature, fitted_on, reason; for an open task, rejection (of `Rejection.to_dict`); ece,
        nll and reliability (rows of `metrics.reliability`), each "raw" and "calibrated"; coverage
        (about 100 points of the curve of calibrated confidence, with the share answered as
        coverage); thresholds: the result of `_threshold_metrics` for each of TARGET_ACCURACIES.
        Only those before ece if n is 0.
    """
    content: dict[str, Any] = {
        "temperature": calibration.temperature,
        "fitted_on": calibration.fitted_on,
        "reason": calibration.reason,
    }
    if calibration.rejection is not None:
        content["rejection"] = calibration.rejection.to_dict()
    labelled = labels >= 0
    if not labelled.any():
        return content
    calibrated = scale_probabilities(probabilities, calibration.temperature)
    ways = {"raw": probabilities[labelled], "calibrated": calibrated[labelled]}
    for name, measure in (
        ("ece", metrics.expected_calibration_error),
        ("nll", mean_nll),
        ("reliability", _reliability),
    ):
        content[name] = {kind: measure(labels[labelled], values) for kind, values in ways.items()}
    answers = calibration.answers(calibrated, scores)
    curve = answer_curve(labels, answers, classes=probabilities.shape[1])
    places = np.unique(np.linspace(0, len(curve) - 1, 101).round().astype(int))
    content["coverage"] = [
        {"threshold": row.threshold, "coverage": row.share_answered, "accuracy": row.accuracy}
        for row in curve.iloc[places].astype(float).itertuples()
    ]
    content["thresholds"] = [
        _threshold_metrics(calibration, accuracy, curve) for accuracy in TARGET_ACCURACIES
    ]
    return content


def _reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    table = metrics.reliability(labels, probabilities)
    return table[table["count"] > 0].to_dict("records")


def _threshold_metrics(
    calibration: Calibration, accuracy: float, curve: pd.DataFrame
) -> dict[str, Any]:
    """The threshold for a target accuracy, and its accuracy and share answered in both splits.

    Args:
        calibration: the calibration of the task.
        accuracy: the target accuracy.
        curve: `metrics.threshold_curve` of the test set.

    Returns:
        target_accuracy, threshold, validation and test (each with accuracy, and the share
        answered as coverage); without a threshold, these three are None, and reason has the cause.
    """
    threshold = calibration.threshold(accuracy)
    content: dict[str, Any] = {"target_accuracy": accuracy, "threshold": threshold}
    if threshold is None:
        reason = calibration.why_no_threshold(accuracy)
        return content | {"validation": None, "test": None, "reason": reason}
    steps = (calibration.steps or {})["calibrated"]
    step = next(step for step in steps if step[0] == threshold)
    answered = curve[curve["threshold"] >= threshold]
    content["validation"] = {"accuracy": step[1], "coverage": step[2]}
    content["test"] = {"accuracy": None, "coverage": 0.0}
    if len(answered):
        right, share = map(float, answered.iloc[0][["accuracy", "share_answered"]])
        content["test"] = {"accuracy": right, "coverage": share}
    return content
