"""What predictions are worth, as figures computed from arrays alone.

Every function takes labelled examples only: whoever calls drops the examples without a label
first, and a -1 that slips through is an error here rather than a wrong figure. Class averages are
taken over the classes that have a label among the examples judged, because a class that the exam
never asks for can be neither right nor wrong. The predicted class is the lowest index that holds
the highest probability, everywhere.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    precision_recall_fscore_support,
)

from multitask.bootstrap import DRAWS, FEWEST_EXAMPLES, SEED, Exam, bootstrap, label_rank
from multitask.spec import NO_TEST_SET


def classification_metrics(labels, probabilities, *, classes: int) -> dict[str, float | int | None]:
    """The headline figures of one task.

    Args:
        labels: int [n], each in 0..classes-1.
        probabilities: float [n, classes], finite.
        classes: number of classes of the task.

    Returns:
        "labelled" (n) and "classes_present" (classes that have a label) as int; "top1", "top5",
        "macro_f1", "weighted_f1" and "balanced_accuracy" as float in [0, 1], or None where n is 0.
        Macro-F1 and balanced accuracy average over the classes present; one of them that is never
        predicted counts 0. "top5" is top-`classes` where there are fewer than 5.

    Raises:
        ValueError: shapes that do not match, a label out of range, a non-finite probability.
    """
    labels, probabilities = _check_probabilities(labels, probabilities, classes)
    if not len(labels):
        names = ("top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy")
        return {"labelled": 0, **dict.fromkeys(names), "classes_present": 0}
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


def majority_baseline(train_labels, labels, *, classes: int) -> dict[str, float | int | None]:
    """What always answering with the commonest training class would score.

    Args:
        train_labels: int [m]; the commonest class is taken from here, the lowest index on a tie.
        labels: int [n]; the answer is judged on these.
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
    commonest = int(np.bincount(train_labels).argmax())
    answers = np.full_like(labels, commonest)
    return {
        "class": commonest,
        "top1": float(accuracy_score(labels, answers)),
        "macro_f1": float(per_class(labels, answers, classes=classes)["f1"].mean()),
    }


def per_class(labels, predictions, *, classes: int) -> pd.DataFrame:
    """Precision, recall, F1 and support of each class.

    Args:
        labels: int [n].
        predictions: int [n], predicted classes.
        classes: number of classes of the task.

    Returns:
        A frame with index 0..classes-1 and columns precision, recall, f1 (NaN for a class without
        a label, so that their plain mean is the macro average; 0 for one never predicted) and
        support (int, examples).

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


def confusion(labels, predictions, *, classes: int) -> np.ndarray:
    """Counts of (true, predicted), as int [classes, classes] with the true class in the rows.

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    labels, predictions = _check_predictions(labels, predictions, classes)
    # scikit-learn's refuses empty arrays and warns about a task with one class.
    counts = np.bincount(labels * classes + predictions, minlength=classes**2)
    return counts.reshape(classes, classes)


def confusion_pairs(labels, predictions, *, classes: int) -> pd.DataFrame:
    """The cells of `confusion` that are not 0: no larger than the number of examples.

    Returns:
        Columns true, predicted and count, int; the highest count first, equal ones by class.

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    labels, predictions = _check_predictions(labels, predictions, classes)
    cells, counts = np.unique(labels * classes + predictions, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    true, predicted = np.divmod(cells[order], classes)
    return pd.DataFrame({"true": true, "predicted": predicted, "count": counts[order]})


def most_confused(pairs: pd.DataFrame, *, classes: int, limit: int) -> np.ndarray:
    """The classes that are most often confused with each other.

    Pairs of classes are counted in both directions. The classes of the most frequent pairs are
    taken, pair by pair, and then those with the most examples.

    Args:
        pairs: as `confusion_pairs` gives them.
        classes: how many there are.
        limit: how many are wanted, at least 1.

    Returns:
        int [min(limit, classes)], ascending.
    """
    wrong = pairs[pairs["true"] != pairs["predicted"]]
    ends = np.sort(wrong[["true", "predicted"]].to_numpy(np.int64).reshape(-1, 2), axis=1)
    both, which = np.unique(ends, axis=0, return_inverse=True)
    counts = np.bincount(which.reshape(-1), weights=wrong["count"], minlength=len(both))
    both = both[np.argsort(-counts, kind="stable")]
    support = np.bincount(pairs["true"], weights=pairs["count"], minlength=classes)
    ranked = np.append(both.reshape(-1), np.argsort(-support, kind="stable"))
    _, first = np.unique(ranked, return_index=True)
    return np.sort(ranked[np.sort(first)][:limit])


def confusion_order(counts) -> np.ndarray:
    """An order of the classes in which those that are taken for each other stand together.

    Average-linkage clustering by the shares of each class taken for the other, its leaves in the
    optimal order (Bar-Joseph et al. 2001).

    Args:
        counts: int [classes, classes], as `confusion` gives them.

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


def report_text(labels, predictions, *, names: Sequence[str]) -> str:
    """scikit-learn's classification report, with a line for the average over the classes present.

    Args:
        labels: int [n].
        predictions: int [n], predicted classes.
        names: name of each class, by index.

    Returns:
        Text that ends in a newline. Its first line says how many examples are labelled and how
        many classes have a label. "macro avg" is scikit-learn's, over every class;
        "macro avg (present)" is the one that the project reports. "n/a (no test set)" where n
        is 0.

    Raises:
        ValueError: lengths that do not match, an index out of range.
    """
    table = per_class(labels, predictions, classes=len(names))
    total = int(table["support"].sum())
    if not total:
        return f"n/a ({NO_TEST_SET})\n"
    average = "macro avg (present)"
    # The report is as wide as its longest name: padding makes room for the line added below.
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
    figures = "".join(f" {value:9.3f}" for value in means)
    return (
        f"{total} labelled; {(table['support'] > 0).sum()} of {len(names)} classes have an exam "
        f'label, and "{average}" averages over those.\n\n'
        f"{report}{average:>{max(map(len, padded))}} {figures} {total:9d}\n"
    )


def bootstrap_intervals(
    labels,
    probabilities,
    *,
    classes: int,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = SEED,
) -> dict[str, tuple[float, float] | None]:
    """How far the headline figures would move with other pictures (Efron 1979, percentiles).

    The examples are drawn again with replacement. A class that a draw happens to miss is not
    averaged over in it, as in `classification_metrics`.

    Args:
        labels: int [n].
        probabilities: float [n, classes].
        classes: number of classes of the task.
        draws: of n examples each.
        level: share of the draws that an interval holds.
        seed: of the draws.

    Returns:
        (low, high) of "top1", "top5", "macro_f1", "weighted_f1" and "balanced_accuracy", each None
        where n is below FEWEST_EXAMPLES, or where all draws agree: examples without an error do
        not show how rare errors are.

    Raises:
        ValueError: as `classification_metrics`.
    """
    labels, probabilities = _check_probabilities(labels, probabilities, classes)
    names = ("top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy")
    if len(labels) < FEWEST_EXAMPLES:
        return dict.fromkeys(names)
    exam = Exam(
        labels,
        probabilities.argmax(axis=1)[None],
        (label_rank(labels, probabilities) < 5)[None],
    )
    figures = bootstrap(exam, draws=draws, seed=seed)
    tails = (1 - level) / 2, (1 + level) / 2
    found = {name: tuple(map(float, np.quantile(figures[name], tails))) for name in names}
    return {name: ends if ends[0] < ends[1] else None for name, ends in found.items()}


def reliability(labels, probabilities, *, bins: int = 15) -> pd.DataFrame:
    """Accuracy beside mean confidence (Guo et al. 2017, section 2).

    Args:
        labels: int [n].
        probabilities: float [n, classes]; the confidence of an example is its highest.
        bins: bins of equal width over (0, 1], each closed on its right, as in the paper.

    Returns:
        A row a bin: low, high (its edges), count (int), confidence and accuracy (means; NaN in an
        empty bin).

    Raises:
        ValueError: as `classification_metrics`, or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1. Received {bins}.")
    labels, probabilities = _check_probabilities(labels, probabilities)
    edges = np.linspace(0, 1, bins + 1)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=w, minlength=bins) for w in (confidence, correct))
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


def expected_calibration_error(labels, probabilities, *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): how far confidence is from accuracy.

    Args:
        labels: int [n].
        probabilities: float [n, classes]; the confidence of an example is its highest.
        bins: as of `reliability`.

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


def coverage_curve(confidence, correct) -> pd.DataFrame:
    """What answering only from a confidence on gives: accuracy against coverage.

    Args:
        confidence: float [n].
        correct: bool [n].

    Returns:
        A row for each different confidence, the lowest first: threshold, answered (int, examples
        with at least that confidence), coverage (their share) and accuracy (among them).

    Raises:
        ValueError: arrays of different shapes, or not of one dimension.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise ValueError(
            f"confidence of shape {confidence.shape} does not match correct of {correct.shape}."
        )
    thresholds, first = np.unique(np.sort(confidence), return_index=True)
    right_below = np.append(0, np.cumsum(correct[np.argsort(confidence, kind="stable")]))
    answered = len(confidence) - first
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "answered": answered,
            "coverage": answered / max(len(confidence), 1),
            "accuracy": (correct.sum() - right_below[first]) / np.maximum(answered, 1),
        }
    )


def outliers(labels, probabilities, *, below: float = 0.5) -> np.ndarray:
    """Examples worth a look: misclassified, or with a confidence under `below`; worst first.

    Args:
        labels: int [n].
        probabilities: float [n, classes]; the confidence of an example is its highest.
        below: confidence under which a right answer is listed too.

    Returns:
        int [k], indices into `labels`: the misclassified from the most to the least confident,
        then the right ones from the least confident on; equal ones by index.

    Raises:
        ValueError: as `classification_metrics`.
    """
    labels, probabilities = _check_probabilities(labels, probabilities)
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # lexsort is stable, which leaves equal examples in the order of their indices.
    order = np.lexsort((np.where(correct, confidence, -confidence), correct))
    return order[(~correct | (confidence < below))[order]]


NEIGHBOURS = 10  # that the figures of a retrieval look at


def retrieval_metrics(labels, neighbours, relevant) -> dict[str, float | None]:
    """How well the nearest of a gallery have their query's class.

    Args:
        labels: int [n], the queries' classes.
        neighbours: int [n, k], the classes of the nearest, nearest first; -1 where the gallery has
            no more. Of more than 10 the first 10 count.
        relevant: int [n], how many of the gallery have the query's class.

    Returns:
        Means over the queries, in [0, 1], or None where n is 0. "precision_at_10": hits among the
        first 10, over 10. "map_at_10": of a query, the precision at each hit among the first 10,
        summed, over min(10, relevant); 0 where nothing is relevant. "recall_at_1" and
        "recall_at_10": whether there is a hit at all among the first K (Oh Song et al. 2016).

    Raises:
        ValueError: shapes that do not match, a label that is missing.
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


# === Checks ===


def _check_indices(values, classes: int, name: str) -> np.ndarray:
    """`values` as int64 [n], or a ValueError that says what is wrong with them."""
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


def _check_predictions(labels, predictions, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as int64 [n]."""
    labels = _check_indices(labels, classes, "labels")
    predictions = _check_indices(predictions, classes, "predictions")
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels do not match {len(predictions)} predictions.")
    return labels, predictions


def _check_probabilities(labels, probabilities, classes: int | None = None):
    """Labels as int64 [n] and probabilities as float64 [n, classes]."""
    # In double precision, so that an edge of a bin is the same number for every input type.
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
