"""Predictions of a model for images; all metrics are computed from them."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.special import softmax

from multitask.console import progress_bar
from multitask.data.image_files import refuse_missing, why_unreadable
from multitask.data.pipeline import file_names, readable_images
from multitask.data.table import TEST, Table
from multitask.evaluation.examiner import Examiner
from multitask.files import replacing
from multitask.model.network import ANSWERS, VECTORS
from multitask.open_set import known_scores
from multitask.spec import (
    MISSING,
    OTHER_ANSWER,
    OTHER_LABEL,
    DataSpec,
    InputError,
    field_of,
    is_labelled,
)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the images of the test set (or of another split).

    Attributes:
        classes: task -> class names.
        paths: str [n], as in the CSVs.
        labels: int32 [n, tasks]; MISSING if an image has no label of the task in this split.
        probabilities: task -> float64 [n, classes]; in float32 small ones would underflow to 0,
            and a temperature could not restore them.
        vectors: SHARED and each task -> float32 [n, width], the embeddings; empty with test-time
            augmentation.
        scores: open task -> float64 [n], of `open_set.known_scores`.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    probabilities: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    def labels_of(self, task: str) -> np.ndarray:
        """The labels of a task, int32 [n]; MISSING if an image has none in this split."""
        return self.labels[:, list(self.classes).index(task)]

    def labelled(self, task: str) -> np.ndarray:
        """Whether an image has a label of the task, bool [n]."""
        return is_labelled(self.labels_of(task))

    def predicted(self, task: str) -> np.ndarray:
        """The most probable class, int [n]; on a tie, the lowest index."""
        return self.probabilities[task].argmax(axis=1)

    def correct(self, task: str) -> np.ndarray:
        """Whether the prediction is right, bool [n]; False without a label."""
        return self.predicted(task) == self.labels_of(task)

    def labelled_examples(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, labels and probabilities of the images that have a label of the task."""
        rows = np.flatnonzero(self.labelled(task))
        return rows, self.labels_of(task)[rows], self.probabilities[task][rows]

    def examples(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows, labels, probabilities and scores of the images with a right answer for a task.

        For an open task, these include the images with OTHER_LABEL. For any other task, they are
        those of `labelled_examples`, and the scores are None.
        """
        if task not in self.scores:
            return *self.labelled_examples(task), None
        rows = np.flatnonzero(self.labels_of(task) != MISSING)
        return (
            rows,
            self.labels_of(task)[rows],
            self.probabilities[task][rows],
            self.scores[task][rows],
        )

    def answer_labels(self, task: str) -> np.ndarray:
        """The right answers of a task, int32 [n], as columns of `Calibration.answers`.

        For an open task, the answer for OTHER_LABEL is the last column.
        """
        labels = self.labels_of(task)
        if task not in self.scores:
            return labels
        return np.where(labels == OTHER_LABEL, len(self.classes[task]), labels)

    def answer_names(self, task: str) -> tuple[str, ...]:
        """The names of a task's answers, in the order of the labels of `answer_labels`."""
        return self.classes[task] + (OTHER_ANSWER,) * (task in self.scores)

    def excluding(self, paths: Iterable[str]) -> "Predictions":
        """The predictions without those of some images."""
        kept = ~pd.Index(self.paths).isin(list(paths))
        probabilities, vectors, scores = (
            {name: values[kept] for name, values in arrays.items()}
            for arrays in (self.probabilities, self.vectors, self.scores)
        )
        return Predictions(
            self.classes, self.paths[kept], self.labels[kept], probabilities, vectors, scores
        )

    def frame(self) -> pd.DataFrame:
        """The predictions as a frame.

        Returns:
            `path`, and each task's `artist/true` and `artist/predicted` class (by name) and
            `artist/confidence`.
        """
        columns: dict[str, np.ndarray] = {"path": self.paths}
        for task, class_names in self.classes.items():
            names = np.asarray(class_names, dtype=object)
            labels, known = self.labels_of(task), self.labelled(task)
            true = np.full(len(labels), "", dtype=object)
            true[known] = names[labels[known]]
            columns |= {
                field_of(task, "true"): true,
                field_of(task, "predicted"): names[self.predicted(task)],
                field_of(task, "confidence"): self.probabilities[task]
                .max(axis=1)
                .astype(np.float32),
            }
        return pd.DataFrame(columns)

    def save(self, folder: Path, **columns: np.ndarray) -> None:
        """Write `predictions.csv`, and the probabilities in the same order, `probabilities.npz`.

        Args:
            folder: folder of the files.
            columns: further columns of the CSV, [n] each.
        """
        with replacing(folder / "predictions.csv") as temporary:
            self.frame().assign(**columns).to_csv(temporary, index=False)
        with replacing(folder / "probabilities.npz") as temporary:
            arrays: dict[str, Any] = {
                field_of(task, "probabilities"): values.astype(np.float32)
                for task, values in self.probabilities.items()
            }
            np.savez(temporary, **arrays)


def read_predictions(file: Path) -> pd.DataFrame:
    """Read a `predictions.csv`; "None" may be the name of a class, and "" is no label."""
    header = pd.read_csv(file, nrows=0).columns
    names = [c for c in header if c == "path" or c.endswith(("/true", "/predicted"))]
    frame = pd.read_csv(file, dtype=dict.fromkeys(names, str), na_values={}, keep_default_na=False)
    numbers = header.difference(names)
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame


def predict_split(
    examiner: Examiner,
    table: Table,
    spec: DataSpec,
    image_dir: Path,
    *,
    batch_size: int,
    max_missing: float,
    split: str = TEST,
    views: Callable[[tf.Tensor], Sequence[tf.Tensor]] | None = None,
) -> tuple[Predictions, pd.DataFrame]:
    """Predict every labelled image of a split, from the original files, in the table's order.

    Args:
        examiner: the network.
        table: the table; its rows of the split are predicted.
        spec: image size and resizing.
        image_dir: the folder that the table's paths start at.
        batch_size: images at a time.
        max_missing: the share of the table's images that may be missing or unreadable.
        split: one of SPLITS.
        views: one of TTA; the logits of its views are averaged; None: the plain image.

    Returns:
        The predictions, and a frame of path and reason of the images that could not be read.

    Raises:
        InputError: too many images are unreadable, or all of them.
    """
    rows = table.rows(split)
    rows = rows[is_labelled(table.labels[rows]).any(axis=1)]
    names = file_names(table, rows, image_dir)
    outputs = _Outputs(table.tasks, views, spec.open_tasks)
    read = outputs.collect(names, examiner, spec, batch_size)
    unread = np.setdiff1d(np.arange(len(names)), read)
    reasons = [why_unreadable(names[i]) or "could not be read" for i in unread]
    unreadable = pd.DataFrame({"path": table.paths[rows[unread]], "reason": reasons})
    refuse_missing(
        unreadable,
        len(table),
        image_dir,
        max_missing=max_missing,
        remedy="Name where the images are with `multitask evaluate --data_dir=DIR`",
        allow="allow them to be missing with `multitask evaluate --max_missing={share}`",
    )
    if len(names) and not len(read):
        raise InputError(f"{image_dir}: none of the {split} images can be read ({len(names):,})")
    probabilities, vectors = outputs.arrays() if len(names) else _empty_arrays(examiner, table)
    rows = rows[read]
    predictions = Predictions(
        table.classes,
        table.paths[rows],
        table.labels[rows],
        probabilities,
        vectors,
        {task: np.concatenate([np.zeros(0), *values]) for task, values in outputs.scores.items()},
    )
    return predictions, unreadable


class _Outputs:
    """The outputs of a model, collected batch by batch."""

    def __init__(self, tasks: Sequence[str], views: Callable | None, open_tasks: Sequence[str]):
        self.views = views
        self.probabilities: dict[str, list[np.ndarray]] = {task: [] for task in tasks}
        self.vectors: dict[str, list[np.ndarray]] = {}
        self.scores: dict[str, list[np.ndarray]] = {task: [] for task in open_tasks}

    def collect(
        self, names: list[str], examiner: Examiner, spec: DataSpec, batch_size: int
    ) -> np.ndarray:
        """Run the network on image files; returns the places of the readable ones, int [n]."""
        read = [np.zeros(0, np.int64)]
        begun: deque[tuple[np.ndarray, int]] = deque()  # places, and the number of views

        def all_views() -> Iterator[tf.Tensor]:
            for places, images in readable_images(names, **spec.reading, batch_size=batch_size):
                views = self.views(images) if self.views else [images]
                begun.append((places, len(views)))
                yield from views

        with progress_bar("evaluating", len(names)) as bar:
            outputs = examiner.map(all_views(), count=len(names))
            for first in outputs:
                places, views = begun.popleft()
                self._add([first, *itertools.islice(outputs, views - 1)])
                read.append(places)
                bar.update(int(places[-1]) + 1 - bar.n)
        return np.concatenate(read)

    def _add(self, outputs: list[dict]) -> None:
        """Add a batch.

        Args:
            outputs: of the examiner, one dict per view.
        """
        for task, batches in self.probabilities.items():
            views = [np.asarray(view[ANSWERS][task], np.float64) for view in outputs]
            logits = np.mean(views, axis=0)
            batches.append(softmax(logits, axis=-1))
            if task in self.scores:
                self.scores[task].append(known_scores(logits))
        if not self.views:
            for name, values in outputs[0][VECTORS].items():
                self.vectors.setdefault(name, []).append(np.asarray(values))

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Probabilities and vectors, each name -> [n, …]."""
        probabilities, vectors = (
            {name: np.concatenate(batches) for name, batches in batches_of.items()}
            for batches_of in (self.probabilities, self.vectors)
        )
        return probabilities, vectors


def _empty_arrays(
    examiner: Examiner, table: Table
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Empty probabilities and vectors, with the widths of the network's outputs."""
    return (
        {task: np.zeros((0, len(names))) for task, names in table.classes.items()},
        {name: np.zeros((0, width), np.float32) for name, width in examiner.widths.items()},
    )
