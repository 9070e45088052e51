"""Reports of very small, one-sided and very large test sets."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from multitask.__main__ import main
from multitask.evaluation.report import evaluate
from multitask.evaluation.result_files import read_history
from multitask.trained import open_trained


def saved(run):
    return json.loads((run.results / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("shade", "warmth"),
    [
        (lambda rows: rows[:1], lambda rows: []),  # one test image
        (lambda rows: [(path, 3) for path, _ in rows], lambda rows: rows[:2]),  # one class
    ],
)
def test_test_sets_of_one_image_and_of_one_class(known, tmp_path, shade, warmth):
    data = known.paint(tmp_path / "data")
    there = sorted(set(data.labels["shade"]) - set(data.missing))
    rows = {
        "shade": shade([(path, data.labels["shade"][path]) for path in there]),
        "warmth": warmth([(path, 0) for path in there]),
    }
    for task, pairs in rows.items():
        text = "".join(f"{path},{label}\n" for path, label in pairs)
        # An empty list is refused; one with a contradiction has no label.
        text = text or f"{there[0]},0\n{there[0]},1\n"
        (data.folder / "lists" / f"{task}_val.csv").write_text(text)
    run = known.make_run(tmp_path / "run", data, tasks=("shade", "warmth"))
    evaluation = evaluate(open_trained(run), tta="flip")
    result = evaluation.metrics["shade"]
    labels = [label for _, label in rows["shade"]]
    painted = np.array([data.painted[path] for path, _ in rows["shade"]])
    predicted = known.answers(painted)["shade"].argmax(axis=1)
    assert result["top1"] == pytest.approx(np.mean(predicted == labels))
    assert result["classes_present"] == 1
    interval = evaluation.details["intervals"]["shade/top1"]
    assert (interval is None) == (len(labels) < 20)
    assert interval is None or interval[0] <= result["top1"] <= interval[1]
    # Plain colours look the same mirrored.
    assert saved(run)["tta"]["metrics"]["shade/top1"] == result["top1"]
    assert "NaN" not in (run.results / "metrics.json").read_text()
    assert (run.results / "report.html").stat().st_size > 10_000
    queries = saved(run)["similar"]["shade"]["queries"]
    assert queries == len(labels)


def test_the_history_is_empty_without_a_file(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data)
    assert read_history(run).empty
    history = pd.DataFrame({"epoch": [1], "shade/top1": [0.5]})
    history.to_csv(run.logs / "history.csv", index=False)
    pd.testing.assert_frame_equal(read_history(run), history)


@pytest.mark.slow
def test_1000_classes_are_trained_and_reported_on(tiny_data, tiny_spec, tiny_trunk, tmp_path):
    """By the command, with one image per class; no file grows with the square of the classes."""
    names = [f"Person_{i}" if i % 3 else f"弟子 $_{i}" for i in range(1000)]
    data = tiny_data(
        rows={
            "style_train": [(f"train/{i}.jpg", i) for i in range(1000)],
            "style_val": [(f"test/{i}.jpg", i * 7 % 1000) for i in range(150)],
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
    assert len(page) < 2e6
    assert page.count("<td") < 15_000
    assert "The matrix has 40 of 1,000 classes" in page
    assert "All 1,000 classes." in page
    for file in results.glob("*.png"):
        with Image.open(file) as image:
            assert max(image.size) < 3000, file
    content = json.loads((results / "metrics.json").read_text())
    assert (results / "metrics.json").stat().st_size < 400_000
    confusion = content["confusion"]["style"]
    assert confusion["others"] == 960
    assert np.sum(confusion["counts"]) == 150
    assert len((results / "classification_report_style.txt").read_text().splitlines()) > 1000
    pairs = pd.read_csv(results / "confusion_style.csv")
    table = pd.read_csv(results / "predictions.csv")
    wanted = table.groupby(["style/true", "style/predicted"]).size()
    pairs = pairs.set_index(["true", "predicted"])["count"]
    assert pairs.sort_index().to_dict() == wanted.to_dict()
    assert pd.read_csv(results / "classes_style.csv")["class"].tolist() == names
