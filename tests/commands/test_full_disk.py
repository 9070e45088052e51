"""Every command on a real disk that is full at the start, in the middle and near the end.

Each time the error is one line and status 1, and no file has changed; with room, the same command
ends as an undisturbed one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import renames

pytestmark = pytest.mark.slow

ROOM = 60_000_000
SHARES = (0.0, 0.15, 0.5)  # of what a command adds to the disk
TINY = {
    "trunk": {
        "name": "tiny",
        "weights": "none",
        "schedule": {"kind": "constant", "rate": 1e-3},
    },
    "validation": 0.2,
    "phases": {"heads": {"epochs": 2}, "finetune": {"epochs": 1}},
}
FINDINGS = 3  # of audit: the data has missing files
OF_DATA = ["--spec={}/colours.toml", "--data_dir={}/data"]
# What each begins with, its status, and its line; {} is the disk.
COMMANDS = {
    "prepare": ("data", 0, ["prepare", *OF_DATA]),
    "audit": ("data", FINDINGS, ["audit", *OF_DATA, "--out={}/audit"]),
    "train": ("data", 0, ["train", *OF_DATA, "--workdir={}/run"]),
    "tune": ("run", 0, ["tune", *OF_DATA, "--workdir={}/tuning", "--trials=2"]),
    "evaluate": ("run", 0, ["evaluate", "--workdir={}/run", "--tta=flip"]),
    "compare": ("run", 0, ["compare", "{}/run", "{}/twin", "--out={}/comparison"]),
    "similar": (
        "run",
        0,
        [
            "similar",
            "--workdir={}/run",
            "--out={}/found",
            "--query={}/query.png",
        ],
    ),
    **{
        f"predict {suffix}": (
            "run",
            0,
            ["predict", "--workdir={}/run", f"--out={{}}/answers.{suffix}", "--resume", "{}/data"],
        )
        for suffix in ("csv", "jsonl", "parquet")
    },
    **{
        f"export {format}": (
            "run",
            0,
            ["export", "--workdir={}/run", f"--format={format}", "--check_images=3"],
        )
        for format in ("savedmodel", "onnx", "litert", "keras")
    },
    "export float16": (
        "run",
        0,
        [
            "export",
            "--workdir={}/run",
            "--format=litert",
            "--quantize=float16",
            "--check_images=3",
        ],
    ),
}
WRITTEN_AGAIN = ("audit", "evaluate", "compare", "export keras")


@dataclass(frozen=True)
class SmallDiskCase:
    """A disk, and what is put there before each command.

    Attributes:
        disk: the small disk.
        states: `data`, a data set and its spec; `run`, a run too, twice.
    """

    disk: object
    states: dict[str, Path]

    def reset(self, state: str) -> None:
        self.disk.leave(ROOM)
        for path in self.disk.files.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.states[state], self.disk.files, dirs_exist_ok=True)

    def run(self, name: str):
        return self.disk.run(*(part.format(self.disk.folder) for part in COMMANDS[name][2]))

    def content(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.disk.files)): path.read_bytes()
            for path in self.disk.files.rglob("*")
            if path.is_file()
        }


@pytest.fixture(scope="module")
def case(known, mount_disk, tmp_path_factory):
    place = tmp_path_factory.mktemp("case")
    states = {name: place / name for name in ("data", "run")}
    painted = known.paint(states["data"] / "data")
    shutil.copy(next(painted.folder.rglob("*.png")), states["data"] / "query.png")
    spec = known.colour_spec(("shade", "warmth"), **TINY)
    (states["data"] / "colours.toml").write_text(spec.to_toml())
    with mount_disk(place / "disk", ROOM) as disk:
        case = SmallDiskCase(disk, states)
        case.reset("data")
        ended = case.run("train")
        assert ended.status == 0, ended.err
        shutil.rmtree(disk.files / "run" / "similar")
        shutil.copytree(disk.files / "run", disk.files / "twin")
        shutil.copytree(disk.files, states["run"])
        yield case


def errors(ended) -> list[str]:
    """The lines of standard error, without the log of the commands that print their result."""
    log = ("Skipped ", "Embedding ")
    return [line for line in ended.err.splitlines() if not line.startswith(log)]


def assert_one_line(ended, case: SmallDiskCase) -> None:
    assert ended.status == 1, ended
    assert len(errors(ended)) == 1, ended.err
    (line,) = errors(ended)
    assert line.startswith(str(case.disk.folder))
    assert ": no room on the disk (" in line
    assert ".tmp-" not in line


def comparable(folder: Path) -> dict[str, object]:
    """The files of a folder, without what names a time or a process."""
    return {
        name: content
        for name, content in renames.contents(folder).items()
        if content != "folder"
        and "events.out" not in name
        and not name.endswith((".lock", "best.toml"))  # a lock; a comment with the seconds
        and not name.startswith("run/export/")  # the test of the kills compares them
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(case, name):
    state, done, _ = COMMANDS[name]
    case.reset(state)
    before, free = case.content(), shutil.disk_usage(case.disk.files).free
    ended = case.run(name)
    assert ended.status == done, ended
    needed = free - shutil.disk_usage(case.disk.files).free
    whole = comparable(case.disk.files)

    case.reset(state)
    failed = 0
    for share in SHARES:
        case.disk.leave(int(share * needed))
        ended = case.run(name)
        if ended.status == done:  # what earlier ones left is enough of it
            break
        failed += 1
        assert_one_line(ended, case)
        now = case.content()
        assert {path: now.get(path) for path in before} == before
        assert [path for path in now if ".tmp-" in path or ".incomplete" in path] == []
    assert failed > 1
    case.disk.leave(ROOM)
    ended = case.run(name)
    assert (ended.status, errors(ended)) == (done, [])
    assert comparable(case.disk.files) == whole

    if name in WRITTEN_AGAIN:
        now = case.content()
        case.disk.leave(0)
        assert_one_line(case.run(name), case)
        assert case.content() == now


@pytest.mark.parametrize("name", ["evaluate", "export savedmodel", "predict csv", "compare"])
def test_a_disk_that_is_read_only(case, name):
    state, done, _ = COMMANDS[name]
    case.reset(state)
    before = case.content()
    case.disk.remount("ro")
    ended = case.run(name)
    case.disk.remount("rw")
    assert ended.status == 1, ended
    assert len(errors(ended)) == 1, ended.err
    (line,) = errors(ended)
    assert line.startswith(f"{case.disk.folder}")
    assert line.endswith(
        ": the file system is read-only; make it writable, then run the same command again"
    )
    assert case.content() == before
    assert case.run(name).status == done
