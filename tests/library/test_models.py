"""Predictions from Python: the answers that are known, for every kind of input and runtime."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import multitask as mt
from multitask.data import conversion_worker
from multitask.runtimes.libraries import RUNTIMES
from multitask.spec import field_of

SIZE = (40, 30)
COLOURS = np.random.default_rng(7).integers(0, 256, (23, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def images():
    """Single-colour images, uint8 [height, width, 3] each."""
    return [np.full((*SIZE, 3), colour, np.uint8) for colour in COLOURS]


@pytest.fixture
def expected(known):
    """Task -> float64 [n, classes], by SciPy."""
    answers = known.answers(COLOURS)
    return {task: answers[task] for task in ("shade", "warmth")}


def open_model(folder, runtime):
    return mt.load_model(folder / "runs/first") if runtime is None else mt.load_model(
        folder / "runs/first/export", runtime=runtime, calibrated=False
    )  # fmt: skip


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert", "tensorflow"])
def test_the_known_answers(museum, images, expected, runtime):
    if not RUNTIMES[runtime].installed:
        pytest.skip(f"no {runtime}")
    model = open_model(museum, runtime)
    result = model.probabilities(images)
    for task, values in expected.items():
        np.testing.assert_allclose(result[task], values, atol=1e-4)
    table = model.predict(images)
    for task, values in expected.items():
        names = np.asarray(model.classes[task])
        order = np.argsort(-values, axis=1, kind="stable")
        assert table[field_of(task, "predicted")].tolist() == names[order[:, 0]].tolist()
        for place in (1, 2, 3):
            assert table[field_of(task, f"{place}")].tolist() == names[order[:, place - 1]].tolist()
            np.testing.assert_allclose(
                table[field_of(task, f"{place}_probability")],
                np.take_along_axis(values, order, axis=1)[:, place - 1],
                atol=1e-4,
            )


def test_a_run_and_its_export_agree(museum, images):
    of_run = mt.load_model("runs/first").probabilities(images)
    of_export = mt.load_model("runs/first/export").probabilities(images)
    for task, values in of_run.items():
        np.testing.assert_allclose(of_export[task], values, atol=1e-5)
    by_method = mt.open_run("runs/first").load_model().probabilities(images)
    for task, values in of_run.items():
        np.testing.assert_array_equal(by_method[task], values)


def test_every_kind_of_image(museum, images):
    Image.fromarray(images[0]).save("b.png")
    given = ["b.png", museum / "b.png", (museum / "b.png").read_bytes()]
    given += [Image.open("b.png"), images[0]]
    model = mt.load_model("runs/first/export")
    table = model.predict(given)
    names = ["b.png", str(museum / "b.png"), "images[2]", "images[3]", "images[4]"]
    assert table["path"].tolist() == names
    assert len(table.drop(columns="path").drop_duplicates()) == 1
    for one in given:
        single = model.predict(one)
        pd.testing.assert_frame_equal(
            single.drop(columns="path"), table.iloc[:1].drop(columns="path"), check_frame_type=False
        )
    batch = model.predict(np.stack(images[:3]))
    assert len(batch) == 3
    assert model.embed(given).shape == (5, 3)


def test_the_same_answers_as_the_command(museum, capsys):
    from multitask.__main__ import main

    files = sorted(str(path) for path in (museum / "museum/images").rglob("*.png"))[:20]
    command = ["predict", "--model=runs/first/export", "--runtime=onnxruntime", "--out=a.csv"]
    main([*command, *files])
    written = pd.read_csv("a.csv", dtype={"error": str}, keep_default_na=False)
    table = mt.load_model("runs/first/export", runtime="onnxruntime").predict(files)
    pd.testing.assert_frame_equal(
        pd.DataFrame(table), written, check_exact=False, atol=1e-5, check_dtype=False
    )


def test_an_unreadable_image_is_a_row_or_an_error(museum, images):
    model = mt.load_model("runs/first/export")
    table = model.predict([images[0], "missing.png", b"GIF89a", images[1]])
    assert table["error"].tolist() == [
        "",
        "No such file or directory",
        conversion_worker.UNKNOWN.format("GIF"),
        "",
    ]
    assert table["shade/predicted"].isna().tolist() == [False, True, True, False]
    whole = model.predict(images[:2])
    assert table["shade/1_probability"].dropna().tolist() == whole["shade/1_probability"].tolist()
    for method in (model.embed, model.probabilities, model.similar):
        with pytest.raises(mt.InputError, match=r"^images: missing.png: No such file") as raised:
            method([images[0], "missing.png"])
        assert raised.value.field == "images"


def test_thresholds(museum, images, expected):
    model = mt.load_model("runs/first/export", calibrated=False)
    median = float(np.median(expected["shade"].max(axis=1)))
    least = {"shade": median + 1e-3}
    table = model.predict(images, min_confidence=least)
    unsure = expected["shade"].max(axis=1) < median + 1e-3
    assert unsure.any()
    assert not unsure.all()
    assert (table["shade/predicted"] == "uncertain").tolist() == unsure.tolist()
    assert not (table["warmth/predicted"] == "uncertain").any()
    everything = model.predict(images, min_confidence=1.0)
    assert (everything[["shade/predicted", "warmth/predicted"]] == "uncertain").all(axis=None)


@pytest.fixture(scope="module")
def fitted_run(known, data, without_plots, tmp_path_factory):
    """The folder of a run whose evaluation fits the scores of the sets and the distance."""
    from multitask import feature_distance

    folder = tmp_path_factory.mktemp("fitted") / "run"
    known.make_run(folder, data, tasks=("shade", "warmth"), validation=0.4)
    with without_plots(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_distance, "MIN_IMAGES", 5)
        mt.open_run(folder).evaluate()
    return folder


@pytest.fixture
def fitted(fitted_run, tmp_path, monkeypatch):
    """That run as `run` in the current folder: (its model, the evaluation's file by name)."""
    shutil.copytree(fitted_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def content(name):
        return json.loads(Path(f"run/results/{name}.json").read_text())

    return mt.load_model("run"), content


def test_sets_of_classes(fitted, expected, images):
    """By the formula, from the scores that the evaluation wrote; and as the command.

    Images that are far from the training images would have no set: `max_unlike` is off.
    """
    model, content_of = fitted
    near = {"coverage": 0.7, "max_unlike": 0}
    content = content_of("calibration")
    table = model.predict(images, **near)
    for task in model.classes:
        scores, counts = (content["conformal"]["tasks"][task][k] for k in ("scores", "counts"))
        rank = int(np.ceil(round(0.7 * (counts[-1] + 1), 9)))
        threshold = next(s for s, count in zip(scores, counts, strict=True) if count >= rank)
        assert content["tasks"][task]["temperature"] == 1  # of so few images
        for row, names in zip(expected[task], table[f"{task}/set"], strict=True):
            order = np.argsort(-row)
            before = np.cumsum(row[order]) - row[order]
            before += 0.01 * np.maximum(np.arange(len(row)) - 1, 0)
            kept = [model.classes[task][i] for i in order[before <= threshold + 1e-6]]
            assert names == kept
        assert table[f"{task}/set_size"].tolist() == [len(s) for s in table[f"{task}/set"]]
    assert len(set(table["shade/set_size"])) > 1
    joint = model.predict(images, **near, joint=True)
    assert (joint["shade/set_size"] >= table["shade/set_size"]).all()

    from multitask.__main__ import main

    Image.fromarray(images[0]).save("a.png")
    flags = ["--coverage=0.7", "--max_unlike=0", "--out=a.parquet"]
    main(["predict", "--workdir=run", *flags, "a.png"])
    written = pd.read_parquet("a.parquet")
    of_file = model.predict("a.png", **near)
    assert list(written.columns) == list(of_file.columns)
    assert list(written["shade/set"][0]) == of_file["shade/set"][0]
    for wrong, field in (({"coverage": 0.999}, "coverage"), ({"joint": True}, "joint")):
        with pytest.raises(mt.InputError) as raised:
            model.predict(images, **wrong)
        assert raised.value.field == field


def test_similar_images_are_the_nearest_colours(museum, images, data):
    """By hand: the embedding of a single-colour image is its colour; the distance is the angle."""
    model = mt.load_model("runs/first/export")
    table = model.similar(images[:4], top_k=3)
    train = sorted(data.train_labels["shade"])
    colours = np.array([data.painted[path] for path in train], np.float64)
    units = colours / np.linalg.norm(colours, axis=1, keepdims=True)
    assert table["rank"].tolist() == [1, 2, 3] * 4
    for place, colour in enumerate(COLOURS[:4].astype(np.float64)):
        distances = 1 - units @ (colour / np.linalg.norm(colour))
        rows = table[table["image"] == f"images[{place}]"]
        order = np.argsort(distances, kind="stable")[:3]
        assert rows["path"].tolist() == [train[i] for i in order]
        np.testing.assert_allclose(rows["distance"], distances[order], atol=1e-4)
        assert rows["shade/label"].tolist() == [
            model.classes["shade"][data.train_labels["shade"][train[i]]] for i in order
        ]
    of_run = mt.load_model("runs/first").similar(images[:4], top_k=3)
    assert of_run["path"].tolist() == table["path"].tolist()


def test_no_images(museum):
    model = mt.load_model("runs/first/export")
    assert len(model.predict([])) == 0
    assert list(model.predict([]).columns) == list(model.predict("a.png").columns)
    assert model.probabilities([])["shade"].shape == (0, 12)
    assert len(model.similar([])) == 0


@pytest.mark.parametrize(
    ("call", "field", "text"),
    [
        (lambda: mt.load_model("no/such"), "model", "no such folder"),
        (lambda: mt.load_model("museum"), "model", "not an export"),
        (lambda: mt.load_model("runs/first/export", runtime="onyx"), "runtime", "onnxruntime"),
        (
            lambda: mt.load_model("runs/first").predict("a.png", min_confidence=2),
            "min_confidence",
            "2",
        ),
        (
            lambda: mt.load_model("runs/first").predict("a.png", min_confidence={"shad": 0.5}),
            "min_confidence",
            "shad",
        ),
        (lambda: mt.load_model("runs/first").similar("a.png", top_k=0), "top_k", "0"),
        (lambda: mt.load_model("runs/first").predict(7), "images", "int"),
    ],
)
def test_wrong_arguments(museum, call, field, text):
    with pytest.raises(mt.InputError) as raised:
        call()
    assert raised.value.field == field
    assert text in str(raised.value)
    assert "--" not in str(raised.value).replace("--format", "")
    assert "\n" not in str(raised.value)


def test_no_tensorflow_is_imported(museum):
    """By none of the other libraries, one after the other in one process."""
    names = [name for name in ("onnxruntime", "openvino", "litert") if RUNTIMES[name].installed]
    code = (
        "import sys, multitask as mt\n"
        "for name in sys.argv[1:]:\n"
        "    model = mt.load_model('runs/first/export', runtime=name)\n"
        "    table = model.predict(['a.png'])\n"
        "    table._repr_html_(); model.embed('a.png'); model.thresholds\n"
        "    print(name, table['shade/predicted'][0], *{'tensorflow', 'keras'} & {*sys.modules})\n"
    )
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} ivory" for name in names]
    assert done.stderr == ""


def test_an_image_that_is_not_like_the_training_images(fitted):
    """From the evaluation to the table, which says what the command says."""
    from multitask import feature_distance
    from multitask.__main__ import main

    model, content_of = fitted
    distance = feature_distance.FeatureDistance.from_dict(content_of("distance"))
    black = np.zeros((9, 9, 3), np.uint8)  # whose features have no direction
    white = np.full((9, 9, 3), 255, np.uint8)
    table = model.predict([black, white, b"no image"])
    expected = distance.distances(np.array([[0.0, 0, 0], [1, 1, 1]]))
    assert table["distance"][:2].tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    unlike = expected > distance.limit()
    assert unlike[0]
    assert table["unlike"][:2].tolist() == unlike.tolist()
    assert table["shade/predicted"][0] == "not like the training data"
    assert table["shade/1_probability"][0] > 0
    assert pd.isna(table["unlike"][2])
    assert table._repr_html_().count("no answer: ") == 2 * unlike.sum()
    never = model.predict(black, max_unlike=0)
    assert never["unlike"].tolist() == [False]
    assert never["shade/predicted"][0] == never["shade/1"][0]
    Image.fromarray(black).save("a.png")
    main(["predict", "--workdir=run", "--out=a.parquet", "a.png"])
    written, of_file = pd.read_parquet("a.parquet"), model.predict("a.png")
    assert list(written.columns) == list(of_file.columns)
    assert written["unlike"][0] == of_file["unlike"][0]
    with pytest.raises(mt.InputError) as raised:
        model.predict(black, max_unlike=0.001)
    assert raised.value.field == "max_unlike"
