"""Tasks that answer together, from the end of a training to every answer.

The model compares colours, so that the logits of its heads are known. The shade of an image tells
its warmth, which the colours hardly do; `empty` is an auxiliary task that tells it too.
"""

import json
import re

import numpy as np
import pytest
from logged import logged
from PIL import Image
from scipy.special import expit, log_softmax, logsumexp
from sklearn.metrics import accuracy_score

from multitask.data.records import prepare
from multitask.data.table import TRAIN, VALIDATION
from multitask.evaluation.report import evaluate
from multitask.learning import co_occurrence, training
from multitask.model.co_occurrence import log_ratios
from multitask.model.network import connect, load_network, network_parts
from multitask.open_set import fit_rejection
from multitask.run import start_run
from multitask.serving.export import export
from multitask.serving.predictor import load_export
from multitask.spec import OTHER_LABEL, override, parse_spec
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed")

TRAINED, TESTS = 300, 100
TASKS = ("shade", "warmth", "empty")


@pytest.fixture(scope="module")
def colours(known):
    """Name -> colour."""
    painted = known.colours(TRAINED + TESTS, 11)
    return {f"{i:03}.png": colour for i, colour in enumerate(painted)}


@pytest.fixture(scope="module")
def folder(known, colours, tmp_path_factory):
    """Each shade has one warmth in most images; a third of the images have none of them."""
    root = tmp_path_factory.mktemp("together")
    (root / "images").mkdir()
    (root / "lists").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (8, 8), tuple(map(int, colour))).save(root / "images" / name)
    shade = known.answers(np.array([*colours.values()]))["shade"].argmax(axis=1)
    rng = np.random.default_rng(2)
    noisy = rng.random(len(shade)) < 0.1
    warmth = np.where(noisy, rng.integers(0, 3, len(shade)), shade % 3)
    labels = {"shade": shade, "warmth": warmth, "empty": shade % 2}
    for task in TASKS:
        lines = [f"{i} {name}" for i, name in enumerate(known.CLASSES[task])]
        (root / "lists" / f"{task}_class.txt").write_text("\n".join(lines) + "\n")
        names = [*enumerate(colours)]
        for split, part in (("train", names[:TRAINED]), ("val", names[TRAINED:])):
            kept = [(i, n) for i, n in part if task != "warmth" or shade[i] % 4 != 3]
            text = "".join(f"{name},{labels[task][i]}\n" for i, name in kept)
            (root / "lists" / f"{task}_{split}.csv").write_text(text)
    return root


@pytest.fixture(scope="module")
def spec(known):
    raw = known.colour_spec(TASKS, validation=0.4, max_missing=0.0).to_dict()
    raw["co_occurrence"] = "auto"
    raw["task"][1]["unlabelled"] = "other"
    raw["task"][2]["auxiliary"] = True
    return parse_spec(raw, source="together.toml")


@pytest.fixture(scope="module")
def prepared(spec, folder):
    return prepare(spec, folder, progress=False)


@pytest.fixture(scope="module")
def joined(known, spec, folder, prepared, undrawn_module, tmp_path_factory):
    """(run, what was logged): a model of known logits after the last step of a training."""
    run = start_run(tmp_path_factory.mktemp("runs") / "joined", spec, folder)
    known.colour_model(TASKS).save(run.best_model)
    with logged() as lines:
        co_occurrence.connect_answers(run, prepared)
    evaluate(open_trained(run), similar=False)
    return run, lines


def rows_of(table, split, task):
    """Right answers: the one after the classes is "none of them"; -1 is unknown."""
    labels = table.labels[table.rows(split), table.tasks.index(task)]
    return np.where(labels == OTHER_LABEL, len(table.classes[task]), labels)


def heads_of(known, colours, paths):
    painted = np.array([colours[path] for path in paths])
    return {task: known.logits(painted, known.PALETTES[task]) for task in TASKS}


def together(logits, table, weight, rejection):
    """The logits that the messages make of those of the heads, in NumPy."""
    open_logits = logits["warmth"]
    known = rejection.slope * logsumexp(open_logits, axis=1, keepdims=True) + rejection.offset
    own = {task: log_softmax(logits[task], axis=1) for task in TASKS}
    own["warmth"] = np.log(
        np.concatenate([np.exp(own["warmth"]) * expit(known), expit(-known)], axis=1)
    )
    labels = {task: rows_of(table, TRAIN, task) for task in TASKS}
    result = {}
    for task in ("shade", "warmth"):
        new = own[task]
        for sender in TASKS:
            if sender != task:
                counts = own[sender].shape[1], own[task].shape[1]
                ratios = log_ratios(labels[sender], labels[task], counts)
                new = new + np.log(np.exp(own[sender]) @ np.exp(weight * ratios))
        result[task] = new[:, :-1] - new[:, -1:] if task == "warmth" else new
    return result


def assert_same_answers(logits, wanted):
    np.testing.assert_allclose(
        np.exp(log_softmax(logits, axis=1)), np.exp(log_softmax(wanted, axis=1)), atol=0.01
    )


def likelihood(logits, answers):
    if answers.max() == logits.shape[1]:
        logits = np.concatenate([logits, np.zeros((len(logits), 1))], axis=1)
    rows = np.flatnonzero(answers >= 0)
    return -log_softmax(logits, axis=1)[rows, answers[rows]].mean()


@pytest.fixture(scope="module")
def by_hand(known, colours, prepared):
    """(weight -> validation loss, the fitted rejection), in NumPy."""
    table = prepared.table
    paths = table.paths[table.rows(VALIDATION)]
    logits = heads_of(known, colours, paths)
    answers = {task: rows_of(table, VALIDATION, task) for task in TASKS}
    scores, other = logsumexp(logits["warmth"], axis=1), answers["warmth"] == 3
    rejection = fit_rejection(scores[~other], scores[other])
    losses = {}
    for weight in np.arange(21) / 20:
        new = together(logits, table, weight, rejection)
        losses[weight] = sum(likelihood(new[task], answers[task]) for task in new)
    return losses, rejection


def test_the_weight_is_that_of_the_smallest_validation_loss(joined, by_hand):
    losses, _ = by_hand
    weight = min(losses, key=losses.get)
    assert weight > 0.2  # or nothing is tested
    (line,) = (line for line in joined[1] if line.startswith("Co-occurrence"))
    numbers = re.fullmatch(
        r"Co-occurrence of the tasks' labels: weight (.+); validation loss (.+) → (.+)\.", line
    ).groups()
    # Training images are JPEGs, whose colours are not exactly those that were painted.
    wanted = (weight, losses[0.0], losses[weight])
    np.testing.assert_allclose(np.float64(numbers), wanted, atol=0.003)


def test_predictions_follow_the_other_tasks(known, colours, joined, prepared, by_hand):
    losses, rejection = by_hand
    weight = min(losses, key=losses.get)
    trained = open_trained(joined[0])
    paths = trained.test_table.paths[trained.test_table.rows("test")]
    heads = heads_of(known, colours, paths)
    wanted = together(heads, prepared.table, weight, rejection)
    images = np.stack([np.full((32, 32, 3), colours[path], np.float32) for path in paths])
    result = trained.network.predict_on_batch(images)
    assert list(result) == ["shade", "warmth"]
    assert_same_answers(result["shade"], wanted["shade"])
    np.testing.assert_allclose(result["warmth"], wanted["warmth"], atol=0.05)  # JPEGs
    labels = rows_of(trained.test_table, "test", "warmth")
    labelled = labels < 3
    alone, helped = (
        accuracy_score(labels[labelled], logits["warmth"].argmax(axis=1)[labelled])
        for logits in (heads, result)
    )
    assert helped > alone + 0.05
    metrics = json.loads((joined[0].results / "metrics.json").read_text())["metrics"]
    assert metrics["warmth/top1"] == pytest.approx(helped, abs=1e-6)


@pytest.mark.parametrize("tasks", [None, ("warmth",)])
def test_every_format_answers_alike(known, joined, tmp_path, tasks):
    """Of some tasks alone, too: their answers need the heads of the others."""
    run = joined[0]
    out = export(run, tasks=tasks, out=tmp_path / "out", formats=["savedmodel", "onnx", "litert"])
    images = np.random.default_rng(4).integers(0, 256, (5, 1, 1, 3)).astype(np.float32)
    images = np.broadcast_to(images, (5, 32, 32, 3)).copy()
    wanted = open_trained(run).network.predict_on_batch(images)
    temperature = {t: c.temperature for t, c in open_trained(run).calibrations.items()}
    for runtime in ("tensorflow", "onnxruntime", "litert"):
        result = load_export(out, runtime=runtime).probabilities(images)
        assert tuple(result) == (tasks or ("shade", "warmth"))
        for task, values in result.items():
            classes = values[:, : wanted[task].shape[1]]  # without "none of them"
            scaled = np.float64(wanted[task]) / temperature[task]
            np.testing.assert_allclose(
                classes / classes.sum(axis=1, keepdims=True),
                np.exp(log_softmax(scaled, axis=1)),
                atol=1e-4,
            )


def test_connected_answers_are_not_connected_twice(joined, prepared):
    run = joined[0]
    before = run.best_model.read_bytes()
    with logged() as lines:
        co_occurrence.connect_answers(run, prepared)
    assert run.best_model.read_bytes() == before
    assert lines == []


def test_a_training_ends_with_them_and_can_go_on(tiny_data, tiny_spec, tiny_trunk, tmp_path):
    """Each style has one genre; the phase after it starts from the heads alone."""
    names = [f"Dots/{i:02}.jpg" for i in range(40)]
    rows = {
        "style_train": [(name, i % 3) for i, name in enumerate(names)],
        "genre_train": [(name, i % 3 % 2) for i, name in enumerate(names)],
    }
    spec = tiny_spec(tasks=("style", "genre"), validation=0.4, freeze_depth="all")
    spec = override(spec, {"trunk.name": tiny_trunk, "co_occurrence": "auto"})
    workdir, data = tmp_path / "run", tiny_data(rows=rows)
    with logged() as lines:
        run = training.train(spec, data, workdir, phase="heads").run
    assert sum("Co-occurrence" in line for line in lines) == 1
    classes = open_trained(run).classes
    parts = network_parts(load_network(run.best_model, spec, classes))
    # As if the validation loss had fallen, which chance decides for so few images.
    table = prepare(spec, data, progress=False).table
    messages = co_occurrence.build_messages(
        network_parts(connect(parts.trunk, parts.heads)), table, spec, {}
    )
    connect(parts.trunk, parts.heads, messages=messages).save(run.best_model)
    training.train(spec, data, workdir, phase="finetune")
    after = load_network(run.best_model, spec, classes)
    assert after.output.keys() == {"style", "genre"}
    assert np.isfinite(training.train(spec, data, workdir).history["loss"]).all()


def test_without_a_validation_split_it_is_off(known, spec, folder, tmp_path):
    spec = override(spec, {"validation": 0.0})
    prepared = prepare(spec, folder, tmp_path / "records", progress=False)
    run = start_run(tmp_path / "run", spec, folder)
    known.colour_model(TASKS).save(run.best_model)
    before = run.best_model.read_bytes()
    with logged() as lines:
        co_occurrence.connect_answers(run, prepared)
    assert lines == ["Co-occurrence of the tasks' labels: off, without a validation split."]
    assert run.best_model.read_bytes() == before


@pytest.mark.parametrize("quantize", [pytest.param("float16", marks=pytest.mark.slow), "int8"])
def test_less_precise_weights_answer_alike(joined, tmp_path, quantize):
    out = export(joined[0], out=tmp_path / "out", formats=["onnx", "litert"], quantize=quantize)
    entries = json.loads((out / "report.json").read_text())["artifacts"]
    for entry in entries[1:]:
        assert entry["precision"] == quantize
        assert min(t["same_top1"] for t in entry["tasks"].values()) > 0.9
