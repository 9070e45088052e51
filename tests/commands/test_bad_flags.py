"""Bad flags, folders and runs: one clear line, exit status 2, nothing written."""

import shutil
from pathlib import Path

import pytest
from refused_training import refused, train_refused

from multitask.__main__ import main


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_size=0", ["--batch_size: 0", "greater than 0"]),
        ("--subset=0", ["--subset: 0", "greater than 0"]),
        ("--subset=nan", ["--subset: nan", "finite"]),
        ("--validation_share=0.9", ["--validation_share: 0.9", "0.5"]),
        ("--max_missing=1", ["--max_missing: 1", "less than 1"]),
        ("--image_size=-1", ["--image_size: -1", "32"]),
        ("--epochs_heads=-1", ["--epochs_heads: -1"]),
        ("--seed=-1", ["--seed: -1"]),
        ("--tasks=nonsense", ["--tasks", '"nonsense"', "shade, warmth"]),
        ("--tasks=shde,warmth", ['"shde"', 'Did you mean "shade"?']),
        ("--tasks=", ["--tasks", "shade, warmth"]),
        ("--trunk=nonsense", ['"nonsense"', "efficientnetb2"]),
        ("--trunk=efficientnet_b2", ['"efficientnet_b2"', 'Did you mean "efficientnetb2"?']),
        ("--trunk_weights=gone.h5", ['"gone.h5"', "no such file", "imagenet", "none"]),
        ("--spec=gone.toml", ["--spec: gone.toml: no such file"]),
        ("--spec=wikart", ['"wikart"', 'Did you mean "wikiart"?']),
        ("--data_dir=gone", ["--data_dir: gone"]),
        ("--phase=finetune", ["--phase: finetune", "--phase=heads", "--init_from"]),
        ("--init_from=gone.keras", ["--init_from", "--phase=finetune"]),
    ],
)
def test_bad_flags(capsys, place, flag, message):
    line = train_refused(capsys, place, flag)
    assert all(text in line for text in message), line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs_heads=0", "--epochs_finetune=0"], "--epochs_heads or --epochs_finetune"),
        (["--phase=heads", "--epochs_heads=0"], "--phase=heads: has 0 epochs"),
    ],
)
def test_nothing_to_train(capsys, place, flags, message):
    assert message in train_refused(capsys, place, *flags)


@pytest.mark.parametrize(
    ("depth", "message"),
    [("-9999", ["-9999", "layers"]), ("block99", ['"block99"', "block1", "none, all"])],
)
def test_a_freeze_depth_beyond_the_trunk(capsys, place, tiny_trunk, depth, message):
    line = train_refused(capsys, place, f"--trunk={tiny_trunk}", f"--freeze_depth={depth}")
    assert "--freeze_depth" in line
    assert all(text in line for text in message), line


def test_a_workdir_that_cannot_be_made(capsys, place):
    (place / "a_file").write_text("mine")
    for workdir in (place / "a_file", place / "a_file" / "run" / "first"):
        line = train_refused(capsys, place, f"--workdir={workdir}")
        assert line.startswith(f"--workdir: {workdir}: ")
        assert "a_file" in line


def test_a_workdir_that_holds_something_else(capsys, place):
    line = train_refused(capsys, place, f"--workdir={place / 'data'}")
    assert "holds other files" in line
    assert "new or empty folder" in line


def test_a_workdir_of_another_spec(capsys, place, trained):
    line = train_refused(capsys, place, "--image_size=64", "--subset=0.5")
    assert str(trained.workdir) in line
    assert "image_size: 32 before, 64 now" in line
    assert "task[0].subset: 1.0 before, 0.5 now" in line


def test_a_broken_run(capsys, place, trained):
    (trained.workdir / "config.json").write_text("{")
    for command in ("evaluate", "export", "similar"):
        line = refused(capsys, place, command, f"--workdir={trained.workdir}")
        assert "config.json" in line
    assert "config.json" in train_refused(capsys, place)


@pytest.mark.parametrize("command", ["evaluate", "export", "predict", "similar"])
def test_a_workdir_that_is_not_there(capsys, place, command):
    (place / "image.png").write_bytes(b"")
    images = [str(place / "image.png")] if command == "predict" else []
    line = refused(capsys, place, command, f"--workdir={place / 'gone'}", *images)
    assert str(place / "gone") in line
    assert "multitask train" in line
    line = refused(capsys, place, command, f"--workdir={place / 'data'}", *images)
    assert "no run" in line


def test_fewer_than_two_runs_or_one_twice(capsys, place, compared):
    first, _ = compared
    assert "two runs or more" in refused(capsys, place, "compare")
    line = refused(capsys, place, "compare", first)
    assert "two runs or more" in line
    assert first in line
    line = refused(capsys, place, "compare", first, f"{first}/../run")
    assert "named twice" in line


def test_a_run_that_is_not_there_or_not_evaluated(capsys, place, compared):
    first, second = compared
    line = refused(capsys, place, "compare", first, f"{place}/gone")
    assert line.startswith(f"{place}/gone: there is no such folder")
    shutil.rmtree(f"{second}/results")
    line = refused(capsys, place, "compare", first, second)
    assert line.startswith(f"{second}: no results")
    assert f"multitask evaluate --workdir={second}" in line


def test_a_comparison_that_cannot_be_written(capsys, place, compared):
    (place / "a_file").write_text("mine")
    line = refused(capsys, place, "compare", *compared, f"--out={place / 'a_file'}")
    assert line.startswith(f"--out: {place / 'a_file'}: ")
    line = refused(capsys, place, "compare", *compared, "--uot=x")
    assert "unknown flag --uot" in line
    assert 'Did you mean "out"?' in line


def test_runs_with_different_test_sets(capsys, place, compared):
    file = Path(compared[1], "results/predictions.csv")
    file.write_text(file.read_text().replace("b.png", "d.png"))
    line = refused(capsys, place, "compare", *compared)
    assert line.startswith(
        "shade: the runs have different test sets: 2 images differ, the first is b.png"
    )


def test_a_broken_result(capsys, place, compared):
    Path(compared[0], "results/probabilities.npz").write_bytes(b"")
    line = refused(capsys, place, "compare", *compared)
    assert "not the results of one evaluation" in line


def test_runs_are_compared_where_nothing_is_wrong(capsys, place, compared):
    """What the refusals above protect; beside the first run where --out is not given."""
    main(["compare", *compared])
    assert "warmth" in capsys.readouterr().out
    written = sorted(path.name for path in (place / "comparison").iterdir())
    assert written == ["comparison.csv", "comparison.html"]


def test_a_backend_that_is_not_there(place, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torhc")
    line = train_refused(capsys, place)
    assert line == 'KERAS_BACKEND: "torhc". Expected one of: jax, tensorflow.'


def test_features_that_contradict_themselves(place, capsys):
    line = train_refused(capsys, place, "--cache_features=off", "--feature_views=2")
    assert line.endswith('features.views: needs cached features, and cache is "off"')
    line = train_refused(capsys, place, "--cache_features=of")
    assert "--cache_features: 'of': expected one of: auto, off, on." in line.lower()
    line = train_refused(capsys, place, "--feature_dtype=float61")
    assert "Did you mean" in line


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (
            ["--distribute=multihost", "--backend=tensorflow"],
            "--distribute=multihost: is for --backend=jax, not tensorflow",
        ),
        (
            ["--distribute=multihost", "--coordinator=first-host"],
            "--coordinator: 'first-host': expected host:port",
        ),
        (["--process_index=1"], "--process_index: is only for --distribute=multihost"),
        (["--distribute=mirored"], 'Did you mean "mirrored"?'),
    ],
)
def test_a_distribution_that_cannot_be(place, monkeypatch, capsys, flags, wanted):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                f"--spec={place / 'spec.toml'}",
                f"--data_dir={place / 'data'}",
                f"--workdir={place / 'run'}",
                *flags,
            ]
        )
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wanted in line
    assert not (place / "run").exists()
