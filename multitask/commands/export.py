"""Write a run's best model as one SavedModel that takes encoded pictures.

  multitask export --workdir=runs/first

Writes export/ in the workdir, after the export was run on real pictures and agrees with the
Keras model. `tf.saved_model.load` reads it; this package is not needed there."""

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.run_flags import define_run_flags, run_and_model


def define_flags(values: flags.FlagValues) -> None:
    define_run_flags(values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    run, model_file = run_and_model(values, left, "export")

    import_tensorflow()
    from multitask.serving.export import export

    folder = export(run, model_file=model_file)
    print(f"Export: {folder}")
