"""Comparisons of runs, against SciPy, scikit-learn and plain loops over resampled images."""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from multitask import bootstrap as bootstrap_module
from multitask import metrics
from multitask.annexes.compare import comparison
from multitask.annexes.compare.comparison import (
    ALL_TASKS,
    compare,
    mcnemar,
    page,
    table_lines,
    write_comparison,
)
from multitask.annexes.compare.results import Results, common_test_set, read_results
from multitask.bootstrap import PairedPredictions, bootstrap, scores
from multitask.evaluation.predictions import Predictions
from multitask.files import write_json
from multitask.pages import render
from multitask.run import open_run, start_run
from multitask.spec import MISSING, InputError

NAMES = {"style": tuple("qwertyu"), "genre": ("x", "y", "z")}


def answers(count, classes, seed, share=0.6):
    """(labels, probabilities) with about that share right; classes of uneven frequency."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = np.random.default_rng(99).choice(classes, count, p=weights)
    predicted = np.where(rng.random(count) < share, labels, rng.integers(0, classes, count))
    probabilities = rng.dirichlet(np.ones(classes), count)
    probabilities[np.arange(count), predicted] += 1
    return labels, (probabilities / 2).astype(np.float32)


def results(name="runs/a", seed=0, count=60, names=NAMES, **changes):
    """Of a run with a label of every task for most images."""
    paths = [f"p/{index:03}.jpg" for index in range(count)]
    of = {"true": {}, "predicted": {}, "probabilities": {}, "metrics": {}}
    for task, classes in names.items():
        labels, probabilities = answers(count, len(classes), seed)
        known = np.random.default_rng(7).random(count) < 0.9
        predicted = probabilities.argmax(axis=1)
        of["true"][task] = [classes[i] if k else "" for i, k in zip(labels, known, strict=True)]
        of["predicted"][task] = [classes[index] for index in predicted]
        of["probabilities"][task] = probabilities
        values = metrics.classification_metrics(
            labels[known], probabilities[known], classes=len(classes)
        )
        of["metrics"] |= {f"{task}/{key}": value for key, value in values.items()}
        of["metrics"][f"{task}/ece"] = metrics.expected_calibration_error(
            labels[known], probabilities[known]
        )
    one = Results(name, {}, "models/best_model.keras", paths=paths, **of)
    return dataclasses.replace(one, **changes)


def sampled_test_set(count=80, classes=6, seeds=(1, 2)):
    """(Test set, labels, probabilities of each run)."""
    samples = [answers(count, classes, seed) for seed in seeds]
    labels, probabilities = samples[0][0], [p for _, p in samples]
    best = [np.argsort(-p, axis=1, kind="stable")[:, :5] for p in probabilities]
    top5 = [(five == labels[:, None]).any(axis=1) for five in best]
    predictions = np.array([p.argmax(axis=1) for p in probabilities])
    return PairedPredictions(labels, predictions, np.array(top5)), labels, probabilities


def rows_of(result):
    return {(row.task, row.metric): row for row in result.rows}


# === Chance ===


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),  # 2 · 1/2
        (5, 0, 2 / 32),
        (1, 6, 2 * (1 + 7) / 128),
        (3, 3, 1),
        (4, 3, 1),
    ],
)
def test_mcnemar_by_hand(first, second, p):
    """The two-sided share of the tail of a fair coin thrown once a discordant pair."""
    one = np.repeat([True, False, True, False], [first, second, 4, 3])
    two = np.repeat([False, True, True, False], [first, second, 4, 3])
    assert mcnemar(one, two) == pytest.approx(p)
    assert mcnemar(two, one) == pytest.approx(p)


def test_mcnemar_is_scipys_binomial_test():
    rng = np.random.default_rng(0)
    for share in rng.random(40):
        one, two = rng.random(300) < share, rng.random(300) < 0.5
        a, b = int((one & ~two).sum()), int((two & ~one).sum())
        expected = scipy.stats.binomtest(a, a + b, 0.5).pvalue
        assert mcnemar(one, two) == pytest.approx(expected, rel=1e-9)


def test_scores_are_those_of_metrics_and_scikit_learn():
    test_set, labels, probabilities = sampled_test_set()
    samples = scores(test_set, np.ones((1, len(labels))))
    for run, own in enumerate(probabilities):
        expected = metrics.classification_metrics(labels, own, classes=6)
        assert set(samples) == set(expected) - {"labelled", "classes_present"}
        for name, values in samples.items():
            assert values.shape == (1, 2)
            assert values[0, run] == pytest.approx(expected[name])
        predicted = own.argmax(axis=1)
        macro = sklearn.metrics.f1_score(labels, predicted, average="macro")
        assert samples["macro_f1"][0, run] == pytest.approx(macro)


def test_scores_of_weighted_examples_are_those_of_repeated_ones():
    """The averages exclude a class that is not in the sample."""
    test_set, labels, probabilities = sampled_test_set(count=25)
    weights = np.random.default_rng(3).multinomial(25, np.ones(25) / 25, 5)
    weights[:, labels == labels[0]] = 0
    samples = scores(test_set, weights * 1.0)
    for draw, counts in enumerate(weights):
        sample = np.repeat(np.arange(25), counts)
        for run, own in enumerate(probabilities):
            expected = metrics.classification_metrics(labels[sample], own[sample], classes=6)
            for name, values in samples.items():
                assert values[draw, run] == pytest.approx(expected[name]), name


def test_intervals_are_those_of_a_loop_over_resampled_images():
    test_set, labels, probabilities = sampled_test_set(count=150)
    samples = bootstrap(test_set, draws=4000, seed=1)
    rng = np.random.default_rng(11)
    predicted = [own.argmax(axis=1) for own in probabilities]
    looped = {"top1": [], "macro_f1": [], "top5": [], "balanced_accuracy": []}
    for _ in range(1500):
        at = rng.integers(0, 150, 150)
        true = labels[at]
        of = []
        for classes, probability in zip(predicted, probabilities, strict=True):
            classes, probability = classes[at], probability[at]
            f1, recall = [], []
            for label in np.unique(true):
                right = ((true == label) & (classes == label)).sum()
                f1.append(2 * right / ((true == label).sum() + (classes == label).sum()))
                recall.append(right / (true == label).sum())
            best = np.argsort(-probability, axis=1)[:, :5]
            of.append(
                {
                    "top1": np.mean(true == classes),
                    "macro_f1": np.mean(f1),
                    "top5": np.mean((best == true[:, None]).any(axis=1)),
                    "balanced_accuracy": np.mean(recall),
                }
            )
        for name, values in looped.items():
            values.append(of[1][name] - of[0][name])
    for name, values in looped.items():
        sampled = samples[name][:, 1] - samples[name][:, 0]
        spread = np.std(values)
        assert np.std(sampled) == pytest.approx(spread, rel=0.1)
        # A 2.5 % point has a standard error of about 2.7 spreads over the root of the draws.
        error = 4 * 2.7 * spread * math.sqrt(1 / 1500 + 1 / 4000)
        for end in (0.025, 0.975):
            assert np.quantile(sampled, end) == pytest.approx(np.quantile(values, end), abs=error)


def test_draws_are_seeded_and_taken_in_parts(monkeypatch):
    test_set, _, _ = sampled_test_set()
    whole = bootstrap(test_set, draws=50, seed=3)
    monkeypatch.setattr(bootstrap_module, "_CELLS", 300)
    parts = bootstrap(test_set, draws=50, seed=3)
    other = bootstrap(test_set, draws=50, seed=4)
    for name, values in whole.items():
        assert values.shape == (50, 2)
        np.testing.assert_array_equal(parts[name], values)
        assert (other[name] != values).any()


def test_of_a_single_class_that_is_always_right_nothing_is_chance():
    test_set = PairedPredictions(np.zeros(9, int), np.zeros((2, 9), int), np.ones((2, 9), bool))
    for values in bootstrap(test_set, draws=20).values():
        assert (values == 1).all()


# === Comparing ===


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


# === From the files of evaluate ===


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


# === Showing ===


class Outside(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_escapes_names():
    name = 'runs/<script>alert("x")</script>&amp;'
    result = compare([results("runs/a", 1), results(name, 2)])
    html = page(result)
    reader = Outside()
    reader.feed(html)
    assert reader.loads == []
    assert "script" not in reader.tags
    assert name in "".join(reader.text)
    assert "<script>" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("<svg") == 3 + len(result.rows)  # an axis a section, a plot a metric
    for text in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert text in html


def test_dots_and_whiskers_stand_where_the_figures_are():
    result = compare([results("runs/a", 1), results("runs/b", 2)])
    html = page(result)
    dots = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)%"', html)]
    whiskers = re.findall(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', html)
    differences = [row.differences[0] for row in result.rows]
    span = float(re.findall(r"\+([\d.]+)</text>", html)[0])
    np.testing.assert_allclose(dots, [50 + 46 * d.value / span for d in differences], atol=0.01)
    ends = [(d.low, d.high) for d in differences if d.low is not None]
    np.testing.assert_allclose(
        np.array(whiskers, float), 50 + 46 * np.array(ends) / span, atol=0.01
    )
    assert max(map(abs, np.ravel(ends))) <= span


def test_the_table_has_a_row_a_figure(capsys):
    result = compare([results("runs/a", 1), results("runs/b", 2)])
    lines = [line for line in table_lines(result) if line]
    assert lines[0].split() == ["task", "metric", "runs/a", "runs/b", "runs/b", "-", "runs/a"]
    assert len(lines) == 1 + len(result.rows)
    top1 = next(line for line in lines if line.split()[:2] == ["style", "top1"])
    values = rows_of(result)["style", "top1"].values
    assert top1.split()[2:4] == [f"{value:.3f}" for value in values]
    assert re.search(r"\[[+-]0\.\d{3}, [+-]0\.\d{3}\]  p [=<] 0\.\d{3}$", top1)


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (0.71249, "0.712", "+0.712"),
        (-0.0042, "−0.004", "−0.004"),
        (-0.0001, "0.000", "0.000"),
        (0.0, "0.000", "0.000"),
        (None, "n/a", "n/a"),
        (math.nan, "n/a", "n/a"),
    ],
)
def test_figures_have_three_decimals(value, plain, signed):
    assert render.figure(value) == plain
    assert render.figure(value, signed=True) == signed


def test_counts_are_whole():
    assert [comparison.text(n) for n in (0, 24000)] == ["0", "24,000"]
    assert [comparison.text(n, signed=True) for n in (0, 1200, -3)] == ["0", "+1,200", "−3"]
    assert render.count(24000) == "24,000"
    assert render.count(None) == "n/a"


# === The command ===


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
