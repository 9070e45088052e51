"""A prediction that was interrupted is resumed."""

import csv
import subprocess
import sys

import pandas as pd
import pytest
from predicting import stopped

from multitask.__main__ import main
from multitask.disk import DiskError
from multitask.serving.predict import predict_files
from multitask.serving.prediction_files import PredictionFile
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")


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
