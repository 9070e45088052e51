"""The flags of every command that works on an existing run."""

from pathlib import Path

from absl import flags

from multitask.commands.spec_flags import check_needed, define_allow_outside, path_or_none
from multitask.run import Run, open_run


def define_run_flags(values: flags.FlagValues) -> None:
    """Define --workdir, --data_dir, --allow_outside and --model."""
    to = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "folder of the run", **to)
    flags.DEFINE_string("data_dir", None, "new folder of data that was moved after training", **to)
    define_allow_outside(values)
    flags.DEFINE_string(
        "model", None, "another model file of the run, e.g. runs/a/models/best_model_x.keras", **to
    )


def define_similar(values: flags.FlagValues) -> None:
    """Define --similar for the commands that evaluate."""
    flags.DEFINE_boolean(
        "similar",
        True,
        "when evaluating, also embed the training images, once per model, to report similar images "
        "and images that are far from their class",
        flag_values=values,
    )


def define_tta(values: flags.FlagValues, use: str = "") -> None:
    """Define --tta; `use` is the beginning of its help."""
    flags.DEFINE_enum(
        "tta",
        None,
        ["flip", "crops"],
        f"{use}test-time augmentation: the mean of 2 views (mirrored) or 12 (also corners and "
        "centre)",
        flag_values=values,
    )


def run_and_model(
    values: flags.FlagValues, left: list[str], command: str
) -> tuple[Run, Path | None]:
    """The run that the flags name, and the model file if one is named."""
    check_needed(values, left, command, ("workdir",))
    run = open_run(
        Path(values.workdir),
        path_or_none(values.data_dir),
        allow_outside=values.allow_outside,
    )
    return run, path_or_none(values.model)
