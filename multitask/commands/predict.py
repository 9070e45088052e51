"""Say what pictures show: each task's top three classes.

  multitask predict --model=runs/first/export PICTURE_OR_FOLDER …
  multitask predict --workdir=runs/first PICTURE_OR_FOLDER …

Preprocessing is that of training. A picture that cannot be read gets its line and
the rest go on."""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.spec import InputError


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", **to)
    flags.DEFINE_string("workdir", None, "instead of --model: a run, for its best model", **to)
    flags.DEFINE_string("data_dir", None, "with --workdir: where the data has moved to", **to)
    flags.DEFINE_string("out", None, "write the answers to this .csv or .json file too", **to)
    flags.DEFINE_string(
        "min_confidence",
        "0",
        "answer `uncertain` where the highest probability is below this; auto:0.9 takes for each "
        "task the lowest confidence from which on 0.9 of the answers were right on the selection "
        "split",
        **to,
    )
    flags.DEFINE_boolean(
        "calibrated", True, "scale probabilities by the temperature that `evaluate` found", **to
    )
    flags.DEFINE_enum(
        "tta",
        None,
        ["flip", "crops"],
        "test-time augmentation: the mean of 2 views (mirrored) or 12 (corners and centre too)",
        **to,
    )
    flags.DEFINE_integer("batch_size", 16, "pictures at a time", lower_bound=1, **to)


def _confidence(text: str) -> tuple[bool, float]:
    """`0.6` -> (False, 0.6), `auto:0.9` -> (True, 0.9)."""
    auto, _, number = text.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if auto not in ("", "auto") or not 0 <= value <= 1:
        raise InputError(
            f"--min_confidence: {text!r}: expected a number from 0 to 1, or auto: and such a "
            "number, as in auto:0.9"
        )
    return bool(auto), value


def main(values: flags.FlagValues, left: list[str]) -> None:
    auto, least = _confidence(values.min_confidence)
    if bool(values.model) == bool(values.workdir):
        raise InputError("multitask predict: give either --model=EXPORT or --workdir=RUN")
    out = Path(values.out) if values.out else None
    if out and out.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"--out: {out}: expected a name that ends in .csv or .json")
    if out and out.is_dir():
        raise InputError(f"--out: {out}: is a folder; name a file")
    if out and not out.absolute().parent.is_dir():
        raise InputError(f"--out: {out}: there is no folder {out.parent}")

    import_tensorflow()
    from multitask.run import open_run
    from multitask.serving import predict

    files = predict.find_pictures(left)
    if values.model:
        predictor = predict.load_export(Path(values.model))
    else:
        data_dir = Path(values.data_dir) if values.data_dir else None
        predictor = predict.load_best(open_run(Path(values.workdir), data_dir))
    predictor = dataclasses.replace(predictor, calibrated=values.calibrated, tta=values.tta)
    thresholds = predictor.thresholds(least) if auto else dict.fromkeys(predictor.classes, least)
    if auto:
        print("From: " + ", ".join(f"{task} {value:.3f}" for task, value in thresholds.items()))
    answers = []
    for file, said in predict.predict_files(predictor, files, batch_size=values.batch_size):
        if isinstance(said, str):
            print(f"{file}: {said}", file=sys.stderr, flush=True)
        else:
            said = {
                task: predict.answer(
                    probabilities,
                    predictor.classes[task],
                    min_confidence=thresholds[task],
                )
                for task, probabilities in said.items()
            }
            print("\n".join(predict.answer_lines(file, said)), flush=True)
        answers.append((file, said))
    if out:
        predict.write_answers(out, answers)
        print(f"Written: {out}")
    if all(isinstance(said, str) for _, said in answers):
        raise InputError(f"none of the {len(answers)} pictures can be read")
