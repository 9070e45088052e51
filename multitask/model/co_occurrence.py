"""Answers of several tasks that fit together, by how often their labels occur together.

The tasks of one image are not independent: a painter worked in few styles. Each task's
log-probabilities get a message from every other task, one step of belief propagation in a pairwise
Markov random field (Pearl 1988, chapter 4) whose potentials are powers of

    P(a, b) / (P(a) P(b))

over the training images that have both labels. No head is trained again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from multitask.model.graph import first_inputs, producer

NAME = "co-occurrence"  # no task has a hyphen in its name
SMOOTHING = 20.0  # images that are counted as if the labels were independent
MOST = np.log(20.0)  # greatest log ratio, above and below


def log_ratios(first: np.ndarray, second: np.ndarray, counts: tuple[int, int]) -> np.ndarray:
    """Compute log P(a, b) / (P(a) P(b)) of the answers of two tasks.

    Args:
        first: int [n], the answers of a task for the training images; negative: none.
        second: int [n], those of another task.
        counts: the number of answers of each task.

    Returns:
        float64 [counts[0], counts[1]], within ± MOST. It is 0 where one of the answers never comes
        together with any of the other task.

    >>> ratios = log_ratios(np.repeat([0, 1], 500), np.repeat([0, 1], 500), (2, 2))
    >>> np.exp(ratios).round(2)
    array([[1.98, 0.05],
           [0.05, 1.98]])
    """
    both = (first >= 0) & (second >= 0)
    table = np.zeros(counts)
    np.add.at(table, (first[both], second[both]), 1.0)
    total = table.sum()
    if not total:
        return table
    independent = np.outer(table.sum(1), table.sum(0)) / total**2
    possible = independent > 0
    ratio = np.ones(counts)
    np.divide(
        table + SMOOTHING * independent,
        (total + SMOOTHING) * independent,
        out=ratio,
        where=possible,
    )
    return np.clip(np.log(ratio), -MOST, MOST)


def build_co_occurrence(
    classes: Mapping[str, int],
    factors: Mapping[tuple[str, str], np.ndarray],
    rejections: Mapping[str, tuple[float, float]],
) -> keras.Model:
    """Build the network of the messages, from the logits of all tasks to new logits.

    It consists of layers of Keras alone, so that a saved model can be read without this package.

    Args:
        classes: task -> number of classes, in the order of the inputs and outputs.
        factors: (sender, receiver) -> positive float [answers of the sender, answers of the
            receiver], the potentials. A task that receives nothing keeps its logits.
        rejections: open task -> (slope, offset): sigmoid(slope * energy + offset) is the
            probability that the image has one of its classes, where the energy is the log-sum-exp
            of the logits. Such a task has a further answer, the last one: none of the classes.

    Returns:
        A model from a list of logits, float32 [batch, classes] each, to the same. The log-sum-exp
        of an open task's new logits is the logit of "has one of the classes".
    """
    inputs = {task: keras.Input((count,), name=f"{task}-logits") for task, count in classes.items()}
    log_probabilities = {
        task: _open(logits, *rejections[task]) if task in rejections else ops.log_softmax(logits)
        for task, logits in inputs.items()
    }
    outputs = []
    for task, logits in inputs.items():
        messages = []
        for sender, receiver in factors:
            if receiver != task:
                continue
            table = layers.Dense(
                factors[sender, receiver].shape[1],
                use_bias=False,
                trainable=False,
                dtype="float32",
                name=f"{sender}-to-{receiver}",
            )
            message = table(ops.exp(log_probabilities[sender]))
            table.set_weights([np.asarray(factors[sender, receiver], np.float32)])
            messages.append(ops.log(message))
        if not messages:
            outputs.append(layers.Identity(dtype="float32")(logits))
        elif task in rejections:
            answers = layers.Add(dtype="float32")([log_probabilities[task], *messages])
            outputs.append(_closed(answers, classes[task]))
        else:
            outputs.append(layers.Add(dtype="float32")([logits, *messages]))
    return keras.Model(list(inputs.values()), outputs, name=NAME)


def _open(logits: Any, slope: float, offset: float) -> Any:
    """Return the log-probabilities of the classes and, last, of none of them."""
    energy = ops.logsumexp(logits, axis=-1, keepdims=True)
    known = energy * slope + offset
    # log sigmoid(x) and log sigmoid(-x); LiteRT has no softplus.
    both = ops.log_softmax(ops.concatenate([known, ops.zeros_like(known)], axis=-1))
    yes, no = ops.split(both, 2, axis=-1)
    return ops.concatenate([ops.log_softmax(logits) + yes, no], axis=-1)


def _closed(answers: Any, classes: int) -> Any:
    """Return logits of the classes whose log-sum-exp is the logit of "has one of them"."""
    known, none = ops.split(answers, [classes], axis=-1)
    return known - none


def co_occurrence_of(model: keras.Model) -> keras.Model | None:
    """Return the network of the messages within a model; None if it has none."""
    return next((layer for layer in model.layers if layer.name == NAME), None)


def heads_before(messages: keras.Model) -> Sequence[keras.Model]:
    """Return the heads that the network of the messages reads, in the order of its inputs."""
    return [producer(logits) for logits in first_inputs(messages)]
