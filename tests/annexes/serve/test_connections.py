"""Idle and slow clients, bounds of connections, and the end of the server, over real sockets."""

import asyncio
import contextlib
import select
import socket
import time

import h11
import pytest
from raw_http import (
    GET,
    HOST,
    ask,
    body_of,
    connect,
    echo,
    in_progress,
    limits,
    read_all,
    read_one,
    serving,
    status_of,
    trickle,
    until,
    upload,
)
from uvicorn.protocols.http.h11_impl import H11Protocol

from multitask.annexes.serve.connections import address_key


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
