"""A run whose answers are known, its exports, and images to predict."""

import json
from pathlib import Path

import pytest
from PIL import Image
from predicting import STEPS, TEMPERATURES

from multitask.serving.export import export
from multitask.serving.predictor import load_best, load_export


@pytest.fixture(scope="session")
def exported(exported_colours):
    return exported_colours


@pytest.fixture(scope="session")
def run(exported):
    return exported[0]


@pytest.fixture(scope="session")
def onnx(run, tmp_path_factory):
    """The flag of its export that is loaded fastest, for what all runtimes have in common."""
    folder = export(run, formats=("onnx",), out=tmp_path_factory.mktemp("onnx") / "export")
    return f"--model={folder}"


@pytest.fixture(scope="session", params=["model", "workdir"])
def predictor(request, run, onnx):
    """The predictor of an export and of the run; tests/serving/test_formats.py has each runtime."""
    folder = Path(onnx.partition("=")[2])
    return load_export(folder) if request.param == "model" else load_best(run)


@pytest.fixture
def mixed(known, tmp_path):
    """(files, colours): five images, the second and the fourth of which cannot be read."""
    painted = known.colours(5, 8)
    files = [tmp_path / f"{letter}.png" for letter in "edcba"]
    for path, colour in zip(files, painted, strict=True):
        Image.new("RGB", (20, 10), tuple(map(int, colour))).save(path)
    files[1].write_text("a text")
    files[3].write_bytes(b"")
    return files, painted


@pytest.fixture(scope="session")
def calibrated_run(known, data, untimed, tmp_path_factory):
    """A run with what `evaluate` writes of its confidences; "empty" has too few labels.

    Its export is in ONNX, which is written and loaded fastest: the temperatures, thresholds and
    views are those of the predictor, whatever computes the logits.
    """
    run = known.make_run(tmp_path_factory.mktemp("runs") / "calibrated", data)
    run.results.mkdir()
    tasks = {
        task: {
            "temperature": temperature,
            "fitted_on": 200 if task != "empty" else 8,
            "reason": None if task != "empty" else "only 8 validation images have a label",
            "steps": {"calibrated": STEPS, "raw": [[0.2, 0.95, 0.5]]} if task != "empty" else {},
        }
        for task, temperature in TEMPERATURES.items()
    }
    content = {"model": "models/best_model.keras", "tasks": tasks}
    (run.results / "calibration.json").write_text(json.dumps(content))
    export(run, formats=("onnx",))
    return run
