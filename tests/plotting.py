"""Checks that the tests of plots share."""

from PIL import Image

AWKWARD = ["a $x$ & $", "<b>_{2}^", "Été 絵\t\\frac", "very_long_name_" * 9, "", "%s {0}"]


def check(path, folder):
    """The size in pixels of the only file in `folder`, a readable PNG."""
    assert list(folder.iterdir()) == [path]
    with Image.open(path) as image:
        image.verify()
        assert image.format == "PNG"
        assert 100 < image.width < 3000
        assert 100 < image.height < 3000
        return image.size


def names_of(classes):
    return [f"{AWKWARD[k % len(AWKWARD)]}{k}" for k in range(classes)]
