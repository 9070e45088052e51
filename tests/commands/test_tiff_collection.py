"""A catalogue of TIFFs, as museums keep them, by every command that reads a collection's images.

The same pixels as PNG files give the same results.
"""

import collections_made as made
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from multitask.__main__ import main

SMALL = ("--trunk=tiny", "--trunk_weights=none", "--image_size=32")
QUICK = (*SMALL, "--freeze_depth=all", "--epochs_heads=1", "--epochs_finetune=0")


@pytest.fixture
def folder(tmp_path, write_image, monkeypatch):
    """The current folder: tiff/ and png/, each with catalogue.csv and the same names and pixels."""
    for kind in ("tiff", "png"):
        (tmp_path / kind / "photos").mkdir(parents=True)
        frame = made.rows().replace({"file": {r"\.png$": ".tif"}}, regex=True)
        frame.to_csv(tmp_path / kind / "catalogue.csv", index=False)
    for number, file in enumerate(frame["file"]):
        write_image(tmp_path / "a.png", seed=number).rename(tmp_path / "png" / "photos" / file)
        with Image.open(tmp_path / "png" / "photos" / file) as image:
            pixels = np.asarray(image.convert("RGB"))
        options = [
            {"rowsperstrip": 5},
            {"tile": (16, 16), "compression": "zlib"},
            {"compression": "zlib", "bigtiff": True},
        ][number % 3]
        pixels = pixels.astype(np.uint16) * 257 if number % 3 == 2 else pixels
        target = tmp_path / "tiff" / "photos" / file
        tifffile.imwrite(target, pixels, photometric="rgb", **options)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(kind):
    return (f"--data={kind}/catalogue.csv", f"--images={kind}/photos")


@pytest.mark.slow
def test_train_similar_export_and_predict(folder, tiny_trunk, capsys):
    main(["train", *data("tiff"), "--workdir=run", *QUICK])
    assert "40 TIFF" in capsys.readouterr().out
    kept = pd.read_csv(folder / "run/table.csv", keep_default_na=False).set_index("path")
    query = kept.index[kept["split"] == "train"][0]
    nearest = []
    for kind in ("tiff", "png"):
        main(["similar", "--workdir=run", f"--query={kind}/photos/{query}"])
        lines = capsys.readouterr().out.splitlines()
        nearest.append([line.split() for line in lines if line.lstrip()[:1].isdigit()])
    assert nearest[0] == nearest[1]
    school = kept.loc[query, "school/label"]
    assert nearest[0][0][:4] == ["1", "0.0000", query, school]
    assert [row[0] for row in nearest[0]] == list("12345")

    main(["export", "--workdir=run", "--format=litert"])
    for kind in ("tiff", "png"):
        main(["predict", "--model=run/export", f"--out={kind}.csv", f"{kind}/photos"])
    tiff, png = (pd.read_csv(f"{kind}.csv") for kind in ("tiff", "png"))
    assert len(tiff) == 40
    pd.testing.assert_frame_equal(tiff.drop(columns="path"), png.drop(columns="path"))
    assert tiff["path"].str.replace("tiff/", "png/").tolist() == png["path"].tolist()


@pytest.mark.slow
def test_tune(folder, tiny_trunk, capsys):
    trials = {}
    for kind in ("tiff", "png"):
        main(["tune", *data(kind), f"--workdir=tuned_{kind}", *SMALL, "--epochs_heads=2",
              "--trials=2"])  # fmt: skip
        trials[kind] = pd.read_csv(folder / f"tuned_{kind}/tune/trials.csv")
    capsys.readouterr()
    assert len(trials["tiff"]) == 2
    same = [column for column in trials["tiff"] if not column.startswith(("seconds", "dat"))]
    pd.testing.assert_frame_equal(trials["tiff"][same], trials["png"][same])
    assert trials["tiff"]["score"].notna().all()
    # The spec that it writes means the same TIFFs, whose records are there.
    spec = "tuned_tiff/tune/best.toml"
    main(["prepare", f"--spec={spec}", "--data_dir=tiff"])
    assert "Already prepared: " in capsys.readouterr().out
