"""`multitask tune`: its flags, and one small search from them."""

import pytest

from multitask.__main__ import main
from multitask.annexes.tune.space import GROUPS
from multitask.commands.spec_flags import OVERRIDES
from multitask.commands.tune import NOT_TUNED
from multitask.spec import load_spec


def stopped(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main(["tune", *map(str, argv)])
    return caught.value.code, *capsys.readouterr()


@pytest.fixture
def place(tiny_data, tiny_spec, tmp_path):
    """data/ and spec.toml of the tiny data set."""
    tiny_data()
    phases = {"heads": {"epochs": 1}, "finetune": {"epochs": 0}}
    (tmp_path / "spec.toml").write_text(tiny_spec(validation=0.25, phases=phases).to_toml())
    return tmp_path


def given(place, *more):
    return [
        f"--spec={place / 'spec.toml'}",
        f"--data_dir={place / 'data'}",
        f"--workdir={place / 'work'}",
        *more,
    ]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--trials=0", "multitask tune: --trials: '0': expected a positive integer"),
        (
            "--minutes=-1",
            "multitask tune: --minutes: '-1': expected a non-negative number",
        ),
        (
            "--trails=3",
            'multitask tune: unknown flag --trails; --help lists them. Did you mean "trials"?',
        ),
        (
            "--epochs_finetune=3",
            "multitask tune: unknown flag --epochs_finetune; --help lists them.",
        ),
        (
            "--search=rates,loss",
            '--search: "loss": expected one of: heads, losses, rates, weights. '
            'Did you mean "losses"?',
        ),
        ("--search=", '--search: "": the spec has no numbers to search'),
        (
            "--metric=styel",
            '--metric: "styel": expected one of: artist, genre, macro_f1, style. '
            'Did you mean "style"?',
        ),
        ("--epochs_heads=0", "--epochs_heads: 0: a trial is the phase heads; expected 1 or more"),
        (
            "--validation_share=0",
            "--validation_share: 0: tune chooses by the validation split; expected more",
        ),
    ],
)
def test_wrong_flags_are_one_line(capsys, place, flag, line):
    status, out, err = stopped(capsys, *given(place, flag))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(line)
    assert sorted(path.name for path in place.iterdir()) == ["data", "spec.toml"]
    assert not (place / "data" / "records").exists()


def test_what_is_needed(capsys):
    for flags, name in (
        ([], "spec"),
        (["--spec=demo"], "data_dir"),
        (["--spec=demo", "--data_dir=x"], "workdir"),
    ):
        status, _, err = stopped(capsys, *flags)
        assert (status, err) == (
            2,
            f"multitask tune: --{name} is needed; --help lists the flags\n",
        )


def test_help_names_what_is_searched(capsys):
    status, out, _ = stopped(capsys, "--help")
    assert status == 0
    for group in GROUPS:
        assert f"\n  {group} " in out
    assert "optimistic" in out
    shown = {flag for flag in OVERRIDES if f"--{flag}=" in out or f"--[no]{flag}" in out}
    assert shown == OVERRIDES.keys() - set(NOT_TUNED)


def test_a_small_search(capsys, place, tiny_trunk):
    flags = given(place, "--tasks=style", "--search=rates, losses", "--metric=style")
    main(["tune", *flags, "--trials=2", f"--trunk={tiny_trunk}", "--batch_size=4"])
    out = capsys.readouterr().out
    assert "Searching 3 numbers: schedule.rate of style; loss.gamma of style; " in out
    assert [line[:12] for line in out.splitlines() if line.startswith("trial ")] == [
        "trial 0 of 2",
        "trial 1 of 2",
    ]
    best = load_spec(str(place / "work" / "tune" / "best.toml"))
    assert best.task_names == ("style",)
    assert (best.trunk.name, best.batch_size) == (tiny_trunk, 4)
    # Other flags in that folder are refused; nothing is searched.
    status, out, err = stopped(capsys, *flags, f"--trunk={tiny_trunk}", "--batch_size=5")
    assert (status, out) == (2, "")
    assert "holds a search with other settings (batch_size: 4 before, 5 now)" in err
