"""Every format and runtime, against answers that SciPy gives; and safety."""

import json
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from multitask.__main__ import main
from multitask.data.decode import resize_image
from multitask.evaluation.attention import activation_maps
from multitask.model.network import build_network, examined_model, trunk_and_heads
from multitask.run import start_run
from multitask.runtimes import converters
from multitask.runtimes.libraries import RUNTIMES
from multitask.serving import agreement, formats
from multitask.serving.export import export
from multitask.serving.predictor import load_best, load_export
from multitask.spec import SHARED, InputError, parse_spec

pytestmark = pytest.mark.usefixtures("untimed")

FORMATS = ("savedmodel", "onnx", "litert", "keras")
TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def run(known, data, tmp_path_factory):
    """Of known answers, with a temperature that `evaluate` found for one task."""
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    run.results.mkdir()
    plain = {"temperature": 1.0, "fitted_on": 0, "steps": {}}
    tasks = dict.fromkeys(known.CLASSES, plain) | {"shade": {**plain, "temperature": TEMPERATURE}}
    content = {"model": "models/best_model.keras", "tasks": tasks}
    (run.results / "calibration.json").write_text(json.dumps(content))
    return run


@pytest.fixture(scope="module")
def folder(run):
    return export(run, formats=FORMATS)


@pytest.fixture(scope="module")
def batch(known):
    """(colours [n, 3], images float32 [n, 32, 32, 3])."""
    painted = known.colours(5, 6)
    return painted, np.broadcast_to(painted[:, None, None], (5, 32, 32, 3)).astype(np.float32)


def expected(known, painted, tasks=None):
    """task -> (logits, calibrated probabilities), by SciPy."""
    result = {}
    for task in tasks or known.CLASSES:
        logits = known.logits(painted, known.PALETTES[task])
        scale = TEMPERATURE if task == "shade" else 1
        result[task] = logits, scipy.special.softmax(logits / scale, axis=1)
    return result


def check_answers(message, known, painted, tasks=None):
    for task, (logits, probabilities) in expected(known, painted, tasks).items():
        np.testing.assert_allclose(message[f"{task}_logits"], logits, atol=1e-4)
        np.testing.assert_allclose(message[f"{task}_probabilities"], probabilities, atol=1e-5)


# === Each format in its own runtime ===


@pytest.mark.parametrize("name", list(RUNTIMES))
@pytest.mark.parametrize("count", [1, 5])
def test_every_runtime_gives_the_known_answers(folder, known, batch, name, count):
    runtime = RUNTIMES[name]
    if not RUNTIMES[name].installed:
        pytest.skip(f"{name} is not installed")
    where = json.loads((folder / "classes.json").read_text())["artifacts"][runtime.format]
    infer = runtime.load(folder / where)
    painted, images = batch
    message = infer(images[:count])
    check_answers(message, known, painted[:count])
    # The embedding is the mean colour.
    np.testing.assert_allclose(message["embedding"], painted[:count] / 255, atol=1e-5)
    again = infer(images[::-1][:2].copy())  # another batch size leaves the first answer as it was
    check_answers(again, known, painted[::-1][:2])
    check_answers(message, known, painted[:count])


def test_onnx_has_the_image_as_its_only_input(folder, known):
    model = onnx.load(folder / "colours.onnx")
    onnx.checker.check_model(model, full_check=True)

    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {i.name: shape(i) for i in model.graph.input} == {"image": ["batch", 32, 32, 3]}
    wanted = {"embedding": ["batch", 3]}
    for task, names in known.CLASSES.items():
        wanted[f"{task}_logits"] = wanted[f"{task}_probabilities"] = ["batch", len(names)]
    assert {o.name: shape(o) for o in model.graph.output} == wanted
    metadata = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert metadata["classes"] == {task: list(names) for task, names in known.CLASSES.items()}
    assert (metadata["image_size"], metadata["resize"]) == (32, "squash")


ALONE = """
import sys, json
for name in ("tensorflow", "keras", "multitask"):
    sys.modules[name] = None
import numpy as np
kind, path = sys.argv[1:3]
image = np.load(sys.argv[3])
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    names = [o.name for o in session.get_outputs()]
    said = dict(zip(names, session.run(names, {"image": image})))
else:
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path)
    said = interpreter.get_signature_runner()(image=image)
print(json.dumps({name: x.tolist() for name, x in said.items()}))
"""


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", "onnx"), ("litert", "tflite")])
def test_they_run_where_no_tensorflow_is(folder, known, batch, tmp_path, kind, suffix):
    painted, images = batch
    np.save(tmp_path / "image.npy", images)
    argv = [sys.executable, "-c", ALONE, kind, str(folder / f"colours.{suffix}")]
    result = subprocess.run(
        [*argv, str(tmp_path / "image.npy")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    check_answers(json.loads(result.stdout.splitlines()[-1]), known, painted)


def test_litert_carries_its_names(folder, known):
    path = folder / "colours.tflite"
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read("description.json"))
        for task, names in known.CLASSES.items():
            assert archive.read(f"labels_{task}.txt").decode().splitlines() == list(names)
    assert description["image_size"] == 32
    (signature,) = Interpreter(str(path)).get_signature_list().values()
    assert signature["inputs"] == ["image"]
    assert "shade_probabilities" in signature["outputs"]


def test_keras_reads_it_in_safe_mode(folder, known, batch):
    model = keras.saving.load_model(folder / "colours.keras", safe_mode=True)
    painted, images = batch
    message = model(images, training=False)
    for task, (logits, _) in expected(known, painted).items():
        np.testing.assert_allclose(message[task], logits, atol=1e-4)


def test_no_weight_is_written_twice(folder, run):
    """Keras writes the variables of a tracked model a second time."""
    model = keras.saving.load_model(run.best_model)
    reader = tf.train.load_checkpoint(str(folder / "colours" / "1" / "variables" / "variables"))
    shapes = reader.get_variable_to_shape_map()
    floats = sum(int(np.prod(s)) for name, s in shapes.items() if "OBJECT_GRAPH" not in name)
    assert floats == sum(int(np.prod(w.shape)) for w in model.weights)


def test_the_signatures_share_one_network(folder):
    """All five call one function, so that a SavedModel is written and loaded fast."""
    (file,) = folder.rglob("saved_model.pb")
    graph = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs[0].graph_def
    nodes = [node.op for function in graph.library.function for node in function.node_def]
    # The trunk's pooling. TensorFlow traces every function once more while it saves.
    assert nodes.count("AvgPool") == 2


# === The SavedModel's signatures ===


@pytest.fixture(scope="module")
def loaded(folder):
    return tf.saved_model.load(str(folder / "colours" / "1"))


@pytest.mark.parametrize(("name", "kind"), [("pixels", np.float32), ("pixels_uint8", np.uint8)])
@pytest.mark.parametrize("size", [(32, 32), (50, 20)])
def test_pixels_of_any_size(loaded, known, name, kind, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *size, 3)).astype(kind)
    fitted = [resize_image(image, size_px=32, how="squash").numpy() for image in images]
    mean = np.mean(fitted, axis=(1, 2), dtype=np.float64)
    message = loaded.signatures[name](tf.constant(images))
    check_answers(message, known, mean)
    for task, names in known.CLASSES.items():
        best = np.argmax(known.logits(mean, known.PALETTES[task]), axis=1)
        assert [n.decode() for n in message[f"{task}_label"].numpy()] == [names[i] for i in best]


def test_embed_and_attention(loaded, run, data, known):
    files = [data.folder / "images" / p for p in data.painted if p not in data.missing][:3]
    message = loaded.signatures["embed"](tf.constant([file.read_bytes() for file in files]))
    painted = np.array([np.asarray(Image.open(file))[0, 0] for file in files])
    for name in ("embedding", *(f"{task}_embedding" for task in known.CLASSES)):
        np.testing.assert_allclose(message[name], painted / 255, atol=1e-5)
    images = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    result = loaded.signatures["attention"](tf.constant(images))
    trunk, heads = trunk_and_heads(keras.saving.load_model(run.best_model))
    features = trunk(images)
    assert set(result) == {f"{task}_attention" for task in known.CLASSES}
    for task, head in heads.items():
        maps = activation_maps(head, features, np.argmax(head(features), axis=1))
        np.testing.assert_allclose(result[f"{task}_attention"], maps, atol=1e-4)


@pytest.fixture(
    params=[
        ("tiny", {"kind": "linear"}),
        pytest.param(("efficientnetb0", {"kind": "gru", "units": 4}), marks=pytest.mark.slow),
    ],
    ids=lambda param: param[0],
)
def random_run(request, known, data, tiny_trunk, tmp_path):
    """(run, model) of random weights: a normalisation, squeeze-excitation, a GRU."""
    trunk, head = request.param
    heads = [{"kind": "residual_se", "units": 16, "residual_units": 8, "se_units": 4},
             head, {"kind": "dense_stack", "units": [8, 4, 4]}]  # fmt: skip
    raw = known.colour_spec().model_dump(mode="json", by_alias=True)
    raw["trunk"]["name"] = trunk
    raw["image_size"] = 64
    for task, head in zip(raw["task"], heads, strict=True):
        task["head"] = head
    spec = parse_spec(raw, source="colours.toml")
    run = start_run(tmp_path / "run", spec, data.folder)
    keras.utils.set_random_seed(3)
    model = build_network(spec, known.CLASSES)
    for weight in model.weights:
        if weight.name == "moving_variance":
            weight.assign(np.random.default_rng(0).uniform(0.5, 2, weight.shape))
    run.best_model.parent.mkdir(exist_ok=True)
    model.save(run.best_model)
    return run, model


def test_every_kind_of_head(random_run, known):
    """In the formats that converters make; tests/test_end_to_end.py has the SavedModel."""
    run, model = random_run
    formats = ("onnx", "litert")
    folder = export(run, formats=formats)
    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype(np.float32)
    reference = model(images, training=False)
    shared = examined_model(model)(images, training=False)["vectors"][SHARED]
    # The two constants of the normalisation are no inputs.
    session = onnxruntime.InferenceSession(folder / "colours.onnx")
    assert [i.name for i in session.get_inputs()] == ["image"]
    for runtime in (name for name, kind in RUNTIMES.items() if kind.format in formats):
        predictor = load_export(folder, runtime=runtime)
        result, embedding = predictor.answer(images)
        np.testing.assert_allclose(embedding, shared, atol=1e-4)
        for task in known.CLASSES:
            wanted = scipy.special.softmax(np.float64(reference[task]), axis=1)
            np.testing.assert_allclose(result[task], wanted, atol=1e-5)


# === Some tasks ===


def test_of_some_tasks_alone(run, known, batch, tmp_path):
    out = tmp_path / "some"
    some = ["onnx", "keras"]
    assert export(run, formats=some, tasks=["empty", "shade"], out=out) == out
    content = json.loads((out / "classes.json").read_text())
    assert list(content["classes"]) == ["shade", "empty"]  # as the spec has them
    painted, images = batch
    message = load_export(out).probabilities(images)
    assert list(message) == ["shade", "empty"]
    for task, (_, probabilities) in expected(known, painted, message).items():
        np.testing.assert_allclose(message[task], probabilities, atol=1e-5)
    assert set(keras.saving.load_model(out / "colours.keras").output) == {"shade", "empty"}
    card = (out / "MODEL_CARD.md").read_text()
    assert card.startswith("# Plain colours: shade, empty\n")


# === Less precision ===


@pytest.mark.parametrize("precision", [pytest.param("float16", marks=pytest.mark.slow), "int8"])
def test_less_precision_is_smaller_and_stays_within_its_bound(
    run, known, folder, tmp_path, precision, data
):
    unchanged = ["savedmodel"] if precision == "float16" else []  # it takes seconds to write
    out = export(
        run,
        formats=[*unchanged, "onnx", "litert"],
        quantize=precision,
        out=tmp_path / "less",
        records_dir=tmp_path / "records",
        images=0,
    )
    report = json.loads((out / "report.json").read_text())["artifacts"]
    entries = {entry["runtime"].split(" ")[0]: entry for entry in report}
    assert {name: entry["precision"] for name, entry in entries.items()} == {
        **dict.fromkeys(["the", *(["TensorFlow"] if unchanged else [])], "float32"),
        **dict.fromkeys(["ONNX", "OpenVINO", "LiteRT"], precision),
    }
    first = sorted(data.painted, key=list(data.painted).index)[0]  # the contradictory one
    test_set = {path for labels in data.labels.values() for path in labels} | {first}
    test = [path for path in data.labels["shade"] if path not in data.missing]
    wanted = expected(known, np.array([data.painted[path] for path in test]))["shade"][1]
    labels = np.array([data.labels["shade"][path] for path in test])
    paths = [str(data.folder / "images" / path) for path in test]
    for name, runtime in (("ONNX", "onnxruntime"), ("OpenVINO", "openvino"), ("LiteRT", "litert")):
        entry = entries[name]
        bound = agreement.BOUNDS[precision]
        assert all(result["difference"] <= bound.difference for result in entry["tasks"].values())
        assert entry["images"] == len(test_set - set(data.missing))
        # The figures after, computed anew.
        images = np.stack([np.asarray(Image.open(path).resize((32, 32))) for path in paths])
        message = load_export(out, runtime=runtime).probabilities(images.astype(np.float32))[
            "shade"
        ]
        result = entry["tasks"]["shade"]
        assert result["labelled"] == len(test)
        assert result["top1"] == pytest.approx((message.argmax(axis=1) == labels).mean())
        seen = np.unique(labels)
        f1 = sklearn.metrics.f1_score(labels, message.argmax(axis=1), labels=seen, average="macro",
                                      zero_division=0)  # fmt: skip
        assert result["macro_f1"] == pytest.approx(f1)
        # And before: SciPy's answers.
        before = report[0]["tasks"]["shade"]["top1"]
        assert before == pytest.approx((wanted.argmax(axis=1) == labels).mean())
        assert np.abs(message - wanted).max() < {"float16": 0.01, "int8": 0.2}[precision]
    content = json.loads((out / "classes.json").read_text())
    assert content["precisions"] == {
        **dict.fromkeys(unchanged, "float32"),
        "onnx": precision,
        "litert": precision,
    }


def test_half_precision_halves_the_weights_and_not_the_arithmetic(tmp_path):
    """One product of a large matrix, by hand."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 32)).astype(np.float32)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("image", kind, ["batch", 64])],
        [helper.make_tensor_value_info("y", kind, ["batch", 32])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", converters.OPSET)])
    whole = len(model.SerializeToString())
    formats.halve_weights(model)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < 0.6 * whole
    x = rng.normal(size=(3, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (result,) = session.run(None, {"image": x})
    np.testing.assert_allclose(result, x @ weights.astype(np.float16).astype(np.float32), atol=1e-4)


def with_artifacts(folder, copy, artifacts):
    shutil.copytree(folder, copy)
    content = json.loads((copy / "classes.json").read_text())
    (copy / "classes.json").write_text(json.dumps({**content, "artifacts": artifacts}))
    return copy


def test_a_missing_extra_is_one_line(run, monkeypatch, folder, tmp_path):
    result = formats.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in ("tf2onnx", "onnxruntime") else result(name, *rest),
    )
    with pytest.raises(InputError, match=r"format: onnx: .* pip install '\.\[onnx\]'"):
        export(run, formats=["onnx"])
    with pytest.raises(InputError, match="runtime: onnxruntime: needs an extra: pip install"):
        load_export(folder, runtime="onnxruntime")
    only = with_artifacts(folder, tmp_path / "only", {"keras": "colours.keras"})
    with pytest.raises(InputError, match="runtime: no installed library runs keras"):
        load_export(only)
    with pytest.raises(InputError, match="runtime: litert: reads litert, and the export has ker"):
        load_export(only, runtime="litert")
    with pytest.raises(InputError, match=r"runtime: 'litret'. Expected one of: auto, litert"):
        load_export(only, runtime="litret")


def test_auto_is_the_first_that_is_there(folder, tmp_path):
    assert load_export(folder).runtime.startswith(next(iter(RUNTIMES.values())).title)
    some = with_artifacts(folder, tmp_path / "some", {"savedmodel": "colours/1"})
    assert load_export(some).runtime == f"TensorFlow {tf.__version__}"


def test_an_artifact_outside_its_folder_is_refused(folder, tmp_path):
    some = with_artifacts(folder, tmp_path / "some", {"onnx": "../elsewhere.onnx"})
    with pytest.raises(InputError, match="not an export of multitask"):
        load_export(some)


# === Safety ===


def test_a_model_file_runs_no_code(run, known, data, tmp_path):
    """A Lambda layer in a `.keras` file is refused, by `export` and `predict` alike."""
    image = keras.Input((32, 32, 3))
    evil = keras.layers.Lambda(lambda x: x, name="evil")
    trunk = keras.Model(image, evil(image), name="trunk")
    copy = start_run(tmp_path / "run", run.spec, data.folder)
    copy.best_model.parent.mkdir(exist_ok=True)
    keras.Model(image, {task: trunk(image) for task in known.CLASSES}).save(copy.best_model)
    for use in (export, load_best):
        with pytest.raises(InputError, match="not a model file of multitask") as caught:
            use(copy)
        assert "\n" not in str(caught.value)


def test_no_pickle_in_an_export(folder):
    """Neither as a file nor inside the archives."""
    names = [p.name for p in folder.rglob("*")]
    with zipfile.ZipFile(folder / "colours.keras") as archive:
        names += archive.namelist()
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".npy", ".joblib"))]


def test_the_command(run, tmp_path, capsys):
    main(["export", f"--workdir={run.workdir}", "--format=onnx,keras", "--tasks=warmth",
          f"--out={tmp_path / 'out'}", "--check_images=5"])  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("Checked 5 images against best_model.keras (task columns: top-1/macro-F1")
    assert out.endswith(f"Export: {tmp_path / 'out'}\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "MODEL_CARD.md", "classes.json", "report.json", "colours.onnx", "colours.keras"
    }  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        main(["export", f"--workdir={run.workdir}", "--format=onxn"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
