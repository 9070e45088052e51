"""Similar pictures: the training pictures whose embedding is nearest to a query's, and how often
those have its class.

  WORKDIR/similar/{model}/
      {name}.npy         float16 [rows, width], of length 1; of the pooled features and each task
      gallery.json       what they are of: paths and labels of the rows, and a fingerprint

Two pictures are as far apart as their embeddings' cosine is below 1.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from multitask import figures, metrics
from multitask.data.files import picture_sizes, read_reduced, why_unreadable
from multitask.data.pipeline import file_names, readable_pictures
from multitask.data.table import TRAIN, Table, load_table
from multitask.evaluation.predictions import Predictions, compiled
from multitask.evaluation.trained_on import left_out
from multitask.files import (
    check_room,
    check_writable,
    locked,
    read_json,
    replacing,
    reserve,
    write_json,
)
from multitask.model.network import (
    embedding_model,
    load_network,
)
from multitask.reading import check_regular, sha256
from multitask.run import Run
from multitask.spec import MISSING, SHARED, DataSpec, InputError, expected, field_of

VERSION = 2  # of how a gallery is computed and stored
DESCRIPTION = "gallery.json"
BATCH = 32
BLOCK_NUMBERS = 2**24  # similarities that are held at once
ROUNDING = 1e-5  # of a cosine in float32, with room to spare
THUMBNAIL_PX = 400
PICTURED = 25


@dataclass(frozen=True)
class Gallery:
    """The training pictures of a run as one model sees them.

    Attributes:
        classes: task -> class names.
        paths: str [n], as in the CSVs.
        labels: int32 [n, tasks]; MISSING (-1) where the task has no label.
        vectors: SHARED and each task -> float16 [n, width], on disk (memory-mapped).
        folder: where they lie.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    vectors: Mapping[str, np.ndarray]
    folder: Path

    def loaded(self, name: str) -> np.ndarray:
        """float32 [n, width], of length 1, in memory."""
        return normalised(self.vectors[name])

    def label_names(self, row: int) -> dict[str, str]:
        """task -> class name; "-" where the task has no label."""
        return {
            task: "-" if label == MISSING else names[label]
            for (task, names), label in zip(self.classes.items(), self.labels[row], strict=True)
        }


# === Embeddings ===


def normalised(vectors: np.ndarray) -> np.ndarray:
    """float [n, width] -> float32 of length 1; what is 0 stays 0."""
    vectors = np.array(vectors, np.float32)  # one copy and no more: it may be half of the memory
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return vectors


def embed(
    model: keras.Model,
    names: list[str],
    spec: DataSpec,
    *,
    what: str,
    infer: Callable | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Picture files, a batch at a time, with a progress bar.

    Args:
        model: image -> {name: float32 [batch, width]}, as `embedding_model` makes it.
        names: of the files; one that cannot be read is left out.
        spec: image size and resizing.
        what: is done, for the bar.
        infer: the model's inference, where it is compiled already.

    Yields:
        int64 [batch], the places among `names`; name -> float32 [batch, width], of length 1.
    """
    infer = infer or compiled(model)
    batches = readable_pictures(names, size_px=spec.image_size, how=spec.resize, batch_size=BATCH)
    with tqdm(total=len(names), desc=what, unit=" pictures", leave=False, disable=None) as bar:
        for places, image in batches:
            places = places.numpy()
            yield places, {name: normalised(x) for name, x in infer(image).items()}
            bar.update(int(places[-1]) + 1 - bar.n)


def embed_all(
    model: keras.Model,
    names: list[str],
    spec: DataSpec,
    *,
    what: str,
    infer: Callable | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`embed` of all at once: int64 [n] and name -> float32 [n, width]."""
    read = [np.zeros(0, np.int64)]
    found = {name: [np.zeros((0, x.shape[-1]), np.float32)] for name, x in model.output.items()}
    for places, vectors in embed(model, names, spec, what=what, infer=infer):
        read.append(places)
        for name, batch in vectors.items():
            found[name].append(batch)
    return np.concatenate(read), {name: np.concatenate(some) for name, some in found.items()}


# === Gallery ===


def load_or_build(
    run: Run,
    model: keras.Model,
    model_file: Path,
    *,
    table: Table | None = None,
    infer: Callable | None = None,
    tell: Callable[[str], None] = print,
) -> Gallery:
    """The gallery of a run's model: the one on disk where it fits, or a new one.

    Args:
        run: from open_run; its training pictures are read from their original files.
        model: from load_network.
        model_file: where it was read from.
        table: what the run trained on; None: it is read.
        infer: image -> the embeddings, where that is compiled already.
        tell: shows a line.

    Raises:
        InputError: what is wrong with the data or the workdir; nothing half-made stays.
        DiskError: there is no room for it; nothing half-made stays.
    """
    if table is None:
        table = load_table(run.spec, run.data_dir, left_out=left_out(run))
    digest = sha256(model_file)
    embedding = embedding_model(model)
    return _gallery(run, table, embedding, model_file.stem, digest, infer=infer, tell=tell)


def read_gallery(run: Run, model_file: Path) -> Gallery | None:
    """The gallery that `load_or_build` made of this model; None where none lies there or fits.

    Raises:
        InputError: what is wrong with the data.
    """
    folder = run.workdir / "similar" / model_file.stem
    if not (folder / DESCRIPTION).is_file():
        return None
    table = load_table(run.spec, run.data_dir, left_out=left_out(run))
    fingerprint = _fingerprint(run, table, sha256(model_file))
    return _read(folder, fingerprint, table.classes, (SHARED, *table.classes))


def _gallery(
    run: Run,
    table: Table,
    model: keras.Model,
    name: str,
    digest: str,
    *,
    infer: Callable | None = None,
    tell: Callable[[str], None],
) -> Gallery:
    """The gallery `name`, by a model whose weights have that digest."""
    rows, folder = table.rows(TRAIN), run.workdir / "similar" / name
    fingerprint = _fingerprint(run, table, digest)
    gallery = _read(folder, fingerprint, table.classes, model.output)
    if gallery:
        return gallery
    check_writable(folder, flag="--workdir")
    folder.parent.mkdir(exist_ok=True)
    waiting = f"Another process is making {folder}; waiting for it …"
    with locked(folder.parent / f".{name}.lock", lambda: tell(waiting)):
        gallery = _read(folder, fingerprint, table.classes, model.output)
        if gallery is None:
            tell(f"Embedding {len(rows):,} training pictures, once, into {folder} …")
            with replacing(folder) as temporary:
                _build(temporary, run, table, rows, model, fingerprint, infer, tell)
            gallery = _read(folder, fingerprint, table.classes, model.output)
    return gallery


def _fingerprint(run: Run, table: Table, digest: str) -> str:
    """Of all that a gallery depends on."""
    rows, image_dir = table.rows(TRAIN), run.data_dir / run.spec.images
    facts = hashlib.sha256()
    facts.update(json.dumps([VERSION, digest, run.spec.image_size, run.spec.resize]).encode())
    facts.update(json.dumps([*table.classes.items(), *table.paths[rows]]).encode())
    facts.update(table.labels[rows].astype("<i4").tobytes())
    facts.update(picture_sizes(table.paths[rows], image_dir).astype("<i8").tobytes())
    return facts.hexdigest()


def _build(
    folder: Path,
    run: Run,
    table: Table,
    rows: np.ndarray,
    model: keras.Model,
    fingerprint: str,
    infer: Callable | None,
    tell: Callable[[str], None],
) -> None:
    image_dir = run.data_dir / run.spec.images
    names = file_names(table, rows, image_dir)
    needed = 2 * len(rows) * sum(x.shape[-1] for x in model.output.values())
    check_room(folder.parent, needed, what=f"embeddings of {len(rows):,} images")
    folder.mkdir()
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.float16, (len(rows), x.shape[-1])
        )
        for name, x in model.output.items()
    }
    for name in arrays:
        reserve(folder / f"{name}.npy")
    read = [np.zeros(0, np.int64)]
    done = 0
    for places, vectors in embed(model, names, run.spec, what="embedding", infer=infer):
        for name, batch in vectors.items():
            arrays[name][done : done + len(places)] = batch
        read.append(places)
        done += len(places)
    if not done:
        raise InputError(f"{image_dir}: none of the {len(rows)} training pictures can be read")
    if done < len(rows):
        tell(f"  left out: {len(rows) - done:,} that are missing or unreadable")
    for array in arrays.values():
        array.flush()
    kept = rows[np.concatenate(read)]
    description = {
        "fingerprint": fingerprint,
        "paths": table.paths[kept].tolist(),
        "labels": table.labels[kept].tolist(),
    }
    write_json(folder / DESCRIPTION, description)


def _read(
    folder: Path, fingerprint: str, classes: dict[str, tuple[str, ...]], names: Iterable[str]
) -> Gallery | None:
    """The gallery in a folder; None where there is none that fits."""
    try:
        description = read_json(folder / DESCRIPTION)
        if description["fingerprint"] != fingerprint:
            return None
        paths = np.asarray(description["paths"], object)
        labels = np.asarray(description["labels"], np.int32)
        # Of pictures that could not be read, rows are left over at the end.
        check_regular(folder)
        vectors = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")[: len(paths)] for name in names
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Gallery(classes, paths, labels, vectors, folder)


# === Search ===


def nearest(
    vectors: np.ndarray,
    queries: np.ndarray,
    top_k: int,
    *,
    excluded: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of a gallery by cosine, exactly.

    Args:
        vectors: float32 [n, width], of length 1.
        queries: float32 [q, width], of length 1.
        top_k: how many, at least 1; all where there are fewer.
        excluded: for each query, int [any], rows that are not to be found.

    Returns:
        int64 [q, min(top_k, n)], rows, the nearest first, equal ones by their number; and
        float32 of that shape, distances 1 - cosine in [0, 2]. -1 and infinity where all that is
        left is excluded.
    """
    count = min(top_k, len(vectors))
    rows = np.full((len(queries), count), -1, np.int64)
    distances = np.full((len(queries), count), np.inf, np.float32)
    block = max(1, BLOCK_NUMBERS // max(1, len(vectors)))
    for start in range(0, len(queries) if count else 0, block):
        cosines = queries[start : start + block] @ vectors.T
        for query, found in enumerate(cosines, start):
            allowed = count
            if excluded is not None:
                found[excluded[query]] = -np.inf
                allowed = min(count, len(found) - len(np.unique(excluded[query])))
            if not allowed:
                continue
            least = np.partition(found, len(found) - allowed)[len(found) - allowed]
            # How a matrix product rounds depends on a row's place in the matrix. Its candidates
            # are compared again, one by one, so that equal vectors are equally far.
            candidates = np.flatnonzero(found >= least - ROUNDING)
            exact = _distances(vectors, candidates, queries[query])
            order = np.argsort(exact, kind="stable")[:allowed]
            rows[query, :allowed], distances[query, :allowed] = candidates[order], exact[order]
    return rows, distances


def _distances(vectors: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float64 [rows]: 1 - cosine, some thousand rows at a time."""
    query = query.astype(np.float64)
    blocks = np.split(rows, np.arange(4096, len(rows), 4096))
    cosines = np.concatenate([(vectors[some] * query).sum(axis=1) for some in blocks])
    return np.clip(1 - cosines, 0, 2)


# === A query ===


@dataclass(frozen=True)
class Found:
    """What was found for one query.

    Attributes:
        query: the picture's file.
        neighbours: rank (from 1), distance, path and each task's class name, `artist/label`;
            nearest first.
        figure: the PNG that shows them.
    """

    query: Path
    neighbours: pd.DataFrame
    figure: Path


def find_similar(
    run: Run,
    queries: Sequence[Path],
    *,
    model_file: Path | None = None,
    task: str | None = None,
    top_k: int = 5,
    out: Path | None = None,
    tell: Callable[[str], None] = print,
) -> list[Found]:
    """The training pictures that are nearest to each query, and a figure of them.

    Args:
        run: from open_run.
        queries: picture files.
        model_file: another model of the run; None: the best over all.
        task: as its head sees them; None: as the trunk does.
        top_k: how many, at least 1.
        out: folder of `similar_{query's stem}.png`; None: the run's results.
        tell: shows a line.

    Raises:
        InputError: anything that the user gave is wrong; nothing was written then.
    """
    spec, out = run.spec, out or run.results
    model_file = model_file or run.best_model
    if task is not None and task not in spec.task_names:
        raise InputError(f'--task: "{task}". {expected(task, spec.task_names)}')
    if not model_file.exists():
        raise InputError(f"{model_file}: no such model; `multitask train` makes it")
    for file in queries:
        reason = why_unreadable(file)
        if reason:
            raise InputError(f"--query: {file}: {reason}")
    stems = [file.stem for file in queries]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise InputError(
            f"--query: two pictures would be similar_{twice[0]}.png; ask for one at a time"
        )
    check_writable(out, flag="--out")
    image_dir = run.data_dir / spec.images
    table = load_table(spec, run.data_dir, left_out=left_out(run))
    model = load_network(model_file, spec, table.classes)
    gallery = load_or_build(run, model, model_file, table=table, tell=tell)
    name = task or SHARED
    _, vectors = embed_all(
        embedding_model(model), [str(file) for file in queries], spec, what="embedding queries"
    )
    found = []
    every = zip(queries, *nearest(gallery.loaded(name), vectors[name], top_k), strict=True)
    for file, rows, distances in every:
        neighbours = pd.DataFrame(
            {
                "rank": rank,
                "distance": distance,
                "path": gallery.paths[row],
                **{
                    field_of(task, "label"): name for task, name in gallery.label_names(row).items()
                },
            }
            for rank, (row, distance) in enumerate(zip(rows, distances, strict=True), start=1)
        )
        captions = [
            "\n".join([f"{row[0]}.  distance {row[1]:.3f}", *row[3:]])
            for row in neighbours.head(PICTURED).itertuples(index=False, name=None)
        ]
        figure = figures.similar(
            out / f"similar_{file.stem}.png",
            read_reduced(file, target_px=THUMBNAIL_PX),
            [
                read_reduced(image_dir / path, target_px=THUMBNAIL_PX)
                for path in neighbours["path"].head(PICTURED)
            ],
            captions,
            title=file.stem,
            text=f"the nearest training pictures ({task or 'all tasks'})",
        )
        found.append(Found(file, neighbours, figure))
    return found


def neighbour_lines(found: Found) -> list[str]:
    """A query's neighbours for the console, aligned."""
    head, *rest = (name.removesuffix("/label") for name in found.neighbours.columns)
    shown = found.neighbours.assign(distance=found.neighbours["distance"].map("{:.4f}".format))
    table = [[head, *rest], *shown.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for rank, distance, *names in table:
        names = "  ".join(f"{n:<{w}}" for n, w in zip(names, widths[2:], strict=True))
        lines.append(f"  {rank:>{widths[0]}}  {distance:>{widths[1]}}  {names}".rstrip())
    return [str(found.query), *lines]


# === Quality ===


def class_distances(gallery: Gallery, exam: Predictions) -> dict[str, np.ndarray]:
    """How far each exam picture is from its own class, by the tasks' embeddings.

    Returns:
        Task -> float32 [n]: 1 - the cosine to the mean of the class's training pictures; NaN
        where there is no label, or no such picture.
    """
    found = {}
    for column, (task, names) in enumerate(gallery.classes.items()):
        known = gallery.labels[:, column] != MISSING
        centres = np.zeros((len(names), gallery.vectors[task].shape[1]), np.float32)
        np.add.at(centres, gallery.labels[known, column], gallery.loaded(task)[known])
        there = np.bincount(gallery.labels[known, column], minlength=len(names)) > 0
        labels = exam.labels[:, column]
        judged = (labels != MISSING) & there[labels]
        distances = np.full(len(labels), np.nan, np.float32)
        own = normalised(exam.vectors[task][judged])
        distances[judged] = 1 - (own * normalised(centres)[labels[judged]]).sum(axis=1)
        found[task] = distances
    return found


def retrieval_quality(
    queries: Mapping[str, np.ndarray],
    paths: np.ndarray,
    labels: np.ndarray,
    gallery: Gallery,
    *,
    near_duplicates: pd.DataFrame | None = None,
) -> dict[str, dict[str, Any]]:
    """`metrics.retrieval_metrics` of each task: labelled queries against the labelled gallery.

    Args:
        queries: SHARED and each task (or some) -> float32 [q, width], of length 1.
        paths: str [q].
        labels: int32 [q, tasks]; MISSING (-1) where a query has no label of the task.
        gallery: with the same names.
        near_duplicates: paths `first` and `second`; a query's are left out of its gallery.

    Returns:
        task -> {"queries": their number, "shared": the figures by the pooled features, "head":
        those by the task's own embedding (where `queries` has it)}.
    """
    excluded = _partners(paths, gallery.paths, near_duplicates)
    shared = gallery.loaded(SHARED)
    found = {}
    for column, task in enumerate(gallery.classes):
        asked = np.flatnonzero(labels[:, column] != MISSING)
        among = np.flatnonzero(gallery.labels[:, column] != MISSING)
        place = np.full(len(gallery.paths), -1)
        place[among] = np.arange(len(among))
        gone = [place[excluded[query]] for query in asked]
        gone = [rows[rows >= 0] for rows in gone]
        judge = functools.partial(
            _retrieval, labels[asked, column], gallery.labels[among, column], gone
        )
        found[task] = {
            "queries": len(asked),
            "shared": judge(queries[SHARED][asked], shared[among]),
        }
        if task in queries:
            found[task]["head"] = judge(queries[task][asked], gallery.loaded(task)[among])
    return found


def _retrieval(
    labels: np.ndarray,
    gallery_labels: np.ndarray,
    excluded: list[np.ndarray],
    queries: np.ndarray,
    vectors: np.ndarray,
) -> dict[str, float | None]:
    """The figures of one task by one embedding; everything in it has a label."""
    rows, _ = nearest(vectors, queries, metrics.NEIGHBOURS, excluded=excluded)
    neighbours = np.where(rows < 0, MISSING, np.append(gallery_labels, MISSING)[rows])
    sizes = np.bincount(gallery_labels, minlength=labels.max(initial=0) + 1)
    relevant = sizes[labels] - [
        np.count_nonzero(gallery_labels[rows] == label)
        for rows, label in zip(excluded, labels, strict=True)
    ]
    return metrics.retrieval_metrics(labels, neighbours, relevant)


def _partners(
    paths: np.ndarray, gallery_paths: np.ndarray, pairs: pd.DataFrame | None
) -> list[np.ndarray]:
    """For each path int64 [any], the gallery's rows that are in a pair with it."""
    of: dict[str, set[int]] = {}
    if pairs is not None:
        ends = pairs[["first", "second"]].to_numpy(object)
        ends = np.concatenate([ends, ends[:, ::-1]])
        rows = pd.Index(gallery_paths).get_indexer(ends[:, 1])
        for path, row in zip(ends[rows >= 0, 0], rows[rows >= 0], strict=True):
            of.setdefault(path, set()).add(int(row))
    return [np.asarray(sorted(of.get(path, ())), np.int64) for path in paths]
