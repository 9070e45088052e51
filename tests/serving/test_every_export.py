"""Every setting that changes the network, in every format, at every precision of the weights."""

import functools
import itertools
import json
import re
import shutil

import keras
import numpy as np
import pytest
import scipy.special
from logged import logged
from narrow_trunks import narrow_convnext, narrow_efficientnet, narrow_efficientnet_v2

from multitask.calibration import Calibration
from multitask.errors import InputError, RunError
from multitask.model.efficientnet_lite import LITE2
from multitask.model.network import build_network, in_float32, load_network, trunk_and_heads
from multitask.model.trunks import TRUNKS, finalize_normalization
from multitask.run import flatten, start_run
from multitask.runtimes.libraries import RUNTIMES
from multitask.serving import agreement
from multitask.serving.agreement import Bound
from multitask.serving.export import export
from multitask.serving.formats import FORMATS, PRECISIONS
from multitask.serving.predictor import load_export
from multitask.serving.signatures import numbers
from multitask.spec import override, parse_spec
from multitask.spec_task import OF_COLUMN

HEADS = {
    "residual": {"kind": "residual_se", "units": 16, "residual_units": 8, "se_units": 4},
    "stacked": {"kind": "dense_stack", "units": [8, 4], "dropout": [0.1, 0.1]},
    "read": {"kind": "gru", "units": 4},
    "one_way": {"kind": "gru", "units": 4, "bidirectional": False},
    "plain": {"kind": "linear", "dropout": 0.2},
    "single": {"kind": "linear"},  # a task with one class
}
# Trunk -> a side that no stride divides, and how images are made to fit.
TRUNK_KINDS = {
    "tiny": (33, "squash"),
    "narrow": (33, "crop"),
    "narrow_v2": (35, "pad"),
    "narrow_convnext": (41, "crop"),
    LITE2: (37, "pad"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tiny_trunk):
    """Trunks that build in no time, nothing timed, and bounds for weights that were not trained:
    their answers hardly differ, and which is the highest is chance."""
    monkeypatch.setitem(TRUNKS, "narrow", narrow_efficientnet)
    # The second block has layers of every kind, stochastic depth among them.
    monkeypatch.setitem(TRUNKS, "shallow", functools.partial(narrow_efficientnet, blocks=2))
    monkeypatch.setitem(TRUNKS, "narrow_v2", narrow_efficientnet_v2)
    monkeypatch.setitem(TRUNKS, "narrow_convnext", narrow_convnext)
    monkeypatch.setattr(agreement, "TIMED_S", 0.0)
    for precision in ("float16", "int8"):
        monkeypatch.setitem(agreement.BOUNDS, precision, Bound(0.05, 0.0))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The painted colours, and a list of a task with a single class."""
    copy = tmp_path_factory.mktemp("product") / "data"
    shutil.copytree(data.folder, copy)
    for split in ("train", "val"):
        rows = (copy / "lists" / f"warmth_{split}.csv").read_text().splitlines()
        rows = [f"{row.rsplit(',', 1)[0]},0\n" for row in rows]
        (copy / "lists" / f"single_{split}.csv").write_text("".join(rows))
    (copy / "lists" / "single_class.txt").write_text("0 painted\n")
    return copy


def spec_of(known, trunk="tiny", *, heads=tuple(HEADS), **changes):
    raw = known.colour_spec(("warmth",), **changes).to_dict()
    raw["trunk"] |= {"name": trunk}
    (task,) = raw["task"]
    single = {k: task[k].replace("warmth", "single") for k in ("train", "test", "classes")}
    raw["task"] = [
        task | {"name": name, "head": HEADS[name]} | (single if name == "single" else {})
        for name in heads
    ]
    return parse_spec(raw, source="product.toml")


def classes_of(known, spec):
    return {
        name: ("painted",) if name == "single" else known.CLASSES["warmth"]
        for name in spec.task_names
    }


def make_run(known, folder, workdir, spec):
    """A run whose model has the weights that it starts with, BatchNorm's statistics other ones."""
    run = start_run(workdir, spec, folder)
    keras.utils.set_random_seed(0)
    network = build_network(spec, classes_of(known, spec))
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if weight.name in ("moving_mean", "moving_variance"):
            weight.assign(weight + rng.uniform(0, 0.5, weight.shape))
    network.save(run.best_model)
    return run


def probabilities(known, run, spec, images):
    """task -> float64 [n, classes], of the network built in float32 with the saved weights."""
    plain = override(spec, {"precision": "float32"})
    network = build_network(plain, classes_of(known, spec))
    network.load_weights(run.best_model)
    logits = network.predict_on_batch(images)
    return {t: scipy.special.softmax(np.float64(x), axis=1) for t, x in logits.items()}


def check_every_format(known, folder, tmp_path, spec, *, precisions=PRECISIONS):
    """All formats at these precisions of the weights, each by each library that runs it."""
    run, lines = make_run(known, folder, tmp_path / "run", spec), []
    images = np.random.default_rng(1).uniform(0, 255, (3, spec.image_size, spec.image_size, 3))
    images = images.astype(np.float32)
    expected = probabilities(known, run, spec, images)
    network = load_network(run.best_model, spec, classes_of(known, spec))
    refused = [name for name, kind in FORMATS.items() if kind.why_not(network)]
    assert refused == (["onnx"] if spec.trunk.name == "narrow_convnext" else [])
    for name in refused:
        with pytest.raises(InputError, match=f"^format: {name}: tf2onnx cannot convert "):
            export(run, formats=["keras", name], out=tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
    for quantize in precisions:
        formats = [name for name in FORMATS if quantize == "none" or FORMATS[name].quantizes]
        formats = [name for name in formats if name not in refused]
        options = {"records_dir": tmp_path / "records", "out": tmp_path / quantize}
        if refused and quantize == "int8":  # layer normalisation loses too much
            with pytest.raises(RunError, match=r"LiteRT export, run by .* disagrees with "):
                export(run, formats=formats, quantize=quantize, **options)
            assert not options["out"].exists()
            continue
        with logged(lines):
            out = export(run, formats=formats, quantize=quantize, **options)
        entries = json.loads((out / "report.json").read_text())["artifacts"]
        assert {entry["format"] for entry in entries[1:]} == set(formats)
        runtimes = [r for r in RUNTIMES if RUNTIMES[r].format in formats and RUNTIMES[r].installed]
        assert {"onnxruntime", "litert"} - set(runtimes) == ({"onnxruntime"} if refused else set())
        for runtime in runtimes:
            result = load_export(out, runtime=runtime).probabilities(images)
            assert result.keys() == expected.keys()
            for task, values in expected.items():
                bound = 1e-5 if quantize == "none" else 0.05
                np.testing.assert_allclose(result[task], values, atol=bound, err_msg=runtime)
        says = "Trained in bfloat16, exported in float32 with the same weights."
        assert (says in (out / "MODEL_CARD.md").read_text()) == (spec.precision == "bfloat16")
        assert ("rounding" in entries[0]) == (spec.precision == "bfloat16")
        assert any(line.startswith(says) for line in lines) == (spec.precision == "bfloat16")
        if spec.precision == "bfloat16":
            rounding = entries[0]["rounding"]
            assert rounding.keys() == expected.keys()
            assert all(0 <= result["difference"] < 0.05 for result in rounding.values())
            assert max(result["difference"] for result in rounding.values()) > 0


@pytest.mark.slow
def test_bfloat16_in_every_format(known, folder, tmp_path):
    """The case: ONNX and LiteRT ended in a traceback."""
    size, how = TRUNK_KINDS["tiny"]
    heads = ("residual", "read")
    spec = spec_of(known, heads=heads, precision="bfloat16", image_size=size, resize=how)
    check_every_format(known, folder, tmp_path, spec, precisions=("none", "int8"))


def test_a_network_of_nested_ones_in_float32(known):
    """The Sequential in ConvNeXt's stem rounded its input to bfloat16."""
    spec = spec_of(known, "narrow_convnext", heads=("plain",), precision="bfloat16", image_size=41)
    network = build_network(spec, classes_of(known, spec))
    plain_spec = override(spec, {"precision": "float32"})
    plain = build_network(plain_spec, classes_of(known, spec))
    plain.set_weights(network.get_weights())
    finalize_normalization(trunk_and_heads(plain)[0])
    images = np.random.default_rng(0).uniform(0, 255, (2, 41, 41, 3)).astype(np.float32)
    logits = in_float32(network).predict_on_batch(images)
    for task, expected in plain.predict_on_batch(images).items():
        np.testing.assert_allclose(logits[task], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trunk", "precision"), [*itertools.product(TRUNK_KINDS, ("float32", "bfloat16"))]
)
def test_the_whole_product(known, folder, tmp_path, trunk, precision):
    """Trunks × precisions × formats × quantisations × libraries; every head in each network."""
    size, how = TRUNK_KINDS[trunk]
    spec = spec_of(known, trunk, precision=precision, image_size=size, resize=how)
    check_every_format(known, folder, tmp_path, spec)


def test_some_of_the_tasks(known, folder, tmp_path):
    heads = ("residual", "stacked", "plain", "single")
    spec = spec_of(known, heads=heads, precision="bfloat16")
    run = make_run(known, folder, tmp_path / "run", spec)
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = probabilities(known, run, spec, images)
    for tasks in (("stacked",), ("plain", "single")):
        out = export(run, formats=["onnx"], tasks=tasks)
        result = load_export(out, runtime="onnxruntime").probabilities(images)
        assert result.keys() == set(tasks)
        for task in tasks:
            np.testing.assert_allclose(result[task], expected[task], atol=1e-5)


# === Which settings change the network ===

OF_THE_NETWORK = {
    "image_size": 40,
    "precision": "bfloat16",
    "trunk.name": "shallow",
    "trunk.batchnorm_momentum": 0.5,
    "trunk.stochastic_depth": 0.1,
    "task.head": {"kind": "linear", "dropout": 0.5},
}
KIND = {"kind": "constant", "rate": 0.5}
OTHERS = {
    "title": "x", "licence": "x", "source": "x", "images": "x", "name": "other",
    "match": "letters",
    "resize": "pad",  # of the pixels, before the network: tests of `signatures`
    "convert_profiles": False,
    "batch_size": 3, "seed": 9, "validation": 0.2, "max_missing": 0.2, "max_unknown": 0.2,
    "exclude_near_duplicates": True, "mix": {"kind": "mixup"}, "sampler": {"kind": "balanced"},
    "freeze_depth": "all", "balancing": {"kind": "uncertainty"},
    "co_occurrence": "auto",  # joined to the network after the training
    "trunk.batchnorm": "train", "trunk.zero_init_residual": True,
    "trunk.weight_decay": 0.1, "trunk.schedule": KIND,
    "phases.heads.epochs": 9, "phases.heads.rate_factor": 0.5,
    "phases.finetune.epochs": 9, "phases.finetune.rate_factor": 0.5,
    "phases.finetune.cache": "on", "phases.finetune.views": 2,
    "phases.finetune.mix": {"kind": "cutmix"},
    "records.margin": 2.0, "records.quality": 50,
    "features.cache": "on", "features.views": 2, "features.dtype": "float32",
    "features.smote": 0.5, "features.runtime": "litert",
    "early_stopping.patience": 2, "plateau.patience": 2, "plateau.factor": 0.1,
    "plateau.least": 0.5,
    "optimizer.clip_norm": 1.0, "optimizer.ema": 0.9, "optimizer.trunk_layer_decay": 0.5,
    "optimizer.accumulate": 2,
    "contrastive.weight": 0.5, "contrastive.temperature": 0.5, "contrastive.width": 8,
    "task.weight": 0.5, "task.contrastive_weight": 0.5, "task.class_weight_exponent": 0.5,
    "task.weight_decay": 0.1, "task.freeze_depth": "all", "task.subset": 0.5,
    "task.loss": {"kind": "cross_entropy"}, "task.schedule": KIND,
    "task.augment": {"flip": True},
}  # fmt: skip
# The four kinds of weights give one network (tests of the trunks); files and names of a task are
# the data set's. Open tasks are exported to every format in tests/evaluation/test_open_sets.py.
NOT_WALKED = ("trunk.weights", "task.name", "task.train", "task.test", "task.classes", "table",
              "task.column", *(f"task.{name}" for name in OF_COLUMN),
              "task.unlabelled", "task.other", "task.label_from", "task.auxiliary")  # fmt: skip


def described(known, spec) -> str:
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    return build_network(spec, classes_of(known, spec)).to_json()


def test_the_product_walks_every_setting_that_changes_the_network(known):
    """Every field of a spec but those that `OF_THE_NETWORK` names leaves it as it is."""
    spec = spec_of(known, heads=("plain",))
    walked = (*OF_THE_NETWORK, *OTHERS, *NOT_WALKED)
    for key in flatten(spec.to_dict()):
        name = re.sub(r"\[\d+\]", "", key)
        assert name.startswith(walked), f"{name}: is it of the network? Name it here."
    before = described(known, spec)
    for field, value in OF_THE_NETWORK.items():
        assert described(known, override(spec, {field: value})) != before, field
    # All at once, as each network takes seconds to build.
    assert described(known, override(spec, OTHERS)) == before


def test_settings_of_training_leave_the_exported_function_as_it_is(known):
    """BatchNorm's momentum, stochastic depth and dropout are of the network, and not of what it
    computes when nothing is learnt."""
    spec = spec_of(known, "shallow", heads=("plain",))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    result, weights = [], None
    for field in (None, "trunk.batchnorm_momentum", "trunk.stochastic_depth", "task.head"):
        changes = {field: OF_THE_NETWORK[field]} if field else {}
        network = build_network(override(spec, changes), classes_of(known, spec))
        weights = weights or network.get_weights()
        network.set_weights(weights)
        message = numbers(network, {"plain": Calibration()})(images)
        result.append({name: x.numpy() for name, x in message.items()})
    for message in result[1:]:
        for name, values in message.items():
            np.testing.assert_array_equal(values, result[0][name])


@pytest.mark.parametrize(("trunk", "heads"), [("tiny", tuple(HEADS)), ("shallow", ("plain",))])
def test_in_float32_is_the_network_built_so(known, trunk, heads):
    """Every kind of head on the smallest trunk, and a trunk of EfficientNet's own blocks."""
    spec = spec_of(known, trunk, heads=heads, precision="bfloat16")
    network = build_network(spec, classes_of(known, spec))
    plain = override(spec, {"precision": "float32"})
    expected = build_network(plain, classes_of(known, spec))
    expected.set_weights(network.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    result = in_float32(network).predict_on_batch(images)
    for task, values in expected.predict_on_batch(images).items():
        np.testing.assert_array_equal(result[task], values)
    assert in_float32(expected) is expected
