"""Several devices and processes: the losses of one device, and the errors."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from multitask.annexes.parallel import Parallel
from multitask.data.order import Shard
from multitask.spec import InputError

# 50 are trained on, in batches of 8: the last, of 2, is no multiple of 4 devices but of 2.
IMAGES = 62


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Records and features that a test has made, for the others."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def start(tiny_data, tiny_spec, half_labelled, shelf, tmp_path):
    """A function: workdir, flags -> a process of `multitask train` that has begun.

    The tasks' numbers of labels differ: in most batches the artist has none or one, so that a
    mean of means is far from the mean. The heads are linear: the gradient of a bias before
    BatchNorm is rounding alone, and Adam would amplify the difference of two summations.
    """
    data = tiny_data(rows=half_labelled(IMAGES, artist_every=11))
    spec = tiny_spec(
        batch_size=8,
        validation=0.2,
        of_tasks={"augment": {"flip": True, "brightness": 0.2}, "freeze_depth": "none"},
        phases={"heads": {"epochs": 2}, "finetune": {"epochs": 2}},
    )
    (tmp_path / "tiny.toml").write_text(spec.to_toml())

    def begin(workdir, *flags, dropout=0.2, cpus=1, **environment):
        return subprocess.Popen(
            [
                *(sys.executable, Path(__file__).parents[1] / "tiny_trunk.py"),
                *(str(dropout), str(cpus), "train", "--trunk=tiny"),
                *(f"--spec={tmp_path / 'tiny.toml'}", f"--data_dir={data}"),
                *(f"--records_dir={shelf}", f"--workdir={workdir}", "--noevaluate", *flags),
            ],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def end(process):
    """Its standard output; it must have succeeded."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def begin_two(start, workdir, *flags, of_second=()):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    to = ("--distribute=multihost", f"--coordinator=localhost:{port}", "--process_count=2")
    more = [flags, (*flags, *of_second)]
    return [start(workdir, *to, f"--process_index={i}", *more[i]) for i in range(2)]


def history(workdir):
    return pd.read_csv(workdir / "logs" / "history.csv")


def assert_same_losses(workdir, alone, *, tolerance):
    """Every task's loss; in phase heads those of the validation split and all metrics too.

    A trunk that learns has biases before BatchNorm, whose gradients are rounding alone: Adam
    makes steps of it, which its batch's mean takes out of training, and not of a test.
    """
    mine, theirs = history(workdir), history(alone)
    assert list(mine["phase"]) == list(theirs["phase"]) == ["heads"] * 2 + ["finetune"] * 2
    tasks = [f"{task}/loss" for task in ("artist", "style", "genre")]
    counts = [name for name in mine if name.endswith("labelled")]
    assert len(counts) == 6
    np.testing.assert_array_equal(mine[counts], theirs[counts])
    np.testing.assert_allclose(mine[["loss", *tasks]], theirs[["loss", *tasks]], rtol=tolerance)
    heads = mine["phase"] == "heads"
    metrics = [name for name in mine if mine[name].dtype == float]
    assert {task.replace("/", "/val_") for task in tasks} < set(metrics)
    np.testing.assert_allclose(mine[metrics][heads], theirs[metrics][heads], rtol=tolerance)


# === One machine ===


@pytest.mark.slow
def test_two_mirrored_devices_train_as_one(start, tmp_path):
    """Without dropout: what replicas draw is not what one device draws for the whole batch."""
    end(start(tmp_path / "one", dropout=0))
    out = end(start(tmp_path / "two", "--distribute=mirrored", dropout=0, cpus=2))
    assert "Training on 2 devices" in out
    assert_same_losses(tmp_path / "two", tmp_path / "one", tolerance=1e-5)
    model = keras.saving.load_model(tmp_path / "two" / "models" / "best_model.keras", compile=False)
    layers = [layer for part in model.layers for layer in getattr(part, "layers", [])]
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 2
    assert not any(layer.synchronized for layer in norms)  # JAX would refuse the file


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"batch_size": 6}, "batch_size: 6: is shared by 4 devices; give a multiple of 4"),
        ({"optimizer": {"clip_norm": 1.0}}, "optimizer.clip_norm: `distribute=mirrored` does not"),
        ({"optimizer": {"ema": 0.9}}, "optimizer.ema: `distribute=mirrored` does not"),
        ({"optimizer": {"accumulate": 2}}, "optimizer.accumulate: `distribute=mirrored` does not"),
        (
            {"contrastive": {"weight": 0.1, "width": 4}},
            "contrastive: `distribute=mirrored` does not",
        ),
    ],
)
def test_what_cannot_be_shared_is_one_line(tiny_spec, options, wanted):
    mirrored = Parallel(Shard(devices=4), strategy=object())
    spec = tiny_spec(**{"batch_size": 8} | options)
    with pytest.raises(InputError) as error:
        mirrored.check(spec)
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)
    mirrored.check(tiny_spec(batch_size=8))


def test_a_network_of_one_device_is_its_own_copy():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert Parallel().local_copy(network) is network


# === JAX: several devices, several processes ===


@pytest.mark.slow
def test_two_jax_devices_train_as_one(start, tmp_path):
    pytest.importorskip("jax", reason="pip install '.[jax]'")
    end(start(tmp_path / "one", "--backend=jax"))
    flags = "--xla_force_host_platform_device_count=2"
    out = end(start(tmp_path / "two", "--backend=jax", "--distribute=mirrored", XLA_FLAGS=flags))
    assert "Training on 2 devices" in out
    assert_same_losses(tmp_path / "two", tmp_path / "one", tolerance=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(start, tmp_path):
    """One process also resumes the run that two began."""
    pytest.importorskip("jax", reason="pip install '.[jax]'")
    end(start(tmp_path / "one", "--backend=jax"))
    out = [end(process) for process in begin_two(start, tmp_path / "two")]
    assert "Training on 2 devices" in out[0]
    assert "heads" not in out[1]  # only one logs
    assert_same_losses(tmp_path / "two", tmp_path / "one", tolerance=1e-5)

    for process in begin_two(start, tmp_path / "both", "--phase=heads"):
        end(process)
    end(start(tmp_path / "both", "--backend=jax"))
    assert_same_losses(tmp_path / "both", tmp_path / "one", tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_killing_one_process_ends_the_other_and_both_go_on(start, tmp_path, killed):
    """Bit by bit: the same two processes, never stopped and stopped."""
    pytest.importorskip("jax", reason="pip install '.[jax]'")
    for process in begin_two(start, tmp_path / "whole", "--epochs_heads=9"):
        end(process)
    both = begin_two(start, tmp_path / "killed", "--epochs_heads=9")
    before = time.monotonic()
    while not (tmp_path / "killed" / "logs" / "history.csv").exists():
        assert time.monotonic() - before < 300
        time.sleep(0.1)
    both[killed].send_signal(signal.SIGKILL)
    _, err = both[1 - killed].communicate(timeout=120)
    if both[1 - killed].returncode == -signal.SIGABRT:  # JAX noticed first
        assert "another task died" in err
    else:
        assert both[1 - killed].returncode == 1, err
        last = err.strip().splitlines()[-1]
        wanted = f"another process of this run has ended, so process {1 - killed} of 2 ends too; "
        assert last.startswith(wanted)
    both[killed].communicate()
    assert len(history(tmp_path / "killed")) < 11
    for process in begin_two(start, tmp_path / "killed", "--epochs_heads=9"):
        end(process)
    csvs = [(tmp_path / name / "logs" / "history.csv").read_text() for name in ("whole", "killed")]
    assert csvs[0] == csvs[1]


@pytest.mark.slow
def test_processes_with_different_settings_are_refused(start, tmp_path):
    pytest.importorskip("jax", reason="pip install '.[jax]'")
    for process in begin_two(start, tmp_path / "run", of_second=("--seed=1",)):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2
        last = err.strip().splitlines()[-1]
        assert last.startswith("--distribute: multihost: the processes do not agree on what to tr")
    assert not (tmp_path / "run").exists()
