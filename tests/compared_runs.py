"""Results of runs that are compared, with random answers."""

import dataclasses

import numpy as np

from multitask import metrics
from multitask.annexes.compare.results import Results
from multitask.bootstrap import PairedPredictions

NAMES = {"style": tuple("qwertyu"), "genre": ("x", "y", "z")}


def answers(count, classes, seed, share=0.6):
    """(labels, probabilities) with about that share right; classes of uneven frequency."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = np.random.default_rng(99).choice(classes, count, p=weights)
    predicted = np.where(rng.random(count) < share, labels, rng.integers(0, classes, count))
    probabilities = rng.dirichlet(np.ones(classes), count)
    probabilities[np.arange(count), predicted] += 1
    return labels, (probabilities / 2).astype(np.float32)


def results(name="runs/a", seed=0, count=60, names=NAMES, **changes):
    """Of a run with a label of every task for most images."""
    paths = [f"p/{index:03}.jpg" for index in range(count)]
    of = {"true": {}, "predicted": {}, "probabilities": {}, "metrics": {}}
    for task, classes in names.items():
        labels, probabilities = answers(count, len(classes), seed)
        known = np.random.default_rng(7).random(count) < 0.9
        predicted = probabilities.argmax(axis=1)
        of["true"][task] = [classes[i] if k else "" for i, k in zip(labels, known, strict=True)]
        of["predicted"][task] = [classes[index] for index in predicted]
        of["probabilities"][task] = probabilities
        values = metrics.classification_metrics(
            labels[known], probabilities[known], classes=len(classes)
        )
        of["metrics"] |= {f"{task}/{key}": value for key, value in values.items()}
        of["metrics"][f"{task}/ece"] = metrics.expected_calibration_error(
            labels[known], probabilities[known]
        )
    one = Results(name, {}, "models/best_model.keras", paths=paths, **of)
    return dataclasses.replace(one, **changes)


def sampled_test_set(count=80, classes=6, seeds=(1, 2)):
    """(Test set, labels, probabilities of each run)."""
    samples = [answers(count, classes, seed) for seed in seeds]
    labels, probabilities = samples[0][0], [p for _, p in samples]
    best = [np.argsort(-p, axis=1, kind="stable")[:, :5] for p in probabilities]
    top5 = [(five == labels[:, None]).any(axis=1) for five in best]
    predictions = np.array([p.argmax(axis=1) for p in probabilities])
    return PairedPredictions(labels, predictions, np.array(top5)), labels, probabilities


def rows_of(result):
    return {(row.task, row.metric): row for row in result.rows}
