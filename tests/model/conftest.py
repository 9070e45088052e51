"""A trunk with weights from each kind of file."""

import contextlib

import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet
from trunk_weights import SIZE, randomised, settings, write_legacy

from multitask.model import trunks
from multitask.model.trunks import build_trunk


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(5).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Stand-ins for Keras' file of ImageNet weights, in each format."""
    folder = tmp_path_factory.mktemp("weights")
    network = randomised(keras.applications.EfficientNetB0)
    paths = {
        "legacy": write_legacy(folder / "efficientnetb0_notop.h5", network),
        "weights": folder / "trunk.weights.h5",
        "keras": folder / "trunk.keras",
    }
    network.save_weights(paths["weights"])
    network.save(paths["keras"])
    return paths


@pytest.fixture(scope="session")
def made_once():
    """A function: name, network -> a context in which Keras has already made the trunk of that
    name. Of such a network `build_trunk` takes the description, and the weights of `imagenet`, to
    make another; to make both each time takes twice as long."""

    @contextlib.contextmanager
    def make(name, network):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(trunks.TRUNKS, name, lambda weights, input_shape: network)
            yield

    return make


@pytest.fixture(scope="session")
def plain_b0():
    """What Keras makes without weights."""
    return keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )


@pytest.fixture(scope="session")
def imagenet(files):
    """What Keras itself makes of its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(files["legacy"]))
        return build_trunk(settings("imagenet"), SIZE)


@pytest.fixture(scope="session")
def untrained():
    return build_trunk(settings("none"), SIZE)
