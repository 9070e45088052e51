"""Predict the top three classes of each task for images.

  multitask predict --model=runs/first/export IMAGE_OR_FOLDER …
  multitask predict --workdir=runs/first IMAGE_OR_FOLDER …
  multitask predict --model=runs/first/export --out=answers.csv FOLDER

Images are preprocessed as in training. An unreadable image is reported and skipped.
With --out, predictions are stored continuously: the same command with --resume
continues an interrupted prediction.
"""

from absl import flags

from multitask.commands.model_flags import define_model_flags, model_options
from multitask.commands.run_flags import define_tta
from multitask.commands.spec_flags import define_allow_outside, path_or_none
from multitask.console import log_to_stderr
from multitask.runtimes.libraries import FEWEST_MEASURED
from multitask.spec import InputError
from multitask.startup import import_tensorflow


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    to = {"flag_values": values}
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", **to)
    flags.DEFINE_string(
        "workdir", None, "instead of --model: a run, whose best model is used", **to
    )
    flags.DEFINE_string("data_dir", None, "with --workdir: new folder of data that was moved", **to)
    define_allow_outside(values)
    flags.DEFINE_string(
        "out",
        None,
        "write the predictions to this .csv, .jsonl or .parquet file instead of the console",
        **to,
    )
    flags.DEFINE_boolean("resume", False, "with --out: continue an interrupted prediction", **to)
    define_model_flags(values, "with --model: ", f", for {FEWEST_MEASURED:,} images or more")
    flags.DEFINE_float(
        "coverage",
        None,
        "also give a set of classes for each task that holds the right class with this "
        "probability, such as 0.9",
        **to,
    )
    flags.DEFINE_boolean(
        "joint",
        False,
        "with --coverage: the sets of all tasks together hold all right classes with this "
        "probability",
        **to,
    )
    define_tta(values)
    flags.DEFINE_integer("batch_size", 16, "images in a batch", lower_bound=1, **to)


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Predict the images and folders in `left`."""
    from multitask.serving.options import PredictOptions

    of_model = model_options(values)
    if bool(values.model) == bool(values.workdir):
        raise InputError("multitask predict: give either --model=EXPORT or --workdir=RUN")
    options = PredictOptions(
        model=path_or_none(values.model),
        **of_model,
        tta=values.tta,
        coverage=values.coverage,
        joint=values.joint,
        batch_size=values.batch_size,
        out=path_or_none(values.out),
        resume=values.resume,
    )

    import_tensorflow()
    from multitask.serving.predict import predict

    log_to_stderr()
    predict(left, options)
