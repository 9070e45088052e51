"""Conformal prediction: sets of classes that hold the right one with a chosen probability.

The method is split conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002). A score
measures how far down the list of classes a class stands. The scores of the right classes are
computed on the validation split. A set holds every class whose score is at most a quantile of them.

If a new image is drawn from the same distribution as the validation images, its set holds the right
class with at least the chosen probability, for any model and any score. This probability is also
over the choice of the n validation images. For given validation images, the coverage is distributed
as Beta(k, n + 1 - k) with k = ceil((n + 1) coverage), if no scores are tied (Vovk 2012, proposition
2a). `coverage_interval` computes the quantiles of this distribution.

What this does not promise:

- Coverage of each class, or of difficult images. The coverage is an average; the report shows it by
  class.
- Anything for an image that has none of the classes, unless the task is open. `other` is then one
  of the answers, and can be in the sets.
- Exact coverage after model selection. The validation split also chose the epoch and the
  temperature, so the coverage on new images can be slightly lower. The test set measures it.

The score is that of regularised adaptive prediction sets (RAPS; Angelopoulos et al. 2021, eq. 4)
without its random term. See `class_scores` for the consequence.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv, betaln, gammaln

from multitask.spec import MISSING, InputError

# RAPS: fixed, not fitted, so that no validation image is used twice.
PENALTY, FREE_RANKS = 0.01, 2
STORED = 1000  # most distinct scores that a table stores; more are thinned out
ROUNDING = 1e-9  # tolerance for a product that is a whole number in exact arithmetic
SHOWN_COVERAGES = (0.8, 0.9, 0.95)  # in the report
HEADLINE = 0.9  # one of SHOWN_COVERAGES: for the console, the plots and the server's page


def class_scores(probabilities: np.ndarray) -> np.ndarray:
    """Compute the RAPS score of every class (Angelopoulos et al. 2021, eq. 4, with U = 0).

    Classes are ranked from 1, most probable first; on a tie, the lowest index first. The score of a
    class is the total probability of all classes before it, plus PENALTY for each rank beyond
    FREE_RANKS.

    The paper adds U times the class's own probability, with U uniform in (0, 1). This makes the
    coverage exact for every model. Here U is 0, so that an image always gets the same set. The most
    probable class then has the score 0, so it is always in the set, and no set is empty. If its
    accuracy is higher than the chosen coverage, the coverage equals this accuracy.

    Args:
        probabilities: float [n, classes], calibrated.

    Returns:
        float64 [n, classes], at least 0.

    Example:
        >>> class_scores(np.array([[0.2, 0.5, 0.3]])).round(2).tolist()
        [[0.81, 0.0, 0.5]]
    """
    probabilities = np.asarray(probabilities, np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    before = np.zeros_like(ordered)
    before[:, 1:] = ordered.cumsum(axis=1)[:, :-1]
    before += PENALTY * np.maximum(np.arange(1, ordered.shape[1] + 1) - FREE_RANKS, 0)
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def prediction_sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Select the most probable class of each image, and all whose score is at most a threshold.

    Args:
        probabilities: float [n, classes], calibrated.
        threshold: the task's threshold from `Conformal.thresholds`; inf selects all classes.

    Returns:
        bool [n, classes]; at least one class is selected for each image.

    Example:
        >>> prediction_sets(np.array([[0.2, 0.5, 0.3]]), 0.6).tolist()
        [[False, True, True]]
    """
    sets = class_scores(probabilities) <= threshold
    # A joint threshold can be below the score of the most probable class, which is 0.
    sets[np.arange(len(sets)), np.argmax(probabilities, axis=1)] = True
    return sets


@dataclass(frozen=True)
class ScoreTable:
    """The distribution of a score over the validation images.

    It stores every distinct score. If there are more than STORED, it stores a selection that is
    denser towards the highest scores. A quantile is then rounded up to the next stored score, which
    can only make a set larger.

    Attributes:
        scores: distinct scores, ascending.
        counts: for each, the number of images with this score or a lower one.
    """

    scores: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: np.ndarray) -> "ScoreTable":
        """Build the table of the scores of all images, float [n].

        Example:
            >>> ScoreTable.of(np.array([0.5, 0.0, 0.0]))
            ScoreTable(scores=(0.0, 0.5), counts=(2, 3))
        """
        scores, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
        counts = counts.cumsum()
        if len(scores) > STORED:
            last = len(scores) - 1
            even = np.linspace(0, last, STORED // 2)
            near_the_end = last + 1 - np.geomspace(1, last + 1, STORED // 2)
            kept = np.unique(np.append(even, near_the_end).round().astype(int))
            scores, counts = scores[kept], counts[kept]
        return cls(tuple(scores.tolist()), tuple(counts.tolist()))

    @property
    def images(self) -> int:
        """The number of images."""
        return self.counts[-1] if self.counts else 0

    @property
    def highest_coverage(self) -> float:
        """The highest coverage that can be promised, n / (n + 1)."""
        return self.images / (self.images + 1)

    def at_rank(self, rank: int) -> float:
        """The score of the image at a rank from 1, lowest first; inf beyond the last image."""
        place = int(np.searchsorted(self.counts, rank))
        return self.scores[place] if place < len(self.scores) else math.inf

    def quantile(self, coverage: float) -> float:
        """The score at `rank_of`; inf if there are too few images."""
        return self.at_rank(rank_of(coverage, self.images))

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON."""
        return {"scores": list(self.scores), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ScoreTable":
        """Restore a table from the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the content is not such a result.
        """
        scores = tuple(float(score) for score in content["scores"])
        counts = tuple(int(count) for count in content["counts"])
        if len(scores) != len(counts) or not np.isfinite(scores).all():
            raise ValueError("scores and counts of a conformal table do not match")
        if (np.diff(scores) <= 0).any() or (np.diff((0, *counts)) <= 0).any():
            raise ValueError("a conformal table does not ascend")
        return cls(scores, counts)


def rank_of(coverage: float, images: int) -> int:
    """The rank of the threshold among n scores: ceil((n + 1) coverage), or n + 1 if n is too small.

    Example:
        >>> rank_of(0.9, 99), rank_of(0.9, 8)
        (90, 9)
    """
    return math.ceil((images + 1) * coverage - ROUNDING)


@dataclass(frozen=True)
class Conformal:
    """The scores of the validation split, from which the sets of any coverage follow.

    **Per task**, a set holds the right class with the chosen probability. This applies to a new
    image drawn like the validation images that have a label of this task.

    **Jointly**, the sets of all tasks hold all labels of an image with the chosen probability. This
    applies to a new image drawn like the validation images that have labels of several tasks. The
    level of a score s of a task is (1 + number of scores up to s among the n labelled validation
    images) / (n + 1). Levels make the tasks comparable. The joint score of an image is the maximum
    of the levels of its labels.

    The promise holds although levels and quantile come from the same images. Proof: rank every
    score among the n + 1 images that include the new one, and divide by n + 1 (by n for a task of
    which the new image has no label). These ranks treat all images alike. So with the chosen
    probability, the new image's maximum is at most the quantile of the other images' maxima. The
    level of a validation image is at least its divided rank, and the level of the new image equals
    it. So the quantile of the levels is at least that quantile.

    For an image that lacks a label, the maximum is over the labels that it has. Nothing is promised
    for missing labels. An image with labels of all tasks is therefore covered less often than one
    with two labels, because its maximum is over more tasks. The evaluation shows the coverage of
    these images separately. Images with a single label are not used.

    Attributes:
        tasks: task -> its scores (`class_scores` of the right class).
        joint: the joint scores, in (0, 1].
    """

    tasks: dict[str, ScoreTable]
    joint: ScoreTable

    def thresholds(self, coverage: float, *, joint: bool = False) -> dict[str, float]:
        """Look up the thresholds for `prediction_sets` that give a coverage.

        Args:
            coverage: in (0, 1), the probability that a set holds the right class.
            joint: whether the coverage is for all tasks together, instead of for each task.

        Returns:
            Task -> threshold; inf selects all classes.

        Raises:
            InputError: the coverage is not in (0, 1), or there are too few validation images for
                it.

        Example:
            >>> table = ScoreTable.of(np.arange(9) / 10)
            >>> Conformal({"shade": table}, ScoreTable()).thresholds(0.8)
            {'shade': 0.7}
        """
        self._check(coverage, joint)
        if not joint:
            return {task: table.quantile(coverage) for task, table in self.tasks.items()}
        level = self.joint.quantile(coverage)
        return {task: _below_level(table, level) for task, table in self.tasks.items()}

    def _check(self, coverage: float, joint: bool) -> None:
        if not 0 < coverage < 1:
            raise InputError(
                f"{coverage:g}: expected a number between 0 and 1, such as 0.9", field="coverage"
            )
        tables = {"joint": self.joint} if joint else self.tasks
        reasons = [
            f"{name}: {reason}"
            for name, table in tables.items()
            if (reason := why_too_few(table, coverage, joint=joint))
        ]
        if reasons:
            raise InputError(f"{coverage:g}: {'; '.join(reasons)}", field="coverage")

    def of_tasks(self, tasks: Iterable[str]) -> "Conformal":
        """The scores of some of the tasks. A single task has no joint sets.

        With the same joint scores, the sets of fewer tasks are covered at least as often.
        """
        tables = {task: self.tasks[task] for task in tasks}
        return Conformal(tables, self.joint if len(tables) > 1 else ScoreTable())

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON."""
        return {
            "tasks": {task: table.to_dict() for task, table in self.tasks.items()},
            "joint": self.joint.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], tasks: Sequence[str]) -> "Conformal":
        """Restore the scores of some tasks from the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the content is not such a result.
        """
        tables = {task: ScoreTable.from_dict(content["tasks"][task]) for task in tasks}
        return cls(tables, ScoreTable.from_dict(content["joint"]))


def without_images(tasks: Iterable[str]) -> Conformal:
    """The scores of a validation split without images; they allow no coverage.

    Example:
        >>> without_images(["shade"]).tasks["shade"].images
        0
    """
    return Conformal(dict.fromkeys(tasks, ScoreTable()), ScoreTable())


def why_too_few(table: ScoreTable, coverage: float, *, joint: bool = False) -> str | None:
    """The reason why a coverage cannot be promised; None if it can."""
    if rank_of(coverage, table.images) <= table.images:
        return None
    labels = "labels of several tasks" if joint else "a label"
    if not table.images:
        return f"no validation image has {labels}"
    noun = "image has" if table.images == 1 else "images have"
    # Rounded down, so that the coverage in the message is possible.
    highest = math.floor(1000 * table.highest_coverage + ROUNDING) / 1000
    return f"{table.images:,} validation {noun} {labels}; they allow a coverage up to {highest:g}"


def _below_level(table: ScoreTable, level: float) -> float:
    """The highest score of a task whose level is at most `level`."""
    most = math.floor(level * (table.images + 1) + ROUNDING) - 1
    # At most `most` images may have this score or a lower one: it is below the next image's score.
    following = table.at_rank(most + 1)
    return math.inf if math.isinf(following) else float(np.nextafter(following, -math.inf))


def fit_conformal(
    labels: Mapping[str, np.ndarray], probabilities: Mapping[str, np.ndarray]
) -> Conformal:
    """Compute the scores of the validation split.

    Args:
        labels: task -> int [n]; MISSING (-1) where an image has no label of the task. The same n
            images for every task.
        probabilities: task -> float [n, classes], calibrated.

    Example:
        >>> fit_conformal({"a": np.array([0, -1])}, {"a": np.eye(2)}).tasks["a"].images
        1
    """
    tables, levels = {}, []
    for task, of_task in labels.items():
        rows = np.flatnonzero(of_task != MISSING)
        scores = class_scores(probabilities[task][rows])[np.arange(len(rows)), of_task[rows]]
        tables[task] = ScoreTable.of(scores)
        level = np.zeros(len(of_task))  # 0 without a label: lower than every level
        up_to = np.searchsorted(np.sort(scores), scores, side="right")
        level[rows] = (1 + up_to) / (1 + len(rows))
        levels.append(level)
    each = np.stack(levels)
    several = (each > 0).sum(axis=0) > 1
    return Conformal(tables, ScoreTable.of(each.max(axis=0)[several]))


# === Intervals ===


def coverage_interval(images: int, coverage: float, *, level: float = 0.95) -> tuple[float, float]:
    """The central interval of the true coverage of sets that are fitted on n validation images.

    It is the interval of Beta(k, n + 1 - k) (Vovk 2012, proposition 2a), which is exact without
    ties. More images make it narrower. For joint sets it is an approximation, because their scores
    have ties.

    Args:
        images: number n of validation images, enough for the coverage.
        coverage: the chosen coverage.
        level: probability of the interval.

    Example:
        >>> [round(end, 3) for end in coverage_interval(250, 0.9)]
        [0.861, 0.934]
    """
    rank = rank_of(coverage, images)
    ends = np.array([1 - level, 1 + level]) / 2
    low, high = betaincinv(rank, images + 1 - rank, ends)
    return float(low), float(high)


def expected_interval(
    images: int, coverage: float, test_images: int, *, level: float = 0.95
) -> tuple[float, float]:
    """The central interval of the share of test images whose sets hold the right class.

    It extends `coverage_interval` by the random choice of the test images: the number of covered
    images is beta-binomial. A share below the interval means that the promise is not kept.

    Args:
        images: number n of validation images, enough for the coverage.
        coverage: the chosen coverage.
        test_images: at least 1.
        level: probability of the interval.

    Example:
        >>> [round(end, 3) for end in expected_interval(250, 0.9, 1000)]
        [0.856, 0.938]
    """
    rank = rank_of(coverage, images)
    covered = np.arange(test_images + 1)
    ways = gammaln(test_images + 1) - gammaln(covered + 1) - gammaln(test_images - covered + 1)
    first, second = rank, images + 1 - rank
    log = ways + betaln(covered + first, test_images - covered + second) - betaln(first, second)
    ends = np.searchsorted(np.exp(log).cumsum(), [(1 - level) / 2, (1 + level) / 2])
    low, high = np.minimum(ends, test_images) / test_images
    return float(low), float(high)
