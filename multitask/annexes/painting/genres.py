"""Genres: what is shown, as shapes from back to front."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


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
    """Return float64 [28, 2]: an ellipse, or its part between two angles (radians)."""
    angles = np.linspace(start, end, 28)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return float64 [4, 2]: an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def turned(outline: np.ndarray, angle: float) -> np.ndarray:
    """Return the outline turned by an angle (radians) about its middle."""
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
    nose = np.array([(0, 0.02), (0.16, 0.38), (-0.08, 0.38)]) * (width, height) + (x + look, y)
    mouth = ellipse(x + look, y + 0.6 * height, 0.3 * width, 0.09 * height)
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
