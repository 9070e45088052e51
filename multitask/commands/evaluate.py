"""Examine a run's best model on each task's official val rows and write its reports.

  multitask evaluate --workdir=runs/first

Writes to results/ in the workdir: metrics.json, predictions.csv, and for each task a confusion
matrix, a classification report, F1 scores, outliers, the training history and the architecture."""

from pathlib import Path

from absl import flags

from multitask.spec import InputError


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "folder of the run", **to)
    flags.DEFINE_string("data_dir", None, "where the data has moved to since training", **to)
    flags.DEFINE_string(
        "model", None, "another model file of the run, e.g. runs/a/models/best_model_x.keras", **to
    )
    flags.DEFINE_integer(
        "batch_size", None, "pictures at a time (field batch_size)", lower_bound=1, **to
    )
    flags.DEFINE_float(
        "max_missing",
        None,
        "share of pictures that may be missing (field max_missing)",
        lower_bound=0,
        upper_bound=1,
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    if left:
        raise InputError(f"multitask evaluate: takes flags only, not {left[0]!r}")
    if not values.workdir:
        raise InputError("multitask evaluate: --workdir is needed; --help lists the flags")

    from multitask.evaluation.report import evaluate
    from multitask.run import open_run

    run = open_run(Path(values.workdir), Path(values.data_dir) if values.data_dir else None)
    evaluate(
        run,
        model_file=Path(values.model) if values.model else None,
        batch_size=values.batch_size,
        max_missing=values.max_missing,
    )
    print(f"\nReports: {run.results}")
