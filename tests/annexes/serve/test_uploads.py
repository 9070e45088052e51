"""Uploads that are slow or large, over real sockets."""

import contextlib
import time

import pytest
from raw_http import (
    GET,
    LONG_S,
    ask,
    body_of,
    connect,
    echo,
    limits,
    read_one,
    serving,
    status_of,
    trickle,
    upload,
)

from multitask.annexes.serve.uploads import UploadLimits, _Rate


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
