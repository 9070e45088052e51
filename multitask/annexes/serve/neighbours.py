"""Optional parts of a response: attention maps and similar training images.

Each is a function, or a text with the reason why it is not available.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from multitask.data.image_files import read_reduced
from multitask.evaluation.gallery import Gallery, load_or_build, normalised, read_gallery
from multitask.evaluation.neighbours import nearest
from multitask.pages.image_sheets import data_uri
from multitask.run import Run, open_run
from multitask.runtimes.libraries import load_savedmodel, output_of
from multitask.serving.predictor import read_export
from multitask.serving.signatures import ATTENTION
from multitask.spec import SHARED, InputError
from multitask.trained import TrainedModel

logger = logging.getLogger(__name__)

THUMBNAIL_PX, QUALITY = 240, 80

Attention = Callable[[np.ndarray], dict[str, np.ndarray]]
Similar = Callable[[np.ndarray, int], list[dict[str, Any]]]


# === Attention maps ===


def load_attention(folder: Path) -> Attention | str:
    """Load the Grad-CAM function of an export, which only a SavedModel contains.

    Args:
        folder: of the export.

    Returns:
        Images float32 [n, size, size, 3] -> task -> float32 [n, h, w] in 0..1, of the
        predicted class; or the reason why there is none.
    """
    content = read_export(folder)
    if "savedmodel" not in content["artifacts"]:
        return "it needs a SavedModel; `multitask export --format=savedmodel,…` makes one"
    loaded = load_savedmodel(folder / content["artifacts"]["savedmodel"])
    if ATTENTION not in loaded.signatures:
        return "its trunk has no feature map"
    signature = loaded.signatures[ATTENTION]

    # The signature alone does not keep the variables alive.
    def attention(images: np.ndarray, kept: Any = loaded) -> dict[str, np.ndarray]:
        outputs = signature(tf.constant(images))
        return {task: outputs[output_of(task, ATTENTION)].numpy() for task in content["classes"]}

    return attention


# === Similar images ===


def similar_images(
    folder: Path,
    *,
    workdir: Path | None = None,
    data_dir: Path | None = None,
    allow_outside: bool = False,
) -> Similar | str:
    """Load the search in the training images of an export's run.

    Args:
        folder: of the export.
        workdir: as in `gallery_of_export`.
        data_dir: the new folder of data that was moved.
        allow_outside: as in `open_run`.

    Returns:
        (embedding float32 [width], count) -> for each match, nearest first, its path, distance,
        labels (task -> class name, without unlabelled tasks) and thumbnail (a data URL, or None
        if the file is missing); or the reason why there is no search.

    Raises:
        InputError: as `gallery_of_export`.
    """
    gallery = gallery_of_export(
        folder, workdir=workdir, data_dir=data_dir, allow_outside=allow_outside
    )
    return gallery if isinstance(gallery, str) else _search(*gallery)


def gallery_of_export(
    folder: Path,
    *,
    workdir: Path | None = None,
    data_dir: Path | None = None,
    allow_outside: bool = False,
) -> tuple[Gallery, Run] | str:
    """Load the embedded training images of an export's run.

    Args:
        folder: of the export.
        workdir: folder of the run; a missing gallery is built in minutes. None: the export's
            parent folder, if it is the run and has the gallery.
        data_dir: the new folder of data that was moved.
        allow_outside: as in `open_run`.

    Returns:
        The gallery and the run; or the reason why there is none.

    Raises:
        InputError: workdir is not a run or lacks that model; or as `load_or_build`.
    """
    model = read_export(folder).get("model")
    if workdir:
        run = open_run(workdir, data_dir, allow_outside=allow_outside)
        trained = _trained_model(run, model)
        if trained is None:
            raise InputError(
                f"{workdir}: {folder} was not exported from any model of this run", field="workdir"
            )
        return read_gallery(trained) or load_or_build(trained), run
    remedy = "start the server with --workdir=RUN, the run that was exported"
    parent = folder.resolve().parent
    if not (parent / "config.json").is_file():
        return remedy
    try:
        run = open_run(parent, data_dir, allow_outside=allow_outside)
        trained = _trained_model(run, model)
        gallery = trained and read_gallery(trained)
    except InputError as error:  # similar images are optional without --workdir
        logger.info(f"No similar images: {error}")
        return "the run's images have moved; name their new folder with --data_dir"
    return (gallery, run) if gallery else remedy


def _trained_model(run: Run, digest: str | None) -> TrainedModel | None:
    """The run's model with this SHA-256; the best model is checked first."""
    others = sorted(run.models.glob("*.keras"))
    for file in sorted(others, key=lambda file: file != run.best_model):
        with contextlib.suppress(OSError):  # an unreadable file is not that model
            trained = TrainedModel(run, file)
            if trained.digest == digest:
                return trained
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
