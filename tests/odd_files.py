"""Files that are not regular, small images, and a shell for commands that read them."""

import os
import subprocess
import sys

from PIL import Image

HANG_S = 300  # a command that runs longer never ends
FIFO, DEVICE = "it is a named pipe (FIFO), not a regular file", "it is a device, not a regular file"
LARGE = "it is larger than the limit of 268,435,456 bytes"


def shell(line, *argv):
    """A line for bash, in which "$@" is the command of argv."""
    command = [sys.executable, "-m", "multitask", *map(str, argv)]
    return subprocess.run(
        ["bash", "-c", line, "bash", *command], capture_output=True, text=True, timeout=HANG_S
    )


def paint(*files):
    """Write PNG images of one color under any names."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (200, 30, 60)).save(file, "PNG")


def pipe(path):
    """Make a named pipe."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path):
    """Make a link to a device without an end."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path):
    """Make a file of 64 GiB that needs no room."""
    with path.open("wb") as file:
        file.truncate(2**36)
