"""Shared parts of the training benchmarks: a trunk's spec, a prepared phase, seconds per step."""

import functools
import time
from collections.abc import Callable, Iterable

import keras
import numpy as np
from absl import flags

from benchmarks.data import spec_of

TRUNKS = ("efficientnetb2", "efficientnet_lite2")


def trunks_of(values: flags.FlagValues) -> tuple[str, ...]:
    return (values.trunk,) if values.trunk else TRUNKS


def trunk_spec(trunk: str, **fields):
    from multitask.spec import override, parse_spec

    raw = spec_of().to_dict()
    # BatchNorm is frozen, as in a pretrained trunk: this costs less than trained BatchNorm.
    raw["trunk"] |= {"weights": "none", "name": trunk, "batchnorm": "frozen"}
    return override(parse_spec(raw, source="benchmark"), fields)


class StepTimes(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def seconds_a_step(model, batches: Iterable, steps: int) -> float:
    """The median, without the first two steps, which include compilation."""
    times = StepTimes()
    model.fit(batches, steps_per_epoch=steps + 2, callbacks=[times], verbose=0)
    return float(np.median(np.diff(times.ends)[1:]))


def phase_maker(network, spec, phase: str, classes, steps: int) -> Callable:
    """A function that prepares a phase, with class weights of 1."""
    from multitask.learning.phases import prepare_phase

    weights = {task: np.ones(len(names), np.float32) for task, names in classes.items()}
    options = {"class_weights": weights, "steps_per_epoch": steps}
    return functools.partial(prepare_phase, network, spec, phase, **options)
