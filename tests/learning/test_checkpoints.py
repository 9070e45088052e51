"""Checkpoints: bit-identical, complete or absent, and one line if they are damaged."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from specs import spec_of

from multitask.disk import DiskError
from multitask.learning import checkpoints
from multitask.learning.checkpoints import (
    Checkpoint,
    Progress,
    drop_older_checkpoints,
    find_checkpoint,
    restore_variables,
    save_checkpoint,
)
from multitask.learning.phases import prepare_phase
from multitask.model.heads import build_head
from multitask.model.network import connect
from multitask.spec import InputError

SIZE = 16
CLASSES = {"colour": 3, "shape": 3}  # two heads of one shape: a wrong order would not show by it


def make_spec():
    schedule = {"kind": "exponential", "rate": 1e-2, "decay": 0.5}
    return spec_of(
        *CLASSES,
        of_tasks={"schedule": schedule, "head": {"kind": "linear", "dropout": 0.5}},
        trunk={"schedule": schedule},
        image_size=32,
        freeze_depth="none",
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
    prepared = prepare_phase(
        connect(trunk, heads),
        spec,
        phase,
        class_weights={t: np.ones(n, np.float32) for t, n in CLASSES.items()},
        steps_per_epoch=2,
    )
    prepared.model.run_eagerly = True  # to compile takes longer than the steps
    return prepared


def train_steps(prepared, seed, steps=2):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        x = rng.normal(size=(8, SIZE, SIZE, 3)).astype(np.float32)
        y = {task: rng.integers(0, n, 8) for task, n in CLASSES.items()}
        weights = {task: np.ones(8, np.float32) for task in y}
        prepared.model.train_on_batch(x, y, sample_weight=weights)


def values(prepared):
    return [v.numpy() for v in prepared.variables]


def assert_identical(a, b):
    assert len(a) == len(b) > 20
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A model after two steps, the folder of its checkpoint, and its values."""
    prepared, folder = prepared_phase(0), tmp_path_factory.mktemp("saved") / "checkpoint"
    train_steps(prepared, 1)
    save_checkpoint(folder, prepared.variables, Progress("finetune", epoch=3))
    return folder, prepared, values(prepared)


@pytest.fixture
def saved(saved_once, tmp_path):
    """A copy of the checkpoint's folder, and the model as it was saved."""
    folder, prepared, kept = saved_once
    shutil.copytree(folder, tmp_path / "checkpoint")
    for variable, value in zip(prepared.variables, kept, strict=True):
        variable.assign(value)
    return tmp_path / "checkpoint", prepared


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# === Variables ===


def test_what_is_restored_is_identical_and_goes_on_identically(saved):
    folder, prepared = saved
    kept = values(prepared)
    again = prepared_phase(99)
    assert not all(map(np.array_equal, kept, values(again)))
    assert again.restore(folder / "000001") == []
    assert_identical(values(again), kept)
    train_steps(prepared, 2)
    train_steps(again, 2)
    # Dropout's seeds are among them: with others, the steps would differ.
    assert_identical(values(again), values(prepared))
    assert not all(map(np.array_equal, kept, values(again)))


def test_dropout_seeds_and_optimizer_are_in_it(saved):
    folder, prepared = saved
    paths = [v.path for v in prepared.variables]
    assert sum("seed_generator" in path for path in paths) == 3
    trained = prepared.model.trainable_variables
    assert sum("momentum" in path for path in paths) == len(trained) == 8
    assert sum("moving_" in path for path in paths) == 2
    # Metrics are not included: they are saved separately, only in the middle of an epoch.
    assert not any(name in path for path in paths for name in ("macro_f1", "top1", "labelled"))
    assert len({id(v) for v in prepared.variables}) == len(paths)
    with np.load(folder / "000001" / "variables.npz") as file:
        assert len(file.files) == len(paths)


def test_metrics_are_restored_with_the_variables(saved):
    folder, prepared = saved
    metrics = [np.array([[1, 2], [3, 4]], np.float32), np.array(0.1, np.float32)]
    metrics += [np.array(i, np.float32) for i in range(10)]  # metric_10 is not after metric_1
    save_checkpoint(folder, prepared.variables, Progress(), metrics)
    restored = prepared_phase(3).restore(folder / "000002")
    assert len(restored) == 12
    for one, other in zip(restored, metrics, strict=True):
        np.testing.assert_array_equal(one, other)


def test_normalisation_computes_with_what_was_restored(tmp_path):
    """Keras' Normalization computes with a copy of its variables."""
    prepared = prepared_phase(0, mean=7.0)
    save_checkpoint(tmp_path, prepared.variables, Progress(epoch=1))
    again = prepared_phase(1)
    again.restore(tmp_path / "000001")
    x = np.random.default_rng(0).normal(7, 2, (4, SIZE, SIZE, 3)).astype(np.float32)
    for mine, theirs in [(again.model, prepared.model), (again.plain, prepared.plain)]:
        mine, theirs = mine(x, training=False), theirs(x, training=False)
        for task in CLASSES:
            np.testing.assert_array_equal(mine[task], theirs[task])


def test_variables_of_another_phase_are_refused(saved):
    folder, _ = saved
    heads = prepared_phase(0, phase="heads")
    before = values(heads)
    with pytest.raises(InputError, match="its variables are those of another model"):
        heads.restore(folder / "000001")
    assert all(map(np.array_equal, before, values(heads)))  # nothing was half restored


ORDER = """
import importlib.util, re, sys
file = importlib.util.spec_from_file_location("test_checkpoints", sys.argv[1])
module = importlib.util.module_from_spec(file)
file.loader.exec_module(module)
for variable in module.prepared_phase(5).variables:
    print(re.sub(r"_?\\d+", "", variable.path), tuple(variable.shape))
"""


def test_the_order_is_the_same_in_another_process():
    prepared_phase(0)  # names have been counted up in this process
    prepared = prepared_phase(0)
    train_steps(prepared, 1, steps=1)
    mine = [f"{re.sub(r'_?[0-9]+', '', v.path)} {tuple(v.shape)}" for v in prepared.variables]
    output = subprocess.run(
        [sys.executable, "-c", ORDER, __file__],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # of the tests' own modules
    ).stdout
    assert output.splitlines() == mine


# === Files ===


def test_the_last_two_are_kept(saved):
    folder, prepared = saved
    for number in range(2, 5):
        progress = Progress("finetune", epoch=3 + number // 2, step=number % 2)
        save_checkpoint(folder, prepared.variables, progress)
        assert names_in(folder) == [f"{number - 1:06d}", f"{number:06d}"]
        assert find_checkpoint(folder) == Checkpoint(folder / f"{number:06d}", progress)


def test_what_a_killed_process_left_is_dropped(tmp_path):
    """Killed between the rename of the third checkpoint and the removal of the first."""
    for number in (4, 5, 6):
        (tmp_path / f"{number:06d}").mkdir()
        (tmp_path / f"{number:06d}" / "progress.json").write_text("{}")
    drop_older_checkpoints(tmp_path)
    assert names_in(tmp_path) == ["000005", "000006"]
    drop_older_checkpoints(tmp_path / "none")


@pytest.mark.parametrize("fails", ["savez", "dumps"])
def test_nothing_is_half_written(fails, saved, monkeypatch):
    folder, prepared = saved
    kept = values(prepared)
    train_steps(prepared, 3, steps=1)

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.np if fails == "savez" else checkpoints.json, fails, full)
        with pytest.raises(DiskError, match="no room on"):
            save_checkpoint(folder, prepared.variables, Progress(epoch=4))
    assert names_in(folder) == ["000001"]
    assert find_checkpoint(folder).progress.epoch == 3
    prepared.restore(folder / "000001")
    assert_identical(values(prepared), kept)


# === Progress ===


def test_progress_round_trip(saved):
    folder, prepared = saved
    progress = Progress(
        phase="finetune",
        epoch=9,
        phase_epoch=2,
        step=17,
        finished=["heads"],
        best={"macro_f1": 0.1 + 0.2, "colour/macro_f1": 1 / 3},
        best_epoch={"macro_f1": 8, "colour/macro_f1": 3},
        waited=1,
        plateau_waited=1,
        plateau=0.5,
        history=[{"epoch": 9, "phase": "finetune", "loss": 0.25, "shape/loss": float("nan")}],
    )
    save_checkpoint(folder, prepared.variables, progress)
    again = find_checkpoint(folder).progress
    assert np.isnan(again.history[0].pop("shape/loss"))
    progress.history[0].pop("shape/loss")
    assert again == progress


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        assert find_checkpoint(folder) == Checkpoint(None, Progress())


def test_a_phase_is_on_from_its_start_to_its_end():
    assert not Progress().in_phase
    assert Progress("heads").in_phase
    assert not Progress("heads", finished=["heads"]).in_phase
    assert Progress("finetune", finished=["heads"]).in_phase


# === Damage ===


def spoil(checkpoint, how):
    """Damage a checkpoint's folder in one of these ways."""
    variables = checkpoint / "variables.npz"
    whole = variables.read_bytes()
    match how:
        case "no variables" | "no progress" | "no checksums":
            ends = {"variables": ".npz", "progress": ".json", "checksums": ".json"}
            name = how.removeprefix("no ")
            (checkpoint / ({"checksums": "sha256"}.get(name, name) + ends[name])).unlink()
        case "nothing":
            for path in checkpoint.iterdir():
                path.unlink()
        case "empty":
            variables.write_bytes(b"")
        case "cut":
            variables.write_bytes(whole[: len(whole) // 2])
        case "a flipped bit":
            middle = len(whole) // 2
            variables.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case "other progress":
            text = (checkpoint / "progress.json").read_text()
            (checkpoint / "progress.json").write_text(text.replace('"epoch": 4', '"epoch": 5'))
        case "cut checksums":
            text = (checkpoint / "sha256.json").read_text()
            (checkpoint / "sha256.json").write_text(text[: len(text) // 2])
        case "checksums of another kind":
            (checkpoint / "sha256.json").write_text("[1, 2]")


DAMAGE = [
    "no variables",
    "no progress",
    "no checksums",
    "nothing",
    "empty",
    "cut",
    "a flipped bit",
    "other progress",
    "cut checksums",
    "checksums of another kind",
]


@pytest.mark.parametrize("how", DAMAGE)
def test_the_one_before_is_used_where_the_newest_is_damaged(how, saved):
    folder, prepared = saved
    kept = values(prepared)
    train_steps(prepared, 3, steps=1)
    save_checkpoint(folder, prepared.variables, Progress("finetune", epoch=4))
    spoil(folder / "000002", how)
    checkpoint = find_checkpoint(folder)
    assert checkpoint.folder == folder / "000001"
    assert checkpoint.progress == Progress("finetune", epoch=3)
    (line,) = checkpoint.damaged
    assert line.startswith(f"{folder / '000002'}: a damaged checkpoint (")
    assert "\n" not in line
    prepared.restore(checkpoint.folder)
    assert_identical(values(prepared), kept)
    # The next one is written, and the damaged one is removed first.
    save_checkpoint(folder, prepared.variables, Progress("finetune", epoch=4))
    assert names_in(folder) == ["000002", "000003"]


@pytest.mark.parametrize("how", DAMAGE)
def test_both_damaged_is_one_line(how, saved):
    folder, prepared = saved
    save_checkpoint(folder, prepared.variables, Progress("finetune", epoch=4))
    for name in ("000001", "000002"):
        spoil(folder / name, "cut" if how == "other progress" else how)
    with pytest.raises(InputError) as error:
        find_checkpoint(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / '000002'}: a damaged checkpoint (")
    assert message.endswith(f"no older one is whole; remove {folder} to train from the start")
    assert "\n" not in message


def write_progress(folder, text):
    """Another one, with the right checksum."""
    path = folder / "000001" / "progress.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    sums = json.loads((path.parent / "sha256.json").read_text())
    sums["progress.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "sha256.json").write_text(json.dumps(sums))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '"text"',
        "7",
        json.dumps({"format": 2, "epochs": 3}),
        b"\xff",
        '{"format": 2, "step": "many"}',
        '{"format": 2, "best": []}',
        "[" * 100_000,
    ],
    ids=lambda text: str(text)[:20],
)
def test_broken_progress_is_one_line(text, saved):
    """Though its checksum is right."""
    folder, _ = saved
    write_progress(folder, text)
    with pytest.raises(InputError) as error:
        find_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / '000001'}: a damaged checkpoint (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("older", [{}, {"format": 1}, {"format": 3}])
def test_a_checkpoint_of_another_version_is_refused(older, saved):
    """Its best scores and history have other names; an older checkpoint does not help either."""
    folder, _ = saved
    content = json.loads((folder / "000001" / "progress.json").read_text())
    del content["format"]
    write_progress(folder, json.dumps(content | older))
    with pytest.raises(InputError, match=r"checkpoint in format .*; resume with the version that"):
        find_checkpoint(folder)


@pytest.mark.parametrize("how", ["missing", "empty", "text", "cut", "other", "fewer", "spoilt"])
def test_broken_variables_are_one_line(how, saved):
    folder, prepared = saved
    path = folder / "000001" / "variables.npz"
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
            np.savez(path, variable_0=np.zeros((3, 3, 3, 4), np.float32))
        case "spoilt":
            place = whole.index(b"\x93NUMPY", 1000) + 140
            path.write_bytes(whole[:place] + bytes(8) + b"spoilt" + whole[place + 14 :])
    before = values(prepared)
    with pytest.raises(InputError) as error:
        restore_variables(folder / "000001", prepared.variables)
    assert str(error.value).startswith(f"{path}: cannot be resumed: ")
    assert "\n" not in str(error.value)
    assert all(map(np.array_equal, before, values(prepared)))
