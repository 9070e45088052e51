"""Records that several tests read."""

import shutil

import pytest
from prepared import quiet

from multitask.data import records_builder


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Records of `tiny_data` and `tiny_spec`, made by the first test that needs them."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def there(tiny_data, tiny_spec, shelf):
    """(spec, folder) of a data set whose records are there."""
    spec, data = tiny_spec(), tiny_data()
    kept = shelf / "whole"
    if not kept.is_dir():
        quiet(spec, data, kept)
    shutil.copytree(kept, data / "records")
    return spec, data


@pytest.fixture
def parts(tiny_data, tiny_spec, shelf, monkeypatch):
    """The records of the same data in shards of 5 images."""
    monkeypatch.setattr(records_builder, "SHARD_IMAGES", 5)
    return quiet(tiny_spec(), tiny_data(folder="parts"), shelf / "parts")
