"""Hostile specs and lists, and tasks without a test set."""

import itertools
import json
import os
import re
import shutil

import pandas as pd
import pytest
from refusals import in_one_line

from multitask.__main__ import main
from multitask.files import write_json

pytestmark = pytest.mark.usefixtures("untimed")


SPEC = """
name = "hostile"
images = "images"
image_size = 32
batch_size = 12
validation = 0.2
[trunk]
name = "tiny"
weights = "none"
schedule = { kind = "constant", rate = 1e-3 }
[phases.heads]
epochs = 1
[phases.finetune]
epochs = 0
[[task]]
name = "kind"
train = "train.csv"
classes = "classes.txt"
head = { kind = "linear" }
loss = { kind = "focal" }
schedule = { kind = "constant", rate = 1e-3 }
"""


def write_collection(folder, write_image):
    """spec.toml and data/: 12 training images of two classes, and no test set."""
    for i in range(12):
        write_image(folder / f"data/images/p{i:02}.jpg", seed=i)
    rows = "".join(f"p{i:02}.jpg,{i % 2}\n" for i in range(12))
    (folder / "data/train.csv").write_text(rows)
    (folder / "data/classes.txt").write_text("0 a\n1 b\n")
    (folder / "spec.toml").write_text(SPEC)
    return folder


@pytest.fixture
def collection(tmp_path, write_image):
    """A folder with spec.toml and data/ of `write_collection`."""
    return write_collection(tmp_path, write_image)


@pytest.fixture(scope="module")
def made():
    """What `allowed` has made for the tests that follow."""
    return {}


@pytest.fixture
def allowed(made, write_image, records, capsys, tiny_trunk, undrawn, uncompiled, tmp_path_factory):
    """(folder, output) of a run that is trained and evaluated once.

    Its lists lie outside data/, which only the training is told by a flag.
    """
    if "folder" not in made:
        folder = write_collection(tmp_path_factory.mktemp("allowed"), write_image)
        (folder / "data/train.csv").rename(folder / "list.csv")
        (folder / "data/classes.txt").rename(folder / "names.txt")
        text = SPEC.replace("train.csv", "../list.csv").replace("classes.txt", "{}/names.txt")
        (folder / "spec.toml").write_text(text.replace("{}", str(folder)))
        run = f"--workdir={folder / 'run'}"
        data = [f"--spec={folder / 'spec.toml'}", f"--data_dir={folder / 'data'}"]
        with uncompiled():
            main(["train", *data, run, "--noevaluate", records, "--allow_outside"])
        main(["evaluate", run, "--nosimilar"])
        made.update(folder=folder, out=capsys.readouterr().out)
    return made["folder"], made["out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 2000 + "]" * 2000, "nested tables or lists"),
        ("x = " + "{a=" * 2000 + "1" + "}" * 2000, "nested tables or lists"),
        (".".join("a" * 2000) + " = 1", "nested tables or lists"),
        ("[" + ".".join("a" * 2000) + "]", "nested tables or lists"),
        ("[[" + ".".join("a" * 2000) + "]]", "nested tables or lists"),
        ("seed = " + "9" * 5000, "64 bits"),
        ("seed = 0x" + "f" * 5000, "64 bits"),
        ("image_size = 1" + "0" * 30, "64 bits"),
        ("licence = [" + "1, " * 3000 + "]", "valid string"),
        ("batch_size = 1e999999", "batch_size: inf: "),
        ("max_missing = nan", "max_missing: nan: "),
        (r'images = "pic\u0000tures"', r"images: 'pic\x00tures': control characters"),
        (r'title = "\u001b[2J"', r"title: '\x1b[2J': control characters"),
        (r'"a\u0000b" = 1', r'unknown field "a\x00b"'),
        (r'"a\u009bb" = 1', r'unknown field "a\x9bb"'),
        (f'"{"k" * 9000}" = 1', "unknown field"),
        ("# " + "x" * 20_000, "too large for a spec"),
        ("# x\n" * 300_000, "too large for a spec"),
        (f'licence = "{"x" * 9000}"\nname = 3', "name: 3: "),
    ],
    ids=itertools.count(),
)
def test_a_hostile_spec_is_one_line(collection, capsys, text, message):
    file = collection / "spec.toml"
    # A field stands once: that of the text.
    rest = [line for line in SPEC.split("\n") if f"{line.split(' = ')[0]} = " not in text]
    file.write_text("\n".join([text, *rest]), encoding="utf-8")
    err, _ = in_one_line(capsys, "prepare", f"--spec={file}", f"--data_dir={collection / 'data'}")
    assert err.startswith(f"{file}: ")
    assert message in err


def test_a_flag_moves_no_cursor(collection, capsys):
    err, _ = in_one_line(
        capsys, "prepare", f"--spec={collection}/\x1b[2J\x9b\u202e.toml", "--data_dir=x"
    )
    assert r"\x1b[2J\x9b\u202e.toml" in err


SECRET = "s3cret-token-of-somebody-else another-word"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('images = "images"', 'images = "{}"'),
        ('train = "train.csv"', 'train = "{}"'),
        ('train = "train.csv"', 'train = "train.csv"\ntest = "{}"'),
        ('classes = "classes.txt"', 'classes = "{}"'),
    ],
)
@pytest.mark.parametrize("kind", ["absolute", "dots", "backslashes", "drive"])
def test_a_spec_reads_nothing_outside_the_data(collection, capsys, old, new, kind):
    (collection / "secret").write_text(SECRET)
    path = {
        "absolute": collection / "secret",
        "dots": "x/../../secret",
        "backslashes": r"x\\..\\..\\secret",
        "drive": "C:secret",
    }[kind]
    file = collection / "spec.toml"
    file.write_text(SPEC.replace(old, new.format(path)))
    for command in ("audit", "prepare", "train", "tune"):
        err, out = in_one_line(
            capsys,
            command,
            f"--spec={file}",
            f"--data_dir={collection / 'data'}",
            *([f"--workdir={collection / 'run'}"] if command in ("train", "tune") else []),
            *([f"--out={collection / 'out'}"] if command == "audit" else []),
        )
        assert err.startswith(f"{file}: ")
        assert "--allow_outside" in err
        assert "s3cret" not in err + out
    assert not (collection / "run").exists()


def test_no_message_quotes_more_than_a_cell(collection, capsys):
    """Also where the flag allows what the file is not."""
    (collection / "secret").write_text(f"{SECRET}\n{SECRET}\n")
    for old in ('train = "train.csv"', 'classes = "classes.txt"'):
        field = old.split()[0]
        file = collection / "spec.toml"
        file.write_text(SPEC.replace(old, f'{field} = "../secret"'))
        argv = ("prepare", f"--spec={file}", f"--data_dir={collection / 'data'}")
        err, _ = in_one_line(capsys, *argv, "--allow_outside")
        assert f"{os.sep}secret: " in err
        assert "another-word" not in err


@pytest.mark.usefixtures("undrawn")
def test_what_was_allowed_once_is_evaluated_again(allowed, tmp_path, capsys):
    """`--allow_outside` stays with the run; without it a run's paths are refused as a spec's."""
    run = shutil.copytree(allowed[0] / "run", tmp_path / "run")
    assert "n/a (no test set)" in allowed[1]
    config = json.loads((run / "config.json").read_text())
    assert config["allow_outside"] is True
    # A run of before the flag: refused, and allowed by the flag.
    del config["allow_outside"]
    write_json(run / "config.json", config)
    err, _ = in_one_line(capsys, "evaluate", f"--workdir={run}")
    assert "task[0] \"kind\": train: '../list.csv'" in err
    assert "--allow_outside" in err
    main(["evaluate", f"--workdir={run}", "--nosimilar", "--allow_outside"])
    assert "n/a (no test set)" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_task_without_a_test_set_is_trained_and_says_so(allowed, tmp_path, capsys):
    folder, out = allowed
    run = shutil.copytree(folder / "run", tmp_path / "run")
    check_untested(run, out)
    argv = [f"--spec={folder / 'spec.toml'}", f"--data_dir={folder / 'data'}", "--allow_outside"]
    main(["audit", *argv, f"--out={tmp_path / 'audit'}"])
    out = capsys.readouterr().out
    assert "  kind: no test set\n" in out
    assert out.endswith("No findings.\n")
    shutil.copytree(run, tmp_path / "other")
    err, _ = in_one_line(capsys, "compare", run, tmp_path / "other", f"--out={tmp_path / 'out'}")
    assert "kind: not compared, no test set" in err
    main(["export", f"--workdir={run}", "--format=keras"])
    out = capsys.readouterr().out
    assert out.startswith("Checked 10 training images (no test set) against best_model.keras")
    assert "n/a/n/a" in out
    card = (run / "export/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| kind | n/a (no test set) |" in card
    assert "10 training images (no test set)" in card


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_task_with_an_empty_test_set_is_trained_and_says_so(collection, capsys, tiny_trunk):
    """By one command; the test above evaluates by another."""
    data, run = collection / "data", collection / "run"
    file = collection / "spec.toml"
    (data / "test.csv").write_text("path,class\n")
    file.write_text(SPEC.replace("classes =", 'test = "test.csv"\nclasses ='))
    main(["train", f"--spec={file}", f"--data_dir={data}", f"--workdir={run}", "--nosimilar"])
    check_untested(run, capsys.readouterr().out)


def check_untested(run, out):
    """What a run without test images wrote, and what its training and evaluation printed."""
    assert "  kind: no test set\n" in out
    assert re.search(r"heads 1/1 .* validation F1 [\d.]+ \*", out)  # chosen by it
    assert "\nkind  n/a (no test set)\n" in out
    results = json.loads((run / "results/metrics.json").read_text())
    assert results["without_test_set"] == ["kind"]
    assert results["metrics"]["kind/labelled"] == 0
    names = ("top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy", "ece", "outliers")
    assert {results["metrics"][f"kind/{name}"] for name in names} == {None}
    page = (run / "results/report.html").read_text(encoding="utf-8")
    assert page.count("n/a (no test set)") == 2
    report = (run / "results/classification_report_kind.txt").read_text()
    assert report == "n/a (no test set)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ("p00.jpg,0\n", None, "0 a\n1 b\n"),
        ("p00.jpg,0\n", "p01.jpg,1\n", "0 a\n1 b\n"),
        ("p00.jpg,0\np01.jpg,0\np02.jpg,0\n", "p03.jpg,0\n", "0 a\n"),
    ],
    ids=["one row", "a class without training", "one class"],
)
def test_the_smallest_collections_are_trained(collection, capsys, tiny_trunk, train, test, classes):
    data = collection / "data"
    (data / "train.csv").write_text(train)
    (data / "classes.txt").write_text(classes)
    if test:
        (data / "test.csv").write_text(test)
        spec = SPEC.replace("classes =", 'test = "test.csv"\nclasses =')
        (collection / "spec.toml").write_text(spec)
    argv = [f"--spec={collection / 'spec.toml'}", f"--data_dir={data}", "--nosimilar"]
    main(["train", *argv, f"--workdir={collection / 'run'}"])
    out = capsys.readouterr().out
    assert ("has a single class" in out) == (classes == "0 a\n")
    assert (collection / "run/results/report.html").is_file()


@pytest.mark.usefixtures("unplotted")
def test_every_command_reports_paths_in_another_spelling(
    collection, capsys, tiny_trunk, uncompiled
):
    data, run = collection / "data", collection / "run"
    images = data / "images"
    (images / "p00.jpg").rename(images / "P00.JPG")
    (images / "p01.jpg").rename(images / "cafe\u0301.jpg")
    rows = (data / "train.csv").read_text()
    (data / "train.csv").write_text(rows.replace("p01.jpg", "images\\café.jpg"), "utf-8")
    (data / "test.csv").write_text("P00.jpg,0\n")
    spec = SPEC.replace("classes =", 'test = "test.csv"\nclasses =')
    (collection / "spec.toml").write_text(spec)
    argv = [f"--spec={collection / 'spec.toml'}", f"--data_dir={data}"]
    message = "  3 paths are spelled differently from their file, which is read nevertheless ("
    with pytest.raises(SystemExit) as stopped:  # the test row is a training row, too
        main(["audit", *argv, f"--out={collection / 'audit'}"])
    assert stopped.value.code == 3
    out = capsys.readouterr().out
    assert message in out
    assert "letter case 2" in out
    assert "Findings: 1 image listed repeatedly, 1 class without" in out
    main(["prepare", *argv])
    assert message in capsys.readouterr().out
    with uncompiled():
        main(["train", *argv, f"--workdir={run}", "--nosimilar"])
    out = capsys.readouterr().out
    assert out.count(message) == 2  # of train, and of evaluate
    assert re.search(r"^train +\d+ +\d+$", out, re.M)
    table = pd.read_csv(run / "results/predictions.csv")
    assert table["path"].tolist() == ["P00.JPG"]
    assert "excluded images" not in out
