"""Sheets of images with captions, and images as text for a page of HTML."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from multitask.pages.canvas import (
    MUTED,
    ORANGE,
    AnyTarget,
    counted,
    new_figure,
    write_message,
    write_title,
)
from multitask.pages.text import shorten

Pixels = np.ndarray | None  # uint8 [height, width, 3]; None for an unreadable image


def outliers(
    target: AnyTarget,
    images: Sequence[Pixels],
    captions: Sequence[str],
    *,
    task: str,
    total: int | None = None,
    columns: int = 6,
) -> AnyTarget:
    """Write a grid of thumbnails with their true and predicted classes.

    Args:
        target: the PNG to write, or a `Drawing`; a row is about 3 inches high, which is enough
            for some dozens.
        images: uint8 [height, width, 3] of any size, or None for an unreadable one.
        captions: two or three lines for each image.
        task: name of the task, for the title.
        total: number of outliers; None: those that are shown.
        columns: images in a row.

    Raises:
        ValueError: captions and images do not match.
    """
    _check_captions(images, captions)
    if not len(images):
        return write_message(target, task, "outliers", "no outliers")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max(caption.count("\n") for caption in captions) + 1
    with new_figure(target, (2.15 * columns + 0.2, (2.1 + 0.17 * lines) * rows + 0.6)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, caption in zip(grid, images, captions, strict=False):
            _draw_image(axes, image, caption)
        shown = f"the {len(images)} worst" if (total or 0) > len(images) else "the worst first"
        write_title(figure, task, f"{counted(total or len(images), 'outlier')}, {shown}")
    return target


def similar(
    target: AnyTarget,
    query: Pixels,
    images: Sequence[Pixels],
    captions: Sequence[str],
    *,
    title: str,
    text: str,
    query_caption: str = "query",
    columns: int = 5,
) -> AnyTarget:
    """Write a query image, large and framed, next to its most similar images.

    Args:
        target: the PNG to write, or a `Drawing`.
        query: uint8 [height, width, 3] of any size, or None if it is unreadable.
        images: like `query`, the most similar first.
        captions: some lines for each image.
        title: name of the query.
        text: text after the title, which names the embedding.
        query_caption: some lines.
        columns: images in a row.

    Raises:
        ValueError: captions and images do not match.
    """
    _check_captions(images, captions)
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    lines = max(caption.count("\n") for caption in (query_caption, *captions)) + 1
    below_in = 0.17 * lines
    side_in = 2.05 if rows == 1 else 2.9
    size_in = (
        2.15 * columns + side_in + 0.5,
        max(side_in + below_in, (2.1 + below_in) * rows) + 0.6,
    )
    with new_figure(target, size_in) as figure:
        widths = (side_in + 0.3, 2.15 * columns + 0.2)
        left, right = figure.subfigures(1, 2, width_ratios=widths, squeeze=False)[0]
        large = left.subplots()
        large.set_anchor("N")
        grid = right.subplots(rows, columns, squeeze=False).ravel()
        for axes in (large, *grid):
            axes.set_axis_off()
        _draw_image(large, query, query_caption, frame=ORANGE)
        for axes, image, caption in zip(grid, images, captions, strict=False):
            _draw_image(axes, image, caption)
            axes.set_anchor("N")
        write_title(figure, title, text)
    return target


def data_uri(pixels: np.ndarray, *, side_px: int, quality: int) -> str:
    """Encode an image as text for a page of HTML: a JPEG in base64.

    Args:
        pixels: uint8 [height, width, 3]; reduced if a side is longer than `side_px`.
        side_px: longest side of the result.
        quality: JPEG quality, 1 to 95.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _check_captions(images: Sequence[Pixels], captions: Sequence[str]) -> None:
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images do not match {len(captions)} captions.")


def _draw_image(axes: Axes, pixels: Pixels, caption: str, *, frame: str | None = None) -> None:
    """An image in a square, with its caption below."""
    axes.imshow(_square(pixels))
    if pixels is None:
        axes.text(
            0.5, 0.5, "unreadable", transform=axes.transAxes, ha="center", va="center", color=MUTED
        )
    if frame:
        axes.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=axes.transAxes, clip_on=False, fill=False,
                edgecolor=frame, linewidth=3,
            )
        )  # fmt: skip
    text = "\n".join(shorten(line, 35) for line in caption.split("\n"))
    axes.text(0, -0.03, text, transform=axes.transAxes, va="top", size=7, linespacing=1.35)


def _square(pixels: Pixels, side_px: int = 240) -> np.ndarray:
    """The whole image in a square, uint8 [side_px, side_px, 3]."""
    if pixels is None:
        return np.full((side_px, side_px, 3), 225, dtype=np.uint8)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    scale = side_px / max(image.size)
    # At least one pixel: an image can be a thousand times as wide as high.
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = ImageOps.pad(image.resize((width, height)), (side_px, side_px), color=(245, 245, 245))
    return np.asarray(square)
