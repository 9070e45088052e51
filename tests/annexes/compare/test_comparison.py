"""Comparisons of runs: differences, refusals, files and the command."""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from compared_runs import NAMES, answers, results, rows_of

from multitask import metrics
from multitask.annexes.compare.comparison import (
    ALL_TASKS,
    compare,
    page,
    table_lines,
    write_comparison,
)
from multitask.annexes.compare.results import common_test_set, read_results
from multitask.evaluation.predictions import Predictions
from multitask.files import write_json
from multitask.run import open_run, start_run
from multitask.spec import MISSING, InputError


def test_identical_runs_do_not_differ():
    result = compare([results("runs/a"), results("runs/b")])
    labelled = sum(map(bool, results().true["style"]))
    assert result.labelled == {"style": labelled, "genre": labelled, ALL_TASKS: labelled}
    assert len(result.rows) == 2 * 6 + 1
    for row in result.rows:
        (difference,) = row.differences
        assert difference.value == 0
        assert difference.p == (1 if row.metric in ("top1", "exact_match") else None)
        ends = (None, None) if row.metric == "ece" else (0, 0)
        assert (difference.low, difference.high) == ends


def test_of_few_images_there_are_no_intervals_and_a_note_says_so():
    """Two images would have claimed a difference for certain."""
    few = compare([results("runs/a", 1, count=12), results("runs/b", 2, count=12)])
    for row in few.rows:
        (difference,) = row.differences
        assert (difference.low, difference.high) == (None, None)
        exact = row.metric in ("top1", "exact_match")  # for any number of images
        assert (difference.p is None) != exact
    assert [note.partition(":")[0] for note in few.notes] == ["style", "genre"]
    labelled = few.labelled["style"]
    assert few.notes[0] == (
        f"style: no intervals: {labelled} test images have a label, at least 20 are needed"
    )
    enough = compare([results("runs/a", 1), results("runs/b", 2)])
    assert not enough.notes
    assert rows_of(enough)["style", "top1"].differences[0].low is not None


def test_differences_are_to_the_first_run():
    runs = [results("runs/a", 1), results("runs/b", 2), results("runs/c", 3)]
    result = compare(runs)
    for key, row in rows_of(result).items():
        name = "/".join(key)
        if row.task != ALL_TASKS:
            assert row.values == tuple(run.metrics[name] for run in runs)
        for difference, run in zip(row.differences, (1, 2), strict=True):
            assert difference.run == run
            assert difference.value == row.values[run] - row.values[0]
            if difference.low is not None:
                assert difference.low <= difference.value <= difference.high
    for task in NAMES:
        right = [np.array(one.predicted[task]) == np.array(one.true[task]) for one in runs]
        for run in (1, 2):
            a, b = (right[0] & ~right[run]).sum(), (right[run] & ~right[0]).sum()
            p = rows_of(result)[task, "top1"].differences[run - 1].p
            assert p == pytest.approx(scipy.stats.binomtest(a, a + b, 0.5).pvalue)
    again = compare(runs[::-1])
    assert rows_of(again)["style", "top1"].differences[1].value == pytest.approx(
        -rows_of(result)["style", "top1"].differences[1].value
    )


def test_exact_match_of_all_tasks():
    """Values by a loop, McNemar's test by SciPy, the interval by resampled images."""
    runs = [results("runs/a", 1, count=300), results("runs/b", 2, count=300)]
    result = compare(runs)
    every = [i for i in range(300) if all(runs[0].true[task][i] for task in NAMES)]
    assert 200 < len(every) < 300
    assert result.labelled[ALL_TASKS] == len(every)
    right = np.array([
        [all(run.predicted[task][i] == run.true[task][i] for task in NAMES) for i in every]
        for run in runs
    ])  # fmt: skip
    row = rows_of(result)[ALL_TASKS, "exact_match"]
    assert row.values == pytest.approx(tuple(right.mean(axis=1)))
    (difference,) = row.differences
    change = right[1].astype(float) - right[0]
    assert difference.value == pytest.approx(change.mean())
    only = (change < 0).sum(), (change > 0).sum()
    assert difference.p == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)
    drawn = np.random.default_rng(1).choice(change, (20_000, len(change))).mean(axis=1)
    ends = (difference.low, difference.high)
    np.testing.assert_allclose(ends, np.quantile(drawn, (0.025, 0.975)), atol=0.008)
    alone = [results(f"runs/{n}", names={"style": NAMES["style"]}) for n in "ab"]
    assert ALL_TASKS not in compare(alone).labelled


def test_the_order_of_the_images_is_no_difference():
    one, two = results("runs/a", 1), results("runs/b", 2)
    order = np.random.default_rng(0).permutation(len(one.paths))
    turned = dataclasses.replace(
        two,
        paths=[two.paths[i] for i in order],
        true={task: [values[i] for i in order] for task, values in two.true.items()},
        predicted={task: [values[i] for i in order] for task, values in two.predicted.items()},
        probabilities={task: values[order] for task, values in two.probabilities.items()},
    )
    assert compare([one, turned]).rows == compare([one, two]).rows


def test_different_test_sets_and_classes_are_refused():
    one = results("runs/a")
    moved = results("runs/b", paths=[*one.paths[:-1], "p/new.jpg"])
    place = one.true["style"].index("u")
    true = {**one.true, "style": [*one.true["style"]]}
    true["style"][place] = "w"
    emptied = {
        **one.true,
        "style": ["" if i == place else t for i, t in enumerate(one.true["style"])],
    }
    fewer = {**one.probabilities, "genre": one.probabilities["genre"][:, :2]}
    renamed = {task: [*values] for task, values in one.predicted.items()}
    renamed["genre"] = ["ex" if name == "x" else name for name in renamed["genre"]]
    path = one.paths[place]
    for changed, message in (
        (
            moved,
            "style: the runs have different test sets: 2 images differ, the first is p/059.jpg",
        ),
        (
            results("runs/b", true=true),
            f"1 image differs, the first is {path} ('u' in runs/a, 'w' in runs/b)",
        ),
        (results("runs/b", true=emptied), "('u' in runs/a, no label in runs/b)"),
        (results("runs/b", probabilities=fewer), "genre: 3 classes in runs/a, 2 in runs/b"),
        (results("runs/b", predicted=renamed), "genre: class 0 is 'ex' in runs/b and 'x' before"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            compare([one, changed])


def test_only_common_tasks_are_compared_and_the_others_named():
    one = results("runs/a")
    two = results("runs/b", 2, names={"style": NAMES["style"], "season": ("hot", "cold")})
    result = compare([one, two])
    assert set(result.labelled) == {"style"}
    assert result.notes == (
        "genre: not compared, because it is a task of runs/a only",
        "season: not compared, because it is a task of runs/b only",
    )
    assert "\n".join(table_lines(result)).count("not compared") == 2
    other = results("runs/c", names={"season": ("hot", "cold")})
    with pytest.raises(InputError, match="no task in common"):
        compare([one, other])
    with pytest.raises(InputError, match="two runs or more"):
        compare([one])


def test_top5_has_no_interval_where_a_class_column_is_unknown():
    """A class of the test set that no run predicts may be either of two columns."""
    runs = []
    for name, seed in (("runs/a", 1), ("runs/b", 2)):
        one = results(name, seed, names={"style": NAMES["style"]})
        wide = np.pad(one.probabilities["style"], ((0, 0), (0, 2)))
        true = [*one.true["style"]]
        true[next(i for i, label in enumerate(true) if label)] = "never predicted"
        runs.append(dataclasses.replace(one, true={"style": true}, probabilities={"style": wide}))
    assert common_test_set("style", runs).in_top5 is None
    (difference,) = rows_of(compare(runs))["style", "top5"].differences
    assert difference.value is not None
    assert (difference.low, difference.high) == (None, None)


@pytest.fixture
def made(known, data, tmp_path):
    """A function: name, seed -> a run with the results that `evaluate` would write."""

    def make(name, seed, **changes):
        spec = known.colour_spec(("shade", "warmth"), **changes)
        run = start_run(tmp_path / name, spec, data.folder)
        classes = {task: known.CLASSES[task] for task in spec.task_names}
        labels = np.full((200, 2), MISSING, np.int32)
        probabilities = {}
        for column, (task, names) in enumerate(classes.items()):
            true, probabilities[task] = answers(200, len(names), seed)
            seen = np.random.default_rng(column).random(200) < 0.8
            labels[seen, column] = true[seen]
        paths = np.array([f"a/“{index}”, <b>.jpg" for index in range(200)], dtype=object)
        predictions = Predictions(classes, paths, labels, probabilities)
        predictions.save(run.results)
        flat = {}
        for task, names in classes.items():
            _, true, predicted = predictions.labelled_examples(task)
            values = metrics.classification_metrics(true, predicted, classes=len(names))
            values |= {"classes": len(names), "outliers": seed, "kind": "text", "list": [1]}
            flat |= {f"{task}/{key}": value for key, value in values.items()}
        write_json(
            run.results / "metrics.json", {"model": "models/best_model.keras", "metrics": flat}
        )
        return run, predictions

    return make


def test_what_evaluate_wrote_is_read(made, known):
    run, predictions = made("first", 1)
    read = read_results(open_run(run.workdir))
    assert read.paths == list(predictions.paths)
    for column, task in enumerate(("shade", "warmth")):
        labels = predictions.labels[:, column]
        names = known.CLASSES[task]
        assert read.true[task] == [names[i] if i != MISSING else "" for i in labels]
        np.testing.assert_array_equal(read.probabilities[task], predictions.probabilities[task])
    assert read.settings["task.warmth.head.kind"] == "linear"
    assert "shade/kind" not in read.metrics
    assert read.metrics["shade/outliers"] == 1


def test_the_csv_has_every_metric(made, tmp_path):
    runs = [read_results(made(name, seed)[0]) for name, seed in (("first", 1), ("second", 2))]
    result = compare(runs)
    write_comparison(result, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "comparison.csv",
        "comparison.html",
    ]
    frame = pd.read_csv(tmp_path / "out/comparison.csv")
    assert len(frame) == 2 * len(result.rows) == 2 * (2 * 6 + 1)
    for row in result.rows:
        first, second = frame[
            (frame["task"] == row.task) & (frame["metric"] == row.metric)
        ].itertuples()
        (d,) = row.differences
        assert (first.value, second.value) == pytest.approx(row.values)
        assert math.isnan(first.difference)
        assert second.difference == pytest.approx(d.value)
        for value, expected in ((second.low, d.low), (second.high, d.high), (second.p, d.p)):
            assert math.isnan(value) if expected is None else value == pytest.approx(expected)


def test_differing_settings_are_listed_by_task_name(made, known, data, tmp_path):
    one = read_results(made("first", 1)[0])
    two, _ = made("second", 2, batch_size=9)
    spec = known.colour_spec(("warmth", "shade"), batch_size=9)
    raw = json.loads((two.workdir / "config.json").read_text())
    raw["spec"] = spec.to_dict()
    raw["spec"]["task"][0]["loss"]["gamma"] = 3.5
    write_json(two.workdir / "config.json", raw)
    result = compare([one, read_results(open_run(two.workdir))])
    assert result.settings == {"batch_size": (7, 9), "task.warmth.loss.gamma": (1.0, 3.5)}
    assert "task.warmth.loss.gamma" in page(result)


@pytest.mark.parametrize("file", ["metrics.json", "predictions.csv", "probabilities.npz"])
def test_broken_results_are_refused_by_name(made, file):
    run, _ = made("first", 1)
    path = run.results / file
    whole = path.read_bytes()
    for content in (b"", b"{", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not the results of one evaluation") as caught:
            read_results(run)
        assert "multitask evaluate" in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match=f"no results .*{file}"):
        read_results(run)


def test_predictions_of_an_earlier_version_are_refused(made):
    """Their columns had no slash."""
    run, _ = made("first", 1)
    path = run.results / "predictions.csv"
    path.write_text(path.read_text().replace("/", "_"))
    with pytest.raises(InputError, match=r"of an earlier version .*`multitask evaluate"):
        read_results(run)


def test_files_of_two_evaluations_are_refused(made):
    (one, _), (two, _) = made("first", 1), made("second", 2)
    for file in ("metrics.json", "probabilities.npz"):
        whole = (one.results / file).read_bytes()
        (one.results / file).write_bytes((two.results / file).read_bytes())
        with pytest.raises(InputError, match="disagree"):
            read_results(one)
        (one.results / file).write_bytes(whole)
    read_results(one)


def test_the_command_needs_no_tensorflow(made, tmp_path):
    for name, seed in (("first", 1), ("second", 2)):
        made(name, seed)
    code = (
        "import sys; from multitask.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'tensorflow', 'keras', 'sklearn'} & set(sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "compare", "first", "second"],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "Written: comparison/comparison.html, comparison/comparison.csv" in process.stdout
    with (tmp_path / "comparison/comparison.csv").open(newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"first", "second"}
    assert "shade" in (tmp_path / "comparison/comparison.html").read_text()
