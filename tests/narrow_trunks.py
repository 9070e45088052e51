"""Trunks of the architectures of keras.applications, with few blocks of few channels."""

from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.efficientnet import DEFAULT_BLOCKS_ARGS, EfficientNet
from keras.src.applications.efficientnet_v2 import EfficientNetV2

NARROW = {"include_top": False, "weights": None}


def narrow_efficientnet(weights, input_shape, drop_connect_rate=0.2, *, blocks=3):
    return EfficientNet(
        **NARROW,
        width_coefficient=0.25,
        depth_coefficient=1.0,
        blocks_args=DEFAULT_BLOCKS_ARGS[:blocks],  # of 3, a map of 25 places for a GRU to read
        default_size=32,
        drop_connect_rate=drop_connect_rate,
        input_shape=input_shape,
        name="narrow",
    )


def narrow_efficientnet_v2(weights, input_shape):
    return EfficientNetV2(
        **NARROW,
        width_coefficient=0.25,
        depth_coefficient=0.2,
        default_size=32,
        input_shape=input_shape,
        name="efficientnetv2-b0",  # whose blocks they are
        weights_name="efficientnetv2-b0",
    )


def narrow_convnext(weights, input_shape):
    return ConvNeXt(
        **NARROW,
        depths=(1, 1, 1, 1),
        projection_dims=(8, 8, 16, 16),
        input_shape=input_shape,
        name="convnext_narrow",
        weights_name="convnext_tiny",
    )
