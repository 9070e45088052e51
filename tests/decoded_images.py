"""Images as `decode` and Pillow give them, and the refusals of `decode`."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from multitask.data import decode

SIZE_PX = 32


def by_pillow(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def decoded(data, target_px=SIZE_PX):
    return decode.decode_image(data, target_px=target_px).numpy()


def refusal(data):
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        decoded(data)
    line = str(raised.value)
    assert "\n" not in line
    assert "{{" not in line
    assert "[" not in line
    return line


def by_tf_data(samples):
    """Images, and the lines of the errors where there is none."""
    dataset = tf.data.Dataset.from_tensor_slices(samples)
    dataset = dataset.map(lambda data: decode.decode_image(data, target_px=SIZE_PX))
    assert dataset.element_spec == tf.TensorSpec([None, None, 3], tf.uint8)
    iterator = iter(dataset)
    for data in samples:
        try:
            yield next(iterator).numpy()
        except tf.errors.InvalidArgumentError as error:
            yield decode.error_text(error, data)
