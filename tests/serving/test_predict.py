"""Prediction: which files, in which order, what is answered, and what is not."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import scipy.special
import tensorflow as tf
from color_profiles import ADOBE, rgb_profile
from PIL import Image

from multitask.__main__ import main
from multitask.data.decode_arrays import decode_array
from multitask.data.merging import load_table
from multitask.disk import DiskError
from multitask.evaluation.examiner import Examiner
from multitask.evaluation.predictions import predict_split
from multitask.evaluation.tta import TTA
from multitask.model.network import load_network
from multitask.serving.answers import answer, answer_lines
from multitask.serving.export import export
from multitask.serving.predict import find_images, predict_files
from multitask.serving.prediction_files import PredictionFile
from multitask.serving.predictor import load_best, load_export
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture(scope="module")
def run(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    export(run)
    return run


@pytest.fixture(scope="module")
def onnx(run, tmp_path_factory):
    """The flag of its export that is loaded fastest, for what all runtimes have in common."""
    folder = export(run, formats=("onnx",), out=tmp_path_factory.mktemp("onnx") / "export")
    return f"--model={folder}"


@pytest.fixture(scope="module", params=["model", "workdir"])
def predictor(request, run):
    return load_export(run.workdir / "export") if request.param == "model" else load_best(run)


@pytest.fixture
def mixed(known, tmp_path):
    """(files, colours): five images, the second and the fourth of which cannot be read."""
    painted = known.colours(5, 8)
    files = [tmp_path / f"{letter}.png" for letter in "edcba"]
    for path, colour in zip(files, painted, strict=True):
        Image.new("RGB", (20, 10), tuple(map(int, colour))).save(path)
    files[1].write_text("a text")
    files[3].write_bytes(b"")
    return files, painted


def stopped(*argv):
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, argv)])
    return caught.value.code


# === Files ===


def test_folders_are_searched_sorted_and_each_file_comes_once(tmp_path):
    names = ["b/2.JPG", "b/1.webp", "a/z.png", "c.jpeg", "b/notes.txt", "a/x.svg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "folder.png").mkdir()
    inside = [f"{tmp_path}/{name}" for name in ("a/z.png", "b/1.webp", "b/2.JPG", "c.jpeg")]
    assert find_images([str(tmp_path)]) == inside
    # What was named first comes first; a file is not predicted twice.
    named = [str(tmp_path / "c.jpeg"), str(tmp_path / "b"), str(tmp_path), f"{tmp_path}/./c.jpeg"]
    assert find_images(named) == [inside[3], inside[1], inside[2], inside[0]]
    # A file that is named is tried, whatever its name.
    assert find_images([str(tmp_path / "b/notes.txt")]) == [f"{tmp_path}/b/notes.txt"]


def test_nothing_to_predict_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one image or folder"):
        find_images([])
    with pytest.raises(InputError, match=r"gone.png: no such file or folder"):
        find_images([str(tmp_path / "gone.png")])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"no image in this folder \(names ending in .jpg"):
        find_images([str(tmp_path)])


# === Answers ===


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_bad_image_in_the_middle_keeps_the_others_in_their_places(
    predictor, known, mixed, batch_size
):
    files, painted = mixed
    files[3].unlink()
    files[3].mkdir()
    result = list(predict_files(predictor, files, batch_size=batch_size))
    assert [file for file, _ in result] == list(map(str, files))
    expected = known.answers(painted)
    for place in (0, 2, 4):
        for task in known.CLASSES:
            values = result[place][1][task]
            np.testing.assert_allclose(values, expected[task][place], atol=1e-5)
    assert "not a JPEG, PNG or WebP image" in result[1][1]
    assert result[3][1] == "cannot be read: it is a folder, not a regular file"
    assert "\n" not in result[1][1]


def test_formats_and_color_profiles(predictor, known, tmp_path):
    painted = known.colours(4, 8)
    files = []
    for color, kind in zip(painted, ("TIFF", "BMP", "PNG", "JPEG2000"), strict=True):
        files.append(tmp_path / f"{kind}.jpg")
        Image.new("RGB", (20, 10), tuple(map(int, color))).save(files[-1], kind)
    profile = rgb_profile(ADOBE, 1.0)
    files.append(tmp_path / "profile.png")
    Image.new("RGB", (20, 10), (90, 60, 30)).save(files[-1], icc_profile=profile)
    converted = decode_array(files[-1], target_px=10)[0, 0]
    assert converted.min() > 90
    for convert, last in ((True, converted), (False, (90, 60, 30))):
        one = dataclasses.replace(predictor, convert_profiles=convert)
        result = [message for _, message in predict_files(one, files, batch_size=2)]
        for task, expected in known.answers(np.array([*painted, last])).items():
            actual = [message[task] for message in result]
            np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_an_export_of_before_color_profiles_goes_on_without_them(onnx, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(onnx.removeprefix("--model="), folder)
    assert load_export(folder).convert_profiles
    content = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    del content["convert_profiles"]
    (folder / "classes.json").write_text(json.dumps(content), encoding="utf-8")
    assert not load_export(folder).convert_profiles


@pytest.fixture(scope="module")
def evaluated(run, data, tmp_path_factory):
    """A folder with probabilities.npz and predictions.csv, as the evaluation writes them."""
    predictions, _ = predict_split(
        Examiner(load_model(run, data)),
        load_table(run.spec, data.folder),
        run.spec,
        data.folder / "images",
        batch_size=16,
        max_missing=1,
    )
    folder = tmp_path_factory.mktemp("evaluated")
    predictions.save(folder)
    return folder


def test_a_val_image_gets_the_probabilities_of_the_evaluation(predictor, run, data, evaluated):
    """As saved in probabilities.npz, with the paths of predictions.csv."""
    saved = np.load(evaluated / "probabilities.npz")
    with (evaluated / "predictions.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    files = [data.folder / "images" / path for path in paths]
    result = [message for _, message in predict_files(predictor, files, batch_size=5)]
    for task in run.spec.task_names:
        again = np.array([message[task] for message in result])
        np.testing.assert_allclose(again, saved[f"{task}/probabilities"], atol=1e-5)


def load_model(run, data):
    return load_network(run.best_model, run.spec, load_table(run.spec, data.folder).classes)


@pytest.mark.parametrize(
    ("least", "message"),
    [(0.0, "b"), (0.5, "b"), (np.nextafter(0.5, 1), "uncertain"), (1, "uncertain")],
)
def test_the_least_confidence_itself_is_enough(least, message):
    probabilities = np.array([0.125, 0.5, 0.25, 0.125])
    result = answer(probabilities, ["a", "b", "c", "d"], min_confidence=least)
    assert result == {"answer": message, "top": [("b", 0.5), ("c", 0.25), ("a", 0.125)]}


def test_fewer_classes_than_three():
    result = answer(np.array([0.25, 0.75]), ["a", "b"], min_confidence=0)
    assert result["top"] == [("b", 0.75), ("a", 0.25)]


def test_the_console_lines(tmp_path):
    top = [("b", 0.5), ("a", 0.25)]
    message = {"x": {"answer": "b", "top": top}, "long": {"answer": "uncertain", "top": top}}
    assert answer_lines(tmp_path / "p.png", message) == [
        str(tmp_path / "p.png"),
        "  x     b 0.500, a 0.250",
        "  long  uncertain: b 0.500, a 0.250",
    ]


# === The command ===


def read_rows(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_dict("records")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_what_it_says(run, onnx, known, mixed, tmp_path, capsys):
    """CSV, JSON Lines and Parquet alike, from the export and from the run alike."""
    files, painted = mixed
    expected = known.answers(painted)
    kinds = {
        onnx: f"ONNX Runtime {onnxruntime.__version__}",
        f"--workdir={run.workdir}": f"TensorFlow {tf.__version__}",
    }
    for kind, runtime in kinds.items():
        for suffix in ("csv", "jsonl", "parquet"):
            out = tmp_path / f"answers.{suffix}"
            main(["predict", kind, f"--out={out}", "--min_confidence=0.5", *map(str, files)])
            text, err = capsys.readouterr()
            first, *_, uncertain, last = text.splitlines()
            assert first == f"Predicting 5 images with {runtime}"
            assert last == f"Written: {out}"
            bad = err.splitlines()
            assert [line.split(":")[0] for line in bad] == [str(files[1]), str(files[3])]
        lines = (tmp_path / "answers.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["path"] for record in records] == list(map(str, files))
        for name in ("answers.csv", "answers.parquet"):
            rows = read_rows(tmp_path / name)
            assert [row["path"] for row in rows] == list(map(str, files))
            for place, (row, record) in enumerate(zip(rows, records, strict=True)):
                if place in (1, 3):
                    assert f"{files[place]}: {row['error']}" == bad[place // 2]
                    assert record == {"path": row["path"], "error": row["error"]}
                    for name in ("shade/predicted", "shade/1", "shade/1_probability"):
                        assert row[name] == "" or pd.isna(row[name])
                    continue
                assert row["error"] == ""
                for task, names in known.CLASSES.items():
                    values = expected[task][place]
                    order = np.argsort(-values)[:3]
                    message = names[order[0]] if values[order[0]] >= 0.5 else "uncertain"
                    assert row[f"{task}/predicted"] == record["tasks"][task]["answer"] == message
                    for rank, index in enumerate(order, start=1):
                        top = record["tasks"][task]["top"][rank - 1]
                        assert row[f"{task}/{rank}"] == top["name"] == names[index]
                        probability = float(row[f"{task}/{rank}_probability"])
                        assert probability == pytest.approx(values[index], abs=1e-5)
                        assert top["probability"] == pytest.approx(values[index], abs=1e-5)
        doubtful = {
            task: np.mean([expected[task][i].max() < 0.5 for i in (0, 2, 4)]) for task in expected
        }
        logged_lines = ", ".join(f"{task} {share:.1%}" for task, share in doubtful.items())
        assert uncertain == f"Uncertain: {logged_lines}"
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*.partial"))


def test_without_out_the_console_has_the_answers(run, known, mixed, capsys):
    files, _painted = mixed
    texts = set()
    for kind in (f"--model={run.workdir / 'export'}", f"--workdir={run.workdir}"):
        main(["predict", kind, "--min_confidence=0.5", *map(str, files)])
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        str(files[place]) for place in (0, 2, 4)
    ]
    assert "uncertain: " in text


def test_nothing_readable_is_status_2(onnx, mixed, capsys):
    files, _ = mixed
    assert stopped(onnx, files[1], files[3]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second, last = err.splitlines()
    assert first.startswith(f"{files[1]}: not a JPEG, PNG or WebP image")
    assert second == f"{files[3]}: not a JPEG, PNG or WebP image: it is empty"
    assert last == "none of the images can be read"


@pytest.mark.parametrize("name", ["answers.txt", "gone/answers.csv", "folder.csv"])
def test_a_bad_out_is_refused_before_the_work(run, mixed, tmp_path, capsys, name):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.csv" / "mine").write_text("kept")
    assert (
        stopped(f"--model={run.workdir / 'export'}", f"--out={tmp_path / name}", mixed[0][0]) == 2
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"--out: {tmp_path / name}: ")
    assert err.count("\n") == 1
    assert (tmp_path / "folder.csv" / "mine").read_text() == "kept"


def test_a_file_name_that_is_no_text(onnx, mixed, tmp_path, capsysbinary):
    """Latin-1 bytes in a name: shown and written escaped, not a traceback."""
    path = tmp_path / "caf\udce9.png"
    shutil.copy(mixed[0][0], path)
    main(["predict", onnx, str(path)])
    assert rb"caf\udce9.png" in capsysbinary.readouterr().out
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"answers.{suffix}"
        main(["predict", onnx, f"--out={out}", str(path)])
        result = rb"caf\\udce9.png" if suffix == "jsonl" else rb"caf\udce9.png"
        assert result in out.read_bytes()


# === Resuming ===

SETTINGS = {"model": "m", "min_confidence": {"shade": 0.5}}
PREDICTION = {"shade": {"answer": "b", "top": [("b", 0.5), ("c", 0.25), ("a", 0.125)]}}
NAMES = {"shade": ("a", "b", "c", "d")}


def opened(path, settings=SETTINGS, resume=False):
    return PredictionFile(path, settings, NAMES, resume=resume)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_interrupted_prediction_goes_on(tmp_path, suffix):
    """A process killed within a line: the whole lines count, and the file is as it would be."""
    names = [f'a\n{i}, "b".png' for i in range(5)]
    whole, part = tmp_path / f"whole.{suffix}", tmp_path / f"part.{suffix}"
    answers = opened(whole)
    for name in names:
        answers.add(name, PREDICTION)
    answers.finish()
    first = opened(part)
    for name in names[:3]:
        first.add(name, PREDICTION)
    first.close()
    partial = tmp_path / f"part.{suffix}.partial"
    content = partial.read_bytes()
    partial.write_bytes(content[:-9])
    second = opened(part, resume=True)
    assert [name for name in names if not second.has(name)] == names[2:]
    for name in names[2:]:
        second.add(name, PREDICTION)
    second.finish()
    assert not partial.exists()
    if suffix == "parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(part), pd.read_parquet(whole))
        assert list(pd.read_parquet(part)["path"]) == names
    else:
        assert part.read_bytes() == whole.read_bytes()


def test_predictions_that_cannot_be_resumed_are_one_line(tmp_path):
    path = tmp_path / "a.csv"
    answers = opened(path)
    answers.add("x.png", "bad")
    answers.close()
    partial = tmp_path / "a.csv.partial"
    content = partial.read_bytes()
    changed = {**SETTINGS, "min_confidence": {"shade": 0.6}}
    cases = [
        (SETTINGS, False, content, "continue it with `resume`, or remove the file"),
        (changed, True, content, "min_confidence.shade: 0.5 before, 0.6 now"),
        (SETTINGS, True, b"path,error\n", "line 1 is not a valid record"),
        (SETTINGS, True, content + b"[]\n", "line 3 is not a valid record"),
        (SETTINGS, True, b'{"model"', "has no complete line"),
    ]
    for settings, resume, there, message in cases:
        partial.write_bytes(there)
        with pytest.raises(InputError, match=message) as caught:
            opened(path, settings, resume)
        assert "\n" not in str(caught.value)
        assert partial.read_bytes() == there
        assert not path.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_beginning_is_taken_up(tmp_path, resume):
    """Of a version that wrote its first line later, or of a full disk."""
    path = tmp_path / "a.csv"
    (tmp_path / "a.csv.partial").touch()
    answers = opened(path, resume=resume)
    answers.add("x.png", "bad")
    answers.finish()
    assert list(pd.read_csv(path)["path"]) == ["x.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "answers.csv"
    path.write_text("older")
    answers = opened(path)
    answers.add("a.png", "bad")

    def full_disk(self, rows):
        raise OSError("No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full_disk)
    with pytest.raises(DiskError, match=r"no room on the disk .* with `resume`"):
        answers.finish()
    assert path.read_text() == "older"
    monkeypatch.undo()
    again = opened(path, resume=True)
    again.finish()
    assert path.read_text() == (
        "path,error,shade/predicted,shade/1,shade/1_probability,shade/2,shade/2_probability,shade/3,"
        "shade/3_probability\na.png,bad,,,,,,,\n"
    )


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(run, data, tmp_path, capsys):
    """Killed by the answer to its third batch; then as one that was never interrupted."""
    files = [str(data.folder / "images" / p) for p in data.painted if p not in data.missing]
    common = ["predict", f"--model={run.workdir / 'export'}", "--batch_size=2"]
    main([*common, f"--out={tmp_path / 'whole.csv'}", *files])
    out = tmp_path / "part.csv"
    code = (
        "import os, sys\n"
        "from multitask.serving import predictor\n"
        "from multitask.__main__ import main\n"
        "answer, calls = predictor.Predictor.answer, []\n"
        "def killing(self, images):\n"
        "    calls.append(1)\n"
        "    os.kill(os.getpid(), 9) if len(calls) == 20 else None\n"
        "    return answer(self, images)\n"
        "predictor.Predictor.answer = killing\n"
        "from multitask.serving import prediction_files\n"
        "prediction_files.FLUSH_EVERY = 1\n"
        "main(sys.argv[1:])\n"
    )
    argv = [sys.executable, "-c", code, *common, f"--out={out}", *files]
    assert subprocess.run(argv, timeout=120, check=False).returncode == -9
    assert not out.exists()
    with pytest.raises(SystemExit) as caught:
        main([*common, f"--out={out}", *files])
    assert caught.value.code == 2
    assert "continue it with --resume" in capsys.readouterr().err
    main([*common, f"--out={out}", "--resume", *files])
    assert f"Resuming: 38 of {len(files)} images have predictions" in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_what_is_left_cannot_be_read(onnx, mixed, tmp_path, monkeypatch, capsys):
    (good, bad, *_), _ = mixed
    out = tmp_path / "answers.csv"
    argv = ["predict", onnx, f"--out={out}", str(good), str(bad)]

    def interrupted(*args, **kwargs):
        yield next(predict_files(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("multitask.serving.predict.predict_files", interrupted)
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 130
    main([*argv, "--resume"])
    assert "0 predicted; 1 cannot be read" in capsys.readouterr().out
    result = pd.read_csv(out)
    assert list(result["path"]) == [str(good), str(bad)]
    assert list(result["error"].isna()) == [True, False]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model=m", "--resume"], "--resume: needs --out"),
        (["--workdir=w", "--runtime=litert"], "--runtime=litert: needs --model"),
        (["--model=m", "--out=a.json"], "--out: a.json: Expected one of: .csv, .jsonl, .parquet"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(capsys, argv, message):
    assert stopped(*argv, "x.png") == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


# === Confidence ===

TEMPERATURES = {"shade": 2.5, "warmth": 0.5, "empty": 1.0}
STEPS = [[0.3, 0.6, 1.0], [0.5, 0.8, 0.7], [0.7, 0.9, 0.4]]


@pytest.fixture(scope="module")
def calibrated_run(known, data, tmp_path_factory):
    """A run with what `evaluate` writes of its confidences; "empty" has too few labels.

    Its export is in ONNX, which is written and loaded fastest: the temperatures, thresholds and
    views are those of the predictor, whatever computes the logits.
    """
    run = known.make_run(tmp_path_factory.mktemp("runs") / "calibrated", data)
    run.results.mkdir()
    tasks = {
        task: {
            "temperature": temperature,
            "fitted_on": 200 if task != "empty" else 8,
            "reason": None if task != "empty" else "only 8 validation images have a label",
            "steps": {"calibrated": STEPS, "raw": [[0.2, 0.95, 0.5]]} if task != "empty" else {},
        }
        for task, temperature in TEMPERATURES.items()
    }
    content = {"model": "models/best_model.keras", "tasks": tasks}
    (run.results / "calibration.json").write_text(json.dumps(content))
    export(run, formats=("onnx",))
    return run


@pytest.fixture(scope="module", params=["model", "workdir"])
def calibrated(request, calibrated_run):
    run = calibrated_run
    return load_export(run.workdir / "export") if request.param == "model" else load_best(run)


@pytest.fixture
def halves(known, tmp_path):
    """An image of the model's size whose left is of another colour than its right."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :9], pixels[:, 9:] = known.colours(2, 5)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return tmp_path / "halves.png", pixels


def expected(known, pixels, scale):
    """task -> probabilities of images [n, 32, 32, 3], from their mean colours by SciPy."""
    mean = np.asarray(pixels, np.float64).mean(axis=(1, 2))
    return {
        task: scipy.special.softmax(known.logits(mean, palette) / scale[task], axis=1)
        for task, palette in known.PALETTES.items()
    }


def test_probabilities_are_scaled_or_raw(calibrated, known, halves):
    file, pixels = halves
    raw = dataclasses.replace(calibrated, calibrated=False)
    one = dict.fromkeys(TEMPERATURES, 1.0)
    for predictor, scale in ((calibrated, TEMPERATURES), (raw, one)):
        ((_, result),) = predict_files(predictor, [file], batch_size=1)
        for task, values in expected(known, pixels[None], scale).items():
            np.testing.assert_allclose(result[task], values[0], atol=1e-5)


@pytest.mark.parametrize("tta", ["flip", "crops"])
@pytest.mark.parametrize("scale", [True, False])
def test_views_are_averaged(calibrated, known, halves, tta, scale):
    file, pixels = halves
    predictor = dataclasses.replace(calibrated, tta=tta, calibrated=scale)
    ((_, result),) = predict_files(predictor, [file], batch_size=1)
    views = np.concatenate(
        [view.numpy() for view in TTA[tta](tf.constant(pixels[None], "float32"))]
    )
    assert len(views) == {"flip": 2, "crops": 12}[tta]
    scales = TEMPERATURES if scale else dict.fromkeys(TEMPERATURES, 1.0)
    for task, values in expected(known, views, scales).items():
        np.testing.assert_allclose(result[task], values.mean(axis=0), atol=1e-5)
        if tta == "crops":
            plain = expected(known, pixels[None], scales)[task][0]
            assert np.abs(result[task] - plain).max() > 1e-3  # the corners are of other colours


def test_an_image_that_cannot_be_read_among_views(calibrated, mixed):
    files, _ = mixed
    predictor = dataclasses.replace(calibrated, tta="flip")
    result = [message for _, message in predict_files(predictor, files, batch_size=16)]
    assert [isinstance(message, str) for message in result] == [False, True, False, True, False]


def test_thresholds_of_a_wished_accuracy(calibrated):
    known_ones = dataclasses.replace(
        calibrated, calibrations={t: calibrated.calibrations[t] for t in ("shade", "warmth")}
    )
    assert known_ones.thresholds(0.75) == {"shade": 0.5, "warmth": 0.5}
    assert known_ones.thresholds(0.9) == {"shade": 0.7, "warmth": 0.7}
    raw = dataclasses.replace(known_ones, calibrated=False)
    assert raw.thresholds(0.9) == {"shade": 0.2, "warmth": 0.2}
    steps = {"calibrated": [[0.1, 0.2, 1.0]]}
    worse = dataclasses.replace(known_ones.calibrations["warmth"], steps=steps)
    mixed = {"shade": known_ones.calibrations["shade"], "warmth": worse}
    mixed = dataclasses.replace(known_ones, calibrations=mixed)
    assert mixed.thresholds(0.9) == {"shade": 0.7, "warmth": np.inf}
    assert answer(np.array([0.0, 1.0]), "ab", min_confidence=np.inf)["answer"] == "uncertain"
    with pytest.raises(InputError) as caught:
        known_ones.thresholds(0.95)
    assert str(caught.value) == (
        "min_confidence: auto:0.95: the validation split shows no such confidence (shade: this "
        "accuracy is never reached, at most 0.900; warmth: this accuracy is never reached, at most "
        "0.900). Give a number, such as 0.6; a new training with a larger "
        "validation split (field validation) may provide one"
    )
    assert calibrated.thresholds(0.75) == {"shade": 0.5, "warmth": 0.5, "empty": np.inf}


def test_without_an_evaluation_nothing_is_known(predictor):
    with pytest.raises(InputError, match=r"has no calibration, as this model was not evaluated"):
        predictor.thresholds(0.5)


def test_another_models_calibration_is_not_taken(calibrated_run, tmp_path):
    other = calibrated_run.models / "best_model_shade.keras"
    shutil.copy(calibrated_run.best_model, other)
    predictor = load_best(calibrated_run, model_file=other)
    assert {result.temperature for result in predictor.calibrations.values()} == {1.0}
    other.unlink()


@pytest.mark.parametrize("text", ["x", "1.5", "-0.1", "auto", "auto:", "auto:2", "aut:0.5", "nan"])
def test_a_confidence_that_is_none_is_one_line(capsys, text):
    assert stopped(f"--min_confidence={text}", "--model=x", "y.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--min_confidence: {text!r}: expected a number from 0 to 1, or auto:" in line


def test_the_command_takes_them(calibrated_run, halves, tmp_path, capsys):
    export_of = calibrated_run.workdir / "export"
    main(["predict", f"--model={export_of}", "--min_confidence=auto:0.9", str(halves[0])])
    assert capsys.readouterr().out.startswith(
        "Thresholds: shade 0.700, warmth 0.700, empty never (only 8 validation images have a "
        "label, at least 30 are needed)\n"
    )
    content = json.loads((export_of / "classes.json").read_text())
    content["calibration"]["empty"] = content["calibration"]["shade"]
    copy = tmp_path / "export"
    shutil.copytree(export_of, copy)
    (copy / "classes.json").write_text(json.dumps(content))
    main(["predict", f"--model={copy}", "--min_confidence=auto:0.9", "--tta=flip", str(halves[0])])
    out = capsys.readouterr().out
    assert out.startswith("Thresholds: shade 0.700, warmth 0.700, empty 0.700\n")
    main(["predict", f"--model={copy}", "--nocalibrated", "--min_confidence=auto:0.9",
          str(halves[0])])  # fmt: skip
    assert capsys.readouterr().out.startswith(
        "Thresholds: shade 0.200, warmth 0.200, empty 0.200\n"
    )


# === Exports that are none ===


def broken(change):
    def make(folder):
        content = json.loads((folder / "classes.json").read_text())
        change(content)
        (folder / "classes.json").write_text(json.dumps(content))

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "classes.json").unlink(), "not an export of multitask"),
        (lambda folder: (folder / "report.json").unlink(), "not an export of multitask"),
        (lambda folder: (folder / "classes.json").write_text("0 a\n1 b\n"), "not an export"),
        (lambda folder: (folder / "classes.json").write_text("[]"), "not an export"),
        (lambda folder: (folder / "classes.json").write_bytes(b"\xff\xfe"), "not an export"),
        (broken(lambda c: c.update(format=1)), "format 1, this version reads 4; export it again"),
        (broken(lambda c: c.update(format=5, classes=[])), "format 5"),
        (broken(lambda c: c.update(classes=["a"])), "not an export"),
        (broken(lambda c: c["classes"].update(more=["a"])), "not an export of multitask ('more')"),
        (
            broken(
                lambda c: [c[k].update(more=c[k]["warmth"]) for k in ("classes", "calibration")]
            ),
            "has no output for more",
        ),
        (broken(lambda c: c.update(resize="bend")), "not an export of multitask (resize 'bend')"),
        (broken(lambda c: c["calibration"]["shade"].update(temperature=0)), "temperature 0.0"),
        (
            broken(lambda c: c["classes"].update(warmth=["a"])),
            "1 class of warmth, but the model has 3",
        ),
        (lambda folder: (folder / "colours/1/saved_model.pb").unlink(), "cannot be loaded"),
        (
            lambda folder: (folder / "colours/1/saved_model.pb").write_text("text"),
            "cannot be loaded",
        ),
        (lambda folder: shutil.rmtree(folder / "colours/1/variables"), "cannot be loaded"),
    ],
)
def test_an_export_that_is_none_is_one_line(run, mixed, tmp_path, capsys, change, message):
    folder = tmp_path / "export"
    shutil.copytree(run.workdir / "export", folder)
    change(folder)
    assert stopped(f"--model={folder}", mixed[0][0]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"--model: {folder}: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_run_in_the_place_of_its_export_is_named(run, tmp_path, mixed, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    assert stopped(f"--model={workdir}", mixed[0][0]) == 2
    assert capsys.readouterr().err == (
        f"--model: {workdir}: a run; name its export, {workdir / 'export'}\n"
    )
    shutil.rmtree(workdir / "export")
    assert stopped(f"--model={workdir}", mixed[0][0]) == 2
    assert capsys.readouterr().err == (
        f"--model: {workdir}: a run, not an export; export it with `multitask export`\n"
    )


def test_a_run_without_a_model_or_classes(run, known, tmp_path, mixed, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    (workdir / "models" / "best_model.keras").unlink()
    assert stopped(f"--workdir={workdir}", mixed[0][0]) == 2
    assert "best_model.keras: no such model" in capsys.readouterr().err
    assert stopped(f"--workdir={run.workdir}", f"--data_dir={tmp_path}", mixed[0][0]) == 2
    assert "shade_class.txt: no such file" in capsys.readouterr().err
