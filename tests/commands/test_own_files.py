"""Damaged files of runs, exports and searches: reading them raises one `InputError`."""

import copy
import itertools
import json
import random

import numpy as np
import pytest

from multitask.calibration import Calibration
from multitask.feature_distance import DISTANCE, fit_distance
from multitask.files import write_json
from multitask.run import check_same_data, check_workdir, open_run, start_run, write_config
from multitask.serving.prediction_files import PredictionFile
from multitask.serving.predictor import FORMAT, read_export
from multitask.spec import InputError, load_spec
from multitask.trained import open_trained

ODD_FILES = {
    "empty": b"",
    "half": b'{"spec": {',
    "no JSON": b"Traceback (most recent call last):",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999999",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"spec":' * 2000 + b"1" + b"}" * 2000,
    "deep but parsed": b'{"spec":' * 300 + b"1" + b"}" * 300,
    "many digits": b'{"spec": ' + b"9" * 5000 + b"}",
    "other keys": b'{"a": 1}',
}
ODD_VALUES = [None, True, -1, 0, 1e308, float("inf"), float("nan"), "", "a\0b", "x" * 3000, [], {}]
ODD_VALUES += [[[[]]], {"a": {"b": []}}, 10**400, "../..", "\ud800"]


@pytest.fixture(scope="module")
def read_back(tmp_path_factory):
    """What is read back: name -> its file, as it is written, and the function that reads it."""
    root = tmp_path_factory.mktemp("read_back")
    spec = load_spec("demo")
    run = start_run(root / "run", spec, root, fingerprint="0")
    run.best_model.write_bytes(b"")
    calibration = Calibration(1.5, 20, {"raw": ((0.5, 0.8, 0.9),), "calibrated": ()}).to_dict()
    write_json(
        run.results / "calibration.json",
        {
            "model": "models/best_model.keras",
            "tasks": dict.fromkeys(spec.task_names, calibration),
        },
    )
    distance = fit_distance(*(np.random.default_rng(s).random((40, 5)) for s in (0, 1))).to_dict()
    write_json(run.results / DISTANCE, {"model": "models/best_model.keras"} | distance)
    write_json(root / "export" / DISTANCE, distance)
    write_json(
        root / "export/classes.json",
        {
            "format": FORMAT,
            "spec": "demo",
            "image_size": 32,
            "resize": "squash",
            "reduced_px": 37,
            "classes": {"style": ["a", "b"]},
            "calibration": {"style": calibration},
            "model": "0" * 64,
            "artifacts": {"keras": "model.keras"},
            "distance": DISTANCE,
        },
    )
    (root / "export/report.json").write_text("{}")
    search, settings = root / "search/tune", {"metric": "macro_f1", "search": ["heads"]}
    write_config(search, spec, root, fingerprint="0", **settings)
    write_json(root / "answers.csv.partial", {"model": "m", "tta": None})
    # A file of ours is one line.
    (root / "answers.csv.partial").write_text('{"model": "m", "tta": null}\n{"path": "a.jpg"}\n')

    def resume():
        settings = {"model": "m", "tta": None}
        PredictionFile(root / "answers.csv", settings, {"style": ("a", "b")}, resume=True).close()

    def check_search():
        check_workdir(search, spec, kind="search", **settings)
        check_same_data(search, "0", kind="search")

    def open_and_check():
        check_workdir(run.workdir, spec)
        check_same_data(run.workdir, "0")
        open_run(run.workdir)

    return {
        "config": (run.workdir / "config.json", open_and_check),
        "calibration": (
            run.results / "calibration.json",
            lambda: open_trained(run).calibrations,
        ),
        "classes": (root / "export/classes.json", lambda: read_export(root / "export")),
        "distance": (run.results / DISTANCE, lambda: open_trained(run).distance),
        "exported": (root / "export" / DISTANCE, lambda: read_export(root / "export")),
        "search": (
            root / "search/tune/config.json",
            check_search,
        ),
        "answers": (root / "answers.csv.partial", resume),
    }


def places(content, place=()):
    """Every key and index of nested JSON, three of a list at most."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content[:3])
    for key, value in pairs:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


def changed(content, place, value):
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


READ_BACK = ["config", "calibration", "distance", "classes", "exported", "search", "answers"]


@pytest.mark.parametrize("content", ODD_FILES.values(), ids=ODD_FILES)
@pytest.mark.parametrize("name", READ_BACK)
def test_a_file_of_ours_that_is_something_else(read_back, name, content):
    file, read = read_back[name]
    read()
    before = file.read_bytes()
    file.write_bytes(content + b"\n" if name == "answers" else content)
    try:
        with pytest.raises(InputError) as caught:
            read()
    finally:
        file.write_bytes(before)
    assert str(file.parent) in str(caught.value) or str(file) in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", READ_BACK[:-1])
def test_a_file_of_ours_with_one_odd_value(read_back, name):
    """Whatever stands there, reading it works or is one InputError."""
    file, read = read_back[name]
    before = file.read_text(encoding="utf-8")
    content, refused = json.loads(before), 0
    rng = random.Random(0)
    every = list(itertools.product(places(content), ODD_VALUES))
    try:
        for place, value in rng.sample(every, min(400, len(every))):
            file.write_text(json.dumps(changed(content, place, value)), encoding="utf-8")
            try:
                read()
            except InputError:
                refused += 1
    finally:
        file.write_text(before, encoding="utf-8")
    assert refused > 50
    read()
