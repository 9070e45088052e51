"""The web application, over a real socket: what it answers, what it refuses, and the page."""

import base64
import collections
import contextlib
import dataclasses
import http.client
import io
import json
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.spatial.distance
import tensorflow as tf
from logged import logged
from PIL import Image

from multitask.__main__ import main
from multitask.annexes.serve.neighbours import load_attention, similar_images
from multitask.conformal import Conformal, ScoreTable
from multitask.run import start_run
from multitask.serving.export import export
from multitask.serving.predictor import load_export
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from multitask.annexes.serve import app as app_module  # noqa: E402 (after what it needs)
from multitask.annexes.serve import inference as inference_module  # noqa: E402
from multitask.annexes.serve.app import Limits, build_app  # noqa: E402
from multitask.annexes.serve.connections import ConnectionLimits, Connections  # noqa: E402
from multitask.annexes.serve.uploads import UploadLimits  # noqa: E402

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def run(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    export(run)
    return run


@pytest.fixture(scope="module")
def folder(run):
    return run.workdir / "export"


@pytest.fixture(scope="module")
def predictor(folder):
    return load_export(folder)


@pytest.fixture(scope="module")
def everything(run, folder, predictor):
    """The arguments of an application that has all it can have."""
    return {
        "name": "colours",
        "thresholds": dict.fromkeys(predictor.classes, 0.5),
        "attention": load_attention(folder),
        "similar": similar_images(folder, workdir=run.workdir),
    }


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


@pytest.fixture(scope="module")
def port(predictor, everything):
    with serving(build_app(predictor, **everything, hosts=("127.0.0.1",))) as port:
        yield port


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


# === Answers ===


def test_an_image_is_answered(known, port, predictor):
    marks = set()
    for colour in known.colours(8, 20):
        status, _, message = ask(port, plain(colour))
        assert status == 200
        check(known, message, colour)
        assert message["similar"] is None
        assert {result["attention"] for result in message["tasks"].values()} == {None}
        assert message["runtime"] == predictor.runtime
        assert 0 < message["milliseconds"] < 30_000
        marks |= {result["uncertain"] for result in message["tasks"].values()}
    assert marks == {True, False}


def test_of_many_at_once_each_gets_its_own(known, port):
    painted = known.colours(120, 21)
    with ThreadPoolExecutor(24) as people:
        result = list(people.map(lambda colour: ask(port, plain(colour)), painted))
    for colour, (status, _, message) in zip(painted, result, strict=True):
        assert status == 200
        check(known, message, colour)


@pytest.mark.parametrize("kind", ["image/png", "image/x-unknown", "application/octet-stream"])
def test_the_content_of_an_image_decides_its_type(known, port, kind):
    colour = known.colours(1, 22)[0]
    data = plain(colour, kind="WEBP", lossless=True)
    status, _, message = ask(port, data, headers={"Content-Type": f"{kind}; a=b"})
    assert status == 200
    check(known, message, colour)


def test_of_16_bits_the_high_byte_counts(known, port):
    values = np.full((9, 9), 0x4CFF, np.uint16)
    status, _, message = ask(port, encoded(Image.fromarray(values)))
    assert status == 200
    check(known, message, np.array([0x4C] * 3))


def test_where_it_looked(known, port):
    """A class's map is what its colour has of the image's: nothing of black, most of white."""
    halves = np.zeros((40, 80, 3), np.uint8)
    halves[:, 40:] = 255
    status, _, message = ask(port, encoded(Image.fromarray(halves)), path="/predict?attention=true")
    assert status == 200
    inferno = np.array([0.988362, 0.998364, 0.644924]) * 255  # its last colour
    for result in message["tasks"].values():
        seen = pixels_of(result["attention"]).astype(float)
        assert seen.shape == (40, 80, 3)
        np.testing.assert_allclose(seen[:, :8].mean(axis=(0, 1)), 0, atol=4)
        expected = 255 * 0.35 + inferno * 0.65
        np.testing.assert_allclose(seen[:, -8:].mean(axis=(0, 1)), expected, atol=4)


@pytest.mark.parametrize("size", [(9000, 45), (45, 9000), (3000, 2000)])
def test_what_is_shown_is_small(port, size):
    data = encoded(Image.new("RGB", size, "white"))
    status, _, message = ask(port, data, path="/predict?attention=true")
    assert status == 200
    for result in message["tasks"].values():
        assert max(pixels_of(result["attention"]).shape) <= 1440


def test_similar_images(known, data, port):
    """The embedding is the colour itself: cosines are SciPy's, and a painted image is its own
    nearest."""
    names = list(data.train_labels["shade"])
    for name in names[:3]:
        query = data.painted[name]
        status, _, message = ask(port, plain(query), path="/predict?similar=4")
        assert status == 200
        far = [scipy.spatial.distance.cosine(query / 255, data.painted[n] / 255) for n in names]
        order = np.argsort(far)[:4]
        result = message["similar"]
        assert result[0]["path"] == name
        assert [one["path"] for one in result] == [names[i] for i in order]
        np.testing.assert_allclose([one["distance"] for one in result], np.sort(far)[:4], atol=1e-3)
        for one in result:
            labels = {t: known.CLASSES[t][rows[one["path"]]] for t, rows in
                      data.train_labels.items()}  # fmt: skip
            assert one["labels"] == labels
            colour = pixels_of(one["thumbnail"]).mean(axis=(0, 1))
            np.testing.assert_allclose(colour, data.painted[one["path"]], atol=3)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "BMP", "WEBP"])
def test_other_formats_are_answered(known, port, kind):
    color = (40, 90, 200)
    frames = [Image.new("RGB", (20, 10), one) for one in (color, (0, 0, 0))]
    more = {"save_all": True, "append_images": frames[1:]} if kind in ("GIF", "WEBP") else {}
    data = encoded(frames[0], kind, **more, **{"lossless": True} if kind == "WEBP" else {})
    status, _, message = ask(port, data)
    assert status == 200
    check(known, message, color)


# === Refusals ===


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


# === What it knows, and what not ===


def test_sets_of_classes(predictor, everything, known):
    """By thresholds: of 9 scores, coverage .8 is the eighth; jointly, below the ninth."""
    tables = {task: ScoreTable.of(np.arange(1, 10) / 20) for task in known.CLASSES}
    promising = dataclasses.replace(
        predictor, conformal=Conformal(tables, ScoreTable.of(np.full(9, 0.9)))
    )
    colour = (90, 120, 60)
    assert "set" in ask_for_tasks(plain(colour), promising, everything, "similar=0")["shade"]
    for query, below in (("coverage=0.8", 0.4001), ("coverage=0.8&joint=true", 0.45)):
        tasks = ask_for_tasks(plain(colour), promising, everything, query)
        for task, (row,) in known.answers(np.array([colour])).items():
            order = np.argsort(-row)
            before = (
                np.cumsum(row[order]) - row[order] + 0.01 * np.maximum(np.arange(len(row)) - 1, 0)
            )
            expected = [
                known.CLASSES[task][i] for i, s in zip(order, before, strict=True) if s < below
            ]
            assert tasks[task]["set"] == expected, (task, query)
    with serving(build_app(promising, **everything)) as port:
        assert '"coverage": 0.9,' in ask(port, path="/", method="GET")[2]  # the page shows sets
        message = refused(port, plain(colour), path="/predict?coverage=0.95")[1]
        assert message.startswith("coverage: 0.95: shade: 9 validation images have a label; they")


def ask_for_tasks(data, predictor, everything, query):
    with serving(build_app(predictor, **everything)) as port:
        status, _, message = ask(port, data, path=f"/predict?{query}")
    assert status == 200
    return message["tasks"]


def test_unavailable_options_give_their_reason(predictor, everything, folder):
    lacking = everything | {"attention": "it takes an A", "similar": "start with B"}
    with serving(build_app(predictor, **lacking)) as port:
        for option, why in (("attention=1", "it takes an A"), ("similar=1", "start with B")):
            status, message = refused(port, plain((1, 2, 3)), path=f"/predict?{option}")
            assert status == 422
            assert message == f"{option[:-2]}: not available: {why}"
        page = ask(port, path="/", method="GET")[2]
        assert "Where the model looked is not available: it takes an A" in page
        assert "Not available: start with B" in page
        assert '"coverage": null,' in page  # the model was not evaluated
        assert ask(port, plain((1, 2, 3)))[0] == 200
    blind = dataclasses.replace(
        predictor, infer=lambda x: {k: v for k, v in predictor.infer(x).items() if k[:3] != "emb"}
    )
    with serving(build_app(blind, **everything)) as port:
        message = refused(port, plain((1, 2, 3)), path="/predict?similar=1")[1]
        assert message.endswith("artifact has no embedding")


def test_the_gallery_of_the_run_is_used_once_it_is_made(known, data, tmp_path):
    run = known.make_run(tmp_path / "run", data)
    folder = export(run)
    logged_lines = []
    with logged(logged_lines):
        assert similar_images(folder).startswith("start the server with --workdir=RUN")
    with logged(logged_lines):
        made = similar_images(folder, workdir=run.workdir)
    assert len(logged_lines) == 1
    assert logged_lines[0].startswith("Embedding 24 training images, once")
    with logged(logged_lines):
        result = similar_images(folder)
    query = np.array([0.2, 0.5, 0.3], np.float32)
    assert result(query, 3) == made(query, 3)
    assert len(logged_lines) == 1
    # Where the data is gone, nobody who opens the page is told the machine's folders.
    start_run(run.workdir, run.spec, tmp_path / "gone")
    with logged(logged_lines):
        message = similar_images(folder)
    assert message == "the run's images have moved; name their new folder with --data_dir"
    assert (
        logged_lines.pop() == f"No similar images: data_dir: {tmp_path / 'gone'}: is not a folder"
    )
    assert similar_images(folder, data_dir=data.folder)(query, 3) == made(query, 3)
    start_run(run.workdir, run.spec, data.folder)
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    assert similar_images(elsewhere).startswith("start the server with --workdir=RUN")
    assert similar_images(elsewhere, workdir=run.workdir)(query, 3) == result(query, 3)
    # Another model's run.
    known.colour_model(("shade",)).save(run.best_model)
    with pytest.raises(InputError, match=r"elsewhere was not exported from any model of this run"):
        similar_images(elsewhere, workdir=run.workdir)
    with pytest.raises(InputError, match="holds no run"):
        similar_images(elsewhere, workdir=tmp_path)


def test_attention_needs_a_saved_model(folder, tmp_path):
    content = json.loads((folder / "classes.json").read_text())
    del content["artifacts"]["savedmodel"]
    (tmp_path / "classes.json").write_text(json.dumps(content))
    shutil.copy(folder / "report.json", tmp_path)
    assert load_attention(tmp_path).startswith("it needs a SavedModel; `multitask export")


# === Documents ===


def test_healthz(port, predictor):
    message = ask(port, path="/healthz", method="GET")[2]
    assert message == {"status": "ok", "model": "colours", "runtime": predictor.runtime}


def test_every_answer_has_its_headers(port):
    for path, method in (("/", "GET"), ("/predict", "POST"), ("/nothing", "GET")):
        headers = ask(port, path=path, method=method)[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert re.findall(r"(\w+)-src 'sha256-[\w+/]{43}=';", policy) == ["style", "script"]
        assert "unsafe" not in policy


def test_the_document_says_all_of_predict(port):
    status, _, document = ask(port, path="/openapi.json", method="GET")
    assert status == 200
    assert set(document["paths"]) == {"/healthz", "/predict"}
    predict = document["paths"]["/predict"]["post"]
    assert set(predict["responses"]) == {"200", "408", "413", "415", "422", "503"}
    for status, message in predict["responses"].items():
        schema = message["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        assert schema == ("Prediction" if status == "200" else "Problem")
    assert predict["requestBody"]["required"]
    assert {"image/jpeg", "image/png", "image/webp"} < predict["requestBody"]["content"].keys()
    options = {one["name"]: one["schema"] for one in predict["parameters"]}
    assert options["attention"]["default"] is False
    assert (options["similar"]["minimum"], options["similar"]["maximum"]) == (0, 10)
    assert set(document["components"]["schemas"]["TaskAnswer"]["required"]) == {
        "answer", "uncertain", "confidence", "top", "set", "attention",
    }  # fmt: skip


@pytest.mark.slow
def test_it_holds_against_a_fuzzer(port):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    images = [encoded(Image.new("RGB", (9, 9)), kind) for kind in ("JPEG", "PNG", "WEBP")]
    torn = [image[:end] + b"<" for image in images for end in (9, 40, 99)]
    bodies = st.sampled_from(images) | st.sampled_from(torn) | st.binary(max_size=99)
    for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, bodies)
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    predict, modes = schema["/predict"]["POST"], schemathesis.GenerationMode
    seen = collections.Counter()

    @given(
        case=predict.as_strategy(generation_mode=modes.POSITIVE)
        | predict.as_strategy(generation_mode=modes.NEGATIVE)
        | schema["/healthz"]["GET"].as_strategy()
    )
    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    def fuzz(case):
        response = case.call()
        seen[case.path, response.status_code] += 1
        # Of the schema and refused: bytes that are no image, and sets that this model (which was
        # not evaluated) does not promise.
        reason = response.json().get("detail", "") if response.status_code == 422 else ""
        no_sets = re.match(r"coverage: \S+: this model has no scores|joint: needs coverage", reason)
        if response.status_code != 415 and not no_sets:
            case.validate_response(response)

    fuzz()
    assert {status for _, status in seen} <= {200, 413, 415, 422}
    assert min(seen["/predict", status] for status in (200, 415, 422)) > 20


# === The command ===


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


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
        (signal.SIGINT, 130, "stopped"),
    ],
)
def test_the_command_serves_without_writing_until_it_is_stopped(run, known, number, status, word):
    process, port = start(f"--model={run.workdir / 'export'}", "--min_confidence=0.5")
    try:
        # From here on, it cannot write a byte to any file; a pipe is none.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
        colour = known.colours(1, 25)[0]
        pixels = np.random.default_rng(0).integers(0, 256, (1500, 4000, 3)).astype(np.uint8)
        noise = encoded(Image.fromarray(pixels), compress_level=0)
        assert 15e6 < len(noise) < 20e6
        assert ask(port, noise, path="/predict?attention=1")[0] == 200
        assert refused(port, noise + b"\0" * 5_000_000)[0] == 413
        reply = ask(port, plain(colour))
        check(known, reply[2], colour)
        # What was asked before the signal is answered.
        with ThreadPoolExecutor(1) as people:
            last = people.submit(ask, port, noise)
            time.sleep(0.1)
            process.send_signal(number)
            assert last.result(30)[0] == 200
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (status, f"{word}\n")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_idle_connections_do_not_take_all_files(run, known):
    """The process may open 700 files; 500 clients connect and send nothing, or half a head."""
    process, port = start(
        f"--model={run.workdir / 'export'}",
        "--min_confidence=0.5",
        "--max_connections_per_address=1000",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 700)),
    )
    try:
        with contextlib.ExitStack() as idle:
            for number in range(500):
                client = idle.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                client.sendall(b"GET / HT" if number % 2 else b"")
            colour = known.colours(1, 29)[0]
            status, _, message = ask(port, plain(colour))
            assert status == 200
            check(known, message, colour)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 143
        room = (
            "--max_connections=1000: 60 are used, as the system limits a process to 700 open files"
        )
        assert err.splitlines() == [f"{room} (ulimit -n)", "terminated"]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_memory_of_large_images_is_given_back(run):
    process, port = start(f"--model={run.workdir / 'export'}")

    def memory_mb(field):
        with open(f"/proc/{process.pid}/status") as lines:
            return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))

    try:
        data = plain((200, 30, 30), (10_000, 10_000))
        assert ask(port, plain((200, 30, 30), (4000, 4000)))[0] == 200
        before = memory_mb("VmRSS")
        with ThreadPoolExecutor(3) as people:
            replies = list(people.map(lambda _: ask(port, data), range(3)))
        assert {status for status, _, _ in replies} == {200}
        peak, after = memory_mb("VmHWM"), memory_mb("VmRSS")
        assert 250 < peak - before < 900  # 300 MB of pixels, of one at a time
        assert after - before < 100
    finally:
        process.kill()
        process.communicate()


def wrong(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *map(str, argv)])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_a_wrong_start_is_one_line(capsys, folder, run, tmp_path, monkeypatch):
    model = f"--model={folder}"
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        line = wrong(capsys, model, f"--port={taken}")
        assert line == f"--port: 127.0.0.1:{taken}: address already in use"
    assert wrong(capsys, model, "--host=no such").startswith("--host: 'no such': ")
    assert "no such folder" in wrong(capsys, "--model=gone", "--port=0")
    limits = {"upload_mb": (0, "nan", "inf"), "megapixels": (0, 179)}
    for flag, value in ((flag, value) for flag, values in limits.items() for value in values):
        assert wrong(capsys, model, "--port=0", f"--max_{flag}={value}").startswith(
            f"--max_{flag}: {value}: "
        )
    bounds = {
        "upload_timeout_s": (0, "nan"),
        "min_upload_kb_s": (-1, "nan"),
        "header_timeout_s": (0, 3601),
        "keep_alive_timeout_s": ("nan", "inf"),
    }
    for flag, value in ((flag, value) for flag, values in bounds.items() for value in values):
        line = wrong(capsys, model, "--port=0", f"--{flag}={value}")
        assert re.fullmatch(rf"--{flag}: {value}: expected [\d.]+ to 3600", line)
    line = wrong(capsys, model, "--port=0", "--min_confidence=auto:0.9")
    assert "shade has no calibration, as this model was not evaluated; `multitask eval" in line
    assert "holds no run" in wrong(capsys, model, "--port=0", f"--workdir={tmp_path}")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    line = wrong(capsys, model)
    assert line == (
        "multitask serve: needs an extra: pip install '.[serve]' (in the folder of this project)"
    )


# === In a browser ===


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    if not chromium.PATH:
        pytest.skip("chromium is not installed")
    tab = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


SHOWN = '!document.getElementById("result").hidden'


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.innerText)")


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("way", ["choose", "drop"])
def test_the_page_answers_an_image(known, data, port, browser, tmp_path, width, way):
    name = next(iter(data.train_labels["shade"]))
    file = data.folder / "images" / name
    browser.open(f"http://127.0.0.1:{port}/", width=width)
    if way == "choose":
        browser.choose("#file", file)
    else:
        browser.drop(file, x=width // 2, y=200)
    browser.wait(SHOWN)
    expected = ask(port, file.read_bytes(), path="/predict?similar=6")[2]
    assert texts(browser, "#tasks h2") == list(known.CLASSES)
    message = expected["tasks"].values()
    assert texts(browser, "#tasks .answer") == [one["answer"] for one in message]
    marks = browser.run(
        '[...document.querySelectorAll("#tasks article")].map((e) => e.matches(".uncertain"))'
    )
    assert marks == [one["uncertain"] for one in message]
    tops = [top for one in message for top in one["top"]]
    assert texts(browser, "#tasks .number") == [f"{100 * t['probability']:.1f} %" for t in tops]
    shares = browser.run(
        '[...document.querySelectorAll(".bar span")].map((e) => '
        "e.getBoundingClientRect().width / e.parentElement.clientWidth)"
    )
    assert len(shares) == len(tops)
    assert max(shares) <= 1
    near = texts(browser, ".images figcaption")
    assert [text.split()[-1] for text in near] == [
        f"{one['distance']:.3f}" for one in expected["similar"]
    ]
    assert near[0].split()[0] == known.CLASSES["shade"][data.train_labels["shade"][name]]
    loaded = "[...document.images].every((i) => i.complete && i.naturalWidth)"
    browser.wait(loaded)
    # Each view is another image, and by the keyboard too.
    own = browser.run("document.getElementById('image').src")
    assert own.startswith("blob:")
    assert texts(browser, "#views span") == ["off", *known.CLASSES]
    browser.run('document.querySelector("#views input").focus()')
    browser.press("ArrowRight")
    looked = browser.run("document.getElementById('image').src")
    assert looked.startswith("data:image/jpeg")
    assert browser.run("document.getElementById('image').alt").endswith("looked for shade")
    browser.wait(loaded)
    assert browser.run("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert browser.console_lines == []
    away = [a for a in browser.requests if not a.startswith(("data:", "blob:"))]
    assert {a.split("?")[0] for a in away} == {
        f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/predict",
    }  # fmt: skip


def test_the_page_says_what_is_wrong(port, browser, tmp_path):
    browser.open(f"http://127.0.0.1:{port}/")
    bad = tmp_path / "<b>bold.svg"
    bad.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    browser.choose("#file", bad)
    browser.wait('!document.getElementById("error").hidden')
    line = "<b>bold.svg: not a JPEG, PNG or WebP image: it is SVG or other XML"
    assert texts(browser, "#error") == [line]
    large = tmp_path / "large.png"
    large.write_bytes(plain((1, 2, 3)) + b"\0" * 20_000_000)
    browser.choose("#file", large)
    browser.wait('document.getElementById("error").innerText.startsWith("The file")')
    assert texts(browser, "#error") == ["The file is larger than 20 MB."]
    good = tmp_path / "good.png"
    good.write_bytes(plain((1, 2, 3)))
    browser.choose("#file", good)
    browser.wait(SHOWN)
    assert browser.run('document.getElementById("error").hidden')


def test_an_image_is_pasted(port, browser):
    browser.open(f"http://127.0.0.1:{port}/")
    data = base64.b64encode(plain((200, 30, 30))).decode()
    browser.run(f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
      document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData }}));
    }})()""")
    browser.wait(SHOWN)
    assert len(texts(browser, "#tasks article")) == 3


def test_names_are_text_and_not_html(predictor, everything, browser, tmp_path):
    evil = "<img src=x onerror=alert(1)></script>"
    classes = {task: (evil,) * len(names) for task, names in predictor.classes.items()}
    spoiled = dataclasses.replace(predictor, classes=classes)
    with serving(build_app(spoiled, **everything | {"name": evil})) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        file = tmp_path / "a.png"
        file.write_bytes(plain((200, 30, 30)))
        browser.choose("#file", file)
        browser.wait(SHOWN)
        assert evil in texts(browser, "header p")[0]
        assert evil in texts(browser, "#tasks td")
        assert browser.console_lines == []
