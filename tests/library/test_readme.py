"""The commands and the Python of the documentation run as written, on a small data set.

Only the shipped specs and the settings of drafts are other ones: their trunk is small and each
phase has one epoch.
"""

import re
import shlex
from pathlib import Path

import collections_made as made
import pandas as pd
import pytest

from multitask import spec as spec_module
from multitask.__main__ import main
from multitask.data import draft

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PLACEHOLDER = "IMAGE_OR_FOLDER ..."


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in fences if name == language]


@pytest.fixture
def checkout(tiny_data, tiny_spec, tiny_trunk, write_image, tmp_path, monkeypatch):
    """DIR in WikiArt's layout, catalogue.csv with photos/, a.jpg, b.jpg and my_museum.toml; the
    shipped specs and the settings of drafts made small."""
    monkeypatch.chdir(tmp_path)
    made.make("csv", tmp_path, write_image)
    monkeypatch.setattr(draft, "SETTINGS", re.sub(r"epochs = \d+", "epochs = 1", draft.SETTINGS))
    of_task = draft.TASK_SETTINGS.replace("depth = -30", "depth = -5")
    monkeypatch.setattr(draft, "TASK_SETTINGS", of_task)
    monkeypatch.setattr(draft, "TRUNKS", {tiny_trunk: "of the tests"})
    monkeypatch.setattr(draft, "TRUNK_SETTINGS", f'weights = "none", {draft.TRUNK_SETTINGS}')
    tiny_data(folder="DIR")
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        write_image(tmp_path / name, seed=100 + seed)
    trunk = {"name": "tiny", "weights": "none", "schedule": {"kind": "constant", "rate": 1e-3}}
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for name in ("wikiart", "wikiart_lite", "my_museum"):
        spec = tiny_spec(name=name, trunk=trunk, validation=0.3)
        (shipped / f"{name}.toml").write_text(spec.to_toml())
    (shipped / "my_museum.toml").rename(tmp_path / "my_museum.toml")
    monkeypatch.setattr(spec_module, "BUILT_IN_FOLDERS", (shipped,))
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/own_collection.md"])
def test_the_commands(page, checkout, monkeypatch):
    commands = [
        line.split("#")[0].replace(PLACEHOLDER, "a.jpg b.jpg")
        for block in blocks(page, "")
        for line in block.splitlines()
        if line.startswith("multitask ") and "serve" not in line  # which does not end
    ]
    assert [command.split()[1] for command in commands] == ["audit", "train", "export", "predict"]
    for command in commands:
        main(shlex.split(command)[1:])
    (workdir,) = (checkout / "runs").iterdir()
    report = (workdir / "results" / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in ("artist", "style", "genre", "Waves"))
    assert (checkout / "audit" / "audit.html").is_file()


def test_the_commands_of_one_table(tmp_path, tiny_trunk, write_image, monkeypatch):
    """Those of docs/own_collection.md; the trunk is small, and each phase has one epoch or none."""
    made.make("csv", tmp_path, write_image)
    monkeypatch.chdir(tmp_path)
    first, second = (
        [line for line in block.splitlines() if line.startswith("multitask ")]
        for block in blocks("docs/own_collection.md", "console")
    )
    assert [command.split()[1] for command in first] == ["init", "audit", "train"]
    assert [command.split()[1] for command in second] == ["train"]
    quick = [f"--trunk={tiny_trunk}", "--trunk_weights=none", "--image_size=32", "--nosimilar",
             "--freeze_depth=all", "--epochs_heads=1", "--epochs_finetune=0"]  # fmt: skip
    for command in first:
        main(shlex.split(command)[1:] + quick * (" train " in command))
    table = (tmp_path / "runs/mine/table.csv").read_bytes()
    (tmp_path / "runs").rename(tmp_path / "with_init")
    main(shlex.split(second[0])[1:] + quick)
    # One command trains on the same images, classes and splits as three.
    assert (tmp_path / "runs/mine/table.csv").read_bytes() == table
    for runs in ("with_init", "runs"):
        assert (tmp_path / runs / "mine/results/report.html").is_file()
    assert (tmp_path / "audit/audit.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python(page, checkout):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    run, model, evaluation = names["run"], names["model"], names["evaluation"]
    assert run.spec.task_names == ("artist", "style")
    assert run.spec.image_size == 224
    assert Path(evaluation.report).is_file()
    if page == "docs/python.md":
        assert names["draft"].spec.task_names == names["mine"].spec.task_names == made.TASKS
        assert names["mine"].spec.image_size == 160
    rows = pd.DataFrame(model.predict(["a.jpg", "b.jpg"]))
    assert len(rows) == 2
    assert set(rows["style/predicted"]) <= {"Dots", "Lines", "Waves"}
