"""The web application over a real socket, and a client that checks its answers."""

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from multitask.annexes.serve.connections import ConnectionLimits, Connections  # noqa: E402

PNG = {"Content-Type": "image/png"}


@contextlib.contextmanager
def serving(app):
    """The port of an application that is served for as long."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app,
            http=Connections(ConnectionLimits()),
            log_level="critical",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def ask(port, data=b"", *, path="/predict", headers=PNG, method="POST"):
    """(status, headers, body as JSON where it is)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, data or None, headers)
        reply = connection.getresponse()
        body = reply.read()
        is_json = reply.headers["content-type"] == "application/json"
        return reply.status, reply.headers, json.loads(body) if is_json else body.decode()


def refused(port, data=b"", **how):
    """(status, its one line)."""
    status, headers, message = ask(port, data, **how)
    assert headers["x-content-type-options"] == "nosniff"
    assert list(message) == ["detail"]
    assert "\n" not in message["detail"]
    assert "Traceback" not in message["detail"]
    return status, message["detail"]


def encoded(image, kind="PNG", **how):
    data = io.BytesIO()
    image.save(data, kind, **how)
    return data.getvalue()


def plain(colour, size=(20, 10), **how):
    return encoded(Image.new("RGB", size, tuple(map(int, colour))), **how)


def pixels_of(url):
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def check(known, message, colour):
    """Every probability, against SciPy."""
    for task, probabilities in known.answers(np.array([colour])).items():
        result, order = message["tasks"][task], np.argsort(-probabilities[0])[:3]
        assert [one["name"] for one in result["top"]] == [known.CLASSES[task][i] for i in order]
        np.testing.assert_allclose(
            [one["probability"] for one in result["top"]], probabilities[0][order], atol=1e-5
        )
        assert result["confidence"] == result["top"][0]["probability"]
        assert result["uncertain"] == (result["confidence"] < 0.5)
        answer = "uncertain" if result["uncertain"] else result["top"][0]["name"]
        assert result["answer"] == answer


def start(*argv, **how):
    """A server in a process of its own, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "multitask", "serve", "--port=0", *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
    )  # fmt: skip
    for line in process.stdout:
        if result := re.search(r" at http://127\.0\.0\.1:(\d+) \(Ctrl-C stops\)$", line):
            return process, int(result[1])
    raise AssertionError(process.stderr.read())
