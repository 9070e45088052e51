"""Write a run's best model in the formats that others run it in.

  multitask export --workdir=runs/first
  multitask export --workdir=runs/first --format=savedmodel,onnx,litert,keras
  multitask export --workdir=runs/first --format=litert --quantize=int8 --out=phone

Writes export/ in the workdir, after each artifact was run on real pictures, by every
installed library that reads it, and agrees with the Keras model. This package is not
needed to use them.

  savedmodel  TensorFlow, TensorFlow Serving; takes encoded pictures
  onnx        ONNX Runtime, OpenVINO      (needs the extra [onnx])
  litert      LiteRT: phones, fast CPUs   (needs the extra [litert])
  keras       Keras"""

from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.run_flags import define_run_flags, run_and_model


def define_flags(values: flags.FlagValues) -> None:
    define_run_flags(values)
    to = {"flag_values": values}
    flags.DEFINE_list("format", ["savedmodel"], "which of the four above, by comma", **to)
    flags.DEFINE_string(
        "quantize",
        "none",
        "none, float16 (half the size) or int8 (a quarter, ranges from training pictures), of onnx "
        "and litert; the exam's figures before and after stand in the table",
        **to,
    )
    flags.DEFINE_list("tasks", None, "which tasks, by comma (default: all)", **to)
    flags.DEFINE_string("out", None, "the folder (default: export in the workdir)", **to)
    flags.DEFINE_string(
        "records_dir", None, "with int8: prepared records (default: records in the data's)", **to
    )
    flags.DEFINE_integer(
        "check_pictures",
        None,
        "exam pictures to check with, 0 for all (default: 32, or 256 with --quantize)",
        lower_bound=0,
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    run, model_file = run_and_model(values, left, "export")

    import_tensorflow()
    from multitask.serving.export import export

    folder = export(
        run,
        model_file=model_file,
        formats=values.format,
        quantize=values.quantize,
        tasks=values.tasks,
        out=Path(values.out) if values.out else None,
        records_dir=Path(values.records_dir) if values.records_dir else None,
        pictures=values.check_pictures,
    )
    print(f"Export: {folder}")
