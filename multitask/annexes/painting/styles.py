"""Styles: how it is painted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from multitask.annexes.painting.artists import Artist, Palette
from multitask.annexes.painting.genres import Shape


@dataclass(frozen=True)
class Sketch:
    """A scene in flat colours, before a style is given to it.

    Attributes:
        colours: float32 [side, side, 3], RGB in 0..255.
        areas: int32 [side, side]: which shape is seen at each pixel.
        palette: for colours that the style adds.
        artist: for the hand.
    """

    colours: np.ndarray
    areas: np.ndarray
    palette: Palette
    artist: Artist

    @property
    def side(self) -> int:
        """Side of the sketch in pixels."""
        return len(self.areas)


def draw_sketch(shapes: list[Shape], artist: Artist, side: int, rng: np.random.Generator) -> Sketch:
    """Colours the shapes from the artist's palette, on a square of `side` pixels."""
    palette = Palette(artist, rng)
    areas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(areas)
    for number, shape in enumerate(shapes):
        draw.polygon([tuple(point) for point in shape.outline * side], fill=number)
    colours = np.array([palette.pick(shape.tone) for shape in shapes], dtype=np.float32)
    seen = np.asarray(areas, dtype=np.int32)
    return Sketch(colours[seen], seen, palette, artist)


def smooth_noise(
    shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Return float32 [height, width] about 0, within ±1: noise with `cells` bumps a side."""
    coarse = rng.uniform(-1, 1, cells).astype(np.float32)
    fine = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(fine), -1, 1)


def broken_dabs(sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """Short strokes of unmixed colour over a thin, pale underpainting."""
    side, hand = sketch.side, sketch.artist
    length = hand.stroke * side * rng.uniform(0.85, 1.15)
    width = max(2.0, (0.04 if hand.direction == "dot" else 0.028) * side)
    ground = 0.55 * sketch.colours + 0.45 * sketch.palette.pick("light")
    canvas = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    count = int(1.8 * side * side / (width * max(length, width)))
    places = rng.uniform(0, side, (count, 2))
    x, y = places.T.astype(int)
    shifts = rng.normal(0, 9, (count, 3)) + rng.normal(0, 22, (count, 1))
    mixed = sketch.colours[y, x] + shifts
    sparks = rng.random(count) < 0.07  # of an accent, as in divisionism
    mixed[sparks] = 0.35 * mixed[sparks] + 0.65 * sketch.palette.pick("accent")
    colours = np.clip(mixed, 0, 255).astype(int)
    angles = stroke_angles(places / side, hand.direction) + rng.normal(0, 0.2, count)
    reach = np.stack([np.cos(angles), np.sin(angles)], axis=1) * length / 2
    for start, end, colour in zip(places - reach, places + reach, colours, strict=True):
        if hand.direction == "dot":
            centre = (start + end) / 2
            draw.ellipse([*(centre - width / 2), *(centre + width / 2)], fill=tuple(colour))
        else:
            draw.line([*start, *end], fill=tuple(colour), width=round(width))
    return np.asarray(canvas, dtype=np.float32)


def stroke_angles(places: np.ndarray, direction: str) -> np.ndarray:
    """Return float64 [strokes], radians: how the strokes at `places` [strokes, 2] lie."""
    if direction == "swirl":
        return np.arctan2(places[:, 1] - 0.5, places[:, 0] - 0.5) + np.pi / 2
    return np.full(len(places), np.pi / 2 if direction == "vertical" else 0.0)


def cut_planes(sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """Muted colours broken into facets, each lit by itself, with pale seams between them."""
    side = sketch.side
    count = int(rng.uniform(2.2, 3) / sketch.artist.stroke)
    centres = rng.uniform(-0.05, 1.05, (count, 2)).astype(np.float32) * side
    places = np.arange(side, dtype=np.float32)
    down = (places[:, None] - centres[:, 1]) ** 2
    along = (places[:, None] - centres[:, 0]) ** 2
    facet = np.argmin(down[:, None, :] + along[None, :, :], axis=-1)
    light = rng.choice([-1, 1], count) * rng.uniform(0.08, 0.22, count)
    muted = 0.7 * sketch.colours + 0.3 * sketch.colours.mean(axis=-1, keepdims=True)
    facets = muted * (1 + light[facet][..., None])
    seam = np.array([238, 234, 224], dtype=np.float32)
    return np.where(borders(facet, 3)[..., None], seam, facets)


def bold_contours(sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """Flat colours inside thick dark lines."""
    width = 2 * max(1, round(sketch.side * rng.uniform(0.014, 0.02))) + 1
    ink = sketch.palette.pick("dark") * 0.4
    return np.where(borders(sketch.areas, width)[..., None], ink, sketch.colours)


def borders(areas: np.ndarray, width: int) -> np.ndarray:
    """Return bool [side, side]: lines of `width` (odd, pixels) where numbered areas meet."""
    edges = np.zeros(areas.shape, dtype=np.uint8)
    edges[1:] |= areas[1:] != areas[:-1]
    edges[:, 1:] |= areas[:, 1:] != areas[:, :-1]
    return np.asarray(Image.fromarray(edges).filter(ImageFilter.MaxFilter(width)), dtype=bool)


def wet_washes(sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """Thin colour that bleeds over its edges, pools in blooms and lets the paper through."""
    side = sketch.side
    bleed = side * rng.uniform(0.012, 0.02)
    places = np.indices((side, side)).astype(float)
    for moved_along in places:
        moved_along += bleed * smooth_noise((side, side), (12, 12), rng)
    rows, columns = np.clip(places, 0, side - 1).astype(int)
    moved = Image.fromarray(sketch.colours[rows, columns].astype(np.uint8))
    wet = moved.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.01, 0.015)))
    blooms = smooth_noise((side, side), (5, 5), rng) + smooth_noise((side, side), (9, 9), rng)
    pigment = np.clip(0.6 + 0.14 * blooms, 0.3, 1)[..., None]
    paper = np.array([250, 247, 240], dtype=np.float32)
    return paper + pigment * (np.asarray(wet, dtype=np.float32) - paper)


STYLES: dict[str, Callable[[Sketch, np.random.Generator], np.ndarray]] = {
    "Bold_Contours": bold_contours,
    "Broken_Dabs": broken_dabs,
    "Cut_Planes": cut_planes,
    "Wet_Washes": wet_washes,
}
