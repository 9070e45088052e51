"""The demo's commands, run on a few painted images with a small trunk in its spec."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

import multitask as mt
from multitask import spec as spec_module

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load_tool("demo")


def write_metrics(workdir, values):
    """metrics.json with a macro-F1 of each task."""
    metrics = {f"{task}/{name}": f1 for task, f1 in values.items() for name in ("top1", "macro_f1")}
    (workdir / "results").mkdir(parents=True)
    text = json.dumps({"metrics": metrics, "baseline": metrics})
    (workdir / "results" / "metrics.json").write_text(text)


@pytest.mark.parametrize(("style", "status"), [(0.651, 0), (0.649, 1)])
def test_the_status_says_whether_the_promise_was_kept(tmp_path, capsys, style, status):
    write_metrics(tmp_path, {"artist": 0.9, "style": style})
    assert demo.show_results(tmp_path) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["artist", *["0.900"] * 4]
    assert lines[3].split() == ["style", *[f"{style:.3f}"] * 4]
    paths = [line.split()[1] for line in lines[5:8]]
    assert paths == [str(tmp_path / n) for n in ("results/report.html", "export", "prediction.csv")]
    assert lines[8:] == ["Below the promised macro-F1 of 0.65: style"] * status


@pytest.mark.slow
def test_the_demo_runs_and_resumes(tiny_spec, tiny_trunk, tmp_path, monkeypatch, capsys):
    data, workdir = tmp_path / "demo", tmp_path / "runs" / "demo"
    mt.paint_demo(data, images=120, size=48)
    trunk = {"name": tiny_trunk, "weights": "none", "schedule": {"kind": "constant", "rate": 1e-3}}
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    spec = tiny_spec(name="demo", trunk=trunk, validation=0.1, max_unknown=0.1)
    (shipped / "demo.toml").write_text(spec.to_toml())
    monkeypatch.setattr(spec_module, "BUILT_IN_FOLDERS", (shipped,))
    demo.run_demo(data, workdir)
    out = capsys.readouterr().out
    commands = [line.split()[2] for line in out.splitlines() if line.startswith("$ multitask")]
    assert commands == ["train", "export", "predict"]
    assert len(pd.read_csv(workdir / "prediction.csv")) == 1
    demo.show_results(workdir)
    assert "majority class" in capsys.readouterr().out
    demo.run_demo(data, workdir)  # nothing is left to do
    assert capsys.readouterr().out == ""
    (workdir / "prediction.csv").unlink()
    demo.run_demo(data, workdir)
    assert capsys.readouterr().out.count("$ multitask") == 1
