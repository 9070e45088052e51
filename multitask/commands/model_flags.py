"""The flags of every command that predicts with an export."""

from typing import TYPE_CHECKING

from absl import flags

from multitask.console import note
from multitask.runtimes.libraries import AUTO, RUNTIMES
from multitask.spec import InputError

if TYPE_CHECKING:  # flags do not wait for TensorFlow
    from multitask.serving.predictor import Predictor


def define_model_flags(values: flags.FlagValues, when: str = "", measured: str = "") -> None:
    """Define the flags.

    Args:
        values: the flags of the command.
        when: prefix of the help of --runtime, for its condition.
        measured: suffix of that help, for the condition of the measurement.
    """
    to = {"flag_values": values}
    flags.DEFINE_enum(
        "runtime",
        "auto",
        [AUTO, *RUNTIMES],
        f"{when}library that runs the model; auto: the fastest on this machine of those that are "
        f"installed and can read the export (measured once, then cached{measured})",
        **to,
    )
    flags.DEFINE_string(
        "min_confidence",
        "0",
        "answer `uncertain` if the highest probability is below this; auto:0.9 uses, for each "
        "task, the lowest threshold at which 90 % of the answers were correct on the validation "
        "split",
        **to,
    )
    flags.DEFINE_float(
        "max_unlike",
        None,
        "answer `not like the training data` for images whose features are farther from the "
        "training images than those of all but this share of the validation images; 0: never "
        "(default: 0.01)",
        **to,
    )
    flags.DEFINE_boolean(
        "calibrated", True, "scale probabilities by the temperature that `evaluate` fitted", **to
    )


def confidence(text: str) -> tuple[bool, float]:
    """Parse --min_confidence: `0.6` -> (False, 0.6), `auto:0.9` -> (True, 0.9).

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
            f"--min_confidence: {text!r}: expected a number from 0 to 1, or auto: and such a "
            "number, as in auto:0.9"
        )
    return bool(auto), value


def thresholds_of(model: "Predictor", min_confidence: tuple[bool, float]) -> dict[str, float]:
    """Return the threshold of each task, and print those that were looked up.

    Args:
        model: its validation split determines the thresholds.
        min_confidence: from `confidence`.
    """
    auto, value = min_confidence
    if not auto:
        return dict.fromkeys(model.classes, value)
    thresholds = model.thresholds(value)
    reasons = {
        task: one.why_no_threshold(value, calibrated=model.calibrated)
        for task, one in model.calibrations.items()
    }
    parts = (
        f"{task} never ({why})" if (why := reasons[task]) else f"{task} {threshold:.3f}"
        for task, threshold in thresholds.items()
    )
    note(f"Thresholds: {', '.join(parts)}")
    return thresholds


def max_distance_of(values: flags.FlagValues, model: "Predictor") -> float | None:
    """Return the highest distance of an image that is like the training images.

    Args:
        values: flags of the command, with --max_unlike.
        model: the model; its validation split determines the threshold.

    Returns:
        None if the model has no distance; inf if no image is refused.
    """
    return model.max_distance(values.max_unlike)


def check_coverage(values: flags.FlagValues) -> None:
    """Check --coverage and --joint, before a model is loaded.

    Raises:
        InputError: --coverage is not between 0 and 1, or --joint is given without it.
    """
    if values.coverage is None:
        if values.joint:
            raise InputError("--joint: needs --coverage, such as --coverage=0.9")
    elif not 0 < values.coverage < 1:
        raise InputError(
            f"--coverage: {values.coverage:g}: expected a number between 0 and 1, such as 0.9"
        )


def set_thresholds_of(values: flags.FlagValues, model: "Predictor") -> dict[str, float] | None:
    """Return task -> threshold of its set of classes, and print the range of their true coverage.

    Args:
        values: flags of the command, with --coverage and --joint.
        model: the model; its validation split determines the thresholds.

    Returns:
        None without --coverage.
    """
    if values.coverage is None:
        return None
    from multitask.conformal import coverage_interval

    thresholds = model.set_thresholds(values.coverage, joint=values.joint)
    assert model.conformal is not None  # otherwise it raises
    tables = {"all tasks": model.conformal.joint} if values.joint else model.conformal.tasks
    parts = []
    for name, table in tables.items():
        low, high = coverage_interval(table.images, values.coverage)
        parts.append(f"{name} {low:.3f} to {high:.3f} (from {table.images:,} images)")
    note(f"Sets of coverage {values.coverage:g}; 95 % range: {', '.join(parts)}")
    return thresholds
