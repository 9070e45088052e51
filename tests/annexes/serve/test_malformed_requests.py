"""Malformed requests are refused, over real sockets."""

import contextlib
import socket
import struct

import pytest
from raw_http import (
    GET,
    ask,
    body_of,
    chunked,
    connect,
    echo,
    limits,
    lines,
    read_all,
    read_one,
    serving,
    status_of,
    until,
    upload,
)

from multitask.annexes.serve.connections import HEAD_BYTES, HEAD_LINES

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
    with serving(echo(), limits(header_s=1.0, keep_alive_s=0.2)) as (port, _, _):
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
