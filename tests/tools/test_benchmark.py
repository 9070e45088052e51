"""The command line of the benchmarks, and the rows of `step`; what they measure takes minutes."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from multitask.data.merging import load_table
from multitask.data.table import TRAIN
from multitask.learning import phases

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module("benchmark")
        for name in [n for n in sys.modules if n.partition(".")[0] in ("benchmark", "benchmarks")]:
            del sys.modules[name]


@pytest.fixture
def step(benchmark, monkeypatch):
    """`step`, whose steps of both libraries are known: 12 images a second, less where slowed."""
    module = sys.modules["benchmarks.step"]
    rates = {"": 12.0, "fuse_batchnorm": 6.0, "use_fast_depthwise_gradient": 10.0}
    monkeypatch.setattr(module, "_our_step", lambda trunk, depth, without="": rates[without])
    monkeypatch.setattr(module, "_timm_step", lambda python, name, frozen: 8.0)
    return module


def test_the_spec_of_the_benchmarks_reads_what_they_paint(benchmark, tmp_path):
    data = sys.modules["benchmarks.data"]
    folder = data.paint_set(tmp_path / "painted", count=60, size=(48, 32), distinct=2)
    table = load_table(data.spec_of(), folder)
    training = table.splits == TRAIN
    folders = [int(path.split("/")[0].removeprefix("style-")) for path in table.paths[training]]
    assert len(folders) == 60
    np.testing.assert_array_equal(table.labels[training], np.transpose([folders] * 3))


def test_help_describes_every_benchmark(benchmark, capsys):
    assert benchmark.main(["benchmark.py", "--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in benchmark.BENCHMARKS if f"`{name}`:" not in text] == []
    assert [name for name in benchmark.BENCHMARKS if f"benchmark.py {name}" not in text] == []


@pytest.mark.parametrize("argv", [[], ["stop"], ["step", "start"], ["step", "--trunk=resnet"]])
def test_wrong_arguments_are_one_line(benchmark, argv, capsys):
    assert benchmark.main(["benchmark.py", *argv]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("benchmark.py: ")


def test_step_compares_with_each_operation_and_with_timm(benchmark, step, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "has_timm", lambda python: True)
    out = tmp_path / "step.json"
    argv = ["benchmark.py", "step", "--trunk=efficientnet_lite2", f"--out={out}"]
    assert benchmark.main(argv) == 0
    rows = {row["what"]: row["ratio"] for row in json.loads(out.read_text())["rows"]}
    everything = "efficientnet_lite2, 224 px, batch 32, all trained: a training step, ours against "
    last = everything.replace("all trained", "last 60 layers trained")
    assert rows == {
        f"{everything}ours with Keras' BatchNorm": 2.0,
        f"{everything}ours with TensorFlow's gradient of depthwise filters": 1.2,
        f"{everything}timm's": 1.5,
        f"{last}ours with TensorFlow's gradient of depthwise filters": 1.2,
        f"{last}timm's": 1.5,
    }


def test_step_without_timm_has_its_other_rows_and_a_line(benchmark, step, capsys):
    argv = ["benchmark.py", "step", "--timm_python=/no/python"]
    assert benchmark.main(argv) == 0
    output = capsys.readouterr()
    rows = output.out.splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == 3 * ["efficientnetb2"] + 3 * [
        "efficientnet_lite2"
    ]
    assert not any("timm" in row for row in rows)
    assert output.err.startswith("timm is not measured")
    assert output.err.count("\n") == 1


def test_the_operations_without_which_a_step_is_timed_are_those_of_the_phases(benchmark):
    for name in sys.modules["benchmarks.step"].WITHOUT.values():
        assert callable(getattr(phases, name))


def test_a_ratio_of_times_says_how_many_times_as_fast(benchmark):
    row = sys.modules["benchmarks.timing"].row
    assert row("a", 2, 3, "{:.1f} s", of_times=True) == {
        "what": "a",
        "fast": "2.0 s",
        "plain": "3.0 s",
        "ratio": 1.5,
    }
    assert row("a", 2, 4, "{}/s")["ratio"] == 0.5


def test_a_command_that_fails_ends_the_benchmark(benchmark):
    processes = sys.modules["benchmarks.processes"]
    assert processes.last_numbers(processes.timm_command(None, "print(1, 2, 3)"), 2) == [2, 3]
    with pytest.raises(SystemExit, match="exit status 3"):
        processes.last_numbers(processes.timm_command(None, "raise SystemExit(3)"))
