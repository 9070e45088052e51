"""Benchmarks of the trunk: features by the fastest library, and fine-tuning on cached maps.

Part of tools/benchmark.py, whose command line runs them.
"""

import functools
import subprocess
import sys
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
FORWARD = 128  # images of a turn without reading
READ = 384  # images of a turn with reading
TURNS = 3
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


def _trunks(values: flags.FlagValues) -> tuple[str, ...]:
    return (values.trunk,) if values.trunk else TRUNKS


# === features ===


def measure_features(values: flags.FlagValues) -> list[dict]:
    """Features of the frozen trunk, read from records, against the library alone and TensorFlow."""
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        return [row for trunk in _trunks(values) for row in _features_of(trunk, scratch)]


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

    fast = fast_inference(network, images=IMAGES)
    loaded = {fast.runtime: fast, "tensorflow": fast_inference(network, images=0)}
    ways: dict[str, Callable[[], float]] = {}
    for name, infer in loaded.items():
        ways[name] = functools.partial(forward, infer)
        ways[f"{name}, read"] = functools.partial(_with_reading, infer, prepared, spec)
    best = common.best_in_turns(ways, TURNS)
    fastest = fast.runtime
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
        return [row for trunk in _trunks(values) for row in _finetune_of(trunk, scratch)]


def _finetune_of(trunk: str, scratch: str) -> list[dict]:
    from multitask.data.pipeline import training_dataset
    from multitask.learning.extensions import NO_EXTENSIONS
    from multitask.learning.features import cache_maps
    from multitask.learning.frozen_maps import finetune_cut
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
    phase = common.phase_maker(network, spec, "finetune", classes, 100)

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


# === step ===

TIMM = """
import sys, time, torch, timm
name, frozen = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = timm.create_model(name, num_classes=60).to(memory_format=torch.channels_last).train()
if frozen:  # the stem and the first stages, and `frozen - 10 * stage` blocks of the next one
    stage, blocks = divmod(frozen, 10)
    parts = [model.conv_stem, model.bn1, *model.blocks[:stage], *model.blocks[stage][:blocks]]
    for part in parts:
        part.requires_grad_(False).eval()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-5)
x = torch.rand(32, 3, 224, 224).to(memory_format=torch.channels_last)
y = torch.randint(60, (32,))
best = 1e9
for step in range(7):
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    if step > 1:
        best = min(best, time.perf_counter() - start)
print(32 / best)
"""
# Ours -> theirs, and their blocks below the last 60 layers of ours: stage and block.
TIMM_TRUNKS = {
    "efficientnetb2": ("efficientnet_b2", 53),
    "efficientnet_lite2": ("efficientnet_lite2", 43),
}


def measure_step(values: flags.FlagValues) -> list[dict]:
    """A training step of 32 images, of a linear head on the trunk, against timm's in PyTorch."""
    rows = []
    for trunk in _trunks(values):
        theirs, blocks = TIMM_TRUNKS[trunk]
        for depth, frozen in (("none", 0), ("-60", blocks)):
            what = "all trained" if depth == "none" else "last 60 layers trained"
            ways = {
                "ours": functools.partial(_our_step, trunk, depth),
                "timm's": functools.partial(_timm_step, values.timm_python, theirs, frozen),
                "one with TensorFlow's gradient of depthwise filters": functools.partial(
                    _our_step, trunk, depth, "plain"
                ),
            }
            best = common.best_in_turns(ways, 2)
            ours = best.pop("ours")
            rows += [
                {
                    "what": f"{trunk}, 224 px, batch 32, {what}: a training step against {name}",
                    "fast": f"{ours:.1f}/s",
                    "plain": f"{plain:.1f}/s",
                    "ratio": ours / plain,
                }
                for name, plain in best.items()
            ]
    return rows


def _our_step(trunk: str, depth: str, gradient: str = "fast") -> float:
    """Images per second of a training step, in a process of its own."""
    code = "import sys, trunk_benchmarks; print(trunk_benchmarks.our_step(*sys.argv[1:]))"
    return _of_process([sys.executable, "-c", code, trunk, depth, gradient])


def _timm_step(python: str | None, name: str, frozen: int) -> float:
    return _of_process([python or sys.executable, "-c", TIMM, name, str(frozen)])


def _of_process(command: list[str]) -> float:
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmark.py: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def our_step(trunk: str, depth: str, gradient: str) -> float:
    """Images per second of a training step on one batch, the best of five.

    Args:
        trunk: its name.
        depth: the freeze depth.
        gradient: `plain` for TensorFlow's own gradient of depthwise filters.
    """
    import tensorflow as tf

    from multitask.learning import phases
    from multitask.model.network import build_network
    from multitask.spec import Kind

    batchnorm = "train" if depth == "none" else "frozen"
    spec = _spec(trunk, freeze_depth=depth, **{"trunk.batchnorm": batchnorm})
    task = spec.tasks[0].model_copy(update={"head": Kind(kind="linear")})
    spec = spec.model_copy(update={"tasks": (task,)})
    if gradient == "plain":
        phases.use_fast_depthwise_gradient = bool
    classes = {task.name: tuple(map(str, range(60)))}
    model = common.phase_maker(build_network(spec, classes), spec, "finetune", classes, 100)().model
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (32, 224, 224, 3)).astype(np.float32)
    labels = {task.name: rng.integers(0, 60, 32).astype(np.int32)}
    ones = {task.name: np.ones(32, np.float32)}
    batches = tf.data.Dataset.from_tensors((images, labels, ones)).cache().repeat()
    times = common.StepTimes()
    model.fit(batches, steps_per_epoch=7, callbacks=[times], verbose=0, shuffle=False)
    return 32 / float(np.diff(times.ends)[1:].min())
