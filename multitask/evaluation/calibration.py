"""How sure the model may be: temperature scaling, and the confidence to ask for.

Both are found on the selection split; the exam only tells what came of them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

from multitask import metrics
from multitask.run import Run, name_in_run
from multitask.spec import InputError

CALIBRATION = "calibration.json"  # in results/
TEMPERATURES = (0.05, 20.0)
FEWEST_ANSWERED = 10  # an accuracy over fewer pictures is chance, and no threshold rests on it
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
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())


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
        fitted_on: labelled pictures of the selection split.
        steps: "calibrated" and "raw" -> the lowest confidences that reach an accuracy, as
            ascending (threshold, accuracy, coverage).
    """

    temperature: float = 1.0
    fitted_on: int = 0
    steps: dict[str, tuple[tuple[float, float, float], ...]] | None = None

    def threshold(self, accuracy: float, *, calibrated: bool = True) -> float | None:
        """The lowest confidence from which on that share is right; None where none is."""
        for threshold, reached, _ in (self.steps or {}).get(_kind(calibrated), ()):
            if reached >= accuracy:
                return threshold
        return None

    def highest(self, *, calibrated: bool = True) -> float | None:
        """The highest accuracy that a threshold reaches; None where there is no threshold."""
        steps = (self.steps or {}).get(_kind(calibrated), ())
        return steps[-1][1] if steps else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
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
        return cls(temperature, int(content["fitted_on"]), steps)


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
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"] != name_in_run(run, model_file):
            return none
        return {task: Calibration.from_dict(content["tasks"][task]) for task in none}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what `multitask evaluate` writes: {error}") from None


def _kind(calibrated: bool) -> str:
    return "calibrated" if calibrated else "raw"


def calibrate(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Temperature and thresholds of one task, from its labelled selection pictures.

    Args:
        labels: int [n].
        probabilities: float [n, classes], of a softmax.
    """
    temperature = fit_temperature(labels, probabilities)
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
    return Calibration(temperature, len(labels), steps)


def judge_calibration(
    calibration: Calibration, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    """What the calibration is worth on the exam, as `metrics.json` holds it.

    Args:
        calibration: from `calibrate`, on other pictures.
        labels: int [n], of the exam.
        probabilities: float [n, classes], raw.

    Returns:
        temperature, fitted_on; ece, nll and reliability (rows of `metrics.reliability`), each
        "raw" and "calibrated"; coverage (about 100 points of the curve of calibrated confidence);
        thresholds: for each of ACCURACIES its threshold and what the selection split and the exam
        give at it. Nothing but the first two where n is 0.
    """
    judged: dict[str, Any] = {
        "temperature": calibration.temperature,
        "fitted_on": calibration.fitted_on,
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
        return found | {"selection": None, "exam": None}
    step = next(s for s in calibration.steps["calibrated"] if s[0] == threshold)
    exam = curve[curve["threshold"] >= threshold]
    found["selection"] = {"accuracy": step[1], "coverage": step[2]}
    found["exam"] = (
        {name: float(exam.iloc[0][name]) for name in ("accuracy", "coverage")}
        if len(exam)
        else {"accuracy": None, "coverage": 0.0}
    )
    return found
