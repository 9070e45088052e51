"""Whether an image is like the training images at all, by the distance of its features.

The features are the embedding: the pooled features of the trunk, of length 1. No labels are used.
The distance is that of Mahalanobis, under the covariance of probabilistic PCA (Tipping and Bishop
1999): the variances of the first directions are those of the training images, and all the others
have the same variance. So few numbers describe it that it is part of every export.

The limit is a quantile of the distances of the validation images, as in conformal prediction:
of the images that are drawn like them, at most the chosen share is refused on average.

`tools/measure_distance.py` compares distances. On paintings, this one rejects as many photographs
and more pages of text than the distance to the k-th nearest of the training images (Sun et al.
2022), which needs a file of several times the size. It hardly depends on the number of directions:
`docs/performance.md` has the figures.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multitask.conformal import ROUNDING, ScoreTable, rank_of
from multitask.spec import InputError

DISTANCE = "distance.json"  # in results/ and in an export
UNLIKE = "not like the training data"  # the answer
MAX_UNLIKE = 0.01  # of the validation images that may be refused, by default
MIN_IMAGES = 30  # of the training images, and of the validation images
DIRECTIONS = 64
IMAGES_PER_DIRECTION = 4  # of the training images, at least
MOST_IMAGES = 10_000  # of the training images; more are thinned out evenly
BLOCK = 1024  # rows in float64 at a time
LEAST_VARIANCE = 1e-8  # below, there is only the rounding of float16 embeddings


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """The distance of embeddings to those of the training images.

    Attributes:
        mean: float32 [width], of the training images.
        directions: float32 [k, width], orthonormal rows.
        variances: float32 [k], of the training images in each direction.
        noise: variance in each direction that is orthogonal to these; > 0.
        training_images: their number.
        validation: the distances of the validation images.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    noise: float
    training_images: int
    validation: ScoreTable

    @property
    def width(self) -> int:
        """The width of an embedding."""
        return len(self.mean)

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """Compute the distances of embeddings.

        Args:
            embeddings: float [n, width], of any length.

        Returns:
            float64 [n], the root of the mean square over the width: about 1 for a training image.
        """
        squares = np.empty(len(embeddings))
        directions = self.directions.astype(np.float64)
        weights = 1 / self.variances.astype(np.float64) - 1 / self.noise
        for start in range(0, len(embeddings), BLOCK):
            rows = slice(start, start + BLOCK)
            centred = _of_length_1(embeddings[rows]) - self.mean
            # Row by row, so that the distance of an image does not depend on its batch.
            inside = np.stack([directions @ row for row in centred])
            squares[rows] = (centred**2).sum(axis=1) / self.noise
            squares[rows] += (inside**2 * weights).sum(axis=1)  # negative weights, mostly
        return np.sqrt(np.maximum(squares, 0) / self.width)  # rounding can be below 0

    def limit(self, max_unlike: float | None = None) -> float:
        """The highest distance of an image that is like the training images.

        Args:
            max_unlike: share of the images drawn like the validation images that may be farther; 0:
                none. None: MAX_UNLIKE, or the least share that the number of validation images
                allows.

        Returns:
            The limit; inf for a share of 0.

        Raises:
            InputError: the share is not in [0, 1), or there are too few validation images for it.
        """
        if max_unlike is None:
            max_unlike = self.default_share
        if not 0 <= max_unlike < 1:
            raise InputError(
                f"{max_unlike:g}: expected a number from 0 to below 1, such as 0.01",
                field="max_unlike",
            )
        if max_unlike == 0:
            return math.inf
        rank = rank_of(1 - max_unlike, self.validation.images)
        if rank > self.validation.images:
            least = math.ceil(1000 * self.least_share - ROUNDING) / 1000  # possible if rounded up
            raise InputError(
                f"{max_unlike:g}: the {self.validation.images:,} validation images allow a share "
                f"from {least:g}, or 0",
                field="max_unlike",
            )
        return self.validation.at_rank(rank)

    @property
    def least_share(self) -> float:
        """The least share above 0 that `limit` accepts."""
        return 1 / (self.validation.images + 1)

    @property
    def default_share(self) -> float:
        """The share of `limit` by default."""
        return max(MAX_UNLIKE, self.least_share)

    # === JSON ===

    def to_dict(self) -> dict[str, Any]:
        """The distance as JSON; arrays are little-endian float32 in base64."""
        return {
            "mean": _text(self.mean),
            "directions": _text(self.directions),
            "variances": _text(self.variances),
            "noise": self.noise,
            "training_images": self.training_images,
            "validation": self.validation.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FeatureDistance":
        """Restore a distance from the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the content is not such a result.
        """
        mean, directions, variances = (
            _array(content[name]) for name in ("mean", "directions", "variances")
        )
        noise = float(content["noise"])
        if not len(mean) or len(directions) != len(mean) * len(variances):
            raise ValueError("the arrays of a distance do not match")
        if not (np.isfinite(noise) and noise > 0 and (variances > 0).all()):
            raise ValueError("a variance of a distance is not positive")
        validation = ScoreTable.from_dict(content["validation"])
        if not validation.images or validation.scores[0] < 0:
            raise ValueError("a distance has no distances of validation images")
        return cls(
            mean,
            directions.reshape(len(variances), len(mean)),
            variances,
            noise,
            int(content["training_images"]),
            validation,
        )


def is_unlike(distances: np.ndarray | float, limit: float) -> Any:
    """Whether each distance is above a limit; a distance that is not a number is.

    None is above a limit of inf.

    Example:
        >>> is_unlike(np.array([0.9, 1.4, np.nan]), 1.2).tolist()
        [False, True, True]
    """
    return ~(np.asarray(distances) <= limit) & (limit < math.inf)


def why_too_few(training_images: int, validation_images: int) -> str | None:
    """The reason why no distance can be fitted; None if it can."""
    for count, kind in ((training_images, "training"), (validation_images, "validation")):
        if count < MIN_IMAGES:
            noun = "image" if count == 1 else "images"
            return f"{count} {kind} {noun}, at least {MIN_IMAGES} are needed"
    return None


def fit_distance(training: np.ndarray, validation: np.ndarray) -> FeatureDistance:
    """Fit the distance to training images, and its limits to validation images.

    Args:
        training: float [n, width], embeddings of at least MIN_IMAGES images; may be
            memory-mapped.
        validation: float [m, width], of at least MIN_IMAGES images that were not trained on.

    Raises:
        ValueError: an embedding is not finite.
    """
    from sklearn.decomposition import PCA  # takes longer than a prediction

    count, width = training.shape
    rows = np.unique(np.linspace(0, count - 1, min(count, MOST_IMAGES)).astype(int))
    examples = _of_length_1(training[rows])
    if not (np.isfinite(examples).all() and np.isfinite(validation).all()):
        raise ValueError("an embedding is not finite")
    kept = min(DIRECTIONS, len(rows) // IMAGES_PER_DIRECTION, width // 2)
    pca = PCA(kept, svd_solver="covariance_eigh").fit(examples)
    fitted = FeatureDistance(
        pca.mean_.astype(np.float32),
        np.ascontiguousarray(pca.components_, np.float32),  # as it is read back
        np.maximum(pca.explained_variance_, LEAST_VARIANCE).astype(np.float32),
        max(float(pca.noise_variance_), LEAST_VARIANCE),
        len(rows),
        ScoreTable(),
    )
    return replace(fitted, validation=ScoreTable.of(fitted.distances(validation)))


def _of_length_1(embeddings: np.ndarray) -> np.ndarray:
    """float64 [n, width]; a zero vector stays zero."""
    values = np.asarray(embeddings, np.float64)
    lengths = np.sqrt((values**2).sum(axis=1, keepdims=True))
    return values / np.maximum(lengths, np.finfo(np.float32).tiny)


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _array(text: str) -> np.ndarray:
    """float32 [n] of a text by `_text`."""
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a number of a distance is not finite")
    return values
