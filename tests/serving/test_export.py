"""The export: what it answers by itself, and that a bad one leaves nothing behind."""

import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from logged import logged
from PIL import Image

from multitask.calibration import Calibration
from multitask.data.merging import load_table
from multitask.errors import RunError
from multitask.run import start_run
from multitask.serving import agreement, signatures
from multitask.serving.export import export
from multitask.serving.model_card import model_card
from multitask.spec import InputError
from multitask.trained import TrainedModel, open_trained

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture(scope="module")
def folder(run):
    return run.workdir / "export"


@pytest.fixture(scope="module")
def serve(folder):
    loaded = tf.saved_model.load(str(folder / "colours" / "1"))
    signature = loaded.signatures["serving_default"]
    return lambda images: signature(tf.constant(images, tf.string)), loaded


def encode(colour, kind, size):
    file = io.BytesIO()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image = Image.new("RGB", size, tuple(map(int, colour)))
    image.save(file, kind, **options.get(kind, {}))
    return file.getvalue()


def test_kinds_and_sizes_in_one_batch(serve, known):
    """Against SciPy, from the colours. A JPEG's grey survives its colour space exactly."""
    grey = np.array([[40, 40, 40], [200, 200, 200]])
    painted = np.concatenate([known.colours(4, 9), grey])
    kinds = ["PNG", "WEBP", "PNG", "WEBP", "JPEG", "JPEG"]
    sizes = [(1, 1), (300, 20), (32, 32), (7, 90), (64, 48), (500, 333)]
    images = [encode(*what) for what in zip(painted, kinds, sizes, strict=True)]
    answers = serve[0](images)
    for task, expected in known.answers(painted).items():
        np.testing.assert_allclose(answers[f"{task}_probabilities"], expected, atol=1e-5)
        names = known.CLASSES[task]
        assert [n.decode() for n in answers[f"{task}_classes"].numpy()] == list(names)
        labels = [n.decode() for n in answers[f"{task}_label"].numpy()]
        assert labels == [names[i] for i in expected.argmax(axis=1)]
    assert len(answers) == 4 * len(known.CLASSES)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_none_and_of_one(serve, known, count):
    painted = known.colours(count, 5)
    answers = serve[0]([encode(colour, "PNG", (9, 9)) for colour in painted])
    for task, names in known.CLASSES.items():
        probabilities = answers[f"{task}_probabilities"]
        assert probabilities.shape == (count, len(names))
        np.testing.assert_allclose(probabilities, known.answers(painted)[task], atol=1e-5)
        assert answers[f"{task}_label"].shape == (count,)
        assert answers[f"{task}_classes"].shape == (len(names),)


def test_it_loads_where_only_tensorflow_is(folder, data, known, tmp_path):
    """In a process that cannot import this package, from a folder elsewhere."""
    path = next(path for path in data.painted if path not in data.missing)
    code = (
        "import sys; sys.modules['multitask'] = sys.modules['keras'] = None\n"
        "import json, tensorflow as tf\n"
        "serve = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
        "answer = serve(tf.constant([open(sys.argv[2], 'rb').read()]))\n"
        "print(json.dumps({k: v.numpy().tolist() for k, v in answer.items()"
        " if 'prob' in k}))\n"
        "assert not [name for name in sys.modules if name.startswith('multitask.')]\n"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(folder / "colours" / "1"),
            str(data.folder / "images" / path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout.splitlines()[-1])
    for task, expected in known.answers(data.painted[path][None]).items():
        np.testing.assert_allclose(answers[f"{task}_probabilities"], expected, atol=1e-5)


def test_classes_json_describes_it(folder, known):
    content = json.loads((folder / "classes.json").read_text())
    assert content["classes"] == {task: list(names) for task, names in known.CLASSES.items()}
    assert (content["format"], content["spec"], content["image_size"]) == (4, "colours", 32)
    assert (content["resize"], content["reduced_px"]) == ("squash", 37)
    assert content["artifacts"] == {"savedmodel": "colours/1"}
    assert content["precisions"] == {"savedmodel": "float32"}
    assert {result["temperature"] for result in content["calibration"].values()} == {1.0}


def test_the_console_says_what_was_checked(exported):
    first, head, model, savedmodel = exported[1]
    assert first.startswith("Checked 32 images against best_model.keras (task columns: top-1/macro")
    assert head.split()[:4] == ["run", "by", "precision", "size"]
    assert model.split()[:3] == ["the", "model", "float32"]
    assert savedmodel.split()[:4] == ["SavedModel", "TensorFlow", tf.__version__, "float32"]
    assert float(savedmodel.split()[6]) <= 1e-5


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_that_disagrees_leaves_things_as_they_were(known, data, tmp_path, monkeypatch):
    run = known.make_run(tmp_path / "run", data, tasks=("warmth",))
    older = run.workdir / "export" / "variables"
    older.mkdir(parents=True)
    (older / "older").write_text("an older export")
    before = files(run.workdir)
    monkeypatch.setitem(agreement.BOUNDS, "float32", agreement.Bound(-1.0, 0.0))
    logged_lines = []
    refused = "disagrees with .*best_model.keras by .* discarded"
    with pytest.raises(RunError, match=refused), logged(logged_lines):
        export(run, formats=["keras"])
    assert files(run.workdir) == before
    assert logged_lines == []
    assert not list(run.workdir.glob(".*"))


def test_a_real_disagreement_is_seen(known, data, tmp_path, monkeypatch):
    """An export with another preprocessing than the model's: the images' first pixel is black."""
    run = known.make_run(tmp_path / "run", data, tasks=("warmth",))
    resize = signatures.resize_image

    def other(image, *, size_px, **how):
        mask = np.ones((size_px, size_px, 1), np.float32)
        mask[0, 0] = 0
        return resize(image, size_px=size_px, **how) * mask

    monkeypatch.setattr(signatures, "resize_image", other)
    with pytest.raises(RunError, match="disagrees"):
        export(run)
    assert not (run.workdir / "export").exists()


def test_a_model_that_answers_nan_is_no_agreement(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data, tasks=("warmth",))
    model = known.colour_model(("warmth",))
    model.get_layer("warmth").set_weights([np.full((3, 3), np.nan), np.zeros(3)])
    model.save(run.best_model)
    with pytest.raises(RunError, match=r"ONNX export, run by .* disagrees"):
        export(run, formats=["onnx"])  # compared as every format is, and made in less time
    assert not (run.workdir / "export").exists()


def test_no_images_to_check_with(known, data, tmp_path):
    run = start_run(tmp_path / "run", known.colour_spec(images="elsewhere"), data.folder)
    known.colour_model().save(run.best_model)
    with pytest.raises(InputError, match=r"no image to check .* `data_dir`") as caught:
        export(run)
    assert "\n" not in str(caught.value)
    assert not (run.workdir / "export").exists()


def test_no_model_to_export(known, data, tmp_path):
    run = start_run(tmp_path / "run", known.colour_spec(), data.folder)
    with pytest.raises(InputError, match=r"best_model.keras: no such model"):
        export(run)


# === The model card ===


def rows_of(card, first_cell):
    """The cells of the Markdown rows that start with a cell."""
    lines = [line for line in card.splitlines() if line.startswith(f"| {first_cell} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_card_before_an_evaluation(folder, known, data):
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Not evaluated" in card
    assert "CC0-1.0" in card
    assert "painted by hand" in card
    labelled = [len(data.train_labels[task]) for task in known.CLASSES]
    assert rows_of(card, "train") == [["train", "24", *map(str, labelled)]]
    test_sets = [len(data.labels[task]) for task in known.CLASSES]
    ((_, images, *counts),) = rows_of(card, "test")
    assert counts == [str(count) for count in test_sets]
    listed = {path for labels in data.labels.values() for path in labels}
    first = sorted(data.painted, key=list(data.painted).index)[0]  # the contradictory one
    assert int(images) == len(listed | {first})
    for task in known.CLASSES:
        assert f"- {task}: head linear; loss focal (gamma 1.0, alpha 1.0)" in card


def test_the_card_after_an_evaluation(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data, tasks=("warmth",))
    (run.workdir / "export").mkdir()
    (run.workdir / "export" / "stale.txt").write_text("of an older version")
    metrics = {"labelled": 12345, "top1": 0.25, "top5": 1.0, "macro_f1": 0.123456}
    baseline = {"class": 2, "top1": 0.5, "macro_f1": None}
    content = {
        "model": "models/best_model.keras",
        "metrics": {f"warmth/{name}": value for name, value in metrics.items()},
        "baseline": {f"warmth/{name}": value for name, value in baseline.items()},
    }
    run.results.mkdir()
    (run.results / "metrics.json").write_text(json.dumps(content))
    folder = export(run, formats=["keras"])
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"MODEL_CARD.md", "classes.json", "colours.keras", "report.json"}
    assert "stale.txt" not in names  # the older export is replaced whole
    card = (folder / "MODEL_CARD.md").read_text()
    assert rows_of(card, "warmth") == [
        ["warmth", "12,345", "0.250", "1.000", "0.123", "0.500", "n/a"]
    ]
    # Those are the figures of best_model.keras; another model of the run was not examined.
    table = load_table(run.spec, run.data_dir)
    known_of = {task: Calibration(1.25, 40) for task in table.tasks}
    entries = json.loads((folder / "report.json").read_text())["artifacts"]
    logged_lines = (table, known_of, entries, {"keras": "colours.keras"})
    card = model_card(TrainedModel(run, run.best_model_of("warmth")), *logged_lines)
    assert "- warmth: logits are divided by 1.250, fitted on 40 images" in card
    assert "Not evaluated" in card
    assert rows_of(card, "warmth") == []
    ((_, precision, by, difference, same, *_),) = rows_of(card, "Keras: warmth")
    assert (precision, by, same) == ("float32", f"Keras {keras.__version__}", "1.000")
    assert difference.endswith(" (1e-05)")
    (run.results / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"metrics.json: not what `multitask evaluate` writes"):
        model_card(open_trained(run), *logged_lines)
