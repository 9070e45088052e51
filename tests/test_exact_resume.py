"""A run that was stopped and resumed ends with the same bits as one that was not stopped."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from logged import logged

import multitask as mt
from multitask.annexes.extensions import build_extensions
from multitask.learning import training
from multitask.learning.callbacks import Checkpointer
from multitask.learning.checkpoints import find_checkpoint
from multitask.learning.training import train
from multitask.spec import InputError, find_spec, override

IMAGES, STEPS, TESTS = 25, 4, 2  # 18 are trained on and 7 held out, in batches of 5


class StoppedError(Exception):
    pass


# === What must be the same ===


def saved_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights in a model's file; to make the network of them would take a hundred times as
    long."""
    arrays: dict[str, np.ndarray] = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with (
        zipfile.ZipFile(path) as file,
        file.open("model.weights.h5") as content,
        h5py.File(content) as weights,
    ):
        weights.visititems(keep)
    return arrays


def assert_same_end(workdir: Path, whole: Path) -> None:
    """All models, the last checkpoint's variables, progress and history; bit by bit."""
    names = sorted(path.name for path in (whole / "models").iterdir())
    assert sorted(path.name for path in (workdir / "models").iterdir()) == names != []
    for name in names:
        mine, theirs = (saved_weights(folder / "models" / name) for folder in (workdir, whole))
        assert mine.keys() == theirs.keys()
        assert len(mine) > 10
        for weight, value in theirs.items():
            np.testing.assert_array_equal(mine[weight], value, err_msg=f"{name}: {weight}")
    mine, theirs = (find_checkpoint(folder / "checkpoint") for folder in (workdir, whole))
    assert not mine.damaged
    # As text: a history may hold NaN.
    progress = [json.loads((c.folder / "progress.json").read_text()) for c in (mine, theirs)]
    assert str(progress[0]) == str(progress[1])
    with (
        np.load(mine.folder / "variables.npz") as arrays,
        np.load(theirs.folder / "variables.npz") as wanted,
    ):
        assert arrays.files == wanted.files
        for name in wanted.files:
            np.testing.assert_array_equal(arrays[name], wanted[name], err_msg=name)
    history = (whole / "logs" / "history.csv").read_text()
    assert (workdir / "logs" / "history.csv").read_text() == history


# === In one process ===


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Uninterrupted runs, by their settings."""
    return tmp_path_factory.mktemp("whole")


STOPPED = ("finetune", 0, 3)  # phase, epoch within it, step: where the run on the shelf stopped


class Copying(Checkpointer):
    """Copies the run's folder once: what a process that dies at STOPPED leaves."""

    target: Path

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        progress = self.progress
        if (progress.phase, progress.phase_epoch, progress.step) == STOPPED:
            shutil.copytree(self.run.workdir, self.target)


@pytest.fixture
def job(tiny_data, tiny_spec, tiny_trunk, half_labelled, tmp_path, shelf):
    """A function: cached or not -> (a function that trains in a workdir, an uninterrupted run).

    All that has a state is there: dropout, BatchNorm, learnt weights of the tasks, a contrastive
    loss, plateau reduction, and a schedule of its own that is lowered.
    """
    data = tiny_data(rows=half_labelled(IMAGES))
    spec = tiny_spec(
        tasks=("style", "genre"),
        validation=0.25,
        of_tasks={
            "head": {"kind": "dense_stack", "units": [8], "dropout": [0.3]},
            "augment": {"flip": True, "brightness": 0.2},
            "freeze_depth": "block1",
        },
        phases={"heads": {"epochs": 2}, "finetune": {"epochs": 2, "rate_factor": 0.5}},
        plateau={"patience": 1, "factor": 0.5},
        balancing={"kind": "uncertainty", "rate": 0.01},
        contrastive={"weight": 0.1, "width": 4},
    )
    falling = {"kind": "plateau", "rate": 1e-3, "patience": 1}
    raw = spec.to_dict()
    raw["trunk"] |= {"name": tiny_trunk}
    raw["task"][1]["schedule"] = falling
    spec = spec.model_validate_json(json.dumps(raw))

    def make(*, cached: bool):
        settings = {"features.cache": "on" if cached else "off"}
        if cached:
            settings["features.views"] = 1
        settled = override(spec, settings)

        def go(workdir, minutes=10.0):
            return train(
                settled,
                data,
                workdir,
                records_dir=shelf / "records",
                checkpoint_minutes=minutes,
                catch_signals=True,
                extensions=build_extensions(settled),
            )

        whole = shelf / f"cached-{cached}"
        if not whole.exists():
            with pytest.MonkeyPatch.context() as patch:
                if cached:  # with a checkpoint after each step, of which the copy has two
                    patch.setattr(Copying, "target", shelf / "stopped", raising=False)
                    patch.setattr(training, "Checkpointer", Copying)
                go(whole, minutes=0.0 if cached else 10.0)
        return go, whole

    return make


class Stopping(Checkpointer):
    """Stops the run at one place, before or after what may be saved there."""

    place: tuple = ()  # phase, epoch within it, what, its number
    how: str = ""  # SIGTERM, Ctrl-C, raised before, raised after
    reached = False

    def _around(self, what, number, act):
        here = (self.progress.phase, self.progress.phase_epoch, what, number)
        if here != self.place:
            return act()
        type(self).reached = True
        if self.how == "raised before":
            raise StoppedError
        if self.how in ("SIGTERM", "Ctrl-C"):
            os.kill(os.getpid(), signal.SIGTERM if self.how == "SIGTERM" else signal.SIGINT)
        act()
        raise StoppedError

    def on_train_batch_end(self, batch, logs=None):
        number = self.progress.step + 1
        self._around("step", number, lambda: super(Stopping, self).on_train_batch_end(batch, logs))

    def on_test_batch_end(self, batch, logs=None):
        self._around(
            "test", batch + 1, lambda: super(Stopping, self).on_test_batch_end(batch, logs)
        )

    def on_epoch_end(self, epoch, logs=None):
        # EpochRecorder has counted this epoch by now.
        self._around("end", 0, lambda: super(Stopping, self).on_epoch_end(epoch, logs))


def stop(monkeypatch, go, workdir, place, how, **options):
    """Train in a workdir until a place is reached, and see that it stopped as it should."""
    raised = {"SIGTERM": SystemExit, "Ctrl-C": KeyboardInterrupt}.get(how, StoppedError)
    with monkeypatch.context() as patch:
        if place == "between":
            # The phase is over and saved; what the next one begins with is not yet read.
            patch.setattr(training, "load_network", lambda *_: (_ for _ in ()).throw(StoppedError))
        elif place == "begun":
            original = training.save_checkpoint

            def save(folder, variables, progress, *metrics):
                original(folder, variables, progress, *metrics)
                if progress.phase == "finetune":
                    raise StoppedError

            patch.setattr(training, "save_checkpoint", save)
        else:
            patch.setattr(Stopping, "place", place)
            patch.setattr(Stopping, "how", how)
            patch.setattr(Stopping, "reached", False)
            patch.setattr(training, "Checkpointer", Stopping)
        with pytest.raises(raised) as caught:
            go(workdir, **options)
    if how == "SIGTERM":
        assert caught.value.code == 143
    if isinstance(place, tuple) and how in ("SIGTERM", "Ctrl-C"):
        progress = find_checkpoint(workdir / "checkpoint").progress
        phase, epoch, what, number = place
        step = {"step": number, "test": STEPS, "end": 0}[what]
        assert (progress.phase, progress.phase_epoch, progress.step) == (phase, epoch, step)


EVERYWHERE = [
    ("heads", 0, "step", 1),
    ("heads", 0, "step", 3),
    ("heads", 0, "test", 1),
    ("heads", 1, "step", STEPS),
    ("heads", 2, "end", 0),
    "between",
    "begun",
    ("finetune", 0, "step", 1),
    ("finetune", 1, "end", 0),
    ("finetune", 1, "step", STEPS),
    ("finetune", 1, "test", TESTS),
]


# In a phase's steps, between the phases and in a validation: each stop costs the trace of a graph.
SOME = [EVERYWHERE[1], "between", EVERYWHERE[10]]


@pytest.mark.parametrize("places", [SOME, pytest.param(EVERYWHERE, marks=pytest.mark.slow)])
def test_stopped_by_a_signal(job, tmp_path, monkeypatch, places):
    """By signals: the state is saved each time, and the same command resumes there."""
    go, whole = job(cached=True)
    signals = itertools.cycle(("SIGTERM", "Ctrl-C"))
    for place in places:
        how = "raised" if isinstance(place, str) else next(signals)
        stop(monkeypatch, go, tmp_path / "run", place, how)
    result = go(tmp_path / "run")
    assert result.trained
    assert result.history["epoch"].tolist() == [1, 2, 3, 4]
    assert_same_end(tmp_path / "run", whole)
    assert not go(tmp_path / "run").trained


@pytest.mark.slow
def test_thrown_out_everywhere(job, tmp_path, monkeypatch):
    """Like a process that dies: it resumes from the last checkpoint, or the one before it."""
    go, whole = job(cached=False)
    for number, place in enumerate(EVERYWHERE):
        how = ("raised after", "raised before")[number % 2]
        stop(monkeypatch, go, tmp_path / "run", place, how, minutes=0.0)
    go(tmp_path / "run", minutes=0.0)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_thrown_out_long_after_the_last_checkpoint(job, tmp_path, monkeypatch):
    """What came after the checkpoint (of an epoch's end) is trained again, to the same bits."""
    go, whole = job(cached=True)
    for place in EVERYWHERE[4], EVERYWHERE[9]:
        stop(monkeypatch, go, tmp_path / "run", place, "raised before")
    go(tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


@pytest.fixture
def stopped_in_finetune(job, shelf, tmp_path):
    """(how to go on, an uninterrupted run, a workdir with the checkpoints of two steps)."""
    go, whole = job(cached=True)
    shutil.copytree(shelf / "stopped", tmp_path / "run")
    before, newest = sorted((tmp_path / "run" / "checkpoint").iterdir())
    steps = [json.loads((path / "progress.json").read_text())["step"] for path in (before, newest)]
    assert steps == [2, 3]
    return go, whole, tmp_path / "run", before, newest


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [pytest.param(flip, marks=pytest.mark.slow), cut])
def test_the_checkpoint_before_a_damaged_one_is_used(stopped_in_finetune, damage):
    go, whole, workdir, _, newest = stopped_in_finetune
    damage(newest / ("variables.npz" if damage is flip else "progress.json"))
    lines = []
    with logged(lines):
        go(workdir)
    (line,) = [line for line in lines if "damaged" in line]
    assert line.startswith(f"{newest}: a damaged checkpoint (")
    assert line.endswith("; resuming from the previous one")
    assert any(", resuming after step 2 of epoch 1." in line for line in lines)
    assert any(line.startswith("finetune 1/2 ") for line in lines)
    assert_same_end(workdir, whole)


def test_two_damaged_checkpoints_are_one_line(stopped_in_finetune):
    go, _, workdir, before, newest = stopped_in_finetune
    flip(newest / "variables.npz")
    cut(before / "variables.npz")
    kept = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as error:
        go(workdir)
    assert str(error.value).startswith(f"{newest}: a damaged checkpoint (")
    assert f"remove {workdir / 'checkpoint'} to train from the start" in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == kept


# === Processes that are killed ===

KILLS, SEED = 20, 0


def run(data: Path, spec: Path, workdir: Path, *flags: str, after=None, number=signal.SIGKILL):
    """Run the command; send a signal after so many seconds. (status, output, seconds)"""
    argv = [
        *(sys.executable, "-m", "multitask", "train", f"--spec={spec}", f"--data_dir={data}"),
        *(f"--workdir={workdir}", "--trunk=efficientnetb0", "--image_size=32", "--batch_size=16"),
        *(
            "--validation_share=0.15",
            "--epochs_heads=3",
            "--epochs_finetune=2",
            "--feature_views=1",
        ),
        *flags,
    ]
    began = time.monotonic()
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output = process.communicate(timeout=after)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            output = process.communicate(timeout=300)[0]
    return process.returncode, output, time.monotonic() - began


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    """At random moments, from preparing the records to the evaluation; checkpoints come often."""
    data = mt.paint_demo(tmp_path / "data", images=120, size=48)
    # Of so few images, the demo's one unknown class is more than the usual share.
    spec = tmp_path / "demo.toml"
    spec.write_text("max_unknown = 0.1\n" + find_spec("demo").read_text())
    status, output, seconds = run(data, spec, tmp_path / "whole", f"--records_dir={tmp_path / 'r'}")
    assert status == 0, output
    draw, sent = random.Random(SEED), []
    workdir = tmp_path / "run"
    flags = (f"--records_dir={tmp_path / 'records'}", "--checkpoint_minutes=0.02")
    while len(sent) < KILLS:
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        # Early ones hit the import, the records and the features; late ones the evaluation.
        after = draw.uniform(2, seconds * draw.choice([0.3, 0.6, 1.0]))
        status, output, took = run(data, spec, workdir, *flags, after=after, number=number)
        where = ""
        if (workdir / "checkpoint").is_dir():
            p = find_checkpoint(workdir / "checkpoint").progress
            where = f"{p.phase} {p.phase_epoch}:{p.step}, over: {p.finished}"
        print(f"{number.name} at {after:.0f} s: {status} after {took:.0f} s; {where}", flush=True)
        if status == 0:  # it had ended before: another life for the rest of the moments
            assert_same_run(workdir, tmp_path / "whole")
            shutil.rmtree(workdir)
            shutil.rmtree(tmp_path / "records")
            continue
        assert status == -number or (number, status) == (signal.SIGTERM, 143), output
        sent.append(number)
    status, output, _ = run(data, spec, workdir, *flags)
    assert status == 0, output
    assert_same_run(workdir, tmp_path / "whole")


def assert_same_run(workdir: Path, whole: Path) -> None:
    assert_same_end(workdir, whole)
    metrics = (whole / "results" / "metrics.json").read_bytes()
    assert (workdir / "results" / "metrics.json").read_bytes() == metrics
    hidden = [p for p in workdir.rglob("*") if p.name.startswith((".tmp", ".old"))]
    assert hidden == []
