"""What happens around the import of TensorFlow."""

import gc

import pytest

from multitask.startup import without_collections


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_after_the_import(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError), without_collections():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
