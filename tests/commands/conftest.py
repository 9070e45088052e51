"""Fixtures that tests of several commands share."""

import signal

import numpy as np
import pytest
from odd_files import HANG_S
from refused_training import SPEC, TASK

from multitask.evaluation.predictions import Predictions
from multitask.files import write_json
from multitask.learning import training
from multitask.metrics import classification_metrics
from multitask.run import start_run
from multitask.spec import MISSING, load_spec


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """The flag of a folder of records that all tests share: equal data sets are read once."""
    return f"--records_dir={tmp_path_factory.mktemp('records')}"


@pytest.fixture
def colours(known, tmp_path):
    """A folder with data/, spec.toml that fits it, and run/, whose model's answers are known."""
    (tmp_path / "spec.toml").write_text(known.colour_spec(("shade",), max_missing=0.2).to_toml())
    known.make_run(tmp_path / "run", known.paint(tmp_path / "data"), tasks=("shade",))
    return tmp_path


@pytest.fixture
def no_hang():
    """A test that waits longer than `HANG_S` fails."""

    def fail(number, frame):
        raise TimeoutError("the command waits for ever")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place(known, tmp_path):
    """A folder with data/, spec.toml that fits it, and no runs."""
    known.paint(tmp_path / "data")
    text = SPEC + TASK.replace("NAME", "shade") + TASK.replace("NAME", "warmth")
    (tmp_path / "spec.toml").write_text(text)
    return tmp_path


@pytest.fixture
def trained(place, known):
    """A run in `place`/run, with a model."""
    spec = load_spec(str(place / "spec.toml"))
    run = start_run(place / "run", spec, place / "data")
    known.colour_model(spec.task_names).save(run.best_model)
    return run


@pytest.fixture
def without_network(monkeypatch):
    """Building the network comes before the CSVs are read; it takes seconds and is not needed."""
    monkeypatch.setattr(training, "_first_network", lambda *args: None)


@pytest.fixture
def compared(place, trained):
    """Two runs that `compare` takes, by name."""
    names = []
    for name in ("run", "other"):
        run = start_run(place / name, trained.spec, place / "data")
        paths = np.array(["a.png", "b.png", "c.png"], dtype=object)
        labels = np.array([[0, 1], [1, MISSING], [2, 0]], np.int32)
        classes = {"shade": ("a", "b", "c"), "warmth": ("warm", "cold")}
        message = {task: np.eye(3, len(c), dtype=np.float32) for task, c in classes.items()}
        message["warmth"][2, 0] = 1
        predictions = Predictions(classes, paths, labels, message)
        predictions.save(run.results)
        evaluated = {}
        for task, names_of in classes.items():
            _, true, probabilities = predictions.labelled_examples(task)
            result = classification_metrics(true, probabilities, classes=len(names_of))
            evaluated |= {f"{task}/{key}": value for key, value in result.items()}
        write_json(run.results / "metrics.json", {"model": "m", "metrics": evaluated})
        names.append(str(run.workdir))
    return names
