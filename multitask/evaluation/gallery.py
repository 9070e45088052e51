"""The gallery: the embeddings of a run's training images, computed once per model.

Its files:

  WORKDIR/similar/{model}/
      {name}.npy         float16 [rows, width], of length 1; for the pooled features and each task
      gallery.json       paths and labels of the rows, and a fingerprint
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from multitask.console import progress_bar
from multitask.data.image_files import image_sizes
from multitask.data.pipeline import file_names, readable_images
from multitask.data.table import TRAIN
from multitask.disk import check_room, reserve
from multitask.errors import counted
from multitask.evaluation.examiner import Examiner, examiner_of
from multitask.files import check_writable, locked, read_json, replacing, write_json
from multitask.model.network import VECTORS
from multitask.reading import check_regular
from multitask.spec import SHARED, DataSpec, InputError, is_labelled
from multitask.trained import TrainedModel

logger = logging.getLogger(__name__)

VERSION = 2  # of the computation and of the files
DESCRIPTION = "gallery.json"
BATCH = 32


@dataclass(frozen=True)
class Gallery:
    """The embedded training images of a run.

    Attributes:
        classes: task -> class names.
        paths: str [n], as in the CSVs.
        labels: int32 [n, tasks]; MISSING (-1) if the image has no label of the task.
        vectors: SHARED and each task -> float16 [n, width], on disk (memory-mapped).
        folder: folder of the files.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    vectors: Mapping[str, np.ndarray]
    folder: Path

    def loaded(self, name: str) -> np.ndarray:
        """One embedding in memory, float32 [n, width], of length 1."""
        return normalised(self.vectors[name])

    def label_names(self, row: int) -> dict[str, str]:
        """Task -> class name of an image; "-" without a label of the task."""
        return {
            task: names[label] if is_labelled(label) else "-"
            for (task, names), label in zip(self.classes.items(), self.labels[row], strict=True)
        }


# === Embeddings ===


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Scale float [n, width] to float32 of length 1; a zero vector stays zero."""
    vectors = np.array(vectors, np.float32)  # a single copy: it may fill half of the memory
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return vectors


def embed(
    examiner: Examiner, names: list[str], spec: DataSpec, *, description: str
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Embed image files batch by batch, with a progress bar.

    Args:
        examiner: the network.
        names: of the files; unreadable ones are skipped.
        spec: image size and resizing.
        description: of the progress bar.

    Yields:
        int64 [batch], indices into `names`; name -> float32 [batch, width], of length 1.
    """
    begun: deque[np.ndarray] = deque()

    def images() -> Iterator[tf.Tensor]:
        for indices, batch in readable_images(names, **spec.reading, batch_size=BATCH):
            begun.append(indices)
            yield batch

    with progress_bar(description, len(names)) as bar:
        for outputs in examiner.map(images(), count=len(names)):
            places = begun.popleft()
            yield places, {name: normalised(x) for name, x in outputs[VECTORS].items()}
            bar.update(int(places[-1]) + 1 - bar.n)


def embed_all(
    examiner: Examiner, names: list[str], spec: DataSpec, *, description: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run `embed` to the end; returns int64 [n] and name -> float32 [n, width]."""
    read = [np.zeros(0, np.int64)]
    batches = {name: [np.zeros((0, width), np.float32)] for name, width in examiner.widths.items()}
    for places, vectors in embed(examiner, names, spec, description=description):
        read.append(places)
        for name, batch in vectors.items():
            batches[name].append(batch)
    return np.concatenate(read), {name: np.concatenate(all_) for name, all_ in batches.items()}


# === Files ===


def load_or_build(trained: TrainedModel, *, examiner: Examiner | None = None) -> Gallery:
    """Load a model's gallery if the one on disk matches; otherwise build it.

    Args:
        trained: its training images are read from their original files.
        examiner: of the model's network, if it exists already.

    Raises:
        InputError: the data or the workdir is wrong; no partial gallery is left.
        DiskError: the disk has no room; no partial gallery is left.
    """
    folder, fingerprint = _folder(trained), _fingerprint(trained)
    names = (SHARED, *trained.classes)

    def read() -> Gallery | None:
        return _read(folder, fingerprint, trained.classes, names)

    if gallery := read():
        return gallery
    examiner = examiner or examiner_of(trained)  # reads the model file, which may be damaged
    check_writable(folder, field="workdir")
    folder.parent.mkdir(exist_ok=True)
    waiting = f"Another process is making {folder}; waiting for it …"
    with locked(folder.parent / f".{folder.name}.lock", lambda: logger.info(waiting)):
        gallery = read()
        if gallery is None:
            count = len(trained.training_table.rows(TRAIN))
            logger.info(f"Embedding {count:,} training images, once, into {folder} …")
            with replacing(folder) as temporary:
                _build(temporary, trained, examiner, fingerprint)
            gallery = read()
    assert gallery is not None  # it has just been written
    return gallery


def read_gallery(trained: TrainedModel) -> Gallery | None:
    """Read the gallery of a model; None if there is none, or if it does not match.

    Raises:
        InputError: the data is wrong.
    """
    folder = _folder(trained)
    if not (folder / DESCRIPTION).is_file():
        return None
    fingerprint = _fingerprint(trained)
    return _read(folder, fingerprint, trained.classes, (SHARED, *trained.classes))


def _folder(trained: TrainedModel) -> Path:
    return trained.run.workdir / "similar" / trained.model_file.stem


def _fingerprint(trained: TrainedModel) -> str:
    """SHA-256 of everything that a gallery depends on."""
    table, spec = trained.training_table, trained.spec
    rows = table.rows(TRAIN)
    facts = hashlib.sha256()
    facts.update(json.dumps([VERSION, trained.digest, spec.reading]).encode())
    facts.update(json.dumps([*table.classes.items(), *table.paths[rows]]).encode())
    facts.update(table.labels[rows].astype("<i4").tobytes())
    facts.update(image_sizes(table.paths[rows], trained.image_dir).astype("<i8").tobytes())
    return facts.hexdigest()


def _build(
    folder: Path,
    trained: TrainedModel,
    examiner: Examiner,
    fingerprint: str,
) -> None:
    """Embed the training images and write them into a new folder."""
    table, image_dir = trained.training_table, trained.image_dir
    rows = table.rows(TRAIN)
    names = file_names(table, rows, image_dir)
    needed = 2 * len(rows) * sum(examiner.widths.values())
    check_room(folder.parent, needed, what=f"embeddings of {counted(len(rows), 'image')}")
    folder.mkdir()
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.float16, (len(rows), width)
        )
        for name, width in examiner.widths.items()
    }
    for name in arrays:
        reserve(folder / f"{name}.npy")
    read = [np.zeros(0, np.int64)]
    done = 0
    for places, vectors in embed(examiner, names, trained.spec, description="embedding"):
        for name, batch in vectors.items():
            arrays[name][done : done + len(places)] = batch
        read.append(places)
        done += len(places)
    if not done:
        raise InputError(f"{image_dir}: none of the training images can be read ({len(rows):,})")
    if done < len(rows):
        logger.info(f"  excluded: {len(rows) - done:,} that are missing or unreadable")
    for array in arrays.values():
        array.flush()
    kept = rows[np.concatenate(read)]
    description = {
        "fingerprint": fingerprint,
        "paths": table.paths[kept].tolist(),
        "labels": table.labels[kept].tolist(),
    }
    write_json(folder / DESCRIPTION, description)


def _read(
    folder: Path, fingerprint: str, classes: dict[str, tuple[str, ...]], names: Iterable[str]
) -> Gallery | None:
    """Read a gallery; None if there is none, or if it does not match the fingerprint."""
    try:
        description = read_json(folder / DESCRIPTION)
        if description["fingerprint"] != fingerprint:
            return None
        paths = np.asarray(description["paths"], object)
        labels = np.asarray(description["labels"], np.int32)
        # Unreadable images leave unused rows at the end.
        check_regular(folder)
        vectors = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")[: len(paths)] for name in names
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Gallery(classes, paths, labels, vectors, folder)
