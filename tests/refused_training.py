"""A spec of painted colors, and calls that are refused without a change of any file."""

import pytest
from PIL import Image

from multitask.__main__ import main

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


def jpeg(path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, "JPEG")


def truncated(path):
    jpeg(path)
    path.write_bytes(path.read_bytes()[:-900])
