"""The two phases: `heads` on a frozen trunk, then `finetune` of what the freeze depth leaves."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from multitask.learning.backend import (
    has_strategy,
    jit_compile,
    synchronise_batchnorm,
)
from multitask.learning.balancing import build_balancing
from multitask.learning.checkpoints import restore_variables
from multitask.learning.contrastive import projection
from multitask.learning.engine import MultitaskModel
from multitask.learning.losses import build_losses
from multitask.learning.optimizers import Part, build_optimizer, network_parts
from multitask.model.network import connect, connect_features, parts
from multitask.model.trunks import (
    batchnorm_trains,
    finalize_normalization,
    freeze_trunk,
    merged_frozen_count,
)
from multitask.spec import BALANCING, CONTRASTIVE, PHASES, TRUNK, DataSpec, Kind


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

    @property
    def variables(self) -> list[keras.Variable]:
        """Weights, seeds of dropout and all the optimizer's state, in a fixed order."""
        known = {id(variable) for variable in self.plain.variables}
        more = [v for v in self.model.variables if id(v) not in known]
        return [*self.plain.variables, *more, *self.model.optimizer.variables]

    def restore(self, folder: Path) -> list[np.ndarray]:
        """Take a checkpoint's values; returns those of the metrics."""
        metrics = restore_variables(folder, self.variables)
        finalize_normalization(parts(self.plain)[0])
        return metrics


def wanted_phases(spec: DataSpec, phase: str) -> tuple[str, ...]:
    """`all` -> both; a phase of 0 epochs is none."""
    asked = PHASES if phase == "all" else (phase,)
    return tuple(name for name in asked if getattr(spec.phases, name).epochs)


def seed_phase(spec: DataSpec, phase: str) -> None:
    """Seed dropout and all else that a phase draws: the same, whatever ran before."""
    keras.utils.set_random_seed(spec.seed + 1 + PHASES.index(phase))


def prepare_phase(
    network: keras.Model,
    spec: DataSpec,
    phase: str,
    *,
    class_weights: dict[str, np.ndarray],
    steps_per_epoch: int,
    plateau: float = 1.0,
    cached: bool = False,
) -> PhaseModel:
    """Freeze the trunk as the phase asks, and compile.

    Args:
        network: from build_network or load_network; its layers are shared, not copied.
        spec: freeze depths, losses, schedules.
        phase: one of PHASES.
        class_weights: task -> float32 [classes].
        steps_per_epoch: for schedules that count epochs.
        plateau: the factor on every learning rate to start with.
        cached: train the heads alone, on features of the frozen trunk.
    """
    trunk, heads = parts(network)
    layers = len(trunk.layers)
    frozen = layers if phase == "heads" else merged_frozen_count(spec, trunk)
    freeze_trunk(trunk, frozen, batchnorm_trains=batchnorm_trains(spec.trunk))
    heads = {task: heads[task] for task in spec.task_names}
    parts_of = network_parts(spec, trunk, heads)
    synchronise_batchnorm(network, has_strategy())
    contrastive, project = contrastive_weights(spec), None
    if contrastive:
        project = projection(spec.contrastive.width, name="contrastive")
    if cached:
        assert frozen == layers
        graph = connect_features(heads, projection=project)
    else:
        graph = connect(trunk, heads, trunk_infers=frozen == layers, projection=project)
    if project:
        parts_of[CONTRASTIVE] = dataclasses.replace(
            parts_of[TRUNK], variables=project.trainable_variables, rate_factors=()
        )
    balancing = build_balancing(
        spec.balancing,
        {task.name: task.weight for task in spec.tasks},
        place=spec.place(None, "balancing"),
    )
    if balancing.trainable_variables:
        constant = Kind(kind="constant", rate=balancing.rate)
        place = spec.place(None, "balancing")
        parts_of[BALANCING] = Part(balancing.trainable_variables, constant, place)

    model = MultitaskModel(
        graph.inputs[0],
        graph.output,
        losses=build_losses(spec, class_weights),
        balancing=balancing,
        classes={task: len(weights) for task, weights in class_weights.items()},
        contrastive=contrastive,
        temperature=spec.contrastive.temperature,
    )
    factor = keras.Variable(plateau, trainable=False, dtype="float32", name="plateau")
    model.compile(
        optimizer=build_optimizer(
            parts_of,
            rate_factor=getattr(spec.phases, phase).rate_factor,
            steps_per_epoch=steps_per_epoch,
            plateau=factor,
            options=spec.optimizer,
            order=model.trainable_variables,
        ),
        jit_compile=jit_compile(),
    )
    return PhaseModel(model, connect(trunk, heads), frozen, factor)


def contrastive_weights(spec: DataSpec) -> dict[str, float]:
    """Task -> weight of its contrastive loss, of those that have one."""
    weights = {t.name: spec.contrastive.weight * t.contrastive_weight for t in spec.tasks}
    return {task: weight for task, weight in weights.items() if weight}
