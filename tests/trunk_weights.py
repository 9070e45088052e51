"""Small trunks with random weights, in files as Keras serves and saves them."""

import h5py
import numpy as np
from keras.src.legacy.saving import legacy_h5_format
from specs import spec_of

from multitask.spec import Trunk

SIZE = 32
SCHEDULE = {"kind": "constant", "rate": 1e-3}
B0_LAYERS = 238  # with the Rescaling layer that ImageNet weights bring


def settings(weights, name="efficientnetb0", **options):
    return Trunk(name=name, weights=str(weights), schedule=SCHEDULE, **options)


def make_spec(*depths, freeze_depth=None):
    tasks = [{"name": f"task{i}", "freeze_depth": depth} for i, depth in enumerate(depths)]
    return spec_of(*tasks, freeze_depth=freeze_depth)


def features(trunk, images):
    return np.asarray(trunk(images, training=False))


def randomised(make):
    """A network as Keras makes it, with random weights.

    The statistics of the normalisation too, so that one that is lost shows.
    """
    network = make(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if weight.name in ("mean", "moving_mean", "beta", "bias"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
        elif weight.name in ("variance", "moving_variance", "gamma"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return network


def write_legacy(path, network):
    """As Keras serves its files."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return path
