"""Measures the speed-ups that this project claims, each as a ratio to the plain way, in one run.

    python tools/benchmark.py input [--wikiart=DIR] [--out=FILE.json]
    python tools/benchmark.py start [--out=FILE.json]
    python tools/benchmark.py frozen [--out=FILE.json]
    python tools/benchmark.py features [--trunk=NAME] [--out=FILE.json]
    python tools/benchmark.py finetune [--trunk=NAME] [--out=FILE.json]
    python tools/benchmark.py step --timm_python=PYTHON [--out=FILE.json]
    python tools/benchmark.py similar [--out=FILE.json]
    python tools/benchmark.py export [--out=FILE.json]
    python tools/benchmark.py serving [--timm_python=PYTHON] [--out=FILE.json]

`input`: reading images. It paints what it reads, into a temporary folder: large originals as a
museum has them, and small ones by the ten thousand (some minutes and 3 GB). Each pair is timed in
turns, several times, and the best of each counts. With --wikiart, the folder with ArtGAN's
wikiart_csv/, the merging of the real CSVs is timed too.

`start`: the time until a new pipeline of records has its first batch.

`frozen`: learning from cached features of the frozen trunk, with the heads of wikiart.toml and with
linear ones, which show the cost without the heads; and AdamW's step in one kernel.

`features`: the frozen trunk's features of records by the fastest library, compared with its forward
pass alone and with TensorFlow.

`finetune`: fine-tuning on cached maps of the frozen blocks, compared with the whole trunk.

`step`: a training step of the trunk and a linear head, compared with timm's in PyTorch.

`similar`: the exact search for the nearest of as many vectors as WikiArt has training images.

`export`: writing and loading a SavedModel whose signatures share one traced network.

`serving`: wikiart.toml's network by every runtime, compared with Keras and timm's PyTorch
efficientnet_b2 (where this Python, or the one of --timm_python, has timm); all tasks compared with
one of them.
"""

import functools
import itertools
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

ORIGINAL = (1500, 2000)  # width, height
SMALL = (260, 330)
STYLES = 8
ROUNDS = 3


# === What is read ===


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
    """`count` files in ArtGAN's layout (links to `distinct` images), all of them trained on."""
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
    return parse_spec(raw, source="benchmark")


# === Timing ===


def rate(batches: Iterable, count: int) -> float:
    """Images a second, without the first batch, in which things start."""
    iterator = iter(batches)
    seen = len(next(iterator)[0])
    start, left_out = time.perf_counter(), seen
    for batch in iterator:
        seen += len(batch[0])
        if seen >= count:
            break
    return (seen - left_out) / (time.perf_counter() - start)


def best_in_turns(ways: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Each way's best rate; they take turns, so that what else the machine does hits all."""
    result: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            result[name].append(way())
    return {name: max(rates) for name, rates in result.items()}


def load_by_pillow(name: str) -> np.ndarray:
    with Image.open(name) as image:
        small = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32)


def pillow_rate(names: list[str], workers: int) -> float:
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        batches = pool.imap(load_by_pillow, names, chunksize=4)
        return rate(([[image]] for image in batches), len(names))


# === input ===


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
    # What only the first time takes is no part of the speed.
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
        {
            "what": f"1500×2000 originals to 224 px: prepared records against {name}",
            "fast": f"{records:,.0f}/s",
            "plain": f"{plain:,.0f}/s",
            "ratio": records / plain,
        }
        for name, plain in rates.items()
    ]
    plain = rates["tf.data from the originals"]
    rows.append(
        {
            "what": "augmented batches at 224 px from records, against originals unaugmented",
            "fast": f"{augmented:,.0f}/s",
            "plain": f"{plain:,.0f}/s",
            "ratio": augmented / plain,
        }
    )
    rows.append(
        {
            "what": "preparing, against one epoch from the originals",
            "fast": f"{prepare_rate:,.0f}/s",
            "plain": f"{plain:,.0f}/s",
            "ratio": prepare_rate / plain,
        }
    )
    return rows


def measure_reading(folder: Path, count: int = 20_000) -> list[dict]:
    """What it costs to read through a descriptor that is known to be a regular file's."""
    import tensorflow as tf

    from multitask.data.image_files import map_files

    image_dir = paint_set(folder / "files", count=count, size=SMALL, distinct=200) / "wikiart"
    names = [str(file) for file in sorted(image_dir.glob("*/*.jpg"))]

    def read_rate(dataset: tf.data.Dataset) -> float:
        return rate(((sizes,) for sizes in dataset.batch(64).prefetch(1)), count)

    def checked() -> float:
        return read_rate(map_files(names, tf.strings.length, target_px=1).map(lambda _, size: size))

    def by_tensorflow() -> float:
        dataset = tf.data.Dataset.from_tensor_slices(names)
        return read_rate(
            dataset.map(lambda name: tf.strings.length(tf.io.read_file(name)), os.cpu_count())
        )

    rates = best_in_turns({"checked": checked, "plain": by_tensorflow})
    return [
        {
            "what": "reading files through the checked descriptor, against TensorFlow's own read",
            "fast": f"{rates['checked']:,.0f}/s",
            "plain": f"{rates['plain']:,.0f}/s",
            "ratio": rates["checked"] / rates["plain"],
        }
    ]


def child(what: str, folder: Path) -> None:
    """Do one piece of work in a process of its own, and print the peak of its memory in MB.

    The work: prepare a data set, read its records, or predict its images with a model that
    computes their mean.
    """
    if what == "predict":
        predict_all(folder)
    else:
        prepare_and_read(what, folder)
    # Not getrusage, whose peak is that of the parent where that was larger.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024)


def predict_all(folder: Path) -> None:
    from multitask.calibration import Calibration
    from multitask.serving.answers import answer
    from multitask.serving.predict import find_images, predict_files
    from multitask.serving.prediction_files import PredictionFile
    from multitask.serving.predictor import Predictor

    classes = {"colour": ("red", "green", "blue")}
    predictor = Predictor(
        classes,
        lambda image: {"colour_logits": image.mean(axis=(1, 2))},
        "the mean",
        {"colour": Calibration()},
        224,
        "squash",
        258,
        True,
        "",
    )
    files = find_images([str(folder / "wikiart")])
    (folder / "answers.parquet.partial").unlink(missing_ok=True)
    answers = PredictionFile(folder / "answers.parquet", {}, classes, resume=False)
    for file, message in predict_files(predictor, files, batch_size=16):
        answers.add(file, {t: answer(p, classes[t], min_confidence=0) for t, p in message.items()})
    answers.finish()


def prepare_and_read(what: str, folder: Path) -> None:
    from multitask.data.pipeline import training_dataset
    from multitask.data.records import prepare
    from multitask.data.table import TRAIN

    spec = spec_of()
    prepared = prepare(spec, folder)
    if what == "read":
        count = len(prepared.table.rows(TRAIN))
        for _ in training_dataset(prepared, spec).take(count // spec.batch_size):
            pass


def peak_mb(what: str, folder: Path) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "child", what, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def measure_memory(folder: Path, counts: tuple[int, int]) -> list[dict]:
    few, many = (
        paint_set(folder / f"{count}", count=count, size=SMALL, distinct=200) for count in counts
    )
    rows = []
    for what, text in (("prepare", "preparing"), ("read", "reading (an epoch, augmented)")):
        small, large = peak_mb(what, few), peak_mb(what, many)
        rows.append(
            {
                "what": f"peak memory of {text}: {counts[1]:,} records against {counts[0]:,}",
                "fast": f"{large:,.0f} MB",
                "plain": f"{small:,.0f} MB",
                "ratio": large / small,
            }
        )
    return rows


def measure_merging(wikiart: Path) -> list[dict]:
    from multitask.data.table import merge_tables
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
    return [
        {
            "what": f"merging the CSVs of {len(table):,} images, against reading their lines",
            "fast": f"{min(seconds):.2f} s",
            "plain": f"{min(reading):.2f} s",
            "ratio": min(seconds) / min(reading),
        }
    ]


def measure_shuffling(images: int = 57_000, batch: int = 32) -> list[dict]:
    """How mixed batches are, of images that lie sorted by style in 27 equal blocks.

    The figure is the share of a batch that its most frequent block has, averaged over two epochs.
    """
    import tensorflow as tf

    from multitask.data.order import epoch_order

    def share(order: np.ndarray) -> float:
        blocks = order[: images // batch * batch].reshape(-1, batch) * 27 // images
        return float(np.mean([np.bincount(row).max() / batch for row in blocks]))

    rows = np.arange(images)
    shards = tf.data.Dataset.range(56).shuffle(56, seed=0)
    buffered = shards.interleave(
        lambda shard: tf.data.Dataset.from_tensor_slices(np.array_split(rows, 56)[0]).map(
            lambda row: row + shard * (images // 56)
        ),
        cycle_length=8,
    ).shuffle(1000, seed=0)
    buffered = np.asarray(list(buffered.as_numpy_iterator())) % images
    ours = np.mean([share(epoch_order(images, 0, tf.constant(e)).numpy()) for e in range(2)])
    rng = np.random.default_rng(0)
    fair = np.mean([share(rng.permutation(images)) for _ in range(2)])
    return [
        {
            "what": "shuffle: share of a batch that is of one block of 27, against a "
            f"permutation by NumPy (a buffer of 1,000 over 8 shards: {share(buffered):.3f})",
            "fast": f"{ours:.3f}",
            "plain": f"{fair:.3f}",
            "ratio": ours / fair,
        }
    ]


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
    """Seconds until a new pipeline has its first batch of 32 records of wikiart.toml's size."""
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
    for decode in (decode_record, of_files):  # what only the first time takes
        first_batch(decode)
    rates = best_in_turns(
        {
            "fast": lambda: first_batch(decode_record),
            "plain": lambda: first_batch(of_files),
        }
    )
    return [
        {
            "what": "first batch of records: decoding a record / any image, ms",
            **{name: round(1000 / rate) for name, rate in rates.items()},
            "ratio": rates["fast"] / rates["plain"],
        }
    ]


# === frozen ===

REAL_SIZE = 53_935  # training images of WikiArt, less the validation split


class StepTimes(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def seconds_a_step(model, batches: Iterable, steps: int) -> float:
    """The median, without the first two steps, which compile."""
    times = StepTimes()
    model.fit(batches, steps_per_epoch=steps + 2, callbacks=[times], verbose=0)
    return float(np.median(np.diff(times.ends)[1:]))


def phase_maker(network, spec, phase: str, classes, steps: int) -> Callable:
    """A function that prepares a phase, with class weights of 1."""
    from multitask.learning.phases import prepare_phase

    weights = {task: np.ones(len(names), np.float32) for task, names in classes.items()}
    options = {"class_weights": weights, "steps_per_epoch": steps}
    return functools.partial(prepare_phase, network, spec, phase, **options)


def measure_frozen(values: flags.FlagValues) -> list[dict]:
    """An epoch of phase `heads`, on cached features and not, at the size of WikiArt."""
    from multitask.spec import parse_spec

    raw = spec_of().to_dict()
    raw["trunk"]["weights"] = "none"
    linear = [task | {"head": {"kind": "linear"}} for task in raw["task"]]
    rows = []
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        data = paint_set(Path(scratch), count=2048, size=SMALL, distinct=64)
        for heads, tasks in (("wikiart's heads", raw["task"]), ("linear heads", linear)):
            spec = parse_spec(raw | {"task": tasks}, source="benchmark")
            rows += measure_heads(spec, data, heads)
    return rows


def measure_heads(spec, data: Path, heads: str) -> list[dict]:
    from multitask.data.pipeline import training_dataset
    from multitask.data.records import prepare
    from multitask.learning import optimizers
    from multitask.learning.features import Features, cache_features
    from multitask.model.network import build_network
    from multitask.spec import override

    steps = -(-REAL_SIZE // spec.batch_size)
    prepared = prepare(spec, data)
    classes = prepared.table.classes
    network = build_network(spec, classes)
    phase_model = phase_maker(network, spec, "heads", classes, steps)

    def computed(these) -> tuple[Features, int, float]:
        start = time.perf_counter()
        features = cache_features(network, these, spec)
        images = len(features.train) + len(features.validation)
        return features, images, time.perf_counter() - start

    # The second time less the first, as the trunk is compiled once, for however many images.
    part = override(spec, {"task.subset": 0.1})
    _, fewer, compiling = computed(prepare(part, data))
    few, images, seconds = computed(prepared)
    first = REAL_SIZE * (seconds - compiling) / (images - fewer)
    rng = np.random.default_rng(0)
    shape = (REAL_SIZE, *few.train.shape[1:])
    many = np.lib.format.open_memmap(data / "features.npy", "w+", few.train.dtype, shape)
    many[:] = few.train[rng.integers(len(few.train), size=REAL_SIZE)]
    labels = rng.integers(0, STYLES, (REAL_SIZE, len(spec.tasks))).astype(np.int32)
    real = Features(many, many[:0], 1, labels, labels[:0], np.empty((0, *shape[1:])), few.tasks)

    def cached_step() -> float:
        return seconds_a_step(phase_model(cached=True).model, real.training_dataset(spec), 200)

    def unfused_step() -> float:
        with mock.patch.object(optimizers, "_has_fused_kernel", return_value=False):
            return cached_step()

    fused, unfused = np.min([(cached_step(), unfused_step()) for _ in range(2)], axis=0)
    cached = steps * fused
    plain = steps * seconds_a_step(phase_model().model, training_dataset(prepared, spec), 12)
    return [
        {
            "what": f"an epoch of phase heads, {REAL_SIZE:,} images, {heads}: on cached "
            "features against through the trunk",
            "fast": f"{cached:,.0f} s",
            "plain": f"{plain:,.0f} s",
            "ratio": plain / cached,
        },
        {
            "what": "  computing the features once, against such an epoch (they pay from "
            f"epoch {first / (plain - cached):.2f} on)",
            "fast": f"{first:,.0f} s",
            "plain": f"{plain:,.0f} s",
            "ratio": plain / first,
        },
        {
            "what": "  a step on cached features: AdamW in one kernel a variable, against Keras' "
            "operations",
            "fast": f"{1000 * fused:.1f} ms",
            "plain": f"{1000 * unfused:.1f} ms",
            "ratio": unfused / fused,
        },
    ]


# === similar ===

GALLERY = (60_000, 1408)


def measure_similar(values: flags.FlagValues) -> list[dict]:
    """Searching, by scikit-learn and here, for one query and for many at once."""
    from sklearn.neighbors import NearestNeighbors

    from multitask.evaluation.neighbours import nearest, normalised

    rng = np.random.default_rng(0)
    vectors = normalised(rng.standard_normal(GALLERY, np.float32))
    queries = normalised(rng.standard_normal((256, GALLERY[1]), np.float32))
    plain = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(vectors)
    rows = []
    for count, repeats in ((1, 20), (len(queries), 1)):

        def rate_of(search: Callable, count: int = count, repeats: int = repeats) -> float:
            start = time.perf_counter()
            for number in range(repeats):
                search(queries[number : number + count])
            return repeats * count / (time.perf_counter() - start)

        ways = {
            "ours": functools.partial(rate_of, lambda requested: nearest(vectors, requested, 10)),
            "scikit-learn": functools.partial(rate_of, plain.kneighbors),
        }
        result = best_in_turns(ways)
        many = "one query" if count == 1 else f"{count} queries at once"
        rows.append(
            {
                "what": f"10 nearest of {GALLERY[0]:,} × {GALLERY[1]}, {many}, a query: exact "
                "search against scikit-learn's NearestNeighbors",
                "fast": f"{1000 / result['ours']:.1f} ms",
                "plain": f"{1000 / result['scikit-learn']:.1f} ms",
                "ratio": result["ours"] / result["scikit-learn"],
            }
        )
    return rows


SERVED_S = 0.4  # of each way, each round: short turns, as a machine gets faster and slower
SERVING_ROUNDS, TIMM_EVERY = 12, 4
TIMM = """
import sys, time, torch, timm
model = timm.create_model("efficientnet_b2", num_classes=60).eval()
model = model.to(memory_format=torch.channels_last)
for batch in (1, 16):
    x = torch.rand(batch, 3, 224, 224).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        model(x), model(x)
        began, best = time.perf_counter(), 1e9
        while time.perf_counter() - began < float(sys.argv[1]):
            start = time.perf_counter()
            model(x)
            best = min(best, time.perf_counter() - start)
    print(batch / best)
"""


PREDICTED, PREDICT_ROUNDS, FEW, MANY = 960, 5, 1000, 100_000


def measure_predicting(folder: Path, infer: Callable, runtime: str) -> list[dict]:
    """Files in parallel with the model, compared with the model alone; memory by their number.

    The median of the turns, as tf.data's tuning is fast in some of them and slow in others.
    """
    import tensorflow as tf

    from multitask.calibration import Calibration
    from multitask.data.pipeline import load_image
    from multitask.serving.predict import find_images, predict_files
    from multitask.serving.predictor import Predictor

    sizes = {"artist": 23, "style": 27, "genre": 10}
    predictor = Predictor(
        {task: tuple(map(str, range(count))) for task, count in sizes.items()},
        infer,
        runtime,
        dict.fromkeys(sizes, Calibration()),
        224,
        "squash",
        258,
        True,
        "",
    )
    data = paint_set(folder / "files", count=PREDICTED, size=SMALL, distinct=64)
    files = find_images([str(data / "wikiart")])
    images = np.random.default_rng(0).uniform(0, 255, (16, 224, 224, 3)).astype(np.float32)

    def alone() -> float:
        start = time.perf_counter()
        for _ in range(PREDICTED // 16):
            infer(images)
        return PREDICTED / (time.perf_counter() - start)

    def from_files() -> float:
        answers = predict_files(predictor, files, batch_size=16)
        batches = iter(lambda: list(itertools.islice(answers, 16)), [])
        return rate(((batch,) for batch in batches), PREDICTED)

    def tuned_images(names, *, batch_size: int, **size):
        images = tf.data.Dataset.from_tensor_slices(tf.constant(names)).enumerate()
        images = images.map(lambda index, name: (index, load_image(name, **size)), tf.data.AUTOTUNE)
        return images.ignore_errors().batch(batch_size).prefetch(2)

    def from_tuned() -> float:
        with mock.patch("multitask.serving.predict.readable_images", tuned_images):
            return from_files()

    infer(images)
    ways = {"files": from_files, "alone": alone, "tuned": from_tuned}
    turns = {name: [] for name in ways}
    for _ in range(PREDICT_ROUNDS):
        for name, way in ways.items():
            turns[name].append(way())
    result = {name: float(np.median(rates)) for name, rates in turns.items()}
    print(f"predicting by {runtime}, each turn:", turns)
    few, many = (
        peak_mb("predict", paint_set(folder / f"{count}", count=count, size=SMALL, distinct=200))
        for count in (FEW, MANY)
    )
    return [
        {
            "what": f"predicting {SMALL[0]}×{SMALL[1]} JPEG files against the model alone, batch "
            f"16: {runtime}",
            "fast": f"{result['files']:.1f}/s",
            "plain": f"{result['alone']:.1f}/s",
            "ratio": result["files"] / result["alone"],
        },
        {
            "what": f"predicting files: read as they are against tuned by tf.data: {runtime}",
            "fast": f"{result['files']:.1f}/s",
            "plain": f"{result['tuned']:.1f}/s",
            "ratio": result["files"] / result["tuned"],
        },
        {
            "what": f"peak memory of predicting {MANY:,} files against {FEW:,}",
            "fast": f"{many:,.0f} MB",
            "plain": f"{few:,.0f} MB",
            "ratio": many / few,
        },
    ]


def untrained_network():
    """(spec, task -> class names, network) of wikiart.toml with random weights."""
    from multitask.model.network import build_network
    from multitask.spec import parse_spec

    raw = spec_of().to_dict()
    raw["trunk"]["weights"] = "none"
    spec = parse_spec(raw, source="benchmark")
    sizes = {"artist": 23, "style": 27, "genre": 10}
    classes = {task: tuple(map(str, range(count))) for task, count in sizes.items()}
    return spec, classes, build_network(spec, classes)


def write_export(network, name: str, folder: Path) -> Path:
    """Write a network in one format, and return the file or folder."""
    from multitask.calibration import Calibration
    from multitask.serving.formats import FORMATS, Source

    classes = {task: tuple(map(str, range(y.shape[-1]))) for task, y in network.output.items()}
    folder.mkdir(exist_ok=True)
    source = Source(
        name="wikiart",
        model=network,
        classes=classes,
        how="squash",
        reduced_px=round(1.15 * network.input_shape[1]),
        calibrations=dict.fromkeys(classes, Calibration()),
        description={},
        representative=(),
    )
    return folder / FORMATS[name].write(source, folder, "none")


# === export ===


def measure_export(values: flags.FlagValues) -> list[dict]:
    """A SavedModel whose signatures share one network, compared with one network each."""
    import tensorflow as tf

    from multitask.serving import signatures

    _, _, network = untrained_network()

    def inlined(examined):
        return functools.partial(examined, training=False)

    shared = signatures.shared_network
    taken: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        for number in range(ROUNDS):
            for name, function in {"one each": inlined, "shared": shared}.items():
                folder = Path(scratch) / f"{name}-{number}"
                with mock.patch.object(signatures, "shared_network", function):
                    start = time.perf_counter()
                    written = write_export(network, "savedmodel", folder)
                    writing = time.perf_counter() - start
                start = time.perf_counter()
                tf.saved_model.load(str(written))
                loading = time.perf_counter() - start
                size = sum(f.stat().st_size for f in written.rglob("*") if f.is_file()) / 1e6
                of = taken.setdefault(name, {"write, s": [], "load, s": [], "size, MB": []})
                for key, value in zip(of, (writing, loading, size), strict=True):
                    of[key].append(value)
    return [
        {
            "what": f"SavedModel of wikiart.toml, {key}: a network for all signatures / one each",
            "fast": f"{min(fast):.1f}",
            "plain": f"{min(taken['one each'][key]):.1f}",
            "ratio": min(taken["one each"][key]) / min(fast),
        }
        for key, fast in taken["shared"].items()
    ]


# === serving ===


def measure_serving(values: flags.FlagValues) -> list[dict]:
    """Images a second of one model by each runtime; what the tasks cost."""
    import tensorflow as tf

    from multitask.evaluation.examiner import compiled
    from multitask.model.network import connect, trunk_and_heads
    from multitask.runtimes.choice import fastest_runtime
    from multitask.runtimes.libraries import RUNTIMES

    spec, classes, model = untrained_network()
    trunk, heads = trunk_and_heads(model)
    rows = []
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:

        def artifact(network, name: str, of: str) -> Path:
            return write_export(network, name, Path(scratch) / of)

        written = {name: artifact(model, name, "all") for name in ("savedmodel", "onnx", "litert")}
        infer = compiled(model)
        ways = {
            "model.predict": lambda image: model.predict(image, verbose=0),
            "tf.function": lambda image: infer(tf.constant(image)),
            **{
                runtime.title: runtime.load(written[runtime.format])
                for runtime in RUNTIMES.values()
                if runtime.installed
            },
        }
        best: dict[tuple[str, int], float] = {}
        for number in tqdm(range(SERVING_ROUNDS), desc="rounds"):
            for name, way in ways.items():
                for batch in (1, 16):
                    best[name, batch] = max(best.get((name, batch), 0), served(way, batch))
            requested = number % TIMM_EVERY == 0
            by_timm = timm_rates(values.timm_python) if requested else []
            for batch, result in zip((1, 16), by_timm, strict=False):
                best["timm, PyTorch", batch] = max(best.get(("timm, PyTorch", batch), 0), result)
        for (name, batch), result in best.items():
            plain = best["model.predict", batch]
            rows.append(
                {
                    "what": f"{spec.trunk.name}, {spec.image_size} px, {len(classes)} tasks, batch "
                    f"{batch}: {name} against model.predict",
                    "fast": f"{result:.1f}/s",
                    "plain": f"{plain:.1f}/s",
                    "ratio": result / plain,
                }
            )
        with mock.patch("platformdirs.user_cache_dir", return_value=f"{scratch}/cache"):
            chosen = fastest_runtime(
                {
                    name: functools.partial(runtime.load, written[runtime.format])
                    for name, runtime in RUNTIMES.items()
                    if runtime.installed
                },
                size_px=spec.image_size,
                batch=16,
                identity="benchmark",
            )
        chosen = RUNTIMES[chosen]
        for batch in (1, 16):
            taken, first = (
                best[chosen.title, batch],
                max(v for (_, b), v in best.items() if b == batch),
            )
            rows.append(
                {
                    "what": f"what --runtime=auto takes, {chosen.title}, against the fastest of "
                    f"all, batch {batch}",
                    "fast": f"{taken:.1f}/s",
                    "plain": f"{first:.1f}/s",
                    "ratio": taken / first,
                }
            )
        alone = {
            task: chosen.load(artifact(connect(trunk, {task: heads[task]}), chosen.format, task))
            for task in classes
        }
        together = ways[chosen.title]
        for batch in (1, 16):
            result = best_in_turns(
                {
                    name: functools.partial(served, way, batch)
                    for name, way in {"all": together, **alone}.items()
                },
                SERVING_ROUNDS,
            )
            single = {f"{task} alone": 1 / result[task] for task in alone}
            for what, plain in {**single, "three models": sum(single.values())}.items():
                rows.append(
                    {
                        "what": f"all tasks together against {what}, an image, batch {batch}: "
                        f"{chosen.title}",
                        "fast": f"{1000 / result['all']:.1f} ms",
                        "plain": f"{1000 * plain:.1f} ms",
                        "ratio": 1 / result["all"] / plain,
                    }
                )
        rows += measure_predicting(Path(scratch), together, chosen.title)
    return rows


def served(infer: Callable, batch: int) -> float:
    """Images a second, the best call."""
    from multitask.runtimes.libraries import speed

    image = np.random.default_rng(0).uniform(0, 255, (batch, 224, 224, 3)).astype(np.float32)
    return speed(infer, image, seconds=SERVED_S)


def timm_rates(python: str | None) -> list[float]:
    """For batches of 1 and 16; nothing where timm is not installed."""
    argv = [python or sys.executable, "-c", TIMM, str(SERVED_S)]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = result.stderr.strip().split("\n")[-1]
        print(f"timm was not measured: {reason}", file=sys.stderr)
        return []
    return [float(line) for line in result.stdout.split()]


BENCHMARKS = {
    "input": measure_input,
    "start": measure_start,
    "frozen": measure_frozen,
    "similar": measure_similar,
    "export": measure_export,
    "serving": measure_serving,
}


OF_TRUNK = ("features", "finetune", "step")  # of trunk_benchmarks.py
NAMES = (*BENCHMARKS, *OF_TRUNK)


# === Command line ===


def show(rows: list[dict]) -> str:
    width = max(len(row["what"]) for row in rows)
    lines = [f"{'':<{width}}  {'this':>10}  {'plain':>10}  ratio"]
    lines += [
        f"{row['what']:<{width}}  {row['fast']:>10}  {row['plain']:>10}  {row['ratio']:.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    if argv[1:2] == ["child"]:
        child(argv[2], Path(argv[3]))
        return 0
    values = flags.FlagValues()
    to = {"flag_values": values}
    flags.DEFINE_string("out", None, "Write the rows to this JSON file too.", **to)
    flags.DEFINE_string("wikiart", None, "Folder with ArtGAN's wikiart_csv/.", **to)
    flags.DEFINE_string("timm_python", None, "A Python that has timm and PyTorch.", **to)
    trunks = ("efficientnetb2", "efficientnet_lite2")
    flags.DEFINE_enum("trunk", None, trunks, "features, finetune: this trunk alone.", **to)
    flags.DEFINE_string("scratch", None, "Where to paint; default: the system's.", **to)
    flags.DEFINE_integer("originals", 480, "Large images.", lower_bound=96, **to)
    flags.DEFINE_integer("records", 50_000, "Small images.", lower_bound=2000, **to)
    flags.DEFINE_boolean("help", False, "Print this and stop.", **to)
    try:
        names = values(argv)[1:]
        if values.help:
            print(__doc__, values.get_help(), sep="\n")
            return 0
        if len(names) != 1 or names[0] not in NAMES:
            raise flags.Error(f"name one of: {', '.join(NAMES)}; got {names}")
    except flags.Error as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    from trunk_benchmarks import measure_features, measure_finetune, measure_step

    more = dict(zip(OF_TRUNK, (measure_features, measure_finetune, measure_step), strict=True))
    rows = (BENCHMARKS | more)[names[0]](values)
    print(show(rows))
    if values.out:
        import tensorflow as tf

        machine = {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
        }
        text = json.dumps({"machine": machine, "rows": rows}, indent=1, ensure_ascii=False)
        Path(values.out).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
