"""An exported run, and an application that serves all that it has."""

import shutil

import pytest

from multitask.annexes.serve.neighbours import load_attention, similar_images
from multitask.run import open_run
from multitask.serving.predictor import load_export


@pytest.fixture(scope="session")
def run(exported_colours, tmp_path_factory):
    """A copy of it, to which these tests add the embeddings of its training images."""
    folder = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(exported_colours[0].workdir, folder)
    return open_run(folder)


@pytest.fixture(scope="session")
def folder(run):
    return run.workdir / "export"


@pytest.fixture(scope="session")
def predictor(folder):
    return load_export(folder)


@pytest.fixture(scope="session")
def everything(run, folder, predictor):
    """The arguments of an application that has all it can have."""
    return {
        "name": "colours",
        "thresholds": dict.fromkeys(predictor.classes, 0.5),
        "attention": load_attention(folder),
        "similar": similar_images(folder, workdir=run.workdir),
    }


@pytest.fixture(scope="module")
def port(predictor, everything):
    """The port of that application, which is stopped after the tests of a file."""
    from served import serving

    from multitask.annexes.serve.app import build_app

    with serving(build_app(predictor, **everything, hosts=("127.0.0.1",))) as port:
        yield port
