"""How the benchmarks measure: rates, turns, and the rows of the result."""

import time
from collections.abc import Callable, Iterable

ROUNDS = 3


def row(what: str, fast: float, plain: float, form: str, *, of_times: bool = False) -> dict:
    """One line of the result.

    Args:
        what: names both ways, the fast one first.
        fast: the figure of this project's way.
        plain: the figure of the plain way.
        form: how both are written, such as `{:.1f}/s`.
        of_times: whether the figures are times; the ratio (speed-up) is then plain / fast.
    """
    ratio = plain / fast if of_times else fast / plain
    return {"what": what, "fast": form.format(fast), "plain": form.format(plain), "ratio": ratio}


def rate(batches: Iterable, count: int) -> float:
    """Images per second, without the first batch, which includes the start-up."""
    iterator = iter(batches)
    seen = len(next(iterator)[0])
    start, left_out = time.perf_counter(), seen
    for batch in iterator:
        seen += len(batch[0])
        if seen >= count:
            break
    return (seen - left_out) / (time.perf_counter() - start)


def best_in_turns(ways: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Each way's best rate. The ways take turns, so that other load on the machine affects all."""
    result: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            result[name].append(way())
    return {name: max(rates) for name, rates in result.items()}
