"""Tests of multitask/pages/image_sheets.py."""

import numpy as np
import pytest
from PIL import Image
from plotting import check, names_of

from multitask.pages import image_sheets


@pytest.mark.parametrize("count", [0, 1, 8])
def test_outliers(tmp_path, count):
    shapes = [(30, 40, 3), (1, 900, 3), (900, 1, 3), (300, 300, 3)]
    images = [np.full(shapes[k % 4], 90, dtype=np.uint8) for k in range(count)]
    images[2:3] = [None] * len(images[2:3])
    captions = [f"true: {name}\npredicted: $\nconfidence .9" for name in names_of(count)]
    path = tmp_path / "outliers.png"
    image_sheets.outliers(path, images, captions, task="t", columns=3)
    check(path, tmp_path)


def test_outliers_says_how_many_there_are(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(image_sheets, "write_title", lambda figure, task, text: titles.append(text))
    for total in (None, 1, 1300):
        image_sheets.outliers(tmp_path / "a.png", [None], ["a"], task="t", total=total)
    assert titles == [
        "1 outlier, the worst first",
        "1 outlier, the worst first",
        "1,300 outliers, the 1 worst",
    ]


def test_outliers_refuses_other_lengths(tmp_path):
    with pytest.raises(ValueError, match="0 captions"):
        image_sheets.outliers(tmp_path / "a.png", [None], [], task="t")


@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_similar(tmp_path, count):
    shapes = [(30, 40, 3), (1, 900, 3), (900, 1, 3), (300, 300, 3)]
    images = [np.full(shapes[k % 4], 90, dtype=np.uint8) for k in range(count)]
    images[2:3] = [None] * len(images[2:3])
    captions = [f"1.  distance .9\n{name}" for name in names_of(count)]
    path = tmp_path / "similar.png"
    for query in (np.full((500, 20, 3), 9, np.uint8), None):
        result = image_sheets.similar(path, query, images, captions, title="a $x$", text="nearest")
        assert result == path
        check(path, tmp_path)


def test_similar_refuses_other_lengths(tmp_path):
    with pytest.raises(ValueError, match="0 captions"):
        image_sheets.similar(tmp_path / "a.png", None, [None], [], title="t", text="")


def test_similar_frames_the_query_alone(tmp_path):
    grey = np.full((50, 50, 3), 128, np.uint8)
    path = image_sheets.similar(
        tmp_path / "a.png", grey, [grey] * 5, ["a\nb"] * 5, title="t", text="x"
    )
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    orange = (np.abs(image - [0xD5, 0x5E, 0x00]) < 8).all(axis=2)
    columns = np.flatnonzero(orange.any(axis=0))
    assert 0 < columns.max() < image.shape[1] / 3
    same = (image == 128).all(axis=2)
    query, rest = same[:, : columns.max() + 1], same[:, columns.max() + 1 :]
    assert query.sum() > rest.sum() / 5  # larger than each of the others


def test_tile_shows_the_whole_image():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    tile = image_sheets.square(image, side_px=80)
    assert tile.shape == (80, 80, 3)
    dark = (tile == 0).all(axis=(1, 2))
    assert dark.sum() == 40
    assert dark[20:60].all()
