"""The two phases: `heads` on a frozen trunk, then `finetune` above the freeze depth."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multitask.backend import has_strategy, jit_compile, synchronise_batchnorm
from multitask.learning.balancer import LossBalancer
from multitask.learning.batchnorm import fuse_batchnorm
from multitask.learning.checkpoints import restore_variables
from multitask.learning.depthwise import use_fast_depthwise_gradient
from multitask.learning.engine import MultitaskModel
from multitask.learning.extensions import NO_EXTENSIONS, Extensions
from multitask.learning.losses import build_losses
from multitask.learning.optimizers import ParameterGroup, build_optimizer, network_groups
from multitask.model.cut import Cut
from multitask.model.network import connect, connect_above, connect_features, trunk_and_heads
from multitask.model.trunks import (
    batchnorm_trains,
    finalize_normalization,
    freeze_trunk,
    merged_frozen_count,
)
from multitask.spec import BALANCING, PHASES, TRUNK, DataSpec


@dataclass(frozen=True)
class PhaseModel:
    """One phase's view of the network.

    Attributes:
        model: compiled for the phase, for `fit`.
        plain: the same layers, not compiled, for saving.
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
        plain = {id(variable) for variable in self.plain.variables}
        more = [v for v in self.model.variables if id(v) not in plain]
        return [*self.plain.variables, *more, *self.model.optimizer.variables]

    def restore(self, folder: Path) -> list[np.ndarray]:
        """Assign a checkpoint's values, and return those of the metrics."""
        metrics = restore_variables(folder, self.variables)
        finalize_normalization(trunk_and_heads(self.plain)[0])
        return metrics


def seed_phase(spec: DataSpec, phase: str) -> None:
    """Seed the random numbers of a phase, independently of earlier phases."""
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
    cut: Cut | None = None,
    extensions: Extensions = NO_EXTENSIONS,
) -> PhaseModel:
    """Freeze the trunk for the phase, and compile.

    Args:
        network: from build_network or load_network; its layers are shared, not copied.
        spec: its freeze depths, losses and schedules are used.
        phase: one of PHASES.
        class_weights: task -> float32 [classes].
        steps_per_epoch: for schedules that count epochs.
        plateau: initial value of the factor on every learning rate.
        cached: train the heads on features of the frozen trunk.
        cut: train on maps of the layers below this cut of the trunk.
        extensions: the extensions of the spec.
    """
    trunk, heads = trunk_and_heads(network)
    layers = len(trunk.layers)
    frozen = layers if phase == PHASES[0] else merged_frozen_count(spec, trunk)
    freeze_trunk(trunk, frozen, batchnorm_trains=batchnorm_trains(spec.trunk))
    heads = {task: heads[task] for task in spec.task_names}
    groups = network_groups(spec, trunk, heads)
    _adapt_to_devices(network)
    extra = extensions.extra_loss
    projection = extra.projection() if extra else None
    if cached:
        graph = connect_features(heads, projection=projection)
    else:
        join, lower = (connect_above, cut.above) if cut else (connect, trunk)
        graph = join(lower, heads, infers=frozen == layers, projection=projection)
    balancer = extensions.balancer({task.name: task.weight for task in spec.tasks})
    if extra is not None and projection is not None:
        groups[f"_{extra.name}"] = dataclasses.replace(
            groups[TRUNK], variables=projection.trainable_variables, rate_factors=()
        )
    groups |= _balancer_group(balancer, spec)
    model = _multitask_model(graph, spec, phase, class_weights, balancer, extensions)
    factor = keras.Variable(plateau, trainable=False, dtype="float32", name="plateau")
    model.compile(
        optimizer=build_optimizer(
            groups,
            rate_factor=getattr(spec.phases, phase).rate_factor,
            steps_per_epoch=steps_per_epoch,
            plateau=factor,
            options=spec.optimizer,
            order=model.trainable_variables,
        ),
        jit_compile=jit_compile(),
    )
    return PhaseModel(model, connect(trunk, heads), frozen, factor)


def _adapt_to_devices(network: keras.Model) -> None:
    """Adapt the layers' operations to the devices of this process; their weights stay the same.

    Replicas share the statistics of BatchNorm. On a CPU, faster operations are used: BatchNorm of
    this network becomes a single operation, and the gradient of depthwise filters is replaced in
    the whole process.
    """
    synchronise_batchnorm(network, has_strategy())
    fuse_batchnorm(network)
    use_fast_depthwise_gradient()


def _balancer_group(balancer: LossBalancer, spec: DataSpec) -> dict[str, ParameterGroup]:
    """Return the parameter group of the balancer's own variables, if it has any."""
    if balancer.schedule is None:
        return {}
    place = spec.place(None, "balancing")
    return {BALANCING: ParameterGroup(balancer.trainable_variables, balancer.schedule, place)}


def _multitask_model(
    graph: keras.Model,
    spec: DataSpec,
    phase: str,
    class_weights: dict[str, np.ndarray],
    balancer: LossBalancer,
    extensions: Extensions,
) -> MultitaskModel:
    """Return the model of a graph with its losses, not compiled."""
    losses = build_losses(spec, class_weights)
    options: dict[str, Any] = {}
    if transform := extensions.batch_transforms.get(phase):
        losses = {task: transform.wrap_loss(loss) for task, loss in losses.items()}
        options["metric_targets"] = transform.metric_targets
    return MultitaskModel(
        graph.inputs[0],
        graph.output,
        losses=losses,
        balancer=balancer,
        classes={task: len(weights) for task, weights in class_weights.items()},
        extra_loss=extensions.extra_loss,
        **options,
    )
