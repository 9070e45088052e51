"""A trained model for predictions, from an export or from a run.

TensorFlow is imported only where a model or an option needs it.
"""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from multitask.calibration import Calibration
from multitask.conformal import Conformal
from multitask.data.image_limits import RESIZE_KINDS
from multitask.errors import counted
from multitask.feature_distance import DISTANCE, FeatureDistance
from multitask.files import read_json, silent
from multitask.open_set import known_scores
from multitask.reading import check_regular, sha256
from multitask.run import Run
from multitask.runtimes.choice import fastest_runtime
from multitask.runtimes.libraries import AUTO, EMBEDDING, RUNTIMES, output_of, usable_runtimes
from multitask.spec import OTHER_ANSWER, InputError
from multitask.trained import open_trained

FORMAT = 4  # version of classes.json; incremented when older readers would misread it
LARGEST_PX = 4096  # of an export's input; a spec allows 1024


@dataclass(frozen=True)
class Predictor:
    """A model that predicts the tasks of images.

    Attributes:
        classes: task -> class names; for an open task, OTHER_ANSWER is the last.
        infer: image float32 [batch, size, size, 3] in 0..255 -> {`{task}_logits`: float32
            [batch, classes], EMBEDDING: float32 [batch, width] if the artifact has it}.
        runtime: the library that runs it, for display.
        calibrations: task -> its calibration on the validation split.
        size_px: side of the model's input.
        how: the kind of resizing.
        reduced_px: the shorter side that an image is reduced to before.
        convert_profiles: whether embedded color profiles are applied.
        identity: a text that differs for different models.
        calibrated: whether probabilities are scaled by the temperature.
        tta: one of tta.TTA; None: the plain image.
        conformal: the scores of the validation split; None if the model was not evaluated, or only
            by an older version.
        distance: the distance to the training images; None as for `conformal`, or if the evaluation
            could not fit it.
    """

    classes: dict[str, tuple[str, ...]]
    infer: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    runtime: str
    calibrations: Mapping[str, Calibration]
    size_px: int
    how: str
    reduced_px: int
    convert_profiles: bool
    identity: str
    calibrated: bool = True
    tta: str | None = None
    conformal: Conformal | None = None
    distance: FeatureDistance | None = None

    @property
    def resizing(self) -> dict[str, Any]:
        """The arguments of `decode.resize_image` that make the model's input of an image."""
        return {"size_px": self.size_px, "how": self.how, "reduced_px": self.reduced_px}

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `pipeline.readable_images` that make the model's input of a file."""
        return self.resizing | {"convert_profiles": self.convert_profiles}

    def probabilities(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Predict the class probabilities of images.

        Args:
            images: float32 [n, size, size, 3], of the model's size.

        Returns:
            Task -> float32 [n, classes]; for an open task, the last column is the probability that
            an image has none of its classes.
        """
        return self.answer(images)[0]

    def answer(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return `probabilities`, and the embedding float32 [n, width] of the plain image.

        The embedding is None if the artifact has none.
        """
        views = [images]
        if self.tta:
            import tensorflow as tf

            from multitask.evaluation.tta import TTA

            views = [view.numpy() for view in TTA[self.tta](tf.constant(images))]
        outputs = [self.infer(view) for view in views]
        probabilities = {}
        for task, calibration in self.calibrations.items():
            temperature = calibration.temperature if self.calibrated else 1.0
            each = [output[output_of(task, "logits")].astype(np.float64) for output in outputs]
            logits = np.mean(each, axis=0)
            answers = calibration.answers(
                softmax(logits / temperature, axis=-1),
                known_scores(logits),
                calibrated=self.calibrated,
            )
            probabilities[task] = answers.astype(np.float32)
        return probabilities, outputs[0].get(EMBEDDING)  # the first view is the plain image

    def distances(self, embedding: np.ndarray | None) -> np.ndarray | None:
        """The distances float64 [n] of embeddings to the training images; None without distance."""
        if self.distance is None or embedding is None:
            return None
        return self.distance.distances(embedding)

    def distance_limit(self, max_unlike: float | None = None) -> float | None:
        """The highest distance of an image that is like the training images.

        Args:
            max_unlike: as for `FeatureDistance.limit`.

        Returns:
            The limit; None if the model has no distance and no share is requested.

        Raises:
            InputError: the share is not possible, or the model has no distance.
        """
        if self.distance is not None:
            return self.distance.limit(max_unlike)
        if max_unlike is not None:
            raise InputError(
                f"{max_unlike:g}: this model has no distance to the training images; `multitask "
                "evaluate` fits it, and the next `multitask export` includes it",
                field="max_unlike",
            )
        return None

    def thresholds(self, accuracy: float) -> dict[str, float]:
        """Look up the confidences that reach an accuracy on the validation split.

        Args:
            accuracy: of the predictions at or above the threshold.

        Returns:
            Task -> the lowest such confidence; inf if there is none, so that every prediction of
            the task is uncertain.

        Raises:
            InputError: no task has one, or the model was not evaluated.
        """
        thresholds, reasons = {}, {}
        for task, calibration in self.calibrations.items():
            threshold = calibration.threshold(accuracy, calibrated=self.calibrated)
            thresholds[task] = math.inf if threshold is None else threshold
            reasons[task] = calibration.why_no_threshold(accuracy, calibrated=self.calibrated)
            if not calibration.fitted_on and calibration.reason is None:
                raise InputError(
                    f"auto:{accuracy:g}: {task} has no calibration, as this "
                    "model was not evaluated; `multitask evaluate` measures it, and the next "
                    "`multitask export` includes it",
                    field="min_confidence",
                )
        if all(reasons.values()):
            why = "; ".join(f"{task}: {reason}" for task, reason in reasons.items())
            raise InputError(
                f"auto:{accuracy:g}: the validation split shows no such "
                f"confidence ({why}). Give a number, such as 0.6; a new training with a larger "
                "validation split (field validation) may provide one",
                field="min_confidence",
            )
        return thresholds

    def set_thresholds(self, coverage: float, *, joint: bool = False) -> dict[str, float]:
        """Look up the thresholds of sets of classes, as `Conformal.thresholds`.

        Raises:
            InputError: the coverage is not in (0, 1), there are too few validation images for it,
                the model has no scores, or the scores do not apply to its probabilities.
        """
        for option, other in (("tta", self.tta), ("nocalibrated", not self.calibrated)):
            if other:
                raise InputError(
                    f"{coverage:g}: cannot be combined with {option}; the sets are fitted on the "
                    "calibrated probabilities of the plain image",
                    field="coverage",
                )
        if self.conformal is None:
            raise InputError(
                f"{coverage:g}: this model has no scores for sets of classes; `multitask evaluate` "
                "computes them, and the next `multitask export` includes them",
                field="coverage",
            )
        return self.conformal.thresholds(coverage, joint=joint)


def read_export(folder: Path) -> dict[str, Any]:
    """Read and check `classes.json` of an export.

    Args:
        folder: of the export.

    Returns:
        Its content, with classes as tuples, `Calibration`, `Conformal` and `FeatureDistance`
        objects, and the export's `identity`.

    Raises:
        InputError: not an export, or of another version.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `multitask export` makes one", field="model")
    try:
        content = read_json(folder / "classes.json")
        version = content["format"]
        if version != FORMAT:
            raise InputError(
                f"{folder}: written in format {version}, this version reads {FORMAT}; "
                "export it again",
                field="model",
            )
        classes = {task: tuple(names) for task, names in content["classes"].items()}
        if not all(isinstance(name, str) for names in classes.values() for name in names):
            raise ValueError("a class has no name")
        fitted = _fitted_on_validation(content, tuple(classes))
        size_px, how = int(content["image_size"]), content["resize"]
        reduced_px = int(content["reduced_px"])
        if not 1 <= size_px <= LARGEST_PX:
            raise ValueError(f"image_size {size_px}")
        if not 1 <= reduced_px <= 4 * LARGEST_PX:
            raise ValueError(f"reduced_px {reduced_px}")
        if how not in RESIZE_KINDS:
            raise ValueError(f"resize {how!r}")
        artifacts = _artifacts(folder, content)
        has_distance = content.get("distance") is not None  # earlier exports have none
        distance = _read_distance(folder) if has_distance else None
        files = ("classes.json", "report.json", *[DISTANCE] * has_distance)
        identity = sha256(*(folder / name for name in files))
    except InputError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError
    ) as error:  # fmt: skip
        raise InputError(f"{folder}: {_what_instead(folder, error)}", field="model") from None
    return {
        **content,
        "classes": classes,
        **fitted,
        "distance": distance,
        "image_size": size_px,
        "reduced_px": reduced_px,
        "convert_profiles": content.get("convert_profiles") is True,  # earlier ones lack it
        "artifacts": artifacts,
        "identity": identity,
    }


def _fitted_on_validation(content: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    scores = content.get("conformal")  # earlier exports lack it
    return {
        "calibration": {
            task: Calibration.from_dict(content["calibration"][task]) for task in tasks
        },
        "conformal": None if scores is None else Conformal.from_dict(scores, tasks),
    }


def _artifacts(folder: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Format -> path of its artifact, which is inside the folder."""
    artifacts = dict(content["artifacts"])
    for where in artifacts.values():
        if not (folder / where).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"artifact {where!r}")
        if os.path.exists(folder / where):  # loading reports a missing artifact
            check_regular(folder / where)
    return artifacts


def _read_distance(folder: Path) -> FeatureDistance:
    """Read the distance of an export.

    Raises:
        InputError: the file is missing or broken.
    """
    file = folder / DISTANCE
    try:
        return FeatureDistance.from_dict(read_json(file))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is broken: {error}"
        raise InputError(f"{file}: {reason}; export the model again", field="model") from None


def _what_instead(folder: Path, error: Exception) -> str:
    """Describe a folder that is not an export."""
    if (folder / "export" / "classes.json").is_file():
        return f"a run; name its export, {folder / 'export'}"
    if (folder / "config.json").is_file():
        return "a run, not an export; export it with `multitask export`"
    return f"not an export of multitask ({error})"


def load_export(
    folder: Path,
    *,
    runtime: str = AUTO,
    batch: int | None = None,
) -> Predictor:
    """Load an export.

    Args:
        folder: of the export.
        runtime: of runtimes.RUNTIMES, or AUTO: the fastest of those that are installed and have
            an artifact.
        batch: batch size for which AUTO chooses; None: AUTO is the runtime that starts fastest,
            and nothing is measured.

    Raises:
        InputError: not an export, or no installed library runs it.
    """
    content = read_export(folder)
    size_px, artifacts = content["image_size"], content["artifacts"]
    identity = content["identity"]
    names = usable_runtimes(runtime, artifacts)
    paths = {name: folder / artifacts[RUNTIMES[name].format] for name in names}
    name = names[0]
    if batch:
        loaders = {name: functools.partial(RUNTIMES[name].load, paths[name]) for name in names}
        name = fastest_runtime(loaders, size_px=size_px, batch=batch, identity=identity)
    chosen, path = RUNTIMES[name], paths[name]
    try:
        with silent():
            infer = chosen.load(path)
            outputs = infer(np.zeros((1, size_px, size_px, 3), np.float32))
    except Exception as error:  # each library raises other types
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{folder}: {path.relative_to(folder)} cannot be loaded by {chosen.title} ({reason})",
            field="model",
        ) from None
    _check_outputs(folder, content, outputs)
    return Predictor(
        _answers_of(content["classes"], content["calibration"]),
        infer,
        chosen.described,
        content["calibration"],
        size_px,
        content["resize"],
        content["reduced_px"],
        content["convert_profiles"],
        identity,
        conformal=content["conformal"],
        distance=content["distance"],
    )


def _check_outputs(
    folder: Path, content: Mapping[str, Any], outputs: Mapping[str, np.ndarray]
) -> None:
    """Raise InputError if the outputs of the model do not match `classes.json`."""
    for task, class_names in content["classes"].items():
        logits = outputs.get(output_of(task, "logits"))
        if logits is None:
            raise InputError(f"{folder}: its model has no output for {task}", field="model")
        if logits.shape[-1] != len(class_names):
            raise InputError(
                f"{folder}: classes.json names {counted(len(class_names), 'class', 'classes')} of "
                f"{task}, but the model has {logits.shape[-1]}",
                field="model",
            )
    distance, embedding = content["distance"], outputs.get(EMBEDDING)
    if distance is not None and embedding is not None and embedding.shape[-1] != distance.width:
        raise InputError(
            f"{folder / DISTANCE}: is for embeddings of {distance.width} numbers, but the model "
            f"has {embedding.shape[-1]}",
            field="model",
        )


def _answers_of(
    classes: Mapping[str, Sequence[str]], calibrations: Mapping[str, Calibration]
) -> dict[str, tuple[str, ...]]:
    """Task -> the names of its answers: its classes, and OTHER_ANSWER if it is open."""
    return {
        task: (*names, OTHER_ANSWER) if calibrations[task].rejection else tuple(names)
        for task, names in classes.items()
    }


def load_best(run: Run, *, model_file: Path | None = None) -> Predictor:
    """Load a run's best model, or another of its models, in TensorFlow.

    Raises:
        InputError: no such model.
    """
    import tensorflow as tf

    from multitask.serving.signatures import numbers

    trained = open_trained(run, model_file)
    answer = numbers(trained.network, trained.calibrations)
    return Predictor(
        _answers_of(trained.classes, trained.calibrations),
        lambda image: {name: x.numpy() for name, x in answer(tf.constant(image)).items()},
        RUNTIMES["tensorflow"].described,
        trained.calibrations,
        run.spec.image_size,
        run.spec.resize,
        run.spec.reduced_px,
        run.spec.convert_profiles,
        trained.digest,
        conformal=trained.conformal,
        distance=trained.distance,
    )
