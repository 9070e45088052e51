"""Chooses how much the tasks' answers depend on each other, once the heads are trained.

See `model.co_occurrence`. The potentials come from the labels of the training images, and their
weight from the validation split.
"""

import logging
from collections.abc import Mapping

import keras
import numpy as np
from scipy.special import log_softmax

from multitask.data.pipeline import view_dataset
from multitask.data.records import PreparedData
from multitask.data.table import TRAIN, VALIDATION, Table
from multitask.learning.callbacks import save_model
from multitask.learning.placement import ONE_DEVICE, Placement
from multitask.model.co_occurrence import build_co_occurrence, log_ratios
from multitask.model.inference import fast_inference, is_usable
from multitask.model.network import (
    ANSWERS,
    Parts,
    connect,
    examined_heads,
    load_network,
    network_parts,
)
from multitask.open_set import Rejection, fit_rejection, known_scores
from multitask.run import Run
from multitask.runtimes.libraries import AUTO
from multitask.spec import OTHER_LABEL, DataSpec, is_labelled

logger = logging.getLogger(__name__)

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))  # 0 is off
BATCH = 32


def connect_answers(run: Run, prepared: PreparedData, placement: Placement = ONE_DEVICE) -> None:
    """Let the best model's tasks answer together if the spec says so, unless they already do.

    The file of the model is replaced. Its heads and its trunk keep their weights.
    """
    spec, table = run.spec, prepared.table
    if spec.co_occurrence == "off" or not placement.writes or not run.best_model.is_file():
        return
    parts = network_parts(load_network(run.best_model, spec, table.classes))
    if parts.messages is not None or len(parts.heads) == 1:
        return
    if not len(table.rows(VALIDATION)):
        logger.info("Co-occurrence of the tasks' labels: off, without a validation split.")
        return
    logits = _validation_logits(parts, prepared, spec)
    answers = {task: _answers(table, task, VALIDATION, spec) for task in parts.tasks}
    messages = build_messages(parts, table, spec, _rejections(spec, logits, answers))
    losses = choose_weight(messages, spec, logits, answers)
    weight = min(losses, key=losses.__getitem__)
    logger.info(
        f"Co-occurrence of the tasks' labels: weight {weight:g}; validation loss "
        f"{losses[0.0]:.3f} → {losses[weight]:.3f}."
    )
    if weight:
        save_model(connect(parts.trunk, parts.heads, messages=messages), run.best_model)


def build_messages(
    parts: Parts, table: Table, spec: DataSpec, rejections: Mapping[str, Rejection]
) -> keras.Model:
    """Build the network of the messages, with potentials of weight 1.

    Auxiliary tasks send messages and receive none.
    """
    tasks = tuple(parts.heads)
    training = {task: _answers(table, task, TRAIN, spec) for task in tasks}
    counts = {task: len(table.classes[task]) + (task in spec.open_tasks) for task in tasks}
    potentials = {
        (sender, receiver): np.exp(
            log_ratios(training[sender], training[receiver], (counts[sender], counts[receiver]))
        )
        for receiver in spec.main_tasks
        for sender in tasks
        if sender != receiver
    }
    return build_co_occurrence(
        {task: len(table.classes[task]) for task in tasks},
        potentials,
        {task: (one.slope, one.offset) for task, one in rejections.items()},
    )


def choose_weight(
    messages: keras.Model,
    spec: DataSpec,
    logits: Mapping[str, np.ndarray],
    answers: Mapping[str, np.ndarray],
) -> dict[float, float]:
    """Choose the weight of the potentials by the validation split.

    Args:
        messages: with potentials of weight 1; it gets those of the best weight.
        spec: its tasks.
        logits: task -> float [n, classes], of the validation images, in the order of the inputs.
        answers: task -> int [n], their right answers; negative: unknown.

    Returns:
        Each of WEIGHTS -> the mean negative log-likelihood of the right answers, summed over the
        main tasks. The best weight has the smallest; of several, it is the lowest.
    """
    inputs = [np.asarray(values, np.float32) for values in logits.values()]
    potentials = messages.get_weights()
    losses = {}
    for weight in WEIGHTS:
        messages.set_weights([values**weight for values in potentials])
        results = dict(zip(logits, messages(inputs, training=False), strict=True))
        losses[weight] = sum(
            _loss(keras.ops.convert_to_numpy(results[task]), answers[task])
            for task in spec.main_tasks
        )
    best = min(losses, key=losses.__getitem__)
    messages.set_weights([values**best for values in potentials])
    return losses


def _answers(table: Table, task: str, split: str, spec: DataSpec) -> np.ndarray:
    """Return the right answers of a split, int [n]; the one after the classes is "none of them"."""
    labels = table.labels[table.rows(split), table.tasks.index(task)]
    if task not in spec.open_tasks:
        return np.where(is_labelled(labels), labels, -1)
    return np.where(labels == OTHER_LABEL, len(table.classes[task]), labels)


def _rejections(
    spec: DataSpec, logits: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]
) -> dict[str, Rejection]:
    """Fit the probability of having one of the classes, for each open task."""
    rejections = {}
    for task in spec.open_tasks:
        scores, other = known_scores(logits[task]), answers[task] == logits[task].shape[1]
        rejections[task] = fit_rejection(scores[(answers[task] >= 0) & ~other], scores[other])
    return rejections


def _loss(logits: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the right answers."""
    rows = np.flatnonzero(answers >= 0)
    if not len(rows):
        return 0.0
    logits = np.asarray(logits, np.float64)
    if answers.max() == logits.shape[1]:  # some have none of the classes, whose logit is 0
        logits = np.concatenate([logits, np.zeros((len(logits), 1))], axis=1)
    return float(-log_softmax(logits, axis=1)[rows, answers[rows]].mean())


def _validation_logits(
    parts: Parts, prepared: PreparedData, spec: DataSpec
) -> dict[str, np.ndarray]:
    """Compute each task's logits of the validation images, float32 [n, classes]."""
    count = len(prepared.table.rows(VALIDATION))
    usable = is_usable(spec.features.runtime)
    runtime = spec.features.runtime if usable else AUTO
    trunk = fast_inference(parts.trunk, runtime=runtime, images=count)
    heads = examined_heads(connect(parts.trunk, parts.heads))
    images = view_dataset(prepared, spec, split=VALIDATION, batch_size=BATCH)
    batches = [heads.predict_on_batch(np.asarray(maps))[ANSWERS] for maps in trunk.map(images)]
    return {task: np.concatenate([batch[task] for batch in batches]) for task in parts.heads}
