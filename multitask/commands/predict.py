"""Predict the top three classes of each task for images.

  multitask predict --model=runs/first/export IMAGE_OR_FOLDER …
  multitask predict --workdir=runs/first IMAGE_OR_FOLDER …
  multitask predict --model=runs/first/export --out=answers.csv FOLDER

Images are preprocessed as in training. An unreadable image is reported and skipped.
With --out, predictions are stored continuously: the same command with --resume
continues an interrupted prediction.
"""

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from multitask.commands.model_flags import (
    check_coverage,
    confidence,
    define_model_flags,
    max_distance_of,
    set_thresholds_of,
    thresholds_of,
)
from multitask.commands.spec_flags import define_allow_outside
from multitask.console import log_to_stderr, note
from multitask.errors import counted
from multitask.spec import InputError, expected
from multitask.startup import import_tensorflow

if TYPE_CHECKING:  # flags do not wait for TensorFlow
    from multitask.serving.answers import Distance
    from multitask.serving.predictor import Predictor

SUFFIXES = (".csv", ".jsonl", ".parquet")
MANY = 1000  # images; for fewer, measuring the runtimes takes longer than it saves


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
    define_model_flags(values, "with --model: ", f", for {MANY:,} images or more")
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
    flags.DEFINE_enum(
        "tta",
        None,
        ["flip", "crops"],
        "test-time augmentation: the mean of 2 views (mirrored) or 12 (also corners and centre)",
        **to,
    )
    flags.DEFINE_integer("batch_size", 16, "images in a batch", lower_bound=1, **to)


@dataclasses.dataclass(frozen=True)
class _Rules:
    """What turns probabilities into answers.

    Attributes:
        confidences: task -> least confidence of an answer.
        sets: task -> threshold of its set of classes; None: no sets.
        max_distance: of an image that is like the training images; None: no distances.
    """

    confidences: Mapping[str, float]
    sets: Mapping[str, float] | None
    max_distance: float | None


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
    """Predict the images and folders in `left`."""
    min_confidence = confidence(values.min_confidence)
    if bool(values.model) == bool(values.workdir):
        raise InputError("multitask predict: give either --model=EXPORT or --workdir=RUN")
    if values.workdir and values.runtime not in ("auto", "tensorflow"):
        raise InputError(f"--runtime={values.runtime}: needs --model; a run needs TensorFlow")
    out = Path(values.out) if values.out else None
    if out:
        _check_out(out)
    elif values.resume:
        raise InputError("--resume: needs --out; without it no predictions are stored")
    check_coverage(values)

    import_tensorflow()
    from multitask.serving.predict import find_images

    log_to_stderr()
    files = find_images(left)
    model = _load_model(values, measure=len(files) >= MANY)
    rules = _Rules(
        thresholds_of(model, min_confidence),
        set_thresholds_of(values, model),
        max_distance_of(values, model),
    )
    if out:
        _predict_to_file(values, out, model, files, rules)
        return
    readable = 0
    for file, predictions, distance in _predictions(model, files, values.batch_size, rules):
        if not isinstance(predictions, str):
            readable += 1
            print("\n".join(_answer_lines(file, predictions, distance)), flush=True)
    _require_readable(readable, files)


def _load_model(values: flags.FlagValues, *, measure: bool) -> "Predictor":
    from multitask.run import open_run
    from multitask.serving import predictor

    if values.model:
        batch = values.batch_size if measure else None
        model = predictor.load_export(Path(values.model), runtime=values.runtime, batch=batch)
    else:
        data_dir = Path(values.data_dir) if values.data_dir else None
        run = open_run(Path(values.workdir), data_dir, allow_outside=values.allow_outside)
        model = predictor.load_best(run)
    return dataclasses.replace(model, calibrated=values.calibrated, tta=values.tta)


def _predictions(
    model: "Predictor", files: Sequence[str], batch_size: int, rules: _Rules
) -> Iterator[tuple[str, dict[str, Any] | str, "Distance | None"]]:
    """Yield each file with task -> `answers.answer`, or with the reason, which is also printed."""
    from multitask.serving import predict
    from multitask.serving.answers import Distance, answer

    for file, result in predict.predict_files(model, files, batch_size=batch_size):
        if isinstance(result, str):
            note(f"{file}: {result}", sys.stderr)
            yield file, result, None
            continue
        distance = None
        if rules.max_distance is not None and result.distance is not None:
            distance = Distance(result.distance, rules.max_distance)
        yield (
            file,
            {
                task: answer(
                    probabilities,
                    model.classes[task],
                    min_confidence=rules.confidences[task],
                    set_threshold=rules.sets[task] if rules.sets else None,
                    distance=distance,
                )
                for task, probabilities in result.items()
            },
            distance,
        )


def _answer_lines(file: str, predictions: dict[str, Any], distance: "Distance | None") -> list[str]:
    from multitask.serving.answers import answer_lines

    return answer_lines(file, predictions, distance)


def _settings(values: flags.FlagValues, model: "Predictor", rules: _Rules) -> dict[str, Any]:
    """The settings that the predictions depend on."""
    settings = {
        "model": model.identity,
        "runtime": model.runtime,
        "min_confidence": rules.confidences,
        "calibrated": values.calibrated,
        "tta": values.tta,
    }
    if rules.sets:
        settings |= {"coverage": values.coverage, "joint": values.joint}
    if rules.max_distance is not None:
        settings["max_unlike"] = values.max_unlike
    return settings


def _predict_to_file(
    values: flags.FlagValues,
    out: Path,
    model: "Predictor",
    all_files: Sequence[str],
    rules: _Rules,
) -> None:
    from multitask.serving.answers import UNCERTAIN
    from multitask.serving.prediction_files import PredictionFile

    prediction_file = PredictionFile(
        out,
        _settings(values, model, rules),
        model.classes,
        resume=values.resume,
        sets=bool(rules.sets),
        distances=rules.max_distance is not None,
    )
    files = [file for file in all_files if not prediction_file.has(file)]
    done = len(all_files) - len(files)
    if done:
        note(f"Resuming: {done:,} of {len(all_files):,} images have predictions")
    note(f"Predicting {counted(len(files), 'image')} with {model.runtime}")
    readable, unlike, start_s = 0, 0, time.perf_counter()
    uncertain: Counter[str] = Counter()
    set_sizes: Counter[str] = Counter()
    try:
        for file, predictions, distance in _predictions(model, files, values.batch_size, rules):
            prediction_file.add(file, predictions, distance)
            if not isinstance(predictions, str):
                readable += 1
                unlike += bool(distance and distance.unlike)
                uncertain.update(t for t, p in predictions.items() if p["answer"] == UNCERTAIN)
                set_sizes.update({t: len(p.get("set", ())) for t, p in predictions.items()})
    finally:
        prediction_file.close()
    seconds = time.perf_counter() - start_s
    prediction_file.finish()
    rate = f", {readable / seconds:.0f} a second" if readable else ""
    note(f"{readable:,} predicted{rate}; {len(files) - readable:,} cannot be read")
    if rules.sets and readable:
        sizes = (f"{task} {set_sizes[task] / readable:.1f}" for task in model.classes)
        note(f"Classes in a set: {', '.join(sizes)}")
    if unlike:
        note(f"Not like the training data: {counted(unlike, 'image')}")
    if any(rules.confidences.values()) and readable:
        shares = (f"{task} {uncertain[task] / readable:.1%}" for task in model.classes)
        note(f"Uncertain: {', '.join(shares)}")
    note(f"Written: {out}")
    if not done:
        _require_readable(readable, files)


def _require_readable(readable: int, files: Sequence[str]) -> None:
    if not readable:
        raise InputError("none of the images can be read")
