"""The comparison with single-task runs: its arithmetic by NumPy, equal images, and one whole."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report

import multitask as mt
from multitask.annexes.painting import data_set
from multitask.data import table as tables
from multitask.data.merging import load_table
from multitask.data.table import SPLITS
from multitask.errors import RunError
from multitask.files import locked
from multitask.spec import MISSING, load_spec, override, parse_spec, select_tasks

TOOLS = Path(__file__).parents[2] / "tools"
TASKS = ("artist", "style", "genre")


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool("compare_single_task")


def demo_spec(**changes):
    """Of the demo; of few images, one unknown class is more than the usual share."""
    raw = load_spec("demo").to_dict() | {"max_unknown": 0.1} | changes
    return parse_spec(raw, source="demo.toml")


# === Equal images ===


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The demo's tables, leaks and all, without an image."""
    folder = tmp_path_factory.mktemp("tables")
    plan = data_set.draw_plan(600, np.random.default_rng(1))
    data_set.write_tables(folder / "wikiart_csv", plan)
    return folder


def labelled(table, task, split):
    """{(path, label)} of a task in a split."""
    rows = table.rows(split)
    labels = table.labels[rows, table.tasks.index(task)]
    return {(p, int(y)) for p, y in zip(table.paths[rows], labels, strict=True) if y != MISSING}


@pytest.mark.parametrize("subset", [1.0, 0.4])
def test_a_single_run_has_the_images_labels_and_splits_of_the_combined(
    data_dir, subset, monkeypatch
):
    spec = override(demo_spec(seed=3, validation=0.1), {"task.subset": subset})
    paths = load_table(spec, data_dir).paths
    reasons = [tables.MISSING_FILE] * 5 + ["not an image"] * 5
    left_out = pd.DataFrame({"path": paths[::20][:10], "reason": reasons})
    combined = load_table(spec, data_dir, excluded=left_out)
    for task in TASKS:
        its = tool.job_spec(spec, task)
        plain = load_table(its, data_dir)
        with monkeypatch.context() as patch:
            patch.setattr(tables, "hold_out_validation", tool.copied_hold_out(combined, task))
            alone = load_table(its, data_dir, excluded=left_out)
        for split in SPLITS:
            assert labelled(alone, task, split) == labelled(combined, task, split) != set()
            # By itself it would have drawn others: other ranks, and another test images too.
            assert split == "test" or labelled(plain, task, split) != labelled(alone, task, split)


def test_no_job_stops_early_and_nothing_else_changes():
    spec = demo_spec()
    epochs = spec.phases.heads.epochs + spec.phases.finetune.epochs
    for task in (None, *TASKS):
        its = tool.job_spec(spec, task)
        assert its.early_stopping.patience > epochs
        assert its.task_names == ((task,) if task else TASKS)
        raw, before = its.to_dict(), spec.to_dict()
        for name in ("early_stopping", "task", "max_missing"):
            raw.pop(name), before.pop(name)
        assert raw == before


# === Arithmetic ===


def seed_of(rng) -> dict:
    rows = [
        {"task": task, "metric": metric} | dict(zip(tool.MODELS, rng.random(4), strict=True))
        for task in TASKS
        for metric in tool.METRICS
    ]
    seconds = dict(zip(("single", "combined"), rng.uniform(50, 100, 2), strict=True))
    return {"rows": [*rows, {"task": "all-tasks", "metric": "wall_s"} | seconds]}


@pytest.mark.parametrize("count", [1, 3])
def test_means_spreads_paired_differences_and_ratios(count):
    rng = np.random.default_rng(0)
    seeds = [seed_of(rng) for _ in range(count)]
    frame = tool.comparison(seeds)
    assert list(frame["seeds"]) == [count] * 7
    for place, row in frame.iterrows():
        given = [seed["rows"][place] for seed in seeds]
        assert (row["task"], row["metric"]) == (given[0]["task"], given[0]["metric"])
        one, alone = (np.array([g[name] for g in given]) for name in ("combined", "single"))
        values = {"combined": one, "single": alone, "difference": one - alone, "ratio": one / alone}
        if row["task"] != "all-tasks":
            values["regression"] = np.array([g["regression"] for g in given])
        for name, of_seeds in values.items():
            assert row[name] == pytest.approx(of_seeds.sum() / count)
            if count == 1:
                assert np.isnan(row[f"{name}_spread"])
            else:
                squares = ((of_seeds - of_seeds.mean()) ** 2).sum()
                assert row[f"{name}_spread"] == pytest.approx(np.sqrt(squares / (count - 1)))
    lines = "\n".join(tool.summary_lines(frame))
    first = frame.iloc[0]
    assert f"{first['difference']:+.3f}" in lines
    assert ("±" in lines) == (count > 1)
    assert f"ratio {frame['ratio'].iloc[-1]:.3f}" in lines


def write_job(folder, name, tasks, *, scores, parts, labels=(40, 40), test_set=("a", "b")):
    """What a run leaves that is read."""
    for inner in ("results", "logs"):
        (folder / name / inner).mkdir(parents=True)
    metrics = {f"{t}/{m}": scores[t] for t in tasks for m in tool.METRICS}
    baseline = dict.fromkeys(metrics, 0.25)
    text = json.dumps({"metrics": metrics, "baseline": baseline})
    (folder / name / "results" / "metrics.json").write_text(text)
    columns = {f"{t}/{v}labelled": np.array(labels, float) for t in tasks for v in ("", "val_")}
    pd.DataFrame(columns).to_csv(folder / name / "logs" / "history.csv", index=False)
    frame = pd.DataFrame(
        {"path": [*test_set, "other"]} | {f"{t}/true": ["x", "y", ""] for t in tasks}
    )
    frame.to_csv(folder / name / "results" / "predictions.csv", index=False)
    noted = {"done": True, "parts": parts, "steps_an_epoch": {"heads": 3}}
    (folder / f"{name}.time.json").write_text(json.dumps(noted))


def test_a_seeds_figures_and_times(tmp_path):
    scores = {"style": 0.5, "genre": 0.25}
    parts = {"start": [1, 2], "records": [10, 20], "heads": [4, 8]}
    write_job(tmp_path, "all-tasks", ("style", "genre"), scores=scores, parts=parts)
    write_job(tmp_path, "style", ("style",), scores={"style": 0.4}, parts=parts)
    write_job(tmp_path, "genre", ("genre",), scores={"genre": 0.3}, parts={"heads": [7, 9]})
    regression = {task: {"C": 1.0, "top1": 0.7, "macro_f1": 0.6} for task in scores}
    (tmp_path / "logistic-regression.json").write_text(json.dumps(regression))
    content = tool.seed_results(tmp_path, ("style", "genre"))
    first = {"majority": 0.25, "regression": 0.7, "single": 0.4, "combined": 0.5}
    assert content["rows"][0] == {"task": "style", "metric": "top1"} | first
    times = {row["metric"]: (row["combined"], row["single"]) for row in content["rows"][4:]}
    assert times == {
        "wall_s": (15, 22),
        "wall_s_without_records": (5, 12),
        "cpu_s": (30, 39),
        "cpu_s_without_records": (10, 19),
    }
    assert content["labels"] == {"style": 80, "genre": 80}


@pytest.mark.parametrize(
    ("other", "named"), [({"labels": (40, 39)}, "labels"), ({"test_set": ("a", "c")}, "test sets")]
)
def test_unequal_runs_are_not_compared(tmp_path, other, named):
    write_job(tmp_path, "all-tasks", ("style",), scores={"style": 0.5}, parts={})
    write_job(tmp_path, "style", ("style",), scores={"style": 0.5}, parts={}, **other)
    with pytest.raises(RunError, match=f"style: the {named} of the two runs differ"):
        tool.labels_learnt(tmp_path, "style")


def test_the_clock_goes_on_where_an_earlier_attempt_was_killed(tmp_path, monkeypatch):
    now = [100.0]
    ticking = SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0] / 2)
    monkeypatch.setattr(tool, "time", ticking)
    file = tmp_path / "all-tasks.time.json"

    def spend(clock, part, seconds):
        before = clock.switch(part)
        now[0] += seconds
        clock.switch(before)

    first = tool.Clock(file)
    now[0] += 1
    spend(first, "records", 20)
    first.note()
    spend(first, "records", 5)  # is lost
    second = tool.Clock(file)
    now[0] += 2
    spend(second, "records", 4)
    spend(second, "heads", 8)
    second.note(done=True)
    noted = json.loads(file.read_text())
    assert noted["parts"] == {"start": [3, 1.5], "records": [24, 12], "heads": [8, 4]}
    assert noted["done"]


def test_the_regression_is_chosen_on_the_validation_split_alone(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 30))

    def draw(count, classes=4):
        y = rng.integers(classes, size=count)
        return (centres[y] + 1.6 * rng.normal(size=(count, 30))).astype(np.float32), y

    train, validation, test_set = draw(150), draw(60), draw(80, classes=3)
    regression = tool.fit_regression(train, validation, test_set)
    scores = {}
    for c in tool.GRID:  # each C by itself
        monkeypatch.setattr(tool, "GRID", [c])
        scores[c] = tool.fit_regression(train, test_set, validation)["macro_f1"]
    assert regression["C"] == max(scores, key=scores.get)
    assert len(set(scores.values())) > 1
    # The metrics are those of scikit-learn's report, over the classes of the test set.
    mean, std = train[0].mean(axis=0), train[0].std(axis=0)
    model = LogisticRegression(C=regression["C"], max_iter=1000).fit(
        (train[0] - mean) / std, train[1]
    )
    predicted = model.predict((test_set[0] - mean) / std)
    report = classification_report(test_set[1], predicted, output_dict=True, zero_division=0)
    assert regression["top1"] == pytest.approx(np.mean(predicted == test_set[1]))
    f1 = [report[name]["f1-score"] for name in "012"]
    assert regression["macro_f1"] == pytest.approx(np.mean(f1))


def test_maps_are_pooled():
    maps = np.random.default_rng(0).normal(size=(3, 2, 2, 5)).astype(np.float16)
    wanted = maps.astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(tool.pooled(maps), wanted, atol=1e-6)
    np.testing.assert_array_equal(tool.pooled(maps[:, 0, 0]), maps[:, 0, 0])


# === Wrong input ===


def stopped(capsys, *argv) -> str:
    """The one line on stderr, with status 2."""
    assert tool.main(["compare_single_task.py", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compare_single_task.py: ")
    return line


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--spec=", "--spec is needed"),
        ("--data_dir=", "--data_dir is needed"),
        ("--out=", "--out is needed"),
        ("--data_dir=nowhere", "--data_dir: nowhere: is not a folder"),
        ("--spec=demos", 'Did you mean "demo"?'),
        ("--tasks=style", "needs two tasks or more"),
        ("--validation_share=0", "--validation_share: 0"),
        ("--batch_size=0", "--batch_size"),
        ("--seed=x", "--seed=x"),
        ("--phase=finetune", "finetune"),
        ("--colour=red", "colour"),
        ("stray", "stray"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(flag, named, data_dir, tmp_path, capsys):
    given = ("--spec=demo", f"--data_dir={data_dir}", f"--out={tmp_path / 'out'}", flag)
    assert named in stopped(capsys, *given)
    assert list(tmp_path.iterdir()) == []


def test_a_sampler_is_refused(data_dir, tmp_path, capsys):
    (tmp_path / "spec.toml").write_text(demo_spec(sampler={"kind": "balanced"}).to_toml())
    given = (f"--spec={tmp_path / 'spec.toml'}", f"--data_dir={data_dir}", f"--out={tmp_path}")
    assert "spec.toml: sampler: with other tasks" in stopped(capsys, *given)


def test_a_folder_holds_one_set_of_settings(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "run_seed", lambda *args: 2)
    given = ["--spec=demo", f"--data_dir={data_dir}", f"--out={tmp_path}"]
    assert tool.main(["", *given, "--phase=heads", "--batch_size=16"]) == 2
    assert tool.main(["", *given, "--phase=heads"]) == 2  # nothing has begun
    run = tmp_path / "seed-0" / "all-tasks"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert tool.main(["", *given, "--phase=heads", "--seed=1"]) == 2  # another seed is welcome
    assert capsys.readouterr().err == ""
    line = stopped(capsys, *given, "--batch_size=16")
    assert f"--out: {tmp_path}: holds a comparison with other settings" in line
    assert "phase: 'heads' before, 'all' now" in line
    assert "spec.batch_size: 32 before, 16 now" in line


def test_records_whose_time_is_not_known_are_refused(data_dir, tmp_path, capsys):
    records = tmp_path / "records" / "seed-0" / "all-tasks"
    records.mkdir(parents=True)
    given = ("--spec=demo", f"--data_dir={data_dir}", f"--out={tmp_path}")
    assert f"--records_dir: {records}: exists already" in stopped(capsys, *given)


def test_help_lists_the_flags_of_train_too(capsys):
    assert tool.main(["", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{flag}" in text for flag in ("out", "phase", "epochs_heads", "trunk", "seed"))


# === The whole ===


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on(tmp_path):
    """Two tasks, both phases; killed in the second run, then done, then done again with nothing."""
    data, out = mt.paint_demo(tmp_path / "data", images=120, size=48), tmp_path / "out"
    spec = demo_spec(image_size=32, validation=0.2, batch_size=16)
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    command = [
        *(sys.executable, TOOLS / "compare_single_task.py", f"--spec={tmp_path / 'spec.toml'}"),
        *(f"--data_dir={data}", f"--out={out}", "--tasks=style,genre", "--trunk=efficientnetb0"),
        *("--epochs_heads=3", "--epochs_finetune=2"),
    ]
    first = subprocess.Popen(command)
    while not (out / "seed-0" / "style" / "checkpoint").is_dir():
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    with locked(out / "seed-0" / ".style.lock", lambda: None):  # the run ends by itself
        pass
    spent = json.loads((out / "seed-0" / "style.time.json").read_text())
    assert not spent["done"]
    before = (out / "seed-0" / "all-tasks.time.json").read_bytes()

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "seed-0" / "all-tasks.time.json").read_bytes() == before
    content = json.loads((out / "seed-0.json").read_text())
    for name in ("all-tasks", "style", "genre"):
        parts = content["jobs"][name]["parts"]
        assert set(parts) == set(tool.PARTS)
        assert min(min(both) for both in parts.values()) > 0
    assert content["jobs"]["style"]["parts"]["start"] > spent["parts"]["start"]
    assert len(list((out / "records").glob("seed-0/*/features/*/features.json"))) == 3
    combined = load_table(select_tasks(spec, ["style", "genre"]), data)
    for task in ("style", "genre"):  # no image of the demo is missing or unreadable
        assert content["labels"][task] == 5 * len(combined.labels_of(task, "train"))
    frame = pd.read_csv(out / "comparison.csv")
    assert list(frame["task"]) == ["style", "style", "genre", "genre"] + ["all-tasks"] * 4
    values = frame.loc[frame["task"] != "all-tasks", list(tool.MODELS)]
    assert values.notna().all(axis=None)
    assert values.ge(0).all(axis=None)
    assert (out / "comparison.png").stat().st_size > 10_000

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "===" not in again.stdout
    assert json.loads((out / "seed-0.json").read_text()) == content
