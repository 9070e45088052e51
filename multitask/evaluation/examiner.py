"""The outputs of a network that an evaluation needs, for one batch or for many images."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.model.inference import FEW, TENSORFLOW, Inference, fast_inference, is_usable
from multitask.model.network import VECTORS, examined_heads, examined_model, trunk_and_heads
from multitask.runtimes.libraries import AUTO
from multitask.trained import TrainedModel


def compiled(model: keras.Model) -> Callable:
    """Compile inference to one graph, several times as fast as `predict` on a CPU."""
    if keras.backend.backend() != "tensorflow":
        return lambda image: model.predict_on_batch(np.asarray(image))
    return tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)],
        jit_compile=False,
    )


class Examiner:
    """A network that returns what `examined_model` does.

    Args:
        network: from `connect` or `load_network`.
        runtime: the library that runs the trunk on many images, as in `fast_inference`.
    """

    def __init__(self, network: keras.Model, *, runtime: str = AUTO):
        self.network = network
        self._runtime = runtime
        self._trunk: Inference | None = None

    @cached_property
    def widths(self) -> dict[str, int]:
        """Name of each embedding -> its width."""
        vectors = examined_heads(self.network).output[VECTORS]
        return {name: x.shape[-1] for name, x in vectors.items()}

    def __call__(self, images: Any) -> dict[str, Any]:
        """Run the whole network in Keras on images, float32 [batch, size, size, 3]."""
        return self._whole(images)

    def map(self, batches: Iterable[Any], *, count: int) -> Iterator[dict[str, Any]]:
        """Run the network on batches of images, in their order.

        Args:
            batches: float32 [batch, size, size, 3] each.
            count: how many images there are; few are not worth converting the trunk.

        Yields:
            As `examined_model` returns it, without FEATURES.
        """
        if self._trunk is None and (count >= FEW or self._runtime not in (AUTO, TENSORFLOW)):
            trunk = trunk_and_heads(self.network)[0]
            self._trunk = fast_inference(trunk, runtime=self._runtime, images=count)
        if self._trunk is None or self._trunk.runtime == TENSORFLOW:
            return map(self._whole, batches)
        return map(self._heads, self._trunk.map(batches))

    @cached_property
    def _whole(self) -> Callable:
        return compiled(examined_model(self.network))

    @cached_property
    def _heads(self) -> Callable:
        return compiled(examined_heads(self.network))


def examiner_of(trained: TrainedModel) -> Examiner:
    """Return the examiner of a run's model.

    The library that the run names may be missing where the model is evaluated.
    """
    runtime = trained.spec.features.runtime
    return Examiner(trained.network, runtime=runtime if is_usable(runtime) else AUTO)
