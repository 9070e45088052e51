"""An auxiliary task trains the trunk, and is in no result unless it is asked for."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from multitask.__main__ import main
from multitask.evaluation.report import evaluate
from multitask.learning.training import train
from multitask.model.network import trunk_and_heads
from multitask.model.trunks import merged_frozen_count
from multitask.run import open_run
from multitask.serving.export import export
from multitask.serving.predictor import load_export
from multitask.spec import field_of, override, parse_spec
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed", "undrawn_module")

TASKS = ("style", "genre")


@pytest.fixture(scope="module")
def spec(tiny_spec, tiny_trunk_module):
    spec = tiny_spec(tasks=TASKS, validation=0.3, freeze_depth="none", batch_size=24)
    painter = spec.tasks[0].model_copy(
        update={"name": "painter", "train": "", "test": None, "classes": ""}
    ).model_dump() | {"auxiliary": True, "label_from": {"path": "([a-z]+)-[0-9]"}, "weight": 0.5}
    raw = spec.to_dict()
    raw["trunk"]["name"] = tiny_trunk_module
    raw["task"].append(painter)
    return parse_spec(raw, source="tiny.toml")


@pytest.fixture(scope="module")
def data(tiny_data_in, tmp_path_factory):
    """24 training and 6 test images, by `ann` and `bo` in turn."""
    names = [f"Dots/x_{('ann', 'bo')[i % 2]}-{i:02}.jpg" for i in range(30)]
    return tiny_data_in(tmp_path_factory.mktemp("auxiliary") / "data", rows={
        "style_train": [(name, i % 3) for i, name in enumerate(names[:24])],
        "style_val": [(name, i % 3) for i, name in enumerate(names[24:])],
        "genre_train": [(name, i % 2) for i, name in enumerate(names[:24]) if i % 3],
        "genre_val": [(name, i % 2) for i, name in enumerate(names[24:])],
        "artist_train": [], "artist_val": [],
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(spec, data, uncompiled, tmp_path_factory):
    """Trained once, for tests that only look at it."""
    with uncompiled():
        return train(spec, data, tmp_path_factory.mktemp("runs") / "run").run


@pytest.fixture
def own_run(run, tmp_path):
    """A copy, for tests that evaluate and export it."""
    shutil.copytree(run.workdir, tmp_path / "run")
    return open_run(tmp_path / "run")


def metrics_of(run):
    return json.loads((run.results / "metrics.json").read_text())


def test_it_is_trained_and_logged_but_chooses_nothing(run, spec, data):
    history = pd.read_csv(run.logs / "history.csv")
    assert (history["painter/labelled"] == 24 - history["painter/val_labelled"][0]).all()
    scores = [history[field_of(task, "val_macro_f1")] for task in TASKS]
    np.testing.assert_allclose(history["val_macro_f1"], np.mean(scores, axis=0), rtol=1e-6)
    assert not run.best_model_of("painter").exists()
    assert open_run(run.workdir).spec.tasks[2].class_names == ("ann", "bo")
    # The same command resumes, and finds nothing to do.
    assert not train(spec, data, run.workdir).trained


def test_the_trunk_learns_from_it(spec, data, uncompiled, tmp_path):
    """Without its loss, the trunk becomes another one, and the head stays as it was drawn."""
    spec, parts = spec.model_copy(update={"tasks": spec.tasks[::2]}), []
    for weight in (0.5, 0.0):
        changes = {"task[painter].weight": weight, "phases.heads.epochs": 0, "validation": 0.0}
        with uncompiled():
            run = train(override(spec, changes), data, tmp_path / f"{weight}").run
        parts.append(trunk_and_heads(open_trained(run, auxiliary=True).network))
    (trunk, heads), (other_trunk, other_heads) = parts
    assert heads.keys() == {"style", "painter"}
    weights = zip(trunk.get_weights(), other_trunk.get_weights(), strict=True)
    assert any(not np.array_equal(a, b) for a, b in weights)
    drawn, learnt = (part["painter"].get_weights() for part in (other_heads, heads))
    assert (drawn[1] == 0).all()  # the bias
    assert (learnt[1] != 0).all()


@pytest.mark.usefixtures("unplotted")
def test_results_are_those_of_the_main_tasks(own_run):
    run, trained = own_run, open_trained(own_run)
    assert trained.spec.task_names == trained.test_table.tasks == TASKS
    evaluate(trained, similar=False)
    content = metrics_of(run)
    assert {key.split("/")[0] for key in content["metrics"]} == set(TASKS)
    assert "painter" not in (run.results / "predictions.csv").read_text().splitlines()[0]
    assert content["exact_match"]["tasks"] == list(TASKS)
    # All heads of the file together answer the same.
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    every = open_trained(run, auxiliary=True).network.predict_on_batch(images)
    main_heads = trained.network.predict_on_batch(images)
    assert main_heads.keys() == set(TASKS)
    for task in TASKS:
        np.testing.assert_array_equal(every[task], main_heads[task])


def test_it_is_evaluated_and_exported_on_request(own_run):
    run = own_run
    main(["evaluate", f"--workdir={run.workdir}", "--auxiliary", "--nosimilar"])
    content = metrics_of(run)
    assert content["metrics"]["painter/labelled"] == 6
    assert content["exact_match"]["tasks"] == [*TASKS, "painter"]
    # Sets for all three tasks together are not those of two.
    assert open_trained(run).conformal is None
    assert open_trained(run, auxiliary=True).conformal is not None
    calibrations = open_trained(run).calibrations
    assert calibrations == {
        task: one
        for task, one in open_trained(run, auxiliary=True).calibrations.items()
        if task in TASKS
    }
    # The tasks are those of the model, whatever the format: ONNX is written in the least time.
    folder = export(run, formats=("onnx",), images=4)
    assert load_export(folder).classes.keys() == set(TASKS)
    folder = export(run, formats=("onnx",), images=4, tasks=("genre", "painter"))
    assert load_export(folder).classes == {
        "genre": ("harbour", "portrait"), "painter": ("ann", "bo"),
    }  # fmt: skip


def test_its_freeze_depth_does_not_count(run, spec):
    trunk = trunk_and_heads(open_trained(run).network)[0]
    deep = [task.model_copy(update={"freeze_depth": "all"}) for task in spec.tasks[:2]]
    shallow = spec.tasks[2].model_copy(update={"freeze_depth": "none"})
    changed = spec.model_copy(update={"tasks": (*deep, shallow), "freeze_depth": None})
    assert merged_frozen_count(changed, trunk) == len(trunk.layers)
