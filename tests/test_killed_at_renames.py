"""A command that is killed right before or after any of its renames is whole when it ran again."""

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "renames.py"


def drive(root, *arguments):
    """(status, output) of the driver in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(root), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def done(root, *command):
    status, output = drive(root, "whole", "-", *command)
    assert status == 0, output


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("walks")


@pytest.fixture
def fresh(shelf, tiny_data, tiny_spec, half_labelled):
    """A function: name -> a folder of that name with data/, and spec.toml of two tasks."""
    if not (shelf / "fresh").exists():
        (shelf / "fresh").mkdir()
        shutil.move(tiny_data(rows=half_labelled(14)), shelf / "fresh" / "data")
        rate = {"kind": "constant", "rate": 1e-3}
        spec = tiny_spec(
            tasks=("style", "genre"),
            selection=0.25,
            exclude_near_duplicates=True,
            trunk={"name": "tiny", "weights": "none", "schedule": rate},
            features={"cache": "on"},
        )
        (shelf / "fresh" / "spec.toml").write_text(spec.to_toml())
    return lambda name: copied(shelf / "fresh", shelf / name)


@pytest.fixture
def trained(shelf, fresh):
    """A function: name -> a folder of that name with data/, and run/ of one task, which is trained
    and exported."""
    if not (shelf / "trained").exists():
        root = fresh("trained")
        done(root, "train", *of_spec(root), "--tasks=style", f"--workdir={root / 'run'}")
        done(root, "export", f"--workdir={root / 'run'}")
        picture = next((root / "data" / "wikiart").glob("*/*.jpg"))
        shutil.copy(picture, root / "query.jpg")
        (root / "answers.csv").write_text("older answers")
    return lambda name: copied(shelf / "trained", shelf / name)


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def of_spec(root):
    return f"--spec={root / 'spec.toml'}", f"--data_dir={root / 'data'}"


def of_run(root):
    return f"--workdir={root / 'run'}", f"--data_dir={root / 'data'}"


def of_style(root):
    """Another model than the one that was evaluated and exported before."""
    return f"--model={root / 'run/models/best_model_style.keras'}"


# Command -> its flags, and how many processes share its kills.
OF_DATA = {
    "prepare": (lambda root: of_spec(root), 1),
    "audit": (lambda root: (*of_spec(root), f"--out={root / 'audit'}"), 1),
    "train": (lambda root: (*of_spec(root), f"--workdir={root / 'run'}"), 2),
    "tune": (lambda root: (*of_spec(root), f"--workdir={root / 'run'}", "--trials=2"), 2),
}
OF_RUNS = {
    # evaluate, export and predict replace what an older call left.
    "evaluate": (lambda root: (*of_run(root), of_style(root)), 2),
    "export": (lambda root: (*of_run(root), of_style(root)), 2),
    "similar": (
        lambda root: (*of_run(root), of_style(root), root / "query.jpg"),
        1,
    ),
    "compare": (lambda root: (root / "run", root / "other", f"--out={root / 'compared'}"), 1),
    "predict": (
        lambda root: (
            f"--model={root / 'run/export'}",
            f"--out={root / 'answers.csv'}",
            "--resume",
            root / "data/wikiart",
        ),
        1,
    ),
}


def walked(make, command, flags, shares):
    """Every kill of a command, by some processes at once; how many there were."""
    roots = [make(f"{command}-{share}") for share in range(shares)]
    if command == "compare":
        for root in roots:
            shutil.copytree(root / "run", root / "other")
    with ThreadPoolExecutor(shares) as pool:
        ends = pool.map(
            lambda share: drive(roots[share], share, shares, command, *flags(roots[share])),
            range(shares),
        )
        kills = 0
        for status, output in ends:
            print(output)
            assert status == 0, output
            kills += int(output.split()[-2])
    for root in roots:
        shutil.rmtree(root)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("command", OF_DATA)
def test_every_rename_of_a_command_on_data(fresh, command):
    assert walked(fresh, command, *OF_DATA[command]) >= {"train": 80}.get(command, 4)


@pytest.mark.slow
@pytest.mark.parametrize("command", OF_RUNS)
def test_every_rename_of_a_command_on_runs(trained, command):
    assert walked(trained, command, *OF_RUNS[command]) >= {"evaluate": 28}.get(command, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ("train", "before run/config.json"),
        ("train", "after run/checkpoint/000003"),
        ("train", "after run/results/metrics.json"),
        ("export", "after run/.old-export"),
    ],
)
def test_a_process_that_is_killed(shelf, fresh, trained, command, moment):
    """As above, with a real SIGKILL and another process, at some of the moments."""
    if command in OF_DATA:
        make, (flags, _) = fresh, OF_DATA[command]
    else:
        make, (flags, _) = trained, OF_RUNS[command]
    whole, root = shelf / f"whole-{command}", make("killed")
    if not whole.exists():
        done(make(whole.name), command, *flags(whole))
    status, output = drive(root, "kill", moment, command, *flags(root))
    assert status == -signal.SIGKILL, output
    done(root, command, *flags(root))
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if "events.out" not in path.name}
        for folder in (whole, root)
    ]
    assert names[0] == names[1]
    shutil.rmtree(root)
