"""An export's artifacts against the model they were made of, on real pictures, each run by every
installed library that reads it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.data.pipeline import readable_pictures
from multitask.data.table import Table
from multitask.evaluation.calibration import Calibration
from multitask.evaluation.predictions import compiled, softmax
from multitask.files import RunError, silent
from multitask.metrics import classification_metrics
from multitask.reading import MAX_IMAGE_BYTES, read_regular
from multitask.serving.formats import FLOAT32, FORMATS
from multitask.serving.runtimes import RUNTIMES, load_savedmodel, output_of, speed
from multitask.serving.signatures import SIGNATURE
from multitask.spec import MISSING, InputError

BATCH = 16
BYTES_CHECKED = 32  # pictures that the SavedModel decodes itself
TIMED_S = 0.5  # at least, of each batch size
BATCHES_TIMED = (1, BATCH)
METRICS = ("top1", "macro_f1")
Infer = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Bound:
    """What an artifact of a precision is held to.

    Attributes:
        difference: the greatest of a probability.
        same_top1: the least share of equal answers, in each task.
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
    """One that was written.

    Attributes:
        format: of formats.FORMATS.
        path: where it lies.
        precision: of its weights.
    """

    format: str
    path: Path
    precision: str

    @property
    def size_bytes(self) -> int:
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())

    def open(self) -> list[tuple[str, Infer]]:
        """Each library that is installed and reads it, and how it runs it.

        Raises:
            RunError: one of them cannot.
        """
        found = []
        for runtime in RUNTIMES.values():
            if runtime.format == self.format and runtime.installed:
                try:
                    with silent():
                        found.append((runtime.described, runtime.load(self.path)))
                except Exception as error:  # each raises kinds of its own
                    reason = str(error).strip().split("\n")[0]
                    raise RunError(
                        f"the {FORMATS[self.format].title} export cannot be loaded by "
                        f"{runtime.title} ({reason}); it was thrown away"
                    ) from None
        if found:
            return found
        infer = compiled(keras.saving.load_model(self.path, compile=False, safe_mode=True))
        return [(f"Keras {keras.__version__}", _with_logits(infer))]


def _with_logits(infer: Callable) -> Infer:
    return lambda image: {
        output_of(task, "logits"): np.asarray(logits) for task, logits in infer(image).items()
    }


def compare(
    artifacts: Sequence[Artifact],
    model: keras.Model,
    calibrations: Mapping[str, Calibration],
    table: Table,
    rows: np.ndarray,
    names: Sequence[str],
    *,
    how: str,
    trained: keras.Model | None = None,
) -> list[dict[str, Any]]:
    """Each artifact's answers beside the model's.

    Args:
        artifacts: of the model.
        model: image -> {task: logits}, in float32.
        calibrations: task -> its temperature.
        table: whose labels the metrics are of.
        rows: int [n], of the table.
        names: str [n], the rows' picture files.
        how: pictures are made to fit.
        trained: the same network as it was trained, where it computed in another precision.

    Returns:
        For each artifact and each library that runs it here what stands in `report.json`: format,
        precision, runtime, bytes, pictures, the greatest difference of a probability and the share
        of equal answers a task, the metrics of both, and pictures a second by batch size. The first
        is the model itself; where it was `trained` in another precision, its `rounding` is, for
        each task, how far the two are from each other.

    Raises:
        InputError: none of the pictures can be read.
    """
    size_px, infer = model.input_shape[1], compiled(model)
    opened: list[tuple[Artifact | None, str, Infer]] = [(None, "the model", _with_logits(infer))]
    opened += [(artifact, *way) for artifact in artifacts for way in artifact.open()]
    as_trained = _with_logits(compiled(trained)) if trained else None
    before: dict[str, list] = {task: [] for task in calibrations}
    encoded = [artifact and _encoded(artifact) for artifact, *_ in opened]
    said: list[dict[str, list]] = [{task: [] for task in calibrations} for _ in opened]
    from_bytes = [0.0] * len(opened)
    read, batch = [], None
    batches = readable_pictures(list(names), size_px=size_px, how=how, batch_size=BATCH)
    with tqdm(
        total=len(names), desc="checking", unit=" pictures", leave=False, disable=None
    ) as bar:
        for places, image in batches:
            batch = image.numpy() if batch is None else batch
            places, image = places.numpy(), image.numpy()
            for (*_, answer), found in zip(opened, said, strict=True):
                answers = answer(image)
                for task, values in found.items():
                    values.append(_probabilities(answers, task, calibrations[task]))
            if as_trained:
                answers = as_trained(image)
                for task, values in before.items():
                    values.append(_probabilities(answers, task, calibrations[task]))
            if sum(map(len, read)) < BYTES_CHECKED:
                data = tf.constant([read_regular(names[i], MAX_IMAGE_BYTES) for i in places])
                for index, serve in enumerate(encoded):
                    if serve:
                        answers = {name: x.numpy() for name, x in serve(data).items()}
                        worst = max(
                            _worst(_probabilities(answers, task, calibrations[task]), values[-1])
                            for task, values in said[0].items()
                        )
                        from_bytes[index] = max(from_bytes[index], worst)
            read.append(places)
            bar.update(int(places[-1]) + 1 - bar.n)
    if batch is None:
        raise InputError(f"none of the {len(names)} pictures to check with can be read")
    labels = table.labels[rows[np.concatenate(read)]]
    reference = {task: np.concatenate(values) for task, values in said[0].items()}
    found = []
    for index, ((artifact, runtime, answer), answers) in enumerate(zip(opened, said, strict=True)):
        probabilities = {task: np.concatenate(values) for task, values in answers.items()}
        entry: dict[str, Any] = {"format": "model", "precision": FLOAT32, "runtime": runtime}
        if artifact:
            entry |= {"format": artifact.format, "precision": artifact.precision}
            entry["bytes"] = artifact.size_bytes
        entry["pictures"] = len(labels)
        entry["tasks"] = {
            task: _entry(values, reference[task], labels[:, table.tasks.index(task)])
            for task, values in probabilities.items()
        }
        if encoded[index]:
            entry["difference_from_bytes"] = from_bytes[index]
        entry["pictures_per_second"] = {
            str(count): speed(answer, np.resize(batch, (count, *batch.shape[1:])), seconds=TIMED_S)
            for count in BATCHES_TIMED
        }
        found.append(entry)
    if as_trained:
        found[0]["rounding"] = {
            task: {
                "difference": _worst(reference[task], np.concatenate(values)),
                "same_top1": _same_top1(reference[task], np.concatenate(values)),
            }
            for task, values in before.items()
        }
    return found


def _encoded(artifact: Artifact) -> Callable | None:
    """The function of encoded pictures, where the artifact has one."""
    if artifact.format != "savedmodel":
        return None
    loaded = load_savedmodel(artifact.path)
    return lambda data, kept=loaded: kept.signatures[SIGNATURE](data)


def _probabilities(answers: Mapping, task: str, calibration: Calibration) -> np.ndarray:
    own = answers.get(output_of(task, "probabilities"))
    if own is not None:
        return np.asarray(own, np.float64)
    logits = np.asarray(answers[output_of(task, "logits")], np.float64)
    return softmax(logits / calibration.temperature)


def _worst(found: np.ndarray, expected: np.ndarray) -> float:
    worst = float(np.max(np.abs(found - expected), initial=0.0))
    # NaN on both sides would agree with itself.
    return worst if np.isfinite(worst) else float("inf")


def _same_top1(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _entry(found: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    known = labels != MISSING
    metrics: dict[str, Any] = dict.fromkeys(METRICS)
    if np.isfinite(found).all():
        metrics = classification_metrics(labels[known], found[known], classes=found.shape[1])
    return {
        "difference": _worst(found, expected),
        "same_top1": _same_top1(found, expected),
        "labelled": int(known.sum()),
        **{name: metrics[name] for name in METRICS},
    }


def why_refused(entry: Mapping[str, Any]) -> str | None:
    """What an artifact's entry is beyond the bound of its precision."""
    bound = BOUNDS[entry["precision"]]
    worst = max(found["difference"] for found in entry["tasks"].values())
    worst = max(worst, entry.get("difference_from_bytes", 0.0))
    if not worst <= bound.difference:
        return f"by {worst:.2g} in probability (allowed: {bound.difference:g})"
    task, least = min(
        ((task, found["same_top1"]) for task, found in entry["tasks"].items()), key=lambda x: x[1]
    )
    if least < bound.same_top1:
        return f"in {1 - least:.1%} of the answers of {task} (allowed: {1 - bound.same_top1:.0%})"
    return None


def rounding_line(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """What computing in float32 changes of a network that was trained in bfloat16; else None."""
    model = entries[0]
    if "rounding" not in model:
        return None
    parts = (
        f"{task} {found['difference']:.1e} in probability, top-1 the same on "
        f"{found['same_top1']:.1%}"
        for task, found in model["rounding"].items()
    )
    return (
        "Trained in bfloat16, exported in float32 with the same weights. On "
        f"{model['pictures']} images the two differ by at most: {'; '.join(parts)}."
    )


def table_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """For the console: size, agreement, top-1/macro-F1 of each task, and pictures a second."""
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
                "max |Δp|": f"{max(found['difference'] for found in tasks):.1e}",
                "same top-1": f"{min(found['same_top1'] for found in tasks):.3f}",
                **{
                    f"{task}/": "/".join(  # a task may be called `precision`
                        "n/a" if found[name] is None else f"{found[name]:.3f}" for name in METRICS
                    )
                    for task, found in entry["tasks"].items()
                },
                **{
                    f"batch {count}": f"{value:.0f}/s"
                    for count, value in entry["pictures_per_second"].items()
                },
            }
        )
    frame = pd.DataFrame(rows).rename(columns=lambda name: name.removesuffix("/"))
    lines = frame.to_string(index=False, justify="left").split("\n")
    return [line.rstrip() for line in lines]
