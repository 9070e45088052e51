"""Write a run's best model as one SavedModel that takes encoded pictures.

  multitask export --workdir=runs/first

Writes export/ in the workdir, after the export was run on real pictures and agrees with the
Keras model. `tf.saved_model.load` reads it; this package is not needed there."""

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


def main(values: flags.FlagValues, left: list[str]) -> None:
    if left:
        raise InputError(f"multitask export: takes flags only, not {left[0]!r}")
    if not values.workdir:
        raise InputError("multitask export: --workdir is needed; --help lists the flags")

    from multitask.run import open_run
    from multitask.serving.export import export

    run = open_run(Path(values.workdir), Path(values.data_dir) if values.data_dir else None)
    folder = export(run, model_file=Path(values.model) if values.model else None)
    print(f"Export: {folder}")
