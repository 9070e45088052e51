"""The console script: usage, flags and exit statuses; a wrong call is one line."""

import os
import signal
import subprocess
import sys
import types

import pytest

import multitask
from multitask import __main__ as console
from multitask.__main__ import COMMANDS, main
from multitask.commands import (
    audit,
    compare,
    evaluate,
    export,
    init,
    paint,
    predict,
    prepare,
    serve,
    similar,
    spec_flags,
    train,
    tune,
)
from multitask.errors import RunError

MODULES = {
    "init": init,
    "audit": audit,
    "prepare": prepare,
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "predict": predict,
    "serve": serve,
    "similar": similar,
    "paint": paint,
}


@pytest.fixture(autouse=True)
def _signals_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def stopped(capsys, *argv):
    """(status, stdout, stderr) of a call that ends in SystemExit."""
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    return caught.value.code, *capsys.readouterr()


def wrong(capsys, *argv) -> str:
    """The one line of a refused call."""
    status, out, err = stopped(capsys, *argv)
    assert status == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.rstrip("\n")


def test_the_list_of_commands_is_complete():
    assert COMMANDS.keys() == MODULES.keys()


def test_no_command_shows_the_usage_and_is_wrong(capsys):
    status, out, _ = stopped(capsys)
    assert status == 2
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_shows_the_usage(capsys, argument):
    status, out, err = stopped(capsys, argument)
    assert (status, err) == (0, "")
    assert all(text in out for text in COMMANDS.values())


def test_version(capsys):
    assert stopped(capsys, "--version") == (0, f"{multitask.__version__}\n", "")


@pytest.mark.parametrize("command", MODULES)
@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_a_commands_help_lists_its_flags(capsys, command, argument):
    from absl import flags

    status, out, err = stopped(capsys, command, argument)
    assert (status, err) == (0, "")
    values = flags.FlagValues()
    MODULES[command].define_flags(values)
    shown = [line.strip() for line in out.splitlines() if line.startswith("  --")]
    for name in values:
        starts = [text for text in shown if text.startswith((f"--{name}=", f"--[no]{name}"))]
        assert len(starts) == 1, name
        # absl puts an enum's values before the text; long lines are wrapped.
        assert " ".join(values[name].help.split(">: ")[-1].split()) in " ".join(out.split())
    assert len(shown) == len(list(values)) + 3  # and --help, --quiet and --verbose
    assert MODULES[command].__doc__.strip() in out


def test_help_shows_choices_and_defaults(capsys):
    _, out, _ = stopped(capsys, "train", "--help")
    assert "--phase=heads|finetune|all" in out
    assert "which phase to train (default: all)" in out
    assert "(default: None)" not in out


def test_a_flag_that_overrides_a_field_names_it_and_has_no_default():
    from absl import flags

    values = flags.FlagValues()
    train.define_flags(values)
    for flag, field in spec_flags.OVERRIDES.items():
        assert values[flag].default is None
        assert field.split(".")[-1] in values[flag].help


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["trian"],
            'multitask: unknown command "trian". Expected one of: init, audit, prepare, train, '
            "tune, evaluate, compare, export, predict, serve, similar, paint. Did you mean "
            '"train"?',
        ),
        (
            ["train", "--batchsize=3"],
            "multitask train: unknown flag --batchsize; --help lists them. "
            'Did you mean "batch_size"?',
        ),
        (["evaluate", "--zzz"], "multitask evaluate: unknown flag --zzz; --help lists them."),
        (["train", "--batch_size=x"], "multitask train: --batch_size: 'x': expected an integer"),
        (
            ["train", "--phase=head"],
            "multitask train: --phase: 'head': expected one of: all, finetune, heads. "
            'Did you mean "heads"?',
        ),
        (
            ["predict", "--min_confidence=1.5"],
            "--min_confidence: '1.5': expected a number from 0 to 1, or auto: and such a number, "
            "as in auto:0.9",
        ),
        (
            ["train", "--evaluate=maybe"],
            "multitask train: --evaluate: 'maybe': expected true or false",
        ),
        (["train", "--spec"], "multitask train: Missing value for flag --spec"),
        (["train"], "multitask train: --spec is needed; --help lists the flags"),
        (["train", "--spec=demo"], "multitask train: --data_dir is needed; --help lists the flags"),
        (
            ["train", "--spec=demo", "--data_dir=x"],
            "multitask train: --workdir is needed; --help lists the flags",
        ),
        (["evaluate"], "multitask evaluate: --workdir is needed; --help lists the flags"),
        (["export"], "multitask export: --workdir is needed; --help lists the flags"),
        (["serve"], "multitask serve: --model is needed; --help lists the flags"),
        (["serve", "a.jpg"], "multitask serve: takes flags only, not 'a.jpg'"),
        (["predict", "a.jpg"], "multitask predict: give either --model=EXPORT or --workdir=RUN"),
        (
            ["predict", "--model=a", "--workdir=b", "a.jpg"],
            "multitask predict: give either --model=EXPORT or --workdir=RUN",
        ),
        (["train", "demo"], "multitask train: takes flags only, not 'demo'"),
        (["evaluate", "runs/a"], "multitask evaluate: takes flags only, not 'runs/a'"),
        (["export", "runs/a"], "multitask export: takes flags only, not 'runs/a'"),
    ],
)
def test_a_wrong_line_is_one_line(capsys, argv, line):
    assert wrong(capsys, *argv) == line


def test_flags_may_stand_behind_what_is_predicted(capsys):
    """Else the flag would be taken for an image's name."""
    message = wrong(capsys, "predict", "a.jpg", "--model=m", "--out=answers.txt")
    assert message == "--out: answers.txt: Expected one of: .csv, .jsonl, .parquet."


def test_commands_share_flags_in_one_process(capsys):
    """train, evaluate and predict all define --batch_size; no DuplicateFlagError, nothing stays."""
    for _ in range(2):
        for command in MODULES:
            assert stopped(capsys, command, "--help")[0] == 0
    assert "needed" in wrong(capsys, "train")


# === A command that runs ===


@pytest.fixture
def command(monkeypatch):
    """Makes `multitask waiting` call a function."""

    def make(function):
        module = types.ModuleType("multitask.commands.waiting", "Waits.")
        module.define_flags = lambda values: None
        module.main = lambda values, left: function(left)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(console.COMMANDS, "waiting", "wait")

    return make


def test_a_command_that_is_done_returns(capsys, command):
    command(lambda left: print("done", *left))
    for _ in range(2):
        main(["waiting", "for", "--", "--it"])
        assert capsys.readouterr() == ("done for --it\n", "")


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "stopped")],
)
def test_a_signal_has_its_status_and_its_line(capsys, command, number, status, word):
    command(lambda left: os.kill(os.getpid(), number))
    assert stopped(capsys, "waiting") == (status, "", f"{word}\n")


def test_train_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(train, "main", lambda values, left: os.kill(os.getpid(), signal.SIGTERM))
    status, _, err = stopped(capsys, "train")
    assert status == 143
    assert err == "terminated; the same command resumes from there\n"


def test_a_failed_run_is_one_line_and_status_1(capsys, command):
    def fail(left):
        raise RunError("the loss\nis NaN")

    command(fail)
    assert stopped(capsys, "waiting") == (1, "", "the loss is NaN\n")


def test_a_bug_is_not_hidden(command):
    def fail(left):
        raise RuntimeError("not the user's fault")

    command(fail)
    with pytest.raises(RuntimeError, match="not the user's fault"):
        main(["waiting"])


# === Processes ===


def run(*argv):
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_module_is_the_console_script():
    result = run("-m", "multitask", "--version")
    version = f"{multitask.__version__}\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, version, "")


def test_wrong_flags_and_help_do_not_wait_for_tensorflow():
    result = run(
        "-c",
        "import sys; from multitask.__main__ import main\n"
        "for argv in (['train', '--help'], ['train', '--nonsense'], ['predict']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as error: print('status', error.code)\n"
        "print(sorted({'tensorflow', 'keras'} & sys.modules.keys()))",
    )
    statuses = [line for line in result.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["status 0", "status 2", "status 2"]
    assert result.stdout.endswith("[]\n")
