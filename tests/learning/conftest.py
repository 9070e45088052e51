"""Prepared data and networks for cached features."""

import shutil

import pytest
from cached import IMAGES, STRONG, changed, images_of, new_network

from multitask.data.records import prepare


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Records that a test has made, for the others."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def prepared_data(tiny_data, tiny_spec, tiny_trunk, half_labelled, shelf):
    """A function: fields of the spec -> (prepared records, spec, network)."""

    def make(*, augment=None, head=None, seed=0, folder="data", **fields):
        data = tiny_data(rows=half_labelled(IMAGES), folder=folder)
        of_tasks = {"augment": augment or {}, "head": head or {"kind": "linear"}}
        settings = {"validation": 0.25, "features": {"cache": "on", "dtype": "float32"}} | fields
        spec = tiny_spec(of_tasks=of_tasks, **settings)
        trunk = spec.trunk.model_copy(update={"name": tiny_trunk})
        spec = spec.model_copy(update={"trunk": trunk})
        shutil.copytree(shelf, data / "records" / "multitask")
        prepared = prepare(spec, data, progress=False)
        if prepared.fresh:
            shutil.copytree(prepared.folder.parents[1], shelf, dirs_exist_ok=True)
        return prepared, spec, new_network(spec, prepared, seed)

    return make


@pytest.fixture(scope="session")
def made():
    """What tests that only read it share: what it is -> itself."""
    return {}


@pytest.fixture
def shared(prepared_data, made, tmp_path_factory):
    """A function: fields of the spec -> (prepared records, spec, network), the same records for
    all tests, and the same network for all of a head."""

    def make(*, head=None, **fields):
        kind = "pooled" if head is None else "map"
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = prepared_data(augment=STRONG, head=head, folder=folder)
        prepared, spec, network = made[kind]
        return prepared, changed(spec, **fields), network

    return make


@pytest.fixture
def plain_images(shared, made):
    """A function: split -> the images of the shared records, as the trunk gets them."""

    def read(split):
        if split not in made:
            made[split] = images_of(*shared()[:2], split)
        return made[split]

    return read
