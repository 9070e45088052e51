"""The answer `not like the training data` over HTTP, and on the page."""

import contextlib
import dataclasses
import io
import json
import socket
import threading
import urllib.request

import numpy as np
import pytest
from PIL import Image

from multitask.__main__ import main
from multitask.feature_distance import UNLIKE, fit_distance
from multitask.serving.export import export
from multitask.serving.predictor import load_export

pytestmark = pytest.mark.usefixtures("untimed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from multitask.annexes.serve.app import build_app  # noqa: E402 (after what it needs)

RED, BLUE = (200, 90, 60), (20, 40, 220)


@pytest.fixture(scope="module")
def folder(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    export(run, formats=("onnx",))
    return run.workdir / "export"


@pytest.fixture(scope="module")
def predictor(folder):
    """A model whose training images are reddish."""
    colours = np.random.default_rng(0).normal(RED, [25, 8, 4], (200, 3))
    return dataclasses.replace(
        load_export(folder), distance=fit_distance(colours[:120] / 255, colours[120:] / 255)
    )


@contextlib.contextmanager
def served(predictor, **more):
    """A function that asks: path and colour -> the body of the answer."""
    why = "not needed"
    app = build_app(
        predictor,
        name="colours",
        thresholds=dict.fromkeys(predictor.classes, 0.0),
        attention=why,
        similar=why,
        **more,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()

        def ask(path, colour=None):
            data = io.BytesIO()
            if colour:
                Image.new("RGB", (20, 10), colour).save(data, "PNG")
            url = f"http://127.0.0.1:{listening.getsockname()[1]}{path}"
            headers = {"Content-Type": "image/png"}
            request = urllib.request.Request(url, data.getvalue() or None, headers)
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.read().decode()

        try:
            yield ask
        finally:
            server.should_exit = True
            thread.join(20)


def test_an_image_unlike_the_training_images_has_no_other_answer(predictor, known):
    with served(predictor, distance_limit=predictor.distance_limit()) as ask:
        for colour, unlike in ((RED, False), (BLUE, True)):
            message = json.loads(ask("/predict", colour))
            expected = predictor.distance.distances(np.array([colour]) / 255)[0]
            assert message["distance"] == pytest.approx(expected, rel=1e-3)
            assert message["unlike"] is unlike
            for task, (probabilities,) in known.answers(np.array([colour])).items():
                result, best = message["tasks"][task], probabilities.argmax()
                assert result["answer"] == (UNLIKE if unlike else known.CLASSES[task][best])
                assert result["top"][0]["name"] == known.CLASSES[task][best]
                assert result["confidence"] == pytest.approx(probabilities[best], abs=1e-5)
                assert result["uncertain"] is False
        schemas = json.loads(ask("/openapi.json"))["components"]["schemas"]
        assert {"unlike", "distance"} < set(schemas["Prediction"]["required"])
        assert UNLIKE in schemas["TaskAnswer"]["properties"]["answer"]["description"]
        page = ask("/")
        assert page.count("<b>Not like the training data.</b>") == 1
        assert 'id="unlike" class="verdict alert" hidden' in page


def test_a_model_of_before_says_nothing(predictor):
    old = dataclasses.replace(predictor, distance=None)
    with served(old, distance_limit=old.distance_limit()) as ask:
        message = json.loads(ask("/predict", BLUE))
    assert (message["unlike"], message["distance"]) == (None, None)
    assert UNLIKE not in {result["answer"] for result in message["tasks"].values()}


def test_a_wrong_share_ends_the_command(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", f"--model={folder}", "--port=0", "--max_unlike=0.01"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(
        "--max_unlike: 0.01: this model has no distance to the training images; "
    )
