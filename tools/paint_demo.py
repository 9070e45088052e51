"""Paint a small data set in the layout of ArtGAN's WikiArt, to try everything without a download.

    python tools/paint_demo.py --out=demo

Each image is painted for one class of every task, drawn independently of each other: the genre
is what is shown, the style is how it is painted, the artist is a palette and a hand (size and
direction of the strokes, grain of the ground). So every task can be learnt from the pixels, and
none from another task's label. Some labels are missing and some rows are wrong on purpose, as in
the real data; DIR/README.txt lists them. The same flags paint the same bytes.
"""

import colorsys
import csv
import functools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

PAINTER_VERSION = 1  # goes up whenever the same flags would paint other bytes

SHARES = {  # of each task's classes; the rarest to the most frequent 1 : 3.1
    "artist": (0.34, 0.28, 0.11, 0.27),
    "style": (0.27, 0.34, 0.28, 0.11),
    "genre": (0.28, 0.11, 0.34, 0.27),
}
LABELLED_SHARE = {"artist": 0.60, "style": 0.985, "genre": 0.80}
VAL_SHARE = 0.30
LEAKS = 6  # images that are train for one task and test for another
UNKNOWN_LABEL = 9  # no class file has it
# UTF-8 read as Latin-1 and lower-cased, which is what happened to the real data's names.
MOJIBAKE_TITLES = tuple(
    title.encode().decode("latin-1").lower() for title in ("jardín", "café-azul", "la-bahía")
)
PUNCTUATED_TITLES = ("winter's-evening-(1)", "the-potter's-daughter-(study)", "l'estuaire-(detail)")
TITLE_WORDS = (
    ("quiet", "early", "late", "red", "long", "second", "open", "north", "small", "last"),
    ("morning", "harbour", "letter", "garden", "silence", "window", "crossing", "summer", "song"),
)

WORTH_A_PROCESS = 400  # images; a process takes half a second to start
OVERSAMPLING = 2  # painted at this multiple of the size, then shrunk


# === Artists: a palette and a hand ===


@dataclass(frozen=True)
class Artist:
    """One painter.

    Attributes:
        tones: colours (hex RGB) of each tone; `mid` carries the painter's hue.
        stroke: length of a stroke, as a share of the image's side.
        direction: of the strokes: horizontal, vertical, swirl (round the centre) or dot.
        grain: of the ground: rows, columns, weave or specks.
    """

    tones: dict[str, tuple[str, ...]]
    stroke: float
    direction: str
    grain: str


ARTISTS = {
    "Mara_Vellin": Artist(  # embers
        tones={
            "dark": ("4a120c", "6b2415"),
            "mid": ("c2452d", "d9772b", "e0a13a", "a8321f"),
            "light": ("f7d592", "f4b878"),
            "accent": ("2f6f7a", "f7e05a"),
        },
        stroke=0.10,
        direction="horizontal",
        grain="rows",
    ),
    "Teo_Arndt": Artist(  # harbours
        tones={
            "dark": ("0c1c4f", "163272"),
            "mid": ("2456a6", "2f86b8", "4aa7c9", "3c4fa0"),
            "light": ("bfe0f5", "93cdee"),
            "accent": ("e88a3c", "f2d9a0"),
        },
        stroke=0.075,
        direction="vertical",
        grain="columns",
    ),
    "Isolde_Quay": Artist(  # orchards
        tones={
            "dark": ("0f3a1c", "24501c"),
            "mid": ("4b8b3b", "7fae3f", "2f7d5a", "b5c043"),
            "light": ("e2ee9c", "c3e283"),
            "accent": ("c0413f", "8a5a2b"),
        },
        stroke=0.045,
        direction="dot",
        grain="specks",
    ),
    "Bruno_Halvard": Artist(  # dusk
        tones={
            "dark": ("360f45", "561a63"),
            "mid": ("9a35a8", "c8439f", "8548b8", "dd5fa8"),
            "light": ("f5bfe0", "d9a9f2"),
            "accent": ("3fa08f", "f0c24a"),
        },
        stroke=0.085,
        direction="swirl",
        grain="weave",
    ),
}


class Palette:
    """An artist's colours as one image uses them: some much, some hardly at all."""

    def __init__(self, artist: Artist, rng: np.random.Generator) -> None:
        self._rng = rng
        self._colours = {
            tone: np.array([tuple(bytes.fromhex(code)) for code in codes], dtype=np.float64)
            for tone, codes in artist.tones.items()
        }
        self._proportions = {
            tone: rng.dirichlet(np.ones(len(codes))) for tone, codes in artist.tones.items()
        }

    def pick(self, tone: str) -> np.ndarray:
        """Returns float64 [3], RGB in 0..255: a colour of this tone, mixed slightly anew."""
        colours = self._colours[tone]
        colour = colours[self._rng.choice(len(colours), p=self._proportions[tone])] / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        hue = (hue + self._rng.normal(0, 0.012)) % 1
        saturation = np.clip(saturation * self._rng.uniform(0.85, 1.15), 0, 1)
        value = np.clip(value * self._rng.uniform(0.88, 1.12), 0, 1)
        return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


# === Genres: what is shown, as shapes from back to front ===


@dataclass(frozen=True)
class Shape:
    """An area of one colour.

    Attributes:
        outline: float64 [points, 2], x and y; the image is the unit square, y points down.
        tone: of the palette.
    """

    outline: np.ndarray
    tone: str


def ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 2 * np.pi
) -> np.ndarray:
    """Returns float64 [28, 2]: an ellipse, or its part between two angles (radians)."""
    angles = np.linspace(start, end, 28)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Returns float64 [4, 2]: an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def turned(outline: np.ndarray, angle: float) -> np.ndarray:
    """Returns the outline turned by an angle (radians) about its middle."""
    middle = outline.mean(axis=0)
    cos, sin = np.cos(angle), np.sin(angle)
    return (outline - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle


def portrait(rng: np.random.Generator) -> list[Shape]:
    """One head and shoulders before a plain wall."""
    wall, coat = rng.permutation(["mid", rng.choice(["mid", "dark"])])
    hair = rng.choice(["dark", "accent", "dark"])
    x, y = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.48)
    height = rng.uniform(0.23, 0.31)
    width = height * rng.uniform(0.72, 0.85)
    shapes = [Shape(box(0, 0, 1, 1), wall)]
    if rng.random() < 0.5:  # a curtain, a door frame
        edge = rng.uniform(0.12, 0.3)
        left, right = (0.0, edge) if rng.random() < 0.5 else (1 - edge, 1.0)
        shapes.append(Shape(box(left, 0, right, 1), rng.choice(["mid", "accent"])))
    drop = rng.uniform(0, 0.6) * height  # how far the hair falls
    shapes += [
        Shape(ellipse(x, y - 0.12 * height + drop / 2, width * 1.3, height * 1.1 + drop / 2), hair),
        Shape(ellipse(x, 1.08, rng.uniform(0.36, 0.5), 1.02 - y - height), coat),
        Shape(box(x - 0.4 * width, y + 0.7 * height, x + 0.4 * width, y + 1.3 * height), "light"),
        Shape(ellipse(x, y, width, height), "light"),
        Shape(ellipse(x, y - 0.05 * height, width, height, 1.15 * np.pi, 1.85 * np.pi), hair),
    ]
    look = rng.uniform(-0.15, 0.15) * width
    for side in (-1, 1):
        eye_x = x + look + side * 0.42 * width
        shapes.append(Shape(ellipse(eye_x, y - 0.05 * height, 0.17 * width, 0.1 * height), "dark"))
    nose = [(0, 0.02), (0.16, 0.38), (-0.08, 0.38)] * np.array([width, height])
    mouth = ellipse(x + look, y + 0.6 * height, 0.3 * width, 0.09 * height)
    nose += (x + look, y)
    shapes += [Shape(nose, "mid"), Shape(mouth, rng.choice(["dark", "mid"]))]
    if rng.random() < 0.3:
        brim = ellipse(x, y - 0.6 * height, 1.7 * width, 0.16 * height)
        crown = ellipse(x, y - 0.6 * height, 1.05 * width, 0.75 * height, np.pi, 2 * np.pi)
        tone = rng.choice(["accent", "dark"])
        shapes += [Shape(crown, tone), Shape(brim, tone)]
    return shapes


def landscape(rng: np.random.Generator) -> list[Shape]:
    """Ridges under a sky, with a sun or moon, trees and houses."""
    shapes = [Shape(box(0, 0, 1, 1), "light")]
    if rng.random() < 0.65:
        x, y, radius = rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.28), rng.uniform(0.05, 0.1)
        shapes.append(Shape(ellipse(x, y, radius, radius), "accent"))
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        shapes.append(Shape(ellipse(x, y, rng.uniform(0.1, 0.25), rng.uniform(0.02, 0.04)), "mid"))
    x_of_ridge = np.linspace(0, 1, 40)
    heights = np.linspace(rng.uniform(0.35, 0.5), rng.uniform(0.75, 0.88), rng.integers(3, 5))
    tones = ["mid"] * (len(heights) - 2) + ["mid" if rng.random() < 0.5 else "dark", "dark"]
    for height, tone in zip(heights, tones, strict=True):
        ridge = np.full_like(x_of_ridge, height)
        for waves in (1, 2, 5):
            swing = rng.uniform(0, 0.09) / waves
            ridge += swing * np.sin(2 * np.pi * (waves * x_of_ridge + rng.random()))
        ground = np.concatenate([np.stack([x_of_ridge, ridge], axis=1), [(1, 1), (0, 1)]])
        shapes.append(Shape(ground, tone))
        for _ in range(rng.integers(0, 3)):
            x = rng.uniform(0.05, 0.95)
            foot = float(np.interp(x, x_of_ridge, ridge)) + 0.02
            shapes += tree_or_house(x, foot, scale=0.5 * height, rng=rng)
    return shapes


def tree_or_house(x: float, foot: float, scale: float, rng: np.random.Generator) -> list[Shape]:
    """A fir, a round tree or a house standing at (x, foot); scale is about its height."""
    height = scale * rng.uniform(0.4, 0.8)
    kind = rng.choice(["fir", "round", "house"])
    if kind == "fir":
        fir = np.array([(x - 0.25 * height, foot), (x, foot - height), (x + 0.25 * height, foot)])
        return [Shape(fir, "dark")]
    if kind == "round":
        trunk = box(x - 0.06 * height, foot - 0.6 * height, x + 0.06 * height, foot)
        crown = ellipse(x, foot - 0.7 * height, 0.32 * height, 0.32 * height)
        return [Shape(trunk, "dark"), Shape(crown, rng.choice(["mid", "dark"]))]
    side, wall = 0.35 * height, foot - 0.4 * height
    roof = np.array([(x - 1.3 * side, wall), (x, wall - 0.35 * height), (x + 1.3 * side, wall)])
    return [Shape(box(x - side, wall, x + side, foot), "light"), Shape(roof, "accent")]


def still_life(rng: np.random.Generator) -> list[Shape]:
    """Vessels and fruit on a bright cloth before a darker wall."""
    edge = rng.uniform(0.52, 0.64)
    tilt = rng.uniform(-0.04, 0.04)
    front = rng.uniform(0.86, 0.94)
    shapes = [
        Shape(box(0, 0, 1, 1), rng.choice(["dark", "dark", "mid"])),
        Shape(np.array([(0, edge + tilt), (1, edge - tilt), (1, 1), (0, 1)]), "light"),
        Shape(np.array([(0, front + tilt), (1, front - tilt), (1, 1), (0, 1)]), "dark"),
    ]
    count = rng.integers(2, 5)
    places = np.linspace(0.16, 0.84, count) + rng.uniform(-0.05, 0.05, count)
    feet = rng.uniform(edge + 0.1, front - 0.03, count)
    for place, foot in sorted(zip(places, feet, strict=True), key=lambda spot: spot[1]):
        kind = rng.choice(["bottle", "bowl", "vase", "fruit"])
        shapes += vessel(kind, place, foot, rng)
    for _ in range(rng.integers(1, 4)):
        shapes += vessel("fruit", rng.uniform(0.12, 0.88), rng.uniform(edge + 0.2, front), rng)
    return shapes


def vessel(kind: str, x: float, foot: float, rng: np.random.Generator) -> list[Shape]:
    """A bottle, bowl with fruit, vase with flowers or single fruit, standing at (x, foot)."""
    tone = rng.choice(["mid", "accent", "dark"])
    size = rng.uniform(1.1, 1.5)
    shadow = Shape(ellipse(x + 0.05, foot - 0.01, 0.11 * size, 0.025), "dark")
    if kind == "bottle":
        right = np.array([(0.022, -0.46), (0.022, -0.32), (0.065, -0.24), (0.065, 0.0)])
        outline = np.concatenate([right, right[::-1] * (-1, 1)]) * size + (x, foot)
        label = box(x - 0.045 * size, foot - 0.17 * size, x + 0.045 * size, foot - 0.08 * size)
        return [shadow, Shape(outline, tone), Shape(label, "light")]
    if kind == "bowl":
        fruits = [
            Shape(ellipse(x + dx * size, foot - 0.13 * size, 0.05 * size, 0.05 * size), "accent")
            for dx in (-0.07, 0.06, 0.0)
        ]
        cup = ellipse(x, foot - 0.12 * size, 0.14 * size, 0.12 * size, 0, np.pi)
        return [shadow, *fruits, Shape(cup, tone)]
    if kind == "vase":
        spread = rng.uniform(0.05, 0.12)
        flowers = [
            Shape(ellipse(x + dx, foot - rise * size, 0.05, 0.05), rng.choice(["accent", "light"]))
            for dx, rise in ((-spread, 0.36), (spread, 0.38), (0, 0.44), (0.3 * spread, 0.32))
        ]
        stems = box(x - 0.02, foot - 0.4 * size, x + 0.02, foot - 0.2 * size)
        body = ellipse(x, foot - 0.11 * size, 0.08 * size, 0.11 * size)
        neck = box(x - 0.035 * size, foot - 0.27 * size, x + 0.035 * size, foot - 0.1 * size)
        return [shadow, Shape(stems, "dark"), *flowers, Shape(neck, tone), Shape(body, tone)]
    radius = rng.uniform(0.06, 0.09)
    fruit = ellipse(x, foot - 0.9 * radius, radius, radius)
    gleam = ellipse(x - 0.3 * radius, foot - 1.2 * radius, 0.3 * radius, 0.3 * radius)
    return [shadow, Shape(fruit, rng.choice(["accent", "mid"])), Shape(gleam, "light")]


def abstract(rng: np.random.Generator) -> list[Shape]:
    """Slanting stripes and bars, discs, arches and triangles all over."""
    tones = ["mid", "mid", "dark", "light", "accent"]
    kinds = ["stripes", "stripes", "bar", "disc", "arch", "triangle"]
    shapes = [Shape(box(0, 0, 1, 1), rng.choice(["mid", "light", "dark"]))]
    for size in np.sort(rng.uniform(0.14, 0.34, rng.integers(9, 15)))[::-1]:
        x, y = rng.uniform(0.05, 0.95, 2)
        slant = rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
        kind = rng.choice(kinds)
        if kind == "stripes":
            pair = rng.permutation(["light", rng.choice(["dark", "mid", "accent"])])
            for stripe, share in enumerate((1, 0.75, 0.5, 0.25)):
                outline = box(x - 1.5 * size, y - share * size, x + 1.5 * size, y + share * size)
                shapes.append(Shape(turned(outline, slant), pair[stripe % 2]))
            continue
        if kind == "bar":
            width = size * rng.uniform(0.12, 0.4)
            outline = box(x - 1.6 * size, y - width, x + 1.6 * size, y + width)
        elif kind == "disc":
            outline = ellipse(x, y, 0.6 * size, 0.6 * size)
        elif kind == "arch":
            outline = ellipse(x, y, size, size, 0, np.pi)
        else:
            outline = rng.uniform(-1.2, 1.2, (3, 2)) * size + (x, y)
        shapes.append(Shape(turned(outline, slant), rng.choice(tones)))
    return shapes


GENRES: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "abstract": abstract,
    "landscape": landscape,
    "portrait": portrait,
    "still_life": still_life,
}


# === Styles: how it is painted ===


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
    """Returns float32 [height, width] about 0, within ±1: noise with `cells` bumps a side."""
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
    """Returns float64 [strokes], radians: how the strokes at `places` [strokes, 2] lie."""
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
    """Returns bool [side, side]: lines of `width` (odd, pixels) where numbered areas meet."""
    edges = np.zeros(areas.shape, dtype=np.uint8)
    edges[1:] |= areas[1:] != areas[:-1]
    edges[:, 1:] |= areas[:, 1:] != areas[:, :-1]
    return np.asarray(Image.fromarray(edges).filter(ImageFilter.MaxFilter(width)), dtype=bool)


def wet_washes(sketch: Sketch, rng: np.random.Generator) -> np.ndarray:
    """Thin colour that bleeds over its edges, pools in blooms and lets the paper through."""
    side = sketch.side
    bleed = side * rng.uniform(0.012, 0.02)
    rows, columns = np.indices((side, side))
    rows = rows + bleed * smooth_noise((side, side), (12, 12), rng)
    columns = columns + bleed * smooth_noise((side, side), (12, 12), rng)
    rows = np.clip(rows, 0, side - 1).astype(int)
    columns = np.clip(columns, 0, side - 1).astype(int)
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

CLASSES: dict[str, tuple[str, ...]] = {
    "artist": tuple(ARTISTS),
    "style": tuple(STYLES),
    "genre": tuple(GENRES),
}


# === One image ===


def grain(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns float32 [size, size] about 0, within ±1: the ground that a hand prefers."""
    long, fine = max(2, size // 12), max(2, size // 2)
    if kind == "rows":
        return smooth_noise((size, size), (fine, long), rng)
    if kind == "columns":
        return smooth_noise((size, size), (long, fine), rng)
    if kind == "specks":
        return smooth_noise((size, size), (fine, fine), rng)
    threads = np.sin(2 * np.pi * (np.arange(size) / 5 + rng.random()))
    return (threads[:, None] * threads[None, :]).astype(np.float32)


def paint(artist: str, style: str, genre: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Paints one image of `size` pixels a side."""
    hand = ARTISTS[artist]
    sketch = draw_sketch(GENRES[genre](rng), hand, OVERSAMPLING * size, rng)
    painted = Image.fromarray(np.clip(STYLES[style](sketch, rng), 0, 255).astype(np.uint8))
    pixels = np.asarray(painted.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    relief = 1 + rng.uniform(0.05, 0.09) * grain(hand.grain, size, rng)
    light = rng.uniform(0.92, 1.06) + 0.06 * smooth_noise((size, size), (2, 2), rng)
    pixels = pixels * (relief * light)[..., None] + rng.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# === The plan: which images, which rows, which defects ===


@dataclass(frozen=True)
class Plan:
    """What will be painted and written.

    Attributes:
        classes: int64 [images, tasks]: what is painted, known or not.
        paths: of each image, relative to wikiart/.
        rows: of each CSV, by its stem (artist_train, ...): (path, label).
        defects: by kind: the paths concerned.
    """

    classes: np.ndarray
    paths: tuple[str, ...]
    rows: dict[str, list[tuple[str, int]]]
    defects: dict[str, list[str]]


def draw_plan(images: int, rng: np.random.Generator) -> Plan:
    """Draws plans until one has every class of every task in both of its CSVs."""
    while True:
        plan = draw_any_plan(images, rng)
        labels = {stem: {label for _, label in rows} for stem, rows in plan.rows.items()}
        if all(
            labels[f"{task}_{split}"].issuperset(range(len(names)))
            for task, names in CLASSES.items()
            for split in ("train", "val")
        ):
            return plan


def draw_any_plan(images: int, rng: np.random.Generator) -> Plan:
    """Draws one plan; in a small one, a rare class may be missing from a CSV."""
    classes = np.stack(
        [rng.permutation(shared_out(images, SHARES[task])) for task in CLASSES], axis=1
    )
    labelled = np.stack(
        [rng.permutation(images) < share * images for share in LABELLED_SHARE.values()], axis=1
    )
    tasks = list(CLASSES)
    labelled[~labelled[:, tasks.index("style")], tasks.index("genre")] = True  # none without any
    test = np.repeat((rng.permutation(images) < VAL_SHARE * images)[:, None], len(tasks), axis=1)

    odd_titles = MOJIBAKE_TITLES + PUNCTUATED_TITLES
    odd, plain = np.split(rng.permutation(images), [len(odd_titles)])
    complete = [number for number in plain if labelled[number].all()]
    leaks = complete[:LEAKS]
    for place, number in enumerate(leaks):
        task = place % len(tasks)
        test[number, task] = ~test[number, task]

    artist, genre = tasks.index("artist"), tasks.index("genre")
    others = [number for number in plain if number not in leaks]
    twice = next(n for n in others if labelled[n, genre] and test[n, genre])
    unknown = next(n for n in others if labelled[n, artist] and not test[n, artist])

    titles = dict(zip(odd, odd_titles, strict=True))
    paths = tuple(
        path_of(classes[number], titles.get(number) or drawn_title(rng), number)
        for number in range(images)
    )
    rows: dict[str, list[tuple[str, int]]] = {}
    for column, task in enumerate(tasks):
        for split, wanted in (("train", False), ("val", True)):
            numbers = np.flatnonzero(labelled[:, column] & (test[:, column] == wanted))
            rows[f"{task}_{split}"] = [(paths[n], int(classes[n, column])) for n in numbers]
    place = rows["artist_train"].index((paths[unknown], int(classes[unknown, artist])))
    rows["artist_train"][place] = (paths[unknown], UNKNOWN_LABEL)
    other_genre = (int(classes[twice, genre]) + 1) % len(GENRES)
    rows["genre_val"].append((paths[twice], other_genre))

    odd_paths = [paths[number] for number in odd]
    defects = {
        "contradictory": [paths[twice]],
        "leak": sorted(paths[number] for number in leaks),
        "unknown_label": [paths[unknown]],
        "mojibake": sorted(odd_paths[: len(MOJIBAKE_TITLES)]),
        "punctuation": sorted(odd_paths[len(MOJIBAKE_TITLES) :]),
    }
    return Plan(classes, paths, rows, defects)


def shared_out(images: int, shares: tuple[float, ...]) -> np.ndarray:
    """Returns int64 [images]: the class of each, ordered, in numbers close to `shares`."""
    ends = np.round(np.cumsum(shares) * images)
    return np.searchsorted(ends, np.arange(images), side="right")


def drawn_title(rng: np.random.Generator) -> str:
    """Returns a title of two words, which says nothing about any class."""
    return "-".join(rng.choice(words) for words in TITLE_WORDS)


def path_of(classes: np.ndarray, title: str, number: int) -> str:
    """Returns <Style>/<artist>_<title>.jpg; the number keeps it unique."""
    artist, style = CLASSES["artist"][classes[0]], CLASSES["style"][classes[1]]
    return f"{style}/{artist.lower().replace('_', '-')}_{title}-{number + 1}.jpg"


# === Writing ===

README = """\
{images} images of {size} x {size} pixels, painted by tools/paint_demo.py from seed {seed}.
No painter and no painting here is real; do with them what you like.

Layout, as in ArtGAN's WikiArt:
  wikiart/<Style>/<artist>_<title>.jpg
  wikiart_csv/<task>_<split>.csv     rows without a header: path below wikiart/, class index
  wikiart_csv/<task>_class.txt       lines: index, name

Genre is what is shown, style is how it is painted, artist is a palette and a hand (size and
direction of the strokes, grain of the ground). The three were drawn independently.

Rows:
{rows}

Missing labels are no defect: an image that stands in no CSV of a task has no label for it.

Defects, planted on purpose:

contradictory ({n_contradictory}): twice in genre_val.csv, with two labels.
{contradictory}

leak ({n_leak}): train for one task and test for another.
{leak}

unknown_label ({n_unknown_label}): artist_train.csv gives index {unknown}, which is no class.
{unknown_label}

mojibake ({n_mojibake}): UTF-8 read as Latin-1 in the file name, which is so on disk too.
{mojibake}

punctuation ({n_punctuation}): an apostrophe and parentheses in the file name.
{punctuation}

No file is missing and none is unreadable.
"""


@dataclass(frozen=True)
class Settings:
    """What decides every byte that is written."""

    images: int
    size: int
    seed: int

    def as_json(self) -> dict[str, int]:
        """Returns the settings as DIR/demo.json holds them."""
        return {"painter_version": PAINTER_VERSION, **vars(self)}


def write_demo(folder: Path, settings: Settings) -> None:
    """Paints and writes a whole set below `folder`, which must be empty."""
    plan_seed, *image_seeds = np.random.SeedSequence(settings.seed).spawn(settings.images + 1)
    plan = draw_plan(settings.images, np.random.default_rng(plan_seed))
    for style in STYLES:
        (folder / "wikiart" / style).mkdir(parents=True)
    files = [folder / "wikiart" / path for path in plan.paths]
    paint_one = functools.partial(paint_file, size=settings.size)
    with tqdm(total=settings.images, desc="painting", unit="pic", mininterval=1) as bar:
        for _ in in_parallel(paint_one, files, plan.classes, image_seeds):
            bar.update()
    write_tables(folder / "wikiart_csv", plan)
    (folder / "README.txt").write_text(describe(plan, settings), encoding="utf-8")
    record = {"settings": settings.as_json(), "defects": plan.defects}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (folder / "demo.json").write_text(text, encoding="utf-8")


def paint_file(file: Path, classes: np.ndarray, seed: np.random.SeedSequence, *, size: int) -> None:
    """Paints and writes one image; the same arguments write the same bytes in every process."""
    names = (CLASSES[task][index] for task, index in zip(CLASSES, classes, strict=True))
    image = paint(*names, size=size, rng=np.random.default_rng(seed))
    image.save(file, quality=92, subsampling=0)


def in_parallel(function: Callable, *arguments: Sequence) -> Iterator[None]:
    """Calls the function with the first of all arguments, the second and so on, on all cores."""
    if len(arguments[0]) < WORTH_A_PROCESS or os.cpu_count() == 1:
        yield from map(function, *arguments)
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, *arguments, chunksize=16)


def write_tables(folder: Path, plan: Plan) -> None:
    """Writes the CSVs and the class files."""
    folder.mkdir()
    for stem, rows in plan.rows.items():
        with open(folder / f"{stem}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    for task, names in CLASSES.items():
        lines = "".join(f"{index} {name}\n" for index, name in enumerate(names))
        (folder / f"{task}_class.txt").write_text(lines, encoding="utf-8")


def describe(plan: Plan, settings: Settings) -> str:
    """Returns the text of README.txt: what is there, and which defects are planted where."""
    return README.format(
        **vars(settings),
        unknown=UNKNOWN_LABEL,
        rows="\n".join(f"  {stem}.csv {len(rows)}" for stem, rows in plan.rows.items()),
        **{kind: "\n".join(f"  {path}" for path in paths) for kind, paths in plan.defects.items()},
        **{f"n_{kind}": len(paths) for kind, paths in plan.defects.items()},
    )


def paint_demo(out: Path, settings: Settings) -> str:
    """Makes the set at `out`, whole or not at all.

    Returns:
        One line that says what was done.

    Raises:
        FileExistsError: `out` holds something else.
    """
    if is_same_set(out, settings):
        return f"{out} already holds these {settings.images} images; nothing to do."
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"--out={out}: holds something else than a demo of these settings; "
            "remove it or name another folder."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        unfinished = Path(scratch, "demo")
        unfinished.mkdir()
        write_demo(unfinished, settings)
        os.replace(unfinished, out)
    classes = ", ".join(f"{len(names)} {task}s" for task, names in CLASSES.items())
    return f"Painted {settings.images} images ({classes}) in {out}"


def is_same_set(out: Path, settings: Settings) -> bool:
    """Whether `out` holds a finished set of these settings."""
    try:
        record = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("settings") == settings.as_json()


# === Command line ===


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines this tool's flags."""
    integer = functools.partial(flags.DEFINE_integer, flag_values=flag_values)
    flags.DEFINE_string("out", None, "Folder to paint into; new or empty.", flag_values=flag_values)
    integer("images", 1200, "How many images.", lower_bound=40)
    integer("size", 96, "Side of an image in pixels.", lower_bound=16)
    integer("seed", 0, "What the images are drawn from.", lower_bound=0)
    flags.DEFINE_boolean("help", False, "Print this and stop.", flag_values=flag_values)


def main(argv: list[str]) -> int:
    """Runs the tool.

    Args:
        argv: the command line, program name first.

    Returns:
        The exit status: 0, or 2 for a wrong flag or a folder that cannot be used.
    """
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(argv)[1:]
        if values.help:
            print(__doc__, values.get_help(), sep="\n")
            return 0
        if unparsed:
            raise flags.Error(f"unexpected argument {unparsed[0]!r}; see --help.")
        if not values.out:
            raise flags.Error("flag --out is required: the folder to paint into.")
        settings = Settings(values.images, values.size, values.seed)
        print(paint_demo(Path(values.out).absolute(), settings))
    except (flags.Error, OSError) as error:
        print(f"paint_demo.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
