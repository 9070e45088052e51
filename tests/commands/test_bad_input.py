"""Bad lists, class files, images and specs: one clear line, exit status 2, nothing written."""

import os
import struct
import zlib

import pytest
from PIL import Image
from refused_training import refused, train_refused, truncated

from multitask.__main__ import main
from multitask.data.image_files import why_unreadable


def replace_in(name, old, new):
    def change(data):
        path = data / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def write(name, text):
    return lambda data: (data / name).write_text(text)


def add_row(row):
    def change(data):
        with (data / "lists/shade_train.csv").open("a") as file:
            file.write(f"{row}\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: (data / "lists/shade_train.csv").rename(data / "lists/shade_trian.csv"),
            ["shade_train.csv: no such file", "shade_trian.csv"],
        ),
        (write("lists/shade_train.csv", ""), ["shade_train.csv: no training rows", '"shade"']),
        (write("lists/shade_train.csv", "\ufeff\r\n \n"), ["shade_train.csv", "no training rows"]),
        (write("lists/shade_train.csv", "path,class\n"), ["no training rows", "--tasks"]),
        (
            write("lists/shade_train.csv", "a.png\nb.png\n"),
            ["shade_train.csv", "path,class", "1 column"],
        ),
        (
            write("lists/shade_train.csv", "a.png,1,x\nb.png,2,y\n"),
            ["shade_train.csv", "path,class", "3 columns"],
        ),
        (
            write("lists/shade_train.csv", "a.png,1\nb.png,two\n"),
            ["shade_train.csv: line 2", "'two'", "0 to 11"],
        ),
        (
            write("lists/shade_train.csv", "a.png,1\nb.png,colar\n"),
            ["line 2", "'colar'", 'Did you mean "coral"?'],
        ),
        (
            write("lists/shade_train.csv", "a.png,12\nb.png,40\n"),
            ["shade_train.csv", "2 of 2 rows", "line 1", "'12'", "0 to 11", "max_unknown"],
        ),
        (
            write("lists/shade_train.csv", "a.png,-1\nb.png,-2\n"),
            ["shade_train.csv", "2 of 2 rows", "'-1'", "0 to 11"],
        ),
        (write("lists/shade_train.csv", "a.png,1\n,2\n"), ["line 2", "path", "empty"]),
        (add_row("../secret.png,1"), ["shade_train.csv: line 25", "'../secret.png'", "`..`"]),
        (add_row("a/../../b.png,1"), ["line 25", "'a/../../b.png'", "`..`"]),
        (add_row(r"..\b.png,1"), ["line 25", "`..`"]),
        (add_row("/etc/passwd,1"), ["line 25", "'/etc/passwd'", "absolute"]),
        (add_row(r"C:\x.png,1"), ["line 25", "absolute"]),
        (
            replace_in("lists/shade_class.txt", "4 slate", "44 slate"),
            ["shade_class.txt", "index 4 is missing", "0 to 11"],
        ),
        (
            replace_in("lists/shade_class.txt", "4 slate", "4 coral"),
            ["shade_class.txt: line 5", '"coral"', "is repeated"],
        ),
        (
            replace_in("lists/shade_class.txt", "4 slate", "3 slate"),
            ["shade_class.txt: line 5", "index 3", "is repeated"],
        ),
        (
            replace_in("lists/shade_class.txt", "4 slate", "slate"),
            ["shade_class.txt: line 5", "'slate'", "`index name`"],
        ),
        (
            lambda data: (data / "lists/warmth_class.txt").write_bytes(b"0 \xff\xfe\n"),
            ["warmth_class.txt", "UTF-8"],
        ),
        (
            lambda data: (data / "lists/warmth_class.txt").unlink(),
            ["warmth_class.txt: no such file"],
        ),
        (
            lambda data: (data / "images").rename(data / "elsewhere"),
            [f"{os.sep}images", "no such folder"],
        ),
    ],
)
def test_bad_lists(capsys, place, without_network, change, message):
    change(place / "data")
    line = train_refused(capsys, place)
    assert all(text in line for text in message), line
    assert str(place / "data") in line


def test_a_run_that_exists_is_not_changed_by_bad_lists(capsys, place, trained):
    (place / "data/lists/shade_val.csv").write_text("a.png\n")
    for command in ("evaluate", "export"):
        assert "path,class" in refused(capsys, place, command, f"--workdir={trained.workdir}")


# === Images ===


def huge(path):
    """A whole PNG by its chunks, of 30,000 x 30,000 pixels by its header."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    parts = [chunk(b"IHDR", header), pixels, chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "bad.jpg ("),
        (lambda path: path.write_text("a text"), "not a JPEG, PNG or WebP image"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (huge, "image of 30000 x 30000 pixels, over the limit"),
        (lambda path: path.mkdir(), "it is a folder, not a regular file"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_bad_image(capsys, place, without_network, tmp_path_factory, make, message):
    add_row("bad.jpg,1")(place / "data")
    make(place / "data/images/bad.jpg")
    # The records of the others are kept, elsewhere, for the next try. Three of 61 are missing.
    records_dir = tmp_path_factory.mktemp("records")
    line = train_refused(capsys, place, "--max_missing=0.05", f"--records_dir={records_dir}")
    assert "4 of 61 images" in line
    assert "bad.jpg" in line
    assert message in line
    assert "max_missing" in line
    assert "--max_missing" in line  # the way out
    if make is truncated:
        assert "no such file" not in line.split("bad.jpg (")[1].split(")")[0]


def test_an_image_of_one_pixel_is_one(place, trained, known, capsys):
    """It trains, is examined and predicted; the same answers as a larger one of its colour."""
    row = (place / "data/lists/shade_val.csv").read_text().splitlines()
    colour = next(
        file
        for path in (line.split(",")[0] for line in row)
        if (file := place / "data/images" / path).is_file()
    )
    argv = ["predict", f"--workdir={trained.workdir}", str(colour)]
    main(argv)
    before = capsys.readouterr().out
    with Image.open(colour) as image:
        image.crop((0, 0, 1, 1)).save(colour)
    main(argv)
    assert capsys.readouterr().out == before
    assert why_unreadable(colour) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size = 8", "batchsize = 8", ['"batchsize"', 'Did you mean "batch_size"?']),
        (
            'classes = "lists/warmth_class.txt"\nhead = { kind = "linear" }',
            'classes = "lists/warmth_class.txt"\nhead = { kind = "linaer" }',
            ['task[1] "warmth"', "head.kind", '"linaer"', "residual_se", 'mean "linear"?'],
        ),
        ('name = "warmth"', 'name = "shade"', ["task[1]", "name", 'called "shade"']),
        ('name = "warmth"', 'name = "../warmth"', ["task[1]", "name", "../warmth"]),
        ('weights = "none"', 'wieghts = "none"', ["trunk", '"wieghts"', '"weights"']),
        ("image_size = 32", "image_size = 8", ["image_size", "8", "32"]),
        ("image_size = 32", "image_size = ", ["not valid TOML", "line 4"]),
        ('"constant"', '"constnat"', ["schedule.kind", '"constnat"', 'mean "constant"?']),
        ('"focal"', '"focall"', ["task[0]", "loss.kind", '"focall"', 'mean "focal"?']),
        (
            "batch_size = 8",
            'batch_size = 8\nmix = { kind = "cutmx" }',
            ["mix.kind", '"cutmx"', 'mean "cutmix"?'],
        ),
        (
            "batch_size = 8",
            'batch_size = 8\nsampler = { kind = "balanced", power = 1.5 }',
            ["sampler.power", "1.5", "less than or equal to 1"],
        ),
    ],
)
def test_bad_specs(capsys, place, old, new, message):
    path = place / "spec.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    line = train_refused(capsys, place)
    assert line.startswith(str(path))
    assert all(text in line for text in message), line
