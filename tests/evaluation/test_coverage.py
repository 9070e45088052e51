"""Coverage on the test set: against plain loops over random predictions."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from multitask.calibration import Calibration
from multitask.conformal import SHOWN_COVERAGES, without_images
from multitask.evaluation.coverage import (
    class_table,
    conformal_of,
    coverage_lines,
    coverage_metrics,
)
from multitask.evaluation.predictions import Predictions

CLASSES = {"mood": ("calm", "loud", "odd", "rare"), "tone": ("dark", "light", "mixed")}
CALIBRATIONS = {"mood": Calibration(2.0, 100), "tone": Calibration(1.0, 100)}


def predictions_of(seed, images=120):
    rng = np.random.default_rng(seed)
    labels = np.stack(
        [rng.integers(0, len(names) - (task == "mood"), images) for task, names in CLASSES.items()],
        axis=1,
    )
    labels[rng.random(labels.shape) < 0.3] = -1
    probabilities = {
        task: rng.dirichlet(np.ones(len(names)), images) for task, names in CLASSES.items()
    }
    paths = np.array([f"{i}.png" for i in range(images)], object)
    return Predictions(CLASSES, paths, labels, probabilities)


def scores_of(row):
    order = list(np.argsort(-row))
    return [
        sum(row[other] for other in order[: order.index(label)])
        + 0.01 * max(0, order.index(label) + 1 - 2)
        for label in range(len(row))
    ]


def scaled(values, temperature):
    return scipy.special.softmax(np.log(values) / temperature, axis=1)


@pytest.fixture(scope="module")
def measured():
    validation, test = predictions_of(0), predictions_of(1, images=90)
    conformal = conformal_of(validation, CALIBRATIONS)
    return validation, test, coverage_metrics(test, CALIBRATIONS, conformal)


@pytest.mark.parametrize("task", CLASSES)
def test_the_coverage_of_a_task_is_that_of_loops(measured, task):
    validation, test, content = measured
    temperature, place = CALIBRATIONS[task].temperature, list(CLASSES).index(task)
    own = [
        scores_of(row)[label]
        for row, label in zip(
            scaled(validation.probabilities[task], temperature),
            validation.labels[:, place],
            strict=True,
        )
        if label >= 0
    ]
    of_task = content["tasks"][task]
    assert of_task["validation_images"] == len(own)
    table = class_table(of_task)
    assert table["class"].tolist() == list(CLASSES[task])
    for at, (target, level) in enumerate(zip(SHOWN_COVERAGES, of_task["levels"], strict=True)):
        rank = int(np.ceil(round((len(own) + 1) * target, 9)))
        threshold = sorted(own)[rank - 1]
        assert (level["target_coverage"], level["reason"]) == (target, None)
        assert level["threshold"] == pytest.approx(threshold)
        sizes, right, by_class = [], [], {}
        for row, label in zip(
            scaled(test.probabilities[task], temperature), test.labels[:, place], strict=True
        ):
            if label < 0:
                continue
            inside = {k for k, score in enumerate(scores_of(row)) if score <= threshold + 1e-12}
            sizes.append(len(inside))
            right.append(label in inside)
            by_class.setdefault(label, []).append((label in inside, len(inside)))
        count = len(sizes)
        assert of_task["test_images"] == count
        assert level["coverage"] == pytest.approx(np.mean(right))
        assert level["mean_set_size"] == pytest.approx(np.mean(sizes))
        assert level["set_sizes"] == [sizes.count(k + 1) for k in range(len(CLASSES[task]))]
        exact = scipy.stats.binomtest(sum(right), count).proportion_ci(0.95, "exact")
        assert level["interval"] == pytest.approx([exact.low, exact.high])
        both = scipy.stats.betabinom(count, rank, len(own) + 1 - rank)
        assert level["expected_interval"] == pytest.approx(np.array(both.interval(0.95)) / count)
        for label, row in enumerate(of_task["classes"]):
            pairs = by_class.get(label)
            assert row["test_images"] == len(pairs or ())
            means = np.mean(pairs, axis=0) if pairs else [None, None]
            assert [row["coverage"][at], row["mean_set_size"][at]] == pytest.approx(list(means))
        assert table[f"coverage_{target:g}"].isna().tolist() == [
            label not in by_class for label in range(len(table))
        ]


def test_joint_coverage_is_that_of_the_labels_an_image_has(measured):
    validation, test, content = measured
    conformal = conformal_of(validation, CALIBRATIONS)
    joint = content["joint"]
    several = [row for row in range(len(test.labels)) if (test.labels[row] >= 0).all()]
    assert joint["test_images"] == len(several) == joint["images_with_all_labels"]["test_images"]
    for at, level in enumerate(joint["levels"]):
        thresholds = conformal.thresholds(level["target_coverage"], joint=True)
        hits = []
        for row in several:
            hits.append(
                all(
                    scores_of(
                        scaled(test.probabilities[task], CALIBRATIONS[task].temperature)[row]
                    )[test.labels[row, place]]
                    <= thresholds[task] + 1e-12
                    for place, task in enumerate(CLASSES)
                )
            )
        assert level["coverage"] == pytest.approx(np.mean(hits))
        assert joint["images_with_all_labels"]["coverage"][at] == level["coverage"]


def test_few_images_and_one_task_are_lines(measured):
    """20 labelled images of mood allow .95, 8 do not allow .9; a single task has no joint sets."""
    validation, test, _ = measured
    few = Predictions(
        CLASSES,
        validation.paths[:11],
        np.stack([np.r_[np.zeros(8), -np.ones(3)], np.zeros(11)], axis=1).astype(int),
        {task: values[:11] for task, values in validation.probabilities.items()},
    )
    content = coverage_metrics(test, CALIBRATIONS, conformal_of(few, CALIBRATIONS))
    reason = "8 validation images have a label; they allow a coverage up to 0.888"
    assert [level["reason"] for level in content["tasks"]["mood"]["levels"]][1] == reason
    first, second, *rest = coverage_lines(content)
    assert first == "Sets of coverage 0.9 hold the right class (expected range):"
    assert second.startswith("  tone 0.")
    assert rest == [
        f"No sets of coverage 0.9: mood: {reason}",
        "No joint sets of coverage 0.9: 8 validation images have labels of several tasks; they "
        "allow a coverage up to 0.888",
    ]
    one = Predictions(
        {"mood": CLASSES["mood"]},
        test.paths,
        test.labels[:, :1],
        {"mood": test.probabilities["mood"]},
    )
    content = coverage_metrics(one, CALIBRATIONS, without_images(["mood"]))
    assert "joint" not in content
    assert coverage_lines(content) == [
        "No sets of coverage 0.9: mood: no validation image has a label"
    ]
    assert class_table(content["tasks"]["mood"])["coverage_0.9"].isna().all()


def test_the_console_shows_the_joint_sets(measured):
    content = measured[2]
    *_, line = coverage_lines(content)
    level = content["joint"]["levels"][1]
    low, high = level["expected_interval"]
    mood, tone = level["mean_set_size"].values()
    assert line == (
        f"  all tasks together {level['coverage']:.3f} ({low:.3f} to {high:.3f}), "
        f"classes: mood {mood:.1f}, tone {tone:.1f}"
    )
