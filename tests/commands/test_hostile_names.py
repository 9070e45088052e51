"""Tasks named as columns and layers of ours, and folders whose names are patterns."""

import shutil

import pandas as pd
import pytest
from specs import spec_file

from multitask.__main__ import main
from multitask.annexes.serve.neighbours import load_attention
from multitask.serving import agreement

pytestmark = pytest.mark.usefixtures("untimed")


def write_spec(folder, names):
    """`tiny_data`'s tasks under other names: the spec file."""
    text = (
        'name = "own"\nimages = "wikiart"\nimage_size = 32\nbatch_size = 5\nvalidation = 0.2\n'
        '[trunk]\nname = "tiny"\nweights = "none"\n'
        'schedule = { kind = "constant", rate = 1e-3 }\n'
        "[phases.heads]\nepochs = 2\n"
    )
    for file, name in zip(("artist", "genre", "style"), names, strict=True):
        text += (
            f'[[task]]\nname = "{name}"\ntrain = "wikiart_csv/{file}_train.csv"\n'
            f'test = "wikiart_csv/{file}_val.csv"\nclasses = "wikiart_csv/{file}_class.txt"\n'
            'head = { kind = "linear" }\nloss = { kind = "focal" }\n'
            'schedule = { kind = "constant", rate = 1e-3 }\n'
        )
    spec = folder / f"{'-'.join(names)}.toml"
    spec.write_text(text)
    return spec


@pytest.mark.parametrize(
    "names",
    [
        ("image", "macro_f1", "val_loss"),
        pytest.param(("test", "trunk", "x"), marks=pytest.mark.slow),
        pytest.param(("features", "loss", "shared"), marks=pytest.mark.slow),
    ],
)
def test_tasks_called_as_ours_are_trained_as_under_harmless_names(
    names, tiny_data, tiny_trunk, uncompiled, tmp_path, capsys
):
    """They crashed, or took each other's place in the logs."""
    data, rows = tiny_data(), []
    for kind in (names, ("a", "b", "c")):
        flags = [f"--spec={write_spec(tmp_path, kind)}", f"--data_dir={data}"]
        workdir = tmp_path / kind[0]
        with uncompiled():
            main(["train", *flags, f"--workdir={workdir}", "--phase=heads", "--noevaluate"])
        rows.append(pd.read_csv(workdir / "logs" / "history.csv"))
        assert (workdir / "models" / f"best_model_{kind[0]}.keras").is_file()
    of = dict(zip(names, "abc", strict=True))

    def harmless(name):
        task, slash, field = name.partition("/")
        return f"{of[task]}/{field}" if slash else name

    pd.testing.assert_frame_equal(rows[0].rename(columns=harmless), rows[1], check_exact=True)
    assert len(set(rows[0])) == 6 + 3 * 10


NASTY = "d [2024] {a,b} * ? %20 #1 'x\" é $m$ \\d"


def test_an_export_below_a_folder_that_is_a_pattern(known, data, tmp_path, capsys):
    """TensorFlow reads a SavedModel's weights by pattern: `m [v1]` is `m v` and `m 1` to it."""
    run = known.make_run(tmp_path / NASTY / "run", data, tasks=("warmth",))
    main(["export", f"--workdir={run.workdir}", "--check_images=3"])
    # What the pattern matches is another model.
    other = known.make_run(tmp_path / "d 2 {a,b} * ? %20 #1 'x\" é $m$ d" / "run", data)
    assert other.best_model.is_file()
    image = next(path for path in data.painted if path not in data.missing)
    capsys.readouterr()
    main(
        [
            "predict",
            f"--model={run.workdir / 'export'}",
            "--runtime=tensorflow",
            str(data.folder / "images" / image),
        ]
    )
    out = capsys.readouterr().out
    message = known.answers(data.painted[image][None])["warmth"][0]
    assert f"warmth  {known.WARMTH[message.argmax()]} {message.max():.3f}" in out
    assert callable(load_attention(run.workdir / "export"))


@pytest.mark.slow
def test_every_command_in_a_folder_of_a_nasty_name(
    tiny_data, tiny_spec, tiny_trunk, tmp_path, monkeypatch, capsys
):
    """The name has what shells, globs, URLs, formats and formulas act on."""
    monkeypatch.setitem(agreement.BOUNDS, "int8", agreement.Bound(0.1, 0.0))  # hardly trained
    place = tmp_path / NASTY
    root = tiny_data(folder=f"{NASTY}/data")
    spec = spec_file(tiny_spec(validation=0.25, trunk={
        "name": tiny_trunk, "weights": "none", "schedule": {"kind": "constant", "rate": 1e-3}
    }), place)  # fmt: skip
    data = [f"--spec={spec}", f"--data_dir={root}"]
    image = str(next((root / "wikiart").rglob("*.jpg")))
    run = place / "run"
    main(["audit", *data, f"--out={place / 'audit'}"])
    main(["prepare", *data])
    for _ in range(2):
        main(["train", *data, f"--workdir={run}"])
    shutil.copytree(run, place / "other")
    for trials in (1, 2):
        main(["tune", *data, f"--workdir={place / 'tuned'}", f"--trials={trials}"])
    main(["evaluate", f"--workdir={run}"])
    main(["compare", str(run), str(place / "other"), f"--out={place / 'compared'}"])
    main(["export", f"--workdir={run}", "--format=savedmodel,onnx,litert,keras"])
    quantized = f"--out={place / 'small'}"
    main(["export", f"--workdir={run}", "--format=onnx,litert", "--quantize=int8", quantized])
    main(["similar", f"--workdir={run}", image])
    main(["predict", f"--workdir={run}", image])
    for runtime, out in (
        ("tensorflow", "a.csv"),
        ("onnxruntime", "b.jsonl"),
        ("openvino", "c.parquet"),
        ("litert", "d.csv"),
    ):
        model = [f"--model={run / 'export'}", f"--runtime={runtime}", f"--out={place / out}"]
        main(["predict", *model, str(root / "wikiart")])
        assert (place / out).stat().st_size
    assert callable(load_attention(run / "export"))
    for file in (
        "audit/audit.html",
        "run/results/report.html",
        "tuned/tune/study.db",
        "tuned/tune/best.toml",
        "compared/comparison.html",
        "run/export/classes.json",
        "small/classes.json",
    ):
        assert (place / file).stat().st_size, file
    # Nothing went elsewhere, to a place that the name means as a pattern or an address.
    assert [path.name for path in tmp_path.iterdir()] == [NASTY]
