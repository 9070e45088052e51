"""Prediction: which files, in which order, what is answered and what is refused."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import tensorflow as tf
from color_profiles import ADOBE, rgb_profile
from PIL import Image
from predicting import stopped

from multitask.__main__ import main
from multitask.data.decode_arrays import decode_array
from multitask.data.merging import load_table
from multitask.evaluation.examiner import Examiner
from multitask.evaluation.predictions import predict_split
from multitask.model.network import load_network
from multitask.serving.answers import answer, answer_lines
from multitask.serving.predict import find_images, predict_files
from multitask.serving.predictor import load_export
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")


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


@pytest.mark.parametrize(
    ("model", "suffixes"), [("export", ("jsonl", "csv", "parquet")), ("run", ("jsonl",))]
)
def test_the_command_writes_what_it_says(
    run, onnx, known, mixed, tmp_path, capsys, model, suffixes
):
    """CSV, JSON Lines and Parquet alike, from the export and from the run alike."""
    files, painted = mixed
    expected = known.answers(painted)
    kind, runtime = {
        "export": (onnx, f"ONNX Runtime {onnxruntime.__version__}"),
        "run": (f"--workdir={run.workdir}", f"TensorFlow {tf.__version__}"),
    }[model]
    for suffix in suffixes:
        out = tmp_path / f"answers.{suffix}"
        main(["predict", kind, f"--out={out}", "--min_confidence=0.5", *map(str, files)])
        text, err = capsys.readouterr()
        first, *_, uncertain, last = text.splitlines()
        assert first == f"Predicting 5 images with {runtime}"
        assert last == f"Written: {out}"
        bad = err.splitlines()
        assert [line.split(":")[0] for line in bad] == [str(files[1]), str(files[3])]
    doubtful = {
        task: np.mean([expected[task][i].max() < 0.5 for i in (0, 2, 4)]) for task in expected
    }
    logged_lines = ", ".join(f"{task} {share:.1%}" for task, share in doubtful.items())
    assert uncertain == f"Uncertain: {logged_lines}"
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["path"] for record in records] == list(map(str, files))
    for place, record in enumerate(records):
        if place in (1, 3):
            assert record.keys() == {"path", "error"}
            assert f"{files[place]}: {record['error']}" == bad[place // 2]
        else:
            assert_record(record, known, expected, place)
    for suffix in suffixes[1:]:
        rows = read_rows(tmp_path / f"answers.{suffix}")
        assert [row["path"] for row in rows] == list(map(str, files))
        for row, record in zip(rows, records, strict=True):
            assert_row(row, record)
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*.partial"))


def assert_record(record, known, expected, place):
    """The answers of an image in JSON Lines are those expected."""
    for task, names in known.CLASSES.items():
        values = expected[task][place]
        order = np.argsort(-values)[:3]
        message = names[order[0]] if values[order[0]] >= 0.5 else "uncertain"
        result = record["tasks"][task]
        assert result["answer"] == message
        assert [top["name"] for top in result["top"]] == [names[index] for index in order]
        probabilities = [top["probability"] for top in result["top"]]
        assert probabilities == pytest.approx(values[order].tolist(), abs=1e-5)


def assert_row(row, record):
    """The answers of an image in a table are those in JSON Lines."""
    if "error" in record:
        assert row["error"] == record["error"]
        for name in ("shade/predicted", "shade/1", "shade/1_probability"):
            assert row[name] == "" or pd.isna(row[name])
        return
    assert row["error"] == ""
    for task, result in record["tasks"].items():
        assert row[f"{task}/predicted"] == result["answer"]
        for rank, top in enumerate(result["top"], start=1):
            assert row[f"{task}/{rank}"] == top["name"]
            probability = float(row[f"{task}/{rank}_probability"])
            assert probability == pytest.approx(top["probability"], abs=1e-5)


def test_without_out_the_console_has_the_answers(run, onnx, mixed, capsys):
    files, _painted = mixed
    texts = set()
    for kind in (onnx, f"--workdir={run.workdir}"):
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
