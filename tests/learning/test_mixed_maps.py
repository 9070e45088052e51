"""Fine-tuning on mixed maps: mixed as the images would be, and keyed by epoch and step."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from logged import logged

from multitask.annexes.extensions import build_extensions
from multitask.annexes.mixing import MIXES, Mixing, build_mixing
from multitask.data.pipeline import training_dataset
from multitask.data.records import prepare
from multitask.learning.feature_batches import Features
from multitask.learning.losses import MaskedLoss, cross_entropy
from multitask.learning.training import train
from multitask.spec import override

# Lambda does not depend on the size of what is mixed.
MIX = {"kind": "mixup", "alpha": 2.0}
STEPS, EPOCHS = 5, 2  # 24 images in batches of 5


@pytest.fixture
def made(tiny_data, tiny_spec, half_labelled, tiny_trunk):
    """A function: tasks (by default all three), fields of the spec -> (spec, the data's folder)."""

    def make(*tasks, **fields):
        named = {"tasks": tasks} if tasks else {}
        spec = tiny_spec(of_tasks={"head": {"kind": "linear"}}, seed=5, **named)
        fields = {k.replace("__", "."): v for k, v in fields.items()}
        options = {
            "trunk.name": tiny_trunk,
            "freeze_depth": "block1a",
            "phases.finetune.epochs": EPOCHS,
            "phases.finetune.cache": "on",
        }
        return override(spec, options | fields), tiny_data(rows=half_labelled(24))

    return make


def taken(batches, count=STEPS * EPOCHS):
    return list(batches.take(count).as_numpy_iterator())


@pytest.fixture
def maps_and_images(made):
    """Features whose rows are noise, their spec, and the records of the same images."""
    spec, data = made(phases__finetune__mix=MIX)
    prepared = prepare(spec, data, progress=False)
    labels = prepared.table.labels
    assert len(labels) == 24 + 4  # the last four are of the test set
    labels = labels[prepared.table.rows("train")]
    maps = np.random.default_rng(0).normal(size=(EPOCHS * 24, 6, 6, 7)).astype(np.float16)
    features = Features(
        train=maps,
        validation=maps[:0],
        views=EPOCHS,
        labels=labels,
        validation_labels=labels[:0],
        extra=np.zeros((0, 6, 6, 7), np.float32),
        tasks=prepared.table.tasks,
        first_epoch=0,
    )
    return features, spec, prepared


def test_maps_are_mixed_as_the_images_would_be(maps_and_images):
    """Partners, labels and shares are those of the uncached phase; the maps are their mixtures."""
    features, spec, prepared = maps_and_images
    mix = build_mixing(spec)["finetune"]
    plain = taken(features.training_dataset(spec))
    mixed = taken(features.training_dataset(spec, transform=mix))
    of_images = taken(training_dataset(prepared, spec, transform=mix))
    changed = 0
    for (own, *_), (maps, labels, weights), (_, *wanted) in zip(
        plain, mixed, of_images, strict=True
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, [labels, weights], wanted)
        assert maps.shape == own.shape
        for i in np.flatnonzero((maps != own).any(axis=(1, 2, 3))):
            share = weights["style"][i, 1]
            partners = [own[i] * (1 - share) + other * share for other in own]
            assert min(np.abs(maps[i] - partner).max() for partner in partners) < 1e-5
            changed += 1
    assert changed > 30


def test_a_late_start_gives_the_same_mixtures(maps_and_images):
    features, spec, _ = maps_and_images
    batches = functools.partial(
        features.training_dataset, spec, transform=build_mixing(spec)["finetune"]
    )
    whole = taken(batches())
    for epoch, step in ((0, 3), (1, 2)):
        late = taken(batches(first_epoch=epoch, first_step=step), STEPS * (2 - epoch) - step)
        tf.nest.map_structure(np.testing.assert_array_equal, late, whole[STEPS * epoch + step :])


def test_only_fine_tuning_is_mixed_and_on_its_maps(made, tmp_path):
    """Of one task: that the labels of several are mixed alike is tested above."""
    histories, lines = {}, []
    mixes = {"none": None, "never": MIX | {"probability": 0.0}, "mixed": MIX}
    for name, mix in mixes.items():
        spec, data = made("style", phases__finetune__mix=mix)
        with logged(lines):
            result = train(
                spec,
                data,
                tmp_path / name,
                records_dir=tmp_path / "records",
                extensions=build_extensions(spec),
            )
        histories[name] = result.history
    assert sum(line.startswith("Maps of the first 7 layers") for line in lines) == len(mixes)
    of = {name: history.set_index("phase")["loss"] for name, history in histories.items()}
    for name in ("never", "mixed"):
        assert of[name]["heads"] == of["none"]["heads"]
    np.testing.assert_allclose(of["never"]["finetune"], of["none"]["finetune"], rtol=1e-6)
    assert (abs(of["mixed"]["finetune"] / of["none"]["finetune"] - 1) > 0.01).all()


def test_the_rejection_loss_of_a_mixture_is_that_of_its_own_kind():
    """Two others mixed are still by none of the classes: the score is trained as for each."""
    loss = MaskedLoss(cross_entropy, np.ones(3, np.float32), {}, rejection=1.0)
    wrapped = Mixing(MIXES["mixup"]).wrap_loss(loss)
    logits = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    labels = np.asarray([0, -2, -1, 2], np.int32)
    pairs = np.asarray([[0, 2], [-2, -2], [-1, -1], [2, 0]], np.int32)
    assert wrapped.rejection == 1.0
    score = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    wanted = (np.log1p(np.exp(-score[[0, 3]])).sum(), 2, np.log1p(np.exp(score[1])), 1)
    for given in (labels, pairs):
        np.testing.assert_allclose(wrapped.rejection_sums(given, logits), wanted, rtol=1e-5)
