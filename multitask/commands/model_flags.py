"""The flags of every command that answers pictures with an export."""

from typing import TYPE_CHECKING

from absl import flags

from multitask.console import note
from multitask.serving.runtimes import AUTO, RUNTIMES
from multitask.spec import InputError

if TYPE_CHECKING:  # flags do not wait for TensorFlow
    from multitask.serving.predictor import Predictor


def define_model_flags(values: flags.FlagValues, when: str = "", measured: str = "") -> None:
    """`when` and `measured` say in the help when the runtime counts, and is measured."""
    to = {"flag_values": values}
    flags.DEFINE_enum(
        "runtime",
        "auto",
        [AUTO, *RUNTIMES],
        f"{when}what runs it; auto is the fastest on this machine of those that are installed and "
        f"that the export has an artifact for (measured once and remembered{measured})",
        **to,
    )
    flags.DEFINE_string(
        "min_confidence",
        "0",
        "answer `uncertain` where the highest probability is below this; auto:0.9 takes for each "
        "task the lowest confidence from which on 0.9 of the answers were right on the selection "
        "split",
        **to,
    )
    flags.DEFINE_boolean(
        "calibrated", True, "scale probabilities by the temperature that `evaluate` found", **to
    )


def confidence(text: str) -> tuple[bool, float]:
    """`0.6` -> (False, 0.6), `auto:0.9` -> (True, 0.9).

    Raises:
        InputError: neither.
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


def thresholds_of(model: "Predictor", least: tuple[bool, float]) -> dict[str, float]:
    """Task -> the confidence that an answer needs; those that were looked up are told.

    Args:
        model: that answers.
        least: from `confidence`.
    """
    auto, value = least
    if not auto:
        return dict.fromkeys(model.classes, value)
    thresholds = model.thresholds(value)
    reasons = {
        task: one.why_no_threshold(value, calibrated=model.calibrated)
        for task, one in model.calibrations.items()
    }
    told = (
        f"{task} never ({why})" if (why := reasons[task]) else f"{task} {found:.3f}"
        for task, found in thresholds.items()
    )
    note(f"From: {', '.join(told)}")
    return thresholds
