"""The console script: `multitask COMMAND [--flag=value …]`; `python -m multitask` does the same."""

import importlib
import os
import re
import signal
import sys
from types import ModuleType

# Before TensorFlow is imported: its start-up notes are no news to the person at the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

from multitask import __version__
from multitask.console import flush_output, open_standard_streams, quiet_pipes
from multitask.files import RunError, disk_error
from multitask.spec import InputError, expected, near

COMMANDS = {
    "audit": "say what is in a data set and what is wrong with it",
    "prepare": "decode the training pictures once, into records that are read fast",
    "train": "train all the tasks of a spec in one model, then evaluate it",
    "tune": "search better numbers for the heads of a spec",
    "evaluate": "examine a run's best model and write its reports",
    "compare": "set runs side by side, and say what is chance",
    "export": "write a run's best model in the formats that others run it in",
    "predict": "say what pictures show",
    "serve": "answer pictures in a browser and over HTTP",
    "similar": "find the training pictures that are nearest to a picture",
}
GOES_ON = {
    "train": "; the same command goes on from there",
    "tune": "; the same command goes on from there",
    "prepare": "; nothing half-made is left, the same command starts over",
}
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as shells do


def usage() -> str:
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
    """A command's own flags and what is left of the line; wrong ones are one line, status 2."""
    values = flags.FlagValues()
    module.define_flags(values)
    flags.DEFINE_boolean("help", False, "show this help", short_name="h", flag_values=values)
    values.set_gnu_getopt()  # flags may stand behind pictures
    try:
        left = values([f"multitask {name}", *argv])[1:]
    except flags.Error as error:
        raise InputError(f"multitask {name}: {_wrong_flag(error, values)}") from None
    if values.help:
        print(module.__doc__.strip())
        print("\nFlags:")
        print(_flags_help(values), flush=True)
        raise SystemExit(0)
    return values, left


def _wrong_flag(error: flags.Error, values: flags.FlagValues) -> str:
    """absl's complaint, in the words of this project's messages."""
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
        text = re.sub("^<[^>]*>: ", "", flag.help)  # absl's own list of an enum's values
        lines += [f"  {shown}", f"      {text}{default}"]
    return "\n".join(lines)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(TERMINATED)


def _run(argv: list[str]) -> None:
    """Run what a command line asks for; it ends in SystemExit where the status is not 0."""
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
    flags.FLAGS(argv[:1])  # app.run insists; our flags are the command's own
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(
            lambda parsed: module.main(*parsed),
            argv=argv,
            flags_parser=lambda _: _parse(module, name, rest),
        )
    except SystemExit as error:
        if error.code is not None:  # app.run ends a command that is done with sys.exit(None)
            raise
    sys.stdout.flush()  # so that `main` handles its error, not the interpreter's exit


def main(argv: list[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 the run failed, 2 wrong input, 130/143 stopped, 141
    nobody reads the output any more."""
    open_standard_streams()
    with quiet_pipes(_exit):
        _main(argv)


def _main(argv: list[str] | None) -> None:
    """Run one command; whatever ends it is one line and a status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be no text; stderr does so already
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    name = argv[0] if argv else ""
    try:
        _run(argv)
    except InputError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop(f"stopped{GOES_ON.get(name, '')}", INTERRUPTED)
    except SystemExit as error:
        if error.code == TERMINATED:
            _stop(f"terminated{GOES_ON.get(name, '')}", TERMINATED)
        raise
    except RunError as error:
        _stop(str(error), 1)
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        if found.folder is None:  # print() failed, or a library that names the file in its text
            place = "standard output" if isinstance(error, OSError) else str(error).split("\n")[0]
            _stop(f"{place}: {found}", 1)
        _stop(str(found), 1)


def _stop(text: str, status: int) -> None:
    line = " ".join(text.split())
    # A name in it may hold what moves a terminal's cursor.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    try:
        flush_output()
    except OSError:  # drop what it holds, or the interpreter's exit would report it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # `quiet_pipes` ends the process
        raise
    except OSError:  # stderr cannot be written either
        pass
    _exit(status)


def _exit(status: int) -> None:
    distribution = sys.modules.get("multitask.learning.distribution")
    if distribution and distribution.joined():
        os._exit(status)  # at once: a farewell would keep the other processes waiting
    sys.exit(status)


if __name__ == "__main__":
    main()
