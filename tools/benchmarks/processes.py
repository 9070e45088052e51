"""Work in other processes, with this Python or with a Python that has timm."""

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1]


def module_command(module: str, *args: str) -> list[str]:
    """The command that runs a module of this package with arguments."""
    return [sys.executable, "-m", f"benchmarks.{module}", *args]


def timm_command(python: str | None, code: str, *args: str) -> list[str]:
    """The command that runs code in the Python of --timm_python, or in this one."""
    return [python or sys.executable, "-c", code, *args]


def last_numbers(command: list[str], count: int = 1) -> list[float]:
    """Run a command, and return the last numbers that it prints."""
    paths = [str(TOOLS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark.py: {command[:3]}: exit status {done.returncode}")
    return [float(number) for number in done.stdout.split()[-count:]]


def has_timm(python: str | None) -> bool:
    """Whether timm can be measured; if not, a line on stderr gives the reason."""
    try:
        done = subprocess.run(
            timm_command(python, "import timm, torch"), capture_output=True, text=True, check=False
        )
    except OSError as error:
        reason = str(error)
    else:
        if not done.returncode:
            return True
        reason = done.stderr.strip().split("\n")[-1]
    print(f"timm is not measured (--timm_python): {reason}", file=sys.stderr)
    return False
