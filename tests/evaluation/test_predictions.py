"""Predictions of a model whose outputs are known from the images' colours."""

import csv
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from multitask.data.merging import load_table
from multitask.evaluation.examiner import Examiner, compiled, examiner_of
from multitask.evaluation.predictions import Predictions, predict_split
from multitask.runtimes.libraries import RUNTIMES
from multitask.spec import MISSING, InputError


@pytest.fixture(scope="module")
def examiner(known):
    return Examiner(known.colour_model())


@pytest.fixture(scope="module")
def test_set(known, examiner, data):
    """(Predictions, unreadable) of the whole test split."""
    spec = known.colour_spec()
    table = load_table(spec, data.folder)
    images = data.folder / spec.images
    limit = spec.max_missing
    return predict_split(examiner, table, spec, images, batch_size=7, max_missing=limit)


def test_the_compiled_model_is_the_model(known):
    model = known.colour_model()
    for count in (1, 3):
        image = np.random.default_rng(count).uniform(0, 255, (count, 32, 32, 3)).astype(np.float32)
        outputs, expected = compiled(model)(image), model(image, training=False)
        assert list(outputs) == list(expected)
        for task in expected:
            np.testing.assert_allclose(outputs[task], expected[task], atol=1e-5)


def test_by_another_library_and_where_it_is_missing(test_set, known, data, monkeypatch):
    """The same predictions and embeddings; a run whose library is missing is evaluated all the
    same."""
    spec = known.colour_spec(features={"runtime": "onnxruntime"})
    trained = SimpleNamespace(network=known.colour_model(), spec=spec)
    table, images = load_table(spec, data.folder), data.folder / spec.images
    for installed in (True, False):
        if not installed:
            gone = dataclasses.replace(RUNTIMES["onnxruntime"], module="gone")
            monkeypatch.setitem(RUNTIMES, "onnxruntime", gone)
        examiner = examiner_of(trained)
        result, _ = predict_split(examiner, table, spec, images, batch_size=7, max_missing=1)
        used = "tensorflow" if examiner._trunk is None else examiner._trunk.runtime
        assert used == ("onnxruntime" if installed else "tensorflow")
        np.testing.assert_array_equal(result.paths, test_set[0].paths)
        for name, vectors in test_set[0].vectors.items():
            np.testing.assert_allclose(result.vectors[name], vectors, atol=1e-5)
        for task, values in test_set[0].probabilities.items():
            np.testing.assert_allclose(result.probabilities[task], values, atol=1e-5)


def test_every_readable_image_once_in_the_order_of_the_table(test_set, data, known):
    predictions, _ = test_set
    wanted = {p for labels in data.labels.values() for p in labels} - set(data.missing)
    assert list(predictions.paths) == sorted(wanted)
    assert predictions.labels.shape == (len(wanted), 3)
    assert {t: p.shape for t, p in predictions.probabilities.items()} == {
        task: (len(wanted), len(names)) for task, names in known.CLASSES.items()
    }


def test_labels_and_predictions_belong_to_their_images(test_set, data, known):
    """By each image's colour and CSV row; the lists are shuffled, and files are missing."""
    predictions, _ = test_set
    painted = np.array([data.painted[path] for path in predictions.paths])
    expected = known.answers(painted)
    for column, task in enumerate(known.CLASSES):
        np.testing.assert_allclose(predictions.probabilities[task], expected[task], atol=1e-5)
        labels = [data.labels[task].get(path, MISSING) for path in predictions.paths]
        np.testing.assert_array_equal(predictions.labels[:, column], labels)


@pytest.mark.parametrize("batch_size", [1, 1000])
def test_the_batch_size_changes_nothing(test_set, data, known, examiner, batch_size):
    spec = known.colour_spec()
    again, _ = predict_split(
        examiner,
        load_table(spec, data.folder),
        spec,
        data.folder / spec.images,
        batch_size=batch_size,
        max_missing=1,
    )
    np.testing.assert_array_equal(again.paths, test_set[0].paths)
    for task, probabilities in again.probabilities.items():
        np.testing.assert_allclose(probabilities, test_set[0].probabilities[task], atol=1e-6)


def test_test_gives_the_labelled_rows_alone(test_set, data):
    predictions, _ = test_set
    for task in ("shade", "warmth"):
        rows, labels, probabilities = predictions.labelled_examples(task)
        paths = list(predictions.paths[rows])
        assert paths == sorted(data.labels[task].keys() - set(data.missing))
        assert list(labels) == [data.labels[task][path] for path in paths]
        np.testing.assert_array_equal(probabilities, predictions.probabilities[task][rows])
    assert len(predictions.labelled_examples("shade")[0]) != len(
        predictions.labelled_examples("warmth")[0]
    )
    rows, labels, probabilities = predictions.labelled_examples("empty")
    assert (len(rows), len(labels), probabilities.shape) == (0, 0, (0, 2))


def test_names_come_from_the_class_file_by_index(known):
    """Class 2 is the third line; sorted as text, "10" and "11" would come before "2"."""
    count = len(known.SHADE)
    labels = np.arange(count, dtype=np.int32)
    probabilities = np.eye(count, dtype=np.float32)[::-1]
    one = Predictions(
        {"shade": known.SHADE}, np.array(["x"] * count), labels[:, None], {"shade": probabilities}
    )
    frame = one.frame()
    assert list(frame["shade/true"]) == list(known.SHADE)
    assert list(frame["shade/predicted"]) == list(known.SHADE)[::-1]
    assert (frame["shade/confidence"] == 1).all()


def test_an_image_without_a_label_has_an_answer_and_no_truth(test_set):
    predictions, _ = test_set
    frame = predictions.frame()
    unlabelled = ~frame["path"].isin(predictions.paths[predictions.labelled_examples("warmth")[0]])
    assert 0 < unlabelled.sum() < len(frame)
    assert (frame.loc[unlabelled, "warmth/true"] == "").all()
    assert (frame.loc[~unlabelled, "warmth/true"] != "").all()
    assert frame["warmth/predicted"].isin(["warm", "cold", "neither"]).all()
    assert (frame["empty/true"] == "").all()


def test_what_is_saved_is_what_was_predicted(test_set, tmp_path, known):
    predictions, _ = test_set
    folder = tmp_path / "results"
    predictions.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["predictions.csv", "probabilities.npz"]
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(predictions.paths)
    saved = np.load(folder / "probabilities.npz")
    assert set(saved.files) == {f"{task}/probabilities" for task in known.CLASSES}
    for column, (task, names) in enumerate(known.CLASSES.items()):
        expected = predictions.probabilities[task].astype(np.float32)
        np.testing.assert_array_equal(saved[f"{task}/probabilities"], expected)
        for row, label, values in zip(rows, predictions.labels[:, column], expected, strict=True):
            assert row[f"{task}/true"] == (names[label] if label != MISSING else "")
            assert row[f"{task}/predicted"] == names[int(np.argmax(values))]
            assert float(row[f"{task}/confidence"]) == pytest.approx(float(max(values)), abs=1e-6)


def test_missing_files_are_listed_with_their_reason(test_set, data):
    _, unreadable = test_set
    listed = {path for labels in data.labels.values() for path in labels}
    assert sorted(unreadable["path"]) == sorted(listed & set(data.missing))
    assert set(unreadable["reason"]) == {"no such file"}


def test_an_unreadable_image_in_the_middle_shifts_nothing(test_set, known, examiner, tmp_path):
    """A text file and an empty file, between the other images."""
    data = known.paint(tmp_path / "data")
    spec = known.colour_spec()
    bad = [str(path) for path in test_set[0].paths[[4, 11]]]
    (data.folder / spec.images / bad[0]).write_text("a text")
    (data.folder / spec.images / bad[1]).write_bytes(b"")
    table = load_table(spec, data.folder)
    result, unreadable = predict_split(
        examiner,
        table,
        spec,
        data.folder / "images",
        batch_size=4,
        max_missing=1,
    )
    kept = ~np.isin(test_set[0].paths, bad)
    np.testing.assert_array_equal(result.paths, test_set[0].paths[kept])
    np.testing.assert_array_equal(result.labels, test_set[0].labels[kept])
    for task, probabilities in result.probabilities.items():
        expected = test_set[0].probabilities[task][kept]
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    reasons = dict(zip(unreadable["path"], unreadable["reason"], strict=True))
    assert "unknown content" in reasons[bad[0]]
    assert "empty" in reasons[bad[1]]


def test_more_missing_images_than_allowed_are_refused(known, examiner, data):
    """The share refers to all images of the table, and the limit itself is allowed."""
    spec = known.colour_spec()
    table = load_table(spec, data.folder)
    listed = {path for labels in data.labels.values() for path in labels}
    missing = len(listed & set(data.missing))
    arguments = (examiner, table, spec, data.folder / "images")
    with pytest.raises(InputError) as caught:
        predict_split(*arguments, batch_size=16, max_missing=(missing - 0.5) / len(table))
    text = str(caught.value)
    assert f"{missing} of {len(table)} images" in text
    assert "--max_missing" in text
    assert "--data_dir" in text
    assert sum(path in text for path in data.missing) == missing
    _, unreadable = predict_split(*arguments, batch_size=16, max_missing=missing / len(table))
    assert len(unreadable) == missing


def test_no_readable_image_is_refused_for_every_limit(known, examiner, data, tmp_path):
    spec = known.colour_spec()
    table = load_table(spec, data.folder)
    with pytest.raises(InputError, match="none of the"):
        predict_split(examiner, table, spec, tmp_path, batch_size=16, max_missing=1)


def test_training_images_are_not_predicted(known, examiner, data):
    """A test image without a label is not predicted either."""
    spec = known.colour_spec()
    table = load_table(spec, data.folder)
    blank = dataclasses.replace(table, labels=table.labels.copy())
    row = int(np.flatnonzero(table.paths == sorted(data.labels["shade"])[0])[0])
    blank.labels[row] = MISSING
    result, _ = predict_split(
        examiner,
        blank,
        spec,
        data.folder / "images",
        batch_size=64,
        max_missing=1,
    )
    assert table.paths[row] not in result.paths
    assert not set(result.paths) & data.train_labels["shade"].keys()
