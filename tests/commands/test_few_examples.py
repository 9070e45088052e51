"""Too few examples or epochs: what is missing then, and what the console advises."""

import json
import re
import shutil

import pandas as pd
import pytest
from specs import spec_file

from multitask.__main__ import main

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.mark.usefixtures("unplotted")
def test_a_temperature_of_few_images_is_1_and_everything_says_why(known, data, tmp_path, capsys):
    """The case: 3 images gave T = 0.05, which was used, and `auto` then advised what was done."""
    run = known.make_run(tmp_path / "run", data, tasks=("shade", "empty"), validation=0.15)
    main(["evaluate", f"--workdir={run.workdir}", "--nosimilar"])
    console = capsys.readouterr().out
    content = json.loads((run.results / "calibration.json").read_text())["tasks"]
    evaluated = json.loads((run.results / "metrics.json").read_text())["calibration"]
    page = (run.results / "report.html").read_text()
    for task in run.spec.task_names:
        count = content[task]["fitted_on"]
        assert 1 < count < 10
        reason = f"only {count} validation images have a label, at least 30 are needed"
        assert content[task]["temperature"] == evaluated[task]["temperature"] == 1
        assert content[task]["reason"] == evaluated[task]["reason"] == reason
        assert f"Not calibrated (T = 1): {task}: {reason}\n" in console
        assert task == "empty" or f"<p>Not calibrated (T = 1): {reason}." in page
    assert "Calibration error by temperature scaling" not in console
    image = next(iter((data.folder / "images").rglob("*.png")))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"--workdir={run.workdir}", "--min_confidence=auto:0.9", str(image)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for task in run.spec.task_names:
        assert f"{task}: only {content[task]['fitted_on']} validation images have a label" in line
    assert "multitask evaluate" not in line  # it was
    assert "Give a number, such as 0.6" in line
    main(["predict", f"--workdir={run.workdir}", "--min_confidence=0.6", str(image)])  # it helps


@pytest.mark.parametrize(("heads", "finetune"), [(1, 0), (0, 1)])
def test_a_phase_of_no_epochs_is_skipped(
    heads, finetune, records, tiny_data, tiny_spec, tiny_trunk, uncompiled, tmp_path, capsys
):
    spec = spec_file(tiny_spec(tasks=("style",), validation=0.25, batch_size=12), tmp_path)
    command = [
        "train",
        f"--spec={spec}",
        f"--data_dir={tiny_data()}",
        f"--workdir={tmp_path / 'run'}",
        f"--trunk={tiny_trunk}",
        f"--epochs_heads={heads}",
        f"--epochs_finetune={finetune}",
        records,
        "--noevaluate",
    ]
    with uncompiled():
        main(command)
    out = capsys.readouterr().out
    trained = "heads" if heads else "finetune"
    assert re.findall(r"^Phase (\w+):", out, re.MULTILINE) == [trained]
    assert list(pd.read_csv(tmp_path / "run" / "logs" / "history.csv")["phase"]) == [trained]
    newest = max((tmp_path / "run" / "checkpoint").iterdir())
    assert json.loads((newest / "progress.json").read_text())["finished"] == [trained]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.keras")}
    main(command)
    out = capsys.readouterr().out
    assert "Nothing is left to train" in out
    assert "Phase" not in out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.keras")} == files


def test_advice_names_what_helps(tiny_data, tiny_spec, tiny_trunk, uncompiled, tmp_path, capsys):
    """`--phase=finetune` of a spec without the phase heads does not advise `--phase=heads`, which
    is refused; and the share of missing images that is advised is enough."""
    root = tiny_data()
    phases = {"heads": {"epochs": 0}, "finetune": {"epochs": 1}}
    spec = spec_file(tiny_spec(tasks=("style",), phases=phases, batch_size=12), tmp_path)
    command = [
        "train",
        f"--spec={spec}",
        f"--data_dir={root}",
        f"--workdir={tmp_path / 'run'}",
        f"--trunk={tiny_trunk}",
        "--noevaluate",
    ]

    def refused(*flags):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *flags])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "; train with --phase=all, or name one with" in refused("--phase=finetune")
    for path in sorted((root / "wikiart").rglob("*.jpg"))[:5]:
        path.unlink()
    line = refused()
    share = re.search(r"allow them to be missing with (--max_missing=[0-9.]*[0-9])\.$", line)
    assert share, line
    with uncompiled():
        main([*command, share[1]])
    assert (tmp_path / "run" / "models" / "best_model.keras").is_file()
    shutil.rmtree(root / "wikiart" / "Dots")
    shutil.rmtree(root / "wikiart" / "Lines")
    shutil.rmtree(root / "wikiart" / "Waves")
    command[3] = f"--workdir={tmp_path / 'other'}"
    assert "--max_missing" not in refused()  # no share allows that all are missing
