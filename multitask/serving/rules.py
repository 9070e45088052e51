"""What turns probabilities into answers: least confidences, and thresholds of sets of classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multitask.conformal import coverage_interval
from multitask.console import note
from multitask.errors import InputError

if TYPE_CHECKING:  # the checks do not wait for pandas
    from multitask.serving.predictor import Predictor


@dataclass(frozen=True)
class MinConfidence:
    """The least confidence of an answer, as the user gives it.

    Attributes:
        value: the confidence, or the accuracy to reach, from 0 to 1.
        auto: whether the validation split determines the confidence of each task, from an accuracy.
    """

    value: float = 0.0
    auto: bool = False

    @classmethod
    def parse(cls, text: str) -> "MinConfidence":
        """Read `0.6`, a confidence, or `auto:0.9`, an accuracy.

        Raises:
            InputError: any other text.
        """
        auto, _, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if auto not in ("", "auto") or not 0 <= value <= 1:
            raise InputError(
                f"{text!r}: expected a number from 0 to 1, or auto: and such a number, as in "
                "auto:0.9",
                field="min_confidence",
            )
        return cls(value, bool(auto))

    def thresholds(self, model: "Predictor") -> dict[str, float]:
        """Return the least confidence of each task, and print those that were looked up.

        Args:
            model: its validation split determines the thresholds.

        Raises:
            InputError: as `Predictor.thresholds`.
        """
        if not self.auto:
            return dict.fromkeys(model.classes, self.value)
        thresholds = model.thresholds(self.value)
        reasons = {
            task: one.why_no_threshold(self.value, calibrated=model.calibrated)
            for task, one in model.calibrations.items()
        }
        parts = (
            f"{task} never ({why})" if (why := reasons[task]) else f"{task} {threshold:.3f}"
            for task, threshold in thresholds.items()
        )
        note(f"Thresholds: {', '.join(parts)}")
        return thresholds


def check_coverage(coverage: float | None, *, joint: bool) -> None:
    """Check the options of sets of classes, before a model is loaded.

    Raises:
        InputError: the coverage is not between 0 and 1, or `joint` is given without it.
    """
    if coverage is None:
        if joint:
            raise InputError("needs `coverage`, such as `coverage=0.9`", field="joint")
    elif not 0 < coverage < 1:
        raise InputError(
            f"{coverage:g}: expected a number between 0 and 1, such as 0.9", field="coverage"
        )


def find_set_thresholds(
    model: "Predictor", coverage: float | None, *, joint: bool
) -> dict[str, float] | None:
    """Return task -> threshold of its set of classes, and print the range of their true coverage.

    Args:
        model: its validation split determines the thresholds.
        coverage: probability that a set holds the right class.
        joint: whether it is that of all tasks' sets together.

    Returns:
        None without a coverage.

    Raises:
        InputError: as `Predictor.set_thresholds`.
    """
    if coverage is None:
        return None
    thresholds = model.set_thresholds(coverage, joint=joint)
    assert model.conformal is not None  # otherwise it raises
    tables = {"all tasks": model.conformal.joint} if joint else model.conformal.tasks
    parts = []
    for name, table in tables.items():
        low, high = coverage_interval(table.images, coverage)
        parts.append(f"{name} {low:.3f} to {high:.3f} (from {table.images:,} images)")
    note(f"Sets of coverage {coverage:g}; 95 % range: {', '.join(parts)}")
    return thresholds


@dataclass(frozen=True)
class AnswerRules:
    """The rules of one model.

    Attributes:
        confidences: task -> least confidence of an answer.
        sets: task -> threshold of its set of classes; None: no sets.
        distance_limit: of an image that is like the training images; None: no distances.
    """

    confidences: Mapping[str, float]
    sets: Mapping[str, float] | None
    distance_limit: float | None
