"""Predicts every task for the images of files and folders, in batches."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from multitask.console import progress_bar
from multitask.data.conversion import conversions_logged
from multitask.data.folders import ImageSearch
from multitask.data.image_files import why_unreadable
from multitask.data.image_kinds import SUFFIXES
from multitask.data.pipeline import readable_images
from multitask.serving.predictor import Predictor
from multitask.spec import InputError

logger = logging.getLogger(__name__)


def find_images(names: Sequence[str]) -> list[str]:
    """List image files, sorted within a folder, without duplicates.

    Args:
        names: paths of images and folders; `ImageSearch` searches the folders.

    Raises:
        InputError: no name was given, a file or folder does not exist, or a folder has no image.
    """
    if not names:
        raise InputError("name at least one image or folder")
    files: dict[str, None] = {}
    search = ImageSearch()
    for name in names:
        path = str(Path(name))
        if os.path.isdir(path):
            if search.has_read(path):
                continue
            inside = search.find(path)
            if not inside:
                skipped = search.skipped.line()
                raise InputError(
                    f"{path}: no image in this folder (names ending in {', '.join(SUFFIXES)})"
                    + (f". {skipped}" if skipped else "")
                )
            files |= dict.fromkeys(inside)
        elif os.path.exists(path):
            files[path] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    if skipped := search.skipped.line():
        logger.info(skipped)
    return list(files)


class ImageProbabilities(dict[str, np.ndarray]):
    """Task -> float32 [classes] of one image.

    Attributes:
        distance: to the training images; None if the model has none.
    """

    distance: float | None = None


def predict_files(
    predictor: Predictor, files: Sequence[str | Path], *, batch_size: int
) -> Iterator[tuple[str, ImageProbabilities | str]]:
    """Predict files in order.

    Images are decoded while the model works on previous ones. The use of memory does not grow with
    the number of images.

    Yields:
        A file; and its probabilities, or the reason why it cannot be read.
    """
    names = [os.fspath(file) for file in files]
    batches = readable_images(
        [os.fsencode(name) for name in names],
        **predictor.reading,
        batch_size=batch_size,
    )
    done = 0

    def unreadable(until: int) -> Iterator[tuple[str, str]]:
        for name in names[done:until]:
            yield name, " ".join((why_unreadable(name) or "could not be read").split())

    with conversions_logged(), progress_bar("predicting", len(names)) as bar:
        for places, images in batches:
            # `numpy()` would copy ten megabytes per batch while the model waits.
            probabilities, embedding = predictor.answer(np.asarray(images))
            distances = predictor.distances(embedding)
            for row, place in enumerate(places.numpy().tolist()):
                yield from unreadable(place)
                one = ImageProbabilities({task: p[row] for task, p in probabilities.items()})
                one.distance = None if distances is None else float(distances[row])
                yield names[place], one
                done = place + 1
            bar.update(done - bar.n)
        yield from unreadable(len(names))
