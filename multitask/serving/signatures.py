"""What an export answers, as TensorFlow graphs over a trained model."""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from multitask.data.decode import decode_image, resize_image
from multitask.evaluation.attention import activation_maps
from multitask.evaluation.calibration import Calibration
from multitask.model.network import ANSWERS, FEATURES, VECTORS, examined_model, parts
from multitask.serving.runtimes import EMBEDDING, IMAGE, PIXELS, output_of
from multitask.spec import SHARED

SIGNATURE, PIXELS_UINT8, EMBED, ATTENTION = (
    "serving_default",
    "pixels_uint8",
    "embed",
    "attention",
)


def numbers(model: keras.Model, calibrations: Mapping[str, Calibration]) -> Callable:
    """What every format can carry.

    Args:
        model: image -> {task: logits}, of a trunk and heads.
        calibrations: task -> the temperature that its logits are divided by.

    Returns:
        A tf.function from `image`, float32 [batch, size, size, 3] in 0..255, to
        `{task}_probabilities` float32 [batch, classes] (calibrated), `{task}_logits` of the same
        shape (not calibrated) and `embedding` float32 [batch, width] (the pooled features).
    """
    examined = examined_model(model)

    @tf.function(input_signature=[_images(*model.input_shape[1:])])
    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return _answers(examined(image, training=False), calibrations)

    return answer


def signatures(
    model: keras.Model,
    classes: Mapping[str, Sequence[str]],
    *,
    how: str,
    calibrations: Mapping[str, Calibration],
) -> dict[str, Callable]:
    """All that a SavedModel is asked for.

    Args:
        model: image -> {task: logits}, of a trunk and heads.
        classes: task -> class names.
        how: pictures are made to fit, one of decode.RESIZE_KINDS.
        calibrations: task -> the temperature that its logits are divided by.

    Returns:
        Name -> a tf.function.

        - SIGNATURE: from `image_bytes`, string [batch], encoded pictures.
        - PIXELS, PIXELS_UINT8: from `image`, float32 or uint8 [batch, height, width, 3] in 0..255.
        - EMBED: from `image_bytes` to `embedding`, and `{task}_embedding`, the head's last hidden
          layer.
        - ATTENTION, where the trunk has a feature map: from `image` float32 of the model's size to
          `{task}_attention` float32 [batch, h, w] in 0..1, Grad-CAM of the class that it answers.

        The first three give what `numbers` does (SIGNATURE without the embedding), and
        `{task}_classes` string [classes] and `{task}_label` string [batch], the most probable.
    """
    size_px = model.input_shape[1]
    examined, heads = examined_model(model), parts(model)[1]
    encoded = [tf.TensorSpec([None], tf.string, name="image_bytes")]

    def load(data: tf.Tensor) -> tf.Tensor:
        return resize_image(decode_image(data, target_px=size_px), size_px=size_px, how=how)

    def fit(image: tf.Tensor) -> tf.Tensor:
        return resize_image(image, size_px=size_px, how=how)

    def each(function: Callable, values: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            function, values, fn_output_signature=tf.TensorSpec([size_px, size_px, 3], tf.float32)
        )

    def named(answers: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for task in heads:
            names = tf.constant(classes[task])
            answers[output_of(task, "classes")] = names
            answers[output_of(task, "label")] = tf.gather(
                names, tf.argmax(answers[output_of(task, "logits")], axis=-1)
            )
        return answers

    @tf.function(input_signature=encoded)
    def serve(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = _answers(examined(each(load, image_bytes), training=False), calibrations)
        del answers[EMBEDDING]
        return named(answers)

    @tf.function(input_signature=[_images(None, None, 3)])
    def pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        fits = tf.reduce_all(tf.shape(image)[1:3] == size_px)
        image = tf.cond(fits, lambda: image, lambda: each(fit, image))
        image = tf.ensure_shape(image, [None, size_px, size_px, 3])
        return named(_answers(examined(image, training=False), calibrations))

    @tf.function(input_signature=[_images(None, None, 3, dtype=tf.uint8)])
    def pixels_uint8(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return pixels(tf.cast(image, tf.float32))

    @tf.function(input_signature=encoded)
    def embed(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        vectors = examined(each(load, image_bytes), training=False)[VECTORS]
        return {
            EMBEDDING: vectors[SHARED],
            **{output_of(task, EMBEDDING): vectors[task] for task in heads},
        }

    @tf.function(input_signature=[_images(*model.input_shape[1:])])
    def attention(image: tf.Tensor) -> dict[str, tf.Tensor]:
        said = examined(image, training=False)
        return {
            output_of(task, ATTENTION): activation_maps(
                head, said[FEATURES], tf.argmax(said[ANSWERS][task], axis=-1)
            )
            for task, head in heads.items()
        }

    found = {SIGNATURE: serve, PIXELS: pixels, PIXELS_UINT8: pixels_uint8, EMBED: embed}
    if len(parts(model)[0].output_shape) == 4:
        found[ATTENTION] = attention
    return found


def _images(*shape: int | None, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec([None, *shape], dtype, name=IMAGE)


def _answers(said: dict, calibrations: Mapping[str, Calibration]) -> dict[str, tf.Tensor]:
    answers = {EMBEDDING: said[VECTORS][SHARED]}
    for task, logits in said[ANSWERS].items():
        answers[output_of(task, "logits")] = logits
        answers[output_of(task, "probabilities")] = tf.nn.softmax(
            logits / calibrations[task].temperature
        )
    return answers
