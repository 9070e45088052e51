"""Demo paintings from start to end, as a user does: train, evaluate, export and predict.

The trunk has two blocks, which are traced sooner; `make demo` trains EfficientNetB2.
"""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from logged import logged

import multitask as mt
from multitask.__main__ import main
from multitask.data.merging import load_table
from multitask.data.records import prepare
from multitask.data.table import TEST
from multitask.learning import features, training
from multitask.learning.training import train
from multitask.model.network import load_network, trunk_and_heads
from multitask.model.trunks import TRUNKS
from multitask.run import open_run
from multitask.serving import predict
from multitask.serving.predict import predict_files
from multitask.serving.predictor import load_best, load_export
from multitask.spec import (
    MISSING,
    InputError,
    find_spec,
    load_spec,
    override,
    parse_spec,
    select_tasks,
)

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The name of the trunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRUNKS, "tiny", importlib.import_module("tiny_trunk").two_blocks)
        yield "tiny"


def small(spec):
    """The demo's spec, at a size that a test can train."""
    return override(
        spec,
        {
            "trunk.name": "tiny",
            "trunk.zero_init_residual": False,
            "trunk.stochastic_depth": None,
            "image_size": 32,
            "batch_size": 16,
            "phases.heads.epochs": 2,
            "phases.finetune.epochs": 2,
            "validation": 0.15,
        },
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return mt.paint_demo(tmp_path_factory.mktemp("demo") / "data", images=120, size=48)


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory):
    """The demo's spec; of so few images, one unknown class is more than the usual share."""
    text = find_spec("demo").read_text()
    file = tmp_path_factory.mktemp("specs") / "demo.toml"
    file.write_text(text.replace("\nvalidation =", "\nmax_unknown = 0.1\nvalidation =", 1))
    return file


@pytest.fixture(scope="module")
def one_task(spec_file):
    """The demo's spec with the task genre alone."""
    return select_tasks(small(load_spec(str(spec_file))), ["genre"])


@pytest.fixture(scope="module")
def records(one_task, data_dir, tmp_path_factory):
    """The folder of the records of `one_task`."""
    folder = tmp_path_factory.mktemp("records")
    prepare(one_task, data_dir, folder)
    return folder


@pytest.fixture(scope="module")
def workdir(data_dir, spec_file, tiny, undrawn_module, tmp_path_factory):
    """A whole run of all three tasks, made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    main(
        [
            "train",
            f"--spec={spec_file}",
            f"--data_dir={data_dir}",
            f"--workdir={folder}",
            f"--trunk={tiny}",
            "--image_size=32",
            "--batch_size=16",
            "--epochs_heads=2",
            "--epochs_finetune=6",
            "--validation_share=0.15",
        ]
    )
    return folder


def test_both_phases_are_trained_and_the_loss_falls(workdir):
    history = pd.read_csv(workdir / "logs" / "history.csv")
    assert list(history["phase"]) == ["heads"] * 2 + ["finetune"] * 6
    assert list(history["epoch"]) == list(range(1, 9))
    assert np.isfinite(history["loss"]).all()
    # Of the features of a frozen random trunk, the heads learn next to nothing.
    first, *_, last = history.loc[history["phase"] == "finetune", "loss"]
    assert last < 0.9 * first
    best = history.loc[history["val_macro_f1"].idxmax()]
    newest = max((workdir / "checkpoint").iterdir())
    progress = json.loads((newest / "progress.json").read_text())
    assert progress["best_epoch"]["macro_f1"] == best["epoch"]
    assert progress["finished"] == ["heads", "finetune"]


def test_the_run_holds_all_that_is_promised(workdir):
    assert (workdir / "models" / "best_model.keras").is_file()
    for task in ("artist", "style", "genre"):
        assert (workdir / "models" / f"best_model_{task}.keras").is_file()
        for name in (
            f"model_architecture_{task}.png",
            f"confusion_matrix_{task}.png",
            f"classification_report_{task}.txt",
            f"f1_scores_{task}.png",
            f"training_history_{task}.png",
            f"outliers_{task}.csv",
            f"outliers_{task}.png",
            f"coverage_{task}.csv",
            f"coverage_{task}.png",
            "report.html",
        ):
            assert (workdir / "results" / name).stat().st_size > 0
    assert (workdir / "results" / "report.html").stat().st_size < 15e6
    assert list((workdir / "logs" / "tensorboard").glob("events*"))
    assert not [p for p in workdir.rglob("*") if p.name.startswith((".tmp", ".old"))]


def test_the_same_command_again_trains_nothing(workdir, data_dir, capsys):
    before = (workdir / "models" / "best_model.keras").read_bytes()
    run = open_run(workdir)
    result = train(run.spec, data_dir, workdir)
    assert not result.trained
    assert (workdir / "models" / "best_model.keras").read_bytes() == before


def test_a_run_does_not_go_on_with_other_data(workdir, data_dir, tmp_path):
    """One more label makes another training; the error comes before anything is prepared."""
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    csv = folder / "wikiart_csv" / "style_train.csv"
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[1:]))
    run, lines = open_run(workdir), []
    changed = "the images or labels have changed since this run"
    with pytest.raises(InputError, match=changed), logged(lines):
        train(run.spec, folder, workdir)
    assert not lines
    with logged(lines):
        train(run.spec, data_dir, workdir)  # the first ones are taken as before
    assert not [line for line in lines if line.startswith("Preparing")]


@pytest.mark.parametrize(
    ("module", "reader", "cache"),
    [(training, "training_dataset", "off"), (features, "view_dataset", "on")],
)
def test_records_that_vanish_in_training_are_one_line(
    module, reader, cache, data_dir, one_task, records, tmp_path, monkeypatch
):
    spec = override(one_task, {"features.cache": cache})
    shutil.copytree(records, tmp_path / "records")
    original = getattr(module, reader)

    def vanished(prepared, *args, **options):
        for file in prepared.folder.glob("*train*"):
            file.unlink()
        return original(prepared, *args, **options)

    monkeypatch.setattr(module, reader, vanished)
    with pytest.raises(InputError, match="records were changed or removed during training; the"):
        train(
            spec,
            data_dir,
            tmp_path / "run",
            records_dir=tmp_path / "records",
            phase="heads",
        )


def test_evaluation_export_and_prediction_agree(workdir, data_dir, capsys, monkeypatch):
    """probabilities.npz, the run's own prediction and the export: one preprocessing."""
    main(["export", f"--workdir={workdir}"])
    run = open_run(workdir)
    saved = np.load(workdir / "results" / "probabilities.npz")
    frame = pd.read_csv(workdir / "results" / "predictions.csv")
    files = [data_dir / "wikiart" / path for path in frame["path"][:10]]
    out = workdir.parent / "answers.csv"
    capsys.readouterr()
    exported = []

    def load(*args, **options):
        exported.append(load_export(*args, **options))
        return exported[0]

    monkeypatch.setattr(predict, "load_export", load)
    main(["predict", f"--model={workdir / 'export'}", f"--out={out}", str(files[0])])
    answers, printed = pd.read_csv(out), capsys.readouterr().out
    assert "1 predicted" in printed
    for task in run.spec.task_names:
        assert answers[f"{task}/predicted"][0] == frame[f"{task}/predicted"][0]
    (from_export,) = exported
    for predictor in (from_export, load_best(run)):
        for row, (_, answers) in enumerate(predict_files(predictor, files, batch_size=4)):
            for task in run.spec.task_names:
                sure = frame[f"{task}/calibrated_confidence"][row]
                assert answers[task].max() == pytest.approx(sure, abs=1e-4)
        raw = dataclasses.replace(predictor, calibrated=False)
        for row, (_, answers) in enumerate(predict_files(raw, files, batch_size=4)):
            for task in run.spec.task_names:
                np.testing.assert_allclose(
                    answers[task], saved[f"{task}/probabilities"][row], atol=1e-5
                )


def test_metrics_are_those_of_the_predictions(workdir, data_dir):
    """Accuracy by hand from predictions.csv, against the CSVs' own labels."""
    metrics = json.loads((workdir / "results" / "metrics.json").read_text())["metrics"]
    frame = pd.read_csv(workdir / "results" / "predictions.csv", keep_default_na=False)
    for task in ("artist", "style", "genre"):
        test_set = frame[frame[f"{task}/true"] != ""]
        rows = pd.read_csv(
            data_dir / "wikiart_csv" / f"{task}_val.csv", header=None, names=["path", "label"]
        )
        names = [
            line.split(" ", 1)[1]
            for line in (data_dir / "wikiart_csv" / f"{task}_class.txt").read_text().splitlines()
        ]
        label_of = {path: names[label] for path, label in rows.itertuples(index=False)}
        right = [
            label == label_of[path]
            for path, label in zip(test_set["path"], test_set[f"{task}/predicted"], strict=True)
        ]
        assert metrics[f"{task}/labelled"] == len(right)
        assert metrics[f"{task}/top1"] == pytest.approx(np.mean(right))


@pytest.fixture(scope="module")
def single(data_dir, spec_file, records, tiny, undrawn_module, tmp_path_factory):
    """(A run of one task's heads, made by the command; the first weights of trunk and head)."""
    folder, first = tmp_path_factory.mktemp("runs") / "single", {}
    build = training.build_network

    def remembered(*args, **kwargs):
        network = build(*args, **kwargs)
        trunk, heads = trunk_and_heads(network)
        first.setdefault("trunk", [np.array(w) for w in trunk.get_weights()])
        first.setdefault("head", [np.array(w) for w in heads["genre"].get_weights()])
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_network", remembered)
        main(
            [
                "train",
                f"--spec={spec_file}",
                "--tasks=genre",
                f"--data_dir={data_dir}",
                f"--workdir={folder}",
                f"--trunk={tiny}",
                f"--records_dir={records}",
                "--image_size=32",
                "--validation_share=0.15",
                "--epochs_heads=1",
                "--epochs_finetune=0",
                "--nosimilar",
            ]
        )
    return folder, first


def test_the_frozen_trunk_is_bit_identical_after_phase_one(single, data_dir):
    """Weights and BatchNorm statistics, after the phase heads."""
    workdir, first = single
    run = open_run(workdir)
    network = load_network(run.best_model, run.spec, load_table(run.spec, data_dir).classes)
    trunk, heads = trunk_and_heads(network)
    assert len(first["trunk"]) > 10
    for before, after in zip(first["trunk"], trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(first["head"], heads["genre"].get_weights(), strict=True)
    ]
    assert any(changed)


def test_a_single_task_goes_through(single, data_dir):
    workdir, _ = single
    assert not (workdir / "similar").exists()
    table = load_table(open_run(workdir).spec, data_dir)
    assert table.labels.shape[1] == 1
    assert (table.labels[table.splits != TEST] != MISSING).all()
    results = workdir / "results"
    assert json.loads((results / "metrics.json").read_text())["metrics"]["genre/labelled"] > 0
    assert not list(results.glob("*artist*"))


@pytest.mark.slow
def test_a_fourth_task_needs_nothing_but_the_spec(data_dir, spec_file, tiny, tmp_path, capsys):
    """`season`, by the spec alone, all the way through; with the heads gru and linear."""
    raw = small(load_spec(str(spec_file))).to_dict()
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    for split in ("train", "val"):
        rows = (folder / "wikiart_csv" / f"style_{split}.csv").read_text().splitlines()
        relabelled = [f"{row.rsplit(',', 1)[0]},{i % 2}" for i, row in enumerate(rows)]
        (folder / "wikiart_csv" / f"season_{split}.csv").write_text("\n".join(relabelled))
    (folder / "wikiart_csv" / "season_class.txt").write_text("0 summer\n1 winter\n")
    season = dict(raw["task"][1])
    season |= {
        "name": "season",
        "train": "wikiart_csv/season_train.csv",
        "test": "wikiart_csv/season_val.csv",
        "classes": "wikiart_csv/season_class.txt",
        "head": {"kind": "gru", "units": 8},
    }
    raw["task"][2]["head"] = {"kind": "linear"}
    raw["task"].append(season)
    raw["phases"] = {"heads": {"epochs": 1}, "finetune": {"epochs": 0}}
    spec = parse_spec(raw, source="test")
    train(spec, folder, tmp_path / "run")
    main(["evaluate", f"--workdir={tmp_path / 'run'}"])
    main(["export", f"--workdir={tmp_path / 'run'}"])
    image = next((folder / "wikiart").glob("*/*.jpg"))
    capsys.readouterr()
    main(["predict", f"--model={tmp_path / 'run' / 'export'}", str(image)])
    out = capsys.readouterr().out
    assert "season" in out
    assert "summer" in out
    metrics = json.loads((tmp_path / "run" / "results" / "metrics.json").read_text())["metrics"]
    rows = load_table(spec, folder).labels_of("season", "test")
    assert metrics["season/labelled"] == len(rows) > 0


@pytest.mark.slow
def test_the_same_command_on_keras_jax_backend(data_dir, spec_file, tmp_path):
    """Trained with JAX, both phases; TensorFlow then reads the model and predicts the same."""
    pytest.importorskip("jax", reason="pip install '.[jax]'")
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "multitask", "train", "--backend=jax"),
        f"--spec={spec_file}",
        f"--data_dir={data_dir}",
        f"--workdir={folder}",
        "--trunk=efficientnetb0",
        "--image_size=32",
        "--batch_size=16",
        "--epochs_heads=2",
        "--epochs_finetune=2",
        "--validation_share=0.15",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    history = pd.read_csv(folder / "logs" / "history.csv")
    assert list(history["phase"]) == ["heads"] * 2 + ["finetune"] * 2
    assert np.isfinite(history["loss"]).all()
    assert history["loss"].iloc[3] < history["loss"].iloc[2]
    with np.load(folder / "results" / "probabilities.npz") as file:
        by_jax = {task: file[f"{task}/probabilities"] for task in ("artist", "style", "genre")}
    main(["evaluate", f"--workdir={folder}"])
    with np.load(folder / "results" / "probabilities.npz") as by_tensorflow:
        for task, expected in by_jax.items():
            np.testing.assert_allclose(by_tensorflow[f"{task}/probabilities"], expected, atol=1e-4)
    # Nothing is left to train, whatever the backend.
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Nothing is left to train" in again.stdout
