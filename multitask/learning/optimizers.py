"""One optimizer for the one model, in which the trunk and each head have their own schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from multitask.backend import on_tensorflow
from multitask.learning.schedules import ScaledSchedule, build_schedule
from multitask.model.trunks import group_of
from multitask.spec import TRUNK, DataSpec, Kind, OptimizerOptions, field_of

# Weight decay applies to kernels only: not to biases (those of a GRU are matrices), normalisation
# (gamma, beta) or any other vector (that of ConvNeXt's LayerScale has no name).
NO_DECAY = ("bias", "gamma", "beta")
ALL_OFF = OptimizerOptions()
# Private attributes of a built keras.optimizers.Adam and MultiOptimizer.
PRIVATE = (
    "_momentums",
    "_velocities",
    "_trainable_variables",
    "_get_variable_index",
    "_track_variable",
)
PRIVATE_AVERAGES = "_model_variables_moving_average"  # with `use_ema` only
# x - x * share equals x in float32 if the share is at most this.
ROUNDED_AWAY = 2.0**-25


@dataclass(frozen=True)
class ParameterGroup:
    """Variables that share one schedule and weight decay.

    Attributes:
        variables: trainable variables.
        schedule: schedule of the learning rate.
        place: place of the schedule in the spec, for messages.
        weight_decay: decoupled weight decay.
        rate_factors: each variable's factor on the schedule's rate; empty: 1 for all.
    """

    variables: list[keras.Variable]
    schedule: Kind
    place: str
    weight_decay: float = 0.0
    rate_factors: Sequence[float] = ()


def network_groups(
    spec: DataSpec, trunk: keras.Model, heads: Mapping[str, keras.Model]
) -> dict[str, ParameterGroup]:
    """Return the groups of the trunk and of each head, once a phase has frozen the trunk."""
    owners = {TRUNK: (spec.trunk, trunk, spec.place(None, "trunk.schedule"))} | {
        task.name: (task, heads[task.name], spec.place(task.name, "schedule"))
        for task in spec.tasks
    }
    factors = {TRUNK: layer_rate_factors(trunk, spec.optimizer.trunk_layer_decay)}
    return {
        name: ParameterGroup(
            network.trainable_variables,
            owner.schedule,
            place,
            owner.weight_decay,
            factors.get(name, ()),
        )
        for name, (owner, network, place) in owners.items()
    }


def layer_rate_factors(trunk: keras.Model, decay: float) -> list[float]:
    """Compute layer-wise decay of the learning rate (Howard & Ruder 2018, sec. 3.2), by block.

    Args:
        trunk: its blocks are those of `group_of`, in the order of its layers.
        decay: factor from each block to the one before it; the last block has the factor 1.

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


class GroupAdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2) for one group.

    The formula is that of Keras' AdamW. With TensorFlow one kernel computes it in place, in one
    pass; Keras needs about fifteen passes.

    PRIVATE lists the private attributes of Keras' optimizers that this file, and no other, uses.
    Without Adam's slots the step falls back to Keras' own step. The other attributes have no public
    alternative; tests/learning/test_optimizers.py names the one that a new Keras lacks.

    Args:
        schedule: schedule of the learning rate.
        group: its weight decay and rate factors; a factor applies to the decay too.
        options: options of Keras' optimizers.
    """

    def __init__(self, schedule: ScaledSchedule, group: ParameterGroup, **options: Any):
        super().__init__(schedule, **options)
        self.schedule = schedule
        factors = group.rate_factors or [1.0] * len(group.variables)
        self.settings_of = {
            id(variable): (factor, group.weight_decay if _decays(variable) else 0.0)
            for variable, factor in zip(group.variables, factors, strict=True)
        }
        self.lowest_factor, self.highest_factor = min(factors), max(factors)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the optimizer's variables."""
        super().build(variables)
        self.settings = [self.settings_of[id(variable)] for variable in variables]
        for variable, average in self.averaged:
            average.assign(variable)  # the averages start at the initial weights

    @property
    def averaged(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """Pairs of a variable and its moving average; empty where averages are off."""
        averages = self._model_variables_moving_average if self.use_ema else []
        return list(zip(self._trainable_variables, averages, strict=self.use_ema))

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Update the group; do nothing if the loss does not depend on it, as with weight 0."""
        if any(gradient is not None for gradient in grads):
            super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """Update one variable."""
        index = self._get_variable_index(variable)
        factor, decay = self.settings[index]
        rate = ops.cast(learning_rate, variable.dtype) * factor
        if not (_has_slots(self) and _has_fused_kernel(gradient, variable)):
            if decay:
                self.assign_sub(variable, variable * (decay * rate))
            super().update_step(gradient, variable, rate)
            return
        if decay:
            share = decay * rate

            def shrink() -> None:
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


def _has_slots(optimizer: keras.optimizers.Adam) -> bool:
    """Whether Keras' Adam keeps its slots where this file expects them."""
    return hasattr(optimizer, "_momentums") and hasattr(optimizer, "_velocities")


def _decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies to a variable."""
    return len(variable.shape) > 1 and not any(name in variable.name for name in NO_DECAY)


def _has_fused_kernel(gradient: Any, variable: keras.Variable) -> bool:
    """Whether TensorFlow's Adam kernel can make the step: on one device, dense, in float32."""
    return (
        on_tensorflow()
        and not tf.distribute.has_strategy()
        and isinstance(gradient, tf.Tensor)
        and gradient.dtype == variable.dtype == tf.float32
    )


class GroupedOptimizer(keras.optimizers.MultiOptimizer):
    """The groups' optimizers as one.

    Args:
        groups: name -> group; together they have all trainable variables.
        optimizers: name -> its optimizer.
        order: all trainable variables, in the model's order: JAX passes values without names.
        factors: variables that rates are multiplied by. The optimizer owns them, so that JAX's
            compiled step does not treat them as constants.

    Attributes:
        group_optimizers: name -> its optimizer.
    """

    def __init__(
        self,
        groups: Mapping[str, ParameterGroup],
        optimizers: Mapping[str, GroupAdamW],
        order: Sequence[keras.Variable],
        factors: Sequence[keras.Variable],
    ):
        owner = {id(v): optimizers[name] for name, group in groups.items() for v in group.variables}
        super().__init__(lambda variable: owner[id(variable)], name="multi")
        self.group_optimizers, self.averages_are_in = dict(optimizers), False
        self.build(order)
        for factor in factors:
            self._track_variable(factor)

    @property
    def schedules(self) -> dict[str, ScaledSchedule]:
        """Group -> its schedule."""
        return {name: optimizer.schedule for name, optimizer in self.group_optimizers.items()}

    def use_averages(self, use: bool) -> None:
        """Swap the weights and their moving averages, or swap them back.

        The swap is exact. It does nothing if averages are off, or already as requested.
        """
        if use == self.averages_are_in:
            return
        for optimizer in self.optimizers:
            for variable, average in optimizer.averaged:
                value = np.array(ops.convert_to_numpy(variable))
                variable.assign(average)
                average.assign(value)
        self.averages_are_in = use

    def finalize_variable_values(self, var_list: Any) -> None:
        """Do nothing: here Keras would overwrite the weights with their averages after a `fit`."""


def build_optimizer(
    groups: Mapping[str, ParameterGroup],
    *,
    rate_factor: float,
    steps_per_epoch: int,
    plateau: keras.Variable,
    order: Sequence[keras.Variable],
    options: OptimizerOptions = ALL_OFF,
) -> GroupedOptimizer:
    """Build the optimizer of a model's parameter groups.

    It is made from the spec, never from Keras' `get_config`; a checkpoint's values are assigned
    later. Schedules count steps, whether a step updates the weights or accumulates; Adam's bias
    correction counts updates.

    Args:
        groups: name -> group; together they have all trainable variables. Empty ones are excluded.
        rate_factor: factor of the phase on every rate.
        steps_per_epoch: number of steps per epoch of this run.
        plateau: the factor that all schedules share.
        order: the model's `trainable_variables`.
        options: clipping, moving averages, accumulation; the same for each group. Norms are
            clipped per group, so that no task's outlier shortens another head's step.
    """
    groups = {name: group for name, group in groups.items() if group.variables}
    optimizers = {
        name: GroupAdamW(
            build_schedule(
                group.schedule,
                place=group.place,
                steps_per_epoch=steps_per_epoch,
                rate_factor=rate_factor,
                plateau=plateau,
            ),
            group,
            global_clipnorm=options.clip_norm or None,
            use_ema=options.ema > 0,
            ema_momentum=options.ema,
            # Keras refuses 1; None means the same.
            gradient_accumulation_steps=options.accumulate if options.accumulate > 1 else None,
            name=f"adamw-{name}",
        )
        for name, group in groups.items()
    }
    own = [v for optimizer in optimizers.values() for v in optimizer.schedule.variables]
    return GroupedOptimizer(groups, optimizers, order, [plateau, *own])


def current_rates(optimizer: GroupedOptimizer) -> dict[str, float]:
    """Return each group's learning rate at this step, by `field_of`: `{task}/rate`, `trunk_rate`.

    If a group's rate decays layer by layer, `rate` is the highest, and `lowest_rate` the lowest.
    """
    rates = {}
    for name, group in optimizer.group_optimizers.items():
        rate = float(group.learning_rate)
        rates[field_of(name, "rate")] = rate * group.highest_factor
        if group.lowest_factor < group.highest_factor:
            rates[field_of(name, "lowest_rate")] = rate * group.lowest_factor
    return rates
