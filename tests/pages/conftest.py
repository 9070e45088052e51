"""Fixtures of the tests of plots and pages."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def no_pyplot():
    """No figure stays open, and the settings of others stay as they were."""
    before = dict(plt.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before
