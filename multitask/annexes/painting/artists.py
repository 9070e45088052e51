"""Artists: a palette and a hand."""

import colorsys
from dataclasses import dataclass

import numpy as np


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
        """Return float64 [3], RGB in 0..255: a colour of this tone, mixed slightly anew."""
        colours = self._colours[tone]
        colour = colours[self._rng.choice(len(colours), p=self._proportions[tone])] / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        hue = (hue + self._rng.normal(0, 0.012)) % 1
        saturation = np.clip(saturation * self._rng.uniform(0.85, 1.15), 0, 1)
        value = np.clip(value * self._rng.uniform(0.88, 1.12), 0, 1)
        return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
