"""Metrics of retrieval: queries against a gallery of images, computed from arrays alone."""

import numpy as np
from numpy.typing import ArrayLike

NEIGHBOURS = 10  # the retrieval metrics use the 10 nearest images


def retrieval_metrics(
    labels: ArrayLike, neighbours: ArrayLike, relevant: ArrayLike
) -> dict[str, float | None]:
    """Compute how often the nearest gallery images have the class of their query.

    Args:
        labels: int [n], the classes of the queries.
        neighbours: int [n, k], the classes of the nearest images, nearest first; -1 if the
            gallery has fewer images. Only the first 10 count.
        relevant: int [n], the number of gallery images that have the class of the query.

    Returns:
        Means over the queries, in [0, 1], or None if n is 0. "precision_at_10": hits among the
        first 10, over 10. "map_at_10": the sum of the precisions at each hit among the first 10,
        over min(10, relevant); 0 if relevant is 0. "recall_at_1" and "recall_at_10": whether
        there is any hit among the first K (Oh Song et al. 2016).

    Raises:
        ValueError: shapes that do not match, a missing label.
    """
    labels, relevant = np.asarray(labels), np.asarray(relevant)
    neighbours = np.asarray(neighbours)[:, :NEIGHBOURS]
    if labels.ndim != 1 or relevant.shape != labels.shape or len(neighbours) != len(labels):
        raise ValueError(
            f"labels {labels.shape}, neighbours {neighbours.shape} and relevant {relevant.shape} "
            "do not match."
        )
    if not len(labels):
        return dict.fromkeys(("precision_at_10", "map_at_10", "recall_at_1", "recall_at_10"))
    if labels.min() < 0:
        raise ValueError("labels must be 0 or more (only labelled queries belong here).")
    hits = neighbours == labels[:, None]
    precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    possible = np.maximum(np.minimum(relevant, NEIGHBOURS), 1)
    return {
        "precision_at_10": float((hits.sum(axis=1) / NEIGHBOURS).mean()),
        "map_at_10": float(((precisions * hits).sum(axis=1) / possible).mean()),
        "recall_at_1": float(hits[:, :1].any(axis=1).mean()),
        "recall_at_10": float(hits.any(axis=1).mean()),
    }
