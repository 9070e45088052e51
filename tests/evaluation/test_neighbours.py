"""Neighbours that are known from the images' colours, and the search against NumPy."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from multitask.__main__ import main
from multitask.data.merging import load_table
from multitask.evaluation import neighbours
from multitask.evaluation.examiner import Examiner
from multitask.evaluation.gallery import Gallery, load_or_build, normalised
from multitask.evaluation.neighbours import (
    class_distances,
    find_similar,
    nearest,
    neighbour_lines,
    retrieval_quality,
)
from multitask.evaluation.predictions import Predictions, predict_split
from multitask.model.network import load_network
from multitask.run import open_run
from multitask.spec import MISSING, SHARED
from multitask.trained import open_trained


@pytest.fixture(scope="module")
def embedded(known, data, tmp_path_factory):
    """The folder of a run whose training images are embedded."""
    run = known.make_run(tmp_path_factory.mktemp("embedded") / "run", data)
    load_or_build(open_trained(run))
    return run.workdir


@pytest.fixture
def run(embedded, tmp_path):
    """A copy of that run."""
    shutil.copytree(embedded, tmp_path / "run")
    return open_run(tmp_path / "run")


def sampled(count, width, seed=0):
    return normalised(np.random.default_rng(seed).normal(size=(count, width)))


def distances_by_colour(query, paths, data):
    """float64 [paths]: 1 - cosine of the colours, which the trunk passes through."""
    colours = np.array([data.painted[path] for path in paths], np.float64)
    query = np.asarray(query, np.float64)
    lengths = np.linalg.norm(colours, axis=1) * np.linalg.norm(query)
    return 1 - colours @ query / lengths


# === Search ===


@pytest.mark.parametrize(("count", "queries", "top_k"), [(300, 40, 7), (5, 3, 9), (1, 1, 1)])
def test_nearest_is_that_of_scikit_learn(count, queries, top_k, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_NUMBERS", 1000)  # blocks of three queries
    vectors, query_vectors = sampled(count, 20), sampled(queries, 20, seed=1)
    rows, distances = nearest(vectors, query_vectors, top_k)
    reference = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    expected, wanted = reference.kneighbors(query_vectors, min(top_k, count))
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    assert distances.dtype == np.float32


def test_equal_vectors_are_ordered_by_row():
    vectors = np.repeat(sampled(9, 1408), 101, axis=0)[np.random.default_rng(0).permutation(909)]
    queries = vectors[[0, 400, 908]]
    rows, distances = nearest(vectors, queries, 120)
    for query, matches, far in zip(queries, rows, distances, strict=True):
        same = np.flatnonzero((vectors == query).all(axis=1))
        np.testing.assert_array_equal(matches[:101], same)
        assert len(np.unique(far[:101])) == 1
        assert far[0] == pytest.approx(0, abs=1e-6)
        assert far[101] > 0.5


def test_excluded_rows_are_no_matches():
    vectors, queries = sampled(30, 6), sampled(4, 6, seed=1)
    gone = [[], [3, 7, 7], list(range(28)), list(range(30))]
    rows, distances = nearest(vectors, queries, 5, excluded=[np.array(x, int) for x in gone])
    exact = 1 - queries.astype(float) @ vectors.T.astype(float)
    for query, without in enumerate(gone):
        left = [row for row in np.argsort(exact[query]) if row not in without][:5]
        assert rows[query].tolist() == left + [-1] * (5 - len(left))
        assert np.isinf(distances[query, len(left) :]).all()


def test_a_zero_vector_has_distance_one():
    vectors = normalised(np.array([[0, 0], [3, 4]]))
    np.testing.assert_allclose(vectors, [[0, 0], [0.6, 0.8]])
    rows, distances = nearest(vectors, vectors[:1], 2)
    np.testing.assert_array_equal(rows, [[0, 1]])
    np.testing.assert_array_equal(distances, [[1, 1]])
    assert nearest(vectors[:0], vectors, 3)[0].shape == (2, 0)


# === The command ===


@pytest.mark.parametrize("task", [None, "warmth"])
def test_the_neighbours_are_those_of_the_colours(run, data, known, tmp_path, task):
    query = tmp_path / "query.png"
    Image.new("RGB", (50, 20), (200, 30, 90)).save(query)
    (result,) = find_similar(open_trained(run), [query], task=task, top_k=6)
    names = sorted(data.train_labels["shade"])
    expected = distances_by_colour([200, 30, 90], names, data)
    order = np.argsort(expected)[:6]
    assert result.neighbours["path"].tolist() == [names[i] for i in order]
    np.testing.assert_allclose(result.neighbours["distance"], expected[order], atol=1e-4)
    assert result.neighbours["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    for name, classes in known.CLASSES.items():
        labels = [classes[data.train_labels[name][names[i]]] for i in order]
        assert result.neighbours[f"{name}/label"].tolist() == labels
    assert result.plot == run.results / "similar_query.png"
    with Image.open(result.plot) as image:
        image.load()


def test_a_training_image_is_nearest_to_itself(run, data):
    names = sorted(data.train_labels["shade"])[:3]
    files = [data.folder / "images" / name for name in names]
    every = find_similar(open_trained(run), files, top_k=1, out=run.workdir / "elsewhere")
    for result, name in zip(every, names, strict=True):
        assert result.neighbours["path"].tolist() == [name]
        assert result.neighbours["distance"][0] == pytest.approx(0, abs=1e-6)
        assert result.plot.parent == run.workdir / "elsewhere"
    assert not run.results.exists()


def test_the_command_prints_the_neighbours(data, known, tmp_path, capsys):
    """Of a run whose training images are not embedded yet."""
    run = known.make_run(tmp_path / "run", data)
    name = sorted(data.train_labels["shade"])[2]
    query = data.folder / "images" / name
    main(["similar", f"--workdir={run.workdir}", "--top_k=100", str(query)])
    query_line, head, *rows, plot_line = capsys.readouterr().out.splitlines()
    assert query_line == str(query)
    assert head.split() == ["rank", "distance", "path", *known.CLASSES]
    assert len(rows) == 24  # all training images
    expected = distances_by_colour(data.painted[name], sorted(data.train_labels["shade"]), data)
    assert rows[0].split()[:3] == ["1", "0.0000", name]
    np.testing.assert_allclose([float(r.split()[1]) for r in rows], np.sort(expected), atol=2e-4)
    assert plot_line == f"Plot: {run.results / f'similar_{query.stem}.png'}"
    assert len({line.index(" 0.") for line in rows}) == 1  # aligned


def test_a_label_that_is_missing_is_a_dash(tmp_path):
    gallery = Gallery(
        {"a": ("x", "y"), "b": ("z",)}, np.array(["p"]), np.array([[1, MISSING]]), {}, tmp_path
    )
    assert gallery.label_names(0) == {"a": "y", "b": "-"}
    result = neighbours.QueryResult(
        tmp_path / "q.png",
        pd.DataFrame({"rank": [9, 10], "distance": [0.1, 1.0], "path": ["p", "long"], "b": "-"}),
        tmp_path,
    )
    assert neighbour_lines(result)[1:] == [
        "  rank  distance  path  b",
        "     9    0.1000  p     -",
        "    10    1.0000  long  -",
    ]


# === Metrics ===


def by_hand(queries, query_labels, vectors, labels, gone):
    """The metrics, one query and one neighbour at a time."""
    precision, average, at_1, at_10 = [], [], [], []
    for query, label, without in zip(queries, query_labels, gone, strict=True):
        far = 1 - vectors.astype(float) @ query.astype(float)
        order = [i for i in np.argsort(far, kind="stable") if i not in without]
        hits = [labels[i] == label for i in order]
        relevant, seen, total = sum(hits), 0, 0.0
        for k, hit in enumerate(hits[:10], start=1):
            seen += hit
            total += hit * seen / k
        precision.append(seen / 10)
        average.append(total / min(10, relevant) if relevant else 0.0)
        at_1.append(any(hits[:1]))
        at_10.append(any(hits[:10]))
    return {
        "precision_at_10": pytest.approx(np.mean(precision)),
        "map_at_10": pytest.approx(np.mean(average)),
        "recall_at_1": pytest.approx(np.mean(at_1)),
        "recall_at_10": pytest.approx(np.mean(at_10)),
    }


def test_quality_is_that_of_plain_loops():
    """With missing labels on both sides, and near-duplicates named in either order."""
    rng = np.random.default_rng(3)
    width = {SHARED: 8, "one": 5, "two": 3}
    vectors = {name: sampled(60, w, seed=w) for name, w in width.items()}
    queries = {name: sampled(20, w, seed=w + 1) for name, w in width.items()}
    labels = rng.integers(-1, 4, (60, 2)).astype(np.int32)
    query_labels = rng.integers(-1, 5, (20, 2)).astype(np.int32)  # class 4 has no gallery image
    paths = np.array([f"t{i}" for i in range(60)], object)
    names = np.array([f"v{i}" for i in range(20)], object)
    pairs = [("t3", "v1"), ("v1", "t40"), ("v2", "t5"), ("v2", "t5"), ("v1", "v2"), ("t1", "t2")]
    pairs += [(f"t{i}", "v7") for i in range(55)]
    gallery = Gallery({"one": "abcde", "two": "abcde"}, paths, labels, vectors, None)
    frame = pd.DataFrame(pairs, columns=["first", "second"])
    quality = retrieval_quality(queries, names, query_labels, gallery, near_duplicates=frame)
    gone = [
        {int(a[1:]) for a, b in [*pairs, *(p[::-1] for p in pairs)] if b == name and a[0] == "t"}
        for name in names
    ]
    assert max(map(len, gone)) == 55
    for column, task in enumerate(["one", "two"]):
        q, g = query_labels[:, column] >= 0, np.flatnonzero(labels[:, column] >= 0)
        without = [
            {int(np.searchsorted(g, i)) for i in rows if i in g}
            for rows, labelled in zip(gone, q, strict=True)
            if labelled
        ]
        for key, name in (("shared", SHARED), ("head", task)):
            assert quality[task][key] == by_hand(
                queries[name][q],
                query_labels[q, column],
                vectors[name][g],
                labels[g, column],
                without,
            )
        assert quality[task]["queries"] == q.sum()
    plain = retrieval_quality(queries, names, query_labels, gallery)
    assert plain != quality


def test_quality_of_a_run(run, known, data):
    """By the colours; a linear head has the trunk's embedding."""
    model = Examiner(load_network(run.best_model, run.spec, known.CLASSES))
    table = load_table(run.spec, run.data_dir)
    images = run.data_dir / run.spec.images
    predictions, _ = predict_split(model, table, run.spec, images, batch_size=7, max_missing=1)
    queries = {name: normalised(vectors) for name, vectors in predictions.vectors.items()}
    gallery = load_or_build(open_trained(run))
    quality = retrieval_quality(queries, predictions.paths, predictions.labels, gallery)
    names = sorted(data.train_labels["shade"])
    vectors = normalised([data.painted[path] for path in names])
    for task in ("shade", "warmth"):
        paths = sorted(data.labels[task].keys() - set(data.missing))
        expected = by_hand(
            normalised([data.painted[path] for path in paths]),
            [data.labels[task][path] for path in paths],
            vectors,
            [data.train_labels[task][path] for path in names],
            [()] * len(paths),
        )
        assert quality[task] == {
            "queries": len(paths),
            "shared": expected,
            "head": expected,
        }
    assert quality["empty"]["queries"] == 0
    assert json.loads(json.dumps(quality)) == quality


# === Far from its class ===


def test_distance_to_the_mean_of_the_class(tmp_path):
    classes = {"one": ("a", "b", "c")}
    vectors = np.array([[1, 0], [0, 1], [0, 2], [5, 5]], np.float32)
    gallery = Gallery(
        classes,
        np.array(list("wxyz"), object),
        np.array([[0], [0], [1], [MISSING]], np.int32),
        {"one": normalised(vectors).astype(np.float16)},
        tmp_path,
    )
    test_set = Predictions(
        classes,
        np.array(list("pqrs"), object),
        np.array([[0], [1], [2], [MISSING]], np.int32),
        {"one": np.full((4, 3), 1 / 3, np.float32)},
        {"one": np.array([[3, 0], [1, 1], [1, 0], [1, 0]], np.float32)},
    )
    # The mean of a is (.5, .5), of b (0, 1); c has no training image, and s has no label.
    distances = class_distances(gallery, test_set)["one"]
    np.testing.assert_allclose(distances[:2], [1 - 0.5**0.5, 1 - 0.5**0.5], atol=1e-3)
    assert np.isnan(distances[2:]).all()
