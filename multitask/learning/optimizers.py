"""One optimizer for the one model; in it the trunk and each head have a schedule of their own."""

from collections.abc import Mapping
from dataclasses import dataclass

import keras

from multitask.learning.schedules import build_schedule
from multitask.model.network import TRUNK
from multitask.spec import DataSpec, Kind

# Kernels shrink; biases (those of a GRU are matrices), normalisation (gamma, beta) and any other
# vector do not: ConvNeXt's LayerScale has one without a name.
NO_DECAY = ("bias", "gamma", "beta")


@dataclass(frozen=True)
class Part:
    """What of a model shares one schedule and weight decay.

    Attributes:
        variables: the trainable ones.
        schedule: of the learning rate.
        place: where the schedule stands, for messages.
        weight_decay: decoupled.
    """

    variables: list[keras.Variable]
    schedule: Kind
    place: str
    weight_decay: float = 0.0


def network_parts(
    spec: DataSpec, trunk: keras.Model, heads: Mapping[str, keras.Model]
) -> dict[str, Part]:
    """The trunk and each head, as a phase has frozen them."""
    owners = {TRUNK: (spec.trunk, trunk, spec.place(None, "trunk.schedule"))} | {
        task.name: (task, heads[task.name], spec.place(task.name, "schedule"))
        for task in spec.tasks
    }
    return {
        name: Part(network.trainable_variables, owner.schedule, place, owner.weight_decay)
        for name, (owner, network, place) in owners.items()
    }


def build_optimizer(
    parts: Mapping[str, Part],
    *,
    rate_factor: float,
    steps_per_epoch: int,
    plateau: keras.Variable,
) -> keras.optimizers.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), built for a model's parts.

    Always made anew from the spec and then built, before its variables are loaded: Keras forgets
    the exclusion from weight decay in `get_config`.

    Args:
        parts: name -> part; together all that is trained. One without variables is left out.
        rate_factor: of the phase; multiplies every rate.
        steps_per_epoch: of this run.
        plateau: the factor that all schedules share.
    """
    owner, optimizers, schedules, trained = {}, {}, {}, []
    for name, part in parts.items():
        if not part.variables:
            continue
        schedules[name] = build_schedule(
            part.schedule,
            place=part.place,
            steps_per_epoch=steps_per_epoch,
            rate_factor=rate_factor,
            plateau=plateau,
        )
        optimizers[name] = keras.optimizers.AdamW(
            schedules[name], weight_decay=part.weight_decay, name=f"{name}_adamw"
        )
        optimizers[name].exclude_from_weight_decay(
            var_list=[v for v in part.variables if len(v.shape) < 2],
            var_names=list(NO_DECAY),
        )
        owner |= {id(variable): name for variable in part.variables}
        trained += part.variables
    optimizer = keras.optimizers.MultiOptimizer(
        lambda variable: optimizers[owner[id(variable)]], name="multi"
    )
    optimizer.build(trained)
    optimizer.parts, optimizer.schedules = optimizers, schedules
    return optimizer


def current_rates(optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Part -> its learning rate at this step."""
    return {name: float(part.learning_rate) for name, part in optimizer.parts.items()}
