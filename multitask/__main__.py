"""The console script: `multitask COMMAND [--flag=value …]`; `python -m multitask` does the same."""

import importlib
import logging
import os
import re
import signal
import sys
import textwrap
from types import ModuleType
from typing import Any

# This hides TensorFlow's start-up messages. It must be set before TensorFlow is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags
from absl import logging as absl_logging

from multitask import __version__
from multitask.console import (
    flush_output,
    logging_to_console,
    open_standard_streams,
    quiet_pipes,
)
from multitask.disk import disk_error
from multitask.errors import RunError
from multitask.spec import InputError, expected, near

COMMANDS = {
    "init": "look at a collection (a table, folders, a data set) and write its spec",
    "audit": "check a data set and count its images and labels",
    "prepare": "decode the training images once into records that can be read fast",
    "train": "train all tasks of a spec in one model, then evaluate it",
    "tune": "search for better hyper-parameters of the heads of a spec",
    "evaluate": "evaluate a run's best model on the test set and write its reports",
    "compare": "compare runs, with confidence intervals for the differences",
    "export": "export a run's best model to SavedModel, ONNX, LiteRT or Keras",
    "predict": "predict the classes of images",
    "serve": "predict images in a browser and over HTTP",
    "similar": "find the training images that are most similar to an image",
    "paint": "paint a small data set, to try everything without a download",
}
RESUME = {
    "train": "; the same command resumes from there",
    "tune": "; the same command resumes from there",
    "prepare": "; no incomplete files are left, and the same command starts over",
}
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as shells do


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"multitask {__version__}: a painting's artist, style and genre from one model.",
            "",
            "Usage: multitask COMMAND [--flag=value …]",
            "",
            *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "`multitask COMMAND --help` lists a command's flags.",
        ]
    )


def _parse(module: ModuleType, name: str, argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parse the arguments of a command into its flags and the remaining arguments."""
    values = flags.FlagValues()
    module.define_flags(values)
    flags.DEFINE_boolean("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_boolean(
        "quiet", False, "show results, warnings and errors only", flag_values=values
    )
    flags.DEFINE_boolean("verbose", False, "show more details", flag_values=values)
    values.set_gnu_getopt()  # flags may follow the image arguments
    try:
        left = values([f"multitask {name}", *argv])[1:]
    except flags.Error as error:
        raise InputError(f"multitask {name}: {_wrong_flag(error, values)}") from None
    if values.help:
        print((module.__doc__ or "").strip())
        print("\nFlags:")
        print(_flags_help(values), flush=True)
        raise SystemExit(0)
    if values.quiet and values.verbose:
        raise InputError("--quiet: cannot be combined with --verbose")
    level = logging.WARNING if values.quiet else logging.DEBUG if values.verbose else logging.INFO
    logging.getLogger("multitask").setLevel(level)
    return values, left


def _wrong_flag(error: flags.Error, values: flags.FlagValues) -> str:
    """Reword an error of absl in the style of this project's messages."""
    text = " ".join(str(error).split())
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"unknown flag --{error.flagname}; --help lists them.{near(error.flagname, values)}"
    wrong = re.match(r"flag --(\w+)=(.*?): ", text)
    if not wrong or wrong[1] not in values:
        return text
    flag, value = wrong[1], wrong[2]
    parser = values[flag].parser
    choices = getattr(parser, "enum_values", None)
    allowed = parser.syntactic_help or "true or false"
    wanted = expected(value, choices) if choices else f"expected {allowed}"
    return f"--{flag}: {value!r}: {wanted[0].lower()}{wanted[1:]}"


_INDENT: dict[str, Any] = {
    "initial_indent": " " * 6,
    "subsequent_indent": " " * 6,
    "break_on_hyphens": False,
}


def _flags_help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        if name == flag.short_name:
            continue
        default = "" if flag.default is None else f" (default: {str(flag.default).lower()})"
        if flag.boolean:
            shown = f"--[no]{name}"
        else:
            choices = getattr(flag.parser, "enum_values", None)
            shown = f"--{name}=" + ("|".join(choices) if choices else name.upper())
        text = re.sub("^<[^>]*>: ", "", flag.help)  # without absl's list of enum values
        lines += [f"  {shown}", textwrap.fill(text + default, 94, **_INDENT)]
    return "\n".join(lines)


def _call(module: ModuleType, values: flags.FlagValues, left: list[str]) -> None:
    """Run a command; reword errors about a field of the spec to name the flag that sets it."""
    from multitask.commands.spec_flags import OVERRIDES, with_flags

    try:
        module.main(values, left)
    except InputError as error:
        flag = next(
            (flag for flag, field in OVERRIDES.items() if field == error.field), error.field
        )
        error.args = (with_flags(str(error), values),)
        text = str(error).removeprefix(f"{error.field}: ")
        if flag is None or (flag not in values and error.field in OVERRIDES.values()):
            raise
        if flag not in values:
            if not flag.isidentifier():  # a place in a spec, such as `a.toml: task[0]: column`
                raise
            raise InputError(text) from None  # an argument that this command takes without a flag
        field = "" if flag == error.field else f" (field {error.field})"
        raise InputError(f"--{flag}: {text}{field}") from None
    except RunError as error:
        error.args = (with_flags(str(error), values),)
        raise


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(TERMINATED)


def _run(argv: list[str]) -> None:
    """Run a command line; raise SystemExit if the exit status is not 0."""
    if not argv or argv[0] in ("-h", "--help", "--helpfull", "help"):
        print(usage(), flush=True)
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        print(__version__, flush=True)
        raise SystemExit(0)
    name, *rest = argv
    if name not in COMMANDS:
        raise InputError(
            f'multitask: unknown command "{name}". Expected one of: '
            f"{', '.join(COMMANDS)}.{near(name, COMMANDS)}"
        )
    module = importlib.import_module(f"multitask.commands.{name}")
    flags.FLAGS(argv[:1])  # app.run requires it; each command defines its own flags
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        app.run(
            lambda parsed: _call(module, *parsed),
            argv=argv,
            flags_parser=lambda _: _parse(module, name, rest),
        )
    except SystemExit as error:
        if error.code is not None:  # app.run ends each command with sys.exit(None)
            raise
    sys.stdout.flush()  # here, so that `main` handles an error, and not the interpreter shutdown


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Exit status: 0 success, 1 the run failed, 2 wrong input, 130 interrupted, 143 terminated,
    141 the output is a closed pipe.
    """
    open_standard_streams()
    with quiet_pipes(_exit), logging_to_console():
        _main(argv)


def _main(argv: list[str] | None) -> None:
    """Run one command; print an error as one line and exit with its status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # File names may not be valid text. For stderr, this error handler is the default.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    name = argv[0] if argv else ""
    try:
        _run(argv)
    except InputError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop(f"stopped{RESUME.get(name, '')}", INTERRUPTED)
    except SystemExit as error:
        if error.code == TERMINATED:
            _stop(f"terminated{RESUME.get(name, '')}", TERMINATED)
        raise
    except RunError as error:
        _stop(str(error), 1)
    except Exception as error:
        full_disk = disk_error(error)
        if full_disk is None:
            raise
        if full_disk.folder is None:  # print() failed, or the message of a library names the file
            place = "standard output" if isinstance(error, OSError) else str(error).split("\n")[0]
            _stop(f"{place}: {full_disk}", 1)
        _stop(str(full_disk), 1)


def _stop(text: str, status: int) -> None:
    line = " ".join(text.split())
    # A file name may contain terminal control sequences.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    try:
        flush_output()
    except OSError:  # discard the buffer, or the interpreter shutdown would report the error again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # `quiet_pipes` ends the process
        raise
    except OSError:  # stderr cannot be written either
        pass
    _exit(status)


def _exit(status: int) -> None:
    parallel = sys.modules.get("multitask.annexes.parallel")
    if parallel and parallel.is_joined():
        os._exit(status)  # at once: a normal exit would wait for the other processes
    sys.exit(status)


if __name__ == "__main__":
    main()
