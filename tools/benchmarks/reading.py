"""Reading images: `input`, and the first batch of records: `start`."""

import functools
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from benchmarks.data import ORIGINAL, SMALL, paint_set, painted, spec_of
from benchmarks.memory import peak_mb
from benchmarks.timing import ROUNDS, best_in_turns, rate, row

IMAGES = "{:,.0f}/s"
FEW, FEW_CALLS = 16, 10


# === input ===


def load_by_pillow(name: str) -> np.ndarray:
    with Image.open(name) as image:
        small = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32)


def pillow_rate(names: list[str], workers: int) -> float:
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        batches = pool.imap(load_by_pillow, names, chunksize=4)
        return rate(([[image]] for image in batches), len(names))


def measure_rates(folder: Path, originals: int) -> list[dict]:
    from multitask.data.pipeline import (
        evaluation_dataset,
        file_names,
        readable_images,
        training_dataset,
    )
    from multitask.data.records import prepare
    from multitask.data.table import TRAIN

    spec = spec_of()
    # Warm up first: one-time costs are not part of the speed.
    prepare(spec, paint_set(folder / "few", count=8, size=ORIGINAL, distinct=8))
    data = paint_set(folder / "originals", count=originals, size=ORIGINAL, distinct=48)
    start = time.perf_counter()
    prepared = prepare(spec, data)
    prepare_rate = originals / (time.perf_counter() - start)
    names = file_names(prepared.table, prepared.table.rows(TRAIN), data / spec.images)
    workers = os.cpu_count() or 1

    def from_files() -> float:
        batches = readable_images(names, size_px=224, how="squash", batch_size=32)
        return rate(((images,) for _, images in batches), len(names))

    def from_records() -> float:
        return rate(evaluation_dataset(prepared, spec, split=TRAIN).repeat(), 10 * len(names))

    ways = {
        "records": from_records,
        "tf.data from the originals": from_files,
        f"Pillow, {workers} processes": lambda: pillow_rate(names[: len(names) // 2], workers),
        "augmented": lambda: rate(training_dataset(prepared, spec), 10 * len(names)),
    }
    rates = best_in_turns(ways)
    records, augmented = rates.pop("records"), rates.pop("augmented")
    rows = [
        row(
            f"1500×2000 originals to 224 px: prepared records against {name}",
            records,
            plain,
            IMAGES,
        )
        for name, plain in rates.items()
    ]
    plain = rates["tf.data from the originals"]
    return [
        *rows,
        row(
            "augmented batches at 224 px from records, against originals unaugmented",
            augmented,
            plain,
            IMAGES,
        ),
        row("preparing, against one epoch from the originals", prepare_rate, plain, IMAGES),
    ]


def measure_reading(folder: Path, count: int = 20_000) -> list[dict]:
    """Measure the cost of checking that a descriptor is a regular file's before reading it."""
    import tensorflow as tf

    from multitask.data.image_files import map_files

    image_dir = paint_set(folder / "files", count=count, size=SMALL, distinct=200) / "wikiart"
    names = [str(file) for file in sorted(image_dir.glob("*/*.jpg"))]

    def checked() -> float:
        sizes = (size for _, size in map_files(names, tf.strings.length, target_px=1))
        batches = iter(lambda: list(itertools.islice(sizes, 64)), [])
        return rate(((batch,) for batch in batches), count)

    def by_tensorflow() -> float:
        dataset = tf.data.Dataset.from_tensor_slices(names)
        dataset = dataset.map(lambda name: tf.strings.length(tf.io.read_file(name)), os.cpu_count())
        return rate(((sizes,) for sizes in dataset.batch(64).prefetch(1)), count)

    rates = best_in_turns({"checked": checked, "plain": by_tensorflow})
    what = "reading files through the checked descriptor, against TensorFlow's own read"
    return [row(what, rates["checked"], rates["plain"], IMAGES), measure_few(names[:FEW])]


def measure_few(names: list[str]) -> dict:
    """Measure how long a few images take once others were read before."""
    import tensorflow as tf

    from multitask.data.pipeline import load_image, readable_images

    size = {"size_px": 224, "how": "squash"}

    def calls_per_second(read: Callable[[], Iterable]) -> float:
        start = time.perf_counter()
        for _ in range(FEW_CALLS):
            list(read())
        return FEW_CALLS / (time.perf_counter() - start)

    def by_pipeline() -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(names)
        return dataset.map(functools.partial(load_image, **size), os.cpu_count()).batch(FEW)

    rates = best_in_turns(
        {
            "threads": lambda: calls_per_second(
                lambda: readable_images(names, **size, batch_size=FEW)
            ),
            "pipeline": lambda: calls_per_second(by_pipeline),
        }
    )
    what = f"reading {FEW} images in a call: in threads, against a tf.data pipeline for each call"
    return row(what, rates["threads"], rates["pipeline"], "{:,.1f} calls/s")


def measure_memory(folder: Path, counts: tuple[int, int]) -> list[dict]:
    few, many = (
        paint_set(folder / f"{count}", count=count, size=SMALL, distinct=200) for count in counts
    )
    rows = []
    for what, text in (("prepare", "preparing"), ("read", "reading (an epoch, augmented)")):
        small, large = peak_mb(what, few), peak_mb(what, many)
        name = f"peak memory of {text}: {counts[1]:,} records against {counts[0]:,}"
        rows.append(row(name, large, small, "{:,.0f} MB"))
    return rows


def measure_merging(wikiart: Path) -> list[dict]:
    from multitask.data.merging import merge_tables
    from multitask.spec import load_spec

    spec, seconds, reading = load_spec("wikiart"), [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        table = merge_tables(spec, wikiart)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        for task in spec.tasks:
            for name in (task.train, task.test):
                (wikiart / name).read_text(encoding="utf-8").splitlines()
        reading.append(time.perf_counter() - start)
    what = f"merging the CSVs of {len(table):,} images, against reading their lines"
    return [row(what, min(seconds), min(reading), "{:.2f} s")]


def measure_shuffling(images: int = 57_000, batch: int = 32) -> list[dict]:
    """Measure how well batches are mixed if the images are sorted by style in 27 equal blocks.

    The figure is the share of a batch's most frequent block in the batch, averaged over two epochs.
    """
    import tensorflow as tf

    from multitask.data.order import epoch_order

    def share(order: np.ndarray) -> float:
        blocks = order[: images // batch * batch].reshape(-1, batch) * 27 // images
        return float(np.mean([np.bincount(block).max() / batch for block in blocks]))

    rows = np.arange(images)
    shards = tf.data.Dataset.range(56).shuffle(56, seed=0)
    buffered = shards.interleave(
        lambda shard: tf.data.Dataset.from_tensor_slices(np.array_split(rows, 56)[0]).map(
            lambda index: index + shard * (images // 56)
        ),
        cycle_length=8,
    ).shuffle(1000, seed=0)
    buffered = np.asarray(list(buffered.as_numpy_iterator())) % images
    ours = np.mean([share(epoch_order(images, 0, tf.constant(e)).numpy()) for e in range(2)])
    rng = np.random.default_rng(0)
    fair = np.mean([share(rng.permutation(images)) for _ in range(2)])
    what = (
        "shuffle: share of a batch that is of one block of 27, against a permutation by NumPy "
        f"(a buffer of 1,000 over 8 shards: {share(buffered):.3f})"
    )
    return [row(what, ours, fair, "{:.3f}")]


def measure_input(values: flags.FlagValues) -> list[dict]:
    rows = measure_shuffling()
    if values.wikiart:
        rows += measure_merging(Path(values.wikiart))
    else:
        print("--wikiart is not given: merging the real CSVs is not measured", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        rows += measure_reading(Path(scratch))
        rows += measure_rates(Path(scratch), values.originals)
        rows += measure_memory(Path(scratch), (1000, values.records))
    return rows


# === start ===


def measure_start(values: flags.FlagValues) -> list[dict]:
    """Measure the time until a new pipeline has its first 32 records of wikiart.toml's size."""
    import tensorflow as tf

    from multitask.data.decode import decode_image, resize_image
    from multitask.data.records_builder import decode_record

    rng, side = np.random.default_rng(0), spec_of().reduced_px
    images = [np.asarray(painted(rng, (side, side))) for _ in range(32)]
    records = tf.stack([tf.io.encode_jpeg(image, quality=92) for image in images])

    def first_batch(decode: Callable) -> float:
        def load(record):
            return resize_image(decode(record), size_px=224, how="squash")

        start = time.perf_counter()
        dataset = tf.data.Dataset.from_tensor_slices(records)
        next(iter(dataset.map(load, tf.data.AUTOTUNE, deterministic=True).batch(32)))
        return 1 / (time.perf_counter() - start)

    of_files = functools.partial(decode_image, target_px=side)
    for decode in (decode_record, of_files):  # warm up: one-time costs
        first_batch(decode)
    rates = best_in_turns(
        {
            "fast": lambda: first_batch(decode_record),
            "plain": lambda: first_batch(of_files),
        }
    )
    fast, plain = 1000 / rates["fast"], 1000 / rates["plain"]
    what = "first batch of records: decoding a record / any image"
    return [row(what, fast, plain, "{:.0f} ms", of_times=True)]
