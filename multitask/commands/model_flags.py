"""The flags of every command that predicts with an export."""

from typing import Any

from absl import flags

from multitask.commands.spec_flags import path_or_none
from multitask.runtimes.libraries import AUTO, RUNTIMES


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


def model_options(values: flags.FlagValues) -> dict[str, Any]:
    """The options of the model and its answers that all these commands have."""
    from multitask.serving.rules import MinConfidence

    return {
        "workdir": path_or_none(values.workdir),
        "data_dir": path_or_none(values.data_dir),
        "allow_outside": values.allow_outside,
        "runtime": values.runtime,
        "min_confidence": MinConfidence.parse(values.min_confidence),
        "max_unlike": values.max_unlike,
        "calibrated": values.calibrated,
    }
