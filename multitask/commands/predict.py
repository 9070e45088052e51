"""Say what pictures show: each task's top three classes.

  multitask predict --model=runs/first/export PICTURE_OR_FOLDER …
  multitask predict --workdir=runs/first PICTURE_OR_FOLDER …
  multitask predict --model=runs/first/export --out=answers.csv FOLDER

Preprocessing is that of training. A picture that cannot be read gets its line and
the rest go on. With --out answers are kept as they come: if it is interrupted, the
same command with --resume goes on."""

import dataclasses
import functools
import sys
import time
from collections import Counter
from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.model_flags import confidence, define_model_flags, thresholds_of
from multitask.commands.spec_flags import define_allow_outside
from multitask.console import note
from multitask.spec import InputError, expected

SUFFIXES = (".csv", ".jsonl", ".parquet")
MANY = 1000  # pictures; for fewer, measuring the runtimes takes longer than what it gains


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", **to)
    flags.DEFINE_string("workdir", None, "instead of --model: a run, for its best model", **to)
    flags.DEFINE_string("data_dir", None, "with --workdir: where the data has moved to", **to)
    define_allow_outside(values)
    flags.DEFINE_string(
        "out",
        None,
        "write the answers to this .csv, .jsonl or .parquet file instead of the console",
        **to,
    )
    flags.DEFINE_boolean("resume", False, "with --out: go on where it was interrupted", **to)
    define_model_flags(values, "with --model: ", f", for {MANY:,} pictures or more")
    flags.DEFINE_enum(
        "tta",
        None,
        ["flip", "crops"],
        "test-time augmentation: the mean of 2 views (mirrored) or 12 (corners and centre too)",
        **to,
    )
    flags.DEFINE_integer("batch_size", 16, "pictures at a time", lower_bound=1, **to)


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out: {out}: {expected(out.suffix.lower(), SUFFIXES)}")
    if out.is_dir():
        raise InputError(f"--out: {out}: is a folder; name a file")
    for path in (out, out.with_name(out.name + ".partial")):
        if path.exists() and not path.is_file():
            raise InputError(f"--out: {path}: is not a regular file; name another")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out: {out}: there is no folder {out.parent}")


def main(values: flags.FlagValues, left: list[str]) -> None:
    least = confidence(values.min_confidence)
    if bool(values.model) == bool(values.workdir):
        raise InputError("multitask predict: give either --model=EXPORT or --workdir=RUN")
    if values.workdir and values.runtime not in ("auto", "tensorflow"):
        raise InputError(f"--runtime={values.runtime}: is for --model; a run is TensorFlow's")
    out = Path(values.out) if values.out else None
    if out:
        _check_out(out)
    elif values.resume:
        raise InputError("--resume: is for --out; without it nothing is kept to go on with")

    import_tensorflow()
    from multitask.run import open_run
    from multitask.serving import predict, predictor
    from multitask.serving.answers import Answers

    tell = functools.partial(note, stream=sys.stderr)
    files = predict.find_pictures(left, tell=tell)
    if values.model:
        model = predictor.load_export(
            Path(values.model),
            runtime=values.runtime,
            batch=values.batch_size if len(files) >= MANY else None,
            tell=tell,
        )
    else:
        data_dir = Path(values.data_dir) if values.data_dir else None
        run = open_run(Path(values.workdir), data_dir, allow_outside=values.allow_outside)
        model = predictor.load_best(run)
    model = dataclasses.replace(model, calibrated=values.calibrated, tta=values.tta)
    thresholds = thresholds_of(model, least)
    answers, before = None, len(files)
    if out:
        settings = {
            "model": model.identity,
            "runtime": model.runtime,
            "min_confidence": thresholds,
            "calibrated": values.calibrated,
            "tta": values.tta,
        }
        answers = Answers(out, settings, model.classes, resume=values.resume)
        files = [file for file in files if not answers.has(file)]
        if len(files) < before:
            note(f"Going on: {before - len(files):,} of {before:,} were answered before")
        noun = "picture" if len(files) == 1 else "pictures"
        note(f"Predicting {len(files):,} {noun} with {model.runtime}")
    readable, uncertain, began = 0, Counter(), time.perf_counter()
    try:
        for file, said in predict.predict_files(model, files, batch_size=values.batch_size):
            if isinstance(said, str):
                note(f"{file}: {said}", sys.stderr)
            else:
                said = {
                    task: predict.answer(
                        probabilities, model.classes[task], min_confidence=thresholds[task]
                    )
                    for task, probabilities in said.items()
                }
                readable += 1
                uncertain.update(t for t, one in said.items() if one["answer"] == predict.UNCERTAIN)
                if not answers:
                    print("\n".join(predict.answer_lines(file, said)), flush=True)
            if answers:
                answers.add(file, said)
    finally:
        if answers:
            answers.close()
    if answers:
        seconds = time.perf_counter() - began
        answers.finish()
        rate = f", {readable / seconds:.0f} a second" if readable else ""
        note(f"{readable:,} answered{rate}; {len(files) - readable:,} cannot be read")
        if any(thresholds.values()) and readable:
            shares = (f"{task} {uncertain[task] / readable:.1%}" for task in model.classes)
            note(f"Uncertain: {', '.join(shares)}")
        note(f"Written: {out}")
    if len(files) == before and not readable:
        raise InputError(f"none of the {len(files)} pictures can be read")
