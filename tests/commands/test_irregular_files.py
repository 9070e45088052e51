"""Named pipes, devices and sparse files: one line on stderr, and no command waits for them."""

import shutil

import pytest
from odd_files import DEVICE, FIFO, LARGE, device, paint, pipe, sparse
from refusals import stopped

from multitask.__main__ import main
from multitask.run import open_run

pytestmark = pytest.mark.usefixtures("untimed")

TRAIN = ("--spec={}/spec.toml", "--data_dir={}/data")


@pytest.mark.parametrize(
    ("path", "make", "reason"),
    [
        ("spec.toml", pipe, FIFO),
        ("spec.toml", device, DEVICE),
        ("spec.toml", sparse, LARGE),
        ("data/lists/shade_train.csv", pipe, FIFO),
        ("data/lists/shade_train.csv", device, DEVICE),
        ("data/lists/shade_val.csv", sparse, LARGE),
        ("data/lists/shade_class.txt", pipe, FIFO),
        ("data/lists/shade_class.txt", device, DEVICE),
        ("run/models/best_model.keras", pipe, FIFO),
        ("run/models/best_model.keras", device, DEVICE),
    ],
)
def test_what_a_flag_or_a_spec_names_is_a_regular_file(
    colours, capsys, no_hang, path, make, reason
):
    make(colours / path)
    argv = ["audit", *TRAIN, "--out={}/audit"]
    if path.startswith("run"):
        argv = ["predict", "--workdir={}/run", "{}/data/images"]
    with pytest.raises(SystemExit) as stopped:
        main([word.format(colours) for word in argv])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err == f"{colours / path}: cannot be read: {reason}\n"
    assert not (colours / "audit").exists()


def test_an_export_is_of_regular_files(colours, capsys, no_hang):
    from multitask.serving.export import export

    whole = export(open_run(colours / "run"), formats=("keras",))
    (whole / "colours/1").mkdir(parents=True)
    text = (whole / "classes.json").read_text()
    more = '"artifacts": {\n  "onnx": "colours.onnx",\n  "savedmodel": "colours/1",'
    (whole / "classes.json").write_text(text.replace('"artifacts": {', more))
    for name in ("classes.json", "report.json", "colours.onnx", "colours/1/x.pb"):
        folder = colours / f"export-{name.replace('/', '-')}"
        shutil.copytree(whole, folder)
        pipe(folder / name)
        code, err = stopped(capsys, "predict", f"--model={folder}", colours / "data/images")
        assert code == 2
        assert err == f"--model: {folder}: not an export of multitask ({FIFO})"


def test_files_that_are_not_regular_are_listed_and_the_others_predicted(colours, capsys, no_hang):
    paint(colours / "good.png")
    pipe(colours / "pipe.jpg")
    device(colours / "zero.jpg")
    sparse(colours / "sparse.jpg")
    names = [colours / name for name in ("pipe.jpg", "zero.jpg", "good.png", "sparse.jpg")]
    main(["predict", f"--workdir={colours}/run", *map(str, names)])
    out, err = capsys.readouterr()
    assert out.startswith(f"{colours}/good.png\n")
    assert err.splitlines() == [
        f"{colours}/pipe.jpg: cannot be read: {FIFO}",
        f"{colours}/zero.jpg: cannot be read: {DEVICE}",
        f"{colours}/sparse.jpg: cannot be read: it is larger than the limit of 536,870,912 bytes",
    ]


def test_a_data_set_with_images_that_are_not_regular_files(colours, capsys, no_hang):
    """Prepared and audited: they count as unreadable, and nothing waits for them."""
    lists, images = colours / "data/lists", colours / "data/images"
    first, second = (lists / "shade_train.csv").read_text().splitlines()[:2]
    pipe(images / first.split(",")[0])
    device(images / second.split(",")[0])
    flags = [word.format(colours) for word in TRAIN]
    main(["prepare", *flags])
    assert "3 missing, 2 unreadable" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["audit", *flags, f"--out={colours}/audit"])
    assert caught.value.code == 3
    assert "3 missing files, 2 unreadable files" in capsys.readouterr().out
