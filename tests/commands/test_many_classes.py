"""Collections of 300 and of 1,000 classes, from one table to the report by one command."""

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
    """Draw photos/ and write catalogue.csv; return it as a frame.

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
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "catalogue.csv", index=False)
    return frame


@pytest.mark.slow
@pytest.mark.parametrize(("makers", "sizes"), [(300, (5, 6)), (1000, (4,))])
def test_one_command_from_a_table_of_many_classes_to_a_report(
    makers, sizes, tmp_path, tiny_trunk, capsys
):
    frame = paint(tmp_path, makers, sizes)
    data = (f"--data={tmp_path / 'catalogue.csv'}", f"--images={tmp_path / 'photos'}")
    main(["train", *data, f"--workdir={tmp_path / 'run'}", *QUICK])
    out = capsys.readouterr().out
    assert f"tasks: maker ({makers:,} classes), town ({makers // 10} classes)" in out
    assert len(out.splitlines()) < LINES

    run, results = tmp_path / "run", tmp_path / "run/results"
    splits = frame.merge(pd.read_csv(run / "table.csv")[["path", "split"]], left_on="file",
                         right_on="path", validate="one_to_one")  # fmt: skip
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
        # The table is kept as it is before the validation split is drawn from the training images.
        labels = {name: row[f"{task}/labels"] for name, row in content["images"].items()}
        assert labels["test"] == counts["test"].sum()
        assert labels["train"] + labels["validation"] == counts["train"].sum()

        matrix = content["confusion"][task]
        total = frame[task].nunique()
        assert len(matrix["counts"]) == (total if total <= 40 else SHOWN)
        assert np.sum(matrix["counts"]) == counts["test"].sum()
        with Image.open(results / f"confusion_matrix_{task}.png") as plot:
            assert max(plot.size) < 2500
    assert (results / "report.html").stat().st_size < 10e6
