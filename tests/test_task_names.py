"""Tasks named as columns of ours, or as other tasks' columns, are kept apart."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from multitask.__main__ import main
from multitask.data.table import SPLITS, Table
from multitask.evaluation.predictions import Predictions
from multitask.learning.callbacks import rename_logs
from multitask.learning.engine import MultitaskModel
from multitask.pages.report_page import TASKS
from multitask.runtimes.libraries import EMBEDDING, IMAGE, KINDS, output_of
from multitask.serving.answers import columns

NASTY = (
    *("image", "test", "loss", "path", "embedding", "trunk", "shared", "macro_f1", "val_loss"),
    *("loss_loss", "error", "epoch", "phase", "x", "x_1", "x_true", "val_x", "images", "file"),
    *("precision", "distance", "cast", "items", "val", "train", "validation"),
)
# The order of a sum in TensorFlow's graph depends on the names of the operations, so the last digit
# of a loss may differ between two sets of names (never between two runs with the same names).
NEAR = 1e-3
HARMLESS = {name: f"t{place:02}" for place, name in enumerate(sorted(NASTY))}  # in their order
CLASSES = {task: tuple(f"c{i}" for i in range(2 + k % 3)) for k, task in enumerate(NASTY)}


# === Each table ===


def assert_distinct(names, count):
    names = list(names)
    assert len(names) == len(set(names)) == count


def test_columns_of_the_results_are_distinct():
    paths = np.array(["a.png", "b.png"], object)
    labels = np.zeros((2, len(NASTY)), np.int32)
    probabilities = {task: np.full((2, len(c)), 1 / len(c)) for task, c in CLASSES.items()}
    assert_distinct(Predictions(CLASSES, paths, labels, probabilities).frame(), 1 + 3 * len(NASTY))
    assert_distinct(columns(CLASSES), 2 + sum(1 + 2 * min(3, len(c)) for c in CLASSES.values()))
    counts = Table(CLASSES, paths, labels, np.array(SPLITS[:2], object)).counts()
    assert_distinct(counts, 1 + len(NASTY))
    assert (counts.loc["train"] == 1).all()


def test_columns_of_the_history_are_distinct():
    """As Keras names them, and as the callbacks do."""
    import keras

    from multitask.annexes.contrastive import Contrastive
    from multitask.learning.balancer import LossBalancer

    image = keras.Input((3,))
    model = MultitaskModel(
        image,
        {task: keras.layers.Dense(len(names))(image) for task, names in CLASSES.items()},
        losses=dict.fromkeys(NASTY),
        balancer=LossBalancer(dict.fromkeys(NASTY, 1.0)),
        classes={task: len(names) for task, names in CLASSES.items()},
        extra_loss=Contrastive(dict.fromkeys(NASTY, 1.0), temperature=0.1),
    )
    names = [*model.get_metrics_result(), "loss"]
    of_keras = [*names, *(f"val_{name}" for name in names)]
    assert_distinct(of_keras, 2 * (1 + 5 * len(NASTY)))
    logs = {name: value for value, name in enumerate(of_keras)}
    rename_logs(logs)
    assert_distinct(logs, len(of_keras))
    assert (logs["loss"], logs["val_loss"]) == (of_keras.index("loss"), of_keras.index("val_loss"))
    assert logs["val_loss/top1"] == of_keras.index("top1/val_loss")
    assert logs["loss/val_top1"] == of_keras.index("val_top1/loss")


def test_outputs_of_the_artifacts_are_distinct():
    tasks = list(dict.fromkeys([*NASTY, *(f"x_{kind}" for kind in KINDS), *KINDS]))
    names = [output_of(task, kind) for task in tasks for kind in KINDS]
    assert_distinct([*names, EMBEDDING, IMAGE, "image_bytes"], len(tasks) * len(KINDS) + 3)


# === All the way through ===


def paint(folder, names):
    """Images, lists and a spec; the tasks differ in classes, and who has a label of which."""
    rng = np.random.default_rng(3)
    paths = [f"a/{i:02}.png" for i in range(40)]
    for path in paths:
        (folder / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        cells = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        cells.resize((40, 36), Image.Resampling.BICUBIC).save(folder / "photos" / path)
    (folder / "lists").mkdir()
    text = [
        'name = "own"\nimages = "photos"\nimage_size = 32\nbatch_size = 8\nvalidation = 0.2\n',
        'balancing = { kind = "uncertainty" }\n',
        '[trunk]\nname = "tiny"\nweights = "none"\n',
        'schedule = { kind = "constant", rate = 1e-3 }\n',
        "[contrastive]\nweight = 0.1\n[optimizer]\ntrunk_layer_decay = 0.9\n",
        "[phases.heads]\nepochs = 2\n[phases.finetune]\nepochs = 1\nrate_factor = 1.0\n",
    ]
    for k, (task, classes) in enumerate(CLASSES.items()):
        rows = [(p, rng.integers(len(classes))) for i, p in enumerate(paths) if (i + k) % 4]
        train, test = ([row for row in rows if (row[0] < "a/30") == side] for side in (True, False))
        for split, own in (("train", train), ("val", test)):
            lines = [f"{path},{label}\n" for path, label in own]
            (folder / "lists" / f"{k}_{split}.csv").write_text("".join(lines))
        lines = [f"{index} {name}\n" for index, name in enumerate(classes)]
        (folder / "lists" / f"{k}_class.txt").write_text("".join(lines))
        text.append(
            f'[[task]]\nname = "{names[task]}"\ntrain = "lists/{k}_train.csv"\n'
            f'test = "lists/{k}_val.csv"\nclasses = "lists/{k}_class.txt"\n'
            'head = { kind = "linear", dropout = 0.1 }\nloss = { kind = "focal" }\n'
            f"contrastive_weight = {int(k < 2)}\n"
            'schedule = { kind = "constant", rate = 1e-3 }\n'
        )
    (folder / "spec.toml").write_text("".join(text))


def harmless(name):
    """A column's or key's name as it is under the harmless names."""
    task, slash, field = name.partition("/")
    return HARMLESS[task] + slash + field if slash and task in HARMLESS else name


def frames(run, *where):
    nasty, plain = (pd.read_csv(run[kind].joinpath(*where)) for kind in ("nasty", "harmless"))
    assert_distinct(nasty, len(plain.columns))
    return nasty.rename(columns=harmless)[list(plain)], plain


def assert_frames_near(nasty, plain):
    pd.testing.assert_frame_equal(nasty, plain, check_exact=False, rtol=NEAR, atol=NEAR)


def assert_near(nasty, plain):
    """Equal, and numbers nearly, in values of any depth."""
    assert type(nasty) is type(plain)
    if isinstance(nasty, dict):
        assert nasty.keys() == plain.keys()
        for key, value in nasty.items():
            assert_near(value, plain[key])
    elif isinstance(nasty, list):
        assert len(nasty) == len(plain)
        for own, other in zip(nasty, plain, strict=True):
            assert_near(own, other)
    elif isinstance(nasty, float):
        assert nasty == pytest.approx(plain, rel=NEAR, abs=NEAR)
    else:
        assert nasty == plain


@pytest.fixture
def run(tmp_path, tiny_trunk):
    """Under both sets of names: trained, evaluated and exported."""
    for kind, names in (("nasty", dict(zip(NASTY, NASTY, strict=True))), ("harmless", HARMLESS)):
        folder = tmp_path / kind
        folder.mkdir()
        paint(folder, names)
        data = [f"--spec={folder}/spec.toml", f"--data_dir={folder}"]
        main(["train", *data, f"--workdir={folder}/run"])
    return {kind: tmp_path / kind for kind in ("nasty", "harmless")}


@pytest.mark.slow
def test_every_number_is_that_of_harmless_names(run, capsys):
    check_training(run)
    metrics = check_evaluation(run)
    check_predictions(run)
    check_comparison(run, metrics)
    capsys.readouterr()
    check_similar_images(run, capsys)
    check_audit(run)


def check_training(run):
    nasty, plain = frames(run, "run", "logs", "history.csv")
    assert_frames_near(nasty, plain)
    assert plain["t00/val_labelled"].gt(0).all()
    models = {"best_model.keras", *(f"best_model_{task}.keras" for task in NASTY)}
    assert {p.name for p in (run["nasty"] / "run" / "models").iterdir()} == models


def check_evaluation(run):
    """Returns the metrics under the nasty names."""
    nasty, plain = frames(run, "run", "results", "predictions.csv")
    assert_frames_near(nasty, plain)
    of = [np.load(folder / "run" / "results" / "probabilities.npz") for folder in run.values()]
    assert {harmless(name) for name in of[0].files} == set(of[1].files)
    for name in of[0].files:
        np.testing.assert_allclose(of[0][name], of[1][harmless(name)], rtol=NEAR, atol=NEAR)
    read = [
        json.loads((folder / "run" / "results" / "metrics.json").read_text())
        for folder in run.values()
    ]
    for section in ("metrics", "baseline", "intervals"):
        renamed = {harmless(name): value for name, value in read[0][section].items()}
        assert_near(renamed, read[1][section])
    for section in ("calibration", "classes", "confusion", "leaks", "similar"):
        assert_near({HARMLESS[task]: v for task, v in read[0][section].items()}, read[1][section])
    for split, counts in read[0]["images"].items():
        assert {harmless(name): n for name, n in counts.items()} == read[1]["images"][split]
    page = (run["nasty"] / "run" / "results" / "report.html").read_text()
    assert all(f'<option value="{task}">' in page for task in NASTY[:TASKS])
    return read[0]["metrics"]


def check_predictions(run):
    """Export, and prediction by every library."""
    images = str(run["nasty"] / "photos")
    formats = ["savedmodel", "keras"]
    from multitask.runtimes.libraries import RUNTIMES

    runtimes = [name for name, runtime in RUNTIMES.items() if runtime.installed]
    formats += sorted({RUNTIMES[name].format for name in runtimes} - set(formats))
    for folder in run.values():
        main(["export", f"--workdir={folder}/run", f"--format={','.join(formats)}"])
        for runtime in runtimes:
            for suffix in ("csv", "jsonl"):
                out = folder / f"{runtime}.{suffix}"
                flags = [f"--model={folder}/run/export", f"--runtime={runtime}", f"--out={out}"]
                main(["predict", *flags, images])
    for runtime in runtimes:
        nasty, plain = frames(run, f"{runtime}.csv")
        assert_frames_near(nasty, plain)
        of = [(folder / f"{runtime}.jsonl").read_text().splitlines() for folder in run.values()]
        for own, other in zip(*(map(json.loads, lines) for lines in of), strict=True):
            assert own["path"] == other["path"]
            for task, message in own["tasks"].items():
                assert message["answer"] == other["tasks"][HARMLESS[task]]["answer"]


def check_comparison(run, metrics):
    workdir = run["nasty"] / "run"
    shutil.copytree(workdir, run["nasty"] / "again")
    out = run["nasty"] / "compared"
    main(["compare", str(workdir), str(run["nasty"] / "again"), f"--out={out}"])
    with (out / "comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "top1"]
    top1 = {row["task"]: float(row["value"]) for row in rows}
    assert top1 == {task: metrics[f"{task}/top1"] for task in NASTY}
    assert not [row for row in rows if row["difference"] not in ("", "0.0")]


def check_similar_images(run, capsys):
    requested = str(run["nasty"] / "photos" / "a" / "01.png")
    for task in ("shared", "path"):
        message = []
        for folder, name in zip(run.values(), (task, HARMLESS[task]), strict=True):
            main(["similar", f"--workdir={folder}/run", f"--task={name}", requested])
            message.append([line.split()[:3] for line in capsys.readouterr().out.splitlines()])
        assert message[0][-6:-1] == message[1][-6:-1]  # without the path of the plot


def check_audit(run):
    for folder in run.values():
        with pytest.raises(SystemExit, match="3"):  # classes without a label
            main(
                ["audit", f"--spec={folder}/spec.toml", f"--data_dir={folder}", f"--out={folder}/a"]
            )
    result = [json.loads(next((f / "a").glob("*.json")).read_text()) for f in run.values()]
    for split, counts in result[0]["splits"].items():
        assert {harmless(name): n for name, n in counts.items()} == result[1]["splits"][split]


@pytest.mark.slow
def test_a_search_scored_by_a_task_called_as_the_mean(tmp_path, tiny_trunk):
    pytest.importorskip("optuna", reason="pip install 'multitask[tune]'")
    scores = []
    for kind, names in (("nasty", dict(zip(NASTY, NASTY, strict=True))), ("harmless", HARMLESS)):
        folder = tmp_path / kind
        folder.mkdir()
        paint(folder, names)
        for metric in ("macro_f1", f"{names['macro_f1']}/macro_f1"):
            workdir = folder / metric.replace("/", "-")
            flags = [f"--data_dir={folder}", f"--workdir={workdir}", f"--metric={metric}"]
            tasks = f"--tasks={names['macro_f1']},{names['test']},{names['val_loss']}"
            main(["tune", f"--spec={folder}/spec.toml", *flags, tasks, "--trials=1"])
            trials = pd.read_csv(workdir / "tune" / "trials.csv")
            # Searched of each task: dropout, learning rate, gamma and the class weights' exponent.
            assert_distinct(trials, 6 + 3 * 4)
            scores.append(trials["score"].tolist())
    assert scores[:2] == scores[2:]
    assert scores[0] != scores[1]
