"""A trained model that answers pictures, from an export or from a run."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from multitask.data.decode import RESIZE_KINDS
from multitask.data.table import read_classes
from multitask.evaluation.calibration import Calibration, saved_calibrations
from multitask.evaluation.predictions import softmax
from multitask.evaluation.views import TTA
from multitask.files import read_json, silent
from multitask.model.network import load_network
from multitask.reading import check_regular, sha256
from multitask.run import Run
from multitask.serving.export import FORMAT
from multitask.serving.fastest import fastest
from multitask.serving.runtimes import AUTO, EMBEDDING, RUNTIMES, able, output_of
from multitask.serving.signatures import numbers
from multitask.spec import InputError

LARGEST_PX = 4096  # of an export's input; a spec allows 1024


@dataclass(frozen=True)
class Predictor:
    """A model that answers pictures.

    Attributes:
        classes: task -> class names.
        infer: image float32 [batch, size, size, 3] in 0..255 -> {`{task}_logits`: float32
            [batch, classes], EMBEDDING: float32 [batch, width] where the artifact has it}.
        runtime: what runs it, for people.
        calibrations: task -> what the selection split said of its confidences.
        size_px, how: the model's input.
        identity: the same for the same model alone.
        calibrated: whether probabilities are scaled by the temperature.
        tta: one of views.TTA; None: the plain picture.
    """

    classes: dict[str, tuple[str, ...]]
    infer: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    runtime: str
    calibrations: Mapping[str, Calibration]
    size_px: int
    how: str
    identity: str
    calibrated: bool = True
    tta: str | None = None

    def probabilities(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures of the model's size, float32 [n, size, size, 3] -> task -> float32 [n,
        classes]."""
        return self.answer(images)[0]

    def answer(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """`probabilities`, and the plain pictures' embedding, float32 [n, width], or None."""
        views = [images]
        if self.tta:
            views = [view.numpy() for view in TTA[self.tta](tf.constant(images))]
        said = [self.infer(view) for view in views]
        found = {}
        for task, calibration in self.calibrations.items():
            temperature = calibration.temperature if self.calibrated else 1.0
            each = [
                softmax(np.float64(view[output_of(task, "logits")]) / temperature) for view in said
            ]
            found[task] = np.mean(each, axis=0).astype(np.float32)
        return found, None if self.tta else said[0].get(EMBEDDING)

    def thresholds(self, accuracy: float) -> dict[str, float]:
        """Task -> the confidence from which on this share is right on the validation split; inf
        where no confidence is known to be, and the task so always uncertain.

        Raises:
            InputError: no task has one, or the model was not evaluated.
        """
        found, reasons = {}, {}
        for task, calibration in self.calibrations.items():
            threshold = calibration.threshold(accuracy, calibrated=self.calibrated)
            found[task] = math.inf if threshold is None else threshold
            reasons[task] = calibration.why_no_threshold(accuracy, calibrated=self.calibrated)
            if not calibration.fitted_on and calibration.reason is None:
                raise InputError(
                    f"--min_confidence: auto:{accuracy:g}: nothing is known of {task}, as this "
                    "model was not evaluated; `multitask evaluate` measures it, and the next "
                    "`multitask export` carries it"
                )
        if all(reasons.values()):
            why = "; ".join(f"{task}: {reason}" for task, reason in reasons.items())
            raise InputError(
                f"--min_confidence: auto:{accuracy:g}: the validation split shows no such "
                f"confidence ({why}). Give a number, such as --min_confidence=0.6; a new training "
                "with a larger validation split (--selection) may show one"
            )
        return found


def read_export(folder: Path) -> dict[str, Any]:
    """`classes.json` of an export, with classes as tuples, calibrations read, and the export's
    `identity`.

    Raises:
        InputError: not such a folder, or of another version.
    """
    if not folder.is_dir():
        raise InputError(f"--model: {folder}: no such folder; `multitask export` makes one")
    try:
        content = read_json(folder / "classes.json")
        written = content["format"]
        if written != FORMAT:
            raise InputError(
                f"--model: {folder}: written in format {written}, this version reads {FORMAT}; "
                "export it again"
            )
        classes = {task: tuple(names) for task, names in content["classes"].items()}
        if not all(isinstance(name, str) for names in classes.values() for name in names):
            raise ValueError("a class has no name")
        calibrations = {
            task: Calibration.from_dict(content["calibration"][task]) for task in classes
        }
        size_px, how = int(content["image_size"]), content["resize"]
        if not 1 <= size_px <= LARGEST_PX:
            raise ValueError(f"image_size {size_px}")
        if how not in RESIZE_KINDS:
            raise ValueError(f"resize {how!r}")
        artifacts = dict(content["artifacts"])
        for where in artifacts.values():
            if not (folder / where).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"artifact {where!r}")
            if os.path.exists(folder / where):  # whoever loads it says that it is missing
                check_regular(folder / where)
        identity = sha256(folder / "classes.json", folder / "report.json")
    except InputError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError
    ) as error:  # fmt: skip
        raise InputError(f"--model: {folder}: not an export of multitask ({error})") from None
    return {
        **content,
        "classes": classes,
        "calibration": calibrations,
        "image_size": size_px,
        "artifacts": artifacts,
        "identity": identity,
    }


def load_export(
    folder: Path,
    *,
    runtime: str = AUTO,
    batch: int | None = None,
    tell: Callable[[str], None] = print,
) -> Predictor:
    """What `multitask export` wrote.

    Args:
        folder: of the export.
        runtime: of runtimes.RUNTIMES, or AUTO: of those that are installed and have an artifact,
            the fastest at `batch` pictures at a time.
        batch: None: AUTO is the one that starts the fastest, and nothing is measured.
        tell: shows a line.

    Raises:
        InputError: not such a folder, or nothing installed runs it.
    """
    content = read_export(folder)
    size_px, artifacts = content["image_size"], content["artifacts"]
    identity = content["identity"]
    names = able(runtime, artifacts)
    paths = {name: folder / artifacts[RUNTIMES[name].format] for name in names}
    name = names[0]
    if batch:
        name = fastest(paths, size_px=size_px, batch=batch, identity=identity, tell=tell)
    chosen, path = RUNTIMES[name], paths[name]
    try:
        with silent():
            infer = chosen.load(path)
            said = infer(np.zeros((1, size_px, size_px, 3), np.float32))
    except Exception as error:  # each runtime raises kinds of its own
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"--model: {folder}: {path.relative_to(folder)} cannot be loaded by {chosen.title} "
            f"({reason})"
        ) from None
    for task, names in content["classes"].items():
        logits = said.get(output_of(task, "logits"))
        if logits is None:
            raise InputError(f"--model: {folder}: its model does not answer {task}")
        if logits.shape[-1] != len(names):
            raise InputError(
                f"--model: {folder}: classes.json names {len(names)} classes of {task}, its model "
                f"has {logits.shape[-1]}"
            )
    return Predictor(
        content["classes"],
        infer,
        chosen.described,
        content["calibration"],
        size_px,
        content["resize"],
        identity,
    )


def load_best(run: Run, *, model_file: Path | None = None) -> Predictor:
    """A run's best model, or another of its models, in TensorFlow.

    Raises:
        InputError: no model yet.
    """
    classes = {task.name: read_classes(run.data_dir / task.classes) for task in run.spec.tasks}
    model_file = model_file or run.best_model
    model = load_network(model_file, run.spec, classes)
    calibrations = saved_calibrations(run, model_file)
    answer = numbers(model, calibrations)
    return Predictor(
        classes,
        lambda image: {name: x.numpy() for name, x in answer(tf.constant(image)).items()},
        RUNTIMES["tensorflow"].described,
        calibrations,
        run.spec.image_size,
        run.spec.resize,
        sha256(model_file),
    )
