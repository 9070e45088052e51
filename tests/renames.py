"""Kill a command right before and right after each of its renames, and run it again.

    python tests/renames.py ROOT SHARE SHARES COMMAND …

All that COMMAND reads and writes lies below ROOT. The command runs once, and ROOT is copied right
before and right after each rename, removal of a file and removal of a folder. Each copy is what a
`kill -9` at that moment leaves on the disk, except for what the process still has in its buffers.
Then each copy replaces ROOT, the same command runs again to its end, and all files are compared
with those of the first run. So one process tests hundreds of kills.

The kills are divided into SHARES shares; this process takes number SHARE. It ends with status 1 and
a line for each difference, else with the number of kills.

    python tests/renames.py ROOT kill MOMENT COMMAND …

kills itself with SIGKILL at a moment, e.g. `after results/metrics.json`.

    python tests/renames.py ROOT whole - COMMAND …

runs the command once and ends with its status.
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
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
SHARED = re.compile(r'(?<="shared_object_id": )[0-9]+')
TEMPORARY = re.compile(r"\.(tmp|old)-[0-9]+-")


# === Moments ===


@contextlib.contextmanager
def watching(root: Path, at: Callable[[str], None]) -> Iterator[None]:
    """Call `at` before and after each rename and after each removal within the block.

    Renames by the C++ code of TensorFlow and SQLite are not seen. The project does not depend on
    any of them (`strace -e trace=rename,renameat,renameat2` shows them).

    Args:
        root: only changes below this folder count.
        at: gets a name of the moment.
    """
    originals = {name: getattr(os, name) for name in ("rename", "replace", "unlink", "remove")}
    rmtree = shutil.rmtree
    tree_names: list[str | None] = []  # of the folders that are being removed

    def relative_name(path: Any) -> str | None:
        path = os.path.abspath(os.fspath(path))
        return os.path.relpath(path, root) if path.startswith(f"{root}{os.sep}") else None

    def moving(name: str) -> Callable[..., None]:
        def move(source: Any, target: Any, **options: Any) -> None:
            file = relative_name(target)
            if file is None:
                originals[name](source, target, **options)
                return
            at(f"before {file}")
            originals[name](source, target, **options)
            at(f"after {file}")

        return move

    def removing(name: str) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            originals[name](path, dir_fd=dir_fd)
            if dir_fd is None and (file := relative_name(path)):
                at(f"after the removal of {file}")
            elif (
                tree_names and tree_names[-1]
            ):  # the first file of a folder; the others still exist
                at(f"within the removal of {tree_names[-1]}")
                tree_names[-1] = None

        return remove

    def remove_tree(path: Any, *args: Any, **options: Any) -> None:
        folder = relative_name(path)
        tree_names.append(folder)
        try:
            rmtree(path, *args, **options)
        finally:
            tree_names.pop()
        if folder:
            at(f"after the removal of {folder}")

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
    """Return the name of a moment without the number of the process."""
    return TEMPORARY.sub(r".\1-", moment)


# === Comparison of files ===


def contents(root: Path) -> dict[str, object]:
    """Return the contents below a folder that are equal in two runs with the same settings."""
    result: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            # Folders count, too: an empty folder may block a later command.
            result[name] = "folder"
        elif not ("/logs/tensorboard/" in f"/{name}" or path.name in ("study.db",)):
            # logs/tensorboard: names and contents of the files have times, and each process adds a
            # file. study.db has the times of the trials; trials.csv has its other content.
            result[name] = content(path)
    return result


def content(path: Path) -> object:
    """Return the content of a file without what differs between two runs."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        # A time, and the addresses of objects that layers share, differ between processes.
        metadata = json.loads(members.pop("metadata.json")) | {"date_saved": None}
        config = members.pop("config.json").decode()
        order = {address: str(i) for i, address in enumerate(dict.fromkeys(SHARED.findall(config)))}
        config = SHARED.sub(lambda match: order[match[0]], config)
        return members | {"metadata": metadata, "config": config}
    if path.name == "gallery.json":
        # The fingerprint is that of the model file, which has the time when it was written.
        return json.loads(path.read_text()) | {"fingerprint": None}
    if path.name == "evaluation.json":
        return json.loads(path.read_text()) | {"model_sha256": None}  # of the same file
    if path.name == "report.json":
        report = json.loads(path.read_text())
        for artifact in report["artifacts"]:
            artifact["images_per_second"] = None  # measured
            artifact["bytes"] = None  # the numbers of functions in a SavedModel grow
        return report
    if path.name == "saved_model.pb":
        # The numbers of functions grow within a process. Their outputs are compared instead.
        return signature_outputs(path.parent)
    if path.name == "fingerprint.pb" or path.parent.name == "variables":
        return "of a SavedModel"
    if path.name == "trials.csv":
        return pd.read_csv(path).drop(columns="seconds").to_csv()  # a time
    return path.read_bytes()


def signature_outputs(saved_model: Path) -> dict[str, list]:
    """Return the outputs of every signature of a SavedModel for the same input."""
    import numpy as np
    import tensorflow as tf

    outputs = {}
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    encoded = tf.io.encode_jpeg(image[0])[None]
    for name, signature in tf.saved_model.load(str(saved_model)).signatures.items():
        ((argument, tensor),) = signature.structured_input_signature[1].items()
        value = encoded if tensor.dtype == tf.string else tf.cast(image, tensor.dtype)
        for output, values in signature(**{argument: value}).items():
            outputs[f"{name}: {output}"] = values.numpy().tolist()
    return outputs


def differences(root: Path, expected: dict[str, object]) -> list[str]:
    """Return a line for each file that differs from the expected contents."""
    actual = contents(root)
    lines = [f"{name} is missing" for name in expected if name not in actual]
    lines += [f"{name} is left over" for name in actual if name not in expected]
    common = [name for name in actual if name in expected]
    return lines + [f"{name} differs" for name in common if actual[name] != expected[name]]


# === Running ===


def run(command: list[str]) -> tuple[int, str]:
    """Run the command in this process; return its exit status and output."""
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


def replace_folder(target: Path, source: Path) -> None:
    """Replace a folder by a copy of another."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def walk(root: Path, share: int, shares: int, command: list[str]) -> tuple[int, list[str]]:
    """Test all kills of a share; return their number and a line for each difference."""
    moments: list[str] = []
    store = root.parent / f"{root.name}.moments"
    store.mkdir()

    def at(moment: str) -> None:
        number = len(moments)
        moments.append(moment)
        # Divided by name: the number of moments depends on time, as features save their progress.
        if zlib.crc32(general(moment).encode()) % shares == share:
            shutil.copytree(root, store / str(number), symlinks=True)

    with watching(root, at):
        expected_status, text = run(command)
    if expected_status not in (0, 3):  # 3: `audit` has findings
        return 0, [f"not stopped: status {expected_status}: {text}"]
    expected, kills = contents(root), 0
    leftovers = [name for name in expected if TEMPORARY.search(name)]
    wrong = [f"not stopped: {name} is left over" for name in leftovers]
    for number, moment in enumerate(moments):
        folder = store / str(number)
        if not folder.exists():
            continue
        # In every second test, the next process has the number of the killed one, as it may in a
        # container.
        if kills % 2:
            rename_process(folder)
        replace_folder(root, folder)
        status, text = run(command)
        lines = [] if status == expected_status else [f"status {status}: {text[-2000:]}"]
        lines += differences(root, expected)
        wrong += [f"killed {general(moment)}: {line}" for line in lines]
        kills += 1
        print(f"{number}/{len(moments)} {general(moment)}: {lines or 'same'}", flush=True)
        shutil.rmtree(folder)
    return kills, wrong


def rename_process(folder: Path) -> None:
    """Rename the leftovers of the killed process as if its number were not in use."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if TEMPORARY.match(path.name):
            path.rename(path.with_name(re.sub("-[0-9]+-", "-999999999-", path.name, count=1)))


def main(root: Path, share: str, shares: str, command: list[str]) -> None:
    """Run the script; the arguments are those of the command line, in this order."""
    sys.path.insert(0, str(HERE))
    import tiny_trunk

    from multitask.startup import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced often
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
