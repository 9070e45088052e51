"""Chooses the fastest runtime: measured once for each machine and model, then cached.

The fastest one depends on the processor, the model and the batch size. The choice is cached in the
user's cache folder, so that the same command uses the same runtime again and gives the same digits.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from multitask.console import progress_bar
from multitask.files import read_json, silent, write_json
from multitask.runtimes.libraries import RUNTIMES, speed

logger = logging.getLogger(__name__)

Run = Callable[[np.ndarray], Any]  # of a batch of images

ROUNDS, TURN_S = 5, 0.2  # short turns, as the speed of a machine varies
NEAR = 0.95  # share of the fastest rate; smaller differences are noise


def fastest_runtime(
    loaders: Mapping[str, Callable[[], Run]],
    *,
    size_px: int,
    batch: int,
    identity: str,
) -> str:
    """Return the runtime with the highest rate of images.

    Args:
        loaders: name of a runtime in RUNTIMES -> loads the model in it; at least one.
        size_px: side of an image.
        batch: images in a batch.
        identity: identity of the model.

    Returns:
        The first in the order of `loaders` that is within 5 % of the fastest.
    """
    if len(loaders) == 1:
        return next(iter(loaders))
    key = {
        "machine": platform.node(),
        "cores": os.cpu_count(),
        "model": identity,
        "batch": batch,
        "runtimes": [_described(name) for name in loaders],
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    file = Path(platformdirs.user_cache_dir("multitask")) / "runtimes" / f"{digest[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        chosen = read_json(file)["chosen"]
        if chosen in loaders:
            return chosen
    rates = _rates(loaders, size_px=size_px, batch=batch)
    if not any(rates.values()):  # the caller gets the error when it loads the first one
        return next(iter(loaders))
    chosen = next(name for name in loaders if rates[name] >= NEAR * max(rates.values()))
    summary = ", ".join(f"{RUNTIMES[name].title} {rate:.0f}" for name, rate in rates.items())
    logger.info(f"Images per second on this machine, measured once: {summary}")
    with contextlib.suppress(OSError):  # without a cache the next command measures again
        write_json(file, {**key, "images_per_second": rates, "chosen": chosen})
    return chosen


def _described(name: str) -> str:
    try:
        return RUNTIMES[name].described
    except Exception:  # partly installed; `_rates` logs the reason
        return f"{RUNTIMES[name].title}, which cannot be imported"


def _rates(
    loaders: Mapping[str, Callable[[], Run]], *, size_px: int, batch: int
) -> dict[str, float]:
    """Measure each runtime's images per second, the best of several turns; 0 if it cannot run."""
    images = np.random.default_rng(0).uniform(0, 255, (batch, size_px, size_px, 3))
    images = images.astype(np.float32)
    rates = dict.fromkeys(loaders, 0.0)
    loaded: dict[str, Run] = {}
    with progress_bar("runtimes", len(loaders) * (1 + ROUNDS), unit=" turns") as bar:
        for name, load in loaders.items():
            try:
                with silent():
                    loaded[name] = load()
                    loaded[name](images)
            except Exception as error:  # each library raises other types
                loaded.pop(name, None)
                reason = str(error).strip().split("\n")[0]
                logger.info(f"{RUNTIMES[name].title} cannot run the model: {reason}")
            bar.update()
        for _ in range(ROUNDS):
            for name, infer in loaded.items():
                rates[name] = max(rates[name], speed(infer, images, seconds=TURN_S))
                bar.update()
    return rates
