"""Sets of classes: through every output of `predict`, through an export, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from multitask.__main__ import main
from multitask.conformal import Conformal, ScoreTable
from multitask.serving.answers import answer, answer_lines
from multitask.serving.export import export
from multitask.serving.prediction_files import PredictionFile
from multitask.serving.predictor import load_best, load_export
from multitask.spec import InputError
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed")

# Coverage .8 of 19 images is rank 16. Jointly, of 9 images, it is the level of rank 8.
SCORES = {
    "shade": np.linspace(0.0, 0.9, 19),
    "warmth": np.linspace(0.0, 0.45, 19),
    "empty": np.linspace(0.0, 0.9, 19),
}
LEVELS = np.arange(12, 21) / 20  # rank 8: .95, so scores of which at most 18 of 19 are as low
THRESHOLDS = {"shade": 0.75, "warmth": 0.375, "empty": 0.75}
JOINT = {"shade": 0.9, "warmth": 0.45, "empty": 0.9}  # scores below these
TABLES = Conformal(
    {task: ScoreTable.of(values) for task, values in SCORES.items()}, ScoreTable.of(LEVELS)
)


def calibration_of(known, **more):
    tasks = {task: {"temperature": 1.0, "fitted_on": 19, "steps": {}} for task in known.CLASSES}
    return {"model": "models/best_model.keras", "tasks": tasks} | more


@pytest.fixture(scope="module")
def run(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    run.results.mkdir()
    content = calibration_of(known, conformal=TABLES.to_dict())
    (run.results / "calibration.json").write_text(json.dumps(content))
    export(run, formats=("onnx",))
    return run


@pytest.fixture(scope="module")
def old(known, data, tmp_path_factory):
    """A run of before sets of classes."""
    run = known.make_run(tmp_path_factory.mktemp("runs") / "old", data)
    run.results.mkdir()
    (run.results / "calibration.json").write_text(json.dumps(calibration_of(known)))
    export(run, formats=("onnx",))
    return run


@pytest.fixture
def images(known, tmp_path):
    """(files, colours), the third of four not readable."""
    painted = known.colours(4, 21)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for path, colour in zip(files, painted, strict=True):
        Image.new("RGB", (20, 10), tuple(map(int, colour))).save(path)
    files[2].write_text("a text")
    return [str(file) for file in files], painted


def wanted(known, painted, *, joint=False):
    """Task -> names of the set of each image, class by class down the list of its classes."""
    sets = {}
    for task, probabilities in known.answers(painted).items():
        sets[task] = []
        for row in probabilities:
            names, mass = [], 0.0
            for place, label in enumerate(np.argsort(-row)):
                score = mass + 0.01 * max(0, place + 1 - 2)
                if place == 0 or (score < JOINT[task] if joint else score <= THRESHOLDS[task]):
                    names.append(known.CLASSES[task][label])
                mass += row[label]
            sets[task].append(names)
    return sets


def stopped(*argv):
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, argv)])
    return caught.value.code


def test_an_answer_has_its_set():
    """Scores by hand: b 0, c .5, a .81."""
    probabilities = np.array([0.2, 0.5, 0.3])
    for threshold, names in ((0.4, ["b"]), (0.6, ["b", "c"]), (np.inf, ["b", "c", "a"])):
        result = answer(probabilities, "abc", min_confidence=0, set_threshold=threshold)
        assert result["set"] == names
    lines = answer_lines("x.png", {"t": answer(probabilities, "abc", min_confidence=0.6) | result})
    assert lines[1:] == [
        "  t  b 0.500, c 0.300, a 0.200",
        "     set of 3 classes: b, c, a",
    ]
    assert "set" not in answer(probabilities, "abc", min_confidence=0)


# === The command ===


@pytest.mark.parametrize("joint", [False, True])
def test_the_console_shows_the_sets(run, known, images, capsys, joint):
    files, painted = images
    flags = [f"--model={run.workdir / 'export'}", "--coverage=0.8"]
    main(["predict", *flags, *["--joint"] * joint, *files])
    first, *lines = capsys.readouterr().out.splitlines()
    # Of 19 images, Beta(16, 4); of 9, Beta(8, 2).
    if joint:
        assert first == "Sets of coverage 0.8; 95 % range: all tasks 0.518 to 0.972 (from 9 images)"
    else:
        of_task = "0.604 to 0.939 (from 19 images)"
        parts = ", ".join(f"{task} {of_task}" for task in known.CLASSES)
        assert first == f"Sets of coverage 0.8; 95 % range: {parts}"
    sets = wanted(known, painted, joint=joint)
    shown = [line.strip() for line in lines if "set of" in line]
    assert shown == [
        f"set of {len(names)} {'class' if len(names) == 1 else 'classes'}: {', '.join(names)}"
        for place in (0, 1, 3)
        for names in (sets[task][place] for task in known.CLASSES)
    ]
    sizes = {len(names) for of_task in sets.values() for names in of_task}
    assert len(sizes) > 1  # or the test would show little


@pytest.mark.parametrize("flag", ["model", "workdir"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_file_has_the_sets(run, known, images, tmp_path, capsys, suffix, flag):
    files, painted = images
    out = tmp_path / f"out.{suffix}"
    place = run.workdir / "export" if flag == "model" else run.workdir
    main(["predict", f"--{flag}={place}", "--coverage=0.8", f"--out={out}", *files])
    sets = wanted(known, painted)
    if suffix == "jsonl":
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert "tasks" not in records.pop(2)
        for task in known.CLASSES:
            names = [record["tasks"][task]["set"] for record in records]
            assert names == [sets[task][i] for i in (0, 1, 3)]
    else:
        table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
        for task in known.CLASSES:
            readable = table[table["error"].fillna("") == ""]
            assert len(readable) == 3
            names = [sets[task][i] for i in (0, 1, 3)]
            cells = readable[f"{task}/set"]
            texts = cells if suffix == "csv" else map(" | ".join, cells)
            assert list(texts) == [" | ".join(each) for each in names]
            assert readable[f"{task}/set_size"].tolist() == [len(each) for each in names]
            assert pd.isna(table[f"{task}/set"][2])
    sizes = {task: sum(len(sets[task][i]) for i in (0, 1, 3)) / 3 for task in known.CLASSES}
    line = "Classes in a set: " + ", ".join(f"{task} {size:.1f}" for task, size in sizes.items())
    assert line in capsys.readouterr().out


def test_an_interrupted_prediction_keeps_its_coverage(run, images, tmp_path, capsys):
    """Its settings are compared, and its sets stay."""
    model = load_export(run.workdir / "export")
    settings = {
        "model": model.identity,
        "runtime": model.runtime,
        "min_confidence": dict.fromkeys(model.classes, 0.0),
        "calibrated": True,
        "tta": None,
        "coverage": 0.8,
        "joint": False,
    }
    out = tmp_path / "out.csv"
    first = PredictionFile(out, settings, model.classes, resume=False, sets=True)
    top = [("warm", 0.5)]
    kept = {"answer": "warm", "top": top, "set": ["kept", "sets"]}
    first.add(images[0][0], dict.fromkeys(model.classes, kept))
    first.close()
    flags = [f"--model={run.workdir / 'export'}", f"--out={out}", "--resume"]
    for other, text in (([], "coverage: 0.8 before, None now"), (["--coverage=0.7"], "0.7 now")):
        assert stopped(*flags, *other, *images[0]) == 2
        assert text in capsys.readouterr().err
    main(["predict", *flags, "--coverage=0.8", *images[0]])
    assert pd.read_csv(out)["shade/set"][0] == "kept | sets"


# === What is refused ===


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coverage=1"], "--coverage: 1: expected a number between 0 and 1, such as 0.9"),
        (["--coverage=90"], "--coverage: 90: expected a number between 0 and 1, such as 0.9"),
        (["--coverage=nan"], "--coverage: nan: expected a number between 0 and 1, such as 0.9"),
        (["--joint"], "--joint: needs --coverage, such as --coverage=0.9"),
        (
            ["--coverage=0.96"],
            "--coverage: 0.96: "
            + "; ".join(
                f"{task}: 19 validation images have a label; they allow a coverage up to 0.95"
                for task in SCORES
            ),
        ),
        (
            ["--coverage=0.95", "--joint"],
            "--coverage: 0.95: joint: 9 validation images have labels of several tasks; they allow "
            "a coverage up to 0.9",
        ),
        (
            ["--coverage=0.8", "--tta=flip"],
            "--coverage: 0.8: cannot be combined with tta; the sets are fitted on the calibrated "
            "probabilities of the plain image",
        ),
        (
            ["--coverage=0.8", "--nocalibrated"],
            "--coverage: 0.8: cannot be combined with nocalibrated; the sets are fitted on the "
            "calibrated probabilities of the plain image",
        ),
    ],
)
def test_what_cannot_be_promised_is_one_line(run, images, capsys, flags, message):
    assert stopped(f"--model={run.workdir / 'export'}", *flags, images[0][0]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", message + "\n")


@pytest.mark.parametrize("flag", ["model", "workdir"])
def test_a_model_of_before_has_no_sets(old, known, images, capsys, flag):
    """And everything else, as before."""
    place = old.workdir / "export" if flag == "model" else old.workdir
    assert stopped(f"--{flag}={place}", "--coverage=0.8", images[0][0]) == 2
    assert capsys.readouterr().err == (
        "--coverage: 0.8: this model has no scores for sets of classes; `multitask evaluate` "
        "computes them, and the next `multitask export` includes them\n"
    )
    main(["predict", f"--{flag}={place}", images[0][0]])
    assert "set of" not in capsys.readouterr().out
    assert "conformal" not in json.loads((old.workdir / "export" / "classes.json").read_text())


# === Exports ===


def test_an_export_has_the_scores_of_its_tasks(run, tmp_path):
    assert open_trained(run).conformal == TABLES
    assert load_best(run).conformal == TABLES
    assert load_export(run.workdir / "export").conformal == TABLES
    two = export(run, formats=("onnx",), tasks=("warmth", "shade"), out=tmp_path / "two")
    model = load_export(two)
    assert model.conformal == TABLES.of_tasks(("shade", "warmth"))
    for joint in (False, True):
        whole = TABLES.thresholds(0.8, joint=joint)
        assert model.set_thresholds(0.8, joint=joint) == {t: whole[t] for t in ("shade", "warmth")}
    one = load_export(export(run, formats=("onnx",), tasks=("shade",), out=tmp_path / "one"))
    assert one.set_thresholds(0.8) == {"shade": TABLES.thresholds(0.8)["shade"]}
    with pytest.raises(InputError, match="joint: no validation image has labels of several tasks"):
        one.set_thresholds(0.8, joint=True)


@pytest.mark.parametrize(
    "broken", [[], {"tasks": {}}, {"tasks": {"shade": {"scores": [1, 0], "counts": [1, 2]}}}]
)
def test_broken_scores_are_one_line(run, tmp_path, broken):
    folder = tmp_path / "export"
    shutil.copytree(run.workdir / "export", folder)
    content = json.loads((folder / "classes.json").read_text())
    content["conformal"] = broken
    (folder / "classes.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="not an export of multitask"):
        load_export(folder)


def test_raw_probabilities_have_no_sets(run):
    model = dataclasses.replace(load_export(run.workdir / "export"), calibrated=False)
    with pytest.raises(InputError, match="cannot be combined with nocalibrated"):
        model.set_thresholds(0.8)
