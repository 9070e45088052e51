"""The web application, over a real socket: what it answers and what it documents."""

import collections
import dataclasses
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.spatial.distance
from logged import logged
from PIL import Image
from served import ask, check, encoded, pixels_of, plain, refused, serving

from multitask.annexes.serve.neighbours import load_attention, similar_images
from multitask.conformal import Conformal, ScoreTable
from multitask.run import start_run
from multitask.serving.export import export
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")
from multitask.annexes.serve.app import build_app  # noqa: E402


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


def test_sets_of_classes(predictor, everything, known):
    """By thresholds: of 9 scores, coverage .8 is the eighth; jointly, below the ninth."""
    tables = {task: ScoreTable.of(np.arange(1, 10) / 20) for task in known.CLASSES}
    promising = dataclasses.replace(
        predictor, conformal=Conformal(tables, ScoreTable.of(np.full(9, 0.9)))
    )
    colour = (90, 120, 60)
    with serving(build_app(promising, **everything)) as port:
        assert "set" in ask_for_tasks(port, plain(colour), "similar=0")["shade"]
        for query, below in (("coverage=0.8", 0.4001), ("coverage=0.8&joint=true", 0.45)):
            tasks = ask_for_tasks(port, plain(colour), query)
            for task, (row,) in known.answers(np.array([colour])).items():
                order = np.argsort(-row)
                before = np.cumsum(row[order]) - row[order]
                before += 0.01 * np.maximum(np.arange(len(row)) - 1, 0)
                expected = [
                    known.CLASSES[task][i] for i, s in zip(order, before, strict=True) if s < below
                ]
                assert tasks[task]["set"] == expected, (task, query)
        assert '"coverage": 0.9,' in ask(port, path="/", method="GET")[2]  # the page shows sets
        message = refused(port, plain(colour), path="/predict?coverage=0.95")[1]
        assert message.startswith("coverage: 0.95: shade: 9 validation images have a label; they")


def ask_for_tasks(port, data, query):
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
    folder = export(run, formats=("keras",))  # its files are not read
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
