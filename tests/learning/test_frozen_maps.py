"""Fine-tuning on cached maps of the frozen blocks: the numbers of the uncached phase."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from logged import logged

from multitask.annexes.extensions import build_extensions
from multitask.data.order import Shard
from multitask.data.pipeline import evaluation_dataset, training_dataset
from multitask.data.records import prepare
from multitask.data.table import TRAIN, VALIDATION
from multitask.learning import features, frozen_maps, training
from multitask.learning.checkpoints import Progress
from multitask.learning.extensions import Extensions
from multitask.learning.features import cache_maps
from multitask.learning.frozen_maps import finetune_cut, phase_cut
from multitask.learning.placement import Placement
from multitask.learning.training import train
from multitask.model.cut import cut_trunk
from multitask.model.network import build_network, trunk_and_heads
from multitask.model.trunks import TRUNKS
from multitask.spec import InputError, override

IMAGES, TRAINED, HELD = 25, 19, 6
STRONG = {"flip": True, "brightness": 0.3, "contrast": [0.5, 1.5], "crop": [0.5, 0.9]}
BASE = {
    "validation": 0.25,
    "freeze_depth": "block1a",
    "features.dtype": "float32",
    "phases.heads.epochs": 1,
    "phases.finetune.epochs": 2,
    "phases.finetune.cache": "on",
}


def three_blocks(weights, input_shape):
    """A trunk with a residual block; the dropout of its first block is 0."""
    inputs = x = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 255, name="rescaling")(x)
    x = keras.layers.Normalization(name="normalization")(x)
    x = keras.layers.Conv2D(6, 3, strides=4, name="block1a_conv")(x)
    x = keras.layers.BatchNormalization(name="block1a_bn")(x)
    x = keras.layers.Activation("swish", name="block1a_activation")(x)
    y = keras.layers.Conv2D(6, 3, padding="same", name="block2a_conv")(x)
    y = keras.layers.Dropout(0.3, name="block2a_drop")(y)
    x = keras.layers.Add(name="block2a_add")([x, y])
    x = keras.layers.Conv2D(8, 3, strides=2, name="block3a_conv")(x)
    return keras.Model(inputs, x)


@pytest.fixture
def made(tiny_data, tiny_spec, half_labelled, monkeypatch):
    """A function: fields of the spec -> (spec, folder of the data)."""
    monkeypatch.setitem(TRUNKS, "three", three_blocks)

    def make(**fields):
        data = tiny_data(rows=half_labelled(IMAGES))
        of_tasks = {"augment": STRONG, "head": {"kind": "linear", "dropout": 0.2}}
        spec = tiny_spec(tasks=("style",), of_tasks=of_tasks)
        spec = override(spec, BASE | {k.replace("__", "."): v for k, v in fields.items()})
        trunk = spec.trunk.model_copy(update={"name": "three"})
        return spec.model_copy(update={"trunk": trunk}), data

    return make


def new_network(spec, table):
    keras.utils.set_random_seed(spec.seed)
    return build_network(spec, table.classes)


def maps_of(made, **fields):
    """What is cached of a new network, with the network itself."""
    spec, data = made(**fields)
    prepared = prepare(spec, data, progress=False)
    network = new_network(spec, prepared.table)
    cut = finetune_cut(network, spec, Extensions())
    cached = cache_maps(cut, prepared, spec, first_epoch=3)
    return spec, prepared, network, cut, cached


def by_first_block(network, images):
    """What the frozen block gives, by Keras' `predict` on a model of its layers."""
    trunk = trunk_and_heads(network)[0]
    block = keras.Model(trunk.inputs[0], trunk.get_layer("block1a_activation").output)
    return block.predict(images, verbose=0)


def test_each_epoch_gets_the_maps_of_its_own_augmentation(made):
    spec, prepared, network, cut, cached = maps_of(made)
    assert cut.name == "block1a_activation"
    assert cached.train.shape == (2 * TRAINED, *cut.below.output_shape[1:])
    steps = -(-TRAINED // spec.batch_size)
    for epoch in (3, 4):
        options = {"first_epoch": epoch}
        mine = cached.training_dataset(spec, **options).take(steps).as_numpy_iterator()
        theirs = training_dataset(prepared, spec, **options).take(steps).as_numpy_iterator()
        for (maps, *rest), (images, *wanted) in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(maps, by_first_block(network, images), atol=1e-5)
            tf.nest.map_structure(np.testing.assert_array_equal, rest, wanted)
    plain = evaluation_dataset(prepared, spec, split=VALIDATION).as_numpy_iterator()
    images = np.concatenate([batch[0] for batch in plain])
    np.testing.assert_allclose(cached.validation, by_first_block(network, images), atol=1e-5)


def test_fewer_views_are_shared_by_the_epochs(made):
    spec, *_, cached = maps_of(made, phases__finetune__epochs=5, phases__finetune__views=2)
    assert cached.views == 2
    seen = []
    for epoch in range(3, 7):
        batches = cached.training_dataset(spec, first_epoch=epoch)
        steps = -(-TRAINED // spec.batch_size)
        rows = np.concatenate([x for x, *_ in batches.take(steps).as_numpy_iterator()])
        seen.append({row.tobytes() for row in rows})
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert not seen[0] & seen[1]
    # More views than epochs would never be used.
    assert maps_of(made, phases__finetune__views=9)[-1].views == 2


def trained(spec, data, workdir, **options):
    result = train(spec, data, workdir, **options)
    history = pd.read_csv(result.run.logs / "history.csv")
    with np.load(sorted(result.run.checkpoint.iterdir())[-1] / "variables.npz") as file:
        return history, dict(file)


@pytest.fixture(scope="module")
def uncached():
    """The history of the uncached training, once a test has made it."""
    return []


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 2e-3)])
def test_the_losses_are_those_of_the_uncached_phase(made, uncached, tmp_path, dtype, bound):
    """Dropout above the cut included: both draw the same masks."""
    spec, data = made(features__dtype=dtype, features__cache="off")
    mine, _ = trained(spec, data, tmp_path / "mine")
    if not uncached:
        plain = override(spec, {"phases.finetune.cache": "off"})
        uncached.append(trained(plain, data, tmp_path / "theirs")[0])
    (theirs,) = uncached
    assert list(mine["phase"]) == ["heads"] + ["finetune"] * 2
    columns = [name for name in mine if name.endswith("loss")]
    assert len(columns) > 3
    np.testing.assert_allclose(mine[columns], theirs[columns], rtol=bound)


def test_a_phase_that_was_stopped_goes_on_to_the_same_bits(made, tmp_path, monkeypatch):
    spec, data = made(phases__heads__epochs=0)
    whole = trained(spec, data, tmp_path / "whole")
    original, steps = training.Console.on_train_batch_end, -(-TRAINED // spec.batch_size)
    lines = []
    for calls_until_stop in (1, steps + 1):  # in the first epoch, and from there in the second
        calls = []

        def stop(self, batch, logs=None, calls=calls, last=calls_until_stop):
            calls.append(batch)
            original(self, batch, logs)
            if len(calls) == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, logged(lines):
            patch.setattr(training.Console, "on_train_batch_end", stop)
            with pytest.raises(KeyboardInterrupt):
                train(spec, data, tmp_path / "run", checkpoint_minutes=0)
    with logged(lines):
        again = trained(spec, data, tmp_path / "run")
    assert not any(line.startswith("Computing maps") for line in lines)  # those of `whole`
    columns = whole[0].columns.difference(["seconds", "images_per_second"])
    pd.testing.assert_frame_equal(again[0][columns], whole[0][columns])
    assert again[1].keys() == whole[1].keys()
    for name, values in whole[1].items():
        np.testing.assert_array_equal(again[1][name], values)


def test_the_best_model_is_a_whole_network(made, tmp_path):
    spec, data = made(phases__heads__epochs=0, phases__finetune__epochs=1)
    result = train(spec, data, tmp_path / "run")
    network = keras.saving.load_model(result.run.best_model, compile=False)
    assert network.input_shape == (None, spec.image_size, spec.image_size, 3)
    frozen = trunk_and_heads(network)[0].get_layer("block1a_conv").kernel.numpy()
    fresh = trunk_and_heads(new_network(spec, result.table))[0].get_layer("block1a_conv")
    np.testing.assert_array_equal(frozen, fresh.kernel.numpy())


# === When ===


@pytest.mark.parametrize(
    ("changes", "patches", "cached"),
    [
        ({}, {"FEW": TRAINED}, True),
        ({}, {"FEW": TRAINED + 1}, False),
        ({"phases__finetune__cache": "off"}, {"FEW": 0}, False),
        ({}, {"FEW": 0, "LEAST_SHARE": 0.999}, False),
        ({}, {"FEW": 0, "has_accelerator": lambda: True}, False),
        ({}, {"FEW": 0, "has_room_for_maps": lambda *_, **__: False}, False),
        ({"freeze_depth": "none"}, {"FEW": 0}, False),
        ({"mix": {"kind": "mixup"}}, {"FEW": 0}, False),
        ({"sampler": {"kind": "balanced"}}, {"FEW": 0}, False),
    ],
)
def test_auto_caches_where_it_pays(made, monkeypatch, changes, patches, cached):
    monkeypatch.setattr(frozen_maps, "LEAST_SHARE", 0.1)
    for name, value in patches.items():
        monkeypatch.setattr(frozen_maps, name, value)
    spec, data = made(**{"phases__finetune__cache": "auto"} | changes)
    prepared = prepare(spec, data, progress=False)
    network, progress = new_network(spec, prepared.table), Progress(phase="finetune")
    extensions = build_extensions(spec)
    cut = phase_cut(network, prepared, spec, progress, extensions)
    assert (cut is not None) is progress.on_maps is cached
    # The phase goes on as it began, such as on a disk that has filled up since.
    monkeypatch.setattr(frozen_maps, "has_room_for_maps", lambda *_, **__: not cached)
    progress.step = 1
    cut = phase_cut(network, prepared, spec, progress, extensions)
    assert (cut is not None) is cached
    progress.phase = "heads"
    assert phase_cut(network, prepared, spec, progress, extensions) is None


def test_auto_does_not_let_several_processes_decide_differently(made, monkeypatch):
    monkeypatch.setattr(frozen_maps, "LEAST_SHARE", 0.1)
    monkeypatch.setattr(frozen_maps, "FEW", 0)
    for option, cached in (("auto", False), ("on", True)):
        spec, data = made(phases__finetune__cache=option)
        prepared = prepare(spec, data, progress=False)
        progress, several = Progress(phase="finetune"), Placement(Shard(0, 2, 2))
        network = new_network(spec, prepared.table)
        cut = phase_cut(network, prepared, spec, progress, Extensions(), several)
        assert (cut is not None) is progress.on_maps is cached


def test_the_log_says_where_the_trunk_is_cut(made):
    lines = []
    with logged(lines):
        maps_of(made)
    (line,) = [line for line in lines if line.startswith("Computing ")]
    # The frozen block is the input, two layers of scaling, and three of the block itself.
    assert line.startswith("Computing maps of the first 6 layers, up to block1a_activation, 8×8×6 ")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"freeze_depth": "none"}, "no whole block is below the freeze depth, 0 layers"),
        ({"mix": {"kind": "mixup"}}, "mix changes the images of each batch"),
        (
            {"sampler": {"kind": "balanced"}},
            "the sampler repeats images within an epoch, each with its own augmentation",
        ),
    ],
)
def test_on_where_it_cannot_be_is_one_line_before_anything_is_written(
    made, tmp_path, fields, reason
):
    spec, data = made(**fields)
    with pytest.raises(InputError) as caught:
        train(spec, data, tmp_path / "run", extensions=build_extensions(spec))
    assert str(caught.value).endswith(f'phases.finetune.cache: "on": {reason}')
    assert not (tmp_path / "run").exists()


def test_room_is_a_quarter_of_what_is_free(made, monkeypatch):
    spec, data = made()
    prepared = prepare(spec, data, progress=False)
    cut = cut_trunk(trunk_and_heads(new_network(spec, prepared.table))[0], 5)
    needed = 4 * (2 * TRAINED + HELD) * int(np.prod(cut.below.output_shape[1:]))
    free = [0]

    class Usage:
        @property
        def free(self):
            return free[0]

    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: Usage())
    for free[0], expected in ((4 * needed, True), (4 * needed - 1, False)):
        assert features.has_room_for_maps(cut, prepared, spec, first_epoch=3) is expected
    assert len(prepared.table.rows(TRAIN)) == TRAINED
