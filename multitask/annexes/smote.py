"""SMOTE: synthetic rows of rare classes among cached features (Chawla et al. 2002)."""

import logging
from collections.abc import Iterable

import numpy as np

from multitask.data.table import TRAIN, Table
from multitask.errors import counted
from multitask.learning.extensions import NO_ROWS, ExtraRows
from multitask.spec import MISSING, DataSpec, InputError, install, is_labelled

logger = logging.getLogger(__name__)

NEIGHBOURS = 5  # as in the paper


class Smote(ExtraRows):
    """Fills up rare classes with synthetic rows, task by task.

    A class with fewer rows than `share` times those of the majority class is filled up to that
    number. A synthetic row lies between two real ones of its class. It has a label of that task
    only, because its labels of other tasks are unknown.

    Args:
        share: share of the majority class's rows, in (0, 1].
        seed: the seed of the spec.
        tasks: names of the tasks.
    """

    adds = True
    field = "smote"

    def __init__(self, share: float, seed: int, tasks: tuple[str, ...]):
        self.share = share
        self.seed = seed
        self.tasks = tasks

    def count(self, table: Table) -> int:
        """Return how many rows `make` adds to the table's training split."""
        counts = (np.bincount(table.labels_of(task, TRAIN)) for task in table.tasks)
        return sum(sum(smote_counts(c, self.share).values()) for c in counts)

    def make(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Make synthetic rows; a feature map is used as one vector.

        Args:
            features: [rows or more, …]; the first rows are the plain view.
            labels: int32 [rows, tasks].

        Returns:
            float32 [synthetic, …] and int32 [synthetic, tasks].
        """
        smote = _smote_class()
        no_rows, no_labels = super().make(features, labels)
        rows, row_labels = [no_rows], [no_labels]
        for column, name in enumerate(self.tasks):
            known = np.flatnonzero(is_labelled(labels[:, column]))
            wanted = smote_counts(np.bincount(labels[known, column]), self.share)
            for label, extra in wanted.items():
                own = known[labels[known, column] == label]
                other = known[labels[known, column] != label][:1]  # SMOTE needs two classes
                x = features[np.concatenate([own, other])].astype(np.float32)
                x = x.reshape(len(x), -1)
                y = np.r_[np.ones(len(own), int), 0]
                sampler = smote(
                    sampling_strategy={1: len(own) + extra},
                    k_neighbors=min(NEIGHBOURS, len(own) - 1),
                    random_state=self.seed,
                )
                new = sampler.fit_resample(x, y)[0][len(x) :]
                rows.append(new.astype(np.float32).reshape(extra, *features.shape[1:]))
                new_labels = np.full((extra, labels.shape[1]), MISSING, np.int32)
                new_labels[:, column] = label
                row_labels.append(new_labels)
            if wanted:
                logger.info(
                    f"  {name}: SMOTE adds {counted(sum(wanted.values()), 'example')} to "
                    f"{counted(len(wanted), 'rare class', 'rare classes')}"
                )
        return np.concatenate(rows), np.concatenate(row_labels)


def smote_counts(counts: Iterable[int], share: float) -> dict[int, int]:
    """Compute class -> number of rows to add; a class with a single row has no neighbour.

    Args:
        counts: rows of each class.
        share: share of the majority class's rows; each class is filled up to that number.
    """
    counts = np.asarray(counts)
    target = int(share * counts.max(initial=0))
    return {
        int(label): int(target - counts[label])
        for label in np.flatnonzero((counts > 1) & (counts < target))
    }


def build_smote(spec: DataSpec) -> ExtraRows:
    """Return the spec's SMOTE; no extra rows where it has none."""
    if not spec.features.smote:
        return NO_ROWS
    return Smote(spec.features.smote, spec.seed, spec.task_names)


def _smote_class() -> type:
    """Import SMOTE; InputError where its package is missing."""
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError:
        raise InputError(
            f"needs imbalanced-learn: {install('smote')}", field="features.smote"
        ) from None
    return SMOTE
