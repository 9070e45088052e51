"""The frozen trunk's features of each image: computed once, kept on disk, used in training.

  RECORDS_DIR/features/{trunk}-{fingerprint}/
      train.npy          [views · rows, …]: view after view, each in the order of the rows
      validation.npy      [rows, …]
      done.json          how many rows of each split exist, and the library that computes them; a
                         stopped computation resumes there
      features.json      trunk, image size, shape, counts and library; written last

The first view is the plain image; view v is augmented as the uncached training augments it in
epoch v - 1. If every head pools the feature map, only the pooled vector of each image is kept
(1 / 49 of the size of the map at 224 px), otherwise the map.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.console import progress_bar
from multitask.data.pipeline import (
    readable_images,
    view_dataset,
)
from multitask.data.records import PreparedData
from multitask.data.table import TRAIN, VALIDATION
from multitask.disk import RETRY_HINT, check_room, reserve, size_text, writing
from multitask.files import locked, read_json, write_json
from multitask.learning.extensions import NO_EXTENSIONS, Extensions
from multitask.learning.feature_batches import Features
from multitask.learning.placement import ONE_DEVICE, Placement
from multitask.model.cut import Cut
from multitask.model.inference import TENSORFLOW, Inference, fast_inference, is_usable
from multitask.model.network import connect_features, trunk_and_heads
from multitask.runtimes.libraries import AUTO, RUNTIMES
from multitask.spec import PHASES, DataSpec, InputError

logger = logging.getLogger(__name__)

VERSION = 1  # of how features are computed and stored
PROGRESS_FILE, FACTS_FILE = "done.json", "features.json"
RUNTIME = "runtime"  # of both
BATCH = 32  # of the trunk; not the batch size of the spec, because rounding depends on it
SAVE_EVERY_S = 10.0


# === Whether to cache ===


def wants_cache(spec: DataSpec, extensions: Extensions = NO_EXTENSIONS) -> bool:
    """Decide whether the phase `heads` trains on cached features.

    `auto` caches if the trunk then runs less often (once instead of once per epoch), and if no
    batch of images is transformed.

    Raises:
        InputError: the options contradict each other.
    """
    options, epochs = spec.features, spec.phases.heads.epochs
    needed = options.views > 0 or extensions.extra_rows.adds
    if options.cache == "off":
        if needed:
            name = "views" if options.views else extensions.extra_rows.field
            place = spec.place(None, f"features.{name}")
            raise InputError(f'{place}: needs cached features, and cache is "off"')
        return False
    if PHASES[0] in extensions.batch_transforms:
        return False
    return epochs > 0 and (options.cache == "on" or needed or epochs > 1)


def feature_shape(network: keras.Model) -> tuple[int, ...]:
    """Return the shape of one image's features: pooled if no head needs the map."""
    return connect_features(trunk_and_heads(network)[1]).input_shape[1:]


# === Computing ===


@dataclass(frozen=True)
class _Part:
    """A frozen part of the trunk whose output is cached.

    Attributes:
        network: image -> output.
        name: begins the name of its folder.
        weights: of its layers.
        facts: what determines the output, besides the weights.
        first_view: first view of a training image, as `view_dataset` counts them.
        views: number of its views.
        cache: the field of the spec that turns the cache off.
        title: of the output, for the log.
    """

    network: keras.Model
    name: str
    weights: list[np.ndarray]
    facts: dict[str, Any]
    first_view: int
    views: int
    cache: str
    title: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the output."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode())
        for weight in self.weights:
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's output."""
        return self.network.output_shape[1:]

    def counts(self, prepared: PreparedData) -> dict[str, int]:
        """Return how many outputs of each split there are."""
        rows = {split: len(prepared.table.rows(split)) for split in (TRAIN, VALIDATION)}
        return {TRAIN: self.views * rows[TRAIN], VALIDATION: rows[VALIDATION]}


def _facts(
    prepared: PreparedData, spec: DataSpec, shape: tuple[int, ...], *, views: int
) -> dict[str, Any]:
    """Return what determines the output of a part, besides its weights.

    Args:
        prepared: the records.
        spec: the spec.
        shape: of one image's output.
        views: number of augmented views.
    """
    options = spec.features
    facts: dict[str, Any] = {
        "version": VERSION,
        "trunk": spec.trunk.name,
        "shape": shape,
        "image_size": spec.image_size,
        "resize": spec.resize,
        "records": str(prepared.folder.parent.name),
        "views": views,
        "dtype": options.dtype,
        "computed_in": [spec.precision, keras.backend.backend()],
    }
    if options.runtime != AUTO:
        facts["runtime"] = options.runtime
    if views:
        tasks = spec.without_auxiliary().tasks  # the others have no part in the augmentation
        augment = [task.augment.model_dump(mode="json") for task in tasks]
        facts |= {"seed": spec.seed, "augment": augment, "tasks": spec.main_tasks}
    return facts


def _trunk_part(network: keras.Model, prepared: PreparedData, spec: DataSpec) -> _Part:
    """Return the whole trunk, whose first view is the plain image."""
    trunk, shape = trunk_and_heads(network)[0], feature_shape(network)
    return _Part(
        _feature_network(trunk, shape),
        spec.trunk.name,
        trunk.get_weights(),
        _facts(prepared, spec, shape, views=spec.features.views),
        0,
        1 + spec.features.views,
        "features.cache",
        "features of the frozen trunk",
    )


def fingerprint(network: keras.Model, prepared: PreparedData, spec: DataSpec) -> str:
    """Compute the SHA-256 of everything that determines the features."""
    return _trunk_part(network, prepared, spec).fingerprint


def cache_features(
    network: keras.Model,
    prepared: PreparedData,
    spec: DataSpec,
    *,
    extensions: Extensions = NO_EXTENSIONS,
    placement: Placement = ONE_DEVICE,
) -> Features:
    """Run the trunk over the training and validation images, unless the cache is complete.

    Args:
        network: its trunk is used, in inference mode.
        prepared: the records that are read.
        spec: its options of `features`, image size, seed and augmentation are used.
        extensions: may add rows.
        placement: where the training runs.

    Raises:
        InputError: a value does not fit float16.
        DiskError: the disk is full; computed rows are kept, and the next call resumes there.
    """
    part = _trunk_part(network, prepared, spec)
    train, validation = _cached(part, prepared, spec, placement)
    table = prepared.table
    labels = table.labels[table.rows(TRAIN)]
    extra, extra_labels = extensions.extra_rows.make(train, labels)
    return Features(
        train,
        validation,
        part.views,
        np.concatenate([labels, extra_labels]),
        table.labels[table.rows(VALIDATION)],
        extra,
        table.tasks,
    )


def _cut_part(cut: Cut, prepared: PreparedData, spec: DataSpec, first_epoch: int) -> _Part:
    """Return what is below a cut, whose views are those of the epochs from `first_epoch` on."""
    options = spec.phases.finetune
    views = min(options.views or options.epochs, options.epochs)
    facts = _facts(prepared, spec, cut.below.output_shape[1:], views=views)
    return _Part(
        cut.below,
        f"{spec.trunk.name}-{cut.name}",
        cut.below.get_weights(),
        facts | {"below": cut.name, "first_epoch": first_epoch},
        1 + first_epoch,
        views,
        "phases.finetune.cache",
        f"maps of the first {cut.layers} layers, up to {cut.name}",
    )


def cache_maps(
    cut: Cut,
    prepared: PreparedData,
    spec: DataSpec,
    *,
    first_epoch: int,
    placement: Placement = ONE_DEVICE,
) -> Features:
    """Run what is below a cut over the images, unless the cache is complete.

    Args:
        cut: of the trunk; what is below is used, in inference mode.
        prepared: the records that are read.
        spec: its options of `phases.finetune` and `features`, image size, seed and augmentation
            are used.
        first_epoch: the epoch whose augmentation the first view has.
        placement: where the training runs.

    Raises:
        InputError: a value does not fit float16.
        DiskError: the disk is full; computed rows are kept, and the next call resumes there.
    """
    part = _cut_part(cut, prepared, spec, first_epoch)
    train, validation = _cached(part, prepared, spec, placement)
    table = prepared.table
    return Features(
        train,
        validation,
        part.views,
        table.labels[table.rows(TRAIN)],
        table.labels[table.rows(VALIDATION)],
        np.empty((0, *part.shape), np.float32),
        table.tasks,
        first_epoch=first_epoch,
    )


def has_room_for_maps(
    cut: Cut, prepared: PreparedData, spec: DataSpec, *, first_epoch: int
) -> bool:
    """Whether the maps exist, or would take at most a quarter of the free disk space."""
    part = _cut_part(cut, prepared, spec, first_epoch)
    folder = _folder(part, prepared)
    if folder.is_dir():
        return True
    free = shutil.disk_usage(prepared.folder).free
    return _bytes(part, prepared, spec) <= free / 4


def _folder(part: _Part, prepared: PreparedData) -> Path:
    return prepared.folder.parents[2] / "features" / f"{part.name}-{part.fingerprint[:12]}"


def _bytes(part: _Part, prepared: PreparedData, spec: DataSpec) -> int:
    values = sum(part.counts(prepared).values()) * int(np.prod(part.shape))
    return values * np.dtype(spec.features.dtype).itemsize


def _cached(
    part: _Part, prepared: PreparedData, spec: DataSpec, placement: Placement
) -> list[np.ndarray]:
    """Compute the arrays of both splits unless they are complete; they stay on disk."""
    folder, counts = _folder(part, prepared), part.counts(prepared)
    above = folder.parent
    above.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is computing these features ({folder}); waiting for it …"
    with locked(above / f".{folder.name}.lock", lambda: logger.info(waiting)):
        if not (folder / FACTS_FILE).is_file():
            with writing(above):
                done = _reserve(folder, part, prepared, spec)
                infer = fast_inference(
                    placement.local_copy(part.network),
                    runtime=_begun_in(folder) or spec.features.runtime,
                    images=sum(counts.values()),
                )
                _compute(infer, prepared, spec, folder, part, done)
                facts = {"trunk": spec.trunk.name, "image_size": spec.image_size}
                facts |= {"shape": part.shape, RUNTIME: infer.runtime}
                write_json(folder / FACTS_FILE, facts | counts)
    logger.info(f"{part.title[0].upper()}{part.title[1:]}: {folder}")
    return [np.load(folder / f"{split}.npy", mmap_mode="r") for split in counts]


def _reserve(folder: Path, part: _Part, prepared: PreparedData, spec: DataSpec) -> dict[str, int]:
    """Reserve disk space for the arrays; return how many rows of each split already exist."""
    shape, counts = part.shape, part.counts(prepared)
    dtype, needed = np.dtype(spec.features.dtype), _bytes(part, prepared, spec)
    begun = (folder / PROGRESS_FILE).is_file()
    hint = f"name another `records_dir` or set `{part.cache}=off`, {RETRY_HINT}"
    done = _done_rows(folder, counts) if begun else dict.fromkeys(counts, 0)
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
        check_room(folder.parent, needed, what="features", retry_hint=hint)
        folder.mkdir()
    try:
        for split, count in counts.items():
            path = folder / f"{split}.npy"
            if not begun:
                np.lib.format.open_memmap(path, "w+", dtype, (count, *shape)).flush()
            reserve(path, retry_hint=hint)
    except OSError:
        if not begun:  # the files are empty, but occupy disk space
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shape_text = "×".join(map(str, shape))
    logger.info(
        f"Computing {part.title}, {shape_text} {dtype.name} per image: "
        f"{sum(counts.values()):,} in all, {size_text(needed)} in {folder}"
    )
    return done


def _done_rows(folder: Path, counts: dict[str, int]) -> dict[str, int]:
    """Read how many rows of each split are computed; 0 for all if the file is unusable."""
    nothing = dict.fromkeys(counts, 0)
    try:
        content = read_json(folder / PROGRESS_FILE)
        done = {split: int(content[split]) for split in counts}
    except (ValueError, KeyError, TypeError, OverflowError):
        return nothing
    return done if min(done.values()) >= 0 and _begun_in(folder) else nothing


def _begun_in(folder: Path) -> str | None:
    """Return the library that computed the rows so far; None if it cannot continue."""
    try:
        name = read_json(folder / PROGRESS_FILE).get(RUNTIME, TENSORFLOW)
    except (OSError, ValueError, AttributeError):
        return None
    return name if name in RUNTIMES and is_usable(name) else None


def _compute(
    infer: Inference,
    prepared: PreparedData,
    spec: DataSpec,
    folder: Path,
    part: _Part,
    done: dict[str, int],
) -> None:
    """Compute the missing rows; keep `done` up to date, in memory and on disk."""
    progress, counts = {RUNTIME: infer.runtime}, part.counts(prepared)
    if infer.runtime != TENSORFLOW:
        logger.info(f"The trunk runs in {RUNTIMES[infer.runtime].described}")
    with progress_bar("features", sum(counts.values()), initial=sum(done.values())) as bar:
        for split, count in counts.items():
            target = np.lib.format.open_memmap(folder / f"{split}.npy", "r+")
            saved = time.monotonic()
            first_view = part.first_view if split == TRAIN else 0
            missing = _missing_images(prepared, spec, split, done[split], count, first_view)
            for features in infer.map(missing):
                batch = _stored(features, target.dtype)
                target[done[split] : done[split] + len(batch)] = batch
                done[split] += len(batch)
                bar.update(len(batch))
                if time.monotonic() - saved > SAVE_EVERY_S:
                    target.flush()
                    write_json(folder / PROGRESS_FILE, progress | done)
                    saved = time.monotonic()
            target.flush()
            write_json(folder / PROGRESS_FILE, progress | done)


def _missing_images(
    prepared: PreparedData, spec: DataSpec, split: str, done: int, count: int, first_view: int
) -> Iterator[tf.Tensor]:
    """Yield batches of images of a split from row `done` of `count` on, view after view."""
    rows = len(prepared.table.rows(split))
    while done < count:
        view, first = divmod(done, rows)
        yield from view_dataset(
            prepared,
            spec,
            split=split,
            batch_size=BATCH,
            view=first_view + view,
            rows=np.arange(first, rows),
            autotune=False,
        )
        done += rows - first


def _stored(batch: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert a batch to the type of the cache; InputError where a value does not fit."""
    stored = batch.astype(dtype)
    if not np.isfinite(stored).all():
        raise InputError(
            f"{dtype.name}: features of up to {np.abs(batch).max():.3g} do not "
            "fit; set `features.dtype=float32`",
            field="features.dtype",
        )
    return stored


def _feature_network(trunk: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    """Return the network from images to features of the shape: pooled, or the trunk's output."""
    features = trunk.outputs[0]
    if len(shape) == 1 < len(features.shape) - 1:
        features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(trunk.inputs[0], features)


def file_features(network: keras.Model, names: list[str], spec: DataSpec) -> np.ndarray:
    """Compute the trunk's features of image files, such as test images, which have no records.

    Args:
        network: its trunk is used, in inference mode.
        names: of the files, all of them readable.
        spec: image size, resizing and the type of the features.

    Returns:
        [n, …], in the form that the cache holds.
    """
    infer = fast_inference(
        _feature_network(trunk_and_heads(network)[0], feature_shape(network)),
        runtime=spec.features.runtime,
        images=len(names),
    )
    batches = readable_images(names, **spec.reading, batch_size=BATCH)
    features = list(infer.map(images for _, images in batches))
    return np.concatenate(features).astype(spec.features.dtype)
