"""A run whose predictions are known: single-colour images and a model that compares colours.

The logits of a class are SHARPNESS · (2 colour · its colour - |its colour|²), which is nearest
colour by softmax; `answers` computes the same with SciPy in float64.
"""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import scipy.special
from PIL import Image
from specs import lists_of, spec_of

from multitask.model.network import connect
from multitask.run import Run, start_run
from multitask.spec import DataSpec

SIZE_PX = 32
SHARPNESS = 6.0
TEST_IMAGES, TRAIN_IMAGES = 40, 24
MISSING_FILES = (3, 17, 18)  # places among the test images
ABSENT_CLASS = 7  # a class of "shade" without a label

# Twelve classes, so that sorting indices as text would show ("10" before "2"); the names are
# unsorted.
SHADE = (
    "zinc",
    "amber",
    "olive",
    "coral",
    "slate",
    "moss",
    "plum",
    "ivory",
    "jade",
    "rust",
    "b",
    "a",
)
WARMTH = ("warm", "cold", "neither")
EMPTY = ("on", "off")


def colours(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3)).astype(np.uint8)


PALETTES = {"shade": colours(12, 1), "warmth": colours(3, 2), "empty": colours(2, 3)}
CLASSES = {"shade": SHADE, "warmth": WARMTH, "empty": EMPTY}


def logits(painted: np.ndarray, palette: np.ndarray) -> np.ndarray:
    painted, palette = painted / 255.0, palette / 255.0
    return SHARPNESS * (2 * painted @ palette.T - (palette**2).sum(axis=1))


def answers(painted: np.ndarray) -> dict[str, np.ndarray]:
    """The expected predictions: uint8 [n, 3] -> task -> float64 [n, classes]."""
    return {
        task: scipy.special.softmax(logits(painted, palette), axis=1)
        for task, palette in PALETTES.items()
    }


def colour_model(tasks=tuple(PALETTES)) -> keras.Model:
    """A network like those of `build_network`: a trunk, and one head per task."""
    image = keras.Input((SIZE_PX, SIZE_PX, 3))
    scaled = keras.layers.Rescaling(1 / 255, name="stem_scale")(image)
    features = keras.layers.AveragePooling2D(8, name="block1a_pool")(scaled)
    trunk = keras.Model(image, features, name="trunk")
    heads = {}
    for task in tasks:
        palette = PALETTES[task] / 255.0
        inputs = keras.Input(trunk.output_shape[1:])
        pooled = keras.layers.GlobalAveragePooling2D(name=f"{task}_pool")(inputs)
        dense = keras.layers.Dense(len(palette), name=f"{task}_logits")
        heads[task] = keras.Model(inputs, dense(pooled), name=task)
        bias = -SHARPNESS * (palette**2).sum(axis=1)
        dense.set_weights([2 * SHARPNESS * palette.T, bias])
    return connect(trunk, heads)


def colour_spec(tasks=tuple(PALETTES), **changes) -> DataSpec:
    settings = {
        "name": "colours",
        "title": "Plain colours",
        "licence": "CC0-1.0",
        "source": "painted by hand",
        "images": "images",
        "image_size": SIZE_PX,
        "batch_size": 7,
        "validation": 0.0,
        "max_missing": 0.1,
        "trunk": {"name": "efficientnetb0"},
    }
    loss = {"kind": "focal", "gamma": 1.0, "alpha": 1.0}
    lists = lists_of(tasks, "lists")
    return spec_of(*lists, of_tasks={"loss": loss}, file="colours.toml", **settings | changes)


@dataclass(frozen=True)
class Colours:
    """The painted data set.

    Attributes:
        folder: the data folder.
        painted: path -> uint8 [3]; of all images, including the missing ones.
        labels: task -> path -> label, of the test rows.
        train_labels: task -> path -> label.
        missing: test paths without a file.
    """

    folder: Path
    painted: dict[str, np.ndarray]
    labels: dict[str, dict[str, int]]
    train_labels: dict[str, dict[str, int]]
    missing: tuple[str, ...]


def paint(folder: Path) -> Colours:
    """Paint images in folders, with shuffled lists; "empty" has no test set."""
    rng = np.random.default_rng(0)
    # The order of the names differs from the order of painting.
    names = [
        f"{'cb' if i % 2 else 'da'}/{'x' * (i % 3)}{(i * 37) % 101:03d}.png"
        for i in range(TEST_IMAGES + TRAIN_IMAGES)
    ]
    painted = dict(zip(names, colours(len(names), 4), strict=True))
    test, train = names[:TEST_IMAGES], names[TEST_IMAGES:]
    missing = tuple(test[i] for i in MISSING_FILES)
    for name, colour in painted.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in missing:
            Image.new("RGB", (5 + len(painted) % 7, 9), tuple(map(int, colour))).save(path)
    labels, train_labels = {}, {}
    for task, share in {"shade": 0.9, "warmth": 0.6}.items():
        count = len(CLASSES[task])
        predicted = answers(np.array([painted[name] for name in names]))[task].argmax(axis=1)
        # A quarter of the labels differ from the predictions.
        wrong = rng.random(len(names)) < 0.25
        sampled = np.where(wrong, rng.integers(0, count, len(names)), predicted)
        if task == "shade":
            sampled[sampled == ABSENT_CLASS] = 2
        label = dict(zip(names, map(int, sampled), strict=True))
        labels[task] = {name: label[name] for name in test if rng.random() < share}
        train_labels[task] = {name: label[name] for name in train}
    # The rows of its test list contradict each other, so it has no label (rule 4).
    labels["empty"] = {}
    train_labels["empty"] = {name: i % 2 for i, name in enumerate(train)}
    lists = folder / "lists"
    lists.mkdir(parents=True)
    for task, names_of in CLASSES.items():
        lines = [f"{index} {name}" for index, name in enumerate(names_of)]
        (lists / f"{task}_class.txt").write_text("\n".join(lines) + "\n")
        rows = list(labels[task].items()) or [(test[0], 0), (test[0], 1)]
        for split, pairs in (("val", rows), ("train", list(train_labels[task].items()))):
            text = [f"{name},{label}" for name, label in pairs]
            rng.shuffle(text)
            (lists / f"{task}_{split}.csv").write_text("\n".join(text) + "\n")
    return Colours(folder, painted, labels, train_labels, missing)


def make_run(workdir: Path, data: Colours, *, tasks=tuple(PALETTES), **changes) -> Run:
    """Make a run whose best model is `colour_model`."""
    run = start_run(workdir, colour_spec(tasks, **changes), data.folder)
    colour_model(tasks).save(run.best_model)
    return run
