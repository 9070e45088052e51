"""The two phases: `heads` on a frozen trunk, then `finetune` of what the freeze depth leaves."""

from dataclasses import dataclass

import keras
import numpy as np

from multitask.learning.losses import build_losses, build_metrics
from multitask.learning.optimizers import build_optimizer
from multitask.model.network import connect, parts
from multitask.model.trunks import batchnorm_trains, freeze_trunk, merged_frozen_count
from multitask.spec import PHASES, DataSpec


@dataclass(frozen=True)
class PhaseModel:
    """One phase's view of the network.

    Attributes:
        model: compiled for the phase; what `fit` trains.
        plain: the same layers, not compiled; what is saved.
        frozen: how many of the trunk's first layers are frozen.
        plateau: the factor on every learning rate.
    """

    model: keras.Model
    plain: keras.Model
    frozen: int
    plateau: keras.Variable


def wanted_phases(phase: str) -> tuple[str, ...]:
    """`all` -> both."""
    return PHASES if phase == "all" else (phase,)


def prepare_phase(
    network: keras.Model,
    spec: DataSpec,
    phase: str,
    *,
    class_weights: dict[str, np.ndarray],
    steps_per_epoch: int,
    plateau: float = 1.0,
) -> PhaseModel:
    """Freeze the trunk as the phase asks, and compile.

    Args:
        network: from build_network or load_network; its layers are shared, not copied.
        spec: freeze depths, losses, schedules.
        phase: one of PHASES.
        class_weights: task -> float32 [classes].
        steps_per_epoch: for schedules that count epochs.
        plateau: the factor on every learning rate to start with.
    """
    trunk, heads = parts(network)
    layers = len(trunk.layers)
    frozen = layers if phase == "heads" else merged_frozen_count(spec, trunk)
    freeze_trunk(trunk, frozen, batchnorm_trains=batchnorm_trains(spec.trunk))
    heads = {task: heads[task] for task in spec.task_names}
    model = connect(trunk, heads, trunk_infers=frozen == layers)
    factor = keras.Variable(plateau, trainable=False, dtype="float32", name="plateau")
    model.compile(
        optimizer=build_optimizer(
            spec, model, phase, steps_per_epoch=steps_per_epoch, plateau=factor
        ),
        loss=build_losses(spec, class_weights),
        loss_weights={task.name: task.weight for task in spec.tasks},
        weighted_metrics=build_metrics(
            {task: len(weights) for task, weights in class_weights.items()}
        ),
        # XLA makes a step on a CPU several times slower.
        jit_compile="auto" if has_accelerator() else False,
    )
    return PhaseModel(model, connect(trunk, heads), frozen, factor)


def has_accelerator() -> bool:
    """Whether Keras would compute on anything but the CPU."""
    return any(not name.lower().startswith("cpu") for name in keras.distribution.list_devices())
