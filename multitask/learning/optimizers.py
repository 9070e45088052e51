"""One optimizer for the one model; in it the trunk and each head have a schedule of their own."""

from collections.abc import Mapping

import keras

from multitask.learning.schedules import build_schedule
from multitask.model.network import TRUNK
from multitask.spec import PHASES, DataSpec

# Kernels shrink; biases and normalisation (gamma, beta) do not.
NO_DECAY = ("bias", "gamma", "beta")


def build_optimizer(
    spec: DataSpec,
    trunk: keras.Model,
    heads: Mapping[str, keras.Model],
    phase: str,
    *,
    steps_per_epoch: int,
    plateau: keras.Variable,
) -> keras.optimizers.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), built for the model.

    Always made anew from the spec and then built, before its variables are loaded: Keras forgets
    the exclusion from weight decay in `get_config`.

    Args:
        spec: schedules and weight decays.
        trunk: its trainable variables, as the phase has frozen them.
        heads: task -> head.
        phase: one of PHASES.
        steps_per_epoch: of this run.
        plateau: the factor that all schedules share.
    """
    settings = {TRUNK: (spec.trunk, trunk, spec.place(None, "trunk.schedule"))} | {
        task.name: (task, heads[task.name], spec.place(task.name, "schedule"))
        for task in spec.tasks
    }
    rate_factor = getattr(spec.phases, phase).rate_factor
    assert phase in PHASES
    owner, optimizers, trained = {}, {}, []
    for name, (part, network, place) in settings.items():
        if not network.trainable_variables:
            continue
        schedule = build_schedule(
            part.schedule,
            place=place,
            steps_per_epoch=steps_per_epoch,
            rate_factor=rate_factor,
            plateau=plateau,
        )
        optimizers[name] = keras.optimizers.AdamW(
            schedule, weight_decay=part.weight_decay, name=f"{name}_adamw"
        )
        optimizers[name].exclude_from_weight_decay(var_names=list(NO_DECAY))
        owner |= {id(variable): name for variable in network.trainable_variables}
        trained += network.trainable_variables
    optimizer = keras.optimizers.MultiOptimizer(
        lambda variable: optimizers[owner[id(variable)]], name="multi"
    )
    optimizer.build(trained)
    optimizer.parts = {name: optimizers[name] for name in settings if name in optimizers}
    return optimizer


def current_rates(optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Part -> its learning rate at this step."""
    return {name: float(part.learning_rate) for name, part in optimizer.parts.items()}
