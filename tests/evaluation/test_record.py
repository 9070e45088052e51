"""An evaluation is done where its last file agrees with the model and with all the others."""

import json
import shutil

import pytest

from multitask.evaluation.calibration import CALIBRATION, saved_calibrations
from multitask.evaluation.comparison import read_results
from multitask.evaluation.record import RECORD, is_evaluated, is_of_model, sha256
from multitask.evaluation.report import evaluate
from multitask.serving.card import _results
from multitask.spec import InputError


@pytest.fixture(scope="module")
def evaluated(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "one", data, selection=0.4)
    evaluate(run, similar=False, tell=lambda line: None)
    return run


@pytest.fixture
def run(evaluated):
    """Evaluated; its files may be changed."""
    kept = evaluated.workdir.with_name("kept")
    shutil.copytree(evaluated.workdir, kept)
    yield evaluated
    shutil.rmtree(evaluated.workdir)
    kept.rename(evaluated.workdir)


def test_the_record_names_every_file_and_comes_last(run):
    names = {path.name for path in run.results.iterdir()}
    record = json.loads((run.results / RECORD).read_text())
    assert record["files"].keys() == names - {RECORD}
    assert {"metrics.json", "report.html", "predictions.csv", "outliers_shade.png"} < names
    assert record["model_sha256"] == sha256(run.best_model)
    newest = max(run.results.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == RECORD
    assert is_evaluated(run, run.best_model)


def test_a_file_that_is_missing_or_changed_is_noticed(run):
    for name in json.loads((run.results / RECORD).read_text())["files"]:
        path = run.results / name
        content = path.read_bytes()
        path.unlink()
        assert not is_evaluated(run, run.best_model)
        path.write_bytes(content[:-1])
        assert not is_evaluated(run, run.best_model)
        path.write_bytes(content)
    assert is_evaluated(run, run.best_model)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": {}}', '{"files": 3}'])
def test_without_a_whole_record_it_is_not_done(run, content):
    (run.results / RECORD).unlink()
    if content is not None:
        (run.results / RECORD).write_text(content)
    assert not is_evaluated(run, run.best_model)
    # An older version wrote no record: what it wrote is still read.
    assert is_of_model(run, CALIBRATION, run.best_model)
    assert read_results(run).metrics


def test_what_is_of_an_older_model_is_not_taken_for_the_new_ones(run):
    """Under the same name, as further training gives it."""
    assert saved_calibrations(run, run.best_model)["shade"].fitted_on > 0
    assert _results(run, run.best_model)[0]
    with run.best_model.open("ab") as file:
        file.write(b"x")
    assert not is_evaluated(run, run.best_model)
    assert saved_calibrations(run, run.best_model)["shade"].fitted_on == 0
    assert _results(run, run.best_model) == ({}, {})


def test_results_of_two_evaluations_are_not_compared(run):
    """As a stop in the middle of the second one leaves them, where the figures happen to agree."""
    read_results(run)
    metrics = run.results / "metrics.json"
    metrics.write_text(metrics.read_text() + " ")
    with pytest.raises(InputError, match="not the results of one evaluation .* stopped") as caught:
        read_results(run)
    assert "evaluate --workdir" in str(caught.value)
