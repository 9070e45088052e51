"""An open task from the lists to every answer, with a model whose logits are known."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.special
import tensorflow as tf
from logged import logged
from PIL import Image
from sklearn.metrics import roc_auc_score

from multitask.__main__ import main
from multitask.data.merging import load_table
from multitask.evaluation.report import evaluate
from multitask.run import start_run
from multitask.serving.export import export
from multitask.serving.predictor import load_best, load_export
from multitask.spec import OTHER_LABEL, override, parse_spec
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed")

TRAIN, TEST = 240, 160
GROUPS = 12  # of images, in their names


@pytest.fixture(scope="module")
def painted(known):
    """Name -> colour, and whether it has a label of the open task: mostly if its score is high."""
    rng = np.random.default_rng(5)
    colours = known.colours(TRAIN + TEST, 6)
    scores = scipy.special.logsumexp(known.logits(colours, known.PALETTES["warmth"]), axis=1)
    labelled = scores + rng.normal(0, scores.std() / 2, len(scores)) > np.median(scores)
    names = [f"g{i % GROUPS:02}/{i:03}.png" for i in range(len(colours))]
    return dict(zip(names, colours, strict=True)), dict(zip(names, labelled.tolist(), strict=True))


@pytest.fixture(scope="module")
def folder(known, painted, tmp_path_factory):
    root = tmp_path_factory.mktemp("open")
    colours, labelled = painted
    names = list(colours)
    for name, colour in colours.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 9), tuple(map(int, colour))).save(path)
    lists = root / "lists"
    lists.mkdir()
    for task in ("shade", "warmth"):
        classes = [f"{i} {name}" for i, name in enumerate(known.CLASSES[task])]
        (lists / f"{task}_class.txt").write_text("\n".join(classes) + "\n")
        best = known.answers(np.array(list(colours.values())))[task].argmax(axis=1)
        wrong = np.random.default_rng(7).random(len(names)) < 0.2
        label = dict(zip(names, np.where(wrong, 0, best).tolist(), strict=True))
        for split, part in (("train", names[:TRAIN]), ("val", names[TRAIN:])):
            kept = [name for name in part if task == "shade" or labelled[name]]
            rows = "".join(f"{name},{label[name]}\n" for name in kept)
            (lists / f"{task}_{split}.csv").write_text(rows)
    return root


@pytest.fixture(scope="module")
def spec(known):
    raw = known.colour_spec(("shade", "warmth"), validation=0.5, max_missing=0.0).to_dict()
    raw["task"][1]["unlabelled"] = "other"
    raw["task"][1]["other"] = {"group": "^(g[0-9]+)/", "held_out": 0.3}
    return parse_spec(raw, source="colours.toml")


@pytest.fixture(scope="module")
def run(known, spec, folder, undrawn_module, tmp_path_factory):
    run = start_run(tmp_path_factory.mktemp("runs") / "open", spec, folder)
    known.colour_model(("shade", "warmth")).save(run.best_model)
    evaluate(open_trained(run), similar=False)
    return run


@pytest.fixture(scope="module")
def metrics(run):
    return json.loads((run.results / "metrics.json").read_text())


@pytest.fixture(scope="module")
def fitted(run):
    content = json.loads((run.results / "calibration.json").read_text())
    return content["tasks"]["warmth"]


@pytest.fixture(scope="module")
def test_images(known, painted, run):
    """Of the test images: names, whether each has a label, and the logits of the open task."""
    colours, labelled = painted
    names = sorted(list(colours)[TRAIN:])
    logits = known.logits(np.array([colours[n] for n in names]), known.PALETTES["warmth"])
    return names, np.array([labelled[n] for n in names]), logits


def expected_answers(logits, fitted):
    """Probabilities of the classes and of `other`, by SciPy."""
    known = scipy.special.expit(
        fitted["rejection"]["slope"] * scipy.special.logsumexp(logits, axis=1)
        + fitted["rejection"]["offset"]
    )
    classes = scipy.special.softmax(logits / fitted["temperature"], axis=1)
    return np.concatenate([classes * known[:, None], 1 - known[:, None]], axis=1)


def test_the_metrics_are_those_of_scikit_learn(metrics, test_images):
    _, labelled, logits = test_images
    scores = scipy.special.logsumexp(logits, axis=1)
    result = metrics["open_set"]["warmth"]
    assert set(metrics["open_set"]) == {"warmth"}
    assert result["known"] == labelled.sum()
    assert result["others"]["images"] == (~labelled).sum()
    assert result["others"]["auroc"] == pytest.approx(roc_auc_score(labelled, scores), abs=1e-3)
    low, high = result["others"]["intervals"]["auroc"]
    assert low < result["others"]["auroc"] < high


def test_groups_that_were_held_out_are_measured_alone(metrics, spec, folder, test_images):
    names, labelled, logits = test_images
    table = load_table(spec, folder)
    rows = table.rows("train")
    taught = {
        path[:3]
        for path, label in zip(table.paths[rows], table.labels[rows, 1], strict=True)
        if label == OTHER_LABEL
    }
    new = np.array([name[:3] not in taught for name in names]) & ~labelled
    result = metrics["open_set"]["warmth"]["new"]
    assert 0 < result["images"] == new.sum() < (~labelled).sum()
    kept = labelled | new
    scores = scipy.special.logsumexp(logits, axis=1)
    assert result["auroc"] == pytest.approx(roc_auc_score(labelled[kept], scores[kept]), abs=1e-3)


def test_the_share_of_right_answers_is_over_all_images(metrics, fitted, run, test_images):
    names, labelled, logits = test_images
    answers = expected_answers(logits, fitted)
    frame = pd.read_csv(run.results / "predictions.csv", keep_default_na=False).set_index("path")
    frame = frame.loc[names]
    true = frame["warmth/true"].to_numpy()
    assert ((true != "") == labelled).all()
    assert frame["warmth/known"].to_numpy(float) == pytest.approx(1 - answers[:, -1], abs=1e-4)
    classes = np.array(["warm", "cold", "neither", "other"])
    right = classes[answers.argmax(axis=1)] == true
    for row in metrics["open_set"]["warmth"]["answers"]:
        answered = (answers.argmax(axis=1) < 3) & (answers.max(axis=1) >= row["threshold"])
        assert abs(row["answered"] - answered.sum()) <= 1  # a confidence at the threshold
        if row["answered"] > 10:
            assert row["right"] == pytest.approx(right[answered].mean(), abs=0.05)
    other = answers.argmax(axis=1) == 3
    assert other.any()
    result = metrics["open_set"]["warmth"]["other"]
    assert result["precision"] == pytest.approx((~labelled)[other].mean(), abs=0.02)
    assert result["recall"] == pytest.approx(other[~labelled].mean(), abs=0.02)


@pytest.mark.usefixtures("unplotted")
def test_the_closed_metrics_do_not_change(known, folder, metrics, tmp_path):
    spec = known.colour_spec(("shade", "warmth"), validation=0.5, max_missing=0.0)
    closed = start_run(tmp_path / "closed", spec, folder)
    known.colour_model(("shade", "warmth")).save(closed.best_model)
    evaluate(open_trained(closed), similar=False)
    plain = json.loads((closed.results / "metrics.json").read_text())
    assert plain["metrics"] == metrics["metrics"]
    assert "open_set" not in plain
    assert plain["calibration"]["warmth"]["ece"] == metrics["calibration"]["warmth"]["ece"]
    assert plain["calibration"]["shade"] == metrics["calibration"]["shade"]


@pytest.mark.usefixtures("unplotted")
def test_a_rejection_that_is_not_fitted_is_a_line(known, spec, folder, tmp_path):
    without = override(spec, {"validation": 0.0})
    run = start_run(tmp_path / "unfitted", without, folder)
    known.colour_model(("shade", "warmth")).save(run.best_model)
    lines: list[str] = []
    with logged(lines):
        evaluate(open_trained(run), similar=False)
    expected = "The probability of `other` is not fitted: warmth: there is no validation split"
    assert lines.count(expected) == 1
    rejection = json.loads((run.results / "metrics.json").read_text())["calibration"]["warmth"][
        "rejection"
    ]
    assert rejection["reason"] == "there is no validation split"
    page = (run.results / "report.html").read_text()
    line = "The probability of <code>other</code> is not fitted: there is no validation split."
    assert page.count(line) == 1


def test_the_metrics_have_the_rejection(metrics, fitted):
    assert metrics["calibration"]["warmth"]["rejection"] == fitted["rejection"]
    assert fitted["rejection"]["reason"] is None
    assert "rejection" not in metrics["calibration"]["shade"]


def test_the_report_shows_it(run):
    page = (run.results / "report.html").read_text()
    assert page.count("Other images</h3>") == 1
    assert "of held-out groups" in page
    assert "is not fitted" not in page
    assert (run.results / "open_set_warmth.png").is_file()
    assert not (run.results / "open_set_shade.png").exists()


# === Answers ===


@pytest.fixture(scope="module")
def exported(run):
    return export(run, formats=["savedmodel", "onnx", "litert", "keras"])


def batch_of(known, painted, count=24):
    colours = np.array(list(painted[0].values()))[-count:]
    image = np.broadcast_to(colours[:, None, None], (count, known.SIZE_PX, known.SIZE_PX, 3))
    logits = known.logits(colours, known.PALETTES["warmth"])
    return image.astype(np.float32), logits


def test_every_predictor_answers_other(run, exported, known, painted, fitted):
    images, logits = batch_of(known, painted)
    expected = expected_answers(logits, fitted)
    assert 0 < (expected.argmax(axis=1) == 3).sum() < len(images)
    models = [load_best(run)]
    models += [
        load_export(exported, runtime=name) for name in ("onnxruntime", "litert", "tensorflow")
    ]
    for model in models:
        assert model.classes["warmth"] == ("warm", "cold", "neither", "other")
        assert model.classes["shade"] == known.SHADE
        result = model.probabilities(images)
        assert result["warmth"] == pytest.approx(expected, abs=1e-4)
        assert result["shade"].shape == (len(images), 12)


def test_every_format_has_the_probability_as_an_output(exported, known, painted, fitted):
    images, logits = batch_of(known, painted)
    expected = 1 - expected_answers(logits, fitted)[:, -1]
    saved = tf.saved_model.load(str(exported / "colours" / "1"))
    outputs = {"savedmodel": saved.signatures["pixels"](tf.constant(images))}
    labels = [name.decode() for name in outputs["savedmodel"]["warmth_label"].numpy()]
    names = np.array(["warm", "cold", "neither", "other"])
    assert labels == names[expected_answers(logits, fitted).argmax(axis=1)].tolist()
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    session = onnxruntime.InferenceSession(exported / "colours.onnx")
    keys = [output.name for output in session.get_outputs()]
    outputs["onnx"] = dict(zip(keys, session.run(None, {"image": images}), strict=True))
    runner = Interpreter(str(exported / "colours.tflite")).get_signature_runner()
    outputs["litert"] = runner(image=images)
    for kind, values in outputs.items():
        assert np.asarray(values["warmth_known"]) == pytest.approx(expected, abs=1e-4), kind
        assert "shade_known" not in values
        closed = scipy.special.softmax(logits / fitted["temperature"], axis=1)
        assert np.asarray(values["warmth_probabilities"]) == pytest.approx(closed, abs=1e-4), kind


def test_the_command_says_other(exported, folder, painted, known, fitted, tmp_path):
    out = tmp_path / "a.csv"
    main(["predict", f"--model={exported}", f"--out={out}", str(folder / "images")])
    frame = pd.read_csv(out)
    colours = np.array(list(painted[0].values()))
    expected = expected_answers(known.logits(colours, known.PALETTES["warmth"]), fitted)
    names = np.array(["warm", "cold", "neither", "other"])
    best = dict(zip(painted[0], names[expected.argmax(axis=1)], strict=True))
    result = {
        path[-11:]: answer
        for path, answer in zip(frame["path"], frame["warmth/predicted"], strict=True)
    }
    assert sum(result[name] != best[name] for name in best) <= 2  # ties within rounding
    assert (frame["warmth/predicted"] == "other").any()


def test_an_accuracy_of_the_answers_is_promised_over_all_images(run, fitted, known, painted):
    model = load_best(run)
    threshold = model.thresholds(0.8)["warmth"]
    steps = fitted["steps"]["calibrated"]
    assert threshold == next(step[0] for step in steps if step[1] >= 0.8)


def test_before_an_evaluation_it_rejects_as_trained(known, spec, folder, painted, tmp_path):
    run = start_run(tmp_path / "fresh", spec, folder)
    known.colour_model(("shade", "warmth")).save(run.best_model)
    images, logits = batch_of(known, painted, 5)
    result = load_best(run).probabilities(images)["warmth"]
    with_zero = np.concatenate([logits, np.zeros((5, 1))], axis=1)
    assert result == pytest.approx(scipy.special.softmax(with_zero, axis=1), abs=1e-4)
