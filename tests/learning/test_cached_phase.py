"""The phase on cached features learns what the phase on images does."""

import functools

import keras
import numpy as np
import pytest
from cached import (
    GRU,
    by_trunk,
    changed,
    images_of,
    new_network,
    slow,
)

from multitask.data.table import TRAIN
from multitask.learning.checkpoints import find_checkpoint
from multitask.learning.optimizers import GroupAdamW
from multitask.learning.training import train
from multitask.model.network import load_network, trunk_and_heads
from multitask.spec import Kind

HEADS = {
    "pooled": {
        "artist": {"kind": "dense_stack", "units": [16, 8], "dropout": [0.3, 0.2]},
        "style": {"kind": "residual_se", "units": 16, "residual_units": 8, "se_units": 4},
        "genre": {"kind": "linear", "dropout": 0.2},
    },
    "map": {"artist": GRU, "style": {"kind": "linear"}, "genre": GRU},
}
BOUNDS = {"float32": 1e-4, "float16": 1e-2}


def final_heads(spec, prepared, data_dir, workdir):
    """The heads after the phase; without a validation split the last epoch is kept."""
    result = train(spec, data_dir, workdir, phase="heads")
    progress = find_checkpoint(result.run.checkpoint).progress
    assert (progress.epoch, progress.finished) == (2, ["heads"])
    keras.utils.set_random_seed(1)  # dropout's masks, the same for all that are compared
    return trunk_and_heads(load_network(result.run.best_model, spec, prepared.table.classes))[1]


def weights_of(heads):
    """What multiplies (kernels, gammas): all weights but those that are 0 at the start.

    A bias before a BatchNorm has at times no gradient but for rounding, which Adam scales up.
    Nothing else follows from it but the moving mean.
    """
    return {
        f"{task}/{index}/{w.name}": w.numpy()
        for task, head in heads.items()
        for index, w in enumerate(head.trainable_weights)
        if w.name not in ("bias", "beta")
    }


def off(result, want):
    """The difference's norm, of the norm."""
    return np.linalg.norm(np.asarray(result) - np.asarray(want)) / np.linalg.norm(want)


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("pooled", ["float32"]),
        slow("pooled", ["float16"]),
        slow("map", ["float32", "float16"]),
    ],
)
def test_the_cached_phase_learns_what_the_uncached_one_does(
    prepared_data, tmp_path, kind, dtypes, monkeypatch
):
    """One plain view: 1e-4 of each weight in float32, and a bound for float16."""
    # Adam's own 1e-7 makes whole steps of gradients that are rounding alone, which is another's on
    # each CPU: with it the same bound held on some. What differs goes by 1 / epsilon.
    init = functools.partialmethod(GroupAdamW.__init__, epsilon=1e-4)
    monkeypatch.setattr(GroupAdamW, "__init__", init)
    prepared, spec, _ = prepared_data(validation=0.0, batch_size=4)
    tasks = [t.model_copy(update={"head": Kind(**HEADS[kind][t.name])}) for t in spec.tasks]
    spec = changed(spec.model_copy(update={"tasks": tuple(tasks)}), phases__heads__epochs=2)
    trained = {}
    for cache, dtype in (("off", "float32"), *(("on", dtype) for dtype in dtypes)):
        settings = changed(spec, features__cache=cache, features__dtype=dtype)
        workdir = tmp_path / f"{cache}-{dtype}"
        trained[cache, dtype] = final_heads(settings, prepared, tmp_path / "data", workdir)
    uncached = trained.pop(("off", "float32"))
    want = weights_of(uncached)
    network = new_network(spec, prepared, spec.seed)
    begin = weights_of(trunk_and_heads(network)[1])
    moved = min(off(begin[name], want[name]) for name in want)
    maps = by_trunk(network, images_of(prepared, spec, TRAIN), pooled=False)
    # As in training, where BatchNorm takes the batch's own mean, not the moving one.
    answers = {task: head(maps, training=True) for task, head in uncached.items()}
    for (_, dtype), heads in trained.items():
        result = weights_of(heads)
        assert result.keys() == want.keys()
        worst = max(off(result[name], want[name]) for name in want)
        logits = max(off(heads[t](maps, training=True), answers[t]) for t in answers)
        print(f"{kind} {dtype}: weights {worst:.1e}, logits {logits:.1e}; moved {moved:.1e}")
        assert worst < BOUNDS[dtype]
        assert logits < 10 * BOUNDS[dtype]
    assert moved > 5 * BOUNDS["float32"]  # they have learnt: the bound means something
