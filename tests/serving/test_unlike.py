"""The answer `not like the training data`: through every output of `predict` and of an export."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from logged import logged
from PIL import Image
from sklearn.decomposition import PCA

from multitask.__main__ import main
from multitask.feature_distance import DISTANCE, UNLIKE, fit_distance
from multitask.runtimes.libraries import RUNTIMES
from multitask.serving import predict
from multitask.serving.answers import Distance, answer, answer_lines
from multitask.serving.export import export
from multitask.serving.formats import FORMATS
from multitask.serving.predictor import load_best, load_export, read_export
from multitask.spec import InputError
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed")


def reddish(count, seed):
    """uint8 [count, 3]: colours near one direction, as the training images are."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal([200, 90, 60], [25, 8, 4], (count, 3)), 1, 255).astype(np.uint8)


TRAINING, VALIDATION = reddish(200, 0), reddish(120, 1)
FITTED = fit_distance(TRAINING / 255, VALIDATION / 255)  # the trunk pools the colour
LIKE, BLUE = reddish(1, 2)[0], np.array([20, 40, 220], np.uint8)


def of_length_1(colours):
    values = np.asarray(colours, np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def expected(colours):
    """scikit-learn's log-likelihood under the same model: its square term is the distance."""
    model = PCA(n_components=1, svd_solver="full").fit(of_length_1(TRAINING))
    centred = of_length_1(colours) - of_length_1(TRAINING).mean(axis=0)
    return np.sqrt(np.einsum("ij,jk,ik->i", centred, model.get_precision(), centred) / 3)


@pytest.fixture(scope="module")
def run(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    run.results.mkdir()
    tasks = {task: {"temperature": 1.0, "fitted_on": 19, "steps": {}} for task in known.CLASSES}
    model = {"model": "models/best_model.keras"}
    (run.results / "calibration.json").write_text(json.dumps(model | {"tasks": tasks}))
    (run.results / DISTANCE).write_text(json.dumps(model | FITTED.to_dict()))
    export(run, formats=("onnx",))
    return run


@pytest.fixture(scope="module")
def old(known, data, tmp_path_factory):
    """A run of before the distance."""
    run = known.make_run(tmp_path_factory.mktemp("runs") / "old", data)
    export(run, formats=("onnx",))
    return run


@pytest.fixture
def images(tmp_path):
    """Names of the files: one like the training images, a blue one, one not readable."""
    files = [tmp_path / name for name in ("like.png", "blue.png", "text.png")]
    for path, colour in zip(files, (LIKE, BLUE), strict=False):
        Image.new("RGB", (20, 10), tuple(map(int, colour))).save(path)
    files[2].write_text("a text")
    return [str(file) for file in files]


def stopped(*argv):
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, argv)])
    return caught.value.code


def test_an_answer_says_so_before_all_others():
    probabilities = np.array([0.2, 0.5, 0.3])
    for least in (0.0, 0.9):
        far = answer(probabilities, "abc", min_confidence=least, distance=Distance(1.5, 1.2))
        assert far["answer"] == UNLIKE
        assert far["top"] == [("b", 0.5), ("c", 0.3), ("a", 0.2)]
    near = answer(probabilities, "abc", min_confidence=0, distance=Distance(1.2, 1.2))
    assert near["answer"] == "b"
    assert answer_lines("x.png", {"t": far}, Distance(1.5, 1.2)) == [
        "x.png",
        "  not like the training data (distance 1.500, limit 1.200)",
        "  t  no answer: b 0.500, c 0.300, a 0.200",
    ]
    assert answer_lines("x.png", {"t": near}, Distance(1.2, 1.2)) == [
        "x.png",
        "  t  b 0.500, c 0.300, a 0.200",
    ]


# === The command ===


@pytest.mark.parametrize("flag", ["model", "workdir"])
def test_the_console_says_so(run, images, capsys, flag):
    place = run.workdir / "export" if flag == "model" else run.workdir
    main(["predict", f"--{flag}={place}", *images])
    lines = capsys.readouterr().out.splitlines()
    distance = expected(BLUE[None])[0]
    assert lines[0] == images[0]
    assert lines[4:6] == [
        images[1],
        f"  {UNLIKE} (distance {distance:.3f}, limit {FITTED.limit():.3f})",
    ]
    assert [line.split()[1:3] == ["no", "answer:"] for line in lines] == [
        *[False] * 6,
        *[True] * 3,
    ]


@pytest.mark.parametrize("tta", [None, "flip", "crops"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_file_has_the_distance(run, known, images, tmp_path, capsys, suffix, tta):
    """Of the plain image, with test-time augmentation too."""
    out = tmp_path / f"out.{suffix}"
    flags = [
        f"--model={run.workdir / 'export'}",
        f"--out={out}",
        *([f"--tta={tta}"] if tta else []),
    ]
    main(["predict", *flags, *images])
    distances = expected([LIKE, BLUE])
    if suffix == "jsonl":
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert [record.get("unlike") for record in records] == [False, True, None]
        assert [r["distance"] for r in records[:2]] == pytest.approx(distances, rel=1e-3)
        answers = [[one["answer"] for one in r["tasks"].values()] for r in records[:2]]
        assert UNLIKE not in answers[0]
        assert set(answers[1]) == {UNLIKE}
        assert records[1]["tasks"]["shade"]["top"][0]["probability"] > 0
    else:
        table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
        assert list(table.columns[:4]) == ["path", "error", "distance", "unlike"]
        assert table["distance"][:2].tolist() == pytest.approx(distances, rel=1e-3)
        assert table["unlike"][:2].tolist() == [False, True]
        assert table[["distance", "unlike"]].isna()[2:].all(axis=None)
        for task in known.CLASSES:
            assert table[f"{task}/predicted"][1] == UNLIKE
            assert table[f"{task}/predicted"][0] == table[f"{task}/1"][0]
            assert table[f"{task}/1_probability"][1] > 0
    assert "Not like the training data: 1 image\n" in capsys.readouterr().out


def test_the_share_can_be_chosen(run, images, tmp_path):
    """0: never, though the distance is still there; a large share refuses both."""
    for share, unlike in (("0", [False, False]), ("0.999", [True, True])):
        out = tmp_path / f"{share}.parquet"
        flags = [f"--model={run.workdir / 'export'}", f"--max_unlike={share}", f"--out={out}"]
        main(["predict", *flags, *images[:2]])
        table = pd.read_parquet(out)
        assert table["unlike"].tolist() == unlike
        assert (table["shade/predicted"] == UNLIKE).tolist() == unlike
        assert table["distance"].tolist() == pytest.approx(expected([LIKE, BLUE]), rel=1e-3)


def test_the_same_answer_twice(run, images, tmp_path):
    texts = set()
    for batch in (1, 2):
        out = tmp_path / f"{batch}.csv"
        flags = [f"--model={run.workdir / 'export'}", f"--batch_size={batch}", f"--out={out}"]
        main(["predict", *flags, *images])
        texts.add(out.read_text())
    assert len(texts) == 1


def test_an_interrupted_prediction_keeps_its_share(run, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.csv"
    flags = [f"--model={run.workdir / 'export'}", f"--out={out}"]
    whole = predict.predict_files

    def interrupted(*args, **kwargs):
        yield next(whole(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(predict, "predict_files", interrupted)
        stopped(*flags, "--max_unlike=0.05", *images)
    assert stopped(*flags, "--resume", *images) == 2
    assert "max_unlike: 0.05 before, None now" in capsys.readouterr().err
    main(["predict", *flags, "--max_unlike=0.05", "--resume", *images])
    assert pd.read_csv(out)["unlike"][:2].tolist() == [False, True]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("1", "1: expected a number from 0 to below 1, such as 0.01"),
        ("-0.1", "-0.1: expected a number from 0 to below 1, such as 0.01"),
        ("nan", "nan: expected a number from 0 to below 1, such as 0.01"),
        ("0.001", "0.001: the 120 validation images allow a share from 0.009, or 0"),
    ],
)
def test_a_wrong_share_is_one_line(run, images, capsys, share, message):
    assert stopped(f"--model={run.workdir / 'export'}", f"--max_unlike={share}", images[0]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"--max_unlike: {message}\n")


@pytest.mark.parametrize("flag", ["model", "workdir"])
def test_a_model_of_before_goes_on_without(old, images, tmp_path, capsys, flag):
    place = old.workdir / "export" if flag == "model" else old.workdir
    out = tmp_path / "out.csv"
    main(["predict", f"--{flag}={place}", f"--out={out}", *images])
    table = pd.read_csv(out)
    assert not {"distance", "unlike"} & set(table.columns)
    assert UNLIKE not in table["shade/predicted"].tolist()
    capsys.readouterr()
    assert stopped(f"--{flag}={place}", "--max_unlike=0.01", images[0]) == 2
    assert capsys.readouterr().err == (
        "--max_unlike: 0.01: this model has no distance to the training images; `multitask "
        "evaluate` fits it, and the next `multitask export` includes it\n"
    )


# === Exports ===


def test_an_export_has_the_distance(run, tmp_path):
    for model in (open_trained(run), load_best(run), load_export(run.workdir / "export")):
        assert model.distance.to_dict() == FITTED.to_dict()
    one = export(run, formats=("onnx",), tasks=("shade",), out=tmp_path / "one")
    assert load_export(one).distance.to_dict() == FITTED.to_dict()


def test_every_format_has_the_same_distances(run, tmp_path, known):
    formats = [name for name in FORMATS if name != "keras"]  # no library here predicts with it
    folder = export(run, formats=formats, tasks=("warmth",), out=tmp_path / "all")
    painted = np.stack([LIKE, BLUE])
    shape = (2, known.SIZE_PX, known.SIZE_PX, 3)
    pixels = np.broadcast_to(painted[:, None, None], shape).astype(np.float32)
    runtimes = [name for name, one in RUNTIMES.items() if one.installed]
    assert len(runtimes) > 1
    for name in runtimes:
        model = load_export(folder, runtime=name)
        distances = model.distances(model.answer(pixels)[1])
        np.testing.assert_allclose(distances, expected(painted), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "is missing; export the model again"),
        (lambda file: file.write_text("{"), "is broken: "),
        (lambda file: file.write_text("[]"), "is broken: "),
        (
            lambda file: file.write_text(json.dumps(FITTED.to_dict() | {"noise": 0})),
            "is broken: a variance of a distance is not positive; export the model again",
        ),
        (
            lambda file: file.write_text(json.dumps(wide.to_dict())),
            "is for embeddings of 5 numbers, but the model has 3",
        ),
    ],
)
def test_a_broken_file_is_one_line(run, images, tmp_path, capsys, change, message):
    folder = tmp_path / "export"
    shutil.copytree(run.workdir / "export", folder)
    change(folder / DISTANCE)
    assert stopped(f"--model={folder}", images[0]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"--model: {folder / DISTANCE}: {message}")
    assert err.count("\n") == 1


wide = fit_distance(*(np.random.default_rng(seed).random((40, 5)) for seed in (0, 1)))


def test_another_distance_is_another_model(run, tmp_path):
    """So that an interrupted prediction does not go on with it."""
    folder = tmp_path / "export"
    shutil.copytree(run.workdir / "export", folder)
    other = fit_distance(TRAINING / 255, VALIDATION[:60] / 255)
    (folder / DISTANCE).write_text(json.dumps(other.to_dict()))
    first, second = (read_export(f)["identity"] for f in (run.workdir / "export", folder))
    assert first != second


def test_a_broken_file_of_a_run_is_one_line(run, images, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    (workdir / "results" / DISTANCE).write_text('{"model": "models/best_model.keras"}')
    assert stopped(f"--workdir={workdir}", images[0]) == 2
    err = capsys.readouterr().err
    assert err == f"{workdir}/results/{DISTANCE}: not what `multitask evaluate` writes: 'mean'\n"


def test_the_distance_of_another_model_is_not_used(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    file = workdir / "results" / DISTANCE
    file.write_text(json.dumps({"model": "models/other.keras"} | FITTED.to_dict()))
    from multitask.run import open_run

    assert open_trained(open_run(workdir)).distance is None


def test_a_model_without_embedding_has_no_distances(run):
    model = load_export(run.workdir / "export")
    assert model.distances(None) is None
    with pytest.raises(InputError, match="max_unlike: 2: expected a number"):
        model.distance_limit(2)


def test_the_check_of_an_export_has_the_share_of_each_artifact(run, known, data, tmp_path):
    """Quantized weights change the features."""
    lines: list[str] = []
    with logged(lines):
        options = {"quantize": "float16", "tasks": ("warmth",), "out": tmp_path / "half"}
        folder = export(run, formats=("onnx", "litert"), **options)
    report = json.loads((folder / "report.json").read_text())["artifacts"]
    assert "unlike" not in report[0]  # the model, whose outputs are logits
    painted = np.array([data.painted[path] for path in sorted(data.painted)])
    some = expected(painted) > FITTED.limit()
    assert some.any()
    assert {entry["format"] for entry in report[1:]} == {"onnx", "litert"}
    for entry in report[1:]:
        assert 0 < entry["unlike"] <= 1
    (line,) = [line for line in lines if line.startswith("Not like the training data, of these")]
    assert f"{report[1]['unlike']:.1%}" in line
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"is above {FITTED.limit():.3f} is {UNLIKE} (`distance.json`)" in card
