"""What the benchmarks read: painted images in ArtGAN's layout, and a spec for them."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

ORIGINAL = (1500, 2000)  # width, height
SMALL = (260, 330)
STYLES = 8


def painted(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An image as busy as a painting: large shapes, strokes and canvas."""
    width, height = size
    layers = [
        Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for cells in (4, 24, 96)
    ]
    image = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.25)
    canvas = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(image) + canvas).clip(0, 255).astype(np.uint8))


def paint_set(folder: Path, *, count: int, size: tuple[int, int], distinct: int) -> Path:
    """Write `count` training images in ArtGAN's layout, as links to `distinct` painted images."""
    rng, files = np.random.default_rng(0), []
    for number in tqdm(range(distinct), desc="painting", leave=False, disable=None):
        files.append(folder / "painted" / f"{number}.jpg")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        painted(rng, size).save(files[-1], quality=90)
    rows = []
    for number in range(count):
        path = f"style-{number % STYLES}/{number:06}.jpg"
        (folder / "wikiart" / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(files[number % distinct], folder / "wikiart" / path)
        rows.append(f"{path},{number % STYLES}\n")
    (folder / "train.csv").write_text("".join(rows))
    (folder / "val.csv").write_text("style-0/none.jpg,0\n")
    lines = [f"{index} style_{index}\n" for index in range(STYLES)]
    (folder / "class.txt").write_text("".join(lines))
    return folder


def spec_of(image_size: int = 224):
    """Three tasks with the policies of wikiart.toml, all on the lists that `paint_set` writes."""
    from multitask.spec import load_spec, parse_spec

    raw = load_spec("wikiart").to_dict()
    raw |= {"image_size": image_size, "validation": 0.0, "max_missing": 0.5}
    for task in raw["task"]:
        task |= {"train": "train.csv", "test": "val.csv", "classes": "class.txt"}
        task.pop("unlabelled", None)  # every painted image has a label of every task
        task.pop("other", None)
    return parse_spec(raw, source="benchmark")
