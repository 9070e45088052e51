"""The distance to the training images: its limit on the validation split, and the test set."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from multitask.conformal import expected_interval
from multitask.evaluation.gallery import Gallery
from multitask.evaluation.predictions import Predictions
from multitask.feature_distance import (
    UNLIKE,
    FeatureDistance,
    fit_distance,
    is_unlike,
    why_too_few,
)
from multitask.spec import SHARED

BINS = 40
FARTHEST = 24  # test images that are listed


def fit_feature_distance(
    gallery: Gallery | None, validation: Predictions | str
) -> FeatureDistance | str:
    """Fit the distance on the embedded training images, its limits on the validation split.

    Args:
        gallery: the embedded training images; None if they were not embedded.
        validation: predictions of the validation split; or the reason why there are none.

    Returns:
        The distance; or the reason why there is none.
    """
    if isinstance(validation, str):
        return validation
    if gallery is None:
        return "the training images are not embedded; `multitask evaluate --similar` embeds them"
    training, others = gallery.vectors[SHARED], validation.vectors[SHARED]
    if reason := why_too_few(len(training), len(others)):
        return reason
    try:
        return fit_distance(training, others)
    except ValueError as error:
        return str(error)


def distance_metrics(predictions: Predictions, distance: FeatureDistance | str) -> dict[str, Any]:
    """Measure the answer UNLIKE on the test set, for `metrics.json`.

    Args:
        predictions: of the test set.
        distance: from `fit_feature_distance`.

    Returns:
        reason: why no distance was fitted, or None. If None, also:

        - training_images, validation_images and test_images;
        - max_unlike: the share of validation images that may be farther than the limit;
        - limit: the default one;
        - unlike: the number of test images that are farther;
        - share: their share, and expected_interval: its 95 % range, if the test images are drawn
          like the validation images; None without test images;
        - histogram: edges, and validation and test, the number of images between them; the last
          edge is the greatest distance;
        - farthest: path and distance of the FARTHEST test images that are the farthest.
    """
    if isinstance(distance, str):
        return {"reason": distance}
    values, limit = distance.distances(predictions.vectors[SHARED]), distance.limit()
    table = distance.validation
    max_unlike = distance.default_share
    unlike, count = int(is_unlike(values, limit).sum()), len(values)
    content: dict[str, Any] = {
        "reason": None,
        "training_images": distance.training_images,
        "validation_images": table.images,
        "test_images": count,
        "max_unlike": max_unlike,
        "limit": limit,
        "unlike": unlike,
        "share": None,
        "expected_interval": None,
    }
    if count:
        low, high = expected_interval(table.images, 1 - max_unlike, count)
        content |= {"share": unlike / count, "expected_interval": [1 - high, 1 - low]}
    finite = values[np.isfinite(values)]
    ends = np.append(finite, [table.scores[0], table.scores[-1]])
    edges = np.linspace(ends.min(), ends.max(), BINS + 1)
    of_table = np.diff(table.counts, prepend=0)
    content["histogram"] = {
        "edges": edges.tolist(),
        "validation": np.histogram(table.scores, edges, weights=of_table)[0].astype(int).tolist(),
        "test": np.histogram(finite, edges)[0].tolist(),
    }
    order = np.argsort(-finite, kind="stable")[:FARTHEST]
    paths = predictions.paths[np.isfinite(values)]
    content["farthest"] = [{"path": paths[i], "distance": float(finite[i])} for i in order]
    return content


def distance_lines(content: Mapping[str, Any]) -> list[str]:
    """The line of `evaluate` about the answer UNLIKE.

    Args:
        content: the result of `distance_metrics`.
    """
    if content["reason"]:
        return [f"No answer `{UNLIKE}`: {content['reason']}"]
    line = f"Answer `{UNLIKE}`: distance above {content['limit']:.3f}"
    if content["share"] is not None:
        low, high = content["expected_interval"]
        line += (
            f", {content['unlike']:,} of {content['test_images']:,} test images "
            f"({content['share']:.1%}; expected: {low:.1%} to {high:.1%})"
        )
    return [line]
