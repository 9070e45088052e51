"""What the frozen trunk gives for each picture: computed once, kept on disk, learnt from.

  RECORDS_DIR/features/{trunk}-{fingerprint}/
      train.npy          [views · rows, …]: view after view, each in the order of the rows
      selection.npy      [rows, …]
      done.json          how many of each are written; what was begun goes on there
      features.json      what they are of; stands there when they are whole

The first view is the plain picture; view v is augmented as the uncached training augments it in
epoch v - 1. A vector is kept for each picture where every head pools the feature map (1 / 49 of
its size at 224 px), else the map.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from multitask.data.pipeline import readable_pictures, sharded_labels, targets, view_dataset
from multitask.data.records import Prepared
from multitask.data.sampling import UNSHARDED, Shard, batch_places, epoch_rows
from multitask.data.table import SELECTION, TRAIN, Table
from multitask.files import (
    AGAIN,
    check_room,
    locked,
    read_json,
    reserve,
    size_text,
    write_json,
    writing,
)
from multitask.learning.backend import jit_compile
from multitask.learning.distribution import local_copy
from multitask.model.network import connect_features, parts
from multitask.spec import MISSING, DataSpec, InputError, install

VERSION = 1  # of how features are computed and stored
BEGUN, WHOLE = "done.json", "features.json"
BATCH = 32  # of the trunk; its rounding depends on it, so it is not the spec's
NEIGHBOURS = 5  # of SMOTE, as in its paper
NOTE_EVERY_S = 10.0
OR_ELSE = f"name another --records_dir or give --cache_features=off, {AGAIN}"


@dataclass(frozen=True)
class Features:
    """Cached features, and the labels that go with them.

    Attributes:
        train: [views · rows, …].
        selection: [rows, …].
        views: how many `train` holds of each row.
        labels: int32 [rows + synthetic, tasks]; MISSING (-1) where a task has none.
        selection_labels: int32 [rows, tasks].
        synthetic: float32 [synthetic, …]: what SMOTE made.
        tasks: their names.
    """

    train: np.ndarray
    selection: np.ndarray
    views: int
    labels: np.ndarray
    selection_labels: np.ndarray
    synthetic: np.ndarray
    tasks: tuple[str, ...]

    def training_dataset(
        self, spec: DataSpec, *, first_epoch: int = 0, first_step: int = 0, shard: Shard = UNSHARDED
    ) -> tf.data.Dataset:
        """Shuffled batches of features, {task: label}, {task: weight}, without end.

        The rows come in the order in which `data.pipeline.training_dataset` has them. Each epoch
        takes another view of a picture; in as many epochs as there are views, it has had all.
        """
        rows = len(self.train) // self.views
        rows_of, count = epoch_rows(self.labels, spec), len(self.labels)
        every_place = tf.constant(batch_places(count, spec.batch_size, shard))
        batch_size = spec.batch_size // shard.count
        first_view = np.random.default_rng(spec.seed).integers(self.views, size=rows)

        def take(epoch: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            real = chosen < rows
            place = chosen[real]
            batch = np.empty((len(chosen), *self.train.shape[1:]), np.float32)
            view = (first_view[place] + epoch) % self.views
            batch[real] = self.train[view * rows + place]
            batch[~real] = self.synthetic[chosen[~real] - rows]
            return batch

        def load(epoch: tf.Tensor, places: tf.Tensor, chosen: tf.Tensor) -> tuple:
            # Without state, so that its calls need not wait for each other.
            batch = tf.numpy_function(take, [epoch, chosen], tf.float32, stateful=False)
            labels = tf.where((places < count)[:, None], tf.gather(self.labels, chosen), MISSING)
            return tf.ensure_shape(batch, (None, *self.train.shape[1:])), labels

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            places = every_place[tf.where(epoch == first_epoch, first_step * batch_size, 0) :]
            chosen = tf.gather(rows_of(epoch), tf.minimum(places, count - 1))
            both = tf.data.Dataset.from_tensor_slices((places, chosen)).batch(batch_size)
            return both.map(lambda *both: load(epoch, *both), 2, deterministic=True)

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        batches = epochs.flat_map(one_epoch)
        return batches.map(lambda x, y: (x, *targets(y, self.tasks))).prefetch(4)

    def selection_dataset(self, spec: DataSpec, *, shard: Shard = UNSHARDED) -> tf.data.Dataset:
        """Batches of the selection split, in the order of its rows."""
        rows, labels = sharded_labels(self.selection_labels, spec, shard)
        batches = tf.data.Dataset.from_tensor_slices((rows, labels))
        batches = batches.batch(spec.batch_size // shard.count)

        def take(chosen: np.ndarray) -> np.ndarray:
            return self.selection[chosen].astype(np.float32)

        def load(chosen: tf.Tensor, labels: tf.Tensor) -> tuple:
            batch = tf.numpy_function(take, [chosen], tf.float32, stateful=False)
            batch = tf.ensure_shape(batch, (None, *self.selection.shape[1:]))
            return batch, *targets(labels, self.tasks)

        return batches.map(load, 2, deterministic=True).prefetch(4)


# === Whether ===


def wants_cache(spec: DataSpec) -> bool:
    """Whether the phase `heads` is to train on cached features.

    `auto` caches where the trunk then runs less often, once instead of once an epoch, and where
    no pictures are mixed.

    Raises:
        InputError: what is asked for contradicts itself.
    """
    options, epochs = spec.features, spec.phases.heads.epochs
    place = spec.place(None, "features")
    asked = options.cache == "on" or options.views or options.smote
    if spec.mix is not None and asked:
        raise InputError(f"{place}: mix blends pictures, which cached features no longer are")
    if options.cache == "off":
        if options.views or options.smote:
            what = "views" if options.views else "smote"
            raise InputError(f'{place}.{what}: needs cached features, and cache is "off"')
        return False
    return epochs > 0 and spec.mix is None and (bool(asked) or epochs > 1)


def feature_shape(network: keras.Model) -> tuple[int, ...]:
    """Of one picture's features: pooled where no head needs the map."""
    return connect_features(parts(network)[1]).input_shape[1:]


# === Computing ===


def fingerprint(network: keras.Model, prepared: Prepared, spec: DataSpec) -> str:
    """SHA-256 of all that decides the features."""
    options = spec.features
    facts = {
        "version": VERSION,
        "trunk": spec.trunk.name,
        "shape": feature_shape(network),
        "image_size": spec.image_size,
        "resize": spec.resize,
        "records": str(prepared.folder.parent.name),
        "views": options.views,
        "dtype": options.dtype,
        "computed_in": [spec.precision, keras.backend.backend()],
    }
    if options.views:
        augment = [task.augment.model_dump(mode="json") for task in spec.tasks]
        facts |= {"seed": spec.seed, "augment": augment, "tasks": spec.task_names}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for weight in parts(network)[0].get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def cache_features(
    network: keras.Model, prepared: Prepared, spec: DataSpec, *, tell: Callable[[str], None]
) -> Features:
    """Run the trunk over the training and selection pictures, or find that it was done.

    Args:
        network: its trunk is used, in inference mode.
        prepared: the records that are read.
        spec: the options of `features`, image size, seed, augmentation.
        tell: shows a line.

    Raises:
        InputError: a value does not fit float16.
        DiskError: there is no room for them; what is computed is kept, to go on with.
    """
    table, options = prepared.table, spec.features
    above = prepared.folder.parents[2] / "features"
    folder = above / f"{spec.trunk.name}-{fingerprint(network, prepared, spec)[:12]}"
    shape, views = feature_shape(network), 1 + options.views
    counts = {
        TRAIN: views * len(table.rows(TRAIN)),
        SELECTION: len(table.rows(SELECTION)),
    }
    above.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is computing these features ({folder}); waiting for it …"
    with locked(above / f".{folder.name}.lock", lambda: tell(waiting)):
        if not (folder / WHOLE).is_file():
            with writing(above):
                _compute(network, prepared, spec, folder, shape, counts, tell)
    arrays = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in counts}
    tell(f"Features of the frozen trunk: {folder}")
    labels = table.labels[table.rows(TRAIN)]
    synthetic, more = oversample(arrays[TRAIN], labels, spec, tell=tell)
    return Features(
        arrays[TRAIN],
        arrays[SELECTION],
        views,
        np.concatenate([labels, more]),
        table.labels[table.rows(SELECTION)],
        synthetic,
        table.tasks,
    )


def _begun(folder: Path, nothing: dict[str, int]) -> dict[str, int]:
    """How many rows of each split are computed; `nothing` where the file is something else."""
    try:
        read = read_json(folder / BEGUN)
        found = {split: int(read[split]) for split in nothing}
    except (ValueError, KeyError, TypeError, OverflowError):
        return nothing
    return found if min(found.values()) >= 0 else nothing


def _compute(
    network: keras.Model,
    prepared: Prepared,
    spec: DataSpec,
    folder: Path,
    shape: tuple[int, ...],
    counts: dict[str, int],
    tell: Callable[[str], None],
) -> None:
    dtype = np.dtype(spec.features.dtype)
    needed = sum(counts.values()) * int(np.prod(shape)) * dtype.itemsize
    done, begun = dict.fromkeys(counts, 0), (folder / BEGUN).is_file()
    if begun:
        done = _begun(folder, done)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        check_room(folder.parent, needed, what="features", again=OR_ELSE)
        folder.mkdir()
    try:
        for split, count in counts.items():
            path = folder / f"{split}.npy"
            if not begun:
                np.lib.format.open_memmap(path, "w+", dtype, (count, *shape)).flush()
            reserve(path, again=OR_ELSE)
    except OSError:
        if not begun:  # it is empty, but takes the room
            shutil.rmtree(folder, ignore_errors=True)
        raise
    what = "×".join(map(str, shape))
    tell(
        f"Computing the frozen trunk's features, {what} {dtype.name} a picture: "
        f"{sum(counts.values()):,} in all, {size_text(needed)} in {folder}"
    )
    extract = _extractor(network, shape)
    rows = len(prepared.table.rows(TRAIN))
    with tqdm(
        total=sum(counts.values()),
        initial=sum(done.values()),
        desc="features",
        unit=" pictures",
        leave=False,
        disable=None,
    ) as bar:
        for split, count in counts.items():
            target = np.lib.format.open_memmap(folder / f"{split}.npy", "r+")
            noted = time.monotonic()
            while done[split] < count:
                view, first = divmod(done[split], rows) if split == TRAIN else (0, done[split])
                batches = view_dataset(
                    prepared,
                    spec,
                    split=split,
                    batch_size=BATCH,
                    view=view,
                    rows=np.arange(first, len(prepared.table.rows(split))),
                )
                for images in batches:
                    batch = extract(images)
                    stored = batch.astype(dtype)
                    if not np.isfinite(stored).all():
                        raise InputError(
                            f"--feature_dtype: {dtype.name}: features of up to "
                            f"{np.abs(batch).max():.3g} do not fit; give --feature_dtype=float32"
                        )
                    target[done[split] : done[split] + len(batch)] = stored
                    done[split] += len(batch)
                    bar.update(len(batch))
                    if time.monotonic() - noted > NOTE_EVERY_S:
                        target.flush()
                        write_json(folder / BEGUN, done)
                        noted = time.monotonic()
            target.flush()
            write_json(folder / BEGUN, done)
    write_json(
        folder / WHOLE,
        {"trunk": spec.trunk.name, "image_size": spec.image_size, "shape": shape} | counts,
    )


def _extractor(network: keras.Model, shape: tuple[int, ...]) -> Callable:
    """Images -> features, as a compiled function."""
    trunk = local_copy(parts(network)[0])
    features = trunk.outputs[0]
    if len(shape) == 1:
        features = keras.layers.GlobalAveragePooling2D()(features)
    model = keras.Model(trunk.inputs[0], features)
    model.compile(jit_compile=jit_compile())
    return lambda images: model.predict_on_batch(np.asarray(images))


def file_features(network: keras.Model, names: list[str], spec: DataSpec) -> np.ndarray:
    """What the trunk gives for picture files, such as the exam's, which are in no records.

    Args:
        network: its trunk is used, in inference mode.
        names: of the files, all of them readable.
        spec: image size, resizing and the type.

    Returns:
        [n, …], as the cache holds them.
    """
    extract = _extractor(network, feature_shape(network))
    batches = readable_pictures(names, size_px=spec.image_size, how=spec.resize, batch_size=BATCH)
    found = [extract(images) for _, images in batches]
    return np.concatenate(found).astype(spec.features.dtype)


# === SMOTE ===


def oversample(
    features: np.ndarray,
    labels: np.ndarray,
    spec: DataSpec,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic examples of rare classes (SMOTE, Chawla et al. 2002), task by task.

    A class with fewer examples than `features.smote` times the commonest class's is filled up to
    that. A synthetic example lies between two real ones of its class. It has a label of that
    task alone: what another task would say of it nobody knows.

    Args:
        features: [rows or more, …]; the plain view comes first. A map is taken as one vector.
        labels: int32 [rows, tasks].
        spec: its `features.smote` and seed.
        tell: shows a line.

    Returns:
        float32 [synthetic, …] and int32 [synthetic, tasks].
    """
    made, of = [np.empty((0, *features.shape[1:]), np.float32)], [labels[:0]]
    if spec.features.smote:
        SMOTE = _smote()
        for task, name in enumerate(spec.task_names):
            known = np.flatnonzero(labels[:, task] != MISSING)
            counts = np.bincount(labels[known, task])
            wanted = smote_counts(counts, spec.features.smote)
            for label, extra in wanted.items():
                rows = known[labels[known, task] == label]
                other = known[labels[known, task] != label][:1]  # it insists on two classes
                x = features[np.concatenate([rows, other])].astype(np.float32)
                x = x.reshape(len(x), -1)
                y = np.r_[np.ones(len(rows), int), 0]
                smote = SMOTE(
                    sampling_strategy={1: len(rows) + extra},
                    k_neighbors=min(NEIGHBOURS, len(rows) - 1),
                    random_state=spec.seed,
                )
                new = smote.fit_resample(x, y)[0][len(x) :]
                made.append(new.astype(np.float32).reshape(extra, *features.shape[1:]))
                of.append(np.full((extra, labels.shape[1]), MISSING, np.int32))
                of[-1][:, task] = label
            if wanted:
                tell(
                    f"  {name}: SMOTE adds {sum(wanted.values()):,} examples to "
                    f"{len(wanted)} rare classes"
                )
    return np.concatenate(made), np.concatenate(of)


def smote_counts(counts: Iterable[int], share: float) -> dict[int, int]:
    """Class -> how many are to be made; a class with a single example has no neighbour.

    Args:
        counts: examples of each class.
        share: of the commonest class's, what each is filled up to.
    """
    counts = np.asarray(counts)
    target = int(share * counts.max(initial=0))
    return {
        int(label): int(target - counts[label])
        for label in np.flatnonzero((counts > 1) & (counts < target))
    }


def synthetic_rows(table: Table, spec: DataSpec) -> int:
    """How many examples `oversample` makes."""
    if not spec.features.smote:
        return 0
    counts = (np.bincount(table.labels_of(task, TRAIN)) for task in table.tasks)
    return sum(sum(smote_counts(c, spec.features.smote).values()) for c in counts)


def _smote() -> type:
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError:
        raise InputError(f"--smote: needs imbalanced-learn: {install('smote')}") from None
    return SMOTE
