"""Checkpoints: bit-identical, whole or not at all, and one line where they are broken."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from multitask.learning import checkpoints
from multitask.learning.checkpoints import (
    Progress,
    load_progress,
    restore_variables,
    save_checkpoint,
)
from multitask.learning.phases import prepare_phase
from multitask.model.heads import build_head
from multitask.model.network import connect
from multitask.spec import InputError, parse_spec

SIZE = 16
CLASSES = {"colour": 3, "shape": 3}  # two heads of one shape: a wrong order would not show by it


def make_spec():
    schedule = {"kind": "exponential", "rate": 1e-2, "decay": 0.5}
    task = {
        "train": "t.csv",
        "val": "v.csv",
        "classes": "c.txt",
        "loss": {"kind": "focal"},
        "schedule": schedule,
        "head": {"kind": "linear", "dropout": 0.5},
    }
    return parse_spec(
        {
            "name": "toy",
            "image_size": 32,
            "freeze_depth": "none",
            "trunk": {"weights": "none", "schedule": schedule},
            "task": [task | {"name": name} for name in CLASSES],
        },
        source="toy.toml",
    )


def prepared_phase(seed, phase="finetune", mean=None):
    """A stand-in for the network, made anew as a new process makes it."""
    spec = make_spec()
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((SIZE, SIZE, 3))
    normalization = keras.layers.Normalization(name="normalization")
    x = normalization(x)
    if mean is not None:
        normalization.set_weights([np.full(3, mean), np.full(3, 4.0), np.zeros(())])
        normalization.finalize_state()
    x = keras.layers.Conv2D(4, 3, strides=3, name="block1a_conv")(x)
    x = keras.layers.BatchNormalization(name="block1a_bn")(x)
    x = keras.layers.Dropout(0.3, name="block1a_drop")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    heads = {t: build_head(spec, t, trunk.output_shape[1:], n) for t, n in CLASSES.items()}
    return prepare_phase(
        connect(trunk, heads),
        spec,
        phase,
        class_weights={t: np.ones(n, np.float32) for t, n in CLASSES.items()},
        steps_per_epoch=2,
    )


def train_steps(model, seed, steps=2):
    model.run_eagerly = True  # to compile takes longer than the steps
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        x = rng.normal(size=(8, SIZE, SIZE, 3)).astype(np.float32)
        y = {task: rng.integers(0, n, 8) for task, n in CLASSES.items()}
        model.train_on_batch(x, y, sample_weight={task: np.ones(8) for task in y})


def values(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def assert_identical(a, b):
    assert len(a) == len(b) > 20
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def saved(tmp_path):
    """A model after two steps, and its checkpoint."""
    model = prepared_phase(0).model
    train_steps(model, 1)
    save_checkpoint(tmp_path / "checkpoint", model, Progress(phase="finetune", epoch=3))
    return tmp_path / "checkpoint", model


# === Variables ===


def test_what_is_restored_is_identical_and_goes_on_identically(saved):
    folder, model = saved
    kept = values(model)
    again = prepared_phase(99).model
    assert not all(map(np.array_equal, kept, values(again)))
    restore_variables(folder, again)
    assert_identical(values(again), kept)
    train_steps(model, 2)
    train_steps(again, 2)
    # Dropout's seeds are among them: with others, the steps would differ.
    assert_identical(values(again), values(model))
    assert not all(map(np.array_equal, kept, values(again)))


def test_dropout_seeds_and_optimizer_are_in_it(saved):
    folder, model = saved
    paths = [v.path for v in checkpoints._variables(model)]
    assert sum("seed_generator" in path for path in paths) == 3
    assert sum("momentum" in path for path in paths) == len(model.trainable_variables)
    assert sum("moving_" in path for path in paths) == 2
    # Metrics are none of it: their number changes once a model has been compiled and run.
    assert not any(name in path for path in paths for name in ("macro_f1", "top1", "labelled"))
    with np.load(folder / "epoch-0003-0" / "variables.npz") as file:
        assert len(file.files) == len(paths)


def test_normalisation_computes_with_what_was_restored(tmp_path):
    """Keras' Normalization computes with a copy of its variables."""
    model = prepared_phase(0, mean=7.0).model
    save_checkpoint(tmp_path, model, Progress(epoch=1))
    again = prepared_phase(1).model
    restore_variables(tmp_path, again)
    x = np.random.default_rng(0).normal(7, 2, (4, SIZE, SIZE, 3)).astype(np.float32)
    mine, theirs = again(x, training=False), model(x, training=False)
    for task in CLASSES:
        np.testing.assert_array_equal(mine[task], theirs[task])


def test_variables_of_another_phase_are_refused(saved):
    folder, _ = saved
    heads = prepared_phase(0, phase="heads").model
    before = values(heads)
    with pytest.raises(InputError, match="its variables are those of another model"):
        restore_variables(folder, heads)
    assert all(map(np.array_equal, before, values(heads)))  # nothing was half restored


ORDER = """
import importlib.util, re, sys
file = importlib.util.spec_from_file_location("test_checkpoints", sys.argv[1])
module = importlib.util.module_from_spec(file)
file.loader.exec_module(module)
for variable in module.checkpoints._variables(module.prepared_phase(5).model):
    print(re.sub(r"_?\\d+", "", variable.path), tuple(variable.shape))
"""


def test_the_order_is_the_same_in_another_process():
    prepared_phase(0)  # names have been counted up in this process
    model = prepared_phase(0).model
    train_steps(model, 1, steps=1)
    mine = [
        f"{re.sub(r'_?[0-9]+', '', v.path)} {tuple(v.shape)}" for v in checkpoints._variables(model)
    ]
    output = subprocess.run(
        [sys.executable, "-c", ORDER, __file__], capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines() == mine


# === Files ===


def test_the_newest_alone_is_kept(saved):
    folder, model = saved
    for epoch, finished in [(4, []), (4, ["heads"]), (5, ["heads"])]:
        save_checkpoint(folder, model, Progress(epoch=epoch, finished=finished))
        assert [path.name for path in folder.iterdir()] == [f"epoch-{epoch:04d}-{len(finished)}"]
        assert load_progress(folder) == Progress(epoch=epoch, finished=finished)


def test_the_same_epoch_again_replaces_it(saved):
    folder, model = saved
    save_checkpoint(folder, model, Progress(epoch=3, waited=2))
    assert [path.name for path in folder.iterdir()] == ["epoch-0003-0"]
    assert load_progress(folder).waited == 2


@pytest.mark.parametrize("fails", ["savez", "dumps"])
def test_nothing_is_half_written(fails, saved, monkeypatch):
    folder, model = saved
    kept = values(model)
    train_steps(model, 3, steps=1)

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(checkpoints.np if fails == "savez" else checkpoints.json, fails, full)
        save_checkpoint(folder, model, Progress(epoch=4))
    assert [path.name for path in folder.iterdir()] == ["epoch-0003-0"]
    assert load_progress(folder).epoch == 3
    restore_variables(folder, model)
    assert_identical(values(model), kept)


# === Progress ===


def test_progress_round_trip(saved):
    folder, model = saved
    progress = Progress(
        phase="finetune",
        epoch=9,
        phase_epoch=2,
        finished=["heads"],
        best={"macro_f1": 0.1 + 0.2, "colour": 1 / 3},
        best_epoch={"macro_f1": 8, "colour": 3},
        waited=1,
        plateau_waited=1,
        plateau=0.5,
        history=[{"epoch": 9, "phase": "finetune", "loss": 0.25, "shape_loss": float("nan")}],
    )
    save_checkpoint(folder, model, progress)
    again = load_progress(folder)
    assert np.isnan(again.history[0].pop("shape_loss"))
    progress.history[0].pop("shape_loss")
    assert again == progress


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert load_progress(tmp_path / "none") == Progress()
    assert load_progress(tmp_path) == Progress()


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", '"text"', "7", json.dumps({"phase": "heads", "epochs": 3}), b"\xff"]
)
def test_broken_progress_is_one_line(text, saved):
    folder, _ = saved
    path = folder / "epoch-0003-0" / "progress.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        load_progress(folder)
    assert str(error.value).startswith(f"{path}: not a run's progress: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["missing", "empty", "text", "cut", "other", "fewer", "spoilt"])
def test_broken_variables_are_one_line(how, saved):
    folder, model = saved
    path = folder / "epoch-0003-0" / "variables.npz"
    whole = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("weights\n")
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "other":
            np.savez(path, first=np.zeros(3))
        case "fewer":
            np.savez(path, **{"0": np.zeros((3, 3, 3, 4), np.float32)})
        case "spoilt":
            place = whole.index(b"\x93NUMPY", 1000) + 140
            path.write_bytes(whole[:place] + bytes(8) + b"spoilt" + whole[place + 14 :])
    before = values(model)
    with pytest.raises(InputError) as error:
        restore_variables(folder, model)
    assert str(error.value).startswith(f"{path}: cannot be gone on from: ")
    assert "\n" not in str(error.value)
    assert all(map(np.array_equal, before, values(model)))
