"""The distance to the training images in an evaluation: fitted, measured, written and drawn."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from logged import logged
from scipy.stats import betabinom
from sklearn.decomposition import PCA

from multitask import feature_distance
from multitask.data.table import VALIDATION
from multitask.evaluation.distances import (
    FARTHEST,
    distance_lines,
    distance_metrics,
    fit_feature_distance,
)
from multitask.evaluation.predictions import Predictions
from multitask.evaluation.report import evaluate
from multitask.feature_distance import DISTANCE, UNLIKE
from multitask.pages.canvas import Drawing
from multitask.pages.distance_plots import distance_plot
from multitask.run import open_run
from multitask.serving.predictor import load_best
from multitask.spec import SHARED
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed", "undrawn_module")

WIDTH = 16


def vectors(count, seed, *, around=3.0):
    return np.random.default_rng(seed).normal(around, 1, (count, WIDTH)).astype(np.float32)


def predictions_of(values):
    paths = np.array([f"{i}.png" for i in range(len(values))], object)
    labels = np.zeros((len(values), 1), np.int32)
    one = {"tone": np.ones((len(values), 1))}
    return Predictions({"tone": ("only",)}, paths, labels, one, {SHARED: values})


def gallery_of(values):
    return SimpleNamespace(vectors={SHARED: values.astype(np.float16)})


@pytest.fixture(scope="module")
def measured():
    """300 test images, of which the last ten are of another kind."""
    test = np.concatenate([vectors(290, 2), vectors(10, 3, around=0.0)])
    fitted = fit_feature_distance(gallery_of(vectors(200, 0)), predictions_of(vectors(150, 1)))
    return fitted, test, distance_metrics(predictions_of(test), fitted)


def test_the_metrics_are_counts_of_distances(measured):
    fitted, test, content = measured
    distances = fitted.distances(test)
    # Rank 150 of 150: ceil(151 · .99).
    assert content["limit"] == fitted.distances(vectors(150, 1)).max()
    assert content["unlike"] == (distances > content["limit"]).sum() >= 10
    assert content["share"] == content["unlike"] / 300
    counts = [content[f"{name}_images"] for name in ("training", "validation", "test")]
    assert (counts, content["max_unlike"], content["reason"]) == ([200, 150, 300], 0.01, None)
    order = np.argsort(-distances)[:FARTHEST]
    assert [row["path"] for row in content["farthest"]] == [f"{i}.png" for i in order]
    assert {row["path"] for row in content["farthest"][:10]} == {
        f"{i}.png" for i in range(290, 300)
    }
    assert json.loads(json.dumps(content)) == content


def test_the_expected_range_is_beta_binomial(measured):
    _, _, content = measured
    low, high = content["expected_interval"]
    exact = betabinom(300, 1, 150).ppf([0.025, 0.975]) / 300
    assert (low, high) == pytest.approx(tuple(exact), abs=1 / 300)
    assert not low <= content["share"] <= high


def test_the_histogram_has_every_image(measured):
    fitted, test, content = measured
    histogram = content["histogram"]
    edges = np.array(histogram["edges"])
    for split, values in (("test", test), ("validation", vectors(150, 1))):
        distances = fitted.distances(values)
        assert histogram[split] == np.histogram(distances, edges)[0].tolist()
        assert sum(histogram[split]) == len(values)


def test_the_plot_shows_both_splits_and_the_limit(measured):
    _, _, content = measured
    drawing = Drawing()
    distance_plot(drawing, content)
    (axes,) = drawing.figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["validation", "test", "limit"]
    assert axes.lines[0].get_xdata()[0] == content["limit"]
    steps = axes.patches[1].get_data().values
    np.testing.assert_allclose(steps, np.array(content["histogram"]["test"]) / 3)


def test_without_test_images_there_is_no_share(measured):
    fitted, test, _ = measured
    content = distance_metrics(predictions_of(test[:0]), fitted)
    assert (content["share"], content["expected_interval"], content["farthest"]) == (None, None, [])
    assert sum(content["histogram"]["validation"]) == 150
    distance_plot(Drawing(), content)
    (line,) = distance_lines(content)
    assert line == f"Answer `{UNLIKE}`: distance above {content['limit']:.3f}"


def test_embeddings_that_are_not_finite_are_unlike(measured):
    fitted, test, _ = measured
    broken = test.copy()
    broken[5] = np.nan
    content = distance_metrics(predictions_of(broken), fitted)
    assert content["unlike"] == measured[2]["unlike"] + 1
    assert sum(content["histogram"]["test"]) == 299
    assert "5.png" not in [row["path"] for row in content["farthest"]]


@pytest.mark.parametrize(
    ("gallery", "validation", "reason"),
    [
        (None, "there is no validation split", "there is no validation split"),
        (
            None,
            predictions_of(vectors(50, 1)),
            "the training images are not embedded; `multitask evaluate --similar` embeds them",
        ),
        (
            gallery_of(vectors(20, 0)),
            predictions_of(vectors(50, 1)),
            "20 training images, at least 30 are needed",
        ),
        (
            gallery_of(vectors(50, 0)),
            predictions_of(vectors(7, 1)),
            "7 validation images, at least 30 are needed",
        ),
        (
            gallery_of(vectors(50, 0) * np.nan),
            predictions_of(vectors(50, 1)),
            "an embedding is not finite",
        ),
    ],
)
def test_what_cannot_be_fitted_has_a_reason(gallery, validation, reason):
    assert fit_feature_distance(gallery, validation) == reason
    content = distance_metrics(predictions_of(vectors(5, 2)), reason)
    assert content == {"reason": reason}
    assert distance_lines(content) == [f"No answer `{UNLIKE}`: {reason}"]


# === In a run ===


@pytest.fixture(scope="module")
def evaluated(known, data, tmp_path_factory):
    """An evaluation with fewer images than a distance needs otherwise, and its console."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    run = known.make_run(workdir, data, tasks=("warmth",), validation=0.4)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch, logged(lines):
        patch.setattr(feature_distance, "MIN_IMAGES", 5)
        trained = open_trained(run)
        evaluate(trained)
    return run, trained, lines


def copy_of(evaluated, folder):
    """Of the evaluated run, for a test that evaluates it again."""
    shutil.copytree(evaluated[0].workdir, folder / "run")
    return open_run(folder / "run")


def test_the_run_has_the_distance_of_its_training_images(evaluated, data):
    run, trained, _ = evaluated
    table = trained.training_table
    colours = {
        split: np.array([data.painted[path] for path in table.paths[table.rows(split)]]) / 255
        for split in ("train", VALIDATION)
    }
    unit = {k: x / np.linalg.norm(x, axis=1, keepdims=True) for k, x in colours.items()}
    model = PCA(n_components=1, svd_solver="full").fit(unit["train"])
    centred = unit[VALIDATION] - unit["train"].mean(axis=0)
    squares = np.einsum("ij,jk,ik->i", centred, model.get_precision(), centred)
    fitted = open_trained(run).distance
    assert fitted.validation.scores == pytest.approx(sorted(np.sqrt(squares / 3)), rel=0.01)
    assert fitted.to_dict() == trained.distance.to_dict() == load_best(run).distance.to_dict()
    assert fitted.training_images == len(colours["train"])


def test_the_files_have_the_distances(evaluated, data):
    run, trained, lines = evaluated
    frame = pd.read_csv(run.results / "predictions.csv")
    colours = np.array([data.painted[path] for path in frame["path"]]) / 255
    expected = trained.distance.distances(colours)
    assert frame["distance"].to_numpy() == pytest.approx(expected, rel=1e-3)
    content = json.loads((run.results / "metrics.json").read_text())["distance"]
    assert content["unlike"] == (frame["distance"] > content["limit"]).sum()
    assert lines.count(distance_lines(content)[0]) == 1
    assert (run.results / "distance.png").is_file()
    page = (run.results / "report.html").read_text()
    assert page.count("Not like the training data</h2>") == 1
    assert page.count("The farthest test images</h3>") == 1
    for row in content["farthest"]:
        assert row["path"] in page


def test_a_second_evaluation_writes_the_same_bytes(evaluated, tmp_path, monkeypatch):
    run = copy_of(evaluated, tmp_path)
    monkeypatch.setattr(feature_distance, "MIN_IMAGES", 5)
    before = (run.results / DISTANCE).read_bytes()
    evaluate(open_trained(run), similar=False)  # the gallery is there
    assert (run.results / DISTANCE).read_bytes() == before
    metrics = json.loads((run.results / "metrics.json").read_text())
    assert "similar" not in metrics


def test_an_evaluation_without_distance_removes_it(evaluated, tmp_path):
    """And says why, on the console, in metrics.json and on the page."""
    run = copy_of(evaluated, tmp_path)
    assert open_trained(run).distance is not None
    assert (run.results / "distance.png").is_file()
    lines: list[str] = []
    with logged(lines):
        evaluate(open_trained(run))
    reason = json.loads((run.results / "metrics.json").read_text())["distance"]["reason"]
    assert reason.endswith("training images, at least 30 are needed")
    assert lines.count(f"No answer `{UNLIKE}`: {reason}") == 1
    assert f"This answer is never given: {reason}." in (run.results / "report.html").read_text()
    assert not (run.results / DISTANCE).exists()
    assert not (run.results / "distance.png").exists()
    assert open_trained(open_run(run.workdir, run.data_dir)).distance is None


def test_the_predictor_has_the_distance_of_an_image_that_no_list_has(evaluated):
    run, trained, _ = evaluated
    model = load_best(run)
    blue = np.zeros((1, model.size_px, model.size_px, 3), np.float32)
    blue[..., 2] = 255
    (distance,) = model.distances(model.answer(blue)[1])
    (expected,) = trained.distance.distances(np.array([[0, 0, 1.0]]))
    assert distance == pytest.approx(expected, rel=1e-3)
