"""A command that was killed is resumed, or starts again."""

import hashlib
import json
import os
import signal

import pytest
from specs import spec_file

from multitask.__main__ import main


class Killed(BaseException):
    """What no command handles. Its temporary files are removed, which a SIGKILL would not do;
    tests/test_killed_at_renames.py has those."""


@pytest.fixture
def train(records, tiny_data, tiny_spec, tiny_trunk, renames, tmp_path, capsys):
    """A function: moment of tests/renames.py or None -> what a training printed until then."""
    tiny_data()
    spec = tiny_spec(tasks=("style",), phases={"heads": {"epochs": 1}, "finetune": {"epochs": 0}})
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    command = [
        *("train", f"--spec={tmp_path / 'spec.toml'}", f"--data_dir={tmp_path / 'data'}"),
        *(f"--workdir={tmp_path / 'run'}", "--trunk=tiny", "--nosimilar", records),
    ]

    def run(until=None):
        def at(moment):
            if renames.general(moment) == until:
                raise Killed

        with renames.watching(tmp_path, at):
            if until:
                with pytest.raises(Killed):
                    main(command)
            else:
                main(command)
        return capsys.readouterr().out

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def test_killed_before_its_settings_were_written_a_run_is_taken_up(train, tmp_path):
    train(until="before run/config.json")
    # As an older version left it, too.
    for name in ("models", "logs"):
        (tmp_path / "run" / name).mkdir(exist_ok=True)
    (tmp_path / "run" / ".tmp-999999999-config.json").write_text("half")
    train(until="after run/config.json")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["config.json", "logs", "models"]


def test_killed_before_its_last_file_an_evaluation_is_done_again(train, without_plots, tmp_path):
    results, model = tmp_path / "run" / "results", tmp_path / "run" / "models" / "best_model.keras"
    with without_plots():
        train(until="after run/results/metrics.json")
    assert not (results / "report.html").exists()
    with without_plots():
        out = train()
    assert "Nothing is left to train" in out
    assert "Evaluating " in out
    assert (results / "report.html").exists()
    assert "Evaluating " not in train()
    # The model is another one, though no newer.
    with model.open("ab") as file:
        file.write(b"x")
    os.utime(model, (0, 0))
    # It begins, which is enough: to its end takes seconds.
    assert "Evaluating " in train(until="before run/results/calibration.json")


def test_a_checkpoint_of_an_earlier_version_is_one_line(
    records, tiny_data, tiny_spec, tiny_trunk, tmp_path, capsys
):
    """Its best scores and history have names of their own."""
    data = tiny_data()
    command = [
        "train",
        f"--spec={spec_file(tiny_spec(tasks=('style',)), tmp_path)}",
        f"--data_dir={data}",
        f"--workdir={tmp_path / 'run'}",
        f"--trunk={tiny_trunk}",
        records,
        "--phase=heads",
        "--noevaluate",
    ]
    main(command)
    for folder in (tmp_path / "run" / "checkpoint").iterdir():
        text = (folder / "progress.json").read_text().replace('"format": 2, ', "")
        (folder / "progress.json").write_text(text)
        sums = json.loads((folder / "sha256.json").read_text())
        sums["progress.json"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "sha256.json").write_text(json.dumps(sums))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert "a checkpoint in format 1, this version reads 2; resume with the version" in line
