"""Searches: they repeat, they resume after a kill, and their scores are those of `train`."""

import importlib
import itertools
import shutil
import signal
import subprocess
import sys
import tomllib

import numpy as np
import optuna
import pandas as pd
import pytest
import tomli_w
from logged import logged
from optuna.trial import TrialState
from PIL import Image

from multitask.annexes.tune.search import tune
from multitask.annexes.tune.space import GROUPS, search_space
from multitask.annexes.tune.trial import TrialTrainer
from multitask.data.merging import load_table
from multitask.data.table import VALIDATION
from multitask.errors import RunError
from multitask.learning.training import train
from multitask.model import trunks
from multitask.spec import InputError, load_spec, override, parse_spec

TRIALS, EPOCHS = 3, 3


@pytest.fixture(scope="module", autouse=True)
def known_trunk(uncompiled):
    with pytest.MonkeyPatch.context() as patch, uncompiled():
        patch.setitem(trunks.TRUNKS, "tiny", importlib.import_module("tiny_trunk").two_blocks)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/ and spec.toml: two tasks, of which the second has half the labels."""
    root = tmp_path_factory.mktemp("tuning")
    lists = root / "data" / "lists"
    lists.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 4)):
        rows = {"colour": [], "shade": []}
        for i in range(count):
            colour, path = i % 3, f"{split}-{i:02}.png"
            image = rng.integers(0, 120, (32, 32, 3))
            image[..., colour] += 100
            (root / "data" / "images").mkdir(exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(root / "data" / "images" / path)
            rows["colour"].append((path, colour))
            if i % 2:
                rows["shade"].append((path, int(i % 4 == 1)))
        for name, pairs in rows.items():
            text = "".join(f"{path},{label}\n" for path, label in pairs)
            (lists / f"{name}_{split}.csv").write_text(text)
    (lists / "colour_class.txt").write_text("0 red\n1 green\n2 blue\n")
    (lists / "shade_class.txt").write_text("0 light\n1 dark\n")
    schedule = {"kind": "constant", "rate": 3e-3}
    heads = {
        "colour": {"kind": "dense_stack", "units": [12], "dropout": [0.2]},
        "shade": {"kind": "linear", "dropout": 0.1},
    }
    raw = {
        "name": "tiny",
        "images": "images",
        "image_size": 32,
        "batch_size": 8,
        "validation": 0.3,
        "seed": 5,
        "trunk": {"name": "tiny", "weights": "none", "schedule": schedule},
        "phases": {"heads": {"epochs": EPOCHS}, "finetune": {"epochs": 0}},
        "task": [
            {
                "name": name,
                "train": f"lists/{name}_train.csv",
                "test": f"lists/{name}_val.csv",
                "classes": f"lists/{name}_class.txt",
                "head": head,
                "loss": {"kind": "focal", "gamma": 1.0, "alpha": 1.0},
                "schedule": schedule,
            }
            for name, head in heads.items()
        ],
    }
    (root / "spec.toml").write_text(tomli_w.dumps(raw))
    return root


def search(place, workdir, trials=TRIALS, lines=None, spec=None, **options):
    spec = spec or load_spec(str(place / "spec.toml"))
    with logged(lines):
        return tune(spec, place / "data", place / workdir, trials=trials, **options)


@pytest.fixture(scope="module")
def searched(place):
    """An uninterrupted search, and its log lines. A copy in `killed` is what a kill during the
    last trial would have left."""
    lines, trials, run = [], itertools.count(), TrialTrainer.run

    def copied(self, *args, **options):
        if next(trials) == TRIALS - 1:
            shutil.copytree(place / "whole", place / "killed")
        return run(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialTrainer, "run", copied)
        return search(place, "whole", lines=lines), lines


def outcomes(frame):
    """All of the trials but what a clock measured."""
    return frame.drop(columns="seconds")


def states(workdir):
    storage = f"sqlite:///{workdir / 'tune' / 'study.db'}"
    return [t.state for t in optuna.load_study(study_name="tune", storage=storage).trials]


def test_trial_0_is_the_spec(place, searched):
    """Its numbers, and the very score that a training with it has."""
    result, _ = searched
    first = result.trials.iloc[0]
    assert {name: first[name] for name in result.trials.columns[6:]} == {
        "colour.head.units": 12,
        "colour.head.dropout[0]": 0.2,
        "colour.schedule.rate": 3e-3,
        "colour.loss.gamma": 1,
        "colour.class_weight_exponent": 1,
        "colour.weight": 1,
        "shade.head.dropout": 0.1,
        "shade.schedule.rate": 3e-3,
        "shade.loss.gamma": 1,
        "shade.class_weight_exponent": 1,
        "shade.weight": 1,
    }
    spec = load_spec(str(place / "spec.toml"))
    trained = train(spec, place / "data", place / "plain", phase="heads")
    assert (first["score"], first["epoch"]) == (
        trained.best["macro_f1"],
        trained.best_epoch["macro_f1"],
    )


def test_the_best_spec_trains_to_the_best_score(place, searched):
    result, _ = searched
    frame = result.trials
    complete = frame[frame["state"] == "complete"]
    best = complete.loc[complete["score"].idxmax()]
    text = (result.folder / "best.toml").read_text()
    assert f"Trial {best['trial']}, the best of {TRIALS} " in text.splitlines()[0]
    assert f"{best['score']:.3f}" in text.split("\n\n")[0]
    spec = load_spec(str(result.folder / "best.toml"))
    space = search_space(spec, list(GROUPS))
    assert {d.name: d.value for d in space} == best[frame.columns[6:]].to_dict()
    assert spec.to_dict() == result.best.to_dict()
    # All else is as it was.
    raw = tomllib.loads((place / "spec.toml").read_text())
    assert spec.phases.heads.epochs == EPOCHS
    assert spec.seed == raw["seed"]
    trained = train(spec, place / "data", place / "tuned", phase="heads")
    assert trained.best["macro_f1"] == best["score"]
    assert trained.best_epoch["macro_f1"] == best["epoch"]


def test_the_files_and_lines_of_a_search(searched):
    result, lines = searched
    assert {path.name for path in result.folder.iterdir()} >= {
        "best.toml",
        "config.json",
        "study.db",
        "trials.csv",
        "tuning_history.png",
    }
    written = pd.read_csv(result.folder / "trials.csv")
    pd.testing.assert_frame_equal(written, result.trials, check_dtype=False)
    assert written["trial"].tolist() == list(range(TRIALS))
    assert written["score"].between(0, 1).all()
    trial_lines = [line for line in lines if line.startswith("trial ")]
    assert len(trial_lines) == TRIALS
    for line, score in zip(trial_lines, written["score"], strict=True):
        assert f"macro-F1 {score:.3f}" in line
    assert "best so far" in trial_lines[0]


def check_resumed(place, workdir, searched):
    """A search that was killed in trial 2 gets the trials of an uninterrupted one."""
    assert states(workdir) == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    lines = []
    result = search(place, workdir.name, lines=lines)
    assert "Resuming after 2 trials." in lines
    whole, _ = searched
    pd.testing.assert_frame_equal(outcomes(result.trials), outcomes(whole.trials))
    # The one that was killed counts for nothing.
    assert states(workdir)[2] == TrialState.FAIL
    assert len(states(workdir)) == TRIALS + 1


def test_a_search_goes_on_from_what_a_kill_leaves(place, searched):
    check_resumed(place, place / "killed", searched)


@pytest.mark.slow
def test_a_killed_search_is_resumed(place, searched):
    """The process is really killed."""
    workdir = place / "killed-process"
    argv = [
        "tune",
        f"--spec={place / 'spec.toml'}",
        f"--data_dir={place / 'data'}",
        f"--workdir={workdir}",
        f"--trials={TRIALS}",
        "--search=all",
    ]
    program = importlib.import_module("tiny_trunk").__file__
    process = subprocess.Popen(
        [sys.executable, program, "0.2", "1", *argv], stdout=subprocess.PIPE, text=True
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("trial 1 of"):
            break
    else:
        pytest.fail("".join(seen))
    while TrialState.RUNNING not in states(workdir):  # trial 2
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    check_resumed(place, workdir, searched)


def test_a_search_that_is_done_reports_again(place, searched):
    whole, _ = searched
    (whole.folder / "best.toml").unlink()
    lines = []
    again = search(place, "whole", lines=lines)
    assert not [line for line in lines if line.startswith("trial ")]
    pd.testing.assert_frame_equal(again.trials, whole.trials)
    assert (whole.folder / "best.toml").is_file()


def test_a_bad_trial_is_pruned(place, searched):
    """Five that were better at each epoch are put into the study; the next stops after two."""
    whole, _ = searched
    shutil.copytree(whole.folder, place / "pruned" / "tune")
    study = optuna.load_study(
        study_name="tune", storage=f"sqlite:///{place / 'pruned' / 'tune' / 'study.db'}"
    )
    model = study.trials[0]
    for _ in range(5):
        outcome = model.user_attrs["outcome"] | {"score": 1.5}
        study.add_trial(
            optuna.create_trial(
                state=TrialState.COMPLETE,
                value=1.5,
                params=model.params,
                distributions=model.distributions,
                user_attrs={"outcome": outcome},
                intermediate_values=dict.fromkeys(range(EPOCHS), 1.5),
            )
        )
    result = search(place, "pruned", trials=TRIALS + 6)
    last = result.trials.iloc[-1]
    assert (last["state"], last["epochs"]) == ("pruned", 2)
    assert 0 < last["score"] <= 1
    assert states(place / "pruned")[-1] == TrialState.PRUNED


@pytest.fixture(scope="module")
def brief(place):
    """A search by a task's own score that has no time for more than a trial, and its log lines."""
    lines = []
    options = {"metric": "shade", "groups": ["rates"], "minutes": 1e-6}
    return search(place, "metric", lines=lines, **options), lines


def test_a_tasks_own_score(place, brief):
    """Chosen by it, and the line says so; other settings then want another folder."""
    result, lines = brief
    spec = load_spec(str(place / "spec.toml"))
    trained = train(spec, place / "data", place / "plain", phase="heads")
    assert result.trials["score"].tolist() == [trained.best["shade/macro_f1"]]
    assert any(line.startswith("trial 0 of 3  shade macro-F1 ") for line in lines)
    before = {p.name: p.read_bytes() for p in result.folder.iterdir()}
    for options, words in (
        ({"metric": "colour", "groups": ["rates"]}, "(metric: 'shade' before, 'colour' now)"),
        (
            {"metric": "shade", "groups": ["losses", "rates"]},
            "(search: ['rates'] before, ['losses', 'rates'] now)",
        ),
    ):
        with pytest.raises(InputError) as refused:
            search(place, "metric", **options)
        assert str(refused.value) == (
            f"workdir: {place / 'metric' / 'tune'}: holds a search with other settings {words}; "
            "name another folder, or give the same settings to resume"
        )
    changed = parse_spec(spec.to_dict() | {"seed": 6}, source="x")
    with pytest.raises(InputError, match=r"\(seed: 5 before, 6 now\)"):
        search(place, "metric", spec=changed, metric="shade", groups=["rates"])
    assert {p.name: p.read_bytes() for p in result.folder.iterdir()} == before


def test_time_is_up(brief):
    result, lines = brief
    assert len(result.trials) == 1
    assert "Stopped after 1e-06 minutes; the same command resumes the search." in lines


def test_no_trial_is_finite(place):
    raw = load_spec(str(place / "spec.toml")).to_dict()
    for task_of in raw["task"]:
        task_of["schedule"]["rate"] = 1e30
    spec = parse_spec(raw, source="x")
    lines = []
    with pytest.raises(RunError, match=r"^no trial was completed: the loss of each"):
        search(place, "diverged", trials=1, spec=spec, lines=lines, groups=["rates"])
    trial_lines = [line for line in lines if line.startswith("trial ")]
    assert all("loss not finite after epoch" in line for line in trial_lines)
    assert len(trial_lines) == 1


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        (
            {"features": {"cache": "off"}},
            {},
            'toy.toml: features.cache: "off": tune needs auto or on',
        ),
        (
            {"mix": {"kind": "mixup"}},
            {},
            "toy.toml: mix: mix blends images, and tune trains on cached features; remove it",
        ),
        (
            {"phases": {"heads": {"epochs": 0}}},
            {},
            "phases.heads.epochs: 0: a trial is the phase heads; expected 1 or more",
        ),
        (
            {"validation": 0.0},
            {},
            "validation: 0: tune chooses by the validation split; expected more",
        ),
        (
            {},
            {"metric": "colours"},
            'metric: "colours": expected one of: colour, macro_f1, shade. Did you mean "colour"?',
        ),
    ],
)
def test_what_cannot_be_searched(place, changes, options, line):
    raw = load_spec(str(place / "spec.toml")).to_dict() | changes
    with pytest.raises(InputError) as refused:
        search(place, "refused", spec=parse_spec(raw, source="toy.toml"), **options)
    assert str(refused.value) == line
    assert not (place / "refused").exists()


def test_a_task_without_labels_to_choose_by(place):
    raw = load_spec(str(place / "spec.toml")).to_dict() | {"validation": 0.01}
    spec = parse_spec(raw, source="x")
    line = "^validation: 0.01: .* of the validation split; give a larger share"
    with pytest.raises(InputError, match=line) as caught:
        search(place, "refused", spec=spec, metric="shade")
    assert not (place / "refused").exists()
    # What it advises helps, and the next smaller of the shares would not.
    share = float(str(caught.value).rpartition("=")[2])
    for tried, labelled in ((share, True), (0.01, False)):
        table = load_table(override(spec, {"validation": tried}), place / "data")
        assert bool(len(table.labels_of("shade", VALIDATION))) == labelled


def test_one_image_a_class_leads_to_the_cause(place, tmp_path):
    """No share holds out the last image of a class, so none is advised."""
    shutil.copytree(place / "data", tmp_path / "data")
    for name, classes in (("colour", 3), ("shade", 2)):
        file = tmp_path / "data" / "lists" / f"{name}_train.csv"
        rows = [row.rsplit(",", 1) for row in file.read_text().splitlines()]
        first = {label: path for path, label in reversed(rows)}
        assert len(first) == classes
        file.write_text("".join(f"{path},{label}\n" for label, path in first.items()))
    spec = load_spec(str(place / "spec.toml"))
    for metric, tasks in (("macro_f1", "colour and shade"), ("shade", "shade")):
        with pytest.raises(InputError) as caught:
            search(tmp_path, "refused", spec=spec, metric=metric)
        line = str(caught.value)
        assert line.endswith(
            f"the largest class of {tasks} has 1 training image, and the last image of a class is "
            "never held out: add images, or train without a search (multitask train)"
        )
        assert "larger share" not in line
    assert not (tmp_path / "refused").exists()


def test_a_folder_with_something_else(place, searched):
    folder = place / "other" / "tune"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config.json: not a search's configuration"):
        search(place, "other")
    (folder / "config.json").unlink()
    (folder / "study.db").write_text("not a database, but long enough to be read " * 9)
    with pytest.raises(InputError, match=r"other files \(study.db, …\) and no search; name a new"):
        search(place, "other")
    shutil.copy(place / "whole" / "tune" / "config.json", folder)
    with pytest.raises(InputError, match=r"study.db: not a study of Optuna"):
        search(place, "other", groups=list(GROUPS))


@pytest.mark.parametrize("package", ["optuna", "tomli_w"])
def test_without_its_packages(place, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = rf"^multitask tune: needs {package}: pip install '\.\[tune\]' \(in the folder of this"
    with pytest.raises(InputError, match=line):
        search(place, "refused")
