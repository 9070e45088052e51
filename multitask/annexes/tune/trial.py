"""One trial: the phase `heads`, trained on cached features."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from multitask.annexes.extensions import build_extensions
from multitask.console import ProgressBar, progress_bar
from multitask.data.splitting import class_weights
from multitask.data.table import TRAIN, Table
from multitask.learning.callbacks import (
    EpochTracker,
    NonFiniteLossError,
    StopOnNonFinite,
    validation_scores,
)
from multitask.learning.checkpoints import Progress
from multitask.learning.feature_batches import Features
from multitask.learning.phases import PhaseModel, prepare_phase, seed_phase
from multitask.model.network import build_heads, computing_in, connect
from multitask.spec import PHASES, DataSpec

HEADS_PHASE = PHASES[0]
COMPLETE, PRUNED, NOT_FINITE = "complete", "pruned", "loss not finite"


@dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Attributes:
        state: COMPLETE, PRUNED or NOT_FINITE.
        score: score of the best epoch; None if no epoch was completed.
        epoch: number of the best epoch, from 1.
        epochs: number of completed epochs.
        seconds: duration of the trial.
    """

    state: str
    score: float | None
    epoch: int | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class TrialTrainer:
    """Trains the heads of successive trials on the same features.

    Attributes:
        table: labels, and the classes of each task.
        feature_shape: of the trunk's map, [height, width, channels].
        random_state: of Python's generator after the trunk was built. Keras' initializers take
            their seeds from this generator, so a trial's heads start with the weights that `train`
            gives them.
        train: endless batches of the training split.
        validation: batches of the validation split.
        steps: number of steps of an epoch.
    """

    table: Table
    feature_shape: tuple[int, ...]
    random_state: tuple
    train: tf.data.Dataset
    validation: tf.data.Dataset
    steps: int

    @classmethod
    def from_features(
        cls,
        spec: DataSpec,
        table: Table,
        features: Features,
        *,
        feature_shape: tuple[int, ...],
        random_state: tuple,
    ) -> "TrialTrainer":
        """Make the trainer for a spec and its cached features."""
        return cls(
            table,
            feature_shape,
            random_state,
            features.training_dataset(spec, order=build_extensions(spec).order),
            features.validation_dataset(spec),
            steps=-(-len(features.labels) // spec.batch_size),
        )

    def run(
        self,
        spec: DataSpec,
        metric: str,
        *,
        should_prune: Callable[[int, float], bool],
        label: str,
    ) -> Outcome:
        """Train the heads of a spec as `train` does in its phase `heads`, and save nothing.

        Args:
            spec: it may differ only in the values that a `Dimension` can change.
            metric: as in `tune`.
            should_prune: called after each epoch (from 0) with its score; True stops the trial.
            label: of the progress bar.
        """
        start = time.monotonic()
        keras.utils.clear_session()
        gc.collect()  # a model is part of reference cycles
        phase = self._phase_model(spec)
        progress = Progress(phase=HEADS_PHASE)
        epochs, state = spec.phases.heads.epochs, COMPLETE
        with progress_bar(label, epochs * self.steps, unit=" steps") as bar:
            monitor = _TrialMonitor(progress, spec.main_tasks, metric, should_prune, bar)
            try:
                phase.model.fit(
                    self.train,
                    epochs=epochs,
                    steps_per_epoch=self.steps,
                    validation_data=self.validation,
                    callbacks=[
                        StopOnNonFinite(progress),
                        EpochTracker(spec, progress, phase),
                        monitor,
                    ],
                    verbose=0,
                    shuffle=False,
                )
            except NonFiniteLossError:
                state = NOT_FINITE
        return Outcome(
            PRUNED if monitor.pruned else state,
            progress.best.get(metric),
            progress.best_epoch.get(metric),
            progress.epoch,
            time.monotonic() - start,
        )

    def _phase_model(self, spec: DataSpec) -> PhaseModel:
        """New heads of a spec, compiled for the phase."""
        # `prepare_phase` needs a network with a trunk; the features are cached, so this trunk is
        # the identity.
        inputs = keras.Input(self.feature_shape)
        trunk = keras.Model(inputs, keras.layers.Identity()(inputs), name="trunk")
        random.setstate(self.random_state)
        with computing_in(spec.precision):
            network = connect(trunk, build_heads(spec, self.feature_shape, self.table.classes))
        seed_phase(spec, HEADS_PHASE)
        weights = {
            task.name: class_weights(
                self.table.labels_of(task.name, TRAIN),
                len(self.table.classes[task.name]),
                exponent=task.class_weight_exponent,
            )
            for task in spec.tasks
        }
        return prepare_phase(
            network,
            spec,
            HEADS_PHASE,
            class_weights=weights,
            steps_per_epoch=self.steps,
            cached=True,
            extensions=build_extensions(spec),
        )


class _TrialMonitor(keras.callbacks.Callback):
    """Reports each epoch's score, stops a pruned trial and moves the progress bar."""

    def __init__(
        self,
        progress: Progress,
        tasks: tuple[str, ...],
        metric: str,
        should_prune: Callable[[int, float], bool],
        bar: ProgressBar,
    ):
        super().__init__()
        self.progress, self.tasks, self.metric = progress, tasks, metric
        self.should_prune, self.bar = should_prune, bar
        self.pruned = False

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.progress.step += 1
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        score = validation_scores(logs or {}, self.tasks)[self.metric]
        finished = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if self.should_prune(epoch, float(score)) and not finished:
            self.pruned = self.model.stop_training = True
