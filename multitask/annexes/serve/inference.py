"""The steps from an image file to the fields of a response, without HTTP."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from multitask.annexes.serve.neighbours import Attention, Similar
from multitask.annexes.serve.schemas import Candidate, SimilarImage, TaskAnswer
from multitask.data.conversion import as_readable
from multitask.data.decode import decode_image, reduce_image, resize_image
from multitask.errors import InputError
from multitask.evaluation.attention import overlay
from multitask.pages.image_sheets import data_uri
from multitask.serving.answers import Distance, answer
from multitask.serving.predictor import Predictor

# Decoding takes up to 11 bytes per pixel. Larger images are decoded one at a time.
LARGE_PIXELS = 16_000_000
PREVIEW_PX, QUALITY = 360, 85  # shorter side of an attention overlay


@dataclass(frozen=True)
class DecodedImage:
    """An image that waits for its prediction.

    Attributes:
        image: float32 [size, size, 3], the model's input.
        preview: uint8 [height, width, 3], upright, for the attention overlays; None if they
            were not requested.
    """

    image: np.ndarray
    preview: np.ndarray | None


@dataclass(frozen=True)
class ModelOutput:
    """The output of the model for one image.

    Attributes:
        probabilities: task -> float32 [classes].
        embedding: float32 [width], or None if the artifact has no embedding.
        attention: task -> float32 [h, w], or None if it was not requested.
    """

    probabilities: Mapping[str, np.ndarray]
    embedding: np.ndarray | None
    attention: Mapping[str, np.ndarray] | None


@functools.cache
def _decoder(
    max_pixels: int, *, size_px: int, how: str, reduced_px: int
) -> tf.types.experimental.ConcreteFunction:
    """Make the function from an image file's bytes to the model's input and the preview."""

    @tf.function(
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool)],
        autograph=False,
    )
    def decode(data: tf.Tensor, with_preview: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        upright = decode_image(data, target_px=reduced_px, max_pixels=max_pixels)
        preview = tf.cond(
            with_preview, lambda: _preview(upright), lambda: tf.zeros([0, 0, 3], tf.uint8)
        )
        return resize_image(upright, size_px=size_px, how=how, reduced_px=reduced_px), preview

    return decode.get_concrete_function()


class Inference:
    """Decodes images, runs the model on batches, and describes the results.

    Args:
        predictor: runs the model.
        thresholds: task -> the confidence below which a prediction is `uncertain`.
        max_pixels: largest number of pixels of an image.
        attention: computes attention maps; or the reason why there are none.
        similar: searches the training images; or the reason why there is no search.
        distance_limit: from `Predictor.distance_limit`.

    Attributes:
        small_pixels: largest number of pixels of an image that `read` decodes.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        thresholds: Mapping[str, float],
        max_pixels: int,
        attention: Attention | str,
        similar: Similar | str,
        distance_limit: float | None = None,
    ):
        self.predictor, self.thresholds = predictor, thresholds
        self.distance_limit = distance_limit
        self.attention, self.similar = attention, similar
        self.small_pixels = min(max_pixels, LARGE_PIXELS)
        self._max_pixels = max_pixels
        self._decode = _decoder(self.small_pixels, **predictor.resizing)
        self._decode_large = _decoder(max_pixels, **predictor.resizing)

    def read(self, data: bytes, with_preview: bool) -> DecodedImage:
        """Decode an image of at most `small_pixels`.

        Args:
            data: content of the image file.
            with_preview: whether the preview is needed.

        Raises:
            tf.errors.InvalidArgumentError: as `decode_image`.
        """
        return self._read(self._decode, self.small_pixels, data, with_preview)

    def read_large(self, data: bytes, with_preview: bool) -> DecodedImage:
        """Decode an image of at most `max_pixels`; otherwise the same as `read`."""
        return self._read(self._decode_large, self._max_pixels, data, with_preview)

    def _read(
        self,
        decode: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        max_pixels: int,
        data: bytes,
        with_preview: bool,
    ) -> DecodedImage:
        try:
            data = as_readable(
                data,
                target_px=self.predictor.reduced_px,
                convert_profiles=self.predictor.convert_profiles,
                max_pixels=max_pixels,
            )
        except InputError as error:
            raise tf.errors.InvalidArgumentError(None, None, str(error)) from None
        image, preview = decode(tf.constant(data), tf.constant(with_preview))
        return DecodedImage(image.numpy(), preview.numpy() if with_preview else None)

    def warm_up(self) -> ModelOutput:
        """Run all steps on a black pixel, so that no request waits for one-time loading."""
        pixel = tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy()
        image = self.read(pixel, not isinstance(self.attention, str))
        output = self.run([image])[0]
        searchable = output.embedding is not None and not isinstance(self.similar, str)
        self.describe(image, output, int(searchable))
        return output

    def run(self, images: Sequence[DecodedImage]) -> list[ModelOutput]:
        """Run the model on a batch.

        Args:
            images: at least one; attention is computed for those that have a preview.

        Returns:
            One output per image, in order.
        """
        pixels = np.stack([image.image for image in images])
        probabilities, embedding = self.predictor.answer(pixels)
        rows = [row for row, image in enumerate(images) if image.preview is not None]
        maps = self.attention(pixels[rows]) if rows and callable(self.attention) else {}
        return [
            ModelOutput(
                {task: values[row] for task, values in probabilities.items()},
                None if embedding is None else embedding[row],
                {t: values[rows.index(row)] for t, values in maps.items()} if row in rows else None,
            )
            for row in range(len(images))
        ]

    def describe(
        self,
        image: DecodedImage,
        output: ModelOutput,
        similar_count: int,
        sets: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Return the fields `unlike`, `distance`, `tasks` and `similar` of a `Prediction`.

        Args:
            image: the decoded image.
            output: of the model for this image.
            similar_count: number of similar images to search; 0: `similar` is None.
            sets: task -> threshold of its set of classes; None: no sets.
        """
        similar = None
        if similar_count and callable(self.similar) and output.embedding is not None:
            matches = self.similar(output.embedding, similar_count)
            similar = [SimilarImage(**match) for match in matches]
        distance = self._distance(output)
        tasks = {
            task: self._task_answer(task, image, output, sets[task] if sets else None, distance)
            for task in output.probabilities
        }
        return {
            "unlike": distance.unlike if distance else None,
            "distance": distance.value if distance else None,
            "tasks": tasks,
            "similar": similar,
        }

    def _distance(self, output: ModelOutput) -> Distance | None:
        """The distance of an image to the training images; None without a limit."""
        if output.embedding is None or self.distance_limit is None:
            return None
        distances = self.predictor.distances(output.embedding[None])
        return None if distances is None else Distance(float(distances[0]), self.distance_limit)

    def _task_answer(
        self,
        task: str,
        image: DecodedImage,
        output: ModelOutput,
        set_threshold: float | None,
        distance: Distance | None,
    ) -> TaskAnswer:
        threshold = self.thresholds[task]
        prediction = answer(
            output.probabilities[task],
            self.predictor.classes[task],
            min_confidence=threshold,
            set_threshold=set_threshold,
            distance=distance,
        )
        overlay_url = None
        if output.attention and image.preview is not None:
            coloured = overlay(image.preview, output.attention[task], how=self.predictor.how)
            overlay_url = data_uri(coloured, side_px=4 * PREVIEW_PX, quality=QUALITY)
        confidence = prediction["top"][0][1]
        return TaskAnswer(
            answer=prediction["answer"],
            uncertain=confidence < threshold,
            confidence=confidence,
            top=[Candidate(name=name, probability=p) for name, p in prediction["top"]],
            set=prediction.get("set"),
            attention=overlay_url,
        )


def _preview(image: tf.Tensor) -> tf.Tensor:
    """Reduce uint8 [height, width, 3] so that its longer side is at most 4 PREVIEW_PX."""
    image = reduce_image(image, shorter_px=PREVIEW_PX)
    sides = tf.shape(image)[:2]
    steps = (sides - 1) // (4 * PREVIEW_PX) + 1  # 1, except for extremely narrow images
    return image[:: steps[0], :: steps[1]]
