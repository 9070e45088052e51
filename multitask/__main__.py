"""The console script: `multitask COMMAND [--flag=value …]`; `python -m multitask` does the same."""

import importlib
import os
import signal
import sys
from types import ModuleType

# Before TensorFlow is imported: its start-up notes are no news to the person at the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from absl import app, flags

from multitask import __version__
from multitask.spec import InputError, near

COMMANDS = {
    "train": "train all the tasks of a spec in one model, then evaluate it",
    "evaluate": "examine a run's best model and write its reports",
    "export": "write a run's best model as one SavedModel",
    "predict": "say what pictures show",
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
    flags.DEFINE_boolean("help", False, "show this help", flag_values=values)
    try:
        left = values([f"multitask {name}", *argv])[1:]
    except flags.Error as error:
        text = " ".join(str(error).split()).removeprefix("FATAL Flags parsing error: ")
        raise InputError(f"multitask {name}: {text}") from None
    if values.help:
        print(module.__doc__.strip())
        print("\nFlags:")
        print(values.main_module_help() if False else _flags_help(values))
        raise SystemExit(0)
    return values, left


def _flags_help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        if flag.boolean:
            shown = f"--[no]{name}"
        else:
            choices = getattr(flag.parser, "enum_values", None)
            shown = f"--{name}=" + ("|".join(choices) if choices else name.upper())
        lines += [f"  {shown}", f"      {flag.help}{default}"]
    return "\n".join(lines)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(TERMINATED)


def main(argv: list[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 the run failed, 2 wrong input, 130/143 stopped."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "--helpfull", "help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(__version__)
        sys.exit(0)
    name, *rest = argv
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if name not in COMMANDS:
            raise InputError(
                f'multitask: unknown command "{name}". Expected one of: '
                f"{', '.join(COMMANDS)}.{near(name, COMMANDS)}"
            )
        module = importlib.import_module(f"multitask.commands.{name}")
        flags.FLAGS(argv[:1])  # app.run insists; our flags are the command's own
        app.run(
            lambda parsed: module.main(*parsed),
            argv=argv,
            flags_parser=lambda _: _parse(module, name, rest),
        )
    except InputError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop("stopped; the same command goes on after the last finished epoch", INTERRUPTED)
    except SystemExit as error:
        if error.code == TERMINATED:
            _stop("terminated; the same command goes on after the last finished epoch", TERMINATED)
        raise
    except RuntimeError as error:
        from multitask.run import RunError

        if not isinstance(error, RunError):
            raise
        _stop(str(error), 1)


def _stop(text: str, status: int) -> None:
    sys.stdout.flush()
    print(" ".join(text.split()), file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
