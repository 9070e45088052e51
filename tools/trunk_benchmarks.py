"""Benchmarks of the trunk: features by the fastest library, and fine-tuning on cached maps.

Part of tools/benchmark.py, whose command line runs them.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import benchmark as common
import keras
import numpy as np
from absl import flags

IMAGES = 2048
TRUNKS = ("efficientnetb2", "efficientnet_lite2")
FORWARD = 256  # images of a turn without reading
READ = 768  # images of a turn with reading
TURNS = 4
STEPS = 16


def _spec(trunk: str, **fields):
    from multitask.spec import override, parse_spec

    raw = common.spec_of().to_dict()
    # BatchNorm as in a pretrained trunk, which costs less than one that trains.
    raw["trunk"] |= {"weights": "none", "name": trunk, "batchnorm": "frozen"}
    return override(parse_spec(raw, source="benchmark"), fields)


def _prepared(spec, scratch: str | None):
    from multitask.data.records import prepare

    data = Path(scratch or "") / "painted"
    if not data.is_dir():
        common.paint_set(data, count=IMAGES, size=common.SMALL, distinct=64)
    return prepare(spec, data)


# === features ===


def measure_features(values: flags.FlagValues) -> list[dict]:
    """Features of the frozen trunk, read from records, against the library alone and TensorFlow."""
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        return [row for trunk in TRUNKS for row in _features_of(trunk, scratch)]


def _with_reading(infer, prepared, spec, *, view: int = 0) -> float:
    """Images per second of reading records and running a network on them."""
    from multitask.data.pipeline import view_dataset

    rows = np.arange(min(READ, len(prepared.table.rows("train"))))
    read = view_dataset(
        prepared, spec, split="train", batch_size=32, view=view, rows=rows, autotune=False
    )
    return common.rate(([features] for features in infer.map(read)), len(rows) - 64)


def _features_of(trunk: str, scratch: str) -> list[dict]:
    from multitask.model.inference import fast_inference
    from multitask.model.network import build_network, trunk_and_heads
    from multitask.runtimes.libraries import RUNTIMES

    spec = _spec(trunk)
    prepared = _prepared(spec, scratch)
    network = trunk_and_heads(build_network(spec, prepared.table.classes))[0]
    pooled = keras.layers.GlobalAveragePooling2D()(network.outputs[0])
    network = keras.Model(network.inputs[0], pooled)
    images = np.random.default_rng(0).uniform(0, 255, (FORWARD, *network.input_shape[1:]))
    images = images.astype(np.float32)

    def forward(infer) -> float:
        start = time.perf_counter()
        for _ in infer.map(images[i : i + 32] for i in range(0, FORWARD, 32)):
            pass
        return FORWARD / (time.perf_counter() - start)

    loaded = {
        name: fast_inference(network, runtime=name, images=IMAGES)
        for name, runtime in RUNTIMES.items()
        if runtime.installed
    }
    ways: dict[str, Callable[[], float]] = {}
    for name, infer in loaded.items():
        ways[name] = functools.partial(forward, infer)
        ways[f"{name}, read"] = functools.partial(_with_reading, infer, prepared, spec)
    best = common.best_in_turns(ways, TURNS)
    fastest = max(loaded, key=lambda name: best[name])
    title, read = RUNTIMES[fastest].title, best[f"{fastest}, read"]
    pairs = {
        f"features of records by {title}, against its forward pass alone": best[fastest],
        f"features of records by {title}, against TensorFlow": best["tensorflow, read"],
    }
    return [
        {
            "what": f"{trunk}, {spec.image_size} px: {what}",
            "fast": f"{read:.1f}/s",
            "plain": f"{plain:.1f}/s",
            "ratio": read / plain,
        }
        for what, plain in pairs.items()
    ]


# === finetune ===


def measure_finetune(values: flags.FlagValues) -> list[dict]:
    """An epoch of `finetune` with the last 60 layers trained: on cached maps, and through all."""
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        return [row for trunk in TRUNKS for row in _finetune_of(trunk, scratch)]


def _finetune_of(trunk: str, scratch: str) -> list[dict]:
    from multitask.data.pipeline import training_dataset
    from multitask.learning.extensions import NO_EXTENSIONS
    from multitask.learning.features import cache_maps
    from multitask.learning.frozen_maps import finetune_cut
    from multitask.learning.phases import prepare_phase
    from multitask.model.inference import fast_inference
    from multitask.model.network import build_network

    spec = _spec(
        trunk, freeze_depth="-60", **{"phases.finetune.cache": "on", "phases.finetune.epochs": 1}
    )
    prepared = _prepared(spec, scratch)
    classes = prepared.table.classes
    network = build_network(spec, classes)
    cut = finetune_cut(network, spec, NO_EXTENSIONS)
    assert cut is not None
    maps = cache_maps(cut, prepared, spec, first_epoch=0)
    infer = fast_inference(cut.below, images=IMAGES)
    computing = max(_with_reading(infer, prepared, spec, view=1) for _ in range(2))
    phase = functools.partial(
        prepare_phase,
        network,
        spec,
        "finetune",
        class_weights={t: np.ones(len(names), np.float32) for t, names in classes.items()},
        steps_per_epoch=100,
    )

    def step(model, batches) -> float:
        return common.seconds_a_step(model, batches, STEPS) / spec.batch_size

    plain_model, cached_model = phase().model, phase(cut=cut).model
    plain, cached = np.inf, np.inf
    for _ in range(2):
        plain = min(plain, step(plain_model, training_dataset(prepared, spec)))
        cached = min(cached, step(cached_model, maps.training_dataset(spec)))
    what = f"{trunk}, {spec.image_size} px, last 60 layers trained, cut at {cut.name}"
    return [
        {
            "what": f"{what}: fine-tuning on cached maps, against the whole trunk",
            "fast": f"{1 / cached:.1f}/s",
            "plain": f"{1 / plain:.1f}/s",
            "ratio": plain / cached,
        },
        {
            "what": "  the same with the computing of a view of its own for each epoch",
            "fast": f"{1 / (cached + 1 / computing):.1f}/s",
            "plain": f"{1 / plain:.1f}/s",
            "ratio": plain / (cached + 1 / computing),
        },
    ]
