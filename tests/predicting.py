"""The temperatures of a calibrated run, and the exit status of `predict`."""

import pytest

from multitask.__main__ import main

TEMPERATURES = {"shade": 2.5, "warmth": 0.5, "empty": 1.0}
STEPS = [[0.3, 0.6, 1.0], [0.5, 0.8, 0.7], [0.7, 0.9, 0.4]]


def stopped(*argv):
    """The exit status of a `predict` that fails."""
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, argv)])
    return caught.value.code
