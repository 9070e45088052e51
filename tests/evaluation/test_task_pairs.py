"""Metrics of several tasks together, against counts by hand and plain loops."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from multitask.data.table import TEST, TRAIN, Table
from multitask.evaluation.predictions import Predictions
from multitask.evaluation.task_pairs import (
    MIN_TRAINING_IMAGES,
    agreement,
    contradictions,
    dependence,
    exact_match,
    joint_counts,
)

CLASSES = {"hand": ("left", "right"), "mood": ("calm", "loud", "sad")}


def probabilities_of(answers, classes):
    """Probabilities whose highest is the given class: .6, .7, .8, … from image to image."""
    sure = 0.6 + 0.02 * np.arange(len(answers))
    rest = (1 - sure) / (classes - 1)
    values = np.tile(rest[:, None], (1, classes))
    values[np.arange(len(answers)), answers] = sure
    return values.astype(np.float32)


def predictions(hand, mood, hand_predicted, mood_predicted):
    labels = np.array([hand, mood], np.int32).T
    probabilities = {
        "hand": probabilities_of(hand_predicted, 2),
        "mood": probabilities_of(mood_predicted, 3),
    }
    paths = np.array([f"{i}.jpg" for i in range(len(hand))], object)
    return Predictions(CLASSES, paths, labels, probabilities)


@pytest.fixture
def test_set():
    return predictions(
        hand=[0, 0, 1, 1, -1, 0],
        mood=[0, 1, 1, 1, 2, -1],
        hand_predicted=[0, 1, 1, 0, 1, 0],
        mood_predicted=[0, 2, 1, 2, 2, 0],
    )


@pytest.fixture
def table():
    """In training: 30 x (left, calm), 25 x (right, loud), (left, loud), and sad without a hand."""
    pairs = [(0, 0)] * 30 + [(1, 1)] * 25 + [(0, 1)] + [(-1, 2)] * 40
    labels = np.array([*pairs, (1, 2)], np.int32)
    paths = np.array([f"t{i}" for i in range(len(labels))], object)
    splits = np.array([TRAIN] * len(pairs) + [TEST], object)  # the test set's pair is not counted
    return Table(CLASSES, paths, labels, splits)


def test_accuracy_where_another_task_is_right_and_wrong(test_set):
    # Images 0 to 3 have both labels: the hand is right in 0 and 2, the mood in 0 and 2.
    by_hand, by_mood = dependence(test_set)
    assert (by_hand["given"], by_hand["task"]) == ("hand", "mood")
    assert by_hand["given_right"] == {"count": 2, "accuracy": 1.0}
    assert by_hand["given_wrong"] == {"count": 2, "accuracy": 0.0}
    calm, loud = sorted(by_hand["classes"], key=lambda row: row["name"])
    assert calm == {
        "name": "calm",
        "given_right": {"count": 1, "accuracy": 1.0},
        "given_wrong": {"count": 0, "accuracy": None},
    }
    assert loud["given_right"] == {"count": 1, "accuracy": 1.0}
    assert loud["given_wrong"] == {"count": 2, "accuracy": 0.0}
    assert by_hand["classes"][0]["name"] == "loud"  # the greatest loss
    assert (by_mood["given"], by_mood["task"]) == ("mood", "hand")


def test_tasks_without_common_test_images_have_no_row():
    apart = predictions([0, -1], [-1, 1], [0, 0], [1, 1])
    assert dependence(apart) == []


def test_joint_counts_are_of_training_images_with_both_labels(table):
    np.testing.assert_array_equal(joint_counts(table, "hand", "mood"), [[30, 1, 0], [0, 25, 0]])
    np.testing.assert_array_equal(joint_counts(table, "mood", "hand"), [[30, 0], [1, 25], [0, 0]])


def test_agreement_by_a_loop(test_set, table):
    (result,) = agreement(test_set, table)
    known = {(0, 0), (0, 1), (1, 1)}
    hands, moods = [0, 1, 1, 0], [0, 2, 1, 2]  # predictions of images with both labels
    assert result["images"] == 4
    seen = [pair in known for pair in zip(hands, moods, strict=True)]
    assert result["seen"] == pytest.approx(np.mean(seen)) == 0.5
    dealt = [(hand, mood) in known for hand in hands for mood in moods]
    assert result["by_chance"] == pytest.approx(np.mean(dealt))
    assert result["true"] == 1.0  # (0, 0), (0, 1), (1, 1), (1, 1)
    apart = predictions([0, -1], [-1, 1], [0, 0], [1, 1])
    assert agreement(apart, table) == []


def test_contradictions_are_pairs_that_never_occur_in_training(test_set, table):
    sure = {task: test_set.probabilities[task].max(axis=1) for task in CLASSES}
    # "sad" never has a hand in training, and (left, loud) occurs: no contradiction.
    assert contradictions(test_set, table, sure) == []
    other = predictions([0, 0, -1], [0, 0, 0], [1, 1, 1], [0, 0, 0])
    sure = {task: other.probabilities[task].max(axis=1) for task in CLASSES}
    result = contradictions(other, table, sure)
    assert [row["path"] for row in result] == ["1.jpg", "0.jpg"]  # the more confident first
    assert result[0]["first_predicted"] == "right"
    assert result[0]["second_predicted"] == "calm"
    assert result[0]["confidence"] == pytest.approx(0.62**2, abs=1e-6)
    # With one image fewer, "right" has too few training images for a contradiction.
    count = 30 + MIN_TRAINING_IMAGES - 1
    few = Table(CLASSES, table.paths[:count], table.labels[:count], table.splits[:count])
    assert contradictions(other, few, sure) == []


def test_exact_match_by_hand(test_set):
    """Images 0 to 3 have both labels; both predictions are right for images 0 and 2."""
    assert exact_match(test_set) == {
        "tasks": ["hand", "mood"], "images": 4, "share": 0.5, "interval": None,
    }  # fmt: skip


def test_exact_match_is_sklearns_subset_accuracy():
    rng = np.random.default_rng(3)
    hand, hand_predicted = rng.integers(0, 2, (2, 200))
    mood, mood_predicted = rng.integers(0, 3, (2, 200))
    measured = exact_match(predictions(hand, mood, hand_predicted, mood_predicted))
    # Subset accuracy takes indicators: of class 1, and of moods 1 and 2.
    true, predicted = (
        np.stack([h == 1, m == 1, m == 2], axis=1)
        for h, m in ((hand, mood), (hand_predicted, mood_predicted))
    )
    assert measured["share"] == accuracy_score(true, predicted)
    right = (true == predicted).all(axis=1)
    drawn = rng.choice(right, (20_000, 200)).mean(axis=1)
    np.testing.assert_allclose(measured["interval"], np.quantile(drawn, (0.025, 0.975)), atol=0.006)


def test_exact_match_needs_two_tasks_with_a_common_image():
    assert exact_match(predictions([0, 1, -1], [-1, -1, -1], [0, 1, 0], [0, 0, 0])) is None
    assert exact_match(predictions([0, 1, -1], [-1, -1, 2], [0, 1, 0], [0, 0, 2])) is None
