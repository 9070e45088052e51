"""The reports of a model whose answers are known, against scikit-learn and the CSVs."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from PIL import Image

from multitask.__main__ import main
from multitask.evaluation.report import architecture_nodes, evaluate, read_history, summary_lines
from multitask.spec import InputError

PICTURES = ("model_architecture", "confusion_matrix", "f1_scores", "training_history", "outliers")


@pytest.fixture(scope="module")
def evaluated(known, data, tmp_path_factory):
    """(run, Evaluation, the lines that were told)."""
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    pd.DataFrame(
        {
            "epoch": [1, 2],
            "phase": ["heads", "heads"],
            "shade/top1": [0.2, 0.4],
            "shade/val_top1": [0.1, 0.3],
        }
    ).to_csv(run.logs / "history.csv", index=False)
    told = []
    evaluation = evaluate(run, tell=told.append)
    # The training pictures are embedded in the first evaluation alone.
    (embedding,) = [line for line in told if line.startswith("Embedding")]
    told.remove(embedding)
    return run, evaluation, told


@pytest.fixture(scope="module")
def truth(known, data):
    """task -> (paths, labels, probabilities), from the pictures' colours and the CSV rows alone."""

    def of(task):
        paths = sorted(data.labels[task].keys() - set(data.missing))
        labels = np.array([data.labels[task][path] for path in paths], int)
        painted = np.array([data.painted[path] for path in paths]).reshape(-1, 3)
        return paths, labels, known.answers(painted)[task]

    return {task: of(task) for task in known.CLASSES}


def saved(run):
    return json.loads((run.results / "metrics.json").read_text())


@pytest.mark.parametrize("task", ["shade", "warmth"])
def test_metrics_are_those_of_scikit_learn(evaluated, truth, known, task):
    run, _, _ = evaluated
    _, labels, probabilities = truth[task]
    predicted = probabilities.argmax(axis=1)
    present = np.unique(labels)
    metrics = {
        name.removeprefix(f"{task}/"): value
        for name, value in saved(run)["metrics"].items()
        if name.startswith(f"{task}/")
    }
    classes = len(known.CLASSES[task])
    top5 = sklearn.metrics.top_k_accuracy_score(
        labels, probabilities, k=min(5, classes - 1), labels=np.arange(classes)
    )

    def f1(average):
        return sklearn.metrics.f1_score(
            labels, predicted, labels=present, average=average, zero_division=0
        )

    recall = sklearn.metrics.recall_score(
        labels, predicted, labels=present, average="macro", zero_division=0
    )
    top1 = sklearn.metrics.accuracy_score(labels, predicted)
    assert 0 < top1 < 1  # or the figures above could not tell a mix-up
    assert metrics == {
        "labelled": len(labels),
        "classes": classes,
        "classes_present": len(present),
        "top1": pytest.approx(top1),
        "top5": pytest.approx(top5) if classes > 5 else 1.0,
        "macro_f1": pytest.approx(f1("macro")),
        "weighted_f1": pytest.approx(f1("weighted")),
        "balanced_accuracy": pytest.approx(recall),
        "ece": pytest.approx(_ece(labels, probabilities), abs=1e-5),
        "outliers": sum(
            p.max() < 0.5 or p.argmax() != label
            for label, p in zip(labels, probabilities, strict=True)
        ),
    }


def _ece(labels, probabilities):
    """Bin by bin, as the paper words it."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("task", ["shade", "warmth"])
def test_the_baseline_is_the_commonest_training_class(evaluated, truth, data, task):
    run, _, _ = evaluated
    train = list(data.train_labels[task].values())
    commonest = min(set(train), key=lambda label: (-train.count(label), label))
    labels = truth[task][1]
    assert saved(run)["baseline"][f"{task}/class"] == commonest
    assert saved(run)["baseline"][f"{task}/top1"] == pytest.approx(np.mean(labels == commonest))
    f1 = sklearn.metrics.f1_score(
        labels,
        np.full(len(labels), commonest),
        labels=np.unique(labels),
        average="macro",
        zero_division=0,
    )
    assert saved(run)["baseline"][f"{task}/macro_f1"] == pytest.approx(f1)


def test_a_task_without_exam_says_so_everywhere(evaluated):
    run, evaluation, told = evaluated
    metrics = saved(run)["metrics"]
    assert metrics["empty/labelled"] == 0
    assert metrics["empty/outliers"] is None
    assert saved(run)["without_test_set"] == ["empty"]
    for name in ("top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy", "ece"):
        assert metrics[f"empty/{name}"] is None
    assert saved(run)["baseline"]["empty/top1"] is None
    report = (run.results / "classification_report_empty.txt").read_text()
    assert report == "n/a (no test set)\n"
    assert [line for line in told if line.startswith("empty")] == ["empty   n/a (no test set)"]
    assert len(pd.read_csv(run.results / "outliers_empty.csv")) == 0
    assert "NaN" not in (run.results / "metrics.json").read_text()


def test_absent_classes_are_counted_and_averaged_over_by_none(evaluated, truth, known):
    run, evaluation, told = evaluated
    absent = set(range(12)) - set(truth["shade"][1])
    assert known.NEVER_EXAMINED in absent
    assert saved(run)["metrics"]["shade/classes_present"] == 12 - len(absent)
    (line,) = [line for line in told if line.startswith("shade")]
    assert line.endswith(f"(over {12 - len(absent)} classes; {len(absent)} have no exam)")


def test_the_console_shows_the_figures_of_the_file(evaluated):
    run, evaluation, told = evaluated
    metrics, baseline = saved(run)["metrics"], saved(run)["baseline"]
    assert told[0].startswith(f"Evaluating {run.best_model} on the exam pictures of ")
    assert summary_lines(evaluation) == told[1:]
    for task in ("shade", "warmth"):
        (line,) = [line for line in told if line.startswith(task)]
        wanted = [f"{metrics[f'{task}/labelled']}"] + [
            f"{metrics[f'{task}/{name}']:.3f}"
            for name in ("top1", "top5", "macro_f1", "weighted_f1")
        ]
        wanted += [f"{baseline[f'{task}/{name}']:.3f}" for name in ("top1", "macro_f1")]
        assert line.split()[1:8] == wanted
    assert told[-1] == f"val pictures left out: {len(evaluation.unusable)} missing, 0 unreadable"


@pytest.mark.parametrize("task", ["shade", "warmth"])
def test_outliers_worst_first_with_their_reasons(evaluated, truth, known, task):
    run, _, _ = evaluated
    paths, labels, probabilities = truth[task]
    names = known.CLASSES[task]
    wrong, unsure = [], []
    for path, label, p in zip(paths, labels, probabilities, strict=True):
        said = int(p.argmax())
        row = (path, names[label], names[said], p.max(), p[label])
        if said != label:
            wrong.append((*row, "misclassified"))
        elif p.max() < 0.5:
            unsure.append((*row, "low confidence"))
    wrong.sort(key=lambda row: -row[3])  # the surest error is the worst
    unsure.sort(key=lambda row: row[3])
    with (run.results / f"outliers_{task}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert wrong
    assert [(r["path"], r["true"], r["predicted"], r["reason"]) for r in rows] == [
        (*row[:3], row[5]) for row in wrong + unsure
    ]
    for row, expected in zip(rows, wrong + unsure, strict=True):
        assert float(row["confidence"]) == pytest.approx(expected[3], abs=1e-5)
        assert float(row["probability_of_true"]) == pytest.approx(expected[4], abs=1e-5)


def test_a_sure_and_an_unsure_outlier_are_both_seen(evaluated):
    """Or the test above would not know the order of the two kinds."""
    run, _, _ = evaluated
    reasons = pd.read_csv(run.results / "outliers_shade.csv")["reason"].tolist()
    assert set(reasons) == {"misclassified", "low confidence"}


@pytest.mark.parametrize("task", ["shade", "warmth", "empty"])
def test_every_promised_file_is_there_and_real(evaluated, task):
    run, _, _ = evaluated
    for kind in PICTURES:
        with Image.open(run.results / f"{kind}_{task}.png") as picture:
            assert picture.format == "PNG"
            picture.load()
            assert min(picture.size) >= 100
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 1  # not a blank sheet
    assert (run.results / f"classification_report_{task}.txt").read_text().endswith("\n")


def test_there_is_nothing_else_in_the_results(evaluated, known):
    run, _, _ = evaluated
    wanted = {"metrics.json", "calibration.json", "predictions.csv", "probabilities.npz"}
    wanted |= {"report.html", "evaluation.json"}
    for task in known.CLASSES:
        wanted |= {f"{kind}_{task}.png" for kind in PICTURES}
        wanted |= {f"classification_report_{task}.txt"}
        wanted |= {f"{kind}_{task}.csv" for kind in ("outliers", "classes", "confusion")}
    assert {path.name for path in run.results.iterdir()} == wanted


def test_the_classification_report_names_classes_by_index(evaluated, truth, known):
    """Each line's support is that of the class of its name."""
    run, _, _ = evaluated
    support = {}
    for line in (run.results / "classification_report_shade.txt").read_text().splitlines():
        cells = line.split()
        if len(cells) == 5 and cells[0] in known.SHADE:
            support[cells[0]] = int(cells[4])
    counts = np.bincount(truth["shade"][1], minlength=12)
    assert support == dict(zip(known.SHADE, map(int, counts), strict=True))


@pytest.mark.parametrize("task", ["shade", "warmth", "empty"])
def test_every_class_and_every_pair_is_in_the_csv_files(evaluated, truth, known, task):
    """By scikit-learn's own confusion matrix and scores."""
    run, _, _ = evaluated
    _, labels, probabilities = truth[task]
    predicted, names = probabilities.argmax(axis=1), known.CLASSES[task]
    every = range(len(names))
    counts = np.zeros((len(names), len(names)), int)
    scores = [np.full(len(names), np.nan)] * 3
    if len(labels):
        counts = sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
        *scores, _ = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=every, zero_division=0
        )
    pairs = pd.read_csv(run.results / f"confusion_{task}.csv")
    assert pairs["count"].is_monotonic_decreasing
    cells = pairs.set_index(["true", "predicted"])[["count", "share_of_true"]]
    found = {key: tuple(row) for key, row in zip(cells.index, cells.to_numpy(), strict=True)}
    assert found == {
        (names[t], names[p]): (counts[t, p], pytest.approx(counts[t, p] / counts[t].sum()))
        for t in every
        for p in every
        if counts[t, p]
    }
    classes = pd.read_csv(run.results / f"classes_{task}.csv", keep_default_na=False)
    assert classes["class"].tolist() == list(names)
    assert classes["label"].tolist() == list(every)
    assert classes["examples"].tolist() == counts.sum(axis=1).tolist()
    assert classes["predicted"].tolist() == counts.sum(axis=0).tolist()
    for row in classes.itertuples(index=False):
        wrong = np.where(np.arange(len(names)) == row.label, 0, counts[row.label])
        assert row.times == wrong.max()
        assert row.most_often_taken_for == (names[wrong.argmax()] if wrong.any() else "")
        for name, values in zip(("precision", "recall", "f1"), scores, strict=True):
            shown = getattr(row, name)
            if row.examples:
                assert float(shown) == pytest.approx(values[row.label])
            else:
                assert shown == ""


def test_metrics_say_what_was_examined(evaluated):
    run, evaluation, _ = evaluated
    content = saved(run)
    assert content["spec"] == "colours"
    assert content["model"] == "models/best_model.keras"
    assert content["pictures"] == len(evaluation.predictions.paths)
    assert content["unusable_pictures"] == len(evaluation.unusable) > 0
    assert {"python", "keras", "numpy"} <= content["versions"].keys()


def test_evaluating_again_gives_the_very_same_files(evaluated):
    run, _, told = evaluated
    names = ("metrics.json", "predictions.csv", "probabilities.npz", "outliers_shade.csv")
    names += ("report.html", "calibration.json")
    before = {name: (run.results / name).read_bytes() for name in names}
    files = {path.name for path in run.results.iterdir()}
    lines = []
    evaluate(run, tell=lines.append)
    assert {path.name for path in run.results.iterdir()} == files
    for name in set(names) - {"probabilities.npz"}:
        assert (run.results / name).read_bytes() == before[name]
    with np.load(io.BytesIO(before["probabilities.npz"])) as old:
        new = np.load(run.results / "probabilities.npz")
        for task in old.files:
            np.testing.assert_array_equal(new[task], old[task])
    assert lines == told


def test_training_left_out_pictures_do_not_count_in_the_baseline(known, data, tmp_path):
    """With the pictures of the commonest class unusable, another class is the commonest."""
    labels = data.train_labels["warmth"]
    commonest = max(set(labels.values()), key=list(labels.values()).count)
    gone = [path for path, label in labels.items() if label == commonest]
    run = known.make_run(tmp_path / "run", data, tasks=("warmth",))
    pd.DataFrame({"path": gone, "reason": "no such file"}).to_csv(
        run.workdir / "left_out.csv", index=False
    )
    evaluation = evaluate(run, tell=lambda line: None)
    rest = [label for label in labels.values() if label != commonest]
    assert evaluation.metrics["warmth"]["baseline"]["class"] == max(
        sorted(set(rest)), key=rest.count
    )


def test_near_duplicates_are_looked_for_and_reported_without(known, data, tmp_path, write_picture):
    """The same painting, another size, in training and in two exams: the exam less those two."""
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    seen = sorted(set(data.labels["warmth"]) - set(data.missing))[2:4]
    trained = sorted(data.train_labels["warmth"])[0]
    for path, size in ((seen[0], 90), (seen[1], 120), (trained, 150)):
        write_picture(folder / "pictures" / path, width=size, height=size, seed=5, cells=(24, 24))
    run = known.make_run(tmp_path / "run", data)
    run = dataclasses.replace(run, data_dir=folder)
    told = []
    evaluation = evaluate(run, exclude_near_duplicates=True, tell=told.append)
    assert list(evaluation.near_duplicates) == seen
    content = saved(run)
    kept = evaluation.predictions.without(seen)
    assert len(kept.paths) == len(evaluation.predictions.paths) - 2
    assert not set(seen) & set(kept.paths)
    for task in ("shade", "warmth"):
        _, labels, probabilities = kept.exam(task)
        found = content["without_near_duplicates"]["metrics"]
        assert found[f"{task}/labelled"] == len(labels)
        assert found[f"{task}/top1"] == pytest.approx(
            sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1))
        )
    assert content["metrics"]["warmth/labelled"] == found["warmth/labelled"] + 2
    assert content["without_near_duplicates"]["near_duplicates"] == seen
    place = told.index(
        "Without the 2 val pictures that are the same painting as a training picture:"
    )
    assert told[place + 3].split()[:2] == ["warmth", str(found["warmth/labelled"])]

    # Known from then on, or from training.
    pairs = pd.read_csv(run.workdir / "near_duplicates.csv")
    assert len(pairs) == 3
    pairs.head(0).to_csv(run.workdir / "near_duplicates.csv", index=False)
    again = evaluate(run, exclude_near_duplicates=True, tell=lambda line: None)
    assert again.near_duplicates == ()
    assert again.without == again.metrics
    assert "without_near_duplicates" in saved(run)
    evaluate(run, similar=False, tell=lambda line: None)
    assert "without_near_duplicates" not in saved(run)


def test_the_architecture_shows_trunk_blocks_then_the_head_layer_by_layer(known):
    nodes = architecture_nodes(known.colour_model(), "warmth")
    assert [(n["name"], n["inputs"]) for n in nodes] == [
        ("trunk input", []),
        ("trunk stem", ["trunk input"]),
        ("trunk block1", ["trunk stem"]),
        ("warmth_pool", ["trunk block1"]),
        ("warmth_logits", ["warmth_pool"]),
    ]
    assert [n["shape"] for n in nodes] == ["32×32×3", "32×32×3", "4×4×3", "3", "3"]
    assert [n["parameters"] for n in nodes] == [0, 0, 0, 0, 3 * 3 + 3]


def test_no_model_or_a_broken_one_is_refused_before_anything_is_written(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data)
    with pytest.raises(InputError, match="nothing.keras: no such model"):
        evaluate(run, model_file=run.models / "nothing.keras")
    run.best_model.write_text("not a model")
    with pytest.raises(InputError, match="best_model.keras: not a model file"):
        evaluate(run)
    assert not run.results.exists()


def test_too_many_missing_pictures_leave_no_results(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data)
    with pytest.raises(InputError, match="max_missing"):
        evaluate(run, max_missing=0.0)
    assert not run.results.exists()


# === Small and one-sided exams ===


@pytest.mark.parametrize(
    ("shade", "warmth"),
    [
        (lambda rows: rows[:1], lambda rows: []),  # one val picture
        (lambda rows: [(path, 3) for path, _ in rows], lambda rows: rows[:2]),  # one class
    ],
)
def test_exams_of_one_picture_and_of_one_class(known, tmp_path, shade, warmth):
    data = known.paint(tmp_path / "data")
    there = sorted(set(data.labels["shade"]) - set(data.missing))
    rows = {
        "shade": shade([(path, data.labels["shade"][path]) for path in there]),
        "warmth": warmth([(path, 0) for path in there]),
    }
    for task, pairs in rows.items():
        text = "".join(f"{path},{label}\n" for path, label in pairs)
        # An empty list is refused; one with a contradiction has no label left.
        text = text or f"{there[0]},0\n{there[0]},1\n"
        (data.folder / "lists" / f"{task}_val.csv").write_text(text)
    run = known.make_run(tmp_path / "run", data)
    evaluation = evaluate(run, tta="flip", tell=str)
    found = evaluation.metrics["shade"]
    labels = [label for _, label in rows["shade"]]
    painted = np.array([data.painted[path] for path, _ in rows["shade"]])
    said = known.answers(painted)["shade"].argmax(axis=1)
    assert found["top1"] == pytest.approx(np.mean(said == labels))
    assert found["classes_present"] == 1
    interval = evaluation.details["intervals"]["shade/top1"]
    assert (interval is None) == (len(labels) < 20)
    assert interval is None or interval[0] <= found["top1"] <= interval[1]
    # Plain colours look the same mirrored.
    assert saved(run)["tta"]["metrics"]["shade/top1"] == found["top1"]
    assert "NaN" not in (run.results / "metrics.json").read_text()
    assert (run.results / "report.html").stat().st_size > 10_000
    queries = saved(run)["similar"]["shade"]["queries"]
    assert queries == len(labels)


def test_a_history_of_an_earlier_version_is_read_by_todays_names(known, data, tmp_path):
    """Its columns had no slash; one that has some is taken as it is."""
    run = known.make_run(tmp_path / "run", data)
    assert read_history(run).empty
    old = {"epoch": [1], "loss": [2.0], "val_loss": [3.0], "trunk_rate": [0.1]}
    of_tasks = {"shade_top1": [0.5], "val_shade_macro_f1": [0.25], "warmth_rate": [0.01]}
    pd.DataFrame(old | of_tasks).to_csv(run.logs / "history.csv", index=False)
    names = [*old, "shade/top1", "shade/val_macro_f1", "warmth/rate"]
    assert list(read_history(run)) == names
    new = pd.DataFrame({"epoch": [1], "shade_top1": [1], "shade/top1": [2]})
    new.to_csv(run.logs / "history.csv", index=False)
    pd.testing.assert_frame_equal(read_history(run), new)


# === A thousand classes ===


@pytest.mark.slow
def test_1000_classes_are_trained_and_reported_on(tiny_data, tiny_spec, tiny_trunk, tmp_path):
    """By the command, with one picture a class; nothing grows with the square of the classes."""
    names = [f"Person_{i}" if i % 3 else f"弟子 $_{i}" for i in range(1000)]
    data = tiny_data(
        rows={
            "style_train": [(f"train/{i}.jpg", i) for i in range(1000)],
            "style_val": [(f"val/{i}.jpg", i * 7 % 1000) for i in range(150)],
        },
        classes={"style": names},
        only=True,
    )
    trunk = {"name": tiny_trunk, "weights": "none", "schedule": {"kind": "constant", "rate": 1e-3}}
    spec = tmp_path / "spec.toml"
    spec.write_text(tiny_spec(tasks=("style",), trunk=trunk, batch_size=50).to_toml())
    workdir = tmp_path / "run"
    flags = [f"--spec={spec}", f"--data_dir={data}", f"--workdir={workdir}", "--phase=heads"]
    main(["train", *flags, "--nosimilar"])

    results = workdir / "results"
    page = (results / "report.html").read_text()
    assert len(page) < 2e6 and page.count("<td") < 15_000
    assert "The matrix has 40 of 1,000 classes" in page and "All 1,000 classes." in page
    for file in results.glob("*.png"):
        with Image.open(file) as picture:
            assert max(picture.size) < 3000, file
    content = json.loads((results / "metrics.json").read_text())
    assert (results / "metrics.json").stat().st_size < 300_000
    confusion = content["confusion"]["style"]
    assert confusion["others"] == 960 and np.sum(confusion["counts"]) == 150
    assert len((results / "classification_report_style.txt").read_text().splitlines()) > 1000
    pairs = pd.read_csv(results / "confusion_style.csv")
    table = pd.read_csv(results / "predictions.csv")
    wanted = table.groupby(["style/true", "style/predicted"]).size()
    pairs = pairs.set_index(["true", "predicted"])["count"]
    assert pairs.sort_index().to_dict() == wanted.to_dict()
    assert pd.read_csv(results / "classes_style.csv")["class"].tolist() == names
