"""Model + pictures -> Predictions: the one table that every figure of an evaluation reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.data.files import refuse_missing, why_unreadable
from multitask.data.pipeline import file_names, readable_pictures
from multitask.data.table import VAL, Table
from multitask.files import replacing
from multitask.model.network import ANSWERS, VECTORS, examined_model
from multitask.spec import MISSING, DataSpec, InputError, field_of


@dataclass(frozen=True)
class Predictions:
    """What a model says of every picture of the exam.

    Attributes:
        classes: task -> class names.
        paths: str [n], as in the CSVs.
        labels: int32 [n, tasks]; MISSING where a picture is no exam of the task.
        probabilities: task -> float64 [n, classes]: in float32 the small ones would be 0, and a
            temperature could not bring them back.
        vectors: SHARED and each task -> float32 [n, width], the embeddings; empty where there are
            views.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    probabilities: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray] = field(default_factory=dict)

    def labels_of(self, task: str) -> np.ndarray:
        """int32 [n]; MISSING where a picture is no exam of the task."""
        return self.labels[:, list(self.classes).index(task)]

    def labelled(self, task: str) -> np.ndarray:
        """bool [n]: whether a picture is an exam of the task."""
        return self.labels_of(task) != MISSING

    def answers(self, task: str) -> np.ndarray:
        """int [n], the most probable class; the lowest of equal ones."""
        return self.probabilities[task].argmax(axis=1)

    def right(self, task: str) -> np.ndarray:
        """bool [n]; False where there is no label."""
        return self.answers(task) == self.labels_of(task)

    def exam(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows that have a label of the task: (rows, labels, probabilities)."""
        rows = np.flatnonzero(self.labelled(task))
        return rows, self.labels_of(task)[rows], self.probabilities[task][rows]

    def without(self, paths: Iterable[str]) -> "Predictions":
        """The same less some pictures."""
        kept = ~pd.Index(self.paths).isin(list(paths))
        probabilities, vectors = (
            {name: values[kept] for name, values in of.items()}
            for of in (self.probabilities, self.vectors)
        )
        return Predictions(
            self.classes, self.paths[kept], self.labels[kept], probabilities, vectors
        )

    def frame(self) -> pd.DataFrame:
        """`path`, and each task's `artist/true` and `artist/predicted` class (by name) and
        `artist/confidence`."""
        columns = {"path": self.paths}
        for task, names in self.classes.items():
            names = np.asarray(names, dtype=object)
            labels, known = self.labels_of(task), self.labelled(task)
            true = np.full(len(labels), "", dtype=object)
            true[known] = names[labels[known]]
            columns |= {
                field_of(task, "true"): true,
                field_of(task, "predicted"): names[self.answers(task)],
                field_of(task, "confidence"): self.probabilities[task]
                .max(axis=1)
                .astype(np.float32),
            }
        return pd.DataFrame(columns)

    def save(self, folder: Path, **more: np.ndarray) -> None:
        """`predictions.csv`, and the probabilities in the same order in `probabilities.npz`.

        Args:
            folder: where.
            more: further columns, [n] each.
        """
        with replacing(folder / "predictions.csv") as temporary:
            self.frame().assign(**more).to_csv(temporary, index=False)
        with replacing(folder / "probabilities.npz") as temporary:
            arrays = {
                field_of(task, "probabilities"): values.astype(np.float32)
                for task, values in self.probabilities.items()
            }
            np.savez(temporary, **arrays)


def read_predictions(file: Path) -> pd.DataFrame:
    """A `predictions.csv`; a name such as "None" stays a name, and "" is no label."""
    header = pd.read_csv(file, nrows=0).columns
    names = [c for c in header if c == "path" or c.endswith(("/true", "/predicted"))]
    frame = pd.read_csv(file, dtype=dict.fromkeys(names, str), na_values={}, keep_default_na=False)
    numbers = header.difference(names)
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame


def softmax(logits: np.ndarray) -> np.ndarray:
    """float [n, classes] -> probabilities, of the same type."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def compiled(model: keras.Model) -> Callable:
    """The model's inference as one graph: on a CPU, several times as fast as `predict`."""
    if keras.backend.backend() != "tensorflow":
        return lambda image: model.predict_on_batch(np.asarray(image))
    return tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)],
        jit_compile=False,
    )


def predict_exam(
    model: keras.Model,
    table: Table,
    spec: DataSpec,
    image_dir: Path,
    *,
    batch_size: int,
    max_missing: float,
    infer: Callable | None = None,
    split: str = VAL,
    views: Callable[[tf.Tensor], Sequence[tf.Tensor]] | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> tuple[Predictions, pd.DataFrame]:
    """Every val picture's answers, from the original files, in the order of the table.

    Args:
        model: image -> {task: logits}.
        table: its rows of the split, with at least one label.
        spec: image size and resizing.
        image_dir: the folder that the table's paths start at.
        batch_size: pictures at a time.
        max_missing: the share of the table's pictures that may be missing or unreadable.
        infer: `compiled(examined_model(model))`, where that was made before.
        split: another one than val.
        views: a batch -> batches of the same pictures seen otherwise, whose probabilities are
            averaged.
        temperatures: task -> what its logits are divided by; None: 1.

    Returns:
        The predictions, and a frame of path and reason of the pictures that could not be read.

    Raises:
        InputError: too many of those, or none can be read where there are some.
    """
    rows = table.rows(split)
    rows = rows[(table.labels[rows] != MISSING).any(axis=1)]
    names = file_names(table, rows, image_dir)
    batches = readable_pictures(
        names, size_px=spec.image_size, how=spec.resize, batch_size=batch_size
    )
    infer, temperatures = infer or compiled(examined_model(model)), temperatures or {}
    read, found, vectors = [], {task: [] for task in table.tasks}, {}
    with tqdm(
        total=len(names), desc="evaluating", unit=" pictures", leave=False, disable=None
    ) as bar:
        for indices, image in batches:
            read.append(indices.numpy())
            said = [infer(view) for view in (views(image) if views else [image])]
            for task, values in found.items():
                logits = [np.asarray(view[ANSWERS][task], np.float64) for view in said]
                temperature = temperatures.get(task, 1.0)
                values.append(np.mean([softmax(one / temperature) for one in logits], axis=0))
            if not views:
                for name, values in said[0][VECTORS].items():
                    vectors.setdefault(name, []).append(np.asarray(values))
            bar.update(int(read[-1][-1]) + 1 - bar.n)
    read = np.concatenate(read) if read else np.zeros(0, np.int64)
    left_out = np.setdiff1d(np.arange(len(names)), read)
    unusable = pd.DataFrame(
        {
            "path": [table.paths[rows[i]] for i in left_out],
            "reason": [why_unreadable(names[i]) or "could not be read" for i in left_out],
        }
    )
    refuse_missing(
        unusable,
        len(table),
        image_dir,
        max_missing=max_missing,
        remedy="Name where the images are with `multitask evaluate --data_dir=DIR`",
        allow="allow them to be missing with `multitask evaluate --max_missing={share}`",
    )
    if len(names) and not len(read):
        raise InputError(f"{image_dir}: none of the {len(names)} {split} pictures can be read")
    if not len(names):  # no test set; the arrays have their widths all the same
        shapes = examined_model(model).output
        found = {task: [_no_rows(shapes[ANSWERS][task], np.float64)] for task in found}
        vectors = {name: [_no_rows(x, np.float32)] for name, x in shapes[VECTORS].items()}
    rows = rows[read]
    predictions = Predictions(
        table.classes,
        table.paths[rows],
        table.labels[rows],
        {task: np.concatenate(values) for task, values in found.items()},
        {name: np.concatenate(values) for name, values in vectors.items()},
    )
    return predictions, unusable


def _no_rows(output: keras.KerasTensor, dtype: type) -> np.ndarray:
    return np.zeros((0, *output.shape[1:]), dtype)
