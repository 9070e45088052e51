"""Temperatures, views, and the least confidence of an answer."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from PIL import Image
from predicting import TEMPERATURES, stopped

from multitask.__main__ import main
from multitask.evaluation.tta import TTA
from multitask.serving.answers import answer
from multitask.serving.export import export
from multitask.serving.predict import predict_files
from multitask.serving.predictor import load_best, load_export
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture(scope="module", params=["model", "workdir"])
def calibrated(request, calibrated_run):
    run = calibrated_run
    return load_export(run.workdir / "export") if request.param == "model" else load_best(run)


@pytest.fixture(scope="module")
def unevaluated(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "run", data, tasks=("warmth",))
    export(run, formats=("onnx",))
    return run


@pytest.fixture
def halves(known, tmp_path):
    """An image of the model's size whose left is of another colour than its right."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :9], pixels[:, 9:] = known.colours(2, 5)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return tmp_path / "halves.png", pixels


def expected(known, pixels, scale):
    """task -> probabilities of images [n, 32, 32, 3], from their mean colours by SciPy."""
    mean = np.asarray(pixels, np.float64).mean(axis=(1, 2))
    return {
        task: scipy.special.softmax(known.logits(mean, palette) / scale[task], axis=1)
        for task, palette in known.PALETTES.items()
    }


def test_probabilities_are_scaled_or_raw(calibrated, known, halves):
    file, pixels = halves
    raw = dataclasses.replace(calibrated, calibrated=False)
    one = dict.fromkeys(TEMPERATURES, 1.0)
    for predictor, scale in ((calibrated, TEMPERATURES), (raw, one)):
        ((_, result),) = predict_files(predictor, [file], batch_size=1)
        for task, values in expected(known, pixels[None], scale).items():
            np.testing.assert_allclose(result[task], values[0], atol=1e-5)


@pytest.mark.parametrize("tta", ["flip", "crops"])
@pytest.mark.parametrize("scale", [True, False])
def test_views_are_averaged(calibrated, known, halves, tta, scale):
    file, pixels = halves
    predictor = dataclasses.replace(calibrated, tta=tta, calibrated=scale)
    ((_, result),) = predict_files(predictor, [file], batch_size=1)
    views = np.concatenate(
        [view.numpy() for view in TTA[tta](tf.constant(pixels[None], "float32"))]
    )
    assert len(views) == {"flip": 2, "crops": 12}[tta]
    scales = TEMPERATURES if scale else dict.fromkeys(TEMPERATURES, 1.0)
    for task, values in expected(known, views, scales).items():
        # The mean of the logits is the normalised geometric mean of the probabilities.
        averaged = scipy.special.softmax(np.log(values).mean(axis=0))
        np.testing.assert_allclose(result[task], averaged, atol=1e-5)
        if tta == "crops":
            plain = expected(known, pixels[None], scales)[task][0]
            assert np.abs(result[task] - plain).max() > 1e-3  # the corners are of other colours


def test_an_image_that_cannot_be_read_among_views(calibrated, mixed):
    files, _ = mixed
    predictor = dataclasses.replace(calibrated, tta="flip")
    result = [message for _, message in predict_files(predictor, files, batch_size=16)]
    assert [isinstance(message, str) for message in result] == [False, True, False, True, False]


def test_thresholds_of_a_wished_accuracy(calibrated):
    known_ones = dataclasses.replace(
        calibrated, calibrations={t: calibrated.calibrations[t] for t in ("shade", "warmth")}
    )
    assert known_ones.thresholds(0.75) == {"shade": 0.5, "warmth": 0.5}
    assert known_ones.thresholds(0.9) == {"shade": 0.7, "warmth": 0.7}
    raw = dataclasses.replace(known_ones, calibrated=False)
    assert raw.thresholds(0.9) == {"shade": 0.2, "warmth": 0.2}
    steps = {"calibrated": [[0.1, 0.2, 1.0]]}
    worse = dataclasses.replace(known_ones.calibrations["warmth"], steps=steps)
    mixed = {"shade": known_ones.calibrations["shade"], "warmth": worse}
    mixed = dataclasses.replace(known_ones, calibrations=mixed)
    assert mixed.thresholds(0.9) == {"shade": 0.7, "warmth": np.inf}
    assert answer(np.array([0.0, 1.0]), "ab", min_confidence=np.inf)["answer"] == "uncertain"
    with pytest.raises(InputError) as caught:
        known_ones.thresholds(0.95)
    assert str(caught.value) == (
        "min_confidence: auto:0.95: the validation split shows no such confidence (shade: this "
        "accuracy is never reached, at most 0.900; warmth: this accuracy is never reached, at most "
        "0.900). Give a number, such as 0.6; a new training with a larger "
        "validation split (field validation) may provide one"
    )
    assert calibrated.thresholds(0.75) == {"shade": 0.5, "warmth": 0.5, "empty": np.inf}


@pytest.mark.parametrize("kind", ["model", "workdir"])
def test_without_an_evaluation_nothing_is_known(unevaluated, kind):
    run = unevaluated
    predictor = load_export(run.workdir / "export") if kind == "model" else load_best(run)
    with pytest.raises(InputError, match=r"has no calibration, as this model was not evaluated"):
        predictor.thresholds(0.5)


def test_another_models_calibration_is_not_taken(calibrated_run, tmp_path):
    other = calibrated_run.models / "best_model_shade.keras"
    shutil.copy(calibrated_run.best_model, other)
    predictor = load_best(calibrated_run, model_file=other)
    assert {result.temperature for result in predictor.calibrations.values()} == {1.0}
    other.unlink()


@pytest.mark.parametrize("text", ["x", "1.5", "-0.1", "auto", "auto:", "auto:2", "aut:0.5", "nan"])
def test_a_confidence_that_is_none_is_one_line(capsys, text):
    assert stopped(f"--min_confidence={text}", "--model=x", "y.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--min_confidence: {text!r}: expected a number from 0 to 1, or auto:" in line


def test_the_command_takes_them(calibrated_run, halves, tmp_path, capsys):
    export_of = calibrated_run.workdir / "export"
    main(["predict", f"--model={export_of}", "--min_confidence=auto:0.9", str(halves[0])])
    assert capsys.readouterr().out.startswith(
        "Thresholds: shade 0.700, warmth 0.700, empty never (only 8 validation images have a "
        "label, at least 30 are needed)\n"
    )
    content = json.loads((export_of / "classes.json").read_text())
    content["calibration"]["empty"] = content["calibration"]["shade"]
    copy = tmp_path / "export"
    shutil.copytree(export_of, copy)
    (copy / "classes.json").write_text(json.dumps(content))
    main(["predict", f"--model={copy}", "--min_confidence=auto:0.9", "--tta=flip", str(halves[0])])
    out = capsys.readouterr().out
    assert out.startswith("Thresholds: shade 0.700, warmth 0.700, empty 0.700\n")
    main(["predict", f"--model={copy}", "--nocalibrated", "--min_confidence=auto:0.9",
          str(halves[0])])  # fmt: skip
    assert capsys.readouterr().out.startswith(
        "Thresholds: shade 0.200, warmth 0.200, empty 0.200\n"
    )
