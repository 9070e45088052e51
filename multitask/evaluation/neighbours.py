"""Similar images: the training images nearest to a query, and how often they have its class.

The distance of two images is 1 minus the cosine of their embeddings.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask import retrieval
from multitask.data.image_files import read_reduced, why_unreadable
from multitask.evaluation.examiner import examiner_of
from multitask.evaluation.gallery import Gallery, embed_all, load_or_build, normalised
from multitask.evaluation.predictions import Predictions
from multitask.files import check_writable
from multitask.pages import image_sheets
from multitask.spec import MISSING, SHARED, InputError, expected, field_of, is_labelled
from multitask.trained import TrainedModel

BLOCK_NUMBERS = 2**24  # similarities held at once
ROUNDING = 1e-5  # bound on the rounding error of a cosine in float32
THUMBNAIL_PX = 400
SHOWN_IMAGES = 25


# === Search ===


def nearest(
    vectors: np.ndarray,
    queries: np.ndarray,
    top_k: int,
    *,
    excluded: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Search the nearest vectors by cosine, exactly.

    Args:
        vectors: float32 [n, width], of length 1.
        queries: float32 [q, width], of length 1.
        top_k: number of neighbours, at least 1; all if there are fewer.
        excluded: for each query, int [any], the rows that are excluded.

    Returns:
        int64 [q, min(top_k, n)], the rows, nearest first, ties in the order of the rows; and
        float32 of the same shape, the distances 1 - cosine in [0, 2]. If all remaining rows are
        excluded, the row is -1 and the distance is infinite.
    """
    count = min(top_k, len(vectors))
    rows = np.full((len(queries), count), -1, np.int64)
    distances = np.full((len(queries), count), np.inf, np.float32)
    block = max(1, BLOCK_NUMBERS // max(1, len(vectors)))
    for start in range(0, len(queries) if count else 0, block):
        for query, cosines in enumerate(queries[start : start + block] @ vectors.T, start):
            allowed = count
            if excluded is not None:
                cosines[excluded[query]] = -np.inf
                allowed = min(count, len(cosines) - len(np.unique(excluded[query])))
            if not allowed:
                continue
            least = np.partition(cosines, len(cosines) - allowed)[len(cosines) - allowed]
            # The rounding of a matrix product depends on a row's place in the matrix. The
            # candidates are compared again one by one, so that equal vectors have equal distances.
            candidates = np.flatnonzero(cosines >= least - ROUNDING)
            exact = _distances(vectors, candidates, queries[query])
            order = np.argsort(exact, kind="stable")[:allowed]
            rows[query, :allowed], distances[query, :allowed] = candidates[order], exact[order]
    return rows, distances


def _distances(vectors: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """1 - cosine, float64 [rows], computed in blocks of rows to save memory."""
    query = query.astype(np.float64)
    blocks = np.split(rows, np.arange(4096, len(rows), 4096))
    cosines = np.concatenate([(vectors[block] * query).sum(axis=1) for block in blocks])
    return np.clip(1 - cosines, 0, 2)


# === Queries ===


@dataclass(frozen=True)
class QueryResult:
    """The neighbours of one query.

    Attributes:
        query: the image's file.
        neighbours: rank (from 1), distance, path and each task's class name, `artist/label`;
            nearest first.
        plot: the PNG that shows them.
    """

    query: Path
    neighbours: pd.DataFrame
    plot: Path


def find_similar(
    trained: TrainedModel,
    queries: Sequence[Path],
    *,
    task: str | None = None,
    top_k: int = 5,
    out: Path | None = None,
) -> list[QueryResult]:
    """Find the training images nearest to each query, and plot them.

    Args:
        trained: the model that embeds the images.
        queries: image files.
        task: the task whose head gives the embedding; None: the embedding of the trunk.
        top_k: number of neighbours, at least 1.
        out: folder of `similar_{query's stem}.png`; None: the run's results.

    Raises:
        InputError: an argument is wrong; nothing is written.
    """
    out = out or trained.run.results
    _check_queries(trained, queries, task)
    check_writable(out, field="out")
    gallery = load_or_build(trained)
    name = task or SHARED
    _, vectors = embed_all(
        examiner_of(trained),
        [str(file) for file in queries],
        trained.spec,
        description="embedding queries",
    )
    results = []
    matches = nearest(gallery.loaded(name), vectors[name], top_k)
    for file, rows, distances in zip(queries, *matches, strict=True):
        neighbours = _neighbour_frame(gallery, rows, distances)
        plot = _plot_neighbours(trained, file, neighbours, out, task)
        results.append(QueryResult(file, neighbours, plot))
    return results


def _check_queries(trained: TrainedModel, queries: Sequence[Path], task: str | None) -> None:
    """Raise InputError if the task or a query is wrong."""
    if task is not None and task not in trained.spec.task_names:
        raise InputError(f'"{task}". {expected(task, trained.spec.task_names)}', field="task")
    for file in queries:
        if reason := why_unreadable(file):
            raise InputError(f"{file}: {reason}", field="query")
    stems = [file.stem for file in queries]
    repeated = [stem for stem in stems if stems.count(stem) > 1]
    if repeated:
        raise InputError(
            f"the plots of two images would both be similar_{repeated[0]}.png; give one of them "
            "at a time",
            field="query",
        )


def _neighbour_frame(gallery: Gallery, rows: np.ndarray, distances: np.ndarray) -> pd.DataFrame:
    """The neighbours of one query, as in `QueryResult`."""
    return pd.DataFrame(
        {
            "rank": rank,
            "distance": distance,
            "path": gallery.paths[row],
            **{field_of(task, "label"): name for task, name in gallery.label_names(row).items()},
        }
        for rank, (row, distance) in enumerate(zip(rows, distances, strict=True), start=1)
    )


def _plot_neighbours(
    trained: TrainedModel, query: Path, neighbours: pd.DataFrame, out: Path, task: str | None
) -> Path:
    shown = neighbours.head(SHOWN_IMAGES)
    captions = [
        "\n".join([f"{row[0]}.  distance {row[1]:.3f}", *row[3:]])
        for row in shown.itertuples(index=False, name=None)
    ]
    return image_sheets.similar(
        out / f"similar_{query.stem}.png",
        read_reduced(query, target_px=THUMBNAIL_PX),
        [read_reduced(trained.image_dir / path, target_px=THUMBNAIL_PX) for path in shown["path"]],
        captions,
        title=query.stem,
        text=f"the nearest training images ({task or 'all tasks'})",
    )


def neighbour_lines(result: QueryResult) -> list[str]:
    """A query's neighbours for the console, aligned."""
    head, *rest = (name.removesuffix("/label") for name in result.neighbours.columns)
    shown = result.neighbours.assign(distance=result.neighbours["distance"].map("{:.4f}".format))
    table = [[head, *rest], *shown.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for rank, distance, *cells in table:
        names = "  ".join(f"{cell:<{w}}" for cell, w in zip(cells, widths[2:], strict=True))
        lines.append(f"  {rank:>{widths[0]}}  {distance:>{widths[1]}}  {names}".rstrip())
    return [str(result.query), *lines]


# === Metrics ===


def class_distances(gallery: Gallery, predictions: Predictions) -> dict[str, np.ndarray]:
    """Measure the distance of each test image to its class, by each task's embedding.

    Returns:
        Task -> float32 [n]: 1 - the cosine to the mean of the class's training images; NaN
        without a label or without such an image.
    """
    class_distances = {}
    for column, (task, names) in enumerate(gallery.classes.items()):
        labelled = is_labelled(gallery.labels[:, column])
        centres = np.zeros((len(names), gallery.vectors[task].shape[1]), np.float32)
        np.add.at(centres, gallery.labels[labelled, column], gallery.loaded(task)[labelled])
        present = np.bincount(gallery.labels[labelled, column], minlength=len(names)) > 0
        labels = predictions.labels[:, column]
        measured = is_labelled(labels) & present[labels]
        distances = np.full(len(labels), np.nan, np.float32)
        vectors = normalised(predictions.vectors[task][measured])
        distances[measured] = 1 - (vectors * normalised(centres)[labels[measured]]).sum(axis=1)
        class_distances[task] = distances
    return class_distances


def retrieval_quality(
    queries: Mapping[str, np.ndarray],
    paths: np.ndarray,
    labels: np.ndarray,
    gallery: Gallery,
    *,
    near_duplicates: pd.DataFrame | None = None,
) -> dict[str, dict[str, Any]]:
    """Compute `retrieval.retrieval_metrics` of each task, on labelled queries and gallery images.

    Args:
        queries: SHARED and each task (or some) -> float32 [q, width], of length 1.
        paths: str [q].
        labels: int32 [q, tasks]; MISSING (-1) if a query has no label of the task.
        gallery: the training images, with the same embeddings.
        near_duplicates: paths `first` and `second`; a query's near-duplicates are excluded from
            its candidates.

    Returns:
        task -> {"queries": their number, "shared": the metrics with the pooled features,
        "head": the metrics with the task's own embedding (if `queries` has it)}.
    """
    excluded = _partner_rows(paths, gallery.paths, near_duplicates)
    shared = gallery.loaded(SHARED)
    quality = {}
    for column, task in enumerate(gallery.classes):
        query_rows = np.flatnonzero(is_labelled(labels[:, column]))
        gallery_rows = np.flatnonzero(is_labelled(gallery.labels[:, column]))
        place = np.full(len(gallery.paths), -1)
        place[gallery_rows] = np.arange(len(gallery_rows))
        excluded_places = [place[excluded[row]] for row in query_rows]
        measure = functools.partial(
            _retrieval_metrics,
            labels[query_rows, column],
            gallery.labels[gallery_rows, column],
            [places[places >= 0] for places in excluded_places],
        )
        quality[task] = {
            "queries": len(query_rows),
            "shared": measure(queries[SHARED][query_rows], shared[gallery_rows]),
        }
        if task in queries:
            vectors = gallery.loaded(task)[gallery_rows]
            quality[task]["head"] = measure(queries[task][query_rows], vectors)
    return quality


def _retrieval_metrics(
    labels: np.ndarray,
    gallery_labels: np.ndarray,
    excluded: list[np.ndarray],
    queries: np.ndarray,
    vectors: np.ndarray,
) -> dict[str, float | None]:
    """The metrics of one task by one embedding; all queries and gallery images have a label."""
    rows, _ = nearest(vectors, queries, retrieval.NEIGHBOURS, excluded=excluded)
    neighbours = np.where(rows < 0, MISSING, np.append(gallery_labels, MISSING)[rows])
    sizes = np.bincount(gallery_labels, minlength=labels.max(initial=0) + 1)
    relevant = sizes[labels] - [
        np.count_nonzero(gallery_labels[excluded_rows] == label)
        for excluded_rows, label in zip(excluded, labels, strict=True)
    ]
    return retrieval.retrieval_metrics(labels, neighbours, relevant)


def _partner_rows(
    paths: np.ndarray, gallery_paths: np.ndarray, pairs: pd.DataFrame | None
) -> list[np.ndarray]:
    """The rows of the gallery that form a pair with each path, int64 [any] each."""
    partners: dict[str, set[int]] = {}
    if pairs is not None:
        ends = pairs[["first", "second"]].to_numpy(object)
        ends = np.concatenate([ends, ends[:, ::-1]])
        rows = pd.Index(gallery_paths).get_indexer(ends[:, 1])
        for path, row in zip(ends[rows >= 0, 0], rows[rows >= 0], strict=True):
            partners.setdefault(path, set()).add(int(row))
    return [np.asarray(sorted(partners.get(path, ())), np.int64) for path in paths]
