"""All options of the optimizer at once, under a compiled `fit`."""

import keras
import numpy as np
import pytest
from optimized import (
    SIZE,
    make_network,
    make_spec,
    values,
)

from multitask.learning.callbacks import Checkpointer, EpochRecorder
from multitask.learning.checkpoints import Progress, find_checkpoint, save_checkpoint
from multitask.learning.phases import prepare_phase
from multitask.model.network import load_network
from multitask.run import Run
from multitask.spec import TRUNK


def phase_of_all(seed):
    spec = make_spec(
        {"trunk": 1e-2, "colour": 1e-2, "shape": 1e-2},
        optimizer={"clip_norm": 0.05, "ema": 0.5, "trunk_layer_decay": 0.5, "accumulate": 2},
        trunk={"weights": "none", "schedule": {"kind": "constant", "rate": 1e-2}},
    )
    weights = {task: np.ones(3, np.float32) for task in spec.task_names}
    prepared = prepare_phase(
        make_network(spec, seed), spec, "finetune", class_weights=weights, steps_per_epoch=4
    )
    return spec, prepared


def batches(first, count):
    import tensorflow as tf

    rng = np.random.default_rng(3)
    x = rng.normal(size=(8 * 8, SIZE, SIZE, 3)).astype(np.float32)
    y = {task: rng.integers(0, 3, len(x)).astype(np.int32) for task in ("colour", "shape")}
    w = {task: np.ones(len(x), np.float32) for task in y}
    return tf.data.Dataset.from_tensor_slices((x, y, w)).batch(8).skip(first).take(count)


def fit(prepared, first, count, **options):
    prepared.model.fit(batches(first, count), verbose=0, shuffle=False, **options)


def test_a_run_of_two_fits_goes_on_bit_identically(tmp_path):
    _, whole = phase_of_all(seed=0)
    paths = [v.path for v in whole.variables]
    trained = len(whole.model.trainable_variables)
    for slot in ("average", "gradient_accumulator", "momentum", "velocity"):
        assert sum(path.endswith(slot) for path in paths) == trained > 10
    fit(whole, 0, 3)  # in the middle of an accumulation
    save_checkpoint(tmp_path, whole.variables, Progress())
    fit(whole, 3, 3)
    _, again = phase_of_all(seed=99)
    again.restore(find_checkpoint(tmp_path).folder)
    fit(again, 3, 3)
    for mine, other in zip(again.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.path)
    optimizer = whole.model.optimizer
    trunk = optimizer.group_optimizers[TRUNK]
    assert any(not np.array_equal(v, average) for v, average in trunk.averaged)


def test_the_averages_are_evaluated_and_saved_and_the_weights_trained(tmp_path):
    spec, prepared = phase_of_all(seed=0)
    progress = Progress(phase="finetune")
    run = Run(tmp_path, spec, tmp_path)
    kept = {}

    class Keep(keras.callbacks.Callback):
        """The weights as a test finds them; and as they were before."""

        def on_train_batch_end(self, batch, logs=None):
            kept["trained"] = values(self.model.trainable_variables)

        def on_test_batch_end(self, batch, logs=None):
            kept["tested"] = values(self.model.trainable_variables)

    received = []
    memory = EpochRecorder(run, progress, prepared, per_task=False)
    saver = Checkpointer(run, progress, prepared, minutes=60.0, received=received)
    validation = batches(6, 2)
    fit(prepared, 0, 5, validation_data=validation, callbacks=[memory, Keep(), saver])
    model = prepared.model
    for now, trained in zip(model.trainable_variables, kept["trained"], strict=True):
        np.testing.assert_array_equal(now, trained)
    assert not any(map(np.array_equal, kept["tested"], kept["trained"]))
    averages = {
        id(v): average.numpy()
        for o in model.optimizer.group_optimizers.values()
        for v, average in o.averaged
    }
    for variable, tested in zip(model.trainable_variables, kept["tested"], strict=True):
        np.testing.assert_array_equal(tested, averages[id(variable)])

    def assert_averages_are_saved():
        classes = dict.fromkeys(spec.task_names, ("a", "b", "c"))
        saved = load_network(run.best_model, spec, classes).trainable_variables
        for variable, mine in zip(saved, prepared.plain.trainable_variables, strict=True):
            np.testing.assert_array_equal(variable, averages[id(mine)])

    assert_averages_are_saved()
    # The metrics of the validation split are those of the saved model.
    scores = model.evaluate(validation, callbacks=[memory], return_dict=True, verbose=0)
    assert scores["loss"] == pytest.approx(progress.history[0]["val_loss"], rel=1e-6)
    assert model.evaluate(validation, verbose=0, return_dict=True)["loss"] == scores["loss"]
    run.best_model.unlink()
    memory.on_epoch_end(1, {"loss": 1.0})  # without a validation split
    assert_averages_are_saved()
    # Asked to stop in a test, it saves the weights.
    received.append(15)
    with pytest.raises(SystemExit):
        model.evaluate(validation, callbacks=[memory, saver], verbose=0)
    for now, trained in zip(model.trainable_variables, kept["trained"], strict=True):
        np.testing.assert_array_equal(now, trained)
    _, again = phase_of_all(seed=5)
    again.restore(find_checkpoint(run.checkpoint).folder)
    for mine, other in zip(again.variables, prepared.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.path)
