"""What happens around a step and after an epoch, under Keras' `fit`."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.files import RunError, replacing, writing
from multitask.learning.backend import has_strategy, synchronise, synchronise_batchnorm
from multitask.learning.checkpoints import BEST, Progress, save_checkpoint
from multitask.learning.optimizers import current_rates
from multitask.learning.phases import PhaseModel
from multitask.run import Run
from multitask.spec import DataSpec, field_of


class NonFiniteLoss(RunError):
    """The loss is infinite or NaN."""


class StopOnNonFinite(keras.callbacks.Callback):
    """Stop at the first loss that is not finite, and name the step."""

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss} at step {self.progress.step + 1} of epoch "
                f"{self.progress.phase_epoch + 1}; the models and checkpoints from before are "
                "kept. Lower the learning rates (rate_factor of the phase) and train in another "
                "workdir"
            )


@contextlib.contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Within it SIGTERM and Ctrl-C are noted in the list, not obeyed; a second one is obeyed."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only that one may ask
        yield noted
        return

    def note(number, frame):
        noted.append(number)
        restore()

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        restore()


class StepCounter(keras.callbacks.Callback):
    """Counts steps, and stops the run when it is asked to; writes nothing.

    Args:
        progress: its `step` is counted here.
        noted: signals that ask the run to stop.
        metrics: values that the metrics had at `progress.step`, in the middle of an epoch.
    """

    minutes = math.inf

    def __init__(self, progress: Progress, *, noted: list[int], metrics: Sequence[np.ndarray] = ()):
        super().__init__()
        self.progress, self.noted, self.metrics = progress, noted, metrics
        self.saved = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        if self.progress.step:  # `fit` has just reset them
            restore_metrics(self.model, self.metrics)

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step += 1
        if self.noted or time.monotonic() - self.saved > 60 * self.minutes:
            self._save(metric_values(self.model))
            self._stop_if_asked()

    def on_test_begin(self, logs=None):
        self.metrics = metric_values(self.model)  # of training; the test resets them

    def on_test_batch_end(self, batch, logs=None):
        if self.noted:
            self._save(self.metrics)
            self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        self._save()
        self._stop_if_asked()

    def _save(self, metrics: Sequence[np.ndarray] = ()) -> None:
        self.model.optimizer.use_averages(False)  # in a test they were the weights

    def _stop_if_asked(self) -> None:
        if self.noted:
            if self.noted[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + self.noted[0])


class Checkpointer(StepCounter):
    """Writes a checkpoint every so often, and when the run is asked to stop.

    It comes after all callbacks that remember something.

    Args:
        run: where it is written.
        progress: its `step` is counted here.
        prepared: whose variables are saved.
        minutes: from one checkpoint to the next.
        options: of StepCounter.
    """

    def __init__(
        self, run: Run, progress: Progress, prepared: PhaseModel, *, minutes: float, **options
    ):
        super().__init__(progress, **options)
        self.run, self.prepared, self.minutes = run, prepared, minutes

    def _save(self, metrics: Sequence[np.ndarray] = ()) -> None:
        synchronise(self.model)
        super()._save()
        save_checkpoint(self.run.checkpoint, self.prepared.variables, self.progress, metrics)
        self.saved = time.monotonic()


def metric_values(model: keras.Model) -> list[np.ndarray]:
    synchronise(model)
    return [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]


def restore_metrics(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(model.metrics_variables, values, strict=True):
        variable.assign(value)


def rename_logs(logs: dict) -> None:
    """Keras' `top1/artist` -> `artist/top1`, `val_top1/artist` -> `artist/val_top1`; in place."""
    renamed = {}
    for name, value in logs.items():
        field, slash, task = name.partition("/")
        renamed[field_of(task, field) if slash else name] = value
    logs.clear()  # only now: `val_loss/top1` is a name before and another one after
    logs |= renamed


def selection_scores(logs: dict, tasks: tuple[str, ...]) -> dict[str, float]:
    """Macro-F1 on the selection split, `artist/macro_f1` of each task that has labels there, and
    their mean, BEST."""
    scores = {
        field_of(task, "macro_f1"): logs[field_of(task, "val_macro_f1")]
        for task in tasks
        if logs.get(field_of(task, "val_labelled"), 0) > 0
    }
    if scores:
        scores[BEST] = sum(scores.values()) / len(scores)
    return scores


class EpochMemory(keras.callbacks.Callback):
    """The best scores, early stopping, plateau reduction and history; writes nothing.

    What is evaluated and saved as a best model are the weights' moving averages, where the
    optimizer keeps them; what is trained on are the weights.

    Args:
        spec: its early stopping and plateau reduction.
        progress: what is kept up to date.
        prepared: its plateau factor is lowered.
    """

    def __init__(self, spec: DataSpec, progress: Progress, prepared: PhaseModel):
        super().__init__()
        self.spec, self.progress, self.prepared = spec, progress, prepared

    def on_test_begin(self, logs=None):
        self.model.optimizer.use_averages(True)

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        rename_logs(logs)  # for the callbacks after this one, too
        progress, spec = self.progress, self.spec
        progress.epoch += 1
        progress.phase_epoch += 1
        progress.step = 0
        scores = selection_scores(logs, spec.task_names)
        if BEST in scores:
            logs["val_macro_f1"] = scores[BEST]
        self.model.optimizer.use_averages(True)  # no test, no averages yet
        improved = self._keep_best(scores)
        self.model.optimizer.use_averages(False)
        logs["improved"] = BEST in improved
        logs |= current_rates(self.model.optimizer)
        weights = self.model.balancing.weights_now()
        logs |= {field_of(task, "weight"): weight for task, weight in weights.items()}
        self._wait(BEST in improved, bool(scores))
        row = {"epoch": progress.epoch, "phase": progress.phase}
        progress.history.append(row | {key: float(value) for key, value in logs.items()})

    def _keep_best(self, scores: dict[str, float]) -> set[str]:
        """Note what became the best, and return it."""
        progress = self.progress
        if not scores:  # nothing to choose by: the last epoch is the best
            scores = {BEST: float(progress.epoch)}
        # A tie goes to the earlier epoch; NaN never wins.
        improved = {
            name for name, score in scores.items() if score > progress.best.get(name, -math.inf)
        }
        for name in sorted(improved):
            progress.best[name] = float(scores[name])
            progress.best_epoch[name] = progress.epoch
        return improved

    def _wait(self, improved: bool, judged: bool) -> None:
        """Early stopping and plateau reduction; both count over the phases."""
        progress, spec = self.progress, self.spec
        if improved or not judged:
            progress.waited = progress.plateau_waited = 0
            return
        progress.waited += 1
        progress.plateau_waited += 1
        for schedule in self.model.optimizer.schedules.values():
            schedule.after_epoch(progress.waited)
        if progress.plateau_waited >= spec.plateau.patience:
            progress.plateau = max(progress.plateau * spec.plateau.factor, spec.plateau.least)
            progress.plateau_waited = 0
            self.prepared.plateau.assign(progress.plateau)
        if progress.waited >= spec.early_stopping.patience:
            self.model.stop_training = True


class EpochEnd(EpochMemory):
    """The memory of a run, and what it writes: best models, history, TensorBoard.

    Args:
        run: where things are written.
        progress: what is kept up to date.
        prepared: its plain model is saved as best, its plateau factor lowered.
        per_task: save each task's own best epoch too.
    """

    def __init__(self, run: Run, progress: Progress, prepared: PhaseModel, *, per_task: bool):
        super().__init__(run.spec, progress, prepared)
        self.run, self.per_task = run, per_task
        with writing(run.logs):
            self.writer = tf.summary.create_file_writer(str(run.logs / "tensorboard"))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._log(self.progress.history)

    def _keep_best(self, scores: dict[str, float]) -> set[str]:
        """Save the models that became the best, and return which."""
        improved = super()._keep_best(scores)
        for name in sorted(improved):
            if name == BEST:
                save_model(self.prepared.plain, self.run.best_model)
            elif self.per_task:
                save_model(self.prepared.plain, self.run.best_model_of(name.split("/")[0]))
        return improved

    def _log(self, history: list[dict]) -> None:
        write_history(self.run, history)
        with writing(self.run.logs), self.writer.as_default(step=history[-1]["epoch"]):
            for name, value in history[-1].items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
            self.writer.flush()


def save_model(model: keras.Model, path) -> None:
    """Write a `.keras` file, whole or not at all."""
    if has_strategy():
        synchronise_batchnorm(model, False)  # the file is for every backend
    with replacing(path) as temporary:
        model.save(temporary)
    if has_strategy():
        synchronise_batchnorm(model, True)


def write_history(run: Run, history: list[dict]) -> None:
    with replacing(run.logs / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


class Console(keras.callbacks.Callback):
    """A bar while an epoch runs (on a terminal), and a line when it is over."""

    def __init__(self, progress: Progress, tasks: tuple[str, ...], steps: int, pictures: int):
        super().__init__()
        self.progress, self.tasks, self.steps, self.pictures = progress, tasks, steps, pictures
        self.bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self.place = f"{self.progress.phase} {epoch + 1}/{self.params['epochs']}"
        self.first = self.progress.step
        self.bar = tqdm(
            total=self.steps,
            initial=self.first,
            desc=self.place,
            unit=" steps",
            leave=False,
            disable=None,
        )
        self.began = self.after_first = self.trained = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:  # the first step of a phase compiles
            self.after_first = time.monotonic()
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update()
        self.trained = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        logs = logs or {}
        timed = self.steps - self.first - 1
        speed = timed / self.steps * self.pictures / max(self.trained - self.after_first, 1e-9)
        parts = [f"{self.place:<15} loss {logs['loss']:.4f}"]
        for task in self.tasks:
            parts.append(f"{task} {_scores(logs, task, '')} → {_scores(logs, task, 'val_')}")
        if "val_macro_f1" in logs:
            parts.append(f"selection F1 {logs['val_macro_f1']:.3f}{' *' * logs['improved']}")
        speed_text = f"{speed:.0f} images/s, " if timed > 0 else ""
        parts.append(f"{speed_text}{time.monotonic() - self.began:.0f} s")
        print("  ".join(parts), flush=True)

    def on_train_end(self, logs=None):
        if self.bar is not None:
            self.bar.close()


def _scores(logs: dict, task: str, prefix: str) -> str:
    """`.812/.790`: top-1 and macro-F1; `n/a` where the task had no label."""
    if not logs.get(field_of(task, f"{prefix}labelled")):
        return "n/a"
    figures = (logs[field_of(task, prefix + name)] for name in ("top1", "macro_f1"))
    return "/".join(f"{figure:.3f}" for figure in figures)


def say(text: str = "") -> None:
    """A line for the person at the terminal, in order with the bars on stderr."""
    sys.stderr.flush()
    print(text, flush=True)
