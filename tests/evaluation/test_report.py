"""The reports of a model with known predictions, against scikit-learn and the CSVs."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from logged import logged
from PIL import Image

from multitask.evaluation.architecture import architecture_nodes
from multitask.evaluation.report import evaluate
from multitask.evaluation.summary import summary_lines
from multitask.spec import InputError
from multitask.trained import open_trained

IMAGES = ("model_architecture", "confusion_matrix", "f1_scores", "training_history", "outliers")
IMAGES += ("coverage",)


@pytest.fixture(scope="module")
def evaluated(known, data, tmp_path_factory):
    """(run, Evaluation, log lines)."""
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    pd.DataFrame(
        {
            "epoch": [1, 2],
            "phase": ["heads", "heads"],
            "shade/top1": [0.2, 0.4],
            "shade/val_top1": [0.1, 0.3],
        }
    ).to_csv(run.logs / "history.csv", index=False)
    lines = []
    with logged(lines):
        evaluation = evaluate(open_trained(run))
    # The training images are embedded in the first evaluation only.
    (embedding,) = [line for line in lines if line.startswith("Embedding")]
    lines.remove(embedding)
    return run, evaluation, lines


@pytest.fixture(scope="module")
def truth(known, data):
    """task -> (paths, labels, probabilities), from the images' colours and the CSV rows."""

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
    assert 0 < top1 < 1  # otherwise the metrics could not show a mix-up
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
    """Bin by bin, as in the paper."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("task", ["shade", "warmth"])
def test_the_baseline_is_the_majority_class_of_training(evaluated, truth, data, task):
    run, _, _ = evaluated
    train = list(data.train_labels[task].values())
    majority = min(set(train), key=lambda label: (-train.count(label), label))
    labels = truth[task][1]
    assert saved(run)["baseline"][f"{task}/class"] == majority
    assert saved(run)["baseline"][f"{task}/top1"] == pytest.approx(np.mean(labels == majority))
    f1 = sklearn.metrics.f1_score(
        labels,
        np.full(len(labels), majority),
        labels=np.unique(labels),
        average="macro",
        zero_division=0,
    )
    assert saved(run)["baseline"][f"{task}/macro_f1"] == pytest.approx(f1)


def test_a_task_without_a_test_set_is_marked_everywhere(evaluated):
    run, _evaluation, lines = evaluated
    metrics = saved(run)["metrics"]
    assert metrics["empty/labelled"] == 0
    assert metrics["empty/outliers"] is None
    assert saved(run)["without_test_set"] == ["empty"]
    for name in ("top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy", "ece"):
        assert metrics[f"empty/{name}"] is None
    assert saved(run)["baseline"]["empty/top1"] is None
    report = (run.results / "classification_report_empty.txt").read_text()
    assert report == "n/a (no test set)\n"
    assert [line for line in lines if line.startswith("empty")] == ["empty   n/a (no test set)"]
    assert len(pd.read_csv(run.results / "outliers_empty.csv")) == 0
    assert "NaN" not in (run.results / "metrics.json").read_text()


def test_absent_classes_are_counted_and_excluded_from_averages(evaluated, truth, known):
    run, _evaluation, lines = evaluated
    absent = set(range(12)) - set(truth["shade"][1])
    assert known.ABSENT_CLASS in absent
    assert saved(run)["metrics"]["shade/classes_present"] == 12 - len(absent)
    (line,) = [line for line in lines if line.startswith("shade")]
    has = "has" if len(absent) == 1 else "have"
    assert line.endswith(f"(over {12 - len(absent)} classes; {len(absent)} {has} no test image)")


def test_the_console_shows_the_metrics_of_the_file(evaluated):
    run, evaluation, lines = evaluated
    metrics, baseline = saved(run)["metrics"], saved(run)["baseline"]
    assert lines[0].startswith(f"Evaluating {run.best_model} on the test images of ")
    assert summary_lines(evaluation) == lines[1:]
    for task in ("shade", "warmth"):
        (line,) = [line for line in lines if line.startswith(task)]
        wanted = [f"{metrics[f'{task}/labelled']}"] + [
            f"{metrics[f'{task}/{name}']:.3f}"
            for name in ("top1", "top5", "macro_f1", "weighted_f1")
        ]
        wanted += [f"{baseline[f'{task}/{name}']:.3f}" for name in ("top1", "macro_f1")]
        assert line.split()[1:8] == wanted
    assert lines[-1] == f"test images excluded: {len(evaluation.unreadable)} missing, 0 unreadable"


@pytest.mark.parametrize("task", ["shade", "warmth"])
def test_outliers_worst_first_with_their_reasons(evaluated, truth, known, task):
    run, _, _ = evaluated
    paths, labels, probabilities = truth[task]
    names = known.CLASSES[task]
    wrong, unsure = [], []
    for path, label, p in zip(paths, labels, probabilities, strict=True):
        predicted = int(p.argmax())
        row = (path, names[label], names[predicted], p.max(), p[label])
        if predicted != label:
            wrong.append((*row, "misclassified"))
        elif p.max() < 0.5:
            unsure.append((*row, "low confidence"))
    wrong.sort(key=lambda row: -row[3])  # the most confident mistake is the worst
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


def test_the_outliers_are_of_both_kinds(evaluated):
    """Otherwise the test above could not check their order."""
    run, _, _ = evaluated
    reasons = pd.read_csv(run.results / "outliers_shade.csv")["reason"].tolist()
    assert set(reasons) == {"misclassified", "low confidence"}


@pytest.mark.parametrize("task", ["shade", "warmth", "empty"])
def test_every_documented_file_is_written(evaluated, task):
    run, _, _ = evaluated
    for kind in IMAGES:
        with Image.open(run.results / f"{kind}_{task}.png") as image:
            assert image.format == "PNG"
            image.load()
            assert min(image.size) >= 100
            assert len(image.convert("RGB").getcolors(1 << 24)) > 1  # not blank
    assert (run.results / f"classification_report_{task}.txt").read_text().endswith("\n")


def test_the_results_have_no_other_file(evaluated, known):
    run, _, _ = evaluated
    wanted = {"metrics.json", "calibration.json", "predictions.csv", "probabilities.npz"}
    wanted |= {"report.html", "evaluation.json"}
    for task in known.CLASSES:
        wanted |= {f"{kind}_{task}.png" for kind in IMAGES}
        wanted |= {f"classification_report_{task}.txt"}
        wanted |= {f"{kind}_{task}.csv" for kind in ("outliers", "classes", "confusion")}
        wanted |= {f"coverage_{task}.csv"}
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
    """By scikit-learn's confusion matrix and scores."""
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
    written = {key: tuple(row) for key, row in zip(cells.index, cells.to_numpy(), strict=True)}
    assert written == {
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
        assert row.most_confused_with == (names[wrong.argmax()] if wrong.any() else "")
        for name, values in zip(("precision", "recall", "f1"), scores, strict=True):
            shown = getattr(row, name)
            if row.examples:
                assert float(shown) == pytest.approx(values[row.label])
            else:
                assert shown == ""


def test_metrics_name_the_model_and_the_images(evaluated):
    run, evaluation, _ = evaluated
    content = saved(run)
    assert content["spec"] == "colours"
    assert content["model"] == "models/best_model.keras"
    assert content["test_images"] == len(evaluation.predictions.paths)
    assert content["unusable_test_images"] == len(evaluation.unreadable) > 0
    assert {"python", "keras", "numpy"} <= content["versions"].keys()


@pytest.fixture
def plots(evaluated):
    """The plots are as before after the test."""
    before = {path: path.read_bytes() for path in evaluated[0].results.glob("*.png")}
    yield
    for path, content in before.items():
        path.write_bytes(content)


def test_a_second_evaluation_writes_identical_files(evaluated, plots, without_drawing):
    """Also the plots of the page, which are SVG; no other plot is made again."""
    run, _, first_lines = evaluated
    names = ("metrics.json", "predictions.csv", "probabilities.npz", "outliers_shade.csv")
    names += ("report.html", "calibration.json")
    before = {name: (run.results / name).read_bytes() for name in names}
    files = {path.name for path in run.results.iterdir()}
    lines = []
    with logged(lines), without_drawing(["png"]):
        evaluate(open_trained(run))
    assert {path.name for path in run.results.iterdir()} == files
    for name in set(names) - {"probabilities.npz"}:
        assert (run.results / name).read_bytes() == before[name]
    with np.load(io.BytesIO(before["probabilities.npz"])) as old:
        new = np.load(run.results / "probabilities.npz")
        for task in old.files:
            np.testing.assert_array_equal(new[task], old[task])
    assert lines == first_lines


@pytest.mark.usefixtures("undrawn")
def test_excluded_images_do_not_count_in_the_baseline(known, data, tmp_path):
    """Without the images of the majority class, another class is the most frequent."""
    labels = data.train_labels["warmth"]
    majority = max(set(labels.values()), key=list(labels.values()).count)
    gone = [path for path, label in labels.items() if label == majority]
    run = known.make_run(tmp_path / "run", data, tasks=("warmth",))
    pd.DataFrame({"path": gone, "reason": "no such file"}).to_csv(
        run.workdir / "excluded.csv", index=False
    )
    evaluation = evaluate(open_trained(run), similar=False)
    rest = [label for label in labels.values() if label != majority]
    assert evaluation.metrics["warmth"]["baseline"]["class"] == max(
        sorted(set(rest)), key=rest.count
    )


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_metrics_without_near_duplicates(known, data, tmp_path, write_image):
    """One painting in three sizes: a training image and two test images."""
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    seen = sorted(set(data.labels["warmth"]) - set(data.missing))[2:4]
    trained = sorted(data.train_labels["warmth"])[0]
    for path, size in ((seen[0], 90), (seen[1], 120), (trained, 150)):
        write_image(folder / "images" / path, width=size, height=size, seed=5, cells=(24, 24))
    run = known.make_run(tmp_path / "run", data)
    run = dataclasses.replace(run, data_dir=folder)
    lines = []
    with logged(lines):
        evaluation = evaluate(open_trained(run), exclude_near_duplicates=True)
    assert list(evaluation.near_duplicates) == seen
    content = saved(run)
    kept = evaluation.predictions.excluding(seen)
    assert len(kept.paths) == len(evaluation.predictions.paths) - 2
    assert not set(seen) & set(kept.paths)
    for task in ("shade", "warmth"):
        _, labels, probabilities = kept.labelled_examples(task)
        result = content["without_near_duplicates"]["metrics"]
        assert result[f"{task}/labelled"] == len(labels)
        assert result[f"{task}/top1"] == pytest.approx(
            sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1))
        )
    assert content["metrics"]["warmth/labelled"] == result["warmth/labelled"] + 2
    assert content["without_near_duplicates"]["near_duplicates"] == seen
    place = lines.index(
        "Without the 2 test images that show the same painting as a training image:"
    )
    assert lines[place + 3].split()[:2] == ["warmth", str(result["warmth/labelled"])]

    # The pairs are read from the file afterwards.
    pairs = pd.read_csv(run.workdir / "near_duplicates.csv")
    assert len(pairs) == 3
    pairs.head(0).to_csv(run.workdir / "near_duplicates.csv", index=False)
    again = evaluate(open_trained(run), exclude_near_duplicates=True)
    assert again.near_duplicates == ()
    assert again.metrics_without_near_duplicates == again.metrics
    assert "without_near_duplicates" in saved(run)
    evaluate(open_trained(run), similar=False)
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


def test_a_missing_or_broken_model_is_refused_and_writes_nothing(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data)
    with pytest.raises(InputError, match=r"nothing.keras: no such model"):
        evaluate(open_trained(run, run.models / "nothing.keras"))
    run.best_model.write_text("not a model")
    with pytest.raises(InputError, match=r"best_model.keras: not a model file"):
        evaluate(open_trained(run))
    assert not run.results.exists()


def test_too_many_missing_images_leave_no_results(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data)
    with pytest.raises(InputError, match="max_missing"):
        evaluate(open_trained(run), max_missing=0.0)
    assert not run.results.exists()
