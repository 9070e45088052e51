"""A small disk: a tmpfs in a mount namespace of its own, and `multitask` in processes that see it.

As a module: `Disk`. As a script, the process that holds the namespace:

    unshare --mount python tests/small_disk.py FOLDER BYTES

It mounts the disk at FOLDER, answers each line of JSON on stdin with one on stdout, and ends, disk
and all, with the end of stdin.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class Disk:
    """A disk that is there until `close`.

    Attributes:
        folder: where its processes see it.
        files: where this process sees the same.
    """

    def __init__(self, folder: Path, size: int):
        """
        Args:
            folder: an empty one, to mount it at.
            size: in bytes, of which whole pages count.

        Raises:
            OSError: this user may not mount one, or not here.
        """
        rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        argv = ["unshare", "--mount", *rights, sys.executable, __file__, str(folder), str(size)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(argv, text=True, **pipes)
        if not self._process.stdout.readline():
            raise OSError(" ".join(self._process.communicate()[1].split()))
        self.folder = folder
        self.files = Path(f"/proc/{self._process.pid}/root{folder}")

    def close(self) -> None:
        self._process.communicate()

    def run(self, *argv: str, stdout: Path | None = None, **environment: str) -> Ended:
        """`multitask` with these arguments, in a process of its own.

        Args:
            argv: of the command.
            stdout: a file for it, as the process sees it; None: it is in what comes back.
            environment: of the process, beside this one's.
        """
        stdout = str(stdout) if stdout else None
        return Ended(**self._ask(argv=argv, stdout=stdout, environment=environment))

    def leave(self, free: int) -> None:
        """Make the disk so small, or so large, that this many bytes are free."""
        found = os.statvfs(self.files)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.remount(f"size={used + free}")

    def remount(self, options: str) -> None:
        """As of mount(8), e.g. `ro`."""
        self._ask(remount=options)

    def _ask(self, **what) -> dict:
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


# === The process that holds it ===


def hold(folder: str, size: str) -> None:
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder])
    print(flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = {}
        if "remount" in asked:
            subprocess.check_call(["mount", "-o", f"remount,{asked['remount']}", folder])
        else:
            answer = run(**asked)
        print(json.dumps(answer), flush=True)


def run(argv: list[str], stdout: str | None, environment: dict[str, str]) -> dict:
    prepare()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            target = os.open(stdout, os.O_WRONLY | os.O_CREAT) if stdout else out.fileno()
            os.dup2(target, 1)
            os.dup2(err.fileno(), 2)
            os.environ |= environment
            from multitask.__main__ import main

            main(argv)
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [os.pread(file.fileno(), 10**6, 0).decode() for file in (out, err)]
    return {"status": status, "out": texts[0], "err": texts[1]}


def prepare() -> None:
    """Import once what takes seconds, and compute nothing: a fork does not have its threads."""
    from multitask.commands import import_tensorflow

    import_tensorflow()
    import seaborn  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    from multitask.model.trunks import TRUNKS

    sys.path.insert(0, str(Path(__file__).parent))
    from tiny_trunk import two_blocks

    TRUNKS["tiny"] = two_blocks


if __name__ == "__main__":
    hold(*sys.argv[1:])
