"""Callbacks, called with logs that are written by hand."""

import os
import signal
import threading
import time

import keras
import numpy as np
import pandas as pd
import pytest
from logged import logged
from specs import spec_of

from multitask.disk import DiskError
from multitask.errors import RunError
from multitask.learning import callbacks
from multitask.learning.callbacks import (
    Checkpointer,
    Console,
    EpochRecorder,
    StopOnNonFinite,
    collecting_signals,
    save_model,
    validation_scores,
)
from multitask.learning.checkpoints import Progress, find_checkpoint
from multitask.learning.phases import prepare_phase
from multitask.model.heads import build_head
from multitask.model.network import connect, trunk_and_heads
from multitask.run import Run

TASKS = ("colour", "shape")
NAN = float("nan")


def make_spec(patience=12, plateau_patience=4, factor=0.5, least=0.01):
    schedule = {"kind": "constant", "rate": 1e-2}
    return spec_of(
        *TASKS,
        of_tasks={"schedule": schedule},
        trunk={"schedule": schedule},
        image_size=32,
        early_stopping={"patience": patience},
        plateau={"patience": plateau_patience, "factor": factor, "least": least},
    )


class Driver:
    """A run whose epochs get their scores from the test; the heads' biases identify the epoch."""

    def __init__(self, workdir, progress=None, per_task=True, **settings):
        spec = make_spec(**settings)
        inputs = keras.Input((8, 8, 3))
        trunk = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name="trunk")
        heads = {task: build_head(spec, task, (6, 6, 2), 2) for task in TASKS}
        self.progress = progress or Progress(phase="heads")
        self.prepared = prepare_phase(
            connect(trunk, heads),
            spec,
            "heads",
            class_weights={task: np.ones(2, np.float32) for task in TASKS},
            steps_per_epoch=1,
            plateau=self.progress.plateau,
        )
        self.run = Run(workdir, spec, workdir)
        epoch_end = EpochRecorder(self.run, self.progress, self.prepared, per_task=per_task)
        self.received = []
        checkpointer = Checkpointer(
            self.run, self.progress, self.prepared, minutes=10.0, received=self.received
        )
        self.callbacks = [epoch_end, checkpointer]  # in the order in which training has them
        for callback in self.callbacks:
            callback.set_model(self.prepared.model)
        self.prepared.model.stop_training = False

    def epoch(self, colour=None, shape=None):
        """One epoch of these macro-F1; None: the task has no label on the validation split.

        The logs have Keras' names before it and ours after it.
        """
        number = self.progress.epoch + 1
        head = trunk_and_heads(self.prepared.model)[1]["colour"]
        head.get_layer("colour_logits").bias.assign([number, 0])
        logs = {"loss": 1.0 / number}
        for task, score in (("colour", colour), ("shape", shape)):
            logs[f"val_labelled/{task}"] = 0.0 if score is None else 5.0
            logs[f"val_macro_f1/{task}"] = 0.0 if score is None else score
        for callback in self.callbacks:
            callback.on_epoch_end(self.progress.phase_epoch, logs)
        return logs

    @property
    def stopped(self):
        return self.prepared.model.stop_training

    def saved_in(self, path):
        """The epoch in which a model was saved."""
        head = trunk_and_heads(keras.saving.load_model(path))[1]["colour"]
        return int(head.get_layer("colour_logits").bias.numpy()[0])


# === The best ===


def test_scores_leave_out_tasks_without_labels():
    logs = {
        "a/val_macro_f1": 0.5,
        "a/val_labelled": 3.0,
        "b/val_macro_f1": 0.0,
        "b/val_labelled": 0.0,
        "c/val_macro_f1": 0.1,
        "c/val_labelled": 1.0,
    }
    assert validation_scores(logs, ("a", "b", "c")) == {
        "a/macro_f1": 0.5,
        "c/macro_f1": 0.1,
        "macro_f1": pytest.approx(0.3),
    }
    assert validation_scores(logs, ("b",)) == {}
    assert validation_scores({"loss": 1.0}, ("a", "b")) == {}


def test_the_best_over_all_and_of_each_task(tmp_path):
    driver = Driver(tmp_path)
    for colour, shape in [(0.2, 0.6), (0.7, 0.3), (0.1, 0.8), (0.6, 0.2)]:
        driver.epoch(colour, shape)
    # Means: .4, .5, .45, .4.
    assert driver.progress.best_epoch == {
        "macro_f1": 2,
        "colour/macro_f1": 2,
        "shape/macro_f1": 3,
    }
    assert driver.progress.best == pytest.approx(
        {"macro_f1": 0.5, "colour/macro_f1": 0.7, "shape/macro_f1": 0.8}
    )
    assert driver.saved_in(driver.run.best_model) == 2
    assert driver.saved_in(driver.run.best_model_of("colour")) == 2
    assert driver.saved_in(driver.run.best_model_of("shape")) == 3
    assert len(list(driver.run.models.iterdir())) == 3


def test_without_per_task_files(tmp_path):
    driver = Driver(tmp_path, per_task=False)
    driver.epoch(0.2, 0.6)
    assert [path.name for path in driver.run.models.iterdir()] == ["best_model.keras"]
    assert set(driver.progress.best_epoch.values()) == {1}


def test_a_tie_goes_to_the_earlier_epoch_and_nan_never_wins(tmp_path):
    driver = Driver(tmp_path)
    improved = [driver.epoch(*scores)["improved"] for scores in [(NAN, NAN), (0.5, 0.25)]]
    improved += [driver.epoch(*scores)["improved"] for scores in [(0.5, 0.25), (NAN, 0.9)]]
    assert improved == [False, True, False, False]
    assert list(driver.progress.best_epoch.values()) == [2, 2, 4]
    assert driver.saved_in(driver.run.best_model) == 2
    assert driver.progress.waited == 2


def test_a_score_of_0_is_better_than_none(tmp_path):
    driver = Driver(tmp_path)
    assert driver.epoch(0.0, 0.0)["improved"]
    assert driver.run.best_model.is_file()


def test_without_a_validation_split_the_last_epoch_is_the_best(tmp_path):
    driver = Driver(tmp_path, patience=2, plateau_patience=1)
    for _ in range(4):
        assert "val_macro_f1" not in driver.epoch()
    assert driver.progress.best_epoch == {"macro_f1": 4}
    assert driver.saved_in(driver.run.best_model) == 4
    assert not driver.stopped
    assert driver.progress.waited == 0
    assert driver.progress.plateau == 1


# === Waiting ===


def test_early_stopping(tmp_path):
    driver = Driver(tmp_path, patience=3)
    stopped = []
    for score in (0.5, 0.4, 0.4, 0.6, 0.6, 0.1, 0.2):
        driver.epoch(score, score)
        stopped.append(driver.stopped)
    # The sixth, fifth and seventh are no better than the fourth.
    assert stopped == [False] * 6 + [True]
    assert driver.progress.waited == 3


def test_patience_is_counted_over_the_phases(tmp_path):
    driver = Driver(tmp_path, patience=3)
    driver.epoch(0.5, 0.5)
    driver.epoch(0.4, 0.4)
    progress = find_checkpoint(driver.run.checkpoint).progress
    progress.phase, progress.phase_epoch = "finetune", 0
    driver = Driver(tmp_path, progress, patience=3)
    driver.epoch(0.4, 0.4)
    assert not driver.stopped
    driver.epoch(0.4, 0.4)
    assert driver.stopped
    assert (driver.progress.epoch, driver.progress.phase_epoch) == (4, 2)
    assert driver.progress.best_epoch["macro_f1"] == 1


def test_plateau_reduction(tmp_path):
    driver = Driver(tmp_path, plateau_patience=2, factor=0.1, least=0.05)
    factors, rates = [], []
    for score in (0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5):
        rates.append(driver.epoch(score, score)["colour/rate"])
        factors.append(float(driver.prepared.plateau.value))
    # Two in vain after the first; two in vain after the fourth, down to the least.
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.05, 0.05])
    # The rate that is logged is the one the epoch was trained with.
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 5e-4])
    assert driver.progress.plateau == pytest.approx(0.05)
    assert driver.progress.plateau_waited == 1
    assert find_checkpoint(driver.run.checkpoint).progress == driver.progress


# === What is written ===


def test_history_and_checkpoint_of_each_epoch(tmp_path):
    driver = Driver(tmp_path)
    for score in (0.25, 0.5, 0.125):
        driver.epoch(score, None)
    history = pd.read_csv(driver.run.logs / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["phase"].tolist() == ["heads"] * 3
    assert history["val_macro_f1"].tolist() == [0.25, 0.5, 0.125]  # of colour alone
    assert history["improved"].tolist() == [1, 1, 0]
    assert history["loss"].tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert set(driver.progress.best) == {"macro_f1", "colour/macro_f1"}
    assert not driver.run.best_model_of("shape").exists()
    assert find_checkpoint(driver.run.checkpoint).progress == driver.progress
    assert len(driver.progress.history) == 3
    assert list((driver.run.logs / "tensorboard").iterdir())


def test_events_on_a_full_disk_are_one_error(small_disk, monkeypatch):
    """TensorFlow's writer raises a kind of its own, when it is made and when it writes."""
    disk = small_disk(10**6)
    driver = Driver(disk.files)
    driver.epoch(0.5, 0.5)
    monkeypatch.setattr(callbacks, "write_history", lambda *_: None)
    disk.leave(0)
    line = f"^{driver.run.logs}: no room on the disk .more needed, 0 bytes free"
    row = {"epoch": 2} | {f"figure_{number}": 1.0 for number in range(100)}
    with pytest.raises(DiskError, match=line):
        driver.callbacks[0]._log([row])
    with pytest.raises(DiskError, match=line):
        Driver(disk.files)


def test_a_model_is_written_whole_or_not_at_all(tmp_path):
    class Fails:
        def save(self, path):
            path.write_text("half")
            raise OSError("No space left on device")

    path = tmp_path / "best_model.keras"
    path.write_text("the one before")
    with pytest.raises(DiskError, match="no room on the disk"):
        save_model(Fails(), path)
    assert path.read_text() == "the one before"
    assert [p.name for p in tmp_path.iterdir()] == ["best_model.keras"]


# === A loss that is not finite ===


@pytest.mark.parametrize("loss", [NAN, float("inf"), np.float32("-inf")])
def test_a_loss_that_is_not_finite_names_the_step(loss):
    progress = Progress("heads", phase_epoch=2)
    callback = StopOnNonFinite(progress)
    callback.on_train_batch_end(0, {"loss": 1e30})
    callback.on_train_batch_end(15, {"loss": 0.0})
    # After a start in the middle of an epoch, `fit` counts batches from 0 again.
    progress.step = 16
    with pytest.raises(RunError, match="at step 17 of epoch 3;") as error:
        callback.on_train_batch_end(1, {"loss": loss})
    assert "\n" not in str(error.value)


class CountSteps(keras.callbacks.Callback):
    def __init__(self, progress):
        super().__init__()
        self.progress = progress

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step += 1


def test_it_stops_fit():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.ones((4, 1), np.float32)
    x[2] = NAN
    progress = Progress("heads")
    callbacks = [StopOnNonFinite(progress), CountSteps(progress)]
    with pytest.raises(RunError, match="the loss is nan at step 3 of epoch 1"):
        model.fit(x, x, batch_size=1, shuffle=False, verbose=0, callbacks=callbacks)


# === The line of an epoch ===


def test_the_line_of_an_epoch(monkeypatch):
    # Begin; the first step, twice; the others; end.
    clock = iter([10.0, 12.0, 12.0, 14.0, 16.0, 18.0, 20.0, 21.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    console = Console(Progress(phase="heads"), TASKS, epochs=7, steps=5, images=100)
    console.on_epoch_begin(1)
    for batch in range(5):
        console.on_train_batch_end(batch, {"loss": 0.5})
    logs = {"loss": 0.25, "val_macro_f1": 0.5, "improved": True}
    logs |= {"colour/labelled": 9, "colour/top1": 0.75, "colour/macro_f1": 0.5}
    logs |= {"colour/val_labelled": 3, "colour/val_top1": 1.0, "colour/val_macro_f1": 0.5}
    logs |= {"shape/labelled": 2, "shape/top1": 0.0, "shape/macro_f1": 0.0}
    with logged() as lines:
        console.on_epoch_end(1, logs | {"shape/val_labelled": 0.0})
    # 4 of the 5 steps, so 80 of the 100 images, took 8 s: the first compiles.
    assert lines == [
        "heads 2/7       loss 0.2500  colour 0.750/0.500 → 1.000/0.500  "
        "shape 0.000/0.000 → n/a  validation F1 0.500 *  10 images/s, 11 s"
    ]


def test_the_line_of_a_resumed_epoch(monkeypatch):
    clock = iter([10.0, 12.0, 12.0, 16.0, 20.0, 21.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    console = Console(Progress("finetune", step=2), (), epochs=3, steps=5, images=100)
    console.set_params({"epochs": 2})  # of the `fit` that ends this epoch
    console.on_epoch_begin(1)
    for batch in range(3):
        console.on_train_batch_end(batch, {"loss": 0.5})
    with logged() as lines:
        console.on_epoch_end(1, {"loss": 0.25})
    # Of the 3 steps that were left, 2 are timed: 40 images in 8 s.
    assert lines == ["finetune 2/3    loss 0.2500  5 images/s, 11 s"]


def test_the_line_of_an_epoch_without_steps_left():
    console = Console(Progress("heads", step=5), (), epochs=2, steps=5, images=100)
    console.on_epoch_begin(0)
    with logged() as lines:
        console.on_epoch_end(0, {"loss": 0.25})
    assert lines == ["heads 1/2       loss 0.2500  0 s"]


# === Checkpoints ===


class Saves:
    """Which (epoch, step) were saved, and a clock that each step moves on."""

    def __init__(self, driver, monkeypatch):
        self.progress, self.times, self.now = driver.progress, [], 0.0
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: self.now)
        original = callbacks.save_checkpoint

        def save(folder, variables, progress, metrics=()):
            original(folder, variables, progress, metrics)
            self.times.append((progress.phase_epoch, progress.step))

        monkeypatch.setattr(callbacks, "save_checkpoint", save)


def test_a_checkpoint_every_so_many_minutes_and_at_each_epochs_end(tmp_path, monkeypatch):
    driver = Driver(tmp_path)
    saves = Saves(driver, monkeypatch)
    checkpointer = driver.callbacks[1]
    checkpointer.saved = 0.0
    for _ in range(2):
        for batch in range(5):
            saves.now += 241.0  # four minutes and a second
            checkpointer.on_train_batch_end(batch, {"loss": 1.0})
        driver.epoch(0.5, 0.5)
    # 10 minutes are over after the third step; the clock starts anew at each checkpoint.
    assert saves.times == [(0, 3), (1, 0), (1, 3), (2, 0)]
    checkpoint = find_checkpoint(driver.run.checkpoint)
    assert checkpoint.progress == driver.progress
    assert (checkpoint.progress.epoch, checkpoint.progress.step) == (2, 0)


@pytest.mark.parametrize(
    ("number", "raised", "code"),
    [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)],
)
@pytest.mark.parametrize("when", ["step", "test", "epoch"])
def test_a_signal_is_obeyed_after_a_checkpoint(when, number, raised, code, tmp_path):
    """In a step and in the test it is received; what is whole then is saved."""
    driver = Driver(tmp_path)
    checkpointer = driver.callbacks[1]
    metric = driver.prepared.model.metrics[0]
    with collecting_signals(enabled=True) as received:
        checkpointer.received = received
        checkpointer.on_train_batch_end(0, {"loss": 1.0})
        metric.update_state(2.5)
        checkpointer.on_train_batch_end(1, {"loss": 1.0})
        if when == "test":
            checkpointer.on_test_begin()
            metric.reset_state()  # as `evaluate` does
        os.kill(os.getpid(), number)
        assert received == [number]
        reach = {
            "step": lambda: checkpointer.on_train_batch_end(2, {"loss": 1.0}),
            "test": lambda: checkpointer.on_test_batch_end(0),
        }.get(when, lambda: driver.epoch(0.5, 0.5))
        with pytest.raises(raised) as caught:
            reach()
    if code:
        assert caught.value.code == code
    checkpoint = find_checkpoint(driver.run.checkpoint)
    step = {"step": 3, "test": 2, "epoch": 0}[when]
    assert (checkpoint.progress.step, checkpoint.progress.phase_epoch) == (
        step,
        int(when == "epoch"),
    )
    metrics = driver.prepared.restore(checkpoint.folder)
    if when == "epoch":
        assert metrics == []
    else:  # those of training, not of the test
        restored = Driver(tmp_path / "again").prepared.model
        callbacks.restore_metrics(restored, metrics)
        assert float(restored.metrics[0].result()) == 2.5


def test_metrics_are_put_back_where_an_epoch_is_gone_on_with(tmp_path):
    driver = Driver(tmp_path)
    model = driver.prepared.model
    model.metrics[0].update_state(2.5)
    model.metrics[0].update_state(1.5)
    kept = callbacks.metric_values(model)
    model.reset_metrics()
    for step, want in [(0, 0.0), (2, 2.0)]:
        progress = Progress("heads", step=step)
        checkpointer = Checkpointer(
            driver.run, progress, driver.prepared, minutes=1, received=[], metrics=kept
        )
        checkpointer.set_model(model)
        checkpointer.on_epoch_begin(0)
        assert float(model.metrics[0].result()) == want


def test_a_second_signal_acts_at_once_and_the_handlers_are_restored():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    lists = []

    def two_signals():
        with collecting_signals(enabled=True) as received:
            lists.append(received)
            os.kill(os.getpid(), signal.SIGINT)
            assert received == [signal.SIGINT]
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        two_signals()
    assert lists == [[signal.SIGINT]]
    assert {n: signal.getsignal(n) for n in before} == before
    with collecting_signals(enabled=True) as received:
        assert received == []
    assert {n: signal.getsignal(n) for n in before} == before


def test_another_thread_installs_no_signal_handlers():
    seen = []

    def work():
        with collecting_signals(enabled=True) as received:
            seen.append(received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]
