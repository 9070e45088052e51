"""A run's model is opened once: every part is read when it is needed, and only then."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from multitask import trained as trained_module
from multitask.calibration import CALIBRATION, Calibration
from multitask.data.table import TEST, TRAIN, VALIDATION
from multitask.evaluation.neighbours import find_similar
from multitask.evaluation.report import evaluate
from multitask.model import network
from multitask.pages import class_plots, coverage_plots, curves, diagram, image_sheets
from multitask.serving.export import export
from multitask.spec import InputError
from multitask.trained import TrainedModel, open_trained

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture
def run(known, data, tmp_path):
    return known.make_run(tmp_path / "run", data, validation=0.4)


@pytest.fixture
def calls(monkeypatch):
    """(name, last argument) -> number of calls of what reads a run's files."""
    from multitask import reading, results
    from multitask.data import label_files, merging

    counts = Counter()

    def count(module, name, place=0):
        function = getattr(module, name)

        def counted(*args, **kwargs):
            counts[name, args[place]] += 1
            return function(*args, **kwargs)

        for user in (module, trained_module, results, merging, label_files):
            if getattr(user, name, None) is function:
                monkeypatch.setattr(user, name, counted)

    count(merging, "merge_tables", place=1)
    count(label_files, "read_classes")
    count(reading, "sha256")
    count(network, "load_network")
    return counts


def assert_read_once(calls, run):
    """Every part was read once, and nothing else of the CSVs."""
    assert {key: count for key, count in calls.items() if count > 1} == {}
    assert calls["merge_tables", run.data_dir] == 1
    assert calls["sha256", run.best_model] == 1
    assert calls["load_network", run.best_model] == 1
    classes = {run.data_dir / task.classes for task in run.spec.tasks}
    assert {argument for name, argument in calls if name == "read_classes"} == classes


@pytest.fixture
def run_of_two(known, data, tmp_path):
    """A run of the tasks with a test set."""
    return known.make_run(tmp_path / "two", data, tasks=("shade", "warmth"), validation=0.4)


@pytest.fixture
def uncomposed(undrawn, monkeypatch):
    """What the plots of a task show is read, but no figure is made of it."""
    for module, name in (
        (class_plots, "confusion_matrix"),
        (class_plots, "f1_scores"),
        (coverage_plots, "coverage"),
        (curves, "training_history"),
        (diagram, "architecture"),
        (image_sheets, "outliers"),
    ):
        monkeypatch.setattr(module, name, lambda *what, **how: None)


@pytest.mark.usefixtures("uncomposed")
def test_one_evaluation_reads_every_part_once(run_of_two, calls):
    """With near-duplicates, calibration and similar images, which need the table too."""
    run = run_of_two
    evaluate(open_trained(run), tta="flip")
    assert_read_once(calls, run)


def test_one_search_reads_every_part_once(run, calls, data):
    image = data.folder / "images" / sorted(data.train_labels["shade"])[0]
    find_similar(open_trained(run), [image])
    assert_read_once(calls, run)


def test_one_export_reads_every_part_once(run, calls):
    export(run, formats=("keras",))
    assert_read_once(calls, run)


def test_the_import_needs_no_tensorflow(run):
    """Nor does anything before the network is needed."""
    code = (
        "import sys; from pathlib import Path; from multitask.run import open_run\n"
        "from multitask.trained import open_trained\n"
        "model = open_trained(open_run(Path(sys.argv[1])))\n"
        "print(len(model.classes), len(model.test_table), model.calibrations['shade'].fitted_on)\n"
        "print(model.digest[:8], model.name, model.is_evaluated())\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(run.workdir)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    model = open_trained(run)
    assert result.stdout.split() == [
        "3",
        str(len(model.test_table)),
        "0",
        model.digest[:8],
        "models/best_model.keras",
        "False",
    ]


def test_the_tables_of_a_run(run, data):
    """The excluded images are test images to evaluate, and none that were trained on."""
    model = open_trained(run)
    assert model.training_table is model.test_table  # before any training
    training_paths = model.training_table.paths[model.training_table.rows(TRAIN)]
    unreadable, missing = training_paths[2], data.missing[0]
    pd.DataFrame(
        {"path": [unreadable, missing], "reason": ["not an image", "no such file"]}
    ).to_csv(run.workdir / "excluded.csv", index=False)
    model = open_trained(run)
    assert missing in model.test_table.paths[model.test_table.rows(TEST)]
    assert missing not in model.training_table.paths
    assert unreadable not in model.training_table.paths
    splits = [set(model.training_table.paths[model.training_table.rows(s)]) for s in (TRAIN, TEST)]
    assert not splits[0] & splits[1]
    assert len(model.training_table.rows(VALIDATION)) > 0
    assert model.classes is model.merged_table.classes


def test_classes_are_those_of_the_table(run, known):
    model = open_trained(run)
    assert model.classes == {task: tuple(names) for task, names in known.CLASSES.items()}
    assert "merged_table" not in vars(model)
    assert model.classes == model.merged_table.classes


def test_the_network_is_the_models(run, known, data):
    paths = sorted(data.train_labels["shade"])[:3]
    painted = np.array([data.painted[path] for path in paths])
    images = np.broadcast_to(painted[:, None, None], (3, known.SIZE_PX, known.SIZE_PX, 3))
    logits = open_trained(run).network.predict_on_batch(images.astype(np.float32))
    expected = known.logits(painted, known.PALETTES["shade"])
    np.testing.assert_allclose(logits["shade"], expected, atol=1e-4)


@pytest.mark.usefixtures("unplotted")
def test_calibrations_are_those_of_the_evaluation(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data, tasks=("shade",), validation=0.4)
    model = open_trained(run)
    assert model.calibrations == dict.fromkeys(run.spec.task_names, Calibration())
    evaluation = evaluate(model, similar=False)
    assert model.calibrations == evaluation.calibrations
    assert open_trained(run).calibrations == evaluation.calibrations
    assert model.conformal == open_trained(run).conformal == evaluation.conformal
    assert evaluation.conformal.tasks["shade"].images > 0
    assert model.is_evaluated()
    # They are of the best model alone.
    other = run.best_model_of("shade")
    other.write_bytes(run.best_model.read_bytes())
    assert open_trained(run, other).calibrations["shade"] == Calibration()
    assert open_trained(run, other).conformal is None
    (run.results / CALIBRATION).write_text("{}")
    with pytest.raises(InputError, match=r"calibration.json: not what `multitask evaluate` writes"):
        _ = open_trained(run).calibrations


def test_a_missing_model_is_refused(run):
    with pytest.raises(InputError, match=r"best_model_shade.keras: no such model; `multitask tra"):
        open_trained(run, run.best_model_of("shade"))
    assert open_trained(run).model_file == run.best_model
    assert TrainedModel(run, run.best_model).image_dir == run.data_dir / "images"
