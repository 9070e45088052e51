"""Which runtime is the fastest here: measured once a machine and model, and remembered.

Which one it is depends on the processor, the model and the batch. What was measured lies in the
user's cache folder, so that the same command takes the same runtime again, to the last digit.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import platformdirs
from tqdm import tqdm

from multitask.files import read_json, silent, write_json
from multitask.serving.runtimes import RUNTIMES, speed

ROUNDS, TURN_S = 5, 0.2  # short turns, as a machine gets faster and slower
NEAR = 0.95  # of the fastest: what is nearer is noise, and the first in the order is taken


def fastest(
    artifacts: Mapping[str, Path],
    *,
    size_px: int,
    batch: int,
    identity: str,
    tell: Callable[[str], None],
) -> str:
    """The runtime that answers the most pictures a second.

    Args:
        artifacts: runtime, of RUNTIMES -> the artifact that it would run; at least one.
        size_px: of a picture's side.
        batch: pictures at a time.
        identity: of the model.
        tell: shows a line, where it has to be measured.

    Returns:
        The first in the order of `artifacts` that is within 5 % of the fastest.
    """
    if len(artifacts) == 1:
        return next(iter(artifacts))
    known = {
        "machine": platform.node(),
        "cores": os.cpu_count(),
        "model": identity,
        "batch": batch,
        "runtimes": [_described(name) for name in artifacts],
    }
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    file = Path(platformdirs.user_cache_dir("multitask")) / "runtimes" / f"{digest[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        chosen = read_json(file)["chosen"]
        if chosen in artifacts:
            return chosen
    rates = _rates(artifacts, size_px=size_px, batch=batch, tell=tell)
    if not any(rates.values()):  # whoever loads the first says why
        return next(iter(artifacts))
    chosen = next(name for name in artifacts if rates[name] >= NEAR * max(rates.values()))
    told = ", ".join(f"{RUNTIMES[name].title} {rate:.0f}" for name, rate in rates.items())
    tell(f"Pictures a second on this machine, measured once: {told}")
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next one seconds
        write_json(file, {**known, "pictures_per_second": rates, "chosen": chosen})
    return chosen


def _described(name: str) -> str:
    try:
        return RUNTIMES[name].described
    except Exception:  # half installed; `_rates` says of what
        return f"{RUNTIMES[name].title}, which cannot be imported"


def _rates(
    artifacts: Mapping[str, Path], *, size_px: int, batch: int, tell: Callable[[str], None]
) -> dict[str, float]:
    """Pictures a second by runtime, the best of some turns; 0 where it cannot run."""
    images = np.random.default_rng(0).uniform(0, 255, (batch, size_px, size_px, 3))
    images = images.astype(np.float32)
    rates, loaded = dict.fromkeys(artifacts, 0.0), {}
    with tqdm(
        total=len(artifacts) * (1 + ROUNDS), desc="runtimes", leave=False, disable=None
    ) as bar:
        for name, path in artifacts.items():
            try:
                with silent():
                    loaded[name] = RUNTIMES[name].load(path)
                    loaded[name](images)
            except Exception as error:  # each raises kinds of its own, and another may do
                loaded.pop(name, None)
                reason = str(error).strip().split("\n")[0]
                tell(f"{RUNTIMES[name].title} cannot run {path.name}: {reason}")
            bar.update()
        for _ in range(ROUNDS):
            for name, infer in loaded.items():
                rates[name] = max(rates[name], speed(infer, images, seconds=TURN_S))
                bar.update()
    return rates
