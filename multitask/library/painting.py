"""The demo data set from Python."""

import os
from pathlib import Path

from multitask.console import log_shown


def paint_demo(
    out: str | os.PathLike, *, images: int = 1200, size: int = 96, seed: int = 0
) -> Path:
    """Paint a small data set in the layout of WikiArt, as `multitask paint` does.

    The spec `demo` reads it. The same arguments paint the same images.

    Args:
        out: folder to paint into; new or empty. Nothing is done if it holds the same data set.
        images: number of images, 40 or more.
        size: pixels of each side, 16 or more.
        seed: seed of the random images.

    Returns:
        The folder.

    Raises:
        InputError: an argument is wrong, or the folder holds something else.

    Example:
        >>> import multitask as mt
        >>> demo = mt.paint_demo("painted", images=40, size=16)
        >>> sorted(path.name for path in demo.iterdir())
        ['README.txt', 'demo.json', 'wikiart', 'wikiart_csv']
    """
    from multitask.annexes.painting.data_set import Settings, paint_data_set

    with log_shown():
        paint_data_set(Path(out), Settings(images, size, seed))
    return Path(out)
