"""The command: its exit status, what it writes, and one line for wrong input."""

import json

import pytest

from multitask.__main__ import main


@pytest.fixture
def place(tmp_path, tiny_data, tiny_spec):
    """A folder with data/ and a spec.toml that fits it."""
    tiny_data()
    (tmp_path / "spec.toml").write_text(tiny_spec(title="a tiny data set").to_toml())
    return tmp_path


def run(place, *flags):
    """The exit status of the command; flags replace the usual ones."""
    usual = {"spec": place / "spec.toml", "data_dir": place / "data", "out": place / "audit"}
    named = {flag.split("=")[0] for flag in flags}
    given = [f"--{name}={value}" for name, value in usual.items() if f"--{name}" not in named]
    try:
        main(["audit", *given, *flags])
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def test_clean_data_is_status_0(place, capsys):
    assert run(place) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0].startswith("a tiny data set: 16 images in the CSVs, 16 readable")
    assert out.splitlines()[-1] == "No findings."
    assert sorted(p.name for p in (place / "audit").iterdir()) == ["audit.html", "audit.json"]
    report = json.loads((place / "audit/audit.json").read_text(encoding="utf-8"))
    assert set(report["findings"].values()) == {0}


def test_findings_are_status_3_and_named_in_the_last_line(place, capsys):
    (place / "data/wikiart/Dots/someone_train-00.jpg").unlink()
    with (place / "data/wikiart_csv/style_train.csv").open("a") as file:
        file.write("../out.jpg,1\nLines/someone_train-01.jpg,2\n")
    assert run(place) == 3
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == (
        "Findings: 1 missing file, 1 row with an unsafe path, 1 image with contradictory labels"
    )
    report = json.loads((place / "audit/audit.json").read_text(encoding="utf-8"))
    assert report["missing"] == ["Dots/someone_train-00.jpg"]
    # The same again replaces both files, and says the same.
    before = (place / "audit/audit.html").read_bytes()
    assert run(place, f"--records_dir={place / 'records'}") == 3
    assert (place / "audit/audit.html").read_bytes() == before


def test_only_the_named_tasks_are_looked_at(place, capsys):
    (place / "data/wikiart_csv/genre_val.csv").write_text("nothing.jpg,99\n")
    assert run(place, "--tasks=artist,style") == 0
    report = json.loads((place / "audit/audit.json").read_text(encoding="utf-8"))
    assert list(report["classes"]) == ["artist", "style"]
    assert run(place) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out="], "--out is needed"),
        (["--data_dir="], "--data_dir is needed"),
        (["--spec=wikart"], 'Did you mean "wikiart"?'),
        (["--tasks=nonsense"], '"nonsense"'),
        (["--data_dir=gone"], "--data_dir: gone: is not a folder"),
        (["--out=spec.toml"], "--out: spec.toml"),
        (["--out=spec.toml/audit"], "--out: spec.toml/audit"),
        (["--records_dir=spec.toml"], "--records_dir: spec.toml"),
        (["image.jpg"], "takes flags only"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(place, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert run(place, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert sorted(place.rglob("*")) == before


def test_broken_data_is_status_2_and_writes_nothing(place, capsys):
    file = place / "data/wikiart_csv/genre_val.csv"
    file.write_text("a.jpg\nb.jpg\n")
    assert run(place) == 2
    assert f"{file}: expected two columns" in capsys.readouterr().err
    assert not (place / "audit").exists()


def test_the_help_says_what_a_finding_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for text in ("Exit status", "Findings: a missing", "Information only", "--records_dir="):
        assert text in out
