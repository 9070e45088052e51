"""A step of training: `step`."""

import functools
import sys
from unittest import mock

import numpy as np
from absl import flags

from benchmarks.processes import has_timm, last_numbers, module_command, timm_command
from benchmarks.timing import best_in_turns, row
from benchmarks.training import StepTimes, phase_maker, trunk_spec, trunks_of

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


# Variants of our step -> the function of learning/phases.py that is disabled in the variant.
WITHOUT = {
    "ours with Keras' BatchNorm": "fuse_batchnorm",
    "ours with TensorFlow's gradient of depthwise filters": "use_fast_depthwise_gradient",
}
ROUNDS = 2


def measure_step(values: flags.FlagValues) -> list[dict]:
    """Measure a training step on 32 images, for a linear head on the trunk.

    Our step is compared with timm's in PyTorch, and with our step without each of its two faster
    operations. With the last 60 layers trained, our BatchNorm is frozen, as in every pretrained
    trunk, so its faster operation is not compared. timm trains BatchNorm in the trained layers.
    """
    timm = has_timm(values.timm_python)
    return [
        line
        for trunk in trunks_of(values)
        for depth in ("none", "-60")
        for line in _rows(trunk, depth, timm=timm, python=values.timm_python)
    ]


def _rows(trunk: str, depth: str, *, timm: bool, python: str | None) -> list[dict]:
    theirs, blocks = TIMM_TRUNKS[trunk]
    all_trained = depth == "none"
    ours = functools.partial(_our_step, trunk, depth)
    ways = {"ours": ours} | {
        name: functools.partial(ours, without)
        for name, without in WITHOUT.items()
        if all_trained or without != "fuse_batchnorm"
    }
    if timm:
        frozen = 0 if all_trained else blocks
        ways["timm's"] = functools.partial(_timm_step, python, theirs, frozen)
    best = best_in_turns(ways, ROUNDS)
    fast = best.pop("ours")
    trained = "all trained" if all_trained else "last 60 layers trained"
    what = f"{trunk}, 224 px, batch 32, {trained}: a training step, ours against"
    return [row(f"{what} {name}", fast, plain, "{:.1f}/s") for name, plain in best.items()]


def _our_step(trunk: str, depth: str, without: str = "") -> float:
    """Images per second of `our_step`, measured in its own process."""
    return last_numbers(module_command("step", trunk, depth, without))[0]


def _timm_step(python: str | None, name: str, frozen: int) -> float:
    return last_numbers(timm_command(python, TIMM, name, str(frozen)))[0]


def our_step(trunk: str, depth: str, without: str) -> float:
    """Images per second of a training step on one batch, the best of five.

    Args:
        trunk: name of the trunk.
        depth: the freeze depth.
        without: the function of learning/phases.py that is disabled; empty for none.
    """
    import tensorflow as tf

    from multitask.learning import phases
    from multitask.model.network import build_network
    from multitask.spec import Kind

    batchnorm = "train" if depth == "none" else "frozen"
    spec = trunk_spec(trunk, freeze_depth=depth, **{"trunk.batchnorm": batchnorm})
    task = spec.tasks[0].model_copy(update={"head": Kind(kind="linear")})
    spec = spec.model_copy(update={"tasks": (task,)})
    classes = {task.name: tuple(map(str, range(60)))}
    phase = phase_maker(build_network(spec, classes), spec, "finetune", classes, 100)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (32, 224, 224, 3)).astype(np.float32)
    labels = {task.name: rng.integers(0, 60, 32).astype(np.int32)}
    ones = {task.name: np.ones(32, np.float32)}
    batches = tf.data.Dataset.from_tensors((images, labels, ones)).cache().repeat()
    times = StepTimes()
    if without:
        with mock.patch.object(phases, without):
            model = phase().model
    else:
        model = phase().model
    model.fit(batches, steps_per_epoch=7, callbacks=[times], verbose=0, shuffle=False)
    return 32 / float(np.diff(times.ends)[1:].min())


if __name__ == "__main__":
    print(our_step(*sys.argv[1:]))
