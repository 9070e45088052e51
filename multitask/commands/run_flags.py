"""The flags of every command that works on a run which exists."""

from pathlib import Path

from absl import flags

from multitask.commands.spec_flags import define_allow_outside, folder_or_none
from multitask.run import Run, open_run
from multitask.spec import InputError


def define_run_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "folder of the run", **to)
    flags.DEFINE_string("data_dir", None, "where the data has moved to since training", **to)
    define_allow_outside(values)
    flags.DEFINE_string(
        "model", None, "another model file of the run, e.g. runs/a/models/best_model_x.keras", **to
    )


def define_similar(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "similar",
        True,
        "when evaluating, embed the training pictures too, once a model, for similar pictures and "
        "those that are far from their class",
        flag_values=values,
    )


def run_and_model(
    values: flags.FlagValues, left: list[str], command: str
) -> tuple[Run, Path | None]:
    """The run that the flags name, and the model file where one is named."""
    if left:
        raise InputError(f"multitask {command}: takes flags only, not {left[0]!r}")
    if not values.workdir:
        raise InputError(f"multitask {command}: --workdir is needed; --help lists the flags")
    run = open_run(
        Path(values.workdir),
        folder_or_none(values.data_dir),
        allow_outside=values.allow_outside,
    )
    return run, Path(values.model) if values.model else None
