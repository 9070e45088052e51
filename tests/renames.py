"""Kills a command right before and right after each of its renames, and runs it again.

    python tests/renames.py ROOT SHARE SHARES COMMAND …

All that COMMAND reads and writes lies below ROOT. It is run once, and ROOT is copied right before
and right after each rename, removal of a file and removal of a folder: what a `kill -9` at that
moment leaves on the disk. (What the process still holds in its buffers is lost in either.) Then
each of the copies is put in the place of ROOT, the same command is run again to its end, and all
files are compared with those of the run that was not stopped. So hundreds of kills need one
process. This process takes the kills of one of several shares. It ends with status 1 and a line
for each difference, else with the number of kills.

    python tests/renames.py ROOT kill MOMENT COMMAND …

kills itself with SIGKILL at a moment, e.g. `after results/metrics.json`.
"""

import contextlib
import gc
import io
import json
import os
import re
import shutil
import signal
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
SHARED = re.compile(r'(?<="shared_object_id": )[0-9]+')
TEMPORARY = re.compile(r"\.(tmp|old)-[0-9]+-")


# === The moments ===


@contextlib.contextmanager
def watching(root: Path, at: Callable[[str], None]) -> Iterator[None]:
    """Within it `at` is called with a name for the moment before and after each change of names.

    Renames by TensorFlow's and SQLite's C++ code are not seen; nothing of this project's rests on
    one (`strace -e trace=rename,renameat,renameat2` shows them).
    """
    originals = {name: getattr(os, name) for name in ("rename", "replace", "unlink", "remove")}
    rmtree, in_tree = shutil.rmtree, []

    def place(path) -> str | None:
        path = os.path.abspath(os.fspath(path))
        return os.path.relpath(path, root) if path.startswith(f"{root}{os.sep}") else None

    def moving(name):
        def move(source, target, **options):
            where = place(target)
            if where is None:
                return originals[name](source, target, **options)
            at(f"before {where}")
            originals[name](source, target, **options)
            at(f"after {where}")
            return None

        return move

    def removing(name):
        def remove(path, *, dir_fd=None):
            originals[name](path, dir_fd=dir_fd)
            if dir_fd is None and (where := place(path)):
                at(f"after the removal of {where}")
            elif in_tree and in_tree[-1]:  # the first file of a folder: the others are still there
                at(f"within the removal of {in_tree[-1]}")
                in_tree[-1] = None

        return remove

    def remove_tree(path, *args, **options):
        where = place(path)
        in_tree.append(where)
        try:
            rmtree(path, *args, **options)
        finally:
            in_tree.pop()
        if where:
            at(f"after the removal of {where}")

    os.rename, os.replace = moving("rename"), moving("replace")
    os.unlink, os.remove = removing("unlink"), removing("remove")
    shutil.rmtree = remove_tree
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
        shutil.rmtree = rmtree


def general(moment: str) -> str:
    """A moment's name without the number of the process."""
    return TEMPORARY.sub(r".\1-", moment)


# === The same files ===


def contents(root: Path) -> dict[str, object]:
    """Everything below a folder, less what differs between two runs of the same settings."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            # Folders count, too: an empty one may be in the way.
            found[name] = "folder"
        elif not ("/logs/tensorboard/" in f"/{name}" or path.name in ("study.db",)):
            # logs/tensorboard: the names of the files and their content hold times; each process
            # appends a file. study.db: times of the trials; trials.csv has all else of it.
            found[name] = content(path)
    return found


def content(path: Path) -> object:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        # Two facts of the process: a time, and Python's addresses of the objects that layers share.
        metadata = json.loads(members.pop("metadata.json")) | {"date_saved": None}
        config = members.pop("config.json").decode()
        order = {address: str(i) for i, address in enumerate(dict.fromkeys(SHARED.findall(config)))}
        config = SHARED.sub(lambda found: order[found[0]], config)
        return members | {"metadata": metadata, "config": config}
    if path.name == "gallery.json":
        # The fingerprint is over the model's file, which holds the time of its writing.
        return json.loads(path.read_text()) | {"fingerprint": None}
    if path.name == "evaluation.json":
        return json.loads(path.read_text()) | {"model_sha256": None}  # likewise
    if path.name == "report.json":
        report = json.loads(path.read_text())
        for artifact in report["artifacts"]:
            artifact["pictures_per_second"] = None  # measured
            artifact["bytes"] = None  # of a SavedModel, whose functions have longer numbers later
        return report
    if path.name == "saved_model.pb":
        # Functions are numbered over the whole life of a process. What they do is compared.
        return answers(path.parent)
    if path.name == "fingerprint.pb" or path.parent.name == "variables":
        return "of a SavedModel"
    if path.name == "trials.csv":
        return pd.read_csv(path).drop(columns="seconds").to_csv()  # a time
    return path.read_bytes()


def answers(saved_model: Path) -> dict[str, list]:
    """What every signature of a SavedModel answers to the same input."""
    import numpy as np
    import tensorflow as tf

    found = {}
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    encoded = tf.io.encode_jpeg(image[0])[None]
    for name, signature in tf.saved_model.load(str(saved_model)).signatures.items():
        ((argument, wanted),) = signature.structured_input_signature[1].items()
        value = encoded if wanted.dtype == tf.string else tf.cast(image, wanted.dtype)
        for output, values in signature(**{argument: value}).items():
            found[f"{name}: {output}"] = values.numpy().tolist()
    return found


def differences(root: Path, wanted: dict[str, object]) -> list[str]:
    found = contents(root)
    lines = [f"{name} is missing" for name in wanted if name not in found]
    lines += [f"{name} is left over" for name in found if name not in wanted]
    return lines + [
        f"{name} differs" for name in found if name in wanted and found[name] != wanted[name]
    ]


# === Running ===


def run(command: list[str]) -> tuple[int, str]:
    """Status and output of the command, in this process."""
    import keras

    from multitask.__main__ import main

    keras.utils.clear_session()
    gc.collect()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            main(command)
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
            status = -1
    return status, out.getvalue()


def put(folder: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place, symlinks=True)


def walk(root: Path, share: int, shares: int, command: list[str]) -> tuple[int, list[str]]:
    """How many kills there were, and what was wrong after them."""
    store, moments = root.parent / f"{root.name}.moments", []
    store.mkdir()

    def at(moment: str) -> None:
        number = len(moments)
        moments.append(moment)
        # By name: how often the progress of the features is noted depends on the time they take.
        if zlib.crc32(general(moment).encode()) % shares == share:
            shutil.copytree(root, store / str(number), symlinks=True)

    with watching(root, at):
        wanted_status, text = run(command)
    if wanted_status not in (0, 3):  # 3: `audit` has findings
        return 0, [f"not stopped: status {wanted_status}: {text}"]
    wanted, wrong, kills = contents(root), [], 0
    leftovers = [name for name in wanted if TEMPORARY.search(name)]
    wrong += [f"not stopped: {name} is left over" for name in leftovers]
    for number, moment in enumerate(moments):
        folder = store / str(number)
        if not folder.exists():
            continue
        # Every other one as if the next process had the number of the one that was killed, as in
        # a container.
        if kills % 2:
            rename_process(folder)
        put(folder, root)
        status, text = run(command)
        lines = [] if status == wanted_status else [f"status {status}: {text[-2000:]}"]
        lines += differences(root, wanted)
        wrong += [f"killed {general(moment)}: {line}" for line in lines]
        kills += 1
        print(f"{number}/{len(moments)} {general(moment)}: {lines or 'same'}", flush=True)
        shutil.rmtree(folder)
    return kills, wrong


def rename_process(folder: Path) -> None:
    """Give what the killed process left the number of one that does not run."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if TEMPORARY.match(path.name):
            path.rename(path.with_name(re.sub("-[0-9]+-", "-999999999-", path.name, count=1)))


def main(root: Path, share: str, shares: str, command: list[str]) -> None:
    sys.path.insert(0, str(HERE))
    import tiny_trunk

    from multitask.commands import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced again and again
    from multitask.model.trunks import TRUNKS

    TRUNKS["tiny"] = tiny_trunk.two_blocks
    if share == "kill":

        def at(moment: str) -> None:
            if general(moment) == shares:
                os.kill(os.getpid(), signal.SIGKILL)

        with watching(root, at):
            status, text = run(command)
        sys.exit(f"never {shares}: {status} {text}")
    if share == "whole":
        status, text = run(command)
        print(text)
        sys.exit(status)
    kills, wrong = walk(root, int(share), int(shares), command)
    print("\n".join(wrong))
    print(f"{kills} kills")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3], sys.argv[4:])
