"""Callbacks of `fit`: checkpoints, best models, early stopping, history and the console."""

import contextlib
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from multitask.backend import has_strategy, synchronise, synchronise_batchnorm
from multitask.console import progress_bar
from multitask.disk import writing
from multitask.errors import RunError
from multitask.files import replacing
from multitask.learning.checkpoints import BEST, Progress, save_checkpoint
from multitask.learning.optimizers import current_rates
from multitask.learning.phases import PhaseModel
from multitask.run import Run
from multitask.spec import DataSpec, field_of

logger = logging.getLogger(__name__)


class NonFiniteLossError(RunError):
    """The loss is infinite or NaN."""


class StopOnNonFinite(keras.callbacks.Callback):
    """Stop at the first loss that is not finite, and name the step.

    Args:
        progress: the position in the run, for the message.
    """

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Check the loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} at step {self.progress.step + 1} of epoch "
                f"{self.progress.phase_epoch + 1}; the earlier models and checkpoints are "
                "kept. Lower the learning rates (rate_factor of the phase) and train in another "
                "workdir"
            )


@contextlib.contextmanager
def collecting_signals(*, enabled: bool) -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C in the yielded list; a second signal acts as usual.

    Args:
        enabled: install the handlers; otherwise the list stays empty.
    """
    received: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not enabled or not main:
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        restore()


class StepCounter(keras.callbacks.Callback):
    """Counts steps, and stops the run after a signal; writes nothing.

    Args:
        progress: its `step` is counted here.
        received: signals received so far.
        metrics: values of the metrics at `progress.step`, if that is in the middle of an epoch.
    """

    minutes = math.inf

    def __init__(
        self, progress: Progress, *, received: list[int], metrics: Sequence[np.ndarray] = ()
    ):
        super().__init__()
        self.progress, self.received, self.metrics = progress, received, metrics
        self.saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Restore the metrics in the middle of an epoch."""
        if self.progress.step:  # `fit` has just reset them
            restore_metrics(self.model, self.metrics)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Count the step; save after a signal or when a checkpoint is due."""
        self.progress.step += 1
        if self.received or time.monotonic() - self.saved > 60 * self.minutes:
            self._save(metric_values(self.model))
            self._stop_if_signalled()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Keep the training metrics, which the validation resets."""
        self.metrics = metric_values(self.model)

    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Save and stop after a signal."""
        if self.received:
            self._save(self.metrics)
            self._stop_if_signalled()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save the end of the epoch."""
        self._save()
        self._stop_if_signalled()

    def _save(self, metrics: Sequence[np.ndarray] = ()) -> None:
        self.model.optimizer.use_averages(False)  # validation uses the averages as weights

    def _stop_if_signalled(self) -> None:
        if self.received:
            if self.received[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + self.received[0])


class Checkpointer(StepCounter):
    """Writes a checkpoint at intervals, and before the run stops after a signal.

    It must come after all callbacks that change the progress.

    Args:
        run: the workdir of the checkpoints.
        progress: its `step` is counted here.
        phase_model: its variables are saved.
        minutes: time between two checkpoints.
        options: arguments of StepCounter.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        phase_model: PhaseModel,
        *,
        minutes: float,
        **options: Any,
    ):
        super().__init__(progress, **options)
        self.run, self.phase_model, self.minutes = run, phase_model, minutes

    def _save(self, metrics: Sequence[np.ndarray] = ()) -> None:
        synchronise(self.model)
        super()._save()
        save_checkpoint(self.run.checkpoint, self.phase_model.variables, self.progress, metrics)
        self.saved = time.monotonic()


def metric_values(model: keras.Model) -> list[np.ndarray]:
    """Return the values of the metrics' variables."""
    synchronise(model)
    return [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]


def restore_metrics(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    """Assign the values of the metrics' variables."""
    for variable, value in zip(model.metrics_variables, values, strict=True):
        variable.assign(value)


def rename_logs(logs: dict) -> None:
    """Rename `top1/artist` to `artist/top1`, `val_top1/artist` to `artist/val_top1`; in place."""
    renamed = {}
    for name, value in logs.items():
        field, slash, task = name.partition("/")
        renamed[field_of(task, field) if slash else name] = value
    logs.clear()  # only now: an old and a new name may be equal
    logs |= renamed


def validation_scores(logs: dict, tasks: tuple[str, ...]) -> dict[str, float]:
    """Return macro-F1 on the validation split: per task with labels, and the mean as BEST."""
    scores = {
        field_of(task, "macro_f1"): logs[field_of(task, "val_macro_f1")]
        for task in tasks
        if logs.get(field_of(task, "val_labelled"), 0) > 0
    }
    if scores:
        scores[BEST] = sum(scores.values()) / len(scores)
    return scores


class EpochTracker(keras.callbacks.Callback):
    """Tracks best scores, early stopping, plateau reduction and history; writes nothing.

    If the optimizer keeps moving averages of the weights, the averages are evaluated and saved as
    best models, and training continues with the weights.

    Args:
        spec: its early stopping and plateau reduction are used.
        progress: kept up to date here.
        phase_model: its plateau factor is lowered.
    """

    def __init__(self, spec: DataSpec, progress: Progress, phase_model: PhaseModel):
        super().__init__()
        self.spec, self.progress, self.phase_model = spec, progress, phase_model

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Evaluate the moving averages."""
        self.model.optimizer.use_averages(True)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Update the progress and add the epoch to the history."""
        logs = {} if logs is None else logs
        rename_logs(logs)  # for the callbacks after this one, too
        progress, spec = self.progress, self.spec
        progress.epoch += 1
        progress.phase_epoch += 1
        progress.step = 0
        scores = validation_scores(logs, spec.main_tasks)
        if BEST in scores:
            logs["val_macro_f1"] = scores[BEST]
        self.model.optimizer.use_averages(True)  # not yet in use if there was no validation
        improved = self._keep_best(scores)
        self.model.optimizer.use_averages(False)
        logs["improved"] = BEST in improved
        logs |= current_rates(self.model.optimizer)
        weights = self.model.balancer.current_weights()
        logs |= {field_of(task, "weight"): weight for task, weight in weights.items()}
        self._wait(BEST in improved, bool(scores))
        row = {"epoch": progress.epoch, "phase": progress.phase}
        progress.history.append(row | {key: float(value) for key, value in logs.items()})

    def _keep_best(self, scores: dict[str, float]) -> set[str]:
        """Update the best scores, and return the names of those that improved."""
        progress = self.progress
        if not scores:  # without a validation split the last epoch is the best
            scores = {BEST: float(progress.epoch)}
        # In a tie the earlier epoch stays the best; NaN is never better.
        improved = {
            name for name, score in scores.items() if score > progress.best.get(name, -math.inf)
        }
        for name in sorted(improved):
            progress.best[name] = float(scores[name])
            progress.best_epoch[name] = progress.epoch
        return improved

    def _wait(self, improved: bool, validated: bool) -> None:
        """Apply early stopping and plateau reduction; both count epochs over both phases."""
        progress, spec = self.progress, self.spec
        if improved or not validated:
            progress.waited = progress.plateau_waited = 0
            return
        progress.waited += 1
        progress.plateau_waited += 1
        for schedule in self.model.optimizer.schedules.values():
            schedule.after_epoch(progress.waited)
        if progress.plateau_waited >= spec.plateau.patience:
            progress.plateau = max(progress.plateau * spec.plateau.factor, spec.plateau.least)
            progress.plateau_waited = 0
            self.phase_model.plateau.assign(progress.plateau)
        if progress.waited >= spec.early_stopping.patience:
            self.model.stop_training = True


class EpochRecorder(EpochTracker):
    """EpochTracker that also writes: best models, history, TensorBoard.

    Args:
        run: the workdir.
        progress: kept up to date here.
        phase_model: its plain model is saved as best, its plateau factor lowered.
        per_task: save each task's own best epoch too.
    """

    def __init__(self, run: Run, progress: Progress, phase_model: PhaseModel, *, per_task: bool):
        super().__init__(run.spec, progress, phase_model)
        self.run, self.per_task = run, per_task
        with writing(run.logs):
            self.writer = tf.summary.create_file_writer(str(run.logs / "tensorboard"))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Update the progress and write."""
        super().on_epoch_end(epoch, logs)
        self._log(self.progress.history)

    def _keep_best(self, scores: dict[str, float]) -> set[str]:
        """Save the models that improved, and return their names."""
        improved = super()._keep_best(scores)
        files = [
            self.run.best_model if name == BEST else self.run.best_model_of(name.split("/")[0])
            for name in sorted(improved)
            if name == BEST or self.per_task
        ]
        if files:
            save_model(self.phase_model.plain, files[0])
        for file in files[1:]:  # the same model; Keras needs a second to serialise it
            with replacing(file) as temporary:
                shutil.copyfile(files[0], temporary)
        return improved

    def _log(self, history: list[dict]) -> None:
        write_history(self.run, history)
        with writing(self.run.logs), self.writer.as_default(step=history[-1]["epoch"]):
            for name, value in history[-1].items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
            self.writer.flush()


def save_model(model: keras.Model, path: Path) -> None:
    """Write a `.keras` file atomically."""
    if has_strategy():
        synchronise_batchnorm(model, False)  # every backend must be able to read the file
    with replacing(path) as temporary:
        model.save(temporary)
    if has_strategy():
        synchronise_batchnorm(model, True)


def write_history(run: Run, history: list[dict]) -> None:
    """Write history.csv, one row per epoch."""
    with replacing(run.logs / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


class Console(keras.callbacks.Callback):
    """A progress bar during an epoch (on a terminal), and a line after it.

    Args:
        progress: the position in the run.
        tasks: names of the tasks.
        epochs: number of epochs of the phase. (Keras' own number is smaller in the `fit` that ends
            a resumed epoch.)
        steps: number of steps per epoch.
        images: number of images per epoch.
    """

    def __init__(
        self, progress: Progress, tasks: tuple[str, ...], *, epochs: int, steps: int, images: int
    ):
        super().__init__()
        self.epochs = epochs
        self.progress, self.tasks, self.steps, self.images = progress, tasks, steps, images
        self.bar = progress_bar("", 0, hidden=True)  # until an epoch begins

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Show the bar."""
        self.place = f"{self.progress.phase} {epoch + 1}/{self.epochs}"
        self.first = self.progress.step
        self.bar = progress_bar(self.place, self.steps, initial=self.first, unit=" steps")
        self.began = self.after_first = self.trained = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Move the bar."""
        if batch == 0:  # the first step of a phase compiles
            self.after_first = time.monotonic()
        self.bar.set_postfix(loss=f"{(logs or {})['loss']:.4f}", refresh=False)
        self.bar.update()
        self.trained = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Log the epoch's line."""
        self.bar.close()
        logs = logs or {}
        timed = self.steps - self.first - 1
        speed = timed / self.steps * self.images / max(self.trained - self.after_first, 1e-9)
        columns = [f"{self.place:<15} loss {logs['loss']:.4f}"]
        for task in self.tasks:
            columns.append(f"{task} {_scores(logs, task, '')} → {_scores(logs, task, 'val_')}")
        if "val_macro_f1" in logs:
            columns.append(f"validation F1 {logs['val_macro_f1']:.3f}{' *' * logs['improved']}")
        speed_text = f"{speed:.0f} images/s, " if timed > 0 else ""
        columns.append(f"{speed_text}{time.monotonic() - self.began:.0f} s")
        logger.info("  ".join(columns))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Close the bar."""
        self.bar.close()


def _scores(logs: dict, task: str, prefix: str) -> str:
    """Format top-1 and macro-F1 as `.812/.790`; `n/a` where the task had no label."""
    if not logs.get(field_of(task, f"{prefix}labelled")):
        return "n/a"
    scores = (logs[field_of(task, prefix + name)] for name in ("top1", "macro_f1"))
    return "/".join(f"{score:.3f}" for score in scores)
