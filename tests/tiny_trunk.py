"""`multitask` with a trunk of two blocks beside the real ones, in a separate process.

    python tests/tiny_trunk.py DROPOUT CPUS train --trunk=tiny …

DROPOUT is the trunk's; CPUS is how many devices TensorFlow is to see.
"""

import sys


def two_blocks(weights, input_shape, dropout=0.2):
    import keras

    inputs = x = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 255, name="rescaling")(x)
    x = keras.layers.Normalization(name="normalization")(x)
    for block, filters in (("block1a", 6), ("block2a", 12)):
        x = keras.layers.Conv2D(filters, 3, strides=4, name=f"{block}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{block}_bn")(x)
        x = keras.layers.Activation("swish", name=f"{block}_activation")(x)
        x = keras.layers.Dropout(dropout, name=f"{block}_drop")(x)
    return keras.Model(inputs, x)


def main(dropout: float, cpus: int, command: list[str]) -> None:
    import functools

    from multitask.startup import import_tensorflow

    import_tensorflow(
        "jax" if {"--backend=jax", "--distribute=multihost"} & {*command} else "tensorflow"
    )
    import tensorflow as tf

    from multitask.__main__ import main as multitask
    from multitask.model.trunks import TRUNKS

    TRUNKS["tiny"] = functools.partial(two_blocks, dropout=dropout)
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * cpus
    tf.config.set_logical_device_configuration(cpu, logical)
    multitask(command)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
