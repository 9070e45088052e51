"""Sheets of images with captions, and images as text for a page of HTML."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from multitask.errors import counted
from multitask.pages.canvas import (
    MUTED,
    ORANGE,
    AnyTarget,
    new_figure,
    write_message,
    write_title,
)
from multitask.pages.text import shorten

Pixels = np.ndarray | None  # uint8 [height, width, 3]; None for an unreadable image

_IMAGE_IN, _CELL_IN = 2.0, 2.15  # side of an image, and from one to the next
_LINE_IN = 0.17  # height of a line of a caption
_TOP_IN, _EDGE_IN = 0.5, 0.12  # above the images, for the title, and to their left


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
    step_in = (_CELL_IN, _IMAGE_IN + 0.1 + _LINE_IN * lines)
    with new_figure(target, (step_in[0] * columns, step_in[1] * rows + _TOP_IN), None) as figure:
        axes = _sheet(figure)
        _draw_grid(axes, images, captions, columns, corner=(_EDGE_IN, _TOP_IN), step=step_in)
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
    step_in = (_CELL_IN, _IMAGE_IN + 0.1 + _LINE_IN * lines)
    side_in = (1.2 if rows == 1 else 1.45) * _IMAGE_IN
    left_in = side_in + 0.45
    height_in = max(side_in + 0.1 + _LINE_IN * lines, step_in[1] * rows) + _TOP_IN
    with new_figure(target, (left_in + step_in[0] * columns, height_in), None) as figure:
        axes = _sheet(figure)
        _draw_image(axes, query, query_caption, (_EDGE_IN, _TOP_IN), side_in, frame=ORANGE)
        _draw_grid(axes, images, captions, columns, corner=(left_in, _TOP_IN), step=step_in)
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


def _sheet(figure: Figure) -> Axes:
    """One set of axes for all images: x and y are inches from the upper left corner.

    A grid of axes, each with its own axis and layout, takes several times longer to draw.
    """
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    width_in, height_in = figure.get_size_inches()
    axes.set(xlim=(0, width_in), ylim=(height_in, 0), autoscale_on=False)
    return axes


def _draw_grid(
    axes: Axes,
    images: Sequence[Pixels],
    captions: Sequence[str],
    columns: int,
    *,
    corner: tuple[float, float],
    step: tuple[float, float],
) -> None:
    """Images row by row from the upper left `corner` of the first one."""
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, columns)
        at = (corner[0] + column * step[0], corner[1] + row * step[1])
        _draw_image(axes, image, caption, at, _IMAGE_IN)


def _draw_image(
    axes: Axes,
    pixels: Pixels,
    caption: str,
    corner: tuple[float, float],
    side_in: float,
    *,
    frame: str | None = None,
) -> None:
    """An image in a square, with its caption below."""
    left, top = corner
    below = top + side_in
    axes.imshow(square(pixels), extent=(left, left + side_in, below, top), aspect="auto")
    if pixels is None:
        middle = (left + side_in / 2, top + side_in / 2)
        axes.text(*middle, "unreadable", ha="center", va="center", color=MUTED)
    if frame:
        outline = Rectangle(
            corner, side_in, side_in, fill=False, edgecolor=frame, linewidth=3, clip_on=False
        )
        axes.add_patch(outline)
    text = "\n".join(shorten(line, 35) for line in caption.split("\n"))
    axes.text(left, below + 0.06, text, va="top", size=7, linespacing=1.35)


def square(pixels: Pixels, side_px: int = 240) -> np.ndarray:
    """The whole image in a square, uint8 [side_px, side_px, 3]."""
    if pixels is None:
        return np.full((side_px, side_px, 3), 225, dtype=np.uint8)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    scale = side_px / max(image.size)
    # At least one pixel: an image can be a thousand times as wide as high.
    width, height = (max(1, round(length * scale)) for length in image.size)
    padded = ImageOps.pad(image.resize((width, height)), (side_px, side_px), color=(245, 245, 245))
    return np.asarray(padded)
