"""Variants of a recipe, trained with the tiny trunk and measured on the validation split."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from multitask.__main__ import main as multitask
from multitask.errors import InputError
from multitask.run import open_run
from multitask.spec import OTHER_LABEL, parse_spec

FILE = Path(__file__).parents[2] / "tools" / "ablate.py"
SPEC = importlib.util.spec_from_file_location("ablate", FILE)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)

VARIANTS = """
[recipe]

["One task!"]
tasks = ["style"]
"phases.heads.epochs" = 2
"task.schedule.rate" = 1e-4
"""


@pytest.fixture
def spec(tiny_spec, tiny_trunk):
    tasks = ("artist", "style")
    raw = tiny_spec(tasks=tasks, validation=0.4, freeze_depth="all", batch_size=32).to_dict()
    raw["trunk"]["name"] = tiny_trunk
    raw["phases"]["finetune"]["epochs"] = 0
    raw["features"] = {"cache": "off"}
    raw["task"][0]["unlabelled"] = "other"
    return parse_spec(raw, source="tiny.toml")


@pytest.fixture
def data(tiny_data, half_labelled):
    return tiny_data(rows=half_labelled(32, artist_every=2))


@pytest.fixture
def in_process(monkeypatch, uncompiled):
    """Train in this process, which knows the tiny trunk; count the trainings."""
    commands = []

    def run(command, check):
        commands.append(command)
        with uncompiled():
            multitask(command[command.index("multitask") + 1 :])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(tool.subprocess, "run", run)
    return commands


@pytest.fixture
def variants(tmp_path):
    file = tmp_path / "variants.toml"
    file.write_text(VARIANTS)
    return tool.read_variants(file)


@pytest.fixture(scope="module")
def made():
    """What the tests of this file train once: (the runs, their table, the commands)."""
    return []


@pytest.fixture
def ablated(made, spec, data, variants, in_process, tmp_path_factory):
    """(the folder of both variants with the seeds 3 and 4, their table, the commands).

    Measured on the validation split.
    """
    if not made:
        out = tmp_path_factory.mktemp("ablated")
        shutil.copytree(data, out / "data")
        options = {"seeds": [3, 4], "test": False, "arguments": []}
        frame = tool.run_all(spec, out / "data", variants, out / "out", **options)
        made.extend((out, frame, list(in_process)))
        in_process.clear()
    return made


def test_each_variant_is_trained_with_each_seed_once(spec, variants, ablated, in_process):
    folder, frame, commands = ablated
    out = folder / "out"
    assert len(commands) == 4
    assert list(zip(frame["variant"], frame["seed"], strict=True)) == [
        (name, seed) for name in variants for seed in (3, 4)
    ]
    recipe, one = (open_run(out / name / "seed-4").spec for name in ("recipe", "one-task"))
    assert recipe.seed == one.seed == 4
    assert recipe.task_names == ("artist", "style")
    assert one.task_names == ("style",)
    assert (recipe.phases.heads.epochs, one.phases.heads.epochs) == (1, 2)
    assert [task.schedule.options["rate"] for task in recipe.tasks] == [1e-3] * 2
    assert [task.schedule.options["rate"] for task in one.tasks] == [1e-4]
    assert not any("(test)" in column for column in frame.columns)
    options = {"arguments": []}
    again = tool.run_all(spec, folder / "data", variants, out, seeds=[3, 4], test=False, **options)
    pd.testing.assert_frame_equal(again, frame)
    last = {"One task!": variants["One task!"]}
    tested = tool.run_all(spec, folder / "data", last, out, seeds=[4], test=True, **options)
    assert not in_process
    assert tested["style/top1 (test)"].notna().tolist() == [False, True]
    # The table keeps the other seeds, and what was measured before.
    before = frame[frame["variant"] == "One task!"].reset_index(drop=True)
    shared = [name for name in frame.columns if name in tested.columns]
    assert {"variant", "seed", "seconds", "style/top1", "style/macro_f1"} <= set(shared)
    pd.testing.assert_frame_equal(tested[shared], before[shared])
    text = (out / "ablation.md").read_text()
    assert text.splitlines() == tool.table_lines(tested)


def test_a_variant_changes_fields_and_tasks(spec, variants):
    fields = dict(variants["One task!"])
    tasks = fields.pop("tasks")
    slower = tool.spec_of(spec, fields, 5)
    assert (slower.task_names, slower.seed) == (("artist", "style"), 5)
    assert slower.phases.heads.epochs == 2
    assert {task.schedule.options["rate"] for task in slower.tasks} == {1e-4}
    alone = tool.spec_of(spec, {"tasks": tasks}, 6)
    assert alone.task_names == ("style",)
    assert alone.to_dict()["task"][0] == spec.to_dict()["task"][1]


def test_the_figures_are_those_of_the_split(ablated):
    """Against scikit-learn, on the predictions of the model for the split's images."""
    from multitask.data.table import VALIDATION
    from multitask.trained import open_trained

    run = ablated[0] / "out/recipe/seed-3"
    measured = json.loads(run.with_suffix(".json").read_text())[VALIDATION]
    trained = open_trained(open_run(run))
    table = trained.training_table
    rows = table.rows(VALIDATION)
    from multitask.data.pipeline import readable_images

    names = [str(trained.image_dir / path) for path in table.paths[rows]]
    ((_, images),) = readable_images(names, **trained.spec.reading, batch_size=len(names))
    logits = trained.network.predict_on_batch(images.numpy())
    right = np.ones(len(rows), bool)
    for column, task in enumerate(table.tasks):
        labels, predicted = table.labels[rows, column], logits[task].argmax(axis=1)
        known = labels >= 0
        assert measured[f"{task}/top1"] == pytest.approx(
            accuracy_score(labels[known], predicted[known])
        )
        f1 = f1_score(
            labels[known], predicted[known], average="macro", labels=np.unique(labels[known]),
            zero_division=0,
        )  # fmt: skip
        assert measured[f"{task}/macro_f1"] == pytest.approx(f1)
        right &= known & (labels == predicted)
    every = (table.labels[rows] >= 0).all(axis=1)
    assert measured["all right"] == pytest.approx(right[every].mean())
    artist = table.labels[rows, 0]
    counted = (artist >= 0) | (artist == OTHER_LABEL)
    energy = np.log(np.exp(logits["artist"].astype(float)).sum(axis=1))
    assert measured["artist/auroc"] == pytest.approx(
        roc_auc_score(artist[counted] >= 0, energy[counted])
    )


def test_the_table_has_means_and_deviations():
    frame = pd.DataFrame({
        "variant": ["a", "a", "b"], "seed": [0, 1, 0], "style/top1": [0.5, 0.7, 0.25],
        "artist/auroc": [np.nan, np.nan, 0.9], "seconds": [10.0, 14.0, 3.4],
    })  # fmt: skip
    assert tool.table_lines(frame) == [
        "| variant | seeds | style/top1 | artist/auroc | seconds |",
        "|---|---|---|---|---|",
        "| a | 2 | 0.600 ± 0.141 | n/a | 12 ± 3 |",
        "| b | 1 | 0.250 | 0.900 | 3 |",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 3", "a: expected a table of fields, [a]"),
        ("", "no variant"),
        ("[a b]", "cannot be read"),
        ('["a b"]\n[a-b]', "two variants have similar names"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "v.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        tool.read_variants(file)
    assert message in str(caught.value)


def test_a_wrong_field_is_reported_before_any_training(spec, data, tmp_path, in_process):
    variants = {"recipe": {}, "wrong": {"phases.heads.epoch": 3}}
    with pytest.raises(InputError, match=r"phases\.heads\.epoch"):
        tool.run_all(spec, data, variants, tmp_path, seeds=[0], test=False, arguments=[])
    assert in_process == []


def test_the_command_names_what_it_needs(capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["ablate.py", "--spec=wikiart_lite", "--data_dir=."])
    assert caught.value.code == 2
    assert "--variants is needed" in capsys.readouterr().err
