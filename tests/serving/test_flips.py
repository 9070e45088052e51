"""Exports that average an image and its mirror image, against a model run on both."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from logged import logged
from specs import lists_of, spec_of

from multitask.calibration import Calibration
from multitask.data.label_files import classes_of
from multitask.data.pipeline import readable_images
from multitask.data.table import TEST
from multitask.evaluation import report
from multitask.evaluation.report import evaluate
from multitask.model.network import FEATURES, VECTORS, build_network, examined_model, with_flips
from multitask.run import open_run, start_run
from multitask.runtimes.libraries import RUNTIMES, output_of
from multitask.serving.export import export
from multitask.serving.predictor import load_export
from multitask.spec import InputError
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed", "undrawn_module")

TASKS = ("style", "genre")


@pytest.fixture(scope="module")
def run(tiny_data_in, tiny_trunk_module, tmp_path_factory):
    """A run of a network of random weights, whose answers depend on left and right."""
    import keras

    folder = tmp_path_factory.mktemp("flips")
    data = tiny_data_in(folder / "data")
    spec = spec_of(
        *lists_of(TASKS, "wikiart_csv"), trunk={"name": tiny_trunk_module}, image_size=32,
        validation=0.4, max_missing=0.0,
    )  # fmt: skip
    run = start_run(folder / "run", spec, data)
    keras.utils.set_random_seed(3)
    classes = {task.name: classes_of(task, data) for task in spec.tasks}
    build_network(spec, classes).save(run.best_model)
    return run


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(0, 255, (5, 32, 32, 3)).astype(np.float32)


def averaged(network, images):
    """Task -> the mean logits of both views, one view at a time."""
    plain = network.predict_on_batch(images)
    mirrored = network.predict_on_batch(images[:, :, ::-1])
    for task in TASKS:  # otherwise the test could not fail
        assert np.abs(plain[task] - mirrored[task]).max() > 1e-3
    return {task: (plain[task] + mirrored[task]) / 2 for task in TASKS}


def test_the_network_averages_the_logits_of_both_views(run, images):
    network = open_trained(run).network
    expected = averaged(network, images)
    answers = with_flips(network).predict_on_batch(images)
    for task in TASKS:
        np.testing.assert_allclose(answers[task], expected[task], atol=1e-5)
    # Vectors and features are those of the image alone.
    plain, flipped = (examined_model(network, flips=f).predict_on_batch(images) for f in (0, 1))
    np.testing.assert_allclose(flipped[FEATURES], plain[FEATURES], atol=1e-5)
    for name, values in plain[VECTORS].items():
        np.testing.assert_allclose(flipped[VECTORS][name], values, atol=1e-5)


def test_every_format_averages(run, images, tmp_path):
    network = open_trained(run).network
    expected = averaged(network, images)
    formats = ("savedmodel", "onnx", "litert", "keras")
    folder = export(run, formats=formats, tta="flip", images=4, out=tmp_path / "flip")
    assert json.loads((folder / "classes.json").read_text())["tta"] == "flip"
    entries = json.loads((folder / "report.json").read_text())["artifacts"]
    assert {entry["format"] for entry in entries} == {
        "model", "savedmodel", "onnx", "litert", "keras",
    }  # fmt: skip
    for name, runtime in RUNTIMES.items():
        if runtime.installed:
            model = load_export(folder, runtime=name)
            for batch in (images, images[:1]):
                outputs = model.infer(batch)
                for task in TASKS:
                    logits = outputs[output_of(task, "logits")]
                    np.testing.assert_allclose(logits, expected[task][: len(batch)], atol=1e-4)
    plain = export(run, formats=("keras",), images=4, out=tmp_path / "plain")
    assert json.loads((plain / "classes.json").read_text())["tta"] is None


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """A copy of the run, evaluated with views; the images are too few to fit a temperature: 2 for
    the image alone, 5 for the views."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(run.workdir, workdir)
    fit = report.fit_calibrations

    def fit_differently(predict, *arguments):
        temperature = 5.0 if "views" in predict.keywords else 2.0
        fitted = fit(predict, *arguments)
        return replace(fitted, calibrations=dict.fromkeys(TASKS, Calibration(temperature, 40)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "fit_calibrations", fit_differently)
        evaluate(open_trained(open_run(workdir)), tta="flip", similar=False)
    return open_run(workdir)


def test_an_export_is_calibrated_for_what_it_averages(evaluated, images, tmp_path):
    """The temperature of the averaged logits is exported, and not that of the image alone."""
    expected = averaged(open_trained(evaluated).network, images)
    for tta, temperature, kind in ((None, 2.0, "keras"), ("flip", 5.0, "onnx")):
        with logged() as lines:
            folder = export(evaluated, formats=(kind,), tta=tta, images=4, out=tmp_path / kind)
        assert not any("Not calibrated" in line for line in lines)
        calibration = json.loads((folder / "classes.json").read_text())["calibration"]
        assert {one["temperature"] for one in calibration.values()} == {temperature}
    outputs = load_export(folder).infer(images)
    for task in TASKS:
        scaled = scipy.special.softmax(expected[task] / 5, axis=1)
        np.testing.assert_allclose(outputs[output_of(task, "probabilities")], scaled, atol=1e-5)


def test_an_evaluation_without_views_calibrates_none_of_them(evaluated, tmp_path):
    """And an export says so."""
    shutil.copytree(evaluated.workdir, tmp_path / "run")
    run = open_run(tmp_path / "run")
    evaluate(open_trained(run), similar=False)
    with logged() as lines:
        export(run, formats=("keras",), tta="flip", images=4)
    assert any("`multitask evaluate --tta=flip` calibrates" in line for line in lines)


def test_views_are_measured_as_they_are_exported(evaluated):
    """`evaluate --tta=flip` measures the softmax of the averaged logits."""
    trained = open_trained(evaluated)
    table = trained.test_table
    rows = table.rows(TEST)
    names = [str(trained.image_dir / path) for path in table.paths[rows]]
    ((_, batch),) = readable_images(names, **trained.spec.reading, batch_size=len(names))
    expected = averaged(trained.network, batch.numpy())
    metrics = json.loads((evaluated.results / "metrics.json").read_text())["tta"]["metrics"]
    for column, task in enumerate(TASKS):
        labels = table.labels[rows, column]
        right = scipy.special.softmax(expected[task], axis=1).argmax(axis=1) == labels
        assert metrics[f"{task}/top1"] == pytest.approx(right[labels >= 0].mean())


def test_other_views_cannot_be_exported(run):
    with pytest.raises(InputError, match=r"'crops'\. .*flip"):
        export(run, tta="crops")
