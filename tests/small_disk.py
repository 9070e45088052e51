"""A small disk: a tmpfs in a separate mount namespace, and `multitask` processes that use it.

As a module: `Disk`. As a script, the process that holds the namespace:

    unshare --mount python tests/small_disk.py FOLDER BYTES

It mounts the disk at FOLDER and answers each line of JSON on stdin with one on stdout. At the end
of stdin the process ends, and the disk with it.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


class Disk:
    """A disk that exists until `close`.

    Attributes:
        folder: its path in the processes that `run` starts.
        files: its path in this process.
    """

    def __init__(self, folder: Path, size: int):
        """Mount the disk.

        Args:
            folder: an empty folder, the mount point.
            size: bytes; the disk has whole pages.

        Raises:
            OSError: this user, or this system, cannot mount a disk.
        """
        rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        argv = ["unshare", "--mount", *rights, sys.executable, __file__, str(folder), str(size)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # JAX, where it is installed, sets this on import; a command of a shell does not have it.
        environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        self._process = subprocess.Popen(argv, text=True, env=environment, **pipes)
        if not self._process.stdout.readline():
            raise OSError(" ".join(self._process.communicate()[1].split()))
        self.folder = folder
        self.files = Path(f"/proc/{self._process.pid}/root{folder}")

    def close(self) -> None:
        """Remove the disk."""
        self._process.communicate()

    def run(self, *argv: str, stdout: Path | None = None, **environment: str) -> CommandResult:
        """Run `multitask` with these arguments in a separate process.

        Args:
            argv: arguments of the command.
            stdout: a file for the standard output, by its path in that process; None: the output
                is in the result.
            environment: additional variables.
        """
        target = str(stdout) if stdout else None
        return CommandResult(**self._request(argv=argv, stdout=target, environment=environment))

    def leave(self, free: int) -> None:
        """Resize the disk so that this many bytes are free."""
        status = os.statvfs(self.files)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        self.remount(f"size={used + free}")

    def remount(self, options: str) -> None:
        """Change the mount options of mount(8), e.g. `ro`."""
        self._request(remount=options)

    def _request(self, **content: Any) -> dict[str, Any]:
        print(json.dumps(content), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


# === The process that holds the disk ===


def hold(folder: str, size: str) -> None:
    """Mount a disk and answer requests until the end of stdin."""
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder])
    print(flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "remount" in request:
            subprocess.check_call(["mount", "-o", f"remount,{request['remount']}", folder])
        else:
            answer = run(**request)
        print(json.dumps(answer), flush=True)


def run(argv: list[str], stdout: str | None, environment: dict[str, str]) -> dict[str, Any]:
    """Run `multitask` in a fork of this process; return the fields of `CommandResult`."""
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
    """Import the slow modules once, without computing: a fork would lack the threads."""
    from multitask.startup import import_tensorflow

    import_tensorflow()
    import seaborn  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    from multitask.model.trunks import TRUNKS

    sys.path.insert(0, str(Path(__file__).parent))
    from tiny_trunk import two_blocks

    TRUNKS["tiny"] = two_blocks


if __name__ == "__main__":
    hold(*sys.argv[1:])
