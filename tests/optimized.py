"""Small networks and variables that an optimizer changes, and AdamW in NumPy."""

import keras
import numpy as np
from specs import spec_of

from multitask.learning.optimizers import ParameterGroup, build_optimizer, network_groups
from multitask.model.heads import build_head
from multitask.model.network import connect, trunk_and_heads
from multitask.spec import Kind, OptimizerOptions

SIZE = 32
RATES = {"trunk": 1e-3, "colour": 1e-2, "shape": 1e-20}  # shape all but stands still
LOGGED = {"trunk": "trunk_rate", "colour": "colour/rate", "shape": "shape/rate"}
DECAYS = {"trunk": 0.5, "colour": 0.0, "shape": 0.1}


def logged(rates):
    return {LOGGED[name]: rate for name, rate in rates.items()}


def make_spec(rates=RATES, decays=DECAYS, **changes):
    def part(name):
        return {
            "schedule": {"kind": "constant", "rate": rates[name]},
            "weight_decay": decays[name],
        }

    head = {"kind": "dense_stack", "units": [3], "dropout": [0]}
    return spec_of(
        *({"name": name} | part(name) for name in ("colour", "shape")),
        of_tasks={"head": head},
        **{"image_size": SIZE, "trunk": part("trunk")} | changes,
    )


def make_network(spec, seed=0):
    """A stand-in for the trunk, 32 px to a map of 7 x 7, and the spec's heads."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, name="block1a_conv")(inputs)
    x = keras.layers.BatchNormalization(name="block1a_bn")(x)
    x = keras.layers.Conv2D(4, 1, name="block2a_conv")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    heads = {task: build_head(spec, task, (7, 7, 4), 3) for task in spec.task_names}
    return connect(trunk, heads)


def make_optimizer(spec, model, phase="heads", plateau=1.0, steps_per_epoch=10):
    return build_optimizer(
        network_groups(spec, *trunk_and_heads(model)),
        rate_factor=getattr(spec.phases, phase).rate_factor,
        steps_per_epoch=steps_per_epoch,
        plateau=keras.Variable(plateau, trainable=False, dtype="float32"),
        order=model.trainable_variables,
        options=spec.optimizer,
    )


def drawn_gradients(model, step):
    rng = np.random.default_rng(step)
    return [rng.normal(size=v.shape).astype(np.float32) for v in model.trainable_variables]


def apply(optimizer, model, steps):
    for step in steps:
        gradients = [keras.ops.convert_to_tensor(g) for g in drawn_gradients(model, step)]
        optimizer.apply(gradients, model.trainable_variables)


def values(variables):
    return [v.numpy() for v in variables]


def owners(model):
    """id of a variable -> the part it belongs to."""
    trunk, heads = trunk_and_heads(model)
    networks = {"trunk": trunk} | heads
    return {id(v): name for name, part in networks.items() for v in part.trainable_variables}


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, of one variable; Keras' epsilon."""

    def __init__(self, value, rate, decay):
        self.value, self.rate, self.decay = value.astype(np.float64), rate, decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, gradient, rate=None):
        self.t += 1
        self.rate = self.rate if rate is None else rate
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient.astype(np.float64) ** 2
        rate = self.rate * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        self.value = self.value - self.rate * self.decay * self.value
        self.value = self.value - rate * self.m / (np.sqrt(self.v) + 1e-7)


BETAS_ROUNDED = 2e-5  # in double precision too, Keras takes powers of the betas in float32


def toy_part(variables, schedule=None, **changes):
    schedule = schedule or Kind(kind="constant", rate=0.1)
    return ParameterGroup(variables, schedule, "toy.toml: schedule", **changes)


def optimizer_of(groups, **options):
    return build_optimizer(
        groups,
        rate_factor=1.0,
        steps_per_epoch=2,
        plateau=keras.Variable(1.0, trainable=False),
        order=[variable for part in groups.values() for variable in part.variables],
        options=OptimizerOptions(**options),
    )


def toy_variables(dtype="float32", names=("kernel", "bias", "recurrent_kernel", "gamma")):
    rng = np.random.default_rng(7)
    return [
        keras.Variable(rng.normal(size=(5, 4 + i)), dtype=dtype, name=name)
        for i, name in enumerate(names)
    ]


def random_gradients(variables, step, scale=1.0):
    rng = np.random.default_rng([11, step])
    return [scale * rng.normal(size=v.shape) for v in variables]


def take_step(optimizer, variables, gradients):
    dtype = variables[0].dtype
    optimizer.apply([keras.ops.convert_to_tensor(g, dtype) for g in gradients], variables)
