"""Bad input of every kind: one clear line, exit status 2, and nothing written or changed."""

import os
import shutil
import struct
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multitask.__main__ import main
from multitask.data.image_files import why_unreadable
from multitask.evaluation.predictions import Predictions
from multitask.files import write_json
from multitask.learning import training
from multitask.metrics import classification_metrics
from multitask.run import open_run, start_run
from multitask.spec import MISSING, find_spec, load_spec

SPEC = """
name = "colours"
images = "images"
image_size = 32
batch_size = 8
validation = 0.0
max_missing = 0.1

[trunk]
name = "efficientnetb0"
weights = "none"
schedule = { kind = "constant", rate = 1e-3 }
"""
TASK = """
[[task]]
name = "NAME"
train = "lists/NAME_train.csv"
test = "lists/NAME_val.csv"
classes = "lists/NAME_class.txt"
head = { kind = "linear" }
loss = { kind = "focal", gamma = 1.0, alpha = 1.0 }
schedule = { kind = "constant", rate = 1e-3 }
"""


@pytest.fixture
def place(known, tmp_path):
    """A folder with data/, spec.toml that fits it, and no runs."""
    known.paint(tmp_path / "data")
    text = SPEC + TASK.replace("NAME", "shade") + TASK.replace("NAME", "warmth")
    (tmp_path / "spec.toml").write_text(text)
    return tmp_path


@pytest.fixture
def trained(place, known):
    """A run in `place`/run, with a model."""
    spec = load_spec(str(place / "spec.toml"))
    run = start_run(place / "run", spec, place / "data")
    known.colour_model(spec.task_names).save(run.best_model)
    return run


@pytest.fixture
def without_network(monkeypatch):
    """Building the network comes before the CSVs are read; it takes seconds and is not needed."""
    monkeypatch.setattr(training, "_first_network", lambda *args: None)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(capsys, place, *argv) -> str:
    """The line that refuses a call; nothing in `place` may have been written or changed."""
    before = content(place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*argv])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    after = content(place)
    assert after.keys() == before.keys()
    assert after == before
    return err.rstrip("\n")


def train_refused(capsys, place, *flags) -> str:
    named = {flag.split("=")[0] for flag in flags}
    usual = {
        "--spec": place / "spec.toml",
        "--data_dir": place / "data",
        "--workdir": place / "run",
    }
    given = [f"{flag}={value}" for flag, value in usual.items() if flag not in named]
    return refused(capsys, place, "train", *given, *flags)


# === Lists and class files ===


def replace_in(name, old, new):
    def change(data):
        path = data / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def write(name, text):
    return lambda data: (data / name).write_text(text)


def add_row(row):
    def change(data):
        with (data / "lists/shade_train.csv").open("a") as file:
            file.write(f"{row}\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: (data / "lists/shade_train.csv").rename(data / "lists/shade_trian.csv"),
            ["shade_train.csv: no such file", "shade_trian.csv"],
        ),
        (write("lists/shade_train.csv", ""), ["shade_train.csv: no training rows", '"shade"']),
        (write("lists/shade_train.csv", "\ufeff\r\n \n"), ["shade_train.csv", "no training rows"]),
        (write("lists/shade_train.csv", "path,class\n"), ["no training rows", "--tasks"]),
        (
            write("lists/shade_train.csv", "a.png\nb.png\n"),
            ["shade_train.csv", "path,class", "1 column"],
        ),
        (
            write("lists/shade_train.csv", "a.png,1,x\nb.png,2,y\n"),
            ["shade_train.csv", "path,class", "3 columns"],
        ),
        (
            write("lists/shade_train.csv", "a.png,1\nb.png,two\n"),
            ["shade_train.csv: line 2", "'two'", "0 to 11"],
        ),
        (
            write("lists/shade_train.csv", "a.png,1\nb.png,colar\n"),
            ["line 2", "'colar'", 'Did you mean "coral"?'],
        ),
        (
            write("lists/shade_train.csv", "a.png,12\nb.png,40\n"),
            ["shade_train.csv", "2 of 2 rows", "line 1", "'12'", "0 to 11", "max_unknown"],
        ),
        (
            write("lists/shade_train.csv", "a.png,-1\nb.png,-2\n"),
            ["shade_train.csv", "2 of 2 rows", "'-1'", "0 to 11"],
        ),
        (write("lists/shade_train.csv", "a.png,1\n,2\n"), ["line 2", "path", "empty"]),
        (add_row("../secret.png,1"), ["shade_train.csv: line 25", "'../secret.png'", "`..`"]),
        (add_row("a/../../b.png,1"), ["line 25", "'a/../../b.png'", "`..`"]),
        (add_row(r"..\b.png,1"), ["line 25", "`..`"]),
        (add_row("/etc/passwd,1"), ["line 25", "'/etc/passwd'", "absolute"]),
        (add_row(r"C:\x.png,1"), ["line 25", "absolute"]),
        (
            replace_in("lists/shade_class.txt", "4 slate", "44 slate"),
            ["shade_class.txt", "index 4 is missing", "0 to 11"],
        ),
        (
            replace_in("lists/shade_class.txt", "4 slate", "4 coral"),
            ["shade_class.txt: line 5", '"coral"', "is repeated"],
        ),
        (
            replace_in("lists/shade_class.txt", "4 slate", "3 slate"),
            ["shade_class.txt: line 5", "index 3", "is repeated"],
        ),
        (
            replace_in("lists/shade_class.txt", "4 slate", "slate"),
            ["shade_class.txt: line 5", "'slate'", "`index name`"],
        ),
        (
            lambda data: (data / "lists/warmth_class.txt").write_bytes(b"0 \xff\xfe\n"),
            ["warmth_class.txt", "UTF-8"],
        ),
        (
            lambda data: (data / "lists/warmth_class.txt").unlink(),
            ["warmth_class.txt: no such file"],
        ),
        (
            lambda data: (data / "images").rename(data / "elsewhere"),
            [f"{os.sep}images", "no such folder"],
        ),
    ],
)
def test_bad_lists(capsys, place, without_network, change, message):
    change(place / "data")
    line = train_refused(capsys, place)
    assert all(text in line for text in message), line
    assert str(place / "data") in line


def test_a_run_that_exists_is_not_changed_by_bad_lists(capsys, place, trained):
    (place / "data/lists/shade_val.csv").write_text("a.png\n")
    for command in ("evaluate", "export"):
        assert "path,class" in refused(capsys, place, command, f"--workdir={trained.workdir}")


# === Images ===


def jpeg(path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, "JPEG")


def truncated(path):
    jpeg(path)
    path.write_bytes(path.read_bytes()[:-900])


def huge(path):
    """A whole PNG by its chunks, of 30,000 x 30,000 pixels by its header."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    parts = [chunk(b"IHDR", header), pixels, chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "bad.jpg ("),
        (lambda path: path.write_text("a text"), "not a JPEG, PNG or WebP image"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (huge, "image of 30000 x 30000 pixels, over the limit"),
        (lambda path: path.mkdir(), "it is a folder, not a regular file"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_bad_image(capsys, place, without_network, tmp_path_factory, make, message):
    add_row("bad.jpg,1")(place / "data")
    make(place / "data/images/bad.jpg")
    # The records of the others are kept, elsewhere, for the next try. Three of 61 are missing.
    records_dir = tmp_path_factory.mktemp("records")
    line = train_refused(capsys, place, "--max_missing=0.05", f"--records_dir={records_dir}")
    assert "4 of 61 images" in line
    assert "bad.jpg" in line
    assert message in line
    assert "max_missing" in line
    assert "--max_missing" in line  # the way out
    if make is truncated:
        assert "no such file" not in line.split("bad.jpg (")[1].split(")")[0]


def test_an_image_of_one_pixel_is_one(place, trained, known, capsys):
    """It trains, is examined and predicted; the same answers as a larger one of its colour."""
    row = (place / "data/lists/shade_val.csv").read_text().splitlines()
    colour = next(
        file
        for path in (line.split(",")[0] for line in row)
        if (file := place / "data/images" / path).is_file()
    )
    argv = ["predict", f"--workdir={trained.workdir}", str(colour)]
    main(argv)
    before = capsys.readouterr().out
    with Image.open(colour) as image:
        image.crop((0, 0, 1, 1)).save(colour)
    main(argv)
    assert capsys.readouterr().out == before
    assert why_unreadable(colour) is None


# === Specs ===


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size = 8", "batchsize = 8", ['"batchsize"', 'Did you mean "batch_size"?']),
        (
            'classes = "lists/warmth_class.txt"\nhead = { kind = "linear" }',
            'classes = "lists/warmth_class.txt"\nhead = { kind = "linaer" }',
            ['task[1] "warmth"', "head.kind", '"linaer"', "residual_se", 'mean "linear"?'],
        ),
        ('name = "warmth"', 'name = "shade"', ["task[1]", "name", 'called "shade"']),
        ('name = "warmth"', 'name = "../warmth"', ["task[1]", "name", "../warmth"]),
        ('weights = "none"', 'wieghts = "none"', ["trunk", '"wieghts"', '"weights"']),
        ("image_size = 32", "image_size = 8", ["image_size", "8", "32"]),
        ("image_size = 32", "image_size = ", ["not valid TOML", "line 4"]),
        ('"constant"', '"constnat"', ["schedule.kind", '"constnat"', 'mean "constant"?']),
        ('"focal"', '"focall"', ["task[0]", "loss.kind", '"focall"', 'mean "focal"?']),
        (
            "batch_size = 8",
            'batch_size = 8\nmix = { kind = "cutmx" }',
            ["mix.kind", '"cutmx"', 'mean "cutmix"?'],
        ),
        (
            "batch_size = 8",
            'batch_size = 8\nsampler = { kind = "balanced", power = 1.5 }',
            ["sampler.power", "1.5", "less than or equal to 1"],
        ),
    ],
)
def test_bad_specs(capsys, place, old, new, message):
    path = place / "spec.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    line = train_refused(capsys, place)
    assert line.startswith(str(path))
    assert all(text in line for text in message), line


# === Flags and folders ===


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_size=0", ["--batch_size: 0", "greater than 0"]),
        ("--subset=0", ["--subset: 0", "greater than 0"]),
        ("--subset=nan", ["--subset: nan", "finite"]),
        ("--validation_share=0.9", ["--validation_share: 0.9", "0.5"]),
        ("--max_missing=1", ["--max_missing: 1", "less than 1"]),
        ("--image_size=-1", ["--image_size: -1", "32"]),
        ("--epochs_heads=-1", ["--epochs_heads: -1"]),
        ("--seed=-1", ["--seed: -1"]),
        ("--tasks=nonsense", ["--tasks", '"nonsense"', "shade, warmth"]),
        ("--tasks=shde,warmth", ['"shde"', 'Did you mean "shade"?']),
        ("--tasks=", ["--tasks", "shade, warmth"]),
        ("--trunk=nonsense", ['"nonsense"', "efficientnetb2"]),
        ("--trunk=efficientnet_b2", ['"efficientnet_b2"', 'Did you mean "efficientnetb2"?']),
        ("--trunk_weights=gone.h5", ['"gone.h5"', "no such file", "imagenet", "none"]),
        ("--spec=gone.toml", ["--spec: gone.toml: no such file"]),
        ("--spec=wikart", ['"wikart"', 'Did you mean "wikiart"?']),
        ("--data_dir=gone", ["--data_dir: gone"]),
        ("--phase=finetune", ["--phase: finetune", "--phase=heads", "--init_from"]),
        ("--init_from=gone.keras", ["--init_from", "--phase=finetune"]),
    ],
)
def test_bad_flags(capsys, place, flag, message):
    line = train_refused(capsys, place, flag)
    assert all(text in line for text in message), line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs_heads=0", "--epochs_finetune=0"], "--epochs_heads or --epochs_finetune"),
        (["--phase=heads", "--epochs_heads=0"], "--phase=heads: has 0 epochs"),
    ],
)
def test_nothing_to_train(capsys, place, flags, message):
    assert message in train_refused(capsys, place, *flags)


@pytest.mark.parametrize(
    ("depth", "message"),
    [("-9999", ["-9999", "layers"]), ("block99", ['"block99"', "block1", "none, all"])],
)
def test_a_freeze_depth_beyond_the_trunk(capsys, place, tiny_trunk, depth, message):
    line = train_refused(capsys, place, f"--trunk={tiny_trunk}", f"--freeze_depth={depth}")
    assert "--freeze_depth" in line
    assert all(text in line for text in message), line


def test_a_workdir_that_cannot_be_made(capsys, place):
    (place / "a_file").write_text("mine")
    for workdir in (place / "a_file", place / "a_file" / "run" / "first"):
        line = train_refused(capsys, place, f"--workdir={workdir}")
        assert line.startswith(f"--workdir: {workdir}: ")
        assert "a_file" in line


def test_a_workdir_that_holds_something_else(capsys, place):
    line = train_refused(capsys, place, f"--workdir={place / 'data'}")
    assert "holds other files" in line
    assert "new or empty folder" in line


def test_a_workdir_of_another_spec(capsys, place, trained):
    line = train_refused(capsys, place, "--image_size=64", "--subset=0.5")
    assert str(trained.workdir) in line
    assert "image_size: 32 before, 64 now" in line
    assert "task[0].subset: 1.0 before, 0.5 now" in line


def test_a_broken_run(capsys, place, trained):
    (trained.workdir / "config.json").write_text("{")
    for command in ("evaluate", "export", "similar"):
        line = refused(capsys, place, command, f"--workdir={trained.workdir}")
        assert "config.json" in line
    assert "config.json" in train_refused(capsys, place)


@pytest.mark.parametrize("command", ["evaluate", "export", "predict", "similar"])
def test_a_workdir_that_is_not_there(capsys, place, command):
    (place / "image.png").write_bytes(b"")
    images = [str(place / "image.png")] if command == "predict" else []
    line = refused(capsys, place, command, f"--workdir={place / 'gone'}", *images)
    assert str(place / "gone") in line
    assert "multitask train" in line
    line = refused(capsys, place, command, f"--workdir={place / 'data'}", *images)
    assert "no run" in line


# === Comparing runs ===


@pytest.fixture
def compared(place, trained):
    """Two runs that `compare` takes, by name."""
    names = []
    for name in ("run", "other"):
        run = start_run(place / name, trained.spec, place / "data")
        paths = np.array(["a.png", "b.png", "c.png"], dtype=object)
        labels = np.array([[0, 1], [1, MISSING], [2, 0]], np.int32)
        classes = {"shade": ("a", "b", "c"), "warmth": ("warm", "cold")}
        message = {task: np.eye(3, len(c), dtype=np.float32) for task, c in classes.items()}
        message["warmth"][2, 0] = 1
        predictions = Predictions(classes, paths, labels, message)
        predictions.save(run.results)
        evaluated = {}
        for task, names_of in classes.items():
            _, true, probabilities = predictions.labelled_examples(task)
            result = classification_metrics(true, probabilities, classes=len(names_of))
            evaluated |= {f"{task}/{key}": value for key, value in result.items()}
        write_json(run.results / "metrics.json", {"model": "m", "metrics": evaluated})
        names.append(str(run.workdir))
    return names


def test_fewer_than_two_runs_or_one_twice(capsys, place, compared):
    first, _ = compared
    assert "two runs or more" in refused(capsys, place, "compare")
    line = refused(capsys, place, "compare", first)
    assert "two runs or more" in line
    assert first in line
    line = refused(capsys, place, "compare", first, f"{first}/../run")
    assert "named twice" in line


def test_a_run_that_is_not_there_or_not_evaluated(capsys, place, compared):
    first, second = compared
    line = refused(capsys, place, "compare", first, f"{place}/gone")
    assert line.startswith(f"{place}/gone: there is no such folder")
    shutil.rmtree(f"{second}/results")
    line = refused(capsys, place, "compare", first, second)
    assert line.startswith(f"{second}: no results")
    assert f"multitask evaluate --workdir={second}" in line


def test_a_comparison_that_cannot_be_written(capsys, place, compared):
    (place / "a_file").write_text("mine")
    line = refused(capsys, place, "compare", *compared, f"--out={place / 'a_file'}")
    assert line.startswith(f"--out: {place / 'a_file'}: ")
    line = refused(capsys, place, "compare", *compared, "--uot=x")
    assert "unknown flag --uot" in line
    assert 'Did you mean "out"?' in line


def test_runs_with_different_test_sets(capsys, place, compared):
    file = Path(compared[1], "results/predictions.csv")
    file.write_text(file.read_text().replace("b.png", "d.png"))
    line = refused(capsys, place, "compare", *compared)
    assert line.startswith(
        "shade: the runs have different test sets: 2 images differ, the first is b.png"
    )


def test_a_broken_result(capsys, place, compared):
    Path(compared[0], "results/probabilities.npz").write_bytes(b"")
    line = refused(capsys, place, "compare", *compared)
    assert "not the results of one evaluation" in line


def test_runs_are_compared_where_nothing_is_wrong(capsys, place, compared):
    """What the refusals above protect; beside the first run where --out is not given."""
    main(["compare", *compared])
    assert "warmth" in capsys.readouterr().out
    written = sorted(path.name for path in (place / "comparison").iterdir())
    assert written == ["comparison.csv", "comparison.html"]


# === Models ===


@pytest.mark.parametrize("kind", ["a text", "an empty file", "a zip", "nothing"])
def test_a_model_file_that_is_not_one(capsys, place, trained, kind):
    path = place / "other.keras"
    if kind == "a zip":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
    elif kind != "nothing":
        path.write_text("a text" if kind == "a text" else "")
    wanted = f"{path}: no such model" if kind == "nothing" else f"{path}: not a model file"
    image = next((place / "data/images").rglob("*.png"))
    for command in ("evaluate", "export", "similar"):
        images = [str(image)] if command == "similar" else []
        argv = [f"--workdir={trained.workdir}", f"--model={path}", *images]
        line = refused(capsys, place, command, *argv)
        assert line.startswith(wanted)
    line = train_refused(
        capsys, place, f"--workdir={place / 'new'}", "--phase=finetune", f"--init_from={path}"
    )
    assert wanted in line


def test_a_model_of_other_tasks(capsys, place, trained, known):
    path = place / "other.keras"
    known.colour_model(("shade",)).save(path)
    line = train_refused(
        capsys, place, f"--workdir={place / 'new'}", "--phase=finetune", f"--init_from={path}"
    )
    assert "{'shade': 12}" in line
    assert "{'shade': 12, 'warmth': 3}" in line


def test_no_imagenet_weights_and_no_network(capsys, place, monkeypatch, tmp_path_factory):
    """With an empty cache of weights, and a proxy that nobody listens at."""
    cache = tmp_path_factory.mktemp("keras")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(cache))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it knows the proxies of its first use
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    line = train_refused(
        capsys,
        place,
        f"--spec={find_spec('wikiart')}",
        "--trunk=efficientnetb0",
        f"--data_dir={_wikiart_layout(place)}",
    )
    for text in ("imagenet", "--trunk_weights=FILE", "--trunk_weights=none", "network"):
        assert text in line
    assert not (place / "run").exists()
    assert list(cache.iterdir())  # Keras looked there


def _wikiart_layout(place):
    """Class files where the shipped spec looks for them; nothing else is needed by then."""
    folder = place / "layout"
    (folder / "wikiart_csv").mkdir(parents=True)
    for task in load_spec("wikiart").tasks:
        (folder / task.classes).write_text("0 one\n1 two\n")
    return folder


@pytest.mark.slow
def test_a_real_process_says_one_line_too(place, trained):
    """TensorFlow's own notes on unreadable images stay out of stderr."""
    name = (place / "data/lists/shade_val.csv").read_text().split(",")[0]
    truncated(place / "data/images" / name)
    before = content(place)
    argv = ["evaluate", f"--workdir={trained.workdir}", "--max_missing=0"]
    result = subprocess.run(
        [sys.executable, "-m", "multitask", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert name in line
    assert content(place) == before


def test_a_run_opens_where_its_data_was(trained, place):
    """What the refusals above protect."""
    assert open_run(trained.workdir).data_dir == (place / "data").resolve()


def test_a_backend_that_is_not_there(place, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torhc")
    line = train_refused(capsys, place)
    assert line == 'KERAS_BACKEND: "torhc". Expected one of: jax, tensorflow.'


def test_features_that_contradict_themselves(place, capsys):
    line = train_refused(capsys, place, "--cache_features=off", "--feature_views=2")
    assert line.endswith('features.views: needs cached features, and cache is "off"')
    line = train_refused(capsys, place, "--cache_features=of")
    assert "--cache_features: 'of': expected one of: auto, off, on." in line.lower()
    line = train_refused(capsys, place, "--feature_dtype=float61")
    assert "Did you mean" in line


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (
            ["--distribute=multihost", "--backend=tensorflow"],
            "--distribute=multihost: is for --backend=jax, not tensorflow",
        ),
        (
            ["--distribute=multihost", "--coordinator=first-host"],
            "--coordinator: 'first-host': expected host:port",
        ),
        (["--process_index=1"], "--process_index: is only for --distribute=multihost"),
        (["--distribute=mirored"], 'Did you mean "mirrored"?'),
    ],
)
def test_a_distribution_that_cannot_be(place, monkeypatch, capsys, flags, wanted):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                f"--spec={place / 'spec.toml'}",
                f"--data_dir={place / 'data'}",
                f"--workdir={place / 'run'}",
                *flags,
            ]
        )
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wanted in line
    assert not (place / "run").exists()


def similar_refused(capsys, trained, *argv) -> str:
    return refused(capsys, trained.workdir.parent, "similar", f"--workdir={trained.workdir}", *argv)


def test_queries_that_cannot_be_answered(capsys, place, trained):
    image = next((place / "data/images").rglob("*.png"))
    line = similar_refused(capsys, trained)
    assert "name at least one image" in line
    gone = place / "gone.png"
    assert similar_refused(capsys, trained, f"--query={gone}").startswith(f"{gone}: no such file")
    (place / "text.png").write_text("a text")
    line = similar_refused(capsys, trained, f"--query={place / 'text.png'}")
    assert line.startswith(f"--query: {place / 'text.png'}: ")
    assert "unknown content" in line
    line = similar_refused(capsys, trained, f"--query={image}", "--task=shadow")
    assert line == '--task: "shadow". Expected one of: shade, warmth. Did you mean "shade"?'
    line = similar_refused(capsys, trained, f"--query={image}", "--top_k=0")
    assert "--top_k: '0': expected a positive integer" in line
    (place / "again").mkdir()
    (place / "again" / image.name).write_bytes(image.read_bytes())
    line = similar_refused(capsys, trained, str(image), str(place / "again"))
    assert f"similar_{image.stem}.png" in line
    line = similar_refused(capsys, trained, str(image), f"--out={place / 'text.png'}")
    assert "cannot be written" in line


def test_similar_needs_a_model_and_data(capsys, place, trained):
    image = next((place / "data/images").rglob("*.png"))
    line = similar_refused(capsys, trained, str(image), f"--data_dir={place / 'moved'}")
    assert line == f"--data_dir: {place / 'moved'}: is not a folder"
    trained.best_model.unlink()
    line = similar_refused(capsys, trained, str(image))
    assert line == f"{trained.best_model}: no such model; `multitask train` makes it"
