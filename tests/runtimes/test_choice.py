"""The fastest runtime: which one is taken, what is remembered, and what is measured anew."""

import dataclasses
import functools
import json
import shutil
import types

import numpy as np
import pytest
from logged import logged
from PIL import Image

from multitask.__main__ import main
from multitask.runtimes import choice as module
from multitask.runtimes import libraries
from multitask.runtimes.choice import fastest_runtime
from multitask.runtimes.libraries import RUNTIMES, Runtime, speed
from multitask.serving.export import export
from multitask.serving.predictor import load_export

pytestmark = pytest.mark.usefixtures("untimed")

SETTINGS = {"size_px": 4, "batch": 3, "identity": "abc"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty."""
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache"


@pytest.fixture
def three(tmp_path, monkeypatch):
    """A function: seconds a call of "first", "second" and "third" -> (loaders, what was loaded).

    None for one that cannot be loaded. The clock moves by calls alone: nothing waits.
    """
    now = [0.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(libraries, "time", clock)

    def make(*seconds):
        names, loaded = ("first", "second", "third"), []

        def load(path):
            def infer(images):
                assert images.shape[1:] == (4, 4, 3)
                assert images.dtype == np.float32
                now[0] += took[path.name] or 1e-3
                return {}

            loaded.append(path.name)
            if took[path.name] is None:
                raise ValueError("no such operation\nand more")
            return infer

        took = dict(zip(names, seconds, strict=True))
        for name in names:
            # `json`, as any module that has a version.
            runtime = Runtime(name.title(), "json", "", name, load)
            monkeypatch.setitem(RUNTIMES, name, runtime)
        loaders = {name: functools.partial(RUNTIMES[name].load, tmp_path / name) for name in names}
        return loaders, loaded

    return make


def test_speed_is_that_of_the_fastest_call_in_images(monkeypatch):
    """By a clock that the calls move: 9 s to warm up, then 4, 2 and 3 s."""
    now, calls = [0.0], iter([9.0, 4.0, 2.0, 3.0])
    monkeypatch.setattr(libraries.time, "perf_counter", lambda: now[0])

    def infer(images):
        now[0] += next(calls)

    assert speed(infer, np.zeros((5, 1)), seconds=8.0) == 5 / 2


def test_the_fastest_is_taken_and_remembered(cache, three):
    loaders, loaded = three(0.03, 0.003, 0.01)
    lines = []
    with logged(lines):
        assert fastest_runtime(loaders, **SETTINGS) == "second"
    (line,) = lines
    assert line.startswith("Images per second on this machine, measured once: First ")
    assert loaded == ["first", "second", "third"]
    (file,) = (cache / "multitask" / "runtimes").iterdir()
    content = json.loads(file.read_text())
    assert content["chosen"] == "second"
    assert content["images_per_second"]["first"] == pytest.approx(3 / 0.03)
    # Again: nothing is loaded or told.
    with logged(lines):
        assert fastest_runtime(loaders, **SETTINGS) == "second"
    assert (len(loaded), len(lines)) == (3, 1)


@pytest.mark.parametrize("changed", ["model", "batch", "version", "fewer", "machine", "cores"])
def test_what_is_another_case_is_measured_anew(cache, three, monkeypatch, changed):
    loaders, loaded = three(0.0, 0.0, 0.0)
    fastest_runtime(loaders, **SETTINGS)
    del loaded[:]
    requested = dict(SETTINGS)
    if changed == "model":
        requested["identity"] = "abd"
    elif changed == "batch":
        requested["batch"] = 2
    elif changed == "version":
        monkeypatch.setattr("json.__version__", "0.1")
    elif changed == "machine":
        monkeypatch.setattr("platform.node", lambda: "another")
    elif changed == "cores":
        monkeypatch.setattr("os.cpu_count", lambda: 77)
    else:
        del loaders["third"]
    fastest_runtime(loaders, **requested)
    assert loaded == list(loaders)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"first": 95, "second": 100, "third": 50}, "first"),
        ({"first": 94.9, "second": 100, "third": 50}, "second"),
        ({"first": 90, "second": 95, "third": 100}, "second"),
        ({"first": 100, "second": 104, "third": 100}, "first"),
    ],
)
def test_within_five_per_cent_the_order_decides(cache, three, monkeypatch, rates, chosen):
    loaders, _ = three(0.0, 0.0, 0.0)
    turns = iter([rates[name] for name in loaders] * module.ROUNDS)
    monkeypatch.setattr(module, "speed", lambda *args, **how: next(turns))
    assert fastest_runtime(loaders, **SETTINGS) == chosen


def test_the_best_turn_counts(cache, three, monkeypatch):
    """Something else ran beside the second in its first turn."""
    loaders, _ = three(0.0, 0.0, 0.0)
    turns = iter([50, 10, 40] + [50, 80, 40] * (module.ROUNDS - 1))
    monkeypatch.setattr(module, "speed", lambda *args, **how: next(turns))
    assert fastest_runtime(loaders, **SETTINGS) == "second"


def test_one_that_cannot_run_it_is_named_and_not_taken(cache, three):
    loaders, _ = three(None, 0.01, 0.0)
    lines = []
    with logged(lines):
        assert fastest_runtime(loaders, **SETTINGS) == "third"
    assert lines[0] == "First cannot run the model: no such operation"


def test_a_half_installed_one_is_named_and_not_taken(cache, three, monkeypatch):
    loaders, _ = three(0.0, 0.01, 0.0)
    gone = dataclasses.replace(RUNTIMES["third"], module="json.gone")
    monkeypatch.setitem(RUNTIMES, "third", gone)
    loaders["third"] = lambda: 1 / 0
    lines = []
    with logged(lines):
        assert fastest_runtime(loaders, **SETTINGS) == "first"
    assert lines[0] == "Third cannot run the model: division by zero"


def test_where_none_can_nothing_is_remembered(cache, three):
    loaders, loaded = three(None, None, None)
    for _ in range(2):
        assert fastest_runtime(loaders, **SETTINGS) == "first"
    assert len(loaded) == 6
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"chosen": "fourth"}', '{"chosen": ["first"]}']
)
def test_a_damaged_memory_is_measured_anew(cache, three, content):
    loaders, loaded = three(0.01, 0.0, 0.01)
    fastest_runtime(loaders, **SETTINGS)
    (file,) = (cache / "multitask" / "runtimes").iterdir()
    file.write_text(content)
    del loaded[:]
    assert fastest_runtime(loaders, **SETTINGS) == "second"
    assert len(loaded) == 3
    assert json.loads(file.read_text())["chosen"] == "second"


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(cache, three):
    loaders, _ = three(0.01, 0.0, 0.01)
    cache.write_text("a file where the folder would be")
    assert fastest_runtime(loaders, **SETTINGS) == "second"


def test_one_alone_is_not_measured(cache, three):
    loaders, loaded = three(0.0, 0.0, 0.0)
    assert fastest_runtime({"third": loaders["third"]}, **SETTINGS) == "third"
    assert not loaded


# === With real ones ===


@pytest.fixture
def short_turns(monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0.01)


@pytest.fixture(scope="module")
def folder(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data, tasks=("warmth",))
    return export(run, formats=("savedmodel", "onnx", "litert"))


def test_many_images_are_answered_by_the_fastest(
    cache, folder, known, short_turns, tmp_path, monkeypatch, capsys
):
    """Of all that are installed; the second time without measuring, and to the same bit."""
    monkeypatch.setattr("multitask.serving.predict.FEWEST_MEASURED", 3)
    painted = known.colours(3, 8)
    for number, colour in enumerate(painted):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10), tuple(map(int, colour))).save(path)
    argv = ["predict", f"--model={folder}", str(tmp_path / "images")]
    main([*argv, f"--out={tmp_path / 'a.csv'}"])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    rates = dict(one.rsplit(" ", 1) for one in line.split(": ")[1].split(", "))
    assert list(rates) == [runtime.title for runtime in RUNTIMES.values()]
    best = max(rates, key=lambda title: float(rates[title]))
    message = out.splitlines()[0].removeprefix("Predicting 3 images with ")
    title = next(title for title in rates if message.startswith(title))
    assert float(rates[title]) >= 0.94 * float(rates[best])  # told in whole images
    main([*argv, f"--out={tmp_path / 'b.csv'}"])
    again, err = capsys.readouterr()
    assert err == ""
    assert again.splitlines()[0] == out.splitlines()[0]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_broken_artifact_is_not_taken_where_another_is_whole(
    cache, folder, known, short_turns, tmp_path
):
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    (copy / "colours.tflite").write_bytes(b"broken")
    (copy / "colours" / "1" / "saved_model.pb").unlink()
    lines = []
    with logged(lines):
        predictor = load_export(copy, batch=2)
    assert [line.split(" cannot run ")[0] for line in lines[:2]] == ["LiteRT", "TensorFlow"]
    painted = known.colours(2, 9)
    images = np.broadcast_to(painted[:, None, None], (2, 32, 32, 3)).astype(np.float32)
    probabilities = predictor.probabilities(images)
    assert list(probabilities) == ["warmth"]
    wanted = known.answers(painted)["warmth"]
    np.testing.assert_allclose(probabilities["warmth"], wanted, atol=1e-5)


def test_few_images_take_the_one_that_starts_first(cache, folder, monkeypatch):
    monkeypatch.setattr(module, "speed", None)
    assert load_export(folder).runtime.startswith("LiteRT")
    named = load_export(folder, runtime="openvino", batch=2)
    assert named.runtime.startswith("OpenVINO")
    without = dataclasses.replace(RUNTIMES["litert"], module="gone")
    monkeypatch.setitem(RUNTIMES, "litert", without)
    assert load_export(folder).runtime.startswith("ONNX Runtime")
    assert not cache.exists()
