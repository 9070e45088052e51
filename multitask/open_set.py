"""Open-set recognition: whether an image has one of a task's classes at all.

This module works on arrays alone. The score of an image is the negative free energy of its logits
(Liu et al. 2020, eq. 4). The training of an open task makes this score the logit of "has one of the
classes", see `learning.losses.rejection_sums`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
from scipy.integrate import trapezoid
from scipy.special import expit, logsumexp
from scipy.stats import rankdata

from multitask.bootstrap import DRAWS, FEWEST_EXAMPLES, SEED

MIN_IMAGES = 30  # images of each kind that a calibration needs
KEPT = 0.95  # true positive rate (share of accepted known images) of `fpr_at_tpr`
CURVE_POINTS = 101  # points of the OSCR curve in metrics.json


def known_scores(logits: np.ndarray) -> np.ndarray:
    """The negative free energy of logits.

    Args:
        logits: float [n, classes], not divided by a temperature.

    Returns:
        float [n]; a higher score means that the image more probably has one of the classes.

    >>> known_scores(np.log([[1.0, 2.0, 3.0]])).round(6) == np.log(6).round(6)
    array([ True])
    """
    return logsumexp(logits, axis=-1)


@dataclass(frozen=True)
class Rejection:
    """Maps the score of an image to the probability that the image has one of the classes.

    Attributes:
        slope: factor of the score, >= 0.
        offset: added to the scaled score.
        others: number of validation images that have none of the classes.
        reason: why slope and offset keep their training values (1 and 0); None if they were fitted.
    """

    slope: float = 1.0
    offset: float = 0.0
    others: int = 0
    reason: str | None = None

    def known(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability that each image has one of the classes, float [n]."""
        return expit(self.slope * scores + self.offset)

    def to_dict(self) -> dict[str, Any]:
        """The rejection as JSON."""
        return vars(self).copy()

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Rejection":
        """Restore a rejection from the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the content is not such a result.
        """
        slope, offset = float(content["slope"]), float(content["offset"])
        reason = content["reason"]
        if not (np.isfinite([slope, offset]).all() and slope >= 0):
            raise ValueError(f"rejection {slope}, {offset}")
        if not isinstance(reason, str | None):
            raise ValueError(f"reason {reason!r}")
        return cls(slope, offset, int(content["others"]), reason)


def fit_rejection(known: np.ndarray, other: np.ndarray) -> Rejection:
    """Fit the probability of "has one of the classes" by logistic regression (Platt 1999).

    The targets are smoothed as in section 2.2 of that paper, so that the slope is finite even if
    the scores are separable.

    Args:
        known: float [n], scores of images that have one of the classes.
        other: float [m], scores of images that have none.

    Returns:
        The fitted rejection. If either kind has fewer than MIN_IMAGES images, or if the scores do
        not separate the two kinds: the rejection as trained, with the reason.
    """
    for name, scores in (("with", known), ("without", other)):
        if len(scores) < MIN_IMAGES:
            reason = (
                f"{len(scores):,} validation images {name} one of the classes, at least "
                f"{MIN_IMAGES} are needed"
            )
            return Rejection(others=len(other), reason=reason)
    scores = np.concatenate([known, other]).astype(np.float64)
    target = np.repeat(
        [(len(known) + 1) / (len(known) + 2), 1 / (len(other) + 2)], [len(known), len(other)]
    )
    no_separation = Rejection(
        others=len(other),
        reason="the scores of the validation images do not separate the two kinds",
    )
    centre, scale = scores.mean(), scores.std()
    if not scale:
        return no_separation

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * (scores - centre) / scale + parameters[1]
        residual = expit(logits) - target
        value = np.mean(np.logaddexp(0, logits) - target * logits)
        return value, np.array([np.mean(residual * (scores - centre) / scale), residual.mean()])

    slope, offset = scipy.optimize.minimize(loss, [1.0, 0.0], jac=True, method="BFGS").x
    if slope <= 0:
        return no_separation
    return Rejection(float(slope / scale), float(offset - slope * centre / scale), len(other))


def open_probabilities(probabilities: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Add the probability of having none of the classes, as the last column.

    Args:
        probabilities: float [n, classes], given that the image has one of the classes.
        known: float [n], the probability that the image has one of the classes.

    Returns:
        float [n, classes + 1]; each row sums to 1.

    >>> open_probabilities(np.array([[0.25, 0.75]]), np.array([0.8])).round(2)
    array([[0.2, 0.6, 0.2]])
    """
    known = known[:, None].astype(probabilities.dtype)
    return np.concatenate([probabilities * known, 1 - known], axis=1)


# === Metrics ===


def auroc(known: np.ndarray, other: np.ndarray) -> float:
    """The probability that a known image has a higher score than an other image; ties count half.

    Args:
        known: float [n], scores of images that have one of the classes; n > 0.
        other: float [m], scores of images that have none; m > 0.
    """
    ranks = rankdata(np.concatenate([known, other]))[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(other)))


def fpr_at_tpr(known: np.ndarray, other: np.ndarray, *, tpr: float = KEPT) -> float:
    """The share of other images that are accepted at a threshold that accepts most known images.

    Args:
        known: float [n], scores of images that have one of the classes; n > 0.
        other: float [m], scores of images that have none; m > 0.
        tpr: least share of the known images that score at or above the threshold.
    """
    threshold = np.sort(known)[len(known) - int(np.ceil(tpr * len(known) - 1e-9))]
    return float((other >= threshold).mean())


def oscr_curve(
    confidence: np.ndarray, correct: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The open-set classification rate (Dhamija et al. 2018, section 4).

    Args:
        confidence: float [n], of the predicted classes of known images.
        correct: bool [n], whether the predicted classes are right.
        other: float [m], confidence of the classes that are predicted for other images.

    Returns:
        Two arrays with one value per threshold, from the highest threshold to the lowest: the share
        of the other images at or above the threshold; and the share of the known images that are
        at or above it and predicted correctly.
    """
    thresholds = np.unique(np.concatenate([confidence, other]))[::-1]
    above = np.sort(other), np.sort(confidence[correct])
    false, right = (len(one) - np.searchsorted(one, thresholds, side="left") for one in above)
    return (
        np.append(0.0, false / max(len(other), 1)),
        np.append(0.0, right / max(len(confidence), 1)),
    )


def oscr_area(false: np.ndarray, right: np.ndarray) -> float:
    """The area below the curve of `oscr_curve`; at most the closed-set accuracy."""
    return float(trapezoid(right, false))


def open_set_metrics(
    known: np.ndarray, other: np.ndarray, *, draws: int = DRAWS, seed: int = SEED
) -> dict[str, Any]:
    """Measure how well scores separate known images from others.

    Args:
        known: float [n], scores of images that have one of the classes.
        other: float [m], scores of images that have none.
        draws: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        images (the number of other images), auroc, fpr95, and intervals of both metrics (95 %,
        percentile bootstrap over the images of each kind). The metrics are None if one kind has no
        images. The intervals are None if one kind has fewer than FEWEST_EXAMPLES images.
    """
    content: dict[str, Any] = {"images": len(other), "auroc": None, "fpr95": None}
    content["intervals"] = {"auroc": None, "fpr95": None}
    if not (len(known) and len(other)):
        return content
    measures = {"auroc": auroc, "fpr95": fpr_at_tpr}
    content |= {name: measure(known, other) for name, measure in measures.items()}
    if min(len(known), len(other)) < FEWEST_EXAMPLES:
        return content
    rng = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(draws):
        sampled = [rng.choice(values, len(values)) for values in (known, other)]
        for name, measure in measures.items():
            samples[name].append(measure(*sampled))
    content["intervals"] = {
        name: [float(end) for end in np.quantile(values, [0.025, 0.975])]
        for name, values in samples.items()
    }
    return content


def thinned_curve(false: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """At most CURVE_POINTS points of the curve of `oscr_curve`, as JSON."""
    places = np.unique(np.linspace(0, len(false) - 1, CURVE_POINTS).round().astype(int))
    return [{"others": float(false[i]), "right": float(right[i])} for i in places]
