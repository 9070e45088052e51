"""Drafts of specs from Python: the guesses, the file, and what `train` makes of them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import collections_made as made
import pytest

import multitask as mt
from multitask.__main__ import main
from multitask.learning import training


@pytest.fixture
def folder(tmp_path, write_image, monkeypatch):
    """The current folder, with catalogue.csv and photos/."""
    made.make("csv", tmp_path, write_image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """A function: arguments of `train` -> spec, data folder and workdir of the training."""

    def run(*arguments, **options):
        given = []

        def stop(*positional, **_):
            given.extend(positional)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "train", stop)
            mt.train(*arguments, **options)
        return given

    return run


def test_a_draft_and_the_command_are_the_same(folder, capsys):
    draft = mt.draft_spec("catalogue.csv", images="photos", out="own.toml")
    capsys.readouterr()
    main(["init", "catalogue.csv", "--images=photos", "--out=mine.toml"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{draft}\n\nWritten: mine.toml.")
    assert Path("own.toml").read_bytes() == Path("mine.toml").read_bytes()
    assert Path("own.toml").read_text(encoding="utf-8") == draft.text
    assert draft.data_dir == folder
    assert draft.spec == mt.load_spec("own.toml")


def test_a_draft_shows_each_column_with_its_reason(folder):
    frame = made.rows().assign(town=["Delft", "Paris"] * 20, note="<b>")
    frame["school"] = frame["town"].map({"Delft": "Dutch", "Paris": "French"})
    frame.to_csv("catalogue.csv", index=False)
    draft = mt.draft_spec("catalogue.csv", images="photos")
    roles = draft.columns.set_index("column")["role"]
    assert roles.to_dict() == {
        "file": "image", "object": "group", "school": "task", "period": "task", "town": "task",
        "note": "none",
    }  # fmt: skip
    assert len(draft.warnings) == 3
    assert draft.warnings[0] == 'column "note": one value only: "<b>" 40'
    assert 'task "town" is a function of task "school"' in draft.warnings[1] + draft.warnings[2]
    shown = draft._repr_html_()
    (table,) = re.findall(r"<table><thead>.*?</table>", shown)
    cells = [["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(table)[1]]
    assert cells == draft.columns.to_numpy().tolist()
    assert "one value only: &#34;&lt;b&gt;&#34; 40" in shown
    assert "<b>" not in shown
    assert "3 classes, 32 labels" in shown


def test_a_choice_replaces_a_guess(folder):
    draft = mt.draft_spec(Path("catalogue.csv"), images="photos", tasks=["period"], group=r"(\d+)_")
    assert draft.spec.task_names == ("period",)
    assert draft.spec.table.group == r"(\d+)_"
    one = mt.draft_spec("catalogue.csv", images="photos", tasks="period")
    assert one.spec.task_names == ("period",)
    frame = made.rows().assign(part=["train"] * 30 + ["test"] * 10)
    frame.to_csv("catalogue.csv", index=False)
    draft = mt.draft_spec("catalogue.csv", images="photos", split_column="part")
    assert (draft.spec.table.split, draft.spec.table.test) == ("part", None)


def test_what_train_trains_on(folder, trained):
    own, data, run = (folder / name for name in ("own.toml", "catalogue.csv", "run"))
    draft = mt.draft_spec(data, images="photos", tasks=["period"], out=own)
    guessed = mt.draft_spec(data, images="photos").spec
    expected = [draft.spec, folder, run]
    assert trained(draft, workdir=run) == expected
    assert trained(own, workdir=run) == expected
    assert trained(mt.load_spec(own), workdir=run) == expected
    assert trained(draft.spec, folder, run) == expected
    assert trained(draft, folder / "moved", run)[1] == folder / "moved"
    assert trained(data=data, images="photos", workdir=run) == [guessed, folder, run]
    assert trained(mt.load_spec(own, image_size=64), workdir=run)[0].image_size == 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mt.train("own.toml", "."), "workdir: needed: the folder of the run"),
        (lambda: mt.train(workdir="run"), "spec: needed, or `data`, whose spec is guessed"),
        (lambda: mt.train("demo", workdir="run"), "data_dir: needed: the folder that the spec's"),
        (lambda: mt.train(mt.draft_spec("catalogue.csv", images="photos").spec, workdir="run"),
         "data_dir: needed: the folder that the spec's"),
        (lambda: mt.train(None, ".", "run", data="catalogue.csv"),
         "data_dir: with `data` alone, the paths start at the table's folder"),
        (lambda: mt.train("demo", ".", "run", images="photos"), "images: is for `data`"),
        (lambda: mt.draft_spec("catalog.csv"), 'catalog.csv: no such file or folder. Did you mean'),
        (lambda: mt.draft_spec("catalogue.csv", images="photo"), "images: photo: there is no such"),
        (lambda: mt.draft_spec("catalogue.csv", images="photos", out="a.csv"),
         "out: a.csv: expected a file that ends in .toml"),
        (lambda: mt.draft_spec("catalogue.csv", images="photos", out="old.toml"),
         "out: old.toml: exists; replace it with `overwrite`, or name another file"),
        (lambda: mt.draft_spec("catalogue.csv", images="photos", tasks=["shool"], out="own.toml"),
         'tasks: unknown column "shool". Expected one of:'),
    ],
)  # fmt: skip
def test_wrong_calls_are_one_line(call, message, folder):
    Path("old.toml").write_text("")
    with pytest.raises(mt.InputError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path("own.toml").exists()
    assert not Path("run").exists()


@pytest.mark.slow
def test_one_call_from_a_table_to_a_run(folder, tiny_trunk):
    small = {"trunk.name": tiny_trunk, "trunk.weights": "none", "freeze_depth": "all",
             "phases.heads.epochs": 1, "phases.finetune.epochs": 0}  # fmt: skip
    mt.draft_spec("catalogue.csv", images="photos", out="own.toml")
    run = mt.train(mt.load_spec("own.toml", small, image_size=32), workdir="run")
    assert run.evaluate(similar=False).metrics["labelled"].to_dict() == {"school": 8, "period": 6}
    assert run._repr_html_().startswith("<strong>Run of catalogue")
