"""Idle, slow and malformed clients, over real sockets."""

import asyncio
import contextlib
import json
import select
import socket
import struct
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

import h11  # noqa: E402  (comes with uvicorn)
from fastapi import FastAPI, Request  # noqa: E402
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: E402

from multitask.annexes.serve.connections import (  # noqa: E402
    HEAD_BYTES,
    HEAD_LINES,
    ConnectionLimits,
    Connections,
    address_key,
)
from multitask.annexes.serve.uploads import UploadLimits, Uploads, _Rate  # noqa: E402

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


# === Names of uvicorn and h11 that are used ===


def test_what_is_used_of_uvicorn_and_h11_is_there():
    """Fails first, and by name, where a new version of either has changed."""
    methods = (
        "connection_made connection_lost data_received handle_events on_response_complete shutdown "
        "pause_writing resume_writing timeout_keep_alive_handler send_400_response "
        "_unset_keepalive_if_required"
    )
    assert [name for name in methods.split() if name not in vars(H11Protocol)] == []
    assert type(h11.Connection(h11.SERVER)._receive_buffer).__name__ == "ReceiveBuffer"
    assert "error_status_hint" in vars(h11.LocalProtocolError("x"))
    with serving(echo(), limits()) as (port, connections, _), connect(port) as client:
        client.sendall(GET)
        read_one(client)
        (connection,) = connections.all.members
        for name in ("conn", "cycle", "transport", "flow", "client", "loop"):
            assert getattr(connection, name) is not None, name
        until(lambda: connection.cycle.response_complete)
        assert connection.cycle.disconnected is False
        assert isinstance(connection.cycle.message_event, asyncio.Event)


# === Idle and slow clients ===


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),  # a browser's connection in advance: no answer that nobody asked for
        (b"GET / HTTP/1.1\r\nHo", 408),
        (b"P", 408),
    ],
)
def test_a_head_that_does_not_come_is_cut_off(sent, status):
    with serving(echo(), limits(header_s=0.3)) as (port, connections, _), connect(port) as client:
        client.sendall(sent)
        answer = read_all(client)
        assert status_of(answer) == status
        if status:
            assert body_of(answer) == {"detail": "the request's head took too long"}
        until(lambda: not connections.all.members)


def test_a_byte_at_a_time_does_not_move_the_deadline():
    with serving(echo(), limits(header_s=0.5)) as (port, _, _), connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert status_of(trickle(client)) == 408


def test_a_second_head_has_its_own_deadline():
    with serving(echo(), limits(header_s=0.3)) as (port, _, _), connect(port) as client:
        client.sendall(GET)
        assert status_of(read_one(client)) == 200
        time.sleep(0.5)  # idle, for which there is keep_alive_s
        client.sendall(GET)
        assert status_of(read_one(client)) == 200
        client.sendall(GET[:20])
        assert status_of(read_all(client)) == 408


def test_a_connection_is_closed_between_requests():
    with serving(echo(), limits(keep_alive_s=0.3)) as (port, _, _), connect(port) as client:
        client.sendall(GET)
        assert status_of(read_one(client)) == 200
        assert read_all(client) == b""


def test_a_request_in_progress_has_no_deadline():
    app = echo()
    short = limits(header_s=0.1, keep_alive_s=0.1, response_s=0.1)
    with serving(app, short) as (port, _, _), connect(port) as client:
        client.sendall(GET.replace(b"/ ", b"/wait "))
        assert app.state.requested.wait(20)
        time.sleep(0.5)
        app.state.release()
        assert status_of(read_one(client)) == 200


def test_the_rest_of_a_body_is_not_read_for_ever():
    """Its request is answered: nobody waits for it."""
    with serving(echo(), limits(header_s=0.3)) as (port, _, _), connect(port) as client:
        client.sendall(b"POST /unread HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\nx")
        assert status_of(read_one(client)) == 200
        client.settimeout(0.02)
        for _ in range(1000):
            try:
                client.sendall(b"x")
                if not client.recv(1 << 16):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("still read")


def test_a_connection_goes_on_after_the_rest_of_a_body_and_is_closed():
    with serving(echo(), limits(keep_alive_s=0.3)) as (port, _, _), connect(port) as client:
        client.sendall(b"POST /unread HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nx")
        assert status_of(read_one(client)) == 200
        client.sendall(b"x" * 8 + GET)
        assert status_of(read_one(client)) == 200
        assert read_all(client) == b""


def test_a_client_that_does_not_read_is_cut_off():
    with serving(echo(), limits(response_s=0.5)) as (port, connections, _), connect(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET.replace(b"/ ", b"/large "))
        until(lambda: connections.all.members)
        until(lambda: not connections.all.members)


# === Bounds ===


def test_at_the_bound_who_waited_longest_gives_way():
    app = echo()
    with (
        serving(app, limits(per_address=3)) as (port, connections, _),
        contextlib.ExitStack() as open_ones,
    ):
        clients = []
        for number in range(1, 4):
            clients.append(open_ones.enter_context(connect(port)))
            until(lambda number=number: len(connections.all.members) == number)
        # The first asks, and so does not wait any more.
        clients[0].sendall(GET.replace(b"/ ", b"/wait "))
        assert app.state.requested.wait(20)
        for oldest in clients[1:]:
            new = open_ones.enter_context(connect(port))
            new.sendall(GET)
            assert status_of(read_one(new)) == 200
            assert read_all(oldest) == b""
            assert len(connections.all.members) == 3
        app.state.release()
        assert status_of(read_one(clients[0])) == 200


def test_who_has_had_an_answer_is_kept_before_strangers():
    """However many connect in between, and however long ago the answer was."""
    with (
        serving(echo(), limits(per_address=4)) as (port, connections, _),
        contextlib.ExitStack() as idle,
    ):
        known = idle.enter_context(connect(port))
        known.sendall(GET)
        assert status_of(read_one(known)) == 200
        for number in range(100):
            idle.enter_context(connect(port))
            if number % 20 == 0:
                known.sendall(GET)
                assert status_of(read_one(known)) == 200
        assert len(connections.all.members) <= 4
        # Where there are none but served ones, the one that has waited longest gives way.
        for _ in range(4):
            other = idle.enter_context(connect(port))
            other.sendall(GET)
            assert status_of(read_one(other)) == 200
        assert read_all(known) == b""


def test_a_request_that_has_come_is_answered_even_if_many_connect_before_it_is_read():
    """The loop is held up, so that all of them are accepted at once."""
    app = echo()
    with (
        serving(app, limits(per_address=4)) as (port, connections, _),
        contextlib.ExitStack() as open_ones,
    ):
        assert status_of(ask(port)) == 200
        app.state.run(time.sleep, 0.5)
        asking = [open_ones.enter_context(connect(port)) for _ in range(2)]
        for client in asking:
            client.sendall(GET)
        for number in range(80):
            client = open_ones.enter_context(connect(port))
            client.sendall(b"GET / HT" if number % 4 else b"")
            if number % 20 == 0:
                asking.append(open_ones.enter_context(connect(port)))
                asking[-1].sendall(GET)
        for client in asking:
            assert status_of(read_one(client)) == 200
        until(lambda: len(connections.all.members) <= 4)


def test_the_limits_hold_on_a_system_without_poll(monkeypatch):
    """Windows has `select.select` only."""
    monkeypatch.delattr(select, "poll")
    with (
        serving(echo(), limits(per_address=2)) as (port, connections, _),
        contextlib.ExitStack() as open_ones,
    ):
        for _ in range(4):
            client = open_ones.enter_context(connect(port))
            client.sendall(GET)
            assert status_of(read_one(client)) == 200
        until(lambda: len(connections.all.members) <= 2)


@pytest.mark.parametrize("bound", ["total", "per_address"])
def test_where_all_are_answered_one_more_is_refused(bound):
    app = echo()
    with serving(app, limits(**{bound: 2})) as (port, connections, _):
        with connect(port) as first, connect(port) as second:
            for client in (first, second):
                client.sendall(GET.replace(b"/ ", b"/wait "))
            until(lambda: in_progress(connections) == 2)
            with connect(port) as third:
                answer = read_all(third)
            assert status_of(answer) == 503
            assert b"Retry-After: 1\r\n" in answer
            assert body_of(answer) == {"detail": "too many connections"}
            app.state.release()
            for client in (first, second):
                assert status_of(read_one(client)) == 200
        assert status_of(ask(port)) == 200
        until(lambda: not connections.all.members and not connections._by_address)


def test_of_many_idle_connections_none_hinders_a_request():
    with (
        serving(echo(), limits(total=40, per_address=20)) as (port, connections, _),
        contextlib.ExitStack() as idle,
    ):
        for number in range(200):
            client = idle.enter_context(connect(port))
            if number % 2:
                client.sendall(b"GET / HT")
            if number % 10 == 0:
                assert status_of(ask(port)) == 200
        assert status_of(ask(port)) == 200
        assert len(connections.all.members) <= 20


def test_addresses_are_counted_apart():
    assert address_key("192.0.2.1") != address_key("192.0.2.2")
    assert address_key("::ffff:192.0.2.1") == address_key("192.0.2.1")
    assert address_key("2001:db8:0:1::1") == address_key("2001:db8:0:1:ffff::2")
    assert address_key("2001:db8:0:1::1") != address_key("2001:db8:0:2::1")
    assert address_key("fe80::1%eth0") == address_key("fe80::2")


def test_another_address_has_its_own_places():
    app = echo()
    with serving(app, limits(per_address=1)) as (port, _, _), connect(port) as first:
        first.sendall(GET.replace(b"/ ", b"/wait "))
        assert app.state.requested.wait(20)
        with connect(port) as same:
            assert status_of(read_all(same)) == 503
        try:
            other = socket.create_connection(("127.0.0.1", port), 20, ("127.0.0.2", 0))
        except OSError:
            pytest.skip("this system has no address 127.0.0.2")
        with other:
            other.sendall(GET)
            assert status_of(read_one(other)) == 200
        app.state.release()
        assert status_of(read_one(first)) == 200


# === Uploads ===


def upload(size, sent=b""):
    return POST + b"Content-Length: %d\r\n\r\n" % size + sent


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"seconds": 0.3, "window_s": LONG_S}, "the upload took over 0.3 seconds"),
        ({"seconds": LONG_S, "window_s": 0.3}, "the upload was slower than 4 kB/s"),
    ],
)
def test_a_slow_upload_is_cut_off(how, line):
    with serving(echo(UploadLimits(**how)), limits()) as (port, _, _), connect(port) as slow:
        slow.sendall(upload(100_000))
        answer = trickle(slow)
        assert status_of(answer) == 408
        assert body_of(answer) == {"detail": line}


def test_others_are_answered_while_slow_ones_stand():
    """Slow uploads, half heads and idle connections, all of which outlast the requests."""
    with (
        serving(echo(), limits(total=100)) as (port, connections, _),
        contextlib.ExitStack() as slow_ones,
    ):
        clients = [slow_ones.enter_context(connect(port)) for _ in range(60)]
        for number, client in enumerate(clients):
            client.sendall((b"", GET[:9], upload(5, b"abc"))[number % 3])
        for _ in range(20):
            assert body_of(ask(port, upload(3, b"abc"))) == {"answer": 3}
        assert len(connections.all.members) >= 60
        for client in clients[2::3]:
            client.sendall(b"de")
        for client in clients[2::3]:
            assert body_of(read_one(client)) == {"answer": 5}


def test_the_rate_is_that_of_any_window():
    """Against all windows, one after the other."""
    limits = UploadLimits(bytes_per_s=10, window_s=2.0)
    cases = {
        "steady": [(t / 10, 2) for t in range(100)],
        "all at once, then nothing": [(0.1, 1000)],
        "a stop": [(t / 10, 2) for t in range(30)] + [(5.5, 1000)],
        "too little": [(t / 10, 1) for t in range(100)],
    }
    for name, chunks in cases.items():
        rate, cut_s = _Rate(limits, 0.0), None
        for at_s, size in chunks:
            if at_s > rate.until_s:
                break
            rate.add(at_s, size)
        cut_s = rate.until_s

        def came(begin, end, chunks=chunks):
            return sum(size for at_s, size in chunks if begin < at_s <= end)

        ends = [t / 1000 for t in range(2000, 13000)]
        expected = next(end for end in ends if came(end - 2.0 - 1e-9, end - 1e-6) < 20)
        assert cut_s == pytest.approx(expected, abs=0.01), name


def test_bodies_take_no_more_memory_than_they_may():
    """The upload that began first of those that still come gives way."""
    bounded = UploadLimits(bytes=1000, held_bytes=2500, seconds=LONG_S, window_s=LONG_S)
    with serving(echo(bounded), limits()) as (port, _, _), contextlib.ExitStack() as slow_ones:
        clients = [slow_ones.enter_context(connect(port)) for _ in range(4)]
        for client in clients[:2]:
            client.sendall(upload(1000, b"x" * 999))
            time.sleep(0.2)
        assert body_of(ask(port, upload(400, b"x" * 400))) == {"answer": 400}
        clients[2].sendall(upload(1000, b"x" * 999))
        answer = read_one(clients[0])
        assert status_of(answer) == 503
        assert b"retry-after: 1\r\n" in answer.lower()
        for client in clients[1:3]:
            client.sendall(b"x")
            assert body_of(read_one(client)) == {"answer": 1000}
        assert body_of(ask(port, upload(1000, b"x" * 1000))) == {"answer": 1000}


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="bytes: 6, expected 1 to 5"):
        UploadLimits(bytes=6, held_bytes=5)


# === The end ===


def test_a_stop_answers_open_requests_and_closes_idle_connections():
    app = echo()
    with serving(app, limits()) as (port, connections, server), contextlib.ExitStack() as open_ones:
        never, half, kept, asking, sending, unread = (
            open_ones.enter_context(connect(port)) for _ in range(6)
        )
        half.sendall(GET[:20])
        kept.sendall(GET)
        read_one(kept)
        unread.sendall(b"POST /unread HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nx")
        read_one(unread)
        asking.sendall(GET.replace(b"/ ", b"/wait "))
        sending.sendall(upload(5, b"abc"))
        until(lambda: in_progress(connections) == 2)
        server.should_exit = True
        for client in (never, half, kept, unread):
            assert read_all(client) == b""
        sending.sendall(b"de")
        assert body_of(read_all(sending)) == {"answer": 5}
        app.state.release()
        assert body_of(read_all(asking)) == {"answer": "wait"}


# === What is no request ===


def lines(*lines, first=b"GET / HTTP/1.1"):
    return b"\r\n".join([first, b"Host: 127.0.0.1", *lines, b"", b""])


def chunked(body, *more):
    return lines(b"Transfer-Encoding: chunked", *more, first=b"POST /upload HTTP/1.1") + body


REQUESTS = {
    "a GET": (GET, 200),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", 200),
    "chunks": (chunked(b"3\r\nabc\r\n0\r\n\r\n"), 200),
    "chunks and a trailer": (chunked(b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"), 200),
    "a header without a value": (lines(b"X:"), 200),
    "spaces around a value": (lines(b"X: \t y \t"), 200),
    "another method": (lines(first=b"DELETE / HTTP/1.1"), 405),
    # Line ends and folding.
    "LF everywhere": (GET.replace(b"\r", b""), 400),
    "LF after the request line": (GET.replace(b"\r", b"", 1), 400),
    "LF after a header": (lines(b"X: y").replace(b"y\r", b"y"), 400),
    "LF for the empty line": (GET[:-2] + b"\n", 400),
    "LF in a value": (lines(b"X: y\nContent-Length: 3"), 400),
    "CR in a value": (lines(b"X: y\rz"), 400),
    "CR for line ends": (GET.replace(b"\n", b""), 408),
    "an empty line first": (b"\r\n" + GET, 400),
    "LF first": (b"\n" + GET, 400),
    "a folded header": (lines(b"X: y", b" z"), 400),
    "a header folded by a tab": (lines(b"X: y", b"\tz"), 400),
    "a folded first header": (GET.replace(b"Host", b" X: y\r\nHost"), 400),
    "a folded length": (lines(b"Content-Length:", b" 3"), 400),
    # The request line.
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2.0": (lines(first=b"GET / HTTP/2.0"), 505),
    "HTTP/1.2": (lines(first=b"GET / HTTP/1.2"), 505),
    "HTTP/2 in advance": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "http/1.1": (lines(first=b"GET / http/1.1"), 400),
    "two spaces": (lines(first=b"GET  / HTTP/1.1"), 400),
    "a tab": (lines(first=b"GET\t/ HTTP/1.1"), 400),
    "no target": (lines(first=b"GET HTTP/1.1"), 400),
    "an absolute target": (lines(first=b"GET http://127.0.0.1/ HTTP/1.1"), 400),
    "another host's target": (lines(first=b"GET http://evil.example/ HTTP/1.1"), 400),
    "an asterisk": (lines(first=b"OPTIONS * HTTP/1.1"), 400),
    "an authority": (lines(first=b"CONNECT evil.example:443 HTTP/1.1"), 400),
    "NUL in the target": (lines(first=b"GET /\0 HTTP/1.1"), 400),
    "a space in the target": (lines(first=b"GET /a b HTTP/1.1"), 400),
    "a long target": (lines(first=b"GET /%s HTTP/1.1" % (b"x" * HEAD_BYTES)), 431),
    "an endless target": (b"GET /" + b"x" * 300_000, 431),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    # Headers.
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (lines(b"Host: 127.0.0.1"), 400),
    "two different Hosts": (lines(b"Host: evil.example"), 400),
    "a space before the colon": (lines(b"X : y"), 400),
    "a space before the colon of the length": (lines(b"Content-Length : 3"), 400),
    "no colon": (lines(b"X"), 400),
    "no name": (lines(b": y"), 400),
    "NUL in a name": (lines(b"X\0: y"), 400),
    "NUL in a value": (lines(b"X: y\0"), 400),
    "a long header": (lines(b"X: " + b"y" * HEAD_BYTES), 431),
    "an endless header": (lines(b"X: y")[:-4] + b"y" * 300_000, 431),
    "as many headers as may be": (lines(*[b"X: y"] * (HEAD_LINES - 1)), 200),
    "one header more": (lines(*[b"X: y"] * HEAD_LINES), 431),
    "10,000 headers": (lines(*[b"X: y"] * 10_000), 431),
    # Where a body ends.
    "both lengths": (chunked(b"0\r\n\r\n", b"Content-Length: 5"), 400),
    "both lengths, the other first": (
        lines(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400,
    ),
    "two lengths": (lines(b"Content-Length: 3", b"Content-Length: 4") + b"abcd", 400),
    "the same length twice": (lines(b"Content-Length: 3", b"Content-Length: 3") + b"abc", 400),
    "two lengths in one": (lines(b"Content-Length: 3, 3") + b"abc", 400),
    "a negative length": (lines(b"Content-Length: -3") + b"abc", 400),
    "a signed length": (lines(b"Content-Length: +3") + b"abc", 400),
    "a length in hex": (lines(b"Content-Length: 0x3") + b"abc", 400),
    "a length with _": (lines(b"Content-Length: 1_0") + b"abc", 400),
    "a length of 5,000 digits": (lines(b"Content-Length: " + b"1" * 5000), 400),
    "chunked, identity": (lines(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n", 501),
    "gzip, chunked": (lines(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 501),
    "xchunked": (lines(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", 501),
    "chunked twice": (chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked"), 501),
    "chunked and HTTP/1.0": (
        lines(b"Transfer-Encoding: chunked", first=b"POST /upload HTTP/1.0") + b"0\r\n\r\n", 400,
    ),
    "a chunk of no size": (chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk of negative size": (chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk in 0x": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk longer than it says": (chunked(b"2\r\nabc\r\n0\r\n\r\n"), 400),
    "LF after a chunk's size": (chunked(b"3\nabc\r\n0\r\n\r\n"), 400),
    "LF in a chunk's extension": (chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n"), 400),
    "LF after a chunk": (chunked(b"3\r\nabc\n0\r\n\r\n"), 400),
    "LF after the last chunk": (chunked(b"3\r\nabc\r\n0\r\n\n"), 400),
    "LF after a trailer": (chunked(b"3\r\nabc\r\n0\r\nX: y\n\r\n"), 400),
    "a folded trailer": (chunked(b"3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n"), 400),
    "a long chunk extension": (chunked(b"3;" + b"x" * 300_000), 431),
}  # fmt: skip


@pytest.fixture(scope="module")
def raw_port():
    with serving(echo(), limits(header_s=1.0, keep_alive_s=0.5)) as (port, _, _):
        yield port


@pytest.mark.parametrize("name", REQUESTS)
def test_what_may_be_read_in_two_ways_is_refused(raw_port, name):
    request, status = REQUESTS[name]
    # What a smuggled request would be answered.
    with connect(raw_port) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(request + (GET if status in (400, 431, 501) else b""))
        answer = read_all(client)
    assert status_of(answer) == status, answer
    assert answer.count(b"HTTP/1.1 ") == 1
    if status in (400, 408, 431, 501, 505):
        assert list(body_of(answer)) == ["detail"]
        assert b"\r\nConnection: close\r\n" in answer
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer


def test_pipelined_requests_are_answered_in_order(raw_port):
    with connect(raw_port) as client:
        client.sendall(GET + upload(3, b"abc") + GET + chunked(b"1\r\na\r\n0\r\n\r\n") + b"X\n\n")
        answer = read_all(client)
    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 200, 200, 400]


def test_a_body_that_goes_wrong_after_its_answer_ends_the_connection(raw_port, capfd):
    with connect(raw_port) as client:
        client.sendall(
            lines(b"Transfer-Encoding: chunked", first=b"POST /unread HTTP/1.1") + b"1\r\na\r\n"
        )
        assert status_of(read_one(client)) == 200
        client.sendall(b"no chunk\r\n")
        assert read_all(client) == b""
    assert status_of(ask(raw_port)) == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_resets_is_forgotten():
    with serving(echo(), limits()) as (port, connections, _):
        for sent in (b"", GET[:9], upload(9, b"x"), GET):
            client = connect(port)
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        until(lambda: not connections.all.members and not connections._by_address)
        assert status_of(ask(port)) == 200
