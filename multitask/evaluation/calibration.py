"""How sure the model may be: temperature scaling, and the confidence to ask for.

Both are estimated on the validation split; the test set only shows what came of them. An estimate
from few images can be worse than none, so each has a least number.

A temperature is used where FEWEST_FITTED images of FEWEST_CLASSES classes have a label, where the
best one lies inside TEMPERATURES, and where it has the lower negative log-likelihood on images that
it was not fitted on (FOLDS-fold cross-validation). Otherwise it is 1, and `reason` says why.

A threshold for an accuracy rests on `fewest_answered` images.

The least numbers are measured by `tools/measure_calibration.py`. 30 images are the least from which
a model that is twice too sure gains, whatever the number of its classes (by .009 nats with 2
classes, .217 with 10), while one with another right temperature loses at most .008; from 20 images
a task with 2 classes gains nothing. From 50 images of a single class the mean loss is up to .037
nats, of two classes up to .008. 100 images of a model that is right in 70 % of the cases, whatever
its confidence, give a threshold for 90 % in 2.5 % of the draws; if 10 images were enough for one,
in 14 %.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

from multitask import metrics
from multitask.evaluation.record import is_of_model
from multitask.files import read_json
from multitask.run import Run, name_in_run
from multitask.spec import InputError

CALIBRATION = "calibration.json"  # in results/
TEMPERATURES = (0.05, 20.0)
FEWEST_FITTED = 30  # labelled images
FEWEST_CLASSES = 2  # among their labels
FOLDS, FOLD_SEED = 5, 0
LIKELIHOOD_ROUNDING = 1e-6  # nats; the optimizer's steps and the floor of float32 probabilities
FEWEST_ANSWERED = 10  # that a step is kept of
ACCURACIES = (0.8, 0.9, 0.95)  # wished ones, that the report tells the thresholds of


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities as they would be with the logits divided by the temperature.

    Args:
        probabilities: float [n, classes], of a softmax.
        temperature: > 0; above 1 makes the model less sure.

    Returns:
        The same type and shape; the very array where the temperature is 1.
    """
    if temperature == 1:
        return probabilities
    # The logits but for a constant a row, which softmax does not see.
    floor = np.finfo(probabilities.dtype).tiny
    logits = np.log(np.maximum(probabilities, floor)) / temperature
    logits = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (logits / logits.sum(axis=1, keepdims=True)).astype(probabilities.dtype)


def mean_nll(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood, nats; int [n] and float [n, classes]."""
    return float(_nll(labels, probabilities).mean())


def _nll(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """float64 [n]."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(own, np.finfo(np.float32).tiny))


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2).

    Args:
        labels: int [n].
        probabilities: float [n, classes], of a softmax.

    Returns:
        Within TEMPERATURES; 1 where n is 0.
    """
    if not len(labels):
        return 1.0
    probabilities = probabilities.astype(np.float64)
    # The likelihood has one maximum in 1 / T; over log T so does it.
    found = scipy.optimize.minimize_scalar(
        lambda log_t: mean_nll(labels, scaled(probabilities, float(np.exp(log_t)))),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Calibration:
    """What the selection split says of one task's confidences.

    Attributes:
        temperature: of the scaling.
        fitted_on: labelled images of the validation split.
        reason: why the temperature is 1, where it was not fitted or not used; else None.
        steps: "calibrated" and "raw" -> the lowest confidences that reach an accuracy, as
            ascending (threshold, accuracy, coverage).
    """

    temperature: float = 1.0
    fitted_on: int = 0
    steps: dict[str, tuple[tuple[float, float, float], ...]] | None = None
    reason: str | None = None

    def threshold(self, accuracy: float, *, calibrated: bool = True) -> float | None:
        """The lowest confidence from which on that share is right; None where enough images do
        not show one."""
        step = self._step(accuracy, calibrated)
        if step is None or self._answered(step) < fewest_answered(accuracy):
            return None
        return step[0]

    def highest(self, *, calibrated: bool = True) -> float | None:
        """The highest accuracy that a step reaches; None where there is no step."""
        steps = (self.steps or {}).get(_kind(calibrated), ())
        return steps[-1][1] if steps else None

    def why_no_threshold(self, accuracy: float, *, calibrated: bool = True) -> str | None:
        """Why `threshold` gives none; None where it gives one."""
        if self.threshold(accuracy, calibrated=calibrated) is not None:
            return None
        least = fewest_answered(accuracy)
        if math.isinf(least):
            return "no number of images can show that all are right"
        if self.reason and not self.fitted_on:
            return self.reason
        if self.fitted_on < least:
            return too_few(self.fitted_on, int(least))
        step = self._step(accuracy, calibrated)
        if step is not None:
            count = self._answered(step)
            noun = "image reaches" if count == 1 else "images reach"
            return f"{count} validation {noun} it, at least {least:.0f} are needed"
        highest = self.highest(calibrated=calibrated)
        return "never right that often" + ("" if highest is None else f", at most {highest:.3f}")

    def _step(self, accuracy: float, calibrated: bool) -> tuple[float, float, float] | None:
        """The lowest confidence that reaches an accuracy: of all that do, the most images."""
        steps = (self.steps or {}).get(_kind(calibrated), ())
        return next((step for step in steps if step[1] >= accuracy), None)

    def _answered(self, step: tuple[float, float, float]) -> int:
        return round(step[2] * self.fitted_on)

    def to_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "reason": self.reason,
            "steps": {kind: [list(step) for step in s] for kind, s in (self.steps or {}).items()},
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Calibration":
        """What `to_dict` gave; ValueError, KeyError or TypeError where it is something else."""
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
        return cls(temperature, int(content["fitted_on"]), steps, reason)


def saved_calibrations(run: Run, model_file: Path) -> dict[str, Calibration]:
    """What `evaluate` found for a model; that of no picture where it has not examined this model.

    Raises:
        InputError: the file is broken.
    """
    path = run.results / CALIBRATION
    none = dict.fromkeys(run.spec.task_names, Calibration())
    if not path.is_file():
        return none
    try:
        content = read_json(path)
        same = content["model"] == name_in_run(run, model_file)
        if not same or not is_of_model(run, CALIBRATION, model_file):
            return none
        return {task: Calibration.from_dict(content["tasks"][task]) for task in none}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: not what `multitask evaluate` writes: {error}") from None


def _kind(calibrated: bool) -> str:
    return "calibrated" if calibrated else "raw"


def fewest_answered(accuracy: float) -> float:
    """Images that can show an accuracy at all: with fewer, a lower one gives faultless answers in
    more than one of twenty cases (the rule of three). Infinite for an accuracy of 1."""
    if accuracy >= 1:
        return math.inf
    return max(FEWEST_ANSWERED, math.ceil(round(3 / (1 - accuracy), 6)))


def too_few(count: int, least: int) -> str:
    """The reason of an estimate that is not made."""
    if not count:
        return "no validation image has a label"
    noun = "image has" if count == 1 else "images have"
    return f"only {count} validation {noun} a label, at least {least} are needed"


def usable_temperature(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, str | None]:
    """The fitted temperature where the images show that it is better than 1; else 1, and why.

    The gain is the negative log-likelihood at 1 less that at a temperature fitted on the other
    folds, of each image; its mean has to be above its standard error. Without that margin, every
    seventh split of 30 images of a model that is calibrated already would make it worse.

    Args:
        labels: int [n].
        probabilities: float [n, classes], of a softmax.
    """
    present = len(np.unique(labels))
    if len(labels) < FEWEST_FITTED:
        return 1.0, too_few(len(labels), FEWEST_FITTED)
    if present < FEWEST_CLASSES:
        return 1.0, f"the {len(labels):,} validation images are all of one class"
    temperature = fit_temperature(labels, probabilities)
    folds = np.random.default_rng(FOLD_SEED).permutation(len(labels)) % FOLDS
    parts = [(labels[folds != k], probabilities[folds != k]) for k in range(FOLDS)]
    fitted = [fit_temperature(*part) for part in parts]
    if _at_bound(temperature, labels, probabilities) or any(
        _at_bound(one, *part) for one, part in zip(fitted, parts, strict=True)
    ):
        low, high = TEMPERATURES
        return 1.0, f"the validation images give no temperature between {low:g} and {high:g}"
    gains = np.empty(len(labels))
    for fold, one in enumerate(fitted):
        rows = folds == fold
        before, after = (
            _nll(labels[rows], values)
            for values in (probabilities[rows], scaled(probabilities[rows], one))
        )
        gains[rows] = before - after
    if gains.mean() <= gains.std(ddof=1) / np.sqrt(len(gains)):
        return 1.0, (
            f"{temperature:.2f}, fitted on {len(labels):,} validation images, is not clearly "
            "better in cross-validation"
        )
    return temperature, None


def _at_bound(temperature: float, labels: np.ndarray, probabilities: np.ndarray) -> bool:
    """Whether an end of TEMPERATURES is as good as the fitted temperature.

    The optimizer stops short of the end, and long before it where all images are right: there the
    likelihood is 1, to the last digit, from some temperature down.
    """
    least = mean_nll(labels, scaled(probabilities.astype(np.float64), temperature))
    ends = (mean_nll(labels, scaled(probabilities.astype(np.float64), t)) for t in TEMPERATURES)
    return min(ends) <= least + LIKELIHOOD_ROUNDING


def calibrate(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Temperature and thresholds of one task, from its labelled validation images.

    Args:
        labels: int [n].
        probabilities: float [n, classes], of a softmax.
    """
    temperature, reason = usable_temperature(labels, probabilities)
    steps = {}
    for kind, values in (
        ("calibrated", scaled(probabilities, temperature)),
        ("raw", probabilities),
    ):
        curve = metrics.coverage_curve(values.max(axis=1), values.argmax(axis=1) == labels)
        curve = curve[curve["answered"] >= FEWEST_ANSWERED]
        better = curve["accuracy"] > curve["accuracy"].cummax().shift(fill_value=-1.0)
        chosen = curve.loc[better, ["threshold", "accuracy", "coverage"]]
        steps[kind] = tuple(tuple(map(float, row)) for row in chosen.to_numpy())
    return Calibration(temperature, len(labels), steps, reason)


def judge_calibration(
    calibration: Calibration, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    """What the calibration is worth on the exam, as `metrics.json` holds it.

    Args:
        calibration: from `calibrate`, on other pictures.
        labels: int [n], of the exam.
        probabilities: float [n, classes], raw.

    Returns:
        temperature, fitted_on, reason; ece, nll and reliability (rows of `metrics.reliability`),
        each "raw" and "calibrated"; coverage (about 100 points of the curve of calibrated
        confidence); thresholds: for each of ACCURACIES its threshold and what the selection split
        and the exam give at it, or the reason why there is none. Nothing but the first three where
        n is 0.
    """
    judged: dict[str, Any] = {
        "temperature": calibration.temperature,
        "fitted_on": calibration.fitted_on,
        "reason": calibration.reason,
    }
    if not len(labels):
        return judged
    ways = {"raw": probabilities, "calibrated": scaled(probabilities, calibration.temperature)}
    for name, measure in (
        ("ece", metrics.expected_calibration_error),
        ("nll", mean_nll),
        ("reliability", _reliability),
    ):
        judged[name] = {kind: measure(labels, values) for kind, values in ways.items()}
    sure = ways["calibrated"]
    curve = metrics.coverage_curve(sure.max(axis=1), sure.argmax(axis=1) == labels)
    places = np.unique(np.linspace(0, len(curve) - 1, 101).round().astype(int))
    judged["coverage"] = [
        {name: float(row[name]) for name in ("threshold", "coverage", "accuracy")}
        for row in curve.iloc[places].to_dict("records")
    ]
    judged["thresholds"] = [_at(calibration, accuracy, curve) for accuracy in ACCURACIES]
    return judged


def _reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    table = metrics.reliability(labels, probabilities)
    return table[table["count"] > 0].to_dict("records")


def _at(calibration: Calibration, accuracy: float, curve) -> dict[str, Any]:
    """A wished accuracy: its threshold, and what it gives on the selection split and the exam."""
    threshold = calibration.threshold(accuracy)
    found: dict[str, Any] = {"wished": accuracy, "threshold": threshold}
    if threshold is None:
        reason = calibration.why_no_threshold(accuracy)
        return found | {"selection": None, "exam": None, "reason": reason}
    step = next(s for s in calibration.steps["calibrated"] if s[0] == threshold)
    exam = curve[curve["threshold"] >= threshold]
    found["selection"] = {"accuracy": step[1], "coverage": step[2]}
    found["exam"] = (
        {name: float(exam.iloc[0][name]) for name in ("accuracy", "coverage")}
        if len(exam)
        else {"accuracy": None, "coverage": 0.0}
    )
    return found
