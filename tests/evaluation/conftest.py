"""Gives the tests of this folder the run whose answers are known, as `known`."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def known():
    """The module tests/known_answers.py."""
    if "known_answers" not in sys.modules:
        file = Path(__file__).parent.parent / "known_answers.py"
        spec = importlib.util.spec_from_file_location("known_answers", file)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["known_answers"]


@pytest.fixture(scope="session")
def data(known, tmp_path_factory):
    return known.paint(tmp_path_factory.mktemp("colours"))
