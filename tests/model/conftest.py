"""A trunk with weights from each kind of file."""

import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet
from trunk_weights import SIZE, randomised, settings, write_legacy

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
def imagenet(files):
    """What Keras itself makes of its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(files["legacy"]))
        return build_trunk(settings("imagenet"), SIZE)


@pytest.fixture(scope="session")
def untrained():
    return build_trunk(settings("none"), SIZE)
