"""The Keras metrics of a task, against scikit-learn and by hand."""

import numpy as np
import pytest
import sklearn.metrics

from multitask.learning.metrics import LabelCount, MacroF1, build_metrics


def test_macro_f1_over_batches_with_missing_and_absent_classes():
    rng = np.random.default_rng(11)
    labels = rng.choice([-1, 0, 1, 3], size=90)  # 2 and 4 have no label; 2 is predicted
    logits = rng.normal(size=(90, 5)).astype(np.float32)
    logits[np.arange(90), np.maximum(labels, 0)] += 0.8
    answers = logits.argmax(1)
    assert {2, 4} <= set(answers)
    metric = MacroF1(5)
    for rows in np.array_split(np.arange(90), 4):
        metric.update_state(labels[rows], logits[rows], (labels[rows] >= 0).astype(np.float32))
    known = labels >= 0
    want = sklearn.metrics.f1_score(
        labels[known], answers[known], labels=[0, 1, 3], average="macro", zero_division=0
    )
    assert float(metric.result()) == pytest.approx(want, rel=1e-6)
    without_weights = MacroF1(5)
    without_weights.update_state(labels, logits)
    assert float(without_weights.result()) == pytest.approx(want, rel=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_macro_f1_by_hand():
    # Class 0: 2 of 3 predicted, one false: F1 = 2*2 / (3 + 3). Class 1: 0 of 1. Class 2: absent.
    labels = np.array([0, 0, 0, 1, -1])
    answers = np.array([0, 0, 2, 0, 1])
    metric = MacroF1(3)
    metric.update_state(labels, np.eye(3)[answers])
    assert float(metric.result()) == pytest.approx((4 / 6 + 0) / 2)


def test_label_count_over_batches():
    metric = LabelCount()
    for batch in ([0, -1, 2], [-1, -1], [5]):
        metric.update_state(np.array(batch), None)
    assert float(metric.result()) == 3
    metric.reset_state()
    assert float(metric.result()) == 0


def test_every_task_has_its_metrics_under_its_name():
    metrics = build_metrics({"colour": 5, "shape": 3})
    names = {task: [metric.name for metric in of_task] for task, of_task in metrics.items()}
    assert names == {
        task: [f"top1/{task}", f"macro_f1/{task}", f"labelled/{task}"]
        for task in ("colour", "shape")
    }
