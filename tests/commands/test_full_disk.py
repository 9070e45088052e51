"""Every command on a real disk that is full at its begin, in its middle and near its end.

Each time it is one line and status 1, and what stood before stands; with room, the same command
ends as one that was never disturbed.
"""

import io
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOM = 60_000_000
SHARES = (0.0, 0.15, 0.5)  # of what a command adds to the disk
TINY = {
    "trunk": {
        "name": "tiny",
        "weights": "none",
        "schedule": {"kind": "constant", "rate": 1e-3},
    },
    "selection": 0.2,
    "phases": {"heads": {"epochs": 2}, "finetune": {"epochs": 1}},
}
FOUND = 3  # of audit: the data has missing files
OF_DATA = ["--spec={}/colours.toml", "--data_dir={}/data"]
# What each begins with, its status, and its line; {} is the disk.
COMMANDS = {
    "prepare": ("data", 0, ["prepare", *OF_DATA]),
    "audit": ("data", FOUND, ["audit", *OF_DATA, "--out={}/audit"]),
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
            ["export", "--workdir={}/run", f"--format={format}", "--check_pictures=3"],
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
            "--check_pictures=3",
        ],
    ),
}
WRITTEN_AGAIN = ("audit", "evaluate", "compare", "export keras")


@dataclass(frozen=True)
class Bench:
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
def bench(known, mount_disk, tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    states = {name: place / name for name in ("data", "run")}
    painted = known.paint(states["data"] / "data")
    shutil.copy(next(painted.folder.rglob("*.png")), states["data"] / "query.png")
    spec = known.colour_spec(("shade", "warmth"), **TINY)
    (states["data"] / "colours.toml").write_text(spec.to_toml())
    with mount_disk(place / "disk", ROOM) as disk:
        bench = Bench(disk, states)
        bench.reset("data")
        ended = bench.run("train")
        assert ended.status == 0, ended.err
        shutil.rmtree(disk.files / "run" / "similar")
        shutil.copytree(disk.files / "run", disk.files / "twin")
        shutil.copytree(disk.files, states["run"])
        yield bench


def assert_one_line(ended, bench: Bench) -> None:
    assert ended.status == 1, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"{bench.disk.folder}/"), ended.err
    assert ": no room on the disk (" in ended.err
    assert ".tmp-" not in ended.err


def comparable(content: dict[str, bytes]) -> dict[str, bytes]:
    """Less what names a time or a process: archives' dates, events, trials' seconds, speeds; and
    the index, which threads fill in any order."""
    found = {}
    for name, data in content.items():
        if "events.out" in name or name.endswith(".lock"):
            continue
        if name.endswith(".keras"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = set(archive.namelist()) - {"metadata.json"}
                data = b"".join(archive.read(one) for one in sorted(names))
        varies = ("gallery.json", "study.db", "trials.csv", "best.toml")
        if name.startswith("run/export/") or name.endswith(varies):
            data = b""
        found[name] = data
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(bench, name):
    state, done, _ = COMMANDS[name]
    bench.reset(state)
    before, free = bench.content(), shutil.disk_usage(bench.disk.files).free
    ended = bench.run(name)
    assert ended.status == done, ended
    needed = free - shutil.disk_usage(bench.disk.files).free
    whole = bench.content()

    bench.reset(state)
    failed = 0
    for share in SHARES:
        bench.disk.leave(int(share * needed))
        ended = bench.run(name)
        if ended.status == done:  # what earlier ones left is enough of it
            break
        failed += 1
        assert_one_line(ended, bench)
        now = bench.content()
        assert {path: now.get(path) for path in before} == before
        assert [path for path in now if ".tmp-" in path or ".incomplete" in path] == []
    assert failed > 1
    bench.disk.leave(ROOM)
    ended = bench.run(name)
    assert (ended.status, ended.err) == (done, "")
    assert comparable(bench.content()) == comparable(whole)

    if name in WRITTEN_AGAIN:
        now = bench.content()
        bench.disk.leave(0)
        assert_one_line(bench.run(name), bench)
        assert bench.content() == now


@pytest.mark.parametrize("name", ["evaluate", "export savedmodel", "predict csv", "compare"])
def test_a_disk_that_is_read_only(bench, name):
    state, done, _ = COMMANDS[name]
    bench.reset(state)
    before = bench.content()
    bench.disk.remount("ro")
    ended = bench.run(name)
    bench.disk.remount("rw")
    assert (ended.status, ended.err.count("\n")) == (1, 1), ended
    assert ended.err.startswith(f"{bench.disk.folder}")
    assert ended.err.endswith(
        ": the file system is read-only; make it writable, then run the same command again\n"
    )
    assert bench.content() == before
    assert bench.run(name).status == done
