"""An evaluation is complete if its last file agrees with the model and with all other files."""

import json
import shutil

import pytest

from multitask.annexes.compare.results import read_results
from multitask.calibration import CALIBRATION
from multitask.evaluation.report import evaluate
from multitask.reading import sha256
from multitask.results import RECORD, is_of_model
from multitask.serving.model_card import saved_metrics
from multitask.spec import InputError
from multitask.trained import open_trained


@pytest.fixture(scope="module")
def evaluated(known, data, without_plots, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    run = known.make_run(folder, data, tasks=("shade",), validation=0.4)
    with without_plots():
        evaluate(open_trained(run), similar=False)
    return run


@pytest.fixture
def run(evaluated):
    """An evaluated run whose files may be changed."""
    copy = evaluated.workdir.with_name("copy")
    shutil.copytree(evaluated.workdir, copy)
    yield evaluated
    shutil.rmtree(evaluated.workdir)
    copy.rename(evaluated.workdir)


def is_evaluated(run):
    return open_trained(run).is_evaluated()


def test_the_record_names_every_file_and_is_written_last(run):
    names = {path.name for path in run.results.iterdir()}
    record = json.loads((run.results / RECORD).read_text())
    assert record["files"].keys() == names - {RECORD}
    assert {"metrics.json", "report.html", "predictions.csv", "outliers_shade.png"} < names
    assert record["model_sha256"] == sha256(run.best_model)
    newest = max(run.results.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == RECORD
    assert is_evaluated(run)


def test_a_missing_or_changed_file_is_detected(run):
    for name in json.loads((run.results / RECORD).read_text())["files"]:
        path = run.results / name
        content = path.read_bytes()
        path.unlink()
        assert not is_evaluated(run)
        path.write_bytes(content[:-1])
        assert not is_evaluated(run)
        path.write_bytes(content)
    assert is_evaluated(run)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": {}}', '{"files": 3}'])
def test_without_a_complete_record_it_is_not_evaluated(run, content):
    (run.results / RECORD).unlink()
    if content is not None:
        (run.results / RECORD).write_text(content)
    assert not is_evaluated(run)
    # An older version wrote no record: its files are still read.
    assert is_of_model(run, CALIBRATION, sha256(run.best_model))
    assert read_results(run).metrics


def test_results_of_an_older_model_are_not_used_for_a_newer_one(run):
    """Further training gives the new model the same name."""
    assert open_trained(run).calibrations["shade"].fitted_on > 0
    assert saved_metrics(open_trained(run))[0]
    with run.best_model.open("ab") as file:
        file.write(b"x")
    assert not is_evaluated(run)
    assert open_trained(run).calibrations["shade"].fitted_on == 0
    assert saved_metrics(open_trained(run)) == ({}, {})


def test_results_of_two_evaluations_are_not_compared(run):
    """A stop in the middle of the second one leaves such files; here their metrics agree."""
    read_results(run)
    metrics = run.results / "metrics.json"
    metrics.write_text(metrics.read_text() + " ")
    message = r"not the results of one evaluation .* interrupted"
    with pytest.raises(InputError, match=message) as caught:
        read_results(run)
    assert "evaluate --workdir" in str(caught.value)
