"""What can be told beside an export's answers: where the model looked, and similar pictures.

Each is a function, or a text that says why there is none.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from multitask.data.files import read_reduced
from multitask.data.table import read_classes
from multitask.evaluation.similar import (
    Gallery,
    load_or_build,
    nearest,
    normalised,
    read_gallery,
)
from multitask.figures import data_uri
from multitask.model.network import load_network
from multitask.reading import sha256
from multitask.run import Run, open_run
from multitask.serving.predictor import read_export
from multitask.serving.runtimes import load_savedmodel, output_of
from multitask.serving.signatures import ATTENTION
from multitask.spec import SHARED, InputError

THUMBNAIL_PX, QUALITY = 240, 80

Attention = Callable[[np.ndarray], dict[str, np.ndarray]]
Similar = Callable[[np.ndarray, int], list[dict[str, Any]]]


# === Where the model looked ===


def load_attention(folder: Path) -> Attention | str:
    """An export's Grad-CAM, which only a SavedModel can carry.

    Args:
        folder: of the export.

    Returns:
        Pictures float32 [n, size, size, 3] -> task -> float32 [n, h, w] in 0..1, of the class that
        each picture is answered with; or why there is none.
    """
    content = read_export(folder)
    if "savedmodel" not in content["artifacts"]:
        return "it takes a SavedModel; `multitask export --format=savedmodel,…` makes one"
    loaded = load_savedmodel(folder / content["artifacts"]["savedmodel"])
    if ATTENTION not in loaded.signatures:
        return "its trunk has no feature map"
    signature = loaded.signatures[ATTENTION]

    # The signature alone does not keep the variables alive.
    def attention(images: np.ndarray, kept=loaded) -> dict[str, np.ndarray]:
        found = signature(tf.constant(images))
        return {task: found[output_of(task, ATTENTION)].numpy() for task in content["classes"]}

    return attention


# === Similar pictures ===


def similar_pictures(
    folder: Path,
    *,
    workdir: Path | None = None,
    data_dir: Path | None = None,
    allow_outside: bool = False,
    tell: Callable[[str], None] = print,
) -> Similar | str:
    """The search among the training pictures of an export's run.

    Args:
        folder: of the export.
        workdir: of the run; its gallery is made where there is none, which takes minutes. None:
            the export's parent, where that is the run and has the gallery.
        data_dir: where the data has moved to.
        allow_outside: as of `open_run`.
        tell: shows a line.

    Returns:
        (embedding float32 [width], how many) -> for each picture found, the nearest first, its
        path, distance, labels (task -> class name, where it has one) and thumbnail (a data URL, or
        None where the file is gone); or why there is none.

    Raises:
        InputError: workdir is no run, or not of that model; or what `load_or_build` finds.
    """
    model = read_export(folder).get("model")
    if workdir:
        run = open_run(workdir, data_dir, allow_outside=allow_outside)
        file = _model_file(run, model)
        if file is None:
            raise InputError(
                f"--workdir: {workdir}: none of its models is the one that {folder} was made of"
            )
        gallery = read_gallery(run, file)
        if gallery is None:
            classes = {
                task.name: read_classes(run.data_dir / task.classes) for task in run.spec.tasks
            }
            gallery = load_or_build(run, load_network(file, run.spec, classes), file, tell=tell)
        return _search(gallery, run)
    remedy = "start with --workdir=RUN, the run that the export was made of"
    parent = folder.resolve().parent
    if not (parent / "config.json").is_file():
        return remedy
    try:
        run = open_run(parent, data_dir, allow_outside=allow_outside)
        file = _model_file(run, model)
        gallery = file and read_gallery(run, file)
    except InputError as error:  # nobody asked for them
        tell(f"No similar pictures: {error}")
        return "the run's pictures are not where they were; --data_dir names their place"
    return _search(gallery, run) if gallery else remedy


def _model_file(run: Run, digest: str | None) -> Path | None:
    """The run's model of that SHA-256, the best one first."""
    others = sorted(run.models.glob("*.keras"))
    for file in sorted(others, key=lambda file: file != run.best_model):
        with contextlib.suppress(OSError):  # what cannot be read is not that model
            if sha256(file) == digest:
                return file
    return None


def _search(gallery: Gallery, run: Run) -> Similar:
    vectors, image_dir = gallery.loaded(SHARED), run.data_dir / run.spec.images

    def thumbnail(path: str) -> str | None:
        pixels = read_reduced(image_dir / path, target_px=THUMBNAIL_PX)
        return None if pixels is None else data_uri(pixels, side_px=THUMBNAIL_PX, quality=QUALITY)

    def similar(embedding: np.ndarray, count: int) -> list[dict[str, Any]]:
        rows, distances = nearest(vectors, normalised(embedding[None]), count)
        return [
            {
                "path": gallery.paths[row],
                "distance": float(distance),
                "labels": {t: name for t, name in gallery.label_names(row).items() if name != "-"},
                "thumbnail": thumbnail(gallery.paths[row]),
            }
            for row, distance in zip(rows[0], distances[0], strict=True)
        ]

    return similar
