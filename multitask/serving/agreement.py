"""Compares an export's artifacts with their model on real images.

Each artifact is run by every installed library that can read it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.special import softmax

from multitask.calibration import Calibration
from multitask.console import progress_bar
from multitask.data.image_files import read_image
from multitask.data.pipeline import readable_images
from multitask.data.table import Table
from multitask.errors import RunError
from multitask.evaluation.examiner import compiled
from multitask.feature_distance import FeatureDistance, is_unlike
from multitask.files import silent
from multitask.metrics import classification_metrics
from multitask.runtimes.libraries import (
    EMBEDDING,
    RUNTIMES,
    Infer,
    SavedModel,
    output_of,
    speed,
)
from multitask.serving.formats import FLOAT32, FORMATS
from multitask.spec import InputError, is_labelled

BATCH = 16
BYTES_CHECKED = 32  # images that the SavedModel decodes itself, rounded up to whole batches
TIMED_S = 0.5  # shortest measurement for each batch size
BATCHES_TIMED = (1, BATCH)
METRICS = ("top1", "macro_f1")


@dataclass(frozen=True)
class Bound:
    """Tolerance for an artifact of a precision.

    Attributes:
        difference: the greatest allowed difference of a probability.
        same_top1: the smallest allowed share of equal predictions in each task.
    """

    difference: float
    same_top1: float


BOUNDS = {
    FLOAT32: Bound(1e-5, 0.0),
    "float16": Bound(0.05, 0.95),
    "int8": Bound(1.0, 0.6),
}


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk.

    Attributes:
        format: of formats.FORMATS.
        path: its file or folder.
        precision: of its weights.
    """

    format: str
    path: Path
    precision: str

    @property
    def size_bytes(self) -> int:
        """Size of the file, or of all files in the folder."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())

    def open(self) -> list[tuple[str, Infer]]:
        """Load it with every installed library that reads its format.

        Returns:
            The name of each library, for display, and its function.

        Raises:
            RunError: a library cannot load it.
        """
        functions = []
        for runtime in RUNTIMES.values():
            if runtime.format == self.format and runtime.installed:
                try:
                    with silent():
                        functions.append((runtime.described, runtime.load(self.path)))
                except Exception as error:  # each library raises other types
                    reason = str(error).strip().split("\n")[0]
                    raise RunError(
                        f"the {FORMATS[self.format].title} export cannot be loaded by "
                        f"{runtime.title} ({reason}); it was discarded"
                    ) from None
        if functions:
            return functions
        infer = compiled(keras.saving.load_model(self.path, compile=False, safe_mode=True))
        return [(f"Keras {keras.__version__}", _with_logits(infer))]


def _with_logits(infer: Callable) -> Infer:
    return lambda image: {
        output_of(task, "logits"): np.asarray(logits) for task, logits in infer(image).items()
    }


@dataclass
class _Candidate:
    """One way to run the model or an artifact, with its results on the images.

    Attributes:
        artifact: None: the model itself.
        runtime: name of the library, for display.
        infer: images -> outputs.
        calibrations: task -> its temperature.
        decode_and_infer: encoded images -> outputs, if the artifact decodes images.
        distance: to the training images, or None.
        batches: task -> probabilities of each batch, float64 [n, classes].
        distances: of each batch, float64 [n]; empty if the outputs have no embedding.
        difference_from_bytes: greatest difference of a probability on encoded images.
    """

    artifact: Artifact | None
    runtime: str
    infer: Infer
    calibrations: Mapping[str, Calibration]
    decode_and_infer: Callable | None = None
    distance: FeatureDistance | None = None
    batches: dict[str, list[np.ndarray]] = field(default_factory=dict)
    distances: list[np.ndarray] = field(default_factory=list)
    difference_from_bytes: float = 0.0

    def run(self, images: np.ndarray) -> None:
        """Add the probabilities of a batch, and its distances to the training images."""
        outputs = self.infer(images)
        for task, values in self._probabilities(outputs).items():
            self.batches.setdefault(task, []).append(values)
        if self.distance is not None and EMBEDDING in outputs:
            self.distances.append(self.distance.distances(outputs[EMBEDDING]))

    def run_on_bytes(self, data: Sequence[bytes], reference: "_Candidate") -> None:
        """Compare encoded images with the reference's results of the last batch."""
        if self.decode_and_infer is None:
            return
        worst = max(
            _worst(values, reference.batches[task][-1])
            for task, values in self._probabilities(self.decode_and_infer(data)).items()
        )
        self.difference_from_bytes = max(self.difference_from_bytes, worst)

    def _probabilities(self, outputs: Mapping) -> dict[str, np.ndarray]:
        return {task: _probabilities(outputs, task, c) for task, c in self.calibrations.items()}

    def probabilities(self) -> dict[str, np.ndarray]:
        """Task -> float64 [images, classes], of all batches."""
        return {task: np.concatenate(values) for task, values in self.batches.items()}

    def entry(
        self,
        reference: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
        batch: np.ndarray,
    ) -> dict[str, Any]:
        """Return the entry of `report.json`.

        Args:
            reference: task -> the model's probabilities.
            labels: task -> int [images].
            batch: images for measuring the speed.
        """
        entry: dict[str, Any] = {"format": "model", "precision": FLOAT32, "runtime": self.runtime}
        if self.artifact:
            entry |= {"format": self.artifact.format, "precision": self.artifact.precision}
            entry["bytes"] = self.artifact.size_bytes
        entry["images"] = len(next(iter(labels.values())))
        entry["tasks"] = {
            task: _entry(values, reference[task], labels[task])
            for task, values in self.probabilities().items()
        }
        if self.distance is not None and self.distances:
            unlike = is_unlike(np.concatenate(self.distances), self.distance.limit())
            entry["unlike"] = float(unlike.mean())
        if self.decode_and_infer:
            entry["difference_from_bytes"] = self.difference_from_bytes
        entry["images_per_second"] = {
            str(count): speed(
                self.infer, np.resize(batch, (count, *batch.shape[1:])), seconds=TIMED_S
            )
            for count in BATCHES_TIMED
        }
        return entry


def compare(
    artifacts: Sequence[Artifact],
    model: keras.Model,
    calibrations: Mapping[str, Calibration],
    table: Table,
    rows: np.ndarray,
    names: Sequence[str],
    *,
    reading: Mapping[str, Any],
    mixed_precision_model: keras.Model | None = None,
    distance: FeatureDistance | None = None,
) -> list[dict[str, Any]]:
    """Compare the predictions of each artifact with those of the model.

    Args:
        artifacts: artifacts of the model.
        model: image -> {task: logits}, in float32.
        calibrations: task -> its temperature.
        table: the table with the labels for the metrics.
        rows: int [n], rows of the table.
        names: str [n], the rows' image files.
        reading: arguments of `readable_images` for the images.
        mixed_precision_model: the same network as it was trained, if not in float32.
        distance: to the training images, or None.

    Returns:
        One entry of `report.json` for each artifact and each installed library that runs it:
        format, precision, runtime, bytes, images, the greatest difference of a probability and the
        share of equal predictions for each task, the metrics of both, the share of images that are
        not like the training images (`unlike`), and images per second by batch size. The first
        entry is the model itself; with a `mixed_precision_model`, its `rounding` holds, for each
        task, the differences between the two.

    Raises:
        InputError: none of the images can be read.
    """
    reference = _Candidate(None, "the model", _with_logits(compiled(model)), calibrations)
    candidates = [reference, *_candidates(artifacts, calibrations, distance)]
    trained = None
    if mixed_precision_model:
        infer = _with_logits(compiled(mixed_precision_model))
        trained = _Candidate(None, "as trained", infer, calibrations)
    everything = [*candidates, trained] if trained else candidates
    batches = readable_images(list(names), **reading, batch_size=BATCH)
    options = {"target_px": reading["reduced_px"], "convert_profiles": reading["convert_profiles"]}
    batch, places = _run_all(everything, names, batches, options)
    labels = table.labels[rows[places]]
    labels_by_task = {task: labels[:, table.tasks.index(task)] for task in calibrations}
    expected = reference.probabilities()
    entries = [candidate.entry(expected, labels_by_task, batch) for candidate in candidates]
    if trained:
        entries[0]["rounding"] = {
            task: {
                "difference": _worst(expected[task], values),
                "same_top1": _same_top1(expected[task], values),
            }
            for task, values in trained.probabilities().items()
        }
    return entries


def _candidates(
    artifacts: Sequence[Artifact],
    calibrations: Mapping[str, Calibration],
    distance: FeatureDistance | None,
) -> Iterator[_Candidate]:
    """Each artifact with each library that runs it."""
    for artifact in artifacts:
        for runtime, infer in artifact.open():
            from_bytes = infer.on_bytes if isinstance(infer, SavedModel) else None
            yield _Candidate(artifact, runtime, infer, calibrations, from_bytes, distance)


def _run_all(
    candidates: Sequence[_Candidate],
    names: Sequence[str],
    batches: Iterable[tuple[np.ndarray, tf.Tensor]],
    options: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Run every candidate on all readable images; the first one is the reference.

    Args:
        candidates: the model and the artifacts.
        names: the image files.
        batches: of `readable_images`.
        options: arguments of `read_image`: an artifact that decodes converts no image itself.

    Returns:
        The first batch of images, and the places of the readable ones in `names`.
    """
    first_batch, places = None, []
    checked_bytes = 0
    with progress_bar("checking", len(names)) as bar:
        for batch_places, batch in batches:
            images = np.asarray(batch)
            first_batch = images if first_batch is None else first_batch
            for candidate in candidates:
                candidate.run(images)
            if checked_bytes < BYTES_CHECKED:
                data = [read_image(names[i], **options) for i in batch_places]
                for candidate in candidates:
                    candidate.run_on_bytes(data, candidates[0])
            checked_bytes += len(batch_places)
            places.append(batch_places)
            bar.update(int(batch_places[-1]) + 1 - bar.n)
    if first_batch is None:
        raise InputError(f"none of the images to check with can be read ({len(names):,})")
    return first_batch, np.concatenate(places)


def _probabilities(outputs: Mapping, task: str, calibration: Calibration) -> np.ndarray:
    own = outputs.get(output_of(task, "probabilities"))
    if own is not None:
        return np.asarray(own, np.float64)
    logits = np.asarray(outputs[output_of(task, "logits")], np.float64)
    return softmax(logits / calibration.temperature, axis=-1)


def _worst(actual: np.ndarray, expected: np.ndarray) -> float:
    worst = float(np.max(np.abs(actual - expected), initial=0.0))
    # A NaN counts as the greatest difference, even if the model gives NaN as well.
    return worst if np.isfinite(worst) else float("inf")


def _same_top1(actual: np.ndarray, expected: np.ndarray) -> float:
    return float((actual.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _entry(actual: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    known = is_labelled(labels)
    metrics: dict[str, Any] = dict.fromkeys(METRICS)
    if np.isfinite(actual).all():
        metrics = classification_metrics(labels[known], actual[known], classes=actual.shape[1])
    return {
        "difference": _worst(actual, expected),
        "same_top1": _same_top1(actual, expected),
        "labelled": int(known.sum()),
        **{name: metrics[name] for name in METRICS},
    }


def why_refused(entry: Mapping[str, Any]) -> str | None:
    """Return how an artifact's entry exceeds the tolerance of its precision, or None."""
    bound = BOUNDS[entry["precision"]]
    worst = max(task["difference"] for task in entry["tasks"].values())
    worst = max(worst, entry.get("difference_from_bytes", 0.0))
    if not worst <= bound.difference:
        return f"by {worst:.2g} in probability (allowed: {bound.difference:g})"
    task, least = min(
        ((task, values["same_top1"]) for task, values in entry["tasks"].items()), key=lambda x: x[1]
    )
    if least < bound.same_top1:
        return (
            f"in {1 - least:.1%} of the predictions of {task} (allowed: {1 - bound.same_top1:.0%})"
        )
    return None


def rounding_line(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe the effect of float32 on a network trained in bfloat16; None for others."""
    model = entries[0]
    if "rounding" not in model:
        return None
    parts = (
        f"{task} {values['difference']:.1e} in probability, top-1 the same on "
        f"{values['same_top1']:.1%}"
        for task, values in model["rounding"].items()
    )
    return (
        "Trained in bfloat16, exported in float32 with the same weights. On "
        f"{model['images']} images the two differ by at most: {'; '.join(parts)}."
    )


def unlike_line(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe how many images each artifact finds not like the training images; None without.

    Quantized weights change the features, so that more images can be too far.
    """
    parts = [
        f"{FORMATS[entry['format']].title} ({entry['runtime']}) {entry['unlike']:.1%}"
        for entry in entries
        if "unlike" in entry
    ]
    return f"Not like the training data, of these images: {', '.join(parts)}." if parts else None


def table_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format for the console: size, agreement, metrics of each task, and images per second."""
    rows = []
    for entry in entries:
        tasks = entry["tasks"].values()
        size = f"{entry['bytes'] / 1e6:.1f} MB" if "bytes" in entry else ""
        rows.append(
            {
                "": FORMATS[entry["format"]].title if entry["format"] in FORMATS else "the model",
                "run by": entry["runtime"] if entry["format"] in FORMATS else "",
                "precision": entry["precision"],
                "size": size,
                "max |Δp|": f"{max(task['difference'] for task in tasks):.1e}",
                "same top-1": f"{min(task['same_top1'] for task in tasks):.3f}",
                **{
                    f"{task}/": "/".join(  # a task may be called `precision`
                        "n/a" if values[name] is None else f"{values[name]:.3f}" for name in METRICS
                    )
                    for task, values in entry["tasks"].items()
                },
                **{
                    f"batch {count}": f"{value:.0f}/s"
                    for count, value in entry["images_per_second"].items()
                },
            }
        )
    frame = pd.DataFrame(rows).rename(columns=lambda name: name.removesuffix("/"))
    lines = frame.to_string(index=False, justify="left").split("\n")
    return [line.rstrip() for line in lines]
