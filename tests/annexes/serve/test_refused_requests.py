"""Requests that the web application refuses, and uploads that wait for each other."""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from served import ask, check, encoded, plain, refused, serving

pytestmark = pytest.mark.usefixtures("untimed")
from multitask.annexes.serve import app as app_module  # noqa: E402
from multitask.annexes.serve import inference as inference_module  # noqa: E402
from multitask.annexes.serve.app import Limits, build_app  # noqa: E402
from multitask.annexes.serve.uploads import UploadLimits  # noqa: E402


def header_only(width, height):
    """A PNG whose header promises that many pixels, and that has none."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))


def animated(kind):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


NOISE = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)), "JPEG"
)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"", 415, "not a JPEG, PNG or WebP image: it is empty"),
        (b"a text", 415, "not a JPEG, PNG or WebP image: unknown content"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "it is SVG or other XML"),
        (animated("GIF")[:30], 415, "the GIF is "),
        (b"%PDF-1.7", 415, "it is a PDF"),
        (
            encoded(Image.new("1", (10_001, 10_000)), "TIFF", compression="group4"),
            413,
            "image of 10001 x 10000 pixels, over the limit of 100000000",
        ),
        (NOISE[: len(NOISE) // 2], 415, "JPEG"),
        (plain((1, 2, 3))[:60], 415, "PNG"),
        (header_only(9, 9), 415, "PNG"),
        (
            header_only(10_001, 10_000),
            413,
            "image of 10001 x 10000 pixels, over the limit of 100000000",
        ),
        (header_only(2**31 - 1, 2**31 - 1), 413, "over the limit of 100000000"),
    ],
    ids=range(11),
)
def test_what_is_no_image_is_one_line(port, body, status, line):
    result = refused(port, body)
    assert result[0] == status
    assert line in result[1]


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("similar=11", "similar: Input should be less than or equal to 10"),
        ("similar=-1", "similar: Input should be greater than or equal to 0"),
        ("similar=x&attention=7", "attention: .*; similar: .*"),
        ("simlar=3", "simlar: Extra inputs are not permitted"),
        ("coverage=1", "coverage: Input should be less than 1"),
        ("coverage=0", "coverage: Input should be greater than 0"),
        ("coverage=nan", "coverage: Input should be .*"),
        ("joint=true", "joint: needs coverage, such as coverage=0.9"),
        ("coverage=0.9", "coverage: 0.9: this model has no scores for sets of classes; .*"),
    ],
)
def test_wrong_options_are_named(port, query, line):
    status, message = refused(port, plain((1, 2, 3)), path=f"/predict?{query}")
    assert status == 422
    assert re.fullmatch(line, message)


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_what_a_form_of_another_site_can_send_is_refused(port, kind):
    status, message = refused(port, plain((1, 2, 3)), headers={"Content-Type": kind})
    assert status == 415
    assert message.startswith(f"Content-Type: {kind.split(';')[0]}; send the image itself")
    assert refused(port, plain((1, 2, 3)), headers={"X": "y"})[0] == 415
    origin = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = ask(port, headers=origin, method="OPTIONS")
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_another_name_for_this_server_is_refused(port):
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
        assert refused(port, path="/healthz", method="GET", headers={"Host": host})[0] == 400
    assert ask(port, path="/healthz", method="GET", headers={"Host": f"127.0.0.1:{port}"})[0] == 200


def test_other_addresses_and_methods(port):
    assert refused(port, path="/nothing", method="GET")[0] == 404
    assert refused(port, path="/docs", method="GET")[0] == 404
    assert refused(port, method="GET")[0] == 405


def test_an_upload_is_read_no_further_than_its_limit(predictor, everything, known):
    size = len(plain((1, 2, 3)))
    limits = Limits(UploadLimits(bytes=size), pixels=200)
    with serving(build_app(predictor, **everything, limits=limits)) as port:
        colour = known.colours(1, 23)[0]
        exact = plain(colour)
        assert len(exact) == size
        status, _, message = ask(port, exact)
        assert status == 200
        check(known, message, colour)
        line = f"the file is larger than {size / 1e6:g} MB"
        assert refused(port, exact + b"\0") == (413, line)

        def endless():
            while True:
                yield b"\0" * 4096

        # Of no declared length: it is told so while it still sends.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Type", "image/png")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            for _, chunk in zip(range(20), endless(), strict=False):
                connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            reply = connection.getresponse()
            assert (reply.status, json.load(reply)["detail"]) == (413, line)
        status, message = refused(port, plain(colour, size=(201, 1)))
        assert (status, message) == (413, "image of 201 x 1 pixels, over the limit of 200")


def test_an_upload_that_stops_holds_nothing(predictor, everything):
    limits = Limits(UploadLimits(seconds=0.5), pending=1)
    with serving(build_app(predictor, **everything, limits=limits)) as port:
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        head += b"Content-Length: 999\r\n\r\nsome"
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(head)
            slow.settimeout(10)
            message = b""
            while not message.endswith(b"}"):
                message += slow.recv(65536)
            assert b" 408 " in message.split(b"\r\n")[0]
            assert b"the upload took over 0.5 seconds" in message
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(head)
        time.sleep(0.2)
        assert ask(port, plain((1, 2, 3)))[0] == 200


def test_a_slow_upload_takes_nobodys_place(predictor, everything, known):
    limits = Limits(UploadLimits(seconds=60), pending=1)
    painted = known.colours(9, 26)
    with (
        serving(build_app(predictor, **everything, limits=limits)) as port,
        contextlib.ExitStack() as slow_ones,
    ):
        held = []
        for colour in painted[:4]:
            data = plain(colour)
            slow = slow_ones.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
            slow.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:-1])
            held.append((slow, data[-1:]))
        for colour in painted[4:]:
            status, _, message = ask(port, plain(colour))
            assert status == 200
            check(known, message, colour)
        for (slow, rest), colour in zip(held, painted, strict=False):
            slow.sendall(rest)
            reply = http.client.HTTPResponse(slow)
            reply.begin()
            assert reply.status == 200
            check(known, json.load(reply), colour)


def test_large_images_wait_for_each_other(predictor, everything, known, monkeypatch):
    """200 pixels count as large here."""
    monkeypatch.setattr(inference_module, "LARGE_PIXELS", 150)
    colour = known.colours(1, 27)[0]
    small, at_limit, too_large = ((10, 10), (20, 15), (20, 16))
    with serving(build_app(predictor, **everything, limits=Limits(pixels=300))) as port:
        for size in (small, at_limit):
            status, _, message = ask(port, plain(colour, size))
            assert status == 200
            check(known, message, colour)
        line = "image of 20 x 16 pixels, over the limit of 300"
        assert refused(port, plain(colour, too_large)) == (413, line)
        monkeypatch.setattr(app_module, "LARGE_PENDING", 0)
        assert refused(port, plain(colour, at_limit))[0] == 503
        assert ask(port, plain(colour, small))[0] == 200


def test_an_image_that_is_a_line_is_refused_by_its_header(port):
    for size in ((1_000_000, 1), (1, 1_000_000)):
        sides = "x".join(f" {side} " for side in size).strip()
        line = f"image of {sides} pixels, over the limit of 65535 for a side"
        assert refused(port, plain((1, 2, 3), size)) == (413, line)
    line = "image of 9000 x 2 pixels, over the limit of 200 : 1 for its sides"
    assert refused(port, plain((1, 2, 3), (9000, 2))) == (413, line)


def test_a_jpeg_of_many_scans_is_refused(port, known):
    """Each scan of a progressive JPEG costs as much as the image, and may be 30 bytes."""
    colour = known.colours(1, 28)[0]
    data = plain(colour, (64, 64), kind="JPEG", progressive=True, quality=100)
    scan = data[data.rindex(b"\xff\xda") : -2]
    count = data.count(b"\xff\xda")
    assert 6 <= count <= 20
    most = data[:-2] + scan * (100 - count) + data[-2:]
    assert ask(port, most, headers={"Content-Type": "image/jpeg"})[0] == 200
    result = refused(port, most[:-2] + scan + data[-2:], headers={"Content-Type": "image/jpeg"})
    assert result == (415, "JPEG of more than 100 scans")


def test_a_busy_server_says_when_to_come_back(predictor, everything, known):
    running, go_on = threading.Event(), threading.Event()
    go_on.set()

    def slow(image):
        running.set()
        assert go_on.wait(30)
        return predictor.infer(image)

    app = build_app(
        dataclasses.replace(predictor, infer=slow), **everything, limits=Limits(pending=3)
    )
    running.clear()
    go_on.clear()
    with serving(app) as port, ThreadPoolExecutor(3) as people:
        painted = known.colours(3, 24)
        waiting = [people.submit(ask, port, plain(colour)) for colour in painted]
        assert running.wait(30)
        until = time.monotonic() + 30
        status, headers, message = 0, {}, {}
        while status != 503 and time.monotonic() < until:
            # Not before all three have come; what is refused for its content takes no time.
            status, headers, message = ask(port, b"x")
        assert (status, headers["retry-after"]) == (503, "1")
        assert message == {"detail": "busy; try again in a second"}
        assert ask(port, path="/healthz", method="GET")[0] == 200
        go_on.set()
        for colour, one in zip(painted, waiting, strict=True):
            check(known, one.result(30)[2], colour)
        assert ask(port, plain(painted[0]))[0] == 200


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), tf.errors.InvalidArgumentError(None, None, "secret")]
)
def test_a_failure_of_the_model_is_reported_and_passes(predictor, everything, error):
    fails = threading.Event()

    def infer(image):
        if fails.is_set():
            raise error
        return predictor.infer(image)

    with serving(build_app(dataclasses.replace(predictor, infer=infer), **everything)) as port:
        fails.set()
        status, message = refused(port, plain((1, 2, 3)))
        assert (status, message) == (500, "the server failed; its console shows the error")
        fails.clear()
        assert ask(port, plain((1, 2, 3)))[0] == 200
