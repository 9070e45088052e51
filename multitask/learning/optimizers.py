"""One optimizer for the one model; in it the trunk and each head have a schedule of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from multitask.learning.backend import on_tensorflow
from multitask.learning.schedules import ScaledSchedule, build_schedule
from multitask.model.trunks import group_of
from multitask.spec import TRUNK, DataSpec, Kind, OptimizerOptions, field_of

# Kernels shrink; biases (those of a GRU are matrices), normalisation (gamma, beta) and any other
# vector do not: ConvNeXt's LayerScale has one without a name.
NO_DECAY = ("bias", "gamma", "beta")
ALL_OFF = OptimizerOptions()
# x - x * share is x again in float32 where the share is no more than this.
ROUNDED_AWAY = 2.0**-25


@dataclass(frozen=True)
class Part:
    """What of a model shares one schedule and weight decay.

    Attributes:
        variables: the trainable ones.
        schedule: of the learning rate.
        place: where the schedule stands, for messages.
        weight_decay: decoupled.
        rate_factors: of each variable, on the schedule's rate; empty: 1 for all.
    """

    variables: list[keras.Variable]
    schedule: Kind
    place: str
    weight_decay: float = 0.0
    rate_factors: Sequence[float] = ()


def network_parts(
    spec: DataSpec, trunk: keras.Model, heads: Mapping[str, keras.Model]
) -> dict[str, Part]:
    """The trunk and each head, as a phase has frozen them."""
    owners = {TRUNK: (spec.trunk, trunk, spec.place(None, "trunk.schedule"))} | {
        task.name: (task, heads[task.name], spec.place(task.name, "schedule"))
        for task in spec.tasks
    }
    factors = {TRUNK: layer_rate_factors(trunk, spec.optimizer.trunk_layer_decay)}
    return {
        name: Part(
            network.trainable_variables,
            owner.schedule,
            place,
            owner.weight_decay,
            factors.get(name, ()),
        )
        for name, (owner, network, place) in owners.items()
    }


def layer_rate_factors(trunk: keras.Model, decay: float) -> list[float]:
    """Layer-wise decay of the learning rate (Howard & Ruder 2018, section 3.2), block by block.

    Args:
        trunk: its blocks are those of `group_of`, in the order of its layers.
        decay: from each block to the one before it; the last has the factor 1.

    Returns:
        One factor for each of the trunk's trainable variables.
    """
    blocks = list(dict.fromkeys(group_of(layer.name) for layer in trunk.layers))
    factor = {
        id(variable): decay ** (len(blocks) - 1 - blocks.index(group_of(layer.name)))
        for layer in trunk.layers
        for variable in layer.trainable_variables
    }
    return [factor[id(variable)] for variable in trunk.trainable_variables]


class PartAdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2) of one part.

    The formula is that of Keras' AdamW; under TensorFlow one kernel computes it, in place and in
    one pass, for which Keras takes about fifteen.

    Args:
        schedule: of the learning rate.
        part: its weight decay and rate factors; a factor counts for the decay too.
        options: of Keras' optimizers.
    """

    def __init__(self, schedule: ScaledSchedule, part: Part, **options):
        super().__init__(schedule, **options)
        self.schedule = schedule
        factors = part.rate_factors or [1.0] * len(part.variables)
        self.settings_of = {
            id(variable): (factor, part.weight_decay if _decays(variable) else 0.0)
            for variable, factor in zip(part.variables, factors, strict=True)
        }
        self.lowest_factor, self.highest_factor = min(factors), max(factors)

    def build(self, variables):
        super().build(variables)
        self.settings = [self.settings_of[id(variable)] for variable in variables]
        for variable, average in self.averaged:
            average.assign(variable)  # before the first step

    @property
    def averaged(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """Each variable and its moving average; none where there are no averages."""
        averages = self._model_variables_moving_average if self.use_ema else []
        return list(zip(self._trainable_variables, averages, strict=self.use_ema))

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        factor, decay = self.settings[index]
        rate = ops.cast(learning_rate, variable.dtype) * factor
        if not _has_fused_kernel(gradient, variable):
            if decay:
                self.assign_sub(variable, variable * (decay * rate))
            super().update_step(gradient, variable, rate)
            return
        if decay:
            share = decay * rate

            def shrink():
                variable.assign_sub(variable * share)

            tf.cond(share > ROUNDED_AWAY, shrink, lambda: None)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _decays(variable: keras.Variable) -> bool:
    return len(variable.shape) > 1 and not any(name in variable.name for name in NO_DECAY)


def _has_fused_kernel(gradient, variable) -> bool:
    """Whether TensorFlow's own Adam can make the step: on one device, dense, in float32."""
    return (
        on_tensorflow()
        and not tf.distribute.has_strategy()
        and isinstance(gradient, tf.Tensor)
        and gradient.dtype == variable.dtype == tf.float32
    )


class PartsOptimizer(keras.optimizers.MultiOptimizer):
    """The parts' optimizers as one.

    Args:
        parts: name -> part; together all that is trained.
        optimizers: name -> its optimizer.
        order: all that is trained, in the model's order: JAX hands over values without names.
        factors: what rates are multiplied by. As the optimizer's, they are no constants of JAX's
            compiled step.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        optimizers: Mapping[str, PartAdamW],
        order: Sequence[keras.Variable],
        factors: Sequence[keras.Variable],
    ):
        owner = {id(v): optimizers[name] for name, part in parts.items() for v in part.variables}
        super().__init__(lambda variable: owner[id(variable)], name="multi")
        self.parts, self.averages_are_in = dict(optimizers), False
        self.build(order)
        for factor in factors:
            self._track_variable(factor)

    @property
    def schedules(self) -> dict[str, ScaledSchedule]:
        """Part -> its schedule."""
        return {name: optimizer.schedule for name, optimizer in self.parts.items()}

    def use_averages(self, wanted: bool) -> None:
        """Put the moving averages in the weights' place, or the weights back into theirs.

        Both keep every bit. Nothing happens where there are no averages, or where it is so.
        """
        if wanted == self.averages_are_in:
            return
        for optimizer in self.optimizers:
            for variable, average in optimizer.averaged:
                value = np.array(ops.convert_to_numpy(variable))
                variable.assign(average)
                average.assign(value)
        self.averages_are_in = wanted

    def finalize_variable_values(self, var_list):
        """Nothing: at the end of a `fit` Keras would lose the weights to their averages here."""


def build_optimizer(
    parts: Mapping[str, Part],
    *,
    rate_factor: float,
    steps_per_epoch: int,
    plateau: keras.Variable,
    order: Sequence[keras.Variable],
    options: OptimizerOptions = ALL_OFF,
) -> PartsOptimizer:
    """The optimizer of a model's parts, built.

    Made anew from the spec, never from Keras' `get_config`, and then given its variables' values.
    Schedules count steps, whether a step updates the weights or accumulates; Adam's correction of
    its first steps counts updates.

    Args:
        parts: name -> part; together all that is trained. One without variables is left out.
        rate_factor: of the phase; multiplies every rate.
        steps_per_epoch: of this run.
        plateau: the factor that all schedules share.
        order: the model's `trainable_variables`.
        options: clipping, moving averages, accumulation; the same for each part. The norm that
            is clipped is a part's own, so that no task's outlier shortens another head's step.
    """
    parts = {name: part for name, part in parts.items() if part.variables}
    optimizers = {
        name: PartAdamW(
            build_schedule(
                part.schedule,
                place=part.place,
                steps_per_epoch=steps_per_epoch,
                rate_factor=rate_factor,
                plateau=plateau,
            ),
            part,
            global_clipnorm=options.clip_norm or None,
            use_ema=options.ema > 0,
            ema_momentum=options.ema,
            # Keras refuses 1, which is what it does without.
            gradient_accumulation_steps=options.accumulate if options.accumulate > 1 else None,
            name=f"adamw-{name}",
        )
        for name, part in parts.items()
    }
    own = [v for optimizer in optimizers.values() for v in optimizer.schedule.variables]
    return PartsOptimizer(parts, optimizers, order, [plateau, *own])


def current_rates(optimizer: PartsOptimizer) -> dict[str, float]:
    """`field_of` a part -> its learning rate at this step: `artist/rate`, `trunk_rate`.

    Where a part's rate decays layer by layer, that is the highest, and `lowest_rate` the lowest.
    """
    rates = {}
    for name, part in optimizer.parts.items():
        rates[field_of(name, "rate")] = float(part.learning_rate) * part.highest_factor
        if part.lowest_factor < part.highest_factor:
            rates[field_of(name, "lowest_rate")] = float(part.learning_rate) * part.lowest_factor
    return rates
