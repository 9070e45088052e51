"""The search for similar images: `similar`."""

import functools
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from benchmarks.timing import best_in_turns, row

GALLERY = (60_000, 1408)


def measure_similar(values: flags.FlagValues) -> list[dict]:
    """Compare our search with scikit-learn's, for one query and for many queries at once."""
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
        what = (
            f"10 nearest of {GALLERY[0]:,} × {GALLERY[1]}, {many}, a query: exact search against "
            "scikit-learn's NearestNeighbors"
        )
        fast, slow = 1000 / result["ours"], 1000 / result["scikit-learn"]
        rows.append(row(what, fast, slow, "{:.1f} ms", of_times=True))
    return rows
