"""Evaluate a run's best model on each task's official test rows and write its reports.

  multitask evaluate --workdir=runs/first

Writes to results/ in the workdir: report.html, one page with everything; metrics.json,
predictions.csv, and for each task a confusion matrix, a classification report, F1 scores, outliers,
the training history and the architecture.
"""

from absl import flags

from multitask.commands.run_flags import define_run_flags, define_similar, define_tta, run_and_model
from multitask.startup import import_tensorflow


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `evaluate`."""
    define_run_flags(values)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "images at a time (field batch_size)",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "max_missing",
        None,
        "share of images that may be missing (field max_missing)",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "exclude_near_duplicates",
        None,
        "also report the metrics without the test images that show the same painting as a training "
        "image (default: with --similar, or if training excluded such images)",
        flag_values=values,
    )
    define_tta(values, "also measure ")
    define_similar(values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Evaluate a run."""
    run, model_file = run_and_model(values, left, "evaluate")

    import_tensorflow()
    from multitask.evaluation.report import evaluate
    from multitask.trained import open_trained

    evaluate(
        open_trained(run, model_file),
        batch_size=values.batch_size,
        max_missing=values.max_missing,
        exclude_near_duplicates=values.exclude_near_duplicates,
        tta=values.tta,
        similar=values.similar,
    )
    print(f"\nReports: {run.results}\nPage:    {run.results / 'report.html'}")
