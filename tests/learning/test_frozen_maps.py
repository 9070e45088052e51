"""Fine-tuning on cached maps of the frozen blocks: the numbers of the uncached phase."""

import shutil

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


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Runs and records that several tests read, by name, once a test has made them."""
    return tmp_path_factory.mktemp("shelf")


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


@pytest.fixture
def maps_of(made, shelf):
    """A function: fields of the spec -> what is cached of a new network, with the network itself;
    of the same records each time."""

    def make(**fields):
        spec, data = made(**fields)
        prepared = prepare(spec, data, shelf / "records", progress=False)
        network = new_network(spec, prepared.table)
        cut = finetune_cut(network, spec, Extensions())
        cached = cache_maps(cut, prepared, spec, first_epoch=3)
        return spec, prepared, network, cut, cached

    return make


def first_block(network):
    """A function: images -> what the frozen block gives, by Keras on a model of its layers."""
    trunk = trunk_and_heads(network)[0]
    block = keras.Model(trunk.inputs[0], trunk.get_layer("block1a_activation").output)
    return block.predict_on_batch


def test_each_epoch_gets_the_maps_of_its_own_augmentation(maps_of):
    lines = []
    with logged(lines):
        spec, prepared, network, cut, cached = maps_of()
    # The frozen block is the input, two layers of scaling, and three of the block itself.
    (line,) = [line for line in lines if line.startswith("Computing ")]
    assert line.startswith("Computing maps of the first 6 layers, up to block1a_activation, 8×8×6 ")
    wanted_maps = first_block(network)
    assert cut.name == "block1a_activation"
    assert cached.train.shape == (2 * TRAINED, *cut.below.output_shape[1:])
    steps = -(-TRAINED // spec.batch_size)
    for epoch in (3, 4):
        options = {"first_epoch": epoch}
        mine = cached.training_dataset(spec, **options).take(steps).as_numpy_iterator()
        theirs = training_dataset(prepared, spec, **options).take(steps).as_numpy_iterator()
        for (maps, *rest), (images, *wanted) in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(maps, wanted_maps(images), atol=1e-5)
            tf.nest.map_structure(np.testing.assert_array_equal, rest, wanted)
    plain = evaluation_dataset(prepared, spec, split=VALIDATION).as_numpy_iterator()
    images = np.concatenate([batch[0] for batch in plain])
    np.testing.assert_allclose(cached.validation, wanted_maps(images), atol=1e-5)


def test_fewer_views_are_shared_by_the_epochs(maps_of):
    spec, *_, cached = maps_of(phases__finetune__epochs=5, phases__finetune__views=2)
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
    assert maps_of(phases__finetune__views=9)[-1].views == 2


def trained(spec, data, workdir, **options):
    result = train(spec, data, workdir, **options)
    history = pd.read_csv(result.run.logs / "history.csv")
    with np.load(sorted(result.run.checkpoint.iterdir())[-1] / "variables.npz") as file:
        return history, dict(file)


# The step of the phase finetune after which a run's folder is copied: in which of its epochs.
COPIED = {"in the first": 1, "in the second": -(-TRAINED // 5) + 1}


@pytest.fixture
def whole(made, shelf, monkeypatch):
    """(spec, data, an uninterrupted cached training); beside it, copies of its folder as they were
    after a step of each epoch of the cached phase, with a checkpoint of that step."""
    spec, made_data = made(features__cache="off")
    assert spec.batch_size == 5
    data, workdir = shelf / "data", shelf / "whole"
    if not workdir.exists():
        shutil.move(made_data, data)
        original, steps = training.Checkpointer.on_train_batch_end, []

        def copied(self, batch, logs=None):
            original(self, batch, logs)  # saves a checkpoint
            if self.progress.phase == "finetune":
                steps.append(batch)
                for name, number in COPIED.items():
                    if len(steps) == number:
                        shutil.copytree(workdir, shelf / name)

        with monkeypatch.context() as patch:
            patch.setattr(training.Checkpointer, "on_train_batch_end", copied)
            train(spec, data, workdir, records_dir=shelf / "records", checkpoint_minutes=0)
    return spec, data, workdir


def ended(workdir):
    """The history and the variables at the end of a training."""
    history = pd.read_csv(workdir / "logs" / "history.csv")
    with np.load(sorted((workdir / "checkpoint").iterdir())[-1] / "variables.npz") as file:
        return history, dict(file)


@pytest.fixture
def uncached(whole, shelf):
    """The history of the same training without the cache."""
    spec, data, _ = whole
    if not (shelf / "uncached").exists():
        plain = override(spec, {"phases.finetune.cache": "off"})
        train(plain, data, shelf / "uncached", records_dir=shelf / "records")
    return ended(shelf / "uncached")[0]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 2e-3)])
def test_the_losses_are_those_of_the_uncached_phase(whole, uncached, shelf, tmp_path, dtype, bound):
    """Dropout above the cut included: both draw the same masks."""
    spec, data, workdir = whole
    if dtype != "float32":
        workdir = tmp_path / "mine"
        other = override(spec, {"features.dtype": dtype})
        train(other, data, workdir, records_dir=shelf / "records")
    mine, _ = ended(workdir)
    assert list(mine["phase"]) == ["heads"] + ["finetune"] * 2
    columns = [name for name in mine if name.endswith("loss")]
    assert len(columns) > 3
    np.testing.assert_allclose(mine[columns], uncached[columns], rtol=bound)


@pytest.mark.parametrize("moment", COPIED)
def test_a_phase_that_was_stopped_goes_on_to_the_same_bits(whole, shelf, tmp_path, moment):
    spec, data, workdir = whole
    shutil.copytree(shelf / moment, tmp_path / "run")
    lines = []
    with logged(lines):
        train(spec, data, tmp_path / "run", records_dir=shelf / "records")
    epoch = 1 + list(COPIED).index(moment)
    assert any(f", resuming after step 1 of epoch {epoch}." in line for line in lines)
    assert not any(line.startswith("Computing maps") for line in lines)  # those of `whole`
    mine, theirs = ended(tmp_path / "run"), ended(workdir)
    columns = theirs[0].columns.difference(["seconds", "images_per_second"])
    pd.testing.assert_frame_equal(mine[0][columns], theirs[0][columns])
    assert mine[1].keys() == theirs[1].keys()
    for name, values in theirs[1].items():
        np.testing.assert_array_equal(mine[1][name], values)


def test_the_best_model_is_a_whole_network(made, shelf, uncompiled, tmp_path):
    spec, data = made(phases__heads__epochs=0, phases__finetune__epochs=1, batch_size=IMAGES)
    with uncompiled():
        result = train(spec, data, tmp_path / "run", records_dir=shelf / "records")
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
def test_auto_caches_where_it_pays(made, shelf, monkeypatch, changes, patches, cached):
    monkeypatch.setattr(frozen_maps, "LEAST_SHARE", 0.1)
    for name, value in patches.items():
        monkeypatch.setattr(frozen_maps, name, value)
    spec, data = made(**{"phases__finetune__cache": "auto"} | changes)
    prepared = prepare(spec, data, shelf / "records", progress=False)
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


def test_auto_does_not_let_several_processes_decide_differently(made, shelf, monkeypatch):
    monkeypatch.setattr(frozen_maps, "LEAST_SHARE", 0.1)
    monkeypatch.setattr(frozen_maps, "FEW", 0)
    for option, cached in (("auto", False), ("on", True)):
        spec, data = made(phases__finetune__cache=option)
        prepared = prepare(spec, data, shelf / "records", progress=False)
        progress, several = Progress(phase="finetune"), Placement(Shard(0, 2, 2))
        network = new_network(spec, prepared.table)
        cut = phase_cut(network, prepared, spec, progress, Extensions(), several)
        assert (cut is not None) is progress.on_maps is cached


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


def test_room_is_a_quarter_of_what_is_free(made, shelf, monkeypatch):
    spec, data = made()
    prepared = prepare(spec, data, shelf / "records", progress=False)
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
