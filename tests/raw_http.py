"""An application that answers what it got, and clients that write raw HTTP to it."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi import FastAPI, Request  # noqa: E402

from multitask.annexes.serve.connections import ConnectionLimits, Connections  # noqa: E402
from multitask.annexes.serve.uploads import UploadLimits, Uploads  # noqa: E402

LONG_S = 60.0  # what a test does not wait for
HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /upload HTTP/1.1\r\n" + HOST


def limits(**how):
    long = {"header_s": LONG_S, "keep_alive_s": LONG_S, "response_s": LONG_S}
    return ConnectionLimits(**long | how)


def echo(uploads=None):
    """An application that says what it got, and that waits where a test tells it to."""
    app = FastAPI()
    app.state.go_on, app.state.requested = asyncio.Event(), threading.Event()
    uploads = Uploads(uploads or UploadLimits(seconds=LONG_S, window_s=LONG_S))

    @app.get("/")
    async def index() -> dict:
        return {"answer": "index"}

    @app.get("/wait")
    async def wait() -> dict:
        app.state.requested.set()
        await app.state.go_on.wait()
        return {"answer": "wait"}

    @app.get("/large")
    async def large() -> dict:
        return {"answer": "x" * 20_000_000}

    @app.post("/upload")
    async def upload(request: Request) -> dict:
        async with uploads.body(request) as data:
            return {"answer": len(data)}

    @app.post("/unread")
    async def unread() -> dict:
        return {"answer": "unread"}

    return app


@contextlib.contextmanager
def serving(app, connection_limits):
    """(port, the connections, the server) for as long."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections = Connections(connection_limits, headers={"X-Content-Type-Options": "nosniff"})
        config = uvicorn.Config(
            app,
            http=connections,
            ws="none",
            log_level="critical",
            timeout_graceful_shutdown=20,
        )
        server = uvicorn.Server(config)
        loop = []

        async def serve():
            loop.append(asyncio.get_running_loop())
            await server.serve(sockets=[listening])

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        app.state.run = lambda *call: loop[0].call_soon_threadsafe(*call)
        app.state.release = lambda: app.state.run(app.state.go_on.set)
        try:
            yield listening.getsockname()[1], connections, server
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), 20)


def read_all(client):
    """What comes until the server closes; fails where it does not within the client's timeout."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def status_of(answer):
    return int(answer.split(b" ")[1]) if answer else None


def body_of(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def read_one(client):
    """The first response of a connection that stays open."""
    answer = b""
    while b"}" not in answer:
        part = client.recv(1 << 16)
        assert part, answer
        answer += part
    return answer


def trickle(client):
    """The answer to a client that sends a byte every 20 ms for as long as there is none."""
    client.settimeout(0.02)
    for _ in range(1000):
        try:
            client.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            client.sendall(b"x")
    client.settimeout(20)
    return read_one(client)


def ask(port, data=GET):
    with connect(port) as client:
        client.sendall(data)
        return read_one(client)


def in_progress(connections):
    group = connections.all
    return len(group.members) - len(group.new) - len(group.served)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def upload(size, sent=b""):
    return POST + b"Content-Length: %d\r\n\r\n" % size + sent


def lines(*lines, first=b"GET / HTTP/1.1"):
    return b"\r\n".join([first, b"Host: 127.0.0.1", *lines, b"", b""])


def chunked(body, *more):
    return lines(b"Transfer-Encoding: chunked", *more, first=b"POST /upload HTTP/1.1") + body
