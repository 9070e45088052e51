"""The messages between the tasks, against loops in NumPy."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp

from multitask.model.co_occurrence import (
    MOST,
    SMOOTHING,
    build_co_occurrence,
    co_occurrence_of,
    log_ratios,
)
from multitask.model.network import (
    ANSWERS,
    connect,
    examined_heads,
    examined_model,
    in_float32,
    network_parts,
    of_tasks,
    trunk_and_heads,
    with_flips,
)

CLASSES = {"artist": 3, "style": 4, "genre": 2, "painter": 5}
REJECTIONS = {"artist": (0.7, -0.2)}
ANSWERS_OF = {"artist": 4, "style": 4, "genre": 2, "painter": 5}
MAIN = ("artist", "style", "genre")


@pytest.fixture(scope="module")
def potentials():
    rng = np.random.default_rng(0)
    return {
        (sender, receiver): rng.uniform(0.1, 5.0, (ANSWERS_OF[sender], ANSWERS_OF[receiver]))
        for receiver in MAIN
        for sender in CLASSES
        if sender != receiver
    }


@pytest.fixture(scope="module")
def messages(potentials):
    return build_co_occurrence(CLASSES, potentials, REJECTIONS)


def expected(logits, potentials):
    """Answer by answer: the sender's probabilities times their potentials, as a logarithm."""
    slope, offset = REJECTIONS["artist"]
    own = {}
    for task, values in logits.items():
        values = np.float64(values)
        own[task] = log_softmax(values, axis=1)
        if task in REJECTIONS:
            known = expit(slope * logsumexp(values, axis=1, keepdims=True) + offset)
            own[task] = np.concatenate([own[task] + np.log(known), np.log(1 - known)], axis=1)
    result = {}
    for task, values in logits.items():
        new = own[task].copy() if task in REJECTIONS else np.float64(values)
        for sender, receiver in potentials:
            if receiver == task:
                for answer in range(new.shape[1]):
                    weights = potentials[sender, task][:, answer]
                    new[:, answer] += np.log((np.exp(own[sender]) * weights).sum(axis=1))
        result[task] = new[:, :-1] - new[:, -1:] if task in REJECTIONS else new
    return result


def random_logits(rows=6, seed=1):
    rng = np.random.default_rng(seed)
    return {task: rng.normal(0, 3, (rows, n)).astype(np.float32) for task, n in CLASSES.items()}


def test_the_messages_are_those_of_loops(messages, potentials):
    logits = random_logits()
    result = messages.predict_on_batch(list(logits.values()))
    for values, (task, wanted) in zip(result, expected(logits, potentials).items(), strict=True):
        np.testing.assert_allclose(values, wanted, atol=2e-5, err_msg=task)
    np.testing.assert_array_equal(result[3], logits["painter"])  # receives nothing


def test_two_tasks_have_the_marginals_of_their_joint_distribution():
    """Of two tasks, one step of belief propagation is exact."""
    rng = np.random.default_rng(3)
    table = rng.uniform(0.1, 5.0, (3, 4))
    model = build_co_occurrence({"a": 3, "b": 4}, {("a", "b"): table, ("b", "a"): table.T}, {})
    first, second = (rng.normal(size=(5, n)).astype(np.float32) for n in (3, 4))
    joint = np.exp(log_softmax(first, axis=1))[:, :, None] * table
    joint = joint * np.exp(log_softmax(second, axis=1))[:, None, :]
    joint /= joint.sum((1, 2), keepdims=True)
    for logits, axis in zip(model.predict_on_batch([first, second]), (2, 1), strict=True):
        probabilities = np.exp(log_softmax(np.float64(logits), axis=1))
        np.testing.assert_allclose(probabilities, joint.sum(axis), atol=1e-6)


def test_potentials_of_1_change_no_answer():
    ones = {
        pair: np.ones((ANSWERS_OF[pair[0]], ANSWERS_OF[pair[1]]))
        for pair in (("style", "artist"), ("artist", "style"))
    }
    logits = random_logits()
    slope, offset = REJECTIONS["artist"]
    artist, style, *_ = build_co_occurrence(CLASSES, ones, REJECTIONS).predict_on_batch(
        list(logits.values())
    )
    np.testing.assert_allclose(style, logits["style"], atol=1e-5)
    np.testing.assert_allclose(
        log_softmax(artist, axis=1), log_softmax(logits["artist"], axis=1), atol=1e-5
    )
    # The energy of an open task becomes the logit of "has one of the classes".
    known = slope * logsumexp(logits["artist"], axis=1) + offset
    np.testing.assert_allclose(logsumexp(artist, axis=1), known, atol=1e-5)


def test_log_ratios_by_hand():
    """12 images have both labels: (0, 0) 6 times, (0, 1) 2 times, (1, 1) 4 times."""
    first = np.array([0] * 8 + [1] * 4 + [-1, 0, 2])
    second = np.array([0] * 6 + [1] * 6 + [0, -1, -1])
    result = log_ratios(first, second, (3, 3))
    # P(0) = 8/12 and P(0) = 6/12, so 4 of 12 would be expected by chance.
    by_chance = np.array([[4.0, 4.0], [2.0, 2.0]]) / 12
    counts = np.array([[6.0, 2.0], [0.0, 4.0]])
    wanted = np.log((counts + SMOOTHING * by_chance) / ((12 + SMOOTHING) * by_chance))
    np.testing.assert_allclose(result[:2, :2], wanted, atol=1e-12)
    assert not result[2].any()  # never seen together: no statement
    assert not result[:, 2].any()
    assert not log_ratios(np.array([-1, 0]), np.array([0, -1]), (1, 1)).any()


def test_log_ratios_are_limited():
    first = np.repeat([0, 1], 100_000)
    result = log_ratios(first, first, (2, 2))
    assert result[0, 1] == result[1, 0] == -MOST
    rare = np.append(np.zeros(100_000, int), [1] * 300)
    assert log_ratios(rare, rare, (2, 2))[1, 1] == MOST


# === Within a model ===


@pytest.fixture(scope="module")
def model(messages):
    image = keras.Input((8, 8, 3))
    keras.utils.set_random_seed(0)
    trunk = keras.Model(image, keras.layers.Conv2D(6, 3, name="conv")(image), name="trunk")
    heads = {}
    for task, count in CLASSES.items():
        features = keras.Input((6, 6, 6))
        pooled = keras.layers.GlobalAveragePooling2D()(features)
        logits = keras.layers.Dense(count, name=f"{task}_logits")(pooled)
        heads[task] = keras.Model(features, logits, name=task)
    return connect(trunk, heads, messages=messages)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(2).uniform(0, 1, (4, 8, 8, 3)).astype(np.float32)


def answers_of(model, pixels, potentials):
    """Task -> the logits of the heads alone, with the messages of the loops."""
    parts = network_parts(model)
    features = parts.trunk.predict_on_batch(pixels)
    heads = {task: head.predict_on_batch(features) for task, head in parts.heads.items()}
    return expected(heads, potentials)


def test_a_model_answers_with_messages(model, pixels, potentials):
    wanted = answers_of(model, pixels, potentials)
    result = model.predict_on_batch(pixels)
    assert list(result) == list(CLASSES)
    for task in CLASSES:
        np.testing.assert_allclose(result[task], wanted[task], atol=2e-5)


@pytest.mark.parametrize("tasks", [MAIN, ("genre",)])
def test_some_tasks_keep_their_answers(model, pixels, tasks):
    whole, some = model.predict_on_batch(pixels), of_tasks(model, tasks)
    result = some.predict_on_batch(pixels)
    assert tuple(result) == tasks
    assert tuple(trunk_and_heads(some)[1]) == tasks
    examined = examined_model(some).predict_on_batch(pixels)
    above = examined_heads(some).predict_on_batch(examined["features"])
    flipped = with_flips(some).predict_on_batch(pixels)
    mirrored = model.predict_on_batch(pixels[:, :, ::-1])
    for task in tasks:
        np.testing.assert_allclose(result[task], whole[task], atol=1e-6)
        np.testing.assert_allclose(examined[ANSWERS][task], whole[task], atol=1e-6)
        np.testing.assert_allclose(above[ANSWERS][task], whole[task], atol=1e-6)
        np.testing.assert_allclose(flipped[task], (whole[task] + mirrored[task]) / 2, atol=1e-5)
    assert of_tasks(some, tasks) is some


def test_training_starts_from_the_heads_alone(model):
    trunk, heads = trunk_and_heads(model)
    assert co_occurrence_of(connect(trunk, heads)) is None
    assert tuple(heads) == tuple(CLASSES)
    assert in_float32(model) is model


def test_a_saved_model_needs_keras_alone(model, pixels, tmp_path):
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "pixels.npy", pixels)
    code = """
import sys, numpy as np, keras
folder = sys.argv[1]
model = keras.saving.load_model(f"{folder}/model.keras", compile=False, safe_mode=True)
np.savez(f"{folder}/out.npz", **model.predict_on_batch(np.load(f"{folder}/pixels.npy")))
assert "multitask" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    wanted = model.predict_on_batch(pixels)
    with np.load(tmp_path / "out.npz") as result:
        for task in CLASSES:
            np.testing.assert_allclose(result[task], wanted[task], atol=1e-6)
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    parts = network_parts(loaded)
    assert tuple(parts.heads) == tuple(CLASSES)
    assert parts.messages is not None
    assert network_parts(of_tasks(loaded, MAIN)).tasks == MAIN
