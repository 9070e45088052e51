"""The exported model: `export` and `serving`."""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.data import SMALL, paint_set, spec_of
from benchmarks.memory import peak_mb, predictor_of
from benchmarks.processes import has_timm, last_numbers, timm_command
from benchmarks.timing import ROUNDS, best_in_turns, rate, row

CLASSES = {
    task: tuple(map(str, range(count)))
    for task, count in {"artist": 23, "style": 27, "genre": 10}.items()
}
BATCHES = (1, 16)
SERVED_S = 0.4  # of each way per round; turns are short because a machine's speed varies
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
    """Compare predicting files with the model alone, and peak memory for few and many files.

    The result is the median of the turns, because tf.data's tuning is fast in some turns and slow
    in others.
    """
    import tensorflow as tf

    from multitask.data.pipeline import load_image
    from multitask.serving.predict import find_images, predict_files

    predictor = predictor_of(infer, CLASSES, runtime)
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
        row(
            f"predicting {SMALL[0]}×{SMALL[1]} JPEG files against the model alone, batch 16: "
            f"{runtime}",
            result["files"],
            result["alone"],
            "{:.1f}/s",
        ),
        row(
            f"predicting files: read as they are against tuned by tf.data: {runtime}",
            result["files"],
            result["tuned"],
            "{:.1f}/s",
        ),
        row(
            f"peak memory of predicting {MANY:,} files against {FEW:,}",
            many,
            few,
            "{:,.0f} MB",
        ),
    ]


def untrained_network():
    """Spec and network of wikiart.toml, with random weights."""
    from multitask.model.network import build_network
    from multitask.spec import parse_spec

    raw = spec_of().to_dict()
    raw["trunk"]["weights"] = "none"
    spec = parse_spec(raw, source="benchmark")
    return spec, build_network(spec, CLASSES)


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


def measure_export(values: flags.FlagValues) -> list[dict]:
    """Compare a SavedModel whose signatures share one network with one network per signature."""
    import tensorflow as tf

    from multitask.serving import signatures

    network = untrained_network()[1]

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
        row(
            f"SavedModel of wikiart.toml, {key}: a network for all signatures / one each",
            min(fast),
            min(taken["one each"][key]),
            "{:.1f}",
            of_times=True,
        )
        for key, fast in taken["shared"].items()
    ]


def measure_serving(values: flags.FlagValues) -> list[dict]:
    """Measure images per second of one model in each runtime, and the cost of the tasks."""
    from multitask.model.network import connect, trunk_and_heads
    from multitask.runtimes.libraries import RUNTIMES

    spec, model = untrained_network()
    trunk, heads = trunk_and_heads(model)
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:

        def artifact(network, name: str, of: str) -> Path:
            return write_export(network, name, Path(scratch) / of)

        written = {name: artifact(model, name, "all") for name in ("savedmodel", "onnx", "litert")}
        loaders = {
            name: functools.partial(runtime.load, written[runtime.format])
            for name, runtime in RUNTIMES.items()
            if runtime.installed
        }
        ways = keras_ways(model) | {RUNTIMES[name].title: load() for name, load in loaders.items()}
        best = best_of_ways(ways, values.timm_python)
        what = f"{spec.trunk.name}, {spec.image_size} px, {len(CLASSES)} tasks"
        chosen = RUNTIMES[chosen_runtime(loaders, spec.image_size, scratch)]
        alone = {
            task: chosen.load(artifact(connect(trunk, {task: heads[task]}), chosen.format, task))
            for task in CLASSES
        }
        together = ways[chosen.title]
        return [
            *runtime_rows(best, what, chosen.title),
            *task_rows(together, alone, chosen.title),
            *measure_predicting(Path(scratch), together, chosen.title),
        ]


def keras_ways(model) -> dict[str, Callable]:
    import tensorflow as tf

    from multitask.evaluation.examiner import compiled

    infer = compiled(model)
    return {
        "model.predict": lambda image: model.predict(image, verbose=0),
        "tf.function": lambda image: infer(tf.constant(image)),
    }


def best_of_ways(ways: dict[str, Callable], python: str | None) -> dict[tuple[str, int], float]:
    """(way, batch) -> images per second, best of the rounds; includes timm if it is installed."""
    best: dict[tuple[str, int], float] = {}
    timm = has_timm(python)
    for number in tqdm(range(SERVING_ROUNDS), desc="rounds"):
        rates = {
            (name, batch): served(way, batch) for name, way in ways.items() for batch in BATCHES
        }
        if timm and number % TIMM_EVERY == 0:
            by_timm = last_numbers(timm_command(python, TIMM, str(SERVED_S)), len(BATCHES))
            rates |= {
                ("timm, PyTorch", batch): result
                for batch, result in zip(BATCHES, by_timm, strict=True)
            }
        best |= {key: max(best.get(key, 0), result) for key, result in rates.items()}
    return best


def chosen_runtime(loaders: dict[str, Callable], size_px: int, scratch: str) -> str:
    """The runtime that --runtime=auto chooses, without the choices saved on this machine."""
    from multitask.runtimes.choice import fastest_runtime

    with mock.patch("platformdirs.user_cache_dir", return_value=f"{scratch}/cache"):
        return fastest_runtime(loaders, size_px=size_px, batch=16, identity="benchmark")


def runtime_rows(best: dict[tuple[str, int], float], what: str, chosen: str) -> list[dict]:
    rows = [
        row(
            f"{what}, batch {batch}: {name} against model.predict",
            result,
            best["model.predict", batch],
            "{:.1f}/s",
        )
        for (name, batch), result in best.items()
    ]
    for batch in BATCHES:
        first = max(result for (_, size), result in best.items() if size == batch)
        name = f"what --runtime=auto takes, {chosen}, against the fastest of all, batch {batch}"
        rows.append(row(name, best[chosen, batch], first, "{:.1f}/s"))
    return rows


def task_rows(together: Callable, alone: dict[str, Callable], runtime: str) -> list[dict]:
    """Compare the time per image for all tasks with that of one task, and of three models."""
    rows = []
    for batch in BATCHES:
        ways = {"all": together, **alone}
        result = best_in_turns(
            {name: functools.partial(served, way, batch) for name, way in ways.items()},
            SERVING_ROUNDS,
        )
        single = {f"{task} alone": 1 / result[task] for task in alone}
        for what, plain in {**single, "three models": sum(single.values())}.items():
            name = f"all tasks together against {what}, an image, batch {batch}: {runtime}"
            rows.append(row(name, 1000 / result["all"], 1000 * plain, "{:.1f} ms"))
    return rows


def served(infer: Callable, batch: int) -> float:
    """Images per second of the best call."""
    from multitask.runtimes.libraries import speed

    image = np.random.default_rng(0).uniform(0, 255, (batch, 224, 224, 3)).astype(np.float32)
    return speed(infer, image, seconds=SERVED_S)
