"""Training on cached outputs of the frozen layers: `frozen`, `features` and `finetune`."""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import keras
import numpy as np
from absl import flags

from benchmarks.data import SMALL, STYLES, paint_set, spec_of
from benchmarks.timing import best_in_turns, rate, row
from benchmarks.training import phase_maker, seconds_a_step, trunk_spec, trunks_of

IMAGES = 2048
FORWARD = 128  # images per turn without reading
READ = 384  # images per turn with reading
TURNS = 3
STEPS = 16


def _prepared(spec, scratch: str | None):
    from multitask.data.records import prepare

    data = Path(scratch or "") / "painted"
    if not data.is_dir():
        paint_set(data, count=IMAGES, size=SMALL, distinct=64)
    return prepare(spec, data)


def _with_reading(infer, prepared, spec, *, view: int = 0) -> float:
    """Images per second, for reading records and running a network on them."""
    from multitask.data.pipeline import view_dataset

    rows = np.arange(min(READ, len(prepared.table.rows("train"))))
    read = view_dataset(
        prepared, spec, split="train", batch_size=32, view=view, rows=rows, autotune=False
    )
    return rate(([features] for features in infer.map(read)), len(rows) - 64)


# === frozen ===

REAL_SIZE = 53_935  # training images of WikiArt, less the validation split


def measure_frozen(values: flags.FlagValues) -> list[dict]:
    """Measure an epoch of phase `heads` with and without cached features, at WikiArt's size."""
    from multitask.spec import parse_spec

    raw = spec_of().to_dict()
    raw["trunk"]["weights"] = "none"
    linear = [task | {"head": {"kind": "linear"}} for task in raw["task"]]
    rows = []
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        data = paint_set(Path(scratch), count=2048, size=SMALL, distinct=64)
        for heads, tasks in (("wikiart's heads", raw["task"]), ("linear heads", linear)):
            spec = parse_spec(raw | {"task": tasks}, source="benchmark")
            rows += measure_heads(spec, data, heads)
    return rows


def measure_heads(spec, data: Path, heads: str) -> list[dict]:
    from multitask.data.pipeline import training_dataset
    from multitask.data.records import prepare
    from multitask.learning import optimizers
    from multitask.learning.features import Features, cache_features
    from multitask.model.network import build_network
    from multitask.spec import override

    steps = -(-REAL_SIZE // spec.batch_size)
    prepared = prepare(spec, data)
    classes = prepared.table.classes
    network = build_network(spec, classes)
    phase_model = phase_maker(network, spec, "heads", classes, steps)

    def computed(these) -> tuple[Features, int, float]:
        start = time.perf_counter()
        features = cache_features(network, these, spec)
        images = len(features.train) + len(features.validation)
        return features, images, time.perf_counter() - start

    # The first time is subtracted from the second, to remove the time of compiling the trunk.
    part = override(spec, {"task.subset": 0.1})
    _, fewer, compiling = computed(prepare(part, data))
    few, images, seconds = computed(prepared)
    first = REAL_SIZE * (seconds - compiling) / (images - fewer)
    rng = np.random.default_rng(0)
    shape = (REAL_SIZE, *few.train.shape[1:])
    many = np.lib.format.open_memmap(data / "features.npy", "w+", few.train.dtype, shape)
    many[:] = few.train[rng.integers(len(few.train), size=REAL_SIZE)]
    labels = rng.integers(0, STYLES, (REAL_SIZE, len(spec.tasks))).astype(np.int32)
    real = Features(many, many[:0], 1, labels, labels[:0], np.empty((0, *shape[1:])), few.tasks)

    def cached_step() -> float:
        return seconds_a_step(phase_model(cached=True).model, real.training_dataset(spec), 200)

    def unfused_step() -> float:
        with mock.patch.object(optimizers, "_has_fused_kernel", return_value=False):
            return cached_step()

    fused, unfused = np.min([(cached_step(), unfused_step()) for _ in range(2)], axis=0)
    cached = steps * fused
    plain = steps * seconds_a_step(phase_model().model, training_dataset(prepared, spec), 12)
    return [
        row(
            f"an epoch of phase heads, {REAL_SIZE:,} images, {heads}: on cached features against "
            "through the trunk",
            cached,
            plain,
            "{:,.0f} s",
            of_times=True,
        ),
        row(
            "  computing the features once, against such an epoch (they pay from epoch "
            f"{first / (plain - cached):.2f} on)",
            first,
            plain,
            "{:,.0f} s",
            of_times=True,
        ),
        row(
            "  a step on cached features: AdamW in one kernel a variable, against Keras' "
            "operations",
            1000 * fused,
            1000 * unfused,
            "{:.1f} ms",
            of_times=True,
        ),
    ]


# === features ===


def measure_features(values: flags.FlagValues) -> list[dict]:
    """Compare computing features from records with the bare library, and with TensorFlow."""
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        return [line for trunk in trunks_of(values) for line in _features_of(trunk, scratch)]


def _features_of(trunk: str, scratch: str) -> list[dict]:
    from multitask.model.inference import fast_inference
    from multitask.model.network import build_network, trunk_and_heads
    from multitask.runtimes.libraries import RUNTIMES

    spec = trunk_spec(trunk)
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

    fast = fast_inference(network, images=IMAGES)
    loaded = {fast.runtime: fast, "tensorflow": fast_inference(network, images=0)}
    ways: dict[str, Callable[[], float]] = {}
    for name, infer in loaded.items():
        ways[name] = functools.partial(forward, infer)
        ways[f"{name}, read"] = functools.partial(_with_reading, infer, prepared, spec)
    best = best_in_turns(ways, TURNS)
    fastest = fast.runtime
    title, read = RUNTIMES[fastest].title, best[f"{fastest}, read"]
    pairs = {
        f"features of records by {title}, against its forward pass alone": best[fastest],
        f"features of records by {title}, against TensorFlow": best["tensorflow, read"],
    }
    return [
        row(f"{trunk}, {spec.image_size} px: {what}", read, plain, "{:.1f}/s")
        for what, plain in pairs.items()
    ]


# === finetune ===


def measure_finetune(values: flags.FlagValues) -> list[dict]:
    """Compare an epoch of `finetune` (last 60 layers) on cached maps and through the trunk."""
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        return [line for trunk in trunks_of(values) for line in _finetune_of(trunk, scratch)]


def _finetune_of(trunk: str, scratch: str) -> list[dict]:
    from multitask.data.pipeline import training_dataset
    from multitask.learning.extensions import NO_EXTENSIONS
    from multitask.learning.features import cache_maps
    from multitask.learning.frozen_maps import finetune_cut
    from multitask.model.inference import fast_inference
    from multitask.model.network import build_network

    spec = trunk_spec(
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
    phase = phase_maker(network, spec, "finetune", classes, 100)

    def step(model, batches) -> float:
        return seconds_a_step(model, batches, STEPS) / spec.batch_size

    plain_model, cached_model = phase().model, phase(cut=cut).model
    plain, cached = np.inf, np.inf
    for _ in range(2):
        plain = min(plain, step(plain_model, training_dataset(prepared, spec)))
        cached = min(cached, step(cached_model, maps.training_dataset(spec)))
    what = f"{trunk}, {spec.image_size} px, last 60 layers trained, cut at {cut.name}"
    viewed = cached + 1 / computing
    return [
        row(
            f"{what}: fine-tuning on cached maps, against the whole trunk",
            1 / cached,
            1 / plain,
            "{:.1f}/s",
        ),
        row(
            "  the same with the computing of a view of its own for each epoch",
            1 / viewed,
            1 / plain,
            "{:.1f}/s",
        ),
    ]
