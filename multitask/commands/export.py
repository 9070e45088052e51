"""Export a run's best model to standard formats.

  multitask export --workdir=runs/first
  multitask export --workdir=runs/first --format=savedmodel,onnx,litert,keras
  multitask export --workdir=runs/first --format=litert --quantize=int8 --out=phone

Writes export/ in the workdir. Every installed library that reads an artifact runs it on
real images, and the results must agree with the Keras model. The artifacts do not need
this package.

  savedmodel  TensorFlow, TensorFlow Serving; takes encoded images
  onnx        ONNX Runtime, OpenVINO      (needs the extra [onnx])
  litert      LiteRT: phones, fast CPUs   (needs the extra [litert])
  keras       Keras
"""

from absl import flags

from multitask.commands.run_flags import define_run_flags, run_and_model
from multitask.commands.spec_flags import path_or_none
from multitask.startup import import_tensorflow


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_run_flags(values)
    to = {"flag_values": values}
    flags.DEFINE_list(
        "format", ["savedmodel"], "one or more of the four above, separated by commas", **to
    )
    flags.DEFINE_string(
        "quantize",
        "none",
        "for onnx and litert: none, float16 (half the size) or int8 (a quarter, with ranges from "
        "training images); the printed table compares the metrics",
        **to,
    )
    flags.DEFINE_list(
        "tasks",
        None,
        "tasks to export, separated by commas (default: all but the auxiliary ones)",
        **to,
    )
    flags.DEFINE_enum(
        "tta",
        None,
        ["flip"],
        "flip: the artifacts average the image and its mirror image, in twice the time; "
        "`evaluate --tta=flip` measures and calibrates this",
        **to,
    )
    flags.DEFINE_string("out", None, "folder to write (default: export in the workdir)", **to)
    flags.DEFINE_string(
        "records_dir",
        None,
        "with int8: folder of prepared records (default: records in --data_dir)",
        **to,
    )
    flags.DEFINE_integer(
        "check_images",
        None,
        "number of test images to check with, 0: all (default: 32, or 256 with --quantize)",
        lower_bound=0,
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Export a model."""
    run, model_file = run_and_model(values, left, "export")

    import_tensorflow()
    from multitask.serving.export import export

    folder = export(
        run,
        model_file=model_file,
        formats=values.format,
        quantize=values.quantize,
        tasks=values.tasks,
        tta=values.tta,
        out=path_or_none(values.out),
        records_dir=path_or_none(values.records_dir),
        images=values.check_images,
    )
    print(f"Export: {folder}")
