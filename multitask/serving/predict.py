"""Predicts every task for the images of files and folders, in batches."""

import dataclasses
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask.console import note, progress_bar
from multitask.data.conversion import conversions_logged
from multitask.data.folders import ImageSearch
from multitask.data.image_files import why_unreadable
from multitask.data.image_kinds import SUFFIXES
from multitask.data.pipeline import readable_images
from multitask.errors import counted
from multitask.run import open_run
from multitask.runtimes.libraries import FEWEST_MEASURED
from multitask.serving.answers import UNCERTAIN, Distance, answer, answer_lines
from multitask.serving.options import PredictOptions
from multitask.serving.prediction_files import PredictionFile
from multitask.serving.predictor import Predictor, load_best, load_export
from multitask.serving.rules import AnswerRules, find_set_thresholds
from multitask.spec import InputError

logger = logging.getLogger(__name__)


def predict(names: Sequence[str], options: PredictOptions) -> None:
    """Predict images and write or print the answers.

    Args:
        names: as for `find_images`.
        options: the model, the rules of its answers, and where they go.

    Raises:
        InputError: as `find_images`, no model, an option that the model does not support, or no
            image can be read.
        DiskError: the disk has no room for the file.
    """
    files = find_images(names)
    model = _load_model(options, measure=len(files) >= FEWEST_MEASURED)
    rules = AnswerRules(
        options.min_confidence.thresholds(model),
        find_set_thresholds(model, options.coverage, joint=options.joint),
        model.distance_limit(options.max_unlike),
    )
    if options.out:
        _predict_to_file(options, options.out, model, files, rules)
        return
    readable = 0
    for file, answers, distance in _answers(model, files, options.batch_size, rules):
        if not isinstance(answers, str):
            readable += 1
            print("\n".join(answer_lines(file, answers, distance)), flush=True)
    _require_readable(readable)


def _load_model(options: PredictOptions, *, measure: bool) -> Predictor:
    if options.model:
        batch = options.batch_size if measure else None
        model = load_export(options.model, runtime=options.runtime, batch=batch)
    else:
        assert options.workdir is not None  # the model is from an export or from a run
        run = open_run(options.workdir, options.data_dir, allow_outside=options.allow_outside)
        model = load_best(run)
    return dataclasses.replace(model, calibrated=options.calibrated, tta=options.tta)


def _answers(
    model: Predictor, files: Sequence[str], batch_size: int, rules: AnswerRules
) -> Iterator[tuple[str, dict[str, Any] | str, Distance | None]]:
    """Yield each file with task -> `answers.answer`, or with the reason, which is also printed.

    The third value is the distance to the training images, if the rules have one.
    """
    for file, result in predict_files(model, files, batch_size=batch_size):
        if isinstance(result, str):
            note(f"{file}: {result}", sys.stderr)
            yield file, result, None
            continue
        distance = None
        if rules.distance_limit is not None and result.distance is not None:
            distance = Distance(result.distance, rules.distance_limit)
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


def _predict_to_file(
    options: PredictOptions,
    out: Path,
    model: Predictor,
    all_files: Sequence[str],
    rules: AnswerRules,
) -> None:
    settings = {
        "model": model.identity,
        "runtime": model.runtime,
        "min_confidence": rules.confidences,
        "calibrated": options.calibrated,
        "tta": options.tta,
    }
    if rules.sets:
        settings |= {"coverage": options.coverage, "joint": options.joint}
    if rules.distance_limit is not None:
        settings["max_unlike"] = options.max_unlike
    prediction_file = PredictionFile(
        out,
        settings,
        model.classes,
        resume=options.resume,
        sets=bool(rules.sets),
        distances=rules.distance_limit is not None,
    )
    files = [file for file in all_files if not prediction_file.has(file)]
    done = len(all_files) - len(files)
    if done:
        note(f"Resuming: {done:,} of {len(all_files):,} images have predictions")
    note(f"Predicting {counted(len(files), 'image')} with {model.runtime}")
    counts, start_s = _Counts(), time.perf_counter()
    try:
        for file, answers, distance in _answers(model, files, options.batch_size, rules):
            prediction_file.add(file, answers, distance)
            if not isinstance(answers, str):
                counts.add(answers, distance)
    finally:
        prediction_file.close()
    seconds = time.perf_counter() - start_s
    prediction_file.finish()
    readable = counts.readable
    rate = f", {readable / seconds:.0f} a second" if readable else ""
    note(f"{readable:,} predicted{rate}; {len(files) - readable:,} cannot be read")
    for line in counts.lines(list(model.classes), rules):
        note(line)
    note(f"Written: {out}")
    if not done:
        _require_readable(readable)


class _Counts:
    """Counts of the answers of one prediction.

    Attributes:
        readable: number of images with answers.
    """

    def __init__(self):
        self.readable = self._unlike = 0
        self._uncertain: Counter[str] = Counter()
        self._set_sizes: Counter[str] = Counter()

    def add(self, answers: dict[str, Any], distance: Distance | None) -> None:
        """Count the answers of one image."""
        self.readable += 1
        self._unlike += bool(distance and distance.unlike)
        self._uncertain.update(t for t, one in answers.items() if one["answer"] == UNCERTAIN)
        self._set_sizes.update({t: len(one.get("set", ())) for t, one in answers.items()})

    def lines(self, tasks: Sequence[str], rules: AnswerRules) -> list[str]:
        """The mean size of the sets, and the images without an answer, where the rules ask."""
        if not self.readable:
            return []
        lines = []
        if rules.sets:
            sizes = (f"{task} {self._set_sizes[task] / self.readable:.1f}" for task in tasks)
            lines.append(f"Classes in a set: {', '.join(sizes)}")
        if self._unlike:
            lines.append(f"Not like the training data: {counted(self._unlike, 'image')}")
        if any(rules.confidences.values()):
            shares = (f"{task} {self._uncertain[task] / self.readable:.1%}" for task in tasks)
            lines.append(f"Uncertain: {', '.join(shares)}")
        return lines


def _require_readable(readable: int) -> None:
    if not readable:
        raise InputError("none of the images can be read")


# === Files ===


def find_images(names: Sequence[str]) -> list[str]:
    """List image files, sorted within a folder, without duplicates.

    Args:
        names: paths of images and folders; `ImageSearch` searches the folders.

    Raises:
        InputError: no name was given, a file or folder does not exist, or a folder has no image.
    """
    if not names:
        raise InputError("name at least one image or folder")
    files: dict[str, None] = {}
    search = ImageSearch()
    for name in names:
        path = str(Path(name))
        if os.path.isdir(path):
            if search.has_read(path):
                continue
            inside = search.find(path)
            if not inside:
                skipped = search.skipped.line()
                raise InputError(
                    f"{path}: no image in this folder (names ending in {', '.join(SUFFIXES)})"
                    + (f". {skipped}" if skipped else "")
                )
            files |= dict.fromkeys(inside)
        elif os.path.exists(path):
            files[path] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    if skipped := search.skipped.line():
        logger.info(skipped)
    return list(files)


class ImageProbabilities(dict[str, np.ndarray]):
    """Task -> float32 [classes] of one image.

    Attributes:
        distance: to the training images; None if the model has none.
    """

    distance: float | None = None


def predict_files(
    predictor: Predictor, files: Sequence[str | Path], *, batch_size: int
) -> Iterator[tuple[str, ImageProbabilities | str]]:
    """Predict files in order.

    Images are decoded while the model works on previous ones. The use of memory does not grow with
    the number of images.

    Yields:
        A file; and its probabilities, or the reason why it cannot be read.
    """
    names = [os.fspath(file) for file in files]
    batches = readable_images(
        [os.fsencode(name) for name in names],
        **predictor.reading,
        batch_size=batch_size,
    )
    done = 0

    def unreadable(until: int) -> Iterator[tuple[str, str]]:
        for name in names[done:until]:
            yield name, " ".join((why_unreadable(name) or "could not be read").split())

    with conversions_logged(), progress_bar("predicting", len(names)) as bar:
        for places, images in batches:
            # `numpy()` would copy ten megabytes per batch while the model waits.
            probabilities, embedding = predictor.answer(np.asarray(images))
            distances = predictor.distances(embedding)
            for row, place in enumerate(places.tolist()):
                yield from unreadable(place)
                one = ImageProbabilities({task: p[row] for task, p in probabilities.items()})
                one.distance = None if distances is None else float(distances[row])
                yield names[place], one
                done = place + 1
            bar.update(done - bar.n)
        yield from unreadable(len(names))
