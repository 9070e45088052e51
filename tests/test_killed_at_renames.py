"""After a kill right before or after a rename, the same command still makes all its files."""

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "renames.py"


def drive(root, *arguments):
    """Run the driver in a separate process; return its exit status and output."""
    result = subprocess.run(
        [sys.executable, str(DRIVER), str(root), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout


def run_whole(root, *command):
    """Run a command without a kill."""
    status, output = drive(root, "whole", "-", *command)
    assert status == 0, output


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of all copies."""
    return tmp_path_factory.mktemp("walks")


@pytest.fixture
def fresh(base, tiny_data, tiny_spec, half_labelled):
    """Return a function: name -> a folder of that name with data/, and spec.toml of two tasks."""
    if not (base / "fresh").exists():
        (base / "fresh").mkdir()
        shutil.move(tiny_data(rows=half_labelled(14)), base / "fresh" / "data")
        rate = {"kind": "constant", "rate": 1e-3}
        spec = tiny_spec(
            tasks=("style", "genre"),
            validation=0.25,
            exclude_near_duplicates=True,
            trunk={"name": "tiny", "weights": "none", "schedule": rate},
            features={"cache": "on"},
        )
        (base / "fresh" / "spec.toml").write_text(spec.to_toml())
    return lambda name: copy_folder(base / "fresh", base / name)


@pytest.fixture
def trained(base, fresh):
    """Return a function: name -> a folder of that name with data/ and run/.

    The run has one task and is trained and exported.
    """
    if not (base / "trained").exists():
        root = fresh("trained")
        run_whole(root, "train", *spec_flags(root), "--tasks=style", f"--workdir={root / 'run'}")
        run_whole(root, "export", f"--workdir={root / 'run'}")
        image = next((root / "data" / "wikiart").glob("*/*.jpg"))
        shutil.copy(image, root / "query.jpg")
        (root / "answers.csv").write_text("older answers")
    return lambda name: copy_folder(base / "trained", base / name)


def copy_folder(source, target):
    shutil.copytree(source, target)
    return target


def spec_flags(root):
    return f"--spec={root / 'spec.toml'}", f"--data_dir={root / 'data'}"


def run_flags(root):
    return f"--workdir={root / 'run'}", f"--data_dir={root / 'data'}"


def model_flag(root):
    """Name another model than the one that was evaluated and exported before."""
    return f"--model={root / 'run/models/best_model_style.keras'}"


# Command -> its flags and the number of processes that share its kills.
DATA_COMMANDS = {
    "prepare": (spec_flags, 1),
    "audit": (lambda root: (*spec_flags(root), f"--out={root / 'audit'}"), 1),
    "train": (lambda root: (*spec_flags(root), f"--workdir={root / 'run'}"), 2),
    "tune": (lambda root: (*spec_flags(root), f"--workdir={root / 'run'}", "--trials=2"), 2),
}
RUN_COMMANDS = {
    # evaluate, export and predict replace the files of an older call.
    "evaluate": (lambda root: (*run_flags(root), model_flag(root)), 2),
    "export": (lambda root: (*run_flags(root), model_flag(root)), 2),
    "similar": (
        lambda root: (*run_flags(root), model_flag(root), root / "query.jpg"),
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


def count_kills(make, command, flags, shares):
    """Test every kill of a command, in several processes at once; return the number of kills."""
    roots = [make(f"{command}-{share}") for share in range(shares)]
    if command == "compare":
        for root in roots:
            shutil.copytree(root / "run", root / "other")
    with ThreadPoolExecutor(shares) as pool:
        results = pool.map(
            lambda share: drive(roots[share], share, shares, command, *flags(roots[share])),
            range(shares),
        )
        kills = 0
        for status, output in results:
            print(output)
            assert status == 0, output
            kills += int(output.split()[-2])
    for root in roots:
        shutil.rmtree(root)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_every_rename_of_a_command_on_data(fresh, command):
    assert count_kills(fresh, command, *DATA_COMMANDS[command]) >= {"train": 80}.get(command, 4)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_every_rename_of_a_command_on_runs(trained, command):
    assert count_kills(trained, command, *RUN_COMMANDS[command]) >= {"evaluate": 28}.get(command, 3)


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
def test_a_real_kill(base, fresh, trained, command, moment):
    """Some of the moments, with a real SIGKILL and a new process."""
    if command in DATA_COMMANDS:
        make, (flags, _) = fresh, DATA_COMMANDS[command]
    else:
        make, (flags, _) = trained, RUN_COMMANDS[command]
    whole, root = base / f"whole-{command}", make("killed")
    if not whole.exists():
        run_whole(make(whole.name), command, *flags(whole))
    status, output = drive(root, "kill", moment, command, *flags(root))
    assert status == -signal.SIGKILL, output
    run_whole(root, command, *flags(root))
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if "events.out" not in path.name}
        for folder in (whole, root)
    ]
    assert names[0] == names[1]
    shutil.rmtree(root)
