"""Collections of 300 and of 1,000 classes, from source to report by one command."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from multitask.__main__ import main

QUICK = (
    *("--trunk=tiny", "--trunk_weights=none", "--image_size=32", "--freeze_depth=all"),
    *("--epochs_heads=1", "--epochs_finetune=0", "--cache_features=off", "--nosimilar"),
)
LINES = 80  # of the console: no output has a line per class
SHOWN = 41  # rows of a confusion matrix: 40 classes, and all others together


def paint(folder, makers, sizes):
    """Draw photos/; return the catalogue: file, maker, town.

    Each image shows the colours of its maker, a little changed. The town does not follow from the
    maker: there is one for ten makers, and the rows go through them in turn.
    """
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(makers):
        colours = rng.integers(60, 196, (3, 4, 3))
        for view in range(sizes[number % len(sizes)]):
            file = f"{number:04}_{view}.png"
            cells = (colours + rng.integers(-60, 61, colours.shape)).astype(np.uint8)
            Image.fromarray(cells).resize((40, 30)).save(folder / "photos" / file)
            town = f"Ville nº {len(rows) % (makers // 10):03}"
            rows.append({"file": file, "maker": f'Maître, "{number:04}"', "town": town})
    return pd.DataFrame(rows)


def write_csv(folder, frame):
    """Write a table; return the flags that name it, and the path of each image in a run."""
    frame.to_csv(folder / "catalogue.csv", index=False)
    data = (f"--data={folder / 'catalogue.csv'}", f"--images={folder / 'photos'}")
    return data, frame["file"]


def write_hub(folder, frame):
    """Write Parquet with the images inside and the names of the classes in its schema."""
    import datasets

    (folder / "museum" / "data").mkdir(parents=True)
    data = datasets.Dataset.from_pandas(frame[["maker", "town"]])
    for column in ("maker", "town"):
        data = data.class_encode_column(column)
    paths = [str(folder / "photos" / file) for file in frame["file"]]
    data = data.add_column("image", paths).cast_column("image", datasets.Image())
    data.save_to_disk(folder / "saved")  # which embeds the files
    data = datasets.load_from_disk(folder / "saved")
    data.to_parquet(folder / "museum" / "data" / "train-00000-of-00001.parquet")
    names = [f"data/train-00000-of-00001/{row:08}.png" for row in range(len(frame))]
    return (f"--data={folder / 'museum'}",), pd.Series(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "makers", "sizes"), [(write_hub, 300, (5, 6)), (write_csv, 1000, (4,))]
)
def test_one_command_from_many_classes_to_a_report(
    write, makers, sizes, tmp_path, tiny_trunk, capsys
):
    frame = paint(tmp_path, makers, sizes)
    data, paths = write(tmp_path, frame)
    main(["train", *data, f"--workdir={tmp_path / 'run'}", *QUICK])
    out = capsys.readouterr().out
    assert f"tasks: maker ({makers:,} classes), town ({makers // 10} classes)" in out
    assert len(out.splitlines()) < LINES

    run, results = tmp_path / "run", tmp_path / "run/results"
    splits = frame.assign(path=paths).merge(
        pd.read_csv(run / "table.csv")[["path", "split"]], on="path", validate="one_to_one"
    )
    assert len(splits) == len(frame)
    content = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    for task in ("maker", "town"):
        counts = pd.crosstab(splits[task], splits["split"])
        assert counts.to_numpy().sum() == len(frame)
        # Every class is on both sides, and has its share of the test images within one image.
        assert (counts[["train", "test"]] > 0).all(axis=None)
        share = counts["test"].sum() / len(frame)
        assert (abs(counts["test"] - share * counts.sum(axis=1)) <= 1).all()
        classes = pd.read_csv(results / f"classes_{task}.csv")
        assert classes["class"].tolist() == sorted(frame[task].unique())
        assert classes.set_index("class")["examples"].to_dict() == counts["test"].to_dict()
        lines = (results / f"classification_report_{task}.txt").read_text(encoding="utf-8")
        assert all(name in lines for name in frame[task].unique())
        labels = {name: row[f"{task}/labels"] for name, row in content["images"].items()}
        assert labels == counts.sum().to_dict()

        matrix = content["confusion"][task]
        total = frame[task].nunique()
        assert len(matrix["counts"]) == (total if total <= 40 else SHOWN)
        assert np.sum(matrix["counts"]) == counts["test"].sum()
        with Image.open(results / f"confusion_matrix_{task}.png") as plot:
            assert max(plot.size) < 2500
    assert (results / "report.html").stat().st_size < 10e6
