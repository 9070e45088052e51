"""Neighbours that are known from the pictures' colours, and the search against NumPy."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from multitask.__main__ import main
from multitask.data.table import load_table
from multitask.evaluation import similar
from multitask.evaluation.predictions import Predictions, predict_exam
from multitask.evaluation.similar import (
    Gallery,
    class_distances,
    find_similar,
    load_or_build,
    nearest,
    neighbour_lines,
    normalised,
    retrieval_quality,
)
from multitask.model.network import load_network
from multitask.spec import MISSING, SHARED, InputError


@pytest.fixture
def run(known, data, tmp_path):
    return known.make_run(tmp_path / "run", data)


@pytest.fixture
def model(known):
    return known.colour_model()


def drawn(count, width, seed=0):
    return normalised(np.random.default_rng(seed).normal(size=(count, width)))


def distances_by_colour(query, paths, data):
    """float64 [paths]: 1 - cosine of the colours, which the trunk hands on as they are."""
    colours = np.array([data.painted[path] for path in paths], np.float64)
    query = np.asarray(query, np.float64)
    lengths = np.linalg.norm(colours, axis=1) * np.linalg.norm(query)
    return 1 - colours @ query / lengths


# === Search ===


@pytest.mark.parametrize(("count", "queries", "top_k"), [(300, 40, 7), (5, 3, 9), (1, 1, 1)])
def test_nearest_is_that_of_scikit_learn(count, queries, top_k, monkeypatch):
    monkeypatch.setattr(similar, "BLOCK_NUMBERS", 1000)  # blocks of three queries
    vectors, asked = drawn(count, 20), drawn(queries, 20, seed=1)
    rows, distances = nearest(vectors, asked, top_k)
    judge = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    expected, wanted = judge.kneighbors(asked, min(top_k, count))
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    assert distances.dtype == np.float32


def test_equal_vectors_come_in_their_order_wherever_they_stand():
    vectors = np.repeat(drawn(9, 1408), 101, axis=0)[np.random.default_rng(0).permutation(909)]
    asked = vectors[[0, 400, 908]]
    rows, distances = nearest(vectors, asked, 120)
    for query, found, far in zip(asked, rows, distances, strict=True):
        same = np.flatnonzero((vectors == query).all(axis=1))
        np.testing.assert_array_equal(found[:101], same)
        assert len(np.unique(far[:101])) == 1
        assert far[0] == pytest.approx(0, abs=1e-6)
        assert far[101] > 0.5


def test_what_is_excluded_is_not_found():
    vectors, asked = drawn(30, 6), drawn(4, 6, seed=1)
    gone = [[], [3, 7, 7], list(range(28)), list(range(30))]
    rows, distances = nearest(vectors, asked, 5, excluded=[np.array(x, int) for x in gone])
    exact = 1 - asked.astype(float) @ vectors.T.astype(float)
    for query, without in enumerate(gone):
        left = [row for row in np.argsort(exact[query]) if row not in without][:5]
        assert rows[query].tolist() == left + [-1] * (5 - len(left))
        assert np.isinf(distances[query, len(left) :]).all()


def test_a_vector_of_nothing_is_far_from_all_and_no_nan():
    vectors = normalised(np.array([[0, 0], [3, 4]]))
    np.testing.assert_allclose(vectors, [[0, 0], [0.6, 0.8]])
    rows, distances = nearest(vectors, vectors[:1], 2)
    np.testing.assert_array_equal(rows, [[0, 1]])
    np.testing.assert_array_equal(distances, [[1, 1]])
    assert nearest(vectors[:0], vectors, 3)[0].shape == (2, 0)


# === Gallery ===


def test_the_gallery_holds_the_training_pictures(run, model, data, known):
    told = []
    gallery = load_or_build(run, model, run.best_model, tell=told.append)
    assert list(gallery.paths) == sorted(data.train_labels["shade"])
    for column, task in enumerate(known.CLASSES):
        labels = [data.train_labels[task].get(path, MISSING) for path in gallery.paths]
        np.testing.assert_array_equal(gallery.labels[:, column], labels)
    colours = np.array([data.painted[path] for path in gallery.paths], np.float32)
    assert set(gallery.vectors) == {SHARED, *known.CLASSES}
    for name, vectors in gallery.vectors.items():
        assert (vectors.dtype, isinstance(vectors, np.memmap)) == (np.float16, True)
        loaded = gallery.loaded(name)
        np.testing.assert_allclose(np.linalg.norm(loaded, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(loaded, normalised(colours), atol=1e-3)
    assert len(told) == 1 and "24 training pictures" in told[0]
    assert {p.name for p in gallery.folder.iterdir()} == {
        "gallery.json",
        *(f"{name}.npy" for name in gallery.vectors),
    }


def test_the_gallery_is_made_again_only_where_it_no_longer_fits(run, model, known, data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    run = dataclasses.replace(run, data_dir=folder)

    def lines(run=run, model=model, file=run.best_model):
        told = []
        load_or_build(run, model, file, tell=told.append)
        return len(told)

    assert [lines(), lines()] == [1, 0]
    known.colour_model().save(run.best_model)  # the same weights, and another file
    assert lines() <= 1 and lines() == 0
    for task in ("shade", "warmth", "empty"):  # another label of a picture
        csv = folder / "lists" / f"{task}_train.csv"
        first, *rest = csv.read_text().splitlines()
        path, label = first.split(",")
        csv.write_text("\n".join([f"{path},{1 - min(int(label), 1)}", *rest]) + "\n")
    assert [lines(), lines()] == [1, 0]
    picture = folder / "pictures" / sorted(data.train_labels["shade"])[0]
    Image.new("RGB", (70, 70), (1, 2, 3)).save(picture)
    assert [lines(), lines()] == [1, 0]
    gallery = run.workdir / "similar" / "best_model"
    (gallery / "_shared.npy").write_bytes(b"half")
    assert [lines(), lines()] == [1, 0]
    larger = run.spec.model_copy(update={"resize": "pad"})
    assert lines(dataclasses.replace(run, spec=larger)) == 1


def test_unreadable_pictures_are_left_out_and_shift_nothing(run, model, data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    names = sorted(data.train_labels["shade"])
    (folder / "pictures" / names[4]).write_text("a text")
    (folder / "pictures" / names[9]).unlink()
    told = []
    run = dataclasses.replace(run, data_dir=folder)
    gallery = load_or_build(run, model, run.best_model, tell=told.append)
    kept = [name for name in names if name not in (names[4], names[9])]
    assert list(gallery.paths) == kept
    colours = normalised(np.array([data.painted[path] for path in kept], np.float32))
    np.testing.assert_allclose(gallery.loaded(SHARED), colours, atol=1e-3)
    assert told[-1] == "  left out: 2 that are missing or unreadable"


def test_a_gallery_is_whole_or_not_at_all(run, model, monkeypatch):
    def stop(*args, **kwargs):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(similar, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        load_or_build(run, model, run.best_model, tell=str)
    assert [p.name for p in (run.workdir / "similar").iterdir()] == [".best_model.lock"]


def test_no_readable_picture_is_refused(run, model, data, tmp_path):
    shutil.copytree(data.folder / "lists", tmp_path / "data" / "lists")
    (tmp_path / "data" / "pictures").mkdir()
    run = dataclasses.replace(run, data_dir=tmp_path / "data")
    with pytest.raises(InputError, match="none of the 24 training pictures can be read"):
        load_or_build(run, model, run.best_model, tell=str)
    assert not (run.workdir / "similar" / "best_model").exists()


# === The command ===


@pytest.mark.parametrize("task", [None, "warmth"])
def test_the_neighbours_are_those_of_the_colours(run, data, known, tmp_path, task):
    query = tmp_path / "asked.png"
    Image.new("RGB", (50, 20), (200, 30, 90)).save(query)
    (found,) = find_similar(run, [query], task=task, top_k=6, tell=str)
    names = sorted(data.train_labels["shade"])
    expected = distances_by_colour([200, 30, 90], names, data)
    order = np.argsort(expected)[:6]
    assert found.neighbours["path"].tolist() == [names[i] for i in order]
    np.testing.assert_allclose(found.neighbours["distance"], expected[order], atol=1e-4)
    assert found.neighbours["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    for name, classes in known.CLASSES.items():
        labels = [classes[data.train_labels[name][names[i]]] for i in order]
        assert found.neighbours[f"{name}/label"].tolist() == labels
    assert found.figure == run.results / "similar_asked.png"
    with Image.open(found.figure) as picture:
        picture.load()


def test_a_training_picture_is_nearest_to_itself(run, data):
    names = sorted(data.train_labels["shade"])[:3]
    files = [data.folder / "pictures" / name for name in names]
    every = find_similar(run, files, top_k=1, out=run.workdir / "elsewhere", tell=str)
    for found, name in zip(every, names, strict=True):
        assert found.neighbours["path"].tolist() == [name]
        assert found.neighbours["distance"][0] == pytest.approx(0, abs=1e-6)
        assert found.figure.parent == run.workdir / "elsewhere"
    assert not run.results.exists()


def test_the_command_prints_what_it_found(run, data, known, capsys):
    name = sorted(data.train_labels["shade"])[2]
    query = data.folder / "pictures" / name
    main(["similar", f"--workdir={run.workdir}", "--top_k=100", str(query)])
    embedding, said, head, *rows, figure = capsys.readouterr().out.splitlines()
    assert said == str(query)
    assert head.split() == ["rank", "distance", "path", *known.CLASSES]
    assert len(rows) == 24  # all that there are
    expected = distances_by_colour(data.painted[name], sorted(data.train_labels["shade"]), data)
    assert rows[0].split()[:3] == ["1", "0.0000", name]
    np.testing.assert_allclose([float(r.split()[1]) for r in rows], np.sort(expected), atol=2e-4)
    assert figure == f"Figure: {run.results / f'similar_{query.stem}.png'}"
    assert len({line.index(" 0.") for line in rows}) == 1  # aligned


def test_a_label_that_is_missing_is_a_dash(tmp_path):
    gallery = Gallery(
        {"a": ("x", "y"), "b": ("z",)}, np.array(["p"]), np.array([[1, MISSING]]), {}, tmp_path
    )
    assert gallery.label_names(0) == {"a": "y", "b": "-"}
    found = similar.Found(
        tmp_path / "q.png",
        pd.DataFrame({"rank": [9, 10], "distance": [0.1, 1.0], "path": ["p", "long"], "b": "-"}),
        tmp_path,
    )
    assert neighbour_lines(found)[1:] == [
        "  rank  distance  path  b",
        "     9    0.1000  p     -",
        "    10    1.0000  long  -",
    ]


# === Quality ===


def by_hand(queries, query_labels, vectors, labels, gone):
    """The figures, one query and one neighbour at a time."""
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


def test_quality_is_that_of_a_loop():
    """With missing labels on both sides, and near-duplicates named in either order."""
    rng = np.random.default_rng(3)
    width = {SHARED: 8, "one": 5, "two": 3}
    vectors = {name: drawn(60, w, seed=w) for name, w in width.items()}
    queries = {name: drawn(20, w, seed=w + 1) for name, w in width.items()}
    labels = rng.integers(-1, 4, (60, 2)).astype(np.int32)
    asked = rng.integers(-1, 5, (20, 2)).astype(np.int32)  # class 4 has none to be found
    paths = np.array([f"t{i}" for i in range(60)], object)
    names = np.array([f"v{i}" for i in range(20)], object)
    pairs = [("t3", "v1"), ("v1", "t40"), ("v2", "t5"), ("v2", "t5"), ("v1", "v2"), ("t1", "t2")]
    pairs += [(f"t{i}", "v7") for i in range(55)]
    gallery = Gallery({"one": "abcde", "two": "abcde"}, paths, labels, vectors, None)
    frame = pd.DataFrame(pairs, columns=["first", "second"])
    found = retrieval_quality(queries, names, asked, gallery, near_duplicates=frame)
    gone = [
        {int(a[1:]) for a, b in [*pairs, *(p[::-1] for p in pairs)] if b == name and a[0] == "t"}
        for name in names
    ]
    assert max(map(len, gone)) == 55
    for column, task in enumerate(["one", "two"]):
        q, g = asked[:, column] >= 0, np.flatnonzero(labels[:, column] >= 0)
        without = [
            {int(np.searchsorted(g, i)) for i in rows if i in g}
            for rows, labelled in zip(gone, q, strict=True)
            if labelled
        ]
        for key, name in (("shared", SHARED), ("head", task)):
            assert found[task][key] == by_hand(
                queries[name][q], asked[q, column], vectors[name][g], labels[g, column], without
            )
        assert found[task]["queries"] == q.sum()
    plain = retrieval_quality(queries, names, asked, gallery)
    assert plain != found


def test_quality_of_a_run(run, known, data):
    """By the colours; the head of a linear model sees what the trunk sees."""
    model = load_network(run.best_model, run.spec, known.CLASSES)
    table = load_table(run.spec, run.data_dir)
    images = run.data_dir / run.spec.images
    predictions, _ = predict_exam(model, table, run.spec, images, batch_size=7, max_missing=1)
    queries = {name: normalised(vectors) for name, vectors in predictions.vectors.items()}
    gallery = load_or_build(run, model, run.best_model, tell=str)
    found = retrieval_quality(queries, predictions.paths, predictions.labels, gallery)
    names = sorted(data.train_labels["shade"])
    vectors = normalised([data.painted[path] for path in names])
    for task in ("shade", "warmth"):
        asked = sorted(data.labels[task].keys() - set(data.missing))
        expected = by_hand(
            normalised([data.painted[path] for path in asked]),
            [data.labels[task][path] for path in asked],
            vectors,
            [data.train_labels[task][path] for path in names],
            [()] * len(asked),
        )
        assert found[task] == {
            "queries": len(asked),
            "shared": expected,
            "head": expected,
        }
    assert found["empty"]["queries"] == 0
    assert json.loads(json.dumps(found)) == found


# === Far from its class ===


def test_distance_to_the_mean_of_the_own_class(tmp_path):
    classes = {"one": ("a", "b", "c")}
    vectors = np.array([[1, 0], [0, 1], [0, 2], [5, 5]], np.float32)
    gallery = Gallery(
        classes,
        np.array(list("wxyz"), object),
        np.array([[0], [0], [1], [MISSING]], np.int32),
        {"one": normalised(vectors).astype(np.float16)},
        tmp_path,
    )
    exam = Predictions(
        classes,
        np.array(list("pqrs"), object),
        np.array([[0], [1], [2], [MISSING]], np.int32),
        {"one": np.full((4, 3), 1 / 3, np.float32)},
        {"one": np.array([[3, 0], [1, 1], [1, 0], [1, 0]], np.float32)},
    )
    # The mean of a is (.5, .5), of b (0, 1); nothing is known of c, and s has no label.
    found = class_distances(gallery, exam)["one"]
    np.testing.assert_allclose(found[:2], [1 - 0.5**0.5, 1 - 0.5**0.5], atol=1e-3)
    assert np.isnan(found[2:]).all()
