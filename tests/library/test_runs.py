"""Runs from Python: the numbers of the commands, the log, the errors, and what a notebook shows."""

import importlib
import json
import logging
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

import multitask as mt
from multitask import console
from multitask.__main__ import main
from multitask.console import progress_bar
from multitask.evaluation.task_plots import OPEN_SET, PLOTS
from multitask.model.trunks import TRUNKS

pytestmark = pytest.mark.usefixtures("untimed")

HISTORY_OF_TIME = ("images_per_second", "seconds")


def weights_of(workdir):
    import keras

    return keras.saving.load_model(workdir / "models" / "best_model.keras").get_weights()


def handlers():
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(scope="module")
def trained(museum_made, uncompiled, tmp_path_factory):
    """(spec, run, its history after the phase "heads"): one phase, then the rest, in two calls.

    In a folder of its own, for tests that only look at it.
    """
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, uncompiled():
        patch.setitem(TRUNKS, "tiny", importlib.import_module("tiny_trunk").two_blocks)
        spec = mt.load_spec(museum_made / "museum.toml", seed=3, batch_size=5)
        shutil.copytree(museum_made / "museum", folder / "museum")
        before = handlers()
        first = mt.train(spec, folder / "museum", folder / "run", phase="heads", deterministic=True)
        history = first.history
        run = mt.train(spec, data_dir=folder / "museum", workdir=folder / "run", deterministic=True)
        assert handlers() == before
    return spec, run, history


def test_the_same_run_as_the_command(trained, museum, uncompiled, capsys):
    """The command trains in one go what the library did in two."""
    _, run, _ = trained
    flags = ["--spec=museum.toml", "--seed=3", "--batch_size=5", "--workdir=by_command"]
    with uncompiled():
        main(["train", *flags, f"--data_dir={run.data_dir}", "--noevaluate"])
    for own, other in zip(weights_of(run.workdir), weights_of(museum / "by_command"), strict=True):
        np.testing.assert_array_equal(own, other)
    written = pd.read_csv("by_command/logs/history.csv")
    same = [name for name in written if name not in HISTORY_OF_TIME]
    pd.testing.assert_frame_equal(run.history[same], written[same], check_exact=True)
    printed = re.findall(r"Best epoch so far: (\d+)\.", capsys.readouterr().out)
    assert run.best_epoch == int(printed[-1])


@pytest.mark.usefixtures("undrawn")
def test_the_same_evaluation_as_of_the_command(evaluation, museum):
    results = museum / "runs/first/results"
    shutil.rmtree(results)
    main(["evaluate", "--workdir=runs/first", "--data_dir=museum", "--nosimilar"])
    metrics = json.loads((results / "metrics.json").read_text())["metrics"]
    for task, values in evaluation.metrics.iterrows():
        for name in ("labelled", "top1", "macro_f1", "balanced_accuracy"):
            assert values[name] == metrics[f"{task}/{name}"]


def test_a_call_resumes_and_refuses_as_the_command(trained, tiny_trunk, tmp_path):
    spec, second, first_history = trained
    assert first_history["phase"].tolist() == ["heads"]
    assert second.history["phase"].tolist() == ["heads", "finetune"]
    file, workdir = tmp_path / "museum.toml", tmp_path / "run"
    file.write_text(spec.to_toml())
    shutil.copytree(second.workdir, workdir)
    again = mt.train(file, second.data_dir, workdir)
    assert again.history.equals(second.history)
    with pytest.raises(mt.InputError, match="holds a run with other settings") as raised:
        mt.train(mt.load_spec(file, seed=9), second.data_dir, workdir)
    assert raised.value.field == "workdir"


@pytest.mark.parametrize(
    ("call", "field", "text"),
    [
        (lambda: mt.load_spec("wikiartt"), "spec", 'Did you mean "wikiart"?'),
        (lambda: mt.load_spec("demo", image_sise=1), "image_sise", 'Did you mean "image_size"?'),
        (lambda: mt.load_spec("demo", tasks=["artists"]), "tasks", 'Did you mean "artist"?'),
        (lambda: mt.load_spec("demo", {"task[stile].subset": 1}), "task[stile].subset", "style"),
        (lambda: mt.train("museum.toml", "nowhere", "run"), "data_dir", "is not a folder"),
        (lambda: mt.train("museum.toml", "museum", "a.png"), "workdir", "is a file"),
        (lambda: mt.train("museum.toml", "museum", "run", phase="head"), "phase", '"heads"'),
        (lambda: mt.open_run("museum"), "workdir", "holds no run"),
        (lambda: mt.open_run("runs/first").evaluate(tta="flop"), "tta", '"flip"'),
        (lambda: mt.open_run("runs/first").export(["onyx"]), "format", '"onnx"'),
        (lambda: mt.open_run("runs/first").export(tasks=["shades"]), "tasks", '"shade"'),
    ],
)
def test_wrong_arguments(museum, call, field, text):
    with pytest.raises(mt.InputError) as raised:
        call()
    assert raised.value.field == field
    line = str(raised.value)
    assert line.startswith(f"{field}: ")
    assert text in line
    assert "\n" not in line
    assert not (museum / "run").exists()


@pytest.fixture
def evaluation(made):
    """Of the run of `museum_made`, for tests that only look at it."""
    return made[1]


def test_an_evaluation(evaluation):
    frame = evaluation.predictions
    for task in ("shade", "warmth"):
        rows = frame[frame[f"{task}/true"].notna()]
        assert len(rows) < len(frame)
        right = (rows[f"{task}/true"] == rows[f"{task}/predicted"]).mean()
        assert evaluation.metrics.loc[task, "top1"] == pytest.approx(right)
        assert evaluation.metrics.loc[task, "labelled"] == len(rows)
        macro_f1 = sklearn.metrics.f1_score(
            rows[f"{task}/true"],
            rows[f"{task}/predicted"],
            labels=sorted(set(rows[f"{task}/true"])),
            average="macro",
        )
        assert evaluation.metrics.loc[task, "macro_f1"] == pytest.approx(macro_f1)
    assert evaluation.report == evaluation.folder / "report.html"
    assert evaluation.report.is_file()
    with pytest.raises(mt.InputError, match=r'kind: .* Did you mean "confusion_matrix"\?'):
        evaluation.plot("confusion", "shade")
    with pytest.raises(mt.InputError, match=r'task: .* Did you mean "shade"\?'):
        evaluation.plot("f1_scores", "shades")


def test_the_plots_are_the_files_of_the_report(evaluation):
    # Neither task is open: there is no file, and the plot says so.
    assert not list(evaluation.folder.glob(f"{OPEN_SET}*"))
    assert evaluation.plot(OPEN_SET, task="shade").texts[0].get_text() == "none in the test set"
    for kind in PLOTS.keys() - {OPEN_SET}:
        figure = evaluation.plot(kind, task="shade")
        assert figure._repr_png_() == (evaluation.folder / f"{kind}_shade.png").read_bytes(), kind


# === In a notebook ===


def test_a_run_shows_itself(trained, museum_made):
    _, run, _ = trained
    html = run._repr_html_()
    assert html.count("<img ") == 2
    assert "&lt;" not in html
    assert re.search(r"batch_size</th><td[^>]*>5 \(spec: 7\)</td>", html)
    assert "image_size" not in html
    assert f">{run.best_epoch}</td>" in html
    assert "No epoch" in mt.open_run(museum_made / "runs/first")._repr_html_()


def test_an_evaluation_shows_itself(evaluation):
    html = evaluation._repr_html_()
    assert html.count("<img ") == 2
    assert html.count("<th>shade</th>") == 1
    assert "&lt;" not in html


def test_predictions_show_themselves(museum):
    images = np.zeros((23, 8, 8, 3), np.uint8)
    table = mt.load_model("runs/first/export").predict([*images[:2], "<b>.png", *images[2:]])
    html = table._repr_html_()
    assert html.count("<img ") == 19  # of the first 20 rows, one is missing
    assert "&lt;b&gt;.png" in html
    assert "<p>and 4 more rows</p>" in html
    assert "<img" not in table[1:3]._repr_html_()  # of pandas


def test_a_wrong_argument_is_one_line_in_a_notebook():
    """IPython shows what this method returns instead of a traceback."""
    with pytest.raises(mt.InputError) as raised:
        mt.load_spec("demo", batch_size=0)
    (line,) = raised.value._render_traceback_()
    assert line == "SpecError: batch_size: 0: input should be greater than 0"


# === The log ===

TRAINED_TWICE = """
import logging, sys
import multitask as mt
from multitask.model.trunks import TRUNKS
sys.path.insert(0, sys.argv[1])
import tiny_trunk
TRUNKS["tiny"] = tiny_trunk.two_blocks
mt.train("museum.toml", "museum", "first")
print("=== silent ===")
logging.getLogger("multitask").setLevel(logging.WARNING)
mt.train("museum.toml", "museum", "second")
"""


@pytest.mark.slow
def test_the_log_is_shown_unless_its_level_silences_it(museum, pytestconfig):
    tests = pytestconfig.rootpath / "tests"
    command = [sys.executable, "-c", TRAINED_TWICE, str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.split("=== silent ===")
    assert "finetune 1/1" in first
    assert second.strip() == ""
    assert "finetune" not in done.stderr
    assert (museum / "second/models/best_model.keras").is_file()


@pytest.fixture
def package_log(monkeypatch):
    """A function that returns the package's logger, without a level or handlers anywhere."""

    def bare():  # called by the test, as pytest adds its own handlers after the fixtures
        logger = logging.getLogger("multitask")
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logging.root, "handlers", [])
        logger.setLevel(logging.NOTSET)
        console._has_handlers.cache_clear()
        return logger

    yield bare
    console._has_handlers.cache_clear()


def test_a_program_with_handlers_gets_the_log(package_log, capsys):
    log, collected = package_log(), []
    handler = logging.Handler()
    handler.emit = lambda record: collected.append(record.getMessage())
    logging.root.handlers.append(handler)
    with console.log_shown():
        log.info("one")
    assert collected == ["one"]
    assert capsys.readouterr().out == ""


def test_a_program_without_handlers_sees_the_log(package_log, capsys):
    log = package_log()
    with console.log_shown():
        logging.root.handlers.append(logging.NullHandler())  # as tf2onnx adds one
        log.info("one")
        log.debug("not this")
    with console.log_shown():
        log.info("two")
    log.info("not shown outside of calls")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert not log.handlers


def test_a_call_after_a_command_logs_to_standard_output(package_log, capsys):
    log = package_log()
    with console.logging_to_console():
        console.log_to_stderr()
        log.info("of the command")
    with console.log_shown():
        log.info("of the call")
    assert capsys.readouterr() == ("of the call\n", "of the command\n")


def test_of_the_log_of_tensorflow_only_errors_are_shown(monkeypatch, caplog):
    tensorflow = logging.getLogger("tensorflow")
    monkeypatch.setattr(tensorflow, "propagate", True)
    with console.log_shown():
        monkeypatch.setattr(tensorflow, "level", logging.INFO)  # as its import in a notebook does
        with console.log_shown():
            tensorflow.warning("traced often")
        tensorflow.warning("traced often")
        tensorflow.error("failed")
    tensorflow.info("Assets written")
    assert [r.message for r in caplog.records if r.name == "tensorflow"] == [
        "failed",
        "Assets written",
    ]


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, True), (logging.WARNING, False)])
def test_bars_follow_the_level_of_the_log(monkeypatch, level, shown):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("multitask")
    monkeypatch.setattr(logger, "level", level)
    logger.manager._clear_cache()
    with progress_bar("decoding", 3) as bar:
        bar.update(3)
    logger.manager._clear_cache()
    assert ("decoding" in terminal.text) is shown


def test_bars_of_a_notebook_are_in_the_order_of_the_log(monkeypatch, capsys):
    monkeypatch.setattr(console, "in_notebook", lambda: True)
    logger = logging.getLogger("multitask")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    with progress_bar("decoding", 3):
        pass
    logger.manager._clear_cache()
    print("decoded")
    out, err = capsys.readouterr()
    assert re.search(r"decoding:.*\r +\rdecoded\n$", out)
    assert err == ""
