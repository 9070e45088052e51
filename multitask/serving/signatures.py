"""The functions of an export, as TensorFlow graphs of a trained model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from multitask.calibration import Calibration
from multitask.data.decode import decode_image, resize_image
from multitask.evaluation.attention import activation_maps
from multitask.model.network import ANSWERS, FEATURES, VECTORS, examined_model, trunk_and_heads
from multitask.runtimes.libraries import (
    EMBEDDING,
    IMAGE,
    KNOWN,
    PIXELS,
    SIGNATURE,
    output_of,
)
from multitask.spec import OTHER_ANSWER, SHARED

PIXELS_UINT8, EMBED, ATTENTION = "pixels_uint8", "embed", "attention"


def numbers(
    model: keras.Model, calibrations: Mapping[str, Calibration], *, flips: bool = False
) -> Any:
    """Build the function that every format can contain.

    Args:
        model: image -> {task: logits}, made of a trunk and heads.
        calibrations: task -> the temperature that its logits are divided by.
        flips: average the logits of the image and of its mirror image.

    Returns:
        A tf.function from `image`, float32 [batch, size, size, 3] in 0..255, to
        `{task}_probabilities` float32 [batch, classes] (calibrated), `{task}_logits` of the same
        shape (not calibrated) and `embedding` float32 [batch, width] (the pooled features). For an
        open task also `{task}_known` float32 [batch], the probability that the image has one of
        the classes; `{task}_probabilities` are then conditional on having one.
    """
    examined = examined_model(model, flips=flips)

    @tf.function(input_signature=[_images(*model.input_shape[1:])])
    def predict(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return _outputs(examined(image, training=False), calibrations)

    return predict


def signatures(
    model: keras.Model,
    classes: Mapping[str, Sequence[str]],
    *,
    how: str,
    reduced_px: int,
    calibrations: Mapping[str, Calibration],
    flips: bool = False,
) -> dict[str, Callable]:
    """Build all signatures of a SavedModel.

    Args:
        model: image -> {task: logits}, made of a trunk and heads.
        classes: task -> class names.
        how: the kind of resizing, one of decode.RESIZE_KINDS.
        reduced_px: the shorter side that an image is reduced to before.
        calibrations: task -> the temperature that its logits are divided by.
        flips: average the logits of the image and of its mirror image.

    Returns:
        Name -> a tf.function.

        - SIGNATURE: from `image_bytes`, string [batch], encoded images.
        - PIXELS, PIXELS_UINT8: from `image`, float32 or uint8 [batch, height, width, 3] in 0..255.
        - EMBED: from `image_bytes` to `embedding`, and `{task}_embedding`, the head's last hidden
          layer.
        - ATTENTION, where the trunk has a feature map: from `image` float32 of the model's size to
          `{task}_attention` float32 [batch, h, w] in 0..1, Grad-CAM of the predicted class.

        The first three return the outputs of `numbers` (SIGNATURE without the embedding), and
        `{task}_classes` string [classes] and `{task}_label` string [batch], the most probable
        class, or OTHER_ANSWER if it is more probable that the image has none of the classes.
    """
    resizer = _Resizer(model.input_shape[1], how, reduced_px)
    trunk, heads = trunk_and_heads(model)
    network = shared_network(examined_model(model, flips=flips))
    functions = _prediction_functions(network, classes, resizer, calibrations)
    functions[EMBED] = _embed(network, heads, resizer)
    if len(trunk.output_shape) == 4:
        functions[ATTENTION] = _attention(network, heads, _images(*model.input_shape[1:]))
    return functions


def shared_network(examined: keras.Model) -> Callable:
    """One function that all signatures call: the network is traced, written and loaded once."""

    @tf.function(input_signature=[_images(*examined.input_shape[1:])])
    def network(image: tf.Tensor) -> dict:
        return examined(image, training=False)

    return network


@dataclass(frozen=True)
class _Resizer:
    """Resizes images one by one, as their sizes differ.

    Attributes:
        size_px: side of the model's input.
        how: one of decode.RESIZE_KINDS.
        reduced_px: the shorter side that an image is reduced to before.
    """

    size_px: int
    how: str
    reduced_px: int

    def decode(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Decode and resize: string [batch] -> float32 [batch, size, size, 3]."""

        def load(data: tf.Tensor) -> tf.Tensor:
            return self._fit(decode_image(data, target_px=self.reduced_px))

        return self._map(load, image_bytes)

    def resize(self, image: tf.Tensor) -> tf.Tensor:
        """Resize: float32 [batch, height, width, 3] -> float32 [batch, size, size, 3]."""
        fits = tf.reduce_all(tf.shape(image)[1:3] == self.size_px)
        image = tf.cond(fits, lambda: image, lambda: self._map(self._fit, image))
        return tf.ensure_shape(image, [None, self.size_px, self.size_px, 3])

    def _fit(self, image: tf.Tensor) -> tf.Tensor:
        return resize_image(image, size_px=self.size_px, how=self.how, reduced_px=self.reduced_px)

    def _map(self, function: Callable, values: tf.Tensor) -> tf.Tensor:
        shape = [self.size_px, self.size_px, 3]
        return tf.map_fn(function, values, fn_output_signature=tf.TensorSpec(shape, tf.float32))


def _prediction_functions(
    network: Callable,
    classes: Mapping[str, Sequence[str]],
    resizer: _Resizer,
    calibrations: Mapping[str, Calibration],
) -> dict[str, Callable]:
    def with_names(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for task, class_names in classes.items():
            names = tf.constant(class_names)
            outputs[output_of(task, "classes")] = names
            label = tf.gather(names, tf.argmax(outputs[output_of(task, "logits")], axis=-1))
            if calibrations[task].rejection:
                known = outputs[output_of(task, KNOWN)]
                highest = tf.reduce_max(outputs[output_of(task, "probabilities")], axis=-1)
                label = tf.where(known * highest >= 1 - known, label, OTHER_ANSWER)
            outputs[output_of(task, "label")] = label
        return outputs

    @tf.function(input_signature=[_encoded_images()])
    def serve(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image = resizer.decode(image_bytes)
        outputs = _outputs(network(image), calibrations)
        del outputs[EMBEDDING]
        return with_names(outputs)

    @tf.function(input_signature=[_images(None, None, 3)])
    def pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        image = resizer.resize(image)
        return with_names(_outputs(network(image), calibrations))

    @tf.function(input_signature=[_images(None, None, 3, dtype=tf.uint8)])
    def pixels_uint8(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return pixels(tf.cast(image, tf.float32))

    return {SIGNATURE: serve, PIXELS: pixels, PIXELS_UINT8: pixels_uint8}


def _embed(network: Callable, heads: Mapping[str, keras.Model], resizer: _Resizer) -> Callable:
    @tf.function(input_signature=[_encoded_images()])
    def embed(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        vectors = network(resizer.decode(image_bytes))[VECTORS]
        return {
            EMBEDDING: vectors[SHARED],
            **{output_of(task, EMBEDDING): vectors[task] for task in heads},
        }

    return embed


def _attention(
    network: Callable, heads: Mapping[str, keras.Model], images: tf.TensorSpec
) -> Callable:
    @tf.function(input_signature=[images])
    def attention(image: tf.Tensor) -> dict[str, tf.Tensor]:
        values = network(image)
        return {
            output_of(task, ATTENTION): activation_maps(
                head, values[FEATURES], tf.argmax(values[ANSWERS][task], axis=-1)
            )
            for task, head in heads.items()
        }

    return attention


def _encoded_images() -> tf.TensorSpec:
    return tf.TensorSpec([None], tf.string, name="image_bytes")


def _images(*shape: int | None, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec([None, *shape], dtype, name=IMAGE)


def _outputs(values: dict, calibrations: Mapping[str, Calibration]) -> dict[str, tf.Tensor]:
    outputs = {EMBEDDING: values[VECTORS][SHARED]}
    for task, logits in values[ANSWERS].items():
        outputs[output_of(task, "logits")] = logits
        outputs[output_of(task, "probabilities")] = tf.nn.softmax(
            logits / calibrations[task].temperature
        )
        if rejection := calibrations[task].rejection:
            score = tf.reduce_logsumexp(logits, axis=-1)
            known = tf.sigmoid(rejection.slope * score + rejection.offset)
            outputs[output_of(task, KNOWN)] = known
    return outputs
