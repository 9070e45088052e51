"""One optimizer for the one model; in it the trunk and each head have a schedule of their own."""

import keras

from multitask.learning.schedules import build_schedule
from multitask.model.network import TRUNK, parts
from multitask.spec import PHASES, DataSpec

# Kernels shrink; biases (those of a GRU are matrices), normalisation (gamma, beta) and any other
# vector do not: ConvNeXt's LayerScale has one without a name.
NO_DECAY = ("bias", "gamma", "beta")


def build_optimizer(
    spec: DataSpec,
    model: keras.Model,
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
        model: its trainable variables, as the phase has frozen them.
        phase: one of PHASES.
        steps_per_epoch: of this run.
        plateau: the factor that all schedules share.
    """
    trunk, heads = parts(model)
    settings = {TRUNK: (spec.trunk, trunk, spec.place(None, "trunk.schedule"))} | {
        task.name: (task, heads[task.name], spec.place(task.name, "schedule"))
        for task in spec.tasks
    }
    rate_factor = getattr(spec.phases, phase).rate_factor
    assert phase in PHASES
    owner, optimizers = {}, {}
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
        optimizers[name].exclude_from_weight_decay(
            var_list=[v for v in network.trainable_variables if len(v.shape) < 2],
            var_names=list(NO_DECAY),
        )
        owner |= {id(variable): name for variable in network.trainable_variables}
    optimizer = keras.optimizers.MultiOptimizer(
        lambda variable: optimizers[owner[id(variable)]], name="multi"
    )
    optimizer.build(model.trainable_variables)
    optimizer.parts = {name: optimizers[name] for name in settings if name in optimizers}
    return optimizer


def current_rates(optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Part -> its learning rate at this step."""
    return {name: float(part.learning_rate) for name, part in optimizer.parts.items()}
