"""Metrics of predictions, computed from arrays alone.

Every function takes labelled examples only: callers exclude the examples without a label, and a
label of -1 is an error here instead of a wrong metric. Class averages are over the classes that
have a label among the examples, because predictions for a class without one can be neither right
nor wrong. The predicted class is always the lowest index with the highest probability.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    precision_recall_fscore_support,
)

from multitask.bootstrap import (
    DRAWS,
    FEWEST_EXAMPLES,
    METRICS,
    SEED,
    PairedPredictions,
    bootstrap,
    label_rank,
)
from multitask.spec import NO_TEST_SET


def classification_metrics(
    labels: ArrayLike, probabilities: ArrayLike, *, classes: int
) -> dict[str, float | int | None]:
    """Compute the headline metrics of one task.

    Args:
        labels: int [n], each in 0..classes-1.
        probabilities: float [n, classes], finite.
        classes: number of classes of the task.

    Returns:
        "labelled" (n) and "classes_present" (classes that have a label) as int; "top1", "top5",
        "macro_f1", "weighted_f1" and "balanced_accuracy" as float in [0, 1], or None where n is 0.
        Macro-F1 and balanced accuracy are means over the classes present; a present class that is
        never predicted counts as 0. With fewer than 5 classes, "top5" is top-`classes`.

    Raises:
        ValueError: shapes that do not match, a label out of range, a non-finite probability.
    """
    labels, probabilities = _check_probabilities(labels, probabilities, classes)
    if not len(labels):
        return {"labelled": 0, **dict.fromkeys(METRICS), "classes_present": 0}
    rank = label_rank(labels, probabilities)
    table = per_class(labels, probabilities.argmax(axis=1), classes=classes)
    present = table[table["support"] > 0]
    return {
        "labelled": len(labels),
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "macro_f1": float(present["f1"].mean()),
        "weighted_f1": float(np.average(present["f1"], weights=present["support"])),
        "balanced_accuracy": float(present["recall"].mean()),
        "classes_present": len(present),
    }


def majority_baseline(
    train_labels: ArrayLike, labels: ArrayLike, *, classes: int
) -> dict[str, float | int | None]:
    """Compute the metrics of always predicting the majority class of the training split.

    Args:
        train_labels: int [m]; they define the majority class, the lowest index on a tie.
        labels: int [n]; the labels to predict.
        classes: number of classes of the task.

    Returns:
        "class" (int), "top1" and "macro_f1" (over the classes present in `labels`), all None where
        either array is empty.

    Raises:
        ValueError: a label out of range, or arrays that are not one-dimensional.
    """
    train_labels = _check_indices(train_labels, classes, "train_labels")
    labels = _check_indices(labels, classes, "labels")
    if not len(train_labels) or not len(labels):
        return dict.fromkeys(("class", "top1", "macro_f1"))
    majority = int(np.bincount(train_labels).argmax())
    predictions = np.full_like(labels, majority)
    return {
        "class": majority,
        "top1": float(accuracy_score(labels, predictions)),
        "macro_f1": float(per_class(labels, predictions, classes=classes)["f1"].mean()),
    }


def per_class(labels: ArrayLike, predictions: ArrayLike, *, classes: int) -> pd.DataFrame:
    """Compute precision, recall, F1 and support of each class.

    Args:
        labels: int [n].
        predictions: int [n], predicted classes.
        classes: number of classes of the task.

    Returns:
        A frame with index 0..classes-1 and columns precision, recall, f1 (NaN for a class without
        a label, so that the mean of a column is the macro average; 0 for a class that is never
        predicted) and support (int, examples).

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    labels, predictions = _check_predictions(labels, predictions, classes)
    columns = ("precision", "recall", "f1")
    if len(labels):
        *scores, support = precision_recall_fscore_support(
            labels, predictions, labels=np.arange(classes), zero_division=0
        )
    else:
        scores, support = np.zeros((3, classes)), np.zeros(classes, dtype=np.int64)
    table = pd.DataFrame(dict(zip(columns, scores, strict=True)), index=range(classes))
    table[support == 0] = np.nan
    return table.assign(support=support)


def confusion(labels: ArrayLike, predictions: ArrayLike, *, classes: int) -> np.ndarray:
    """Count the pairs of true and predicted class: the confusion matrix.

    Args:
        labels: int [n].
        predictions: int [n], predicted classes.
        classes: number of classes of the task.

    Returns:
        int [classes, classes], with the true class in the rows.

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    labels, predictions = _check_predictions(labels, predictions, classes)
    # scikit-learn's function refuses empty arrays and warns about a task with one class.
    counts = np.bincount(labels * classes + predictions, minlength=classes**2)
    return counts.reshape(classes, classes)


def confusion_pairs(labels: ArrayLike, predictions: ArrayLike, *, classes: int) -> pd.DataFrame:
    """List the cells of the confusion matrix that are not 0, at most one for each example.

    Args:
        labels: int [n].
        predictions: int [n], predicted classes.
        classes: number of classes of the task.

    Returns:
        Columns true, predicted and count, int; the highest count first, equal counts by class.

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    labels, predictions = _check_predictions(labels, predictions, classes)
    cells, counts = np.unique(labels * classes + predictions, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    true, predicted = np.divmod(cells[order], classes)
    return pd.DataFrame({"true": true, "predicted": predicted, "count": counts[order]})


def most_confused(pairs: pd.DataFrame, *, classes: int, limit: int) -> np.ndarray:
    """Select the classes that are most often confused with each other.

    Both directions of a pair of classes are counted together. The classes of the most frequent
    pairs come first, pair by pair, and then the classes with the most examples.

    Args:
        pairs: as returned by `confusion_pairs`.
        classes: number of classes of the task.
        limit: number of classes to select, at least 1.

    Returns:
        int [min(limit, classes)], ascending.
    """
    wrong = pairs[pairs["true"] != pairs["predicted"]]
    ends = np.sort(wrong[["true", "predicted"]].to_numpy(np.int64).reshape(-1, 2), axis=1)
    unique, positions = np.unique(ends, axis=0, return_inverse=True)
    counts = np.bincount(positions.reshape(-1), weights=wrong["count"], minlength=len(unique))
    unique = unique[np.argsort(-counts, kind="stable")]
    support = np.bincount(pairs["true"], weights=pairs["count"], minlength=classes)
    ranked = np.append(unique.reshape(-1), np.argsort(-support, kind="stable"))
    _, first = np.unique(ranked, return_index=True)
    return np.sort(ranked[np.sort(first)][:limit])


def confusion_order(counts: ArrayLike) -> np.ndarray:
    """Order the classes so that those that are confused with each other are neighbours.

    The classes are clustered by average linkage; the distance is 1 minus the mean share of each
    class that is predicted as the other. The leaves are in the optimal order (Bar-Joseph et al.
    2001).

    Args:
        counts: int [classes, classes], as returned by `confusion`.

    Returns:
        int [classes], a permutation.
    """
    counts = np.asarray(counts, np.float64)
    if len(counts) < 3:
        return np.arange(len(counts))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distance = 1 - (shares + shares.T) / 2
    tree = linkage(distance[np.triu_indices(len(counts), 1)], "average", optimal_ordering=True)
    return leaves_list(tree)


def report_text(labels: ArrayLike, predictions: ArrayLike, *, names: Sequence[str]) -> str:
    """Write scikit-learn's classification report, with the average over the classes present.

    Args:
        labels: int [n].
        predictions: int [n], predicted classes.
        names: [classes], the name of each class.

    Returns:
        Text that ends in a newline; "n/a (no test set)" where n is 0. The first line states the
        number of labelled examples and of classes that have a label. "macro avg" is that of
        scikit-learn, over all classes; "macro avg (present)" is the one that the project reports.

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    table = per_class(labels, predictions, classes=len(names))
    total, present = int(table["support"].sum()), int((table["support"] > 0).sum())
    if not total:
        return f"n/a ({NO_TEST_SET})\n"
    average = "macro avg (present)"
    # The longest name sets the width of the report. Padded names leave room for the added line.
    padded = [str(name).rjust(len(average)) for name in names]
    report = classification_report(
        labels,
        predictions,
        labels=np.arange(len(names)),
        target_names=padded,
        digits=3,
        zero_division=0,
    )
    means = table[["precision", "recall", "f1"]].mean()
    columns = "".join(f" {value:9.3f}" for value in means)
    return (
        f"{total:,} labelled; {present:,} of {len(names):,} classes have a test "
        f'label, and "{average}" averages over those.\n\n'
        f"{report}{average:>{max(map(len, padded))}} {columns} {total:9d}\n"
    )


def bootstrap_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    classes: int,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = SEED,
) -> dict[str, tuple[float, float] | None]:
    """Compute confidence intervals of the headline metrics (Efron 1979, percentiles).

    The examples are sampled with replacement. As in `classification_metrics`, the class averages
    of a sample are over the classes that have a label in it.

    Args:
        labels: int [n].
        probabilities: float [n, classes].
        classes: number of classes of the task.
        draws: number of samples, of n examples each.
        level: share of the samples that an interval contains.
        seed: of the random numbers.

    Returns:
        (low, high) of each of METRICS; None if n is below FEWEST_EXAMPLES, or if all samples
        agree, because examples without an error do not show how rare errors are.

    Raises:
        ValueError: as `classification_metrics`.
    """
    labels, probabilities = _check_probabilities(labels, probabilities, classes)
    if len(labels) < FEWEST_EXAMPLES:
        return dict.fromkeys(METRICS)
    predictions = PairedPredictions(
        labels,
        probabilities.argmax(axis=1)[None],
        (label_rank(labels, probabilities) < 5)[None],
    )
    samples = bootstrap(predictions, draws=draws, seed=seed)
    tails = (1 - level) / 2, (1 + level) / 2
    intervals: dict[str, tuple[float, float] | None] = {}
    for name in METRICS:
        low, high = map(float, np.quantile(samples[name], tails))
        intervals[name] = (low, high) if low < high else None
    return intervals


def reliability(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15) -> pd.DataFrame:
    """Compute accuracy and mean confidence by bins of confidence (Guo et al. 2017, section 2).

    Args:
        labels: int [n].
        probabilities: float [n, classes]; the confidence of an example is its highest.
        bins: bins of equal width over (0, 1], each closed on its right, as in the paper.

    Returns:
        One row for each bin: low, high (edges), count (int), confidence and accuracy (means; NaN
        in an empty bin).

    Raises:
        ValueError: as `classification_metrics`, or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1. Received {bins}.")
    labels, probabilities = _check_probabilities(labels, probabilities)
    edges = np.linspace(0, 1, bins + 1)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    positions = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(positions, minlength=bins)
    sums = (np.bincount(positions, weights=w, minlength=bins) for w in (confidence, correct))
    mean_confidence, accuracy = (np.where(count, s / np.maximum(count, 1), np.nan) for s in sums)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": count,
            "confidence": mean_confidence,
            "accuracy": accuracy,
        }
    )


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15
) -> float:
    """Compute the expected calibration error (Guo et al. 2017, eq. 3).

    Args:
        labels: int [n].
        probabilities: float [n, classes]; the confidence of an example is its highest.
        bins: as in `reliability`.

    Returns:
        The gap between accuracy and mean confidence, averaged over the examples, in [0, 1]; NaN
        where n is 0.

    Raises:
        ValueError: as `reliability`.
    """
    table = reliability(labels, probabilities, bins=bins)
    total = table["count"].sum()
    if not total:
        return math.nan
    gaps = (table["accuracy"] - table["confidence"]).abs() * table["count"]
    return float(gaps.sum() / total)


def threshold_curve(confidence: ArrayLike, correct: ArrayLike) -> pd.DataFrame:
    """Compute the accuracy and the share of answers for each threshold of confidence.

    Args:
        confidence: float [n].
        correct: bool [n].

    Returns:
        One row for each distinct confidence, the lowest first: threshold, answered (int, examples
        with at least that confidence), share_answered and accuracy (among the answered).

    Raises:
        ValueError: arrays of different shapes, or not of one dimension.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise ValueError(
            f"confidence of shape {confidence.shape} does not match correct of {correct.shape}."
        )
    thresholds, first = np.unique(np.sort(confidence), return_index=True)
    correct_below = np.append(0, np.cumsum(correct[np.argsort(confidence, kind="stable")]))
    answered = len(confidence) - first
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "answered": answered,
            "share_answered": answered / max(len(confidence), 1),
            "accuracy": (correct.sum() - correct_below[first]) / np.maximum(answered, 1),
        }
    )


def outliers(labels: ArrayLike, probabilities: ArrayLike, *, below: float = 0.5) -> np.ndarray:
    """Select the examples that are misclassified, or have a confidence under `below`.

    Args:
        labels: int [n].
        probabilities: float [n, classes]; the confidence of an example is its highest.
        below: correct predictions with a lower confidence are also selected.

    Returns:
        int [k], indices into `labels`: misclassified examples from the most to the least
        confident, then correct ones from the least to the most confident; ties by index.

    Raises:
        ValueError: as `classification_metrics`.
    """
    labels, probabilities = _check_probabilities(labels, probabilities)
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # lexsort is stable and keeps equal examples in the order of their indices.
    order = np.lexsort((np.where(correct, confidence, -confidence), correct))
    return order[(~correct | (confidence < below))[order]]


# === Checks ===


def _check_indices(values: ArrayLike, classes: int, name: str) -> np.ndarray:
    """Return `values` as int64 [n]; raise ValueError if they are not class indices."""
    values = np.asarray(values)
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must be one-dimensional and integer. "
            f"Received shape {values.shape} and type {values.dtype}."
        )
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if len(wrong):
        raise ValueError(
            f"{name} must be in 0..{classes - 1} (only labelled examples belong here). Received "
            f"{values[wrong[0]]} at position {wrong[0]}, and {len(wrong) - 1} more out of range."
        )
    return values.astype(np.int64)


def _check_predictions(
    labels: ArrayLike, predictions: ArrayLike, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as int64 [n]."""
    labels = _check_indices(labels, classes, "labels")
    predictions = _check_indices(predictions, classes, "predictions")
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels do not match {len(predictions)} predictions.")
    return labels, predictions


def _check_probabilities(
    labels: ArrayLike, probabilities: ArrayLike, classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 [n] and probabilities as float64 [n, classes]."""
    # In double precision, so that the edges of bins are the same for every input type.
    probabilities = np.asarray(probabilities, dtype=np.float64)
    columns = classes or (probabilities.shape[1] if probabilities.ndim == 2 else 0)
    labels = _check_indices(labels, columns, "labels") if columns else np.asarray(labels)
    if columns < 1 or probabilities.shape != (len(labels), columns):
        raise ValueError(
            f"probabilities of shape {probabilities.shape} do not match {len(labels)} labels"
            + (f" and {classes} classes." if classes is not None else ".")
        )
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"probabilities must be finite. Row {np.flatnonzero(~finite)[0]} is not, "
            f"and {(~finite).sum() - 1} more."
        )
    return labels, probabilities
