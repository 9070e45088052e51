"""The distance to training images, against SciPy's and scikit-learn's on the same numbers."""

import json
import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from multitask import feature_distance
from multitask.feature_distance import (
    FeatureDistance,
    fit_distance,
    is_unlike,
    why_too_few,
)
from multitask.spec import InputError

WIDTH = 24


def embedded(count, seed, *, width=WIDTH, spread=6):
    """Vectors that differ most in the first `spread` coordinates; not of length 1."""
    rng = np.random.default_rng(seed)
    scales = np.where(np.arange(width) < spread, 1.0, 0.2)
    return (3 + rng.normal(0, 1, (count, width)) * scales) * rng.uniform(0.5, 2, (count, 1))


def of_length_1(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def fitted():
    return fit_distance(embedded(400, 0), embedded(250, 1))


# === The distance ===


def test_it_is_the_distance_of_probabilistic_pca(fitted):
    """scikit-learn's PCA has the same model, and SciPy the distance under its covariance."""
    training, images = of_length_1(embedded(400, 0)), embedded(20, 2)
    model = PCA(n_components=WIDTH // 2, svd_solver="full").fit(training)
    squares = cdist(
        of_length_1(images), training.mean(axis=0)[None], "mahalanobis", VI=model.get_precision()
    )
    expected = squares[:, 0] / math.sqrt(WIDTH)
    np.testing.assert_allclose(fitted.distances(images), expected, rtol=1e-4)
    assert fitted.directions.shape == (WIDTH // 2, WIDTH)


def test_it_is_about_1_for_training_images_and_larger_for_others(fitted):
    own = fitted.distances(embedded(400, 0))
    assert np.sqrt((own**2).mean()) == pytest.approx(1, abs=0.01)
    far = fitted.distances(np.random.default_rng(5).normal(0, 1, (50, WIDTH)))
    assert far.min() > own.max()


def test_the_distance_of_an_image_does_not_depend_on_its_batch(fitted):
    images = embedded(1500, 6)
    alone = [fitted.distances(image[None])[0] for image in images[::97]]
    assert fitted.distances(images)[::97].tolist() == alone
    assert fitted.distances(images[:0]).shape == (0,)
    single = fitted.distances(images.astype(np.float32) * 100)
    np.testing.assert_allclose(single, fitted.distances(images), rtol=1e-4)


def test_the_same_images_give_the_same_distance(fitted):
    again = fit_distance(embedded(400, 0), embedded(250, 1))
    assert again.to_dict() == fitted.to_dict()


@pytest.mark.parametrize(
    ("count", "width", "kept"), [(30, 24, 7), (400, 24, 12), (400, 400, 64), (400, 1, 0)]
)
def test_few_images_or_a_narrow_trunk_have_fewer_directions(count, width, kept):
    distance = fit_distance(embedded(count, 7, width=width), embedded(30, 8, width=width))
    assert len(distance.directions) == kept
    assert np.isfinite(distance.distances(embedded(5, 9, width=width))).all()


def test_more_images_are_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr(feature_distance, "MOST_IMAGES", 101)
    training, validation = embedded(501, 10), embedded(40, 11)
    thinned = fit_distance(training[::5], validation)
    assert fit_distance(training, validation).to_dict() == thinned.to_dict()
    assert thinned.training_images == 101


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_that_are_all_the_same_are_no_error(value):
    distance = fit_distance(np.full((40, 8), value), np.full((40, 8), value))
    assert distance.distances(np.full((1, 8), value)) == pytest.approx(0, abs=1e-2)
    assert distance.distances(np.eye(8)).min() > 100


def test_embeddings_that_are_not_finite_are_refused():
    training = embedded(40, 12)
    for values in ((np.full((40, WIDTH), np.nan), training), (training, training * np.inf)):
        with pytest.raises(ValueError, match="an embedding is not finite"):
            fit_distance(*values)


# === Thresholds ===


@pytest.mark.parametrize(("share", "rank"), [(0.01, 249), (0.05, 239), (0.1, 226), (0.5, 126)])
def test_a_threshold_is_the_order_statistic_of_its_rank(fitted, share, rank):
    """Rank ceil((n + 1)(1 - share)) of n = 250, as in conformal prediction."""
    distances = np.sort(fitted.distances(embedded(250, 1)))
    assert fitted.limit(share) == pytest.approx(distances[rank - 1], abs=0)
    if share == 0.01:
        assert fitted.limit() == fitted.limit(0.01)


def test_the_promise_holds_for_new_images():
    """The mean share of new images, over 300 splits, is at most the chosen share."""
    distance = fit_distance(embedded(400, 13), embedded(30, 14))
    values = distance.distances(embedded(30_000, 15)).reshape(300, 100)
    shares = []
    for validation, new in zip(values[::2], values[1::2], strict=True):
        table = feature_distance.ScoreTable.of(validation)
        one = FeatureDistance(**{**vars(distance), "validation": table})
        shares.append(is_unlike(new, one.limit(0.1)).mean())
    assert np.mean(shares) == pytest.approx(10 / 101, abs=0.01)


def test_with_few_images_the_default_is_the_least_share():
    distance = fit_distance(embedded(100, 16), embedded(39, 17))
    assert distance.default_share == 1 / 40
    assert distance.limit() == distance.distances(embedded(39, 17)).max()
    with pytest.raises(InputError) as raised:
        distance.limit(0.01)
    assert str(raised.value) == (
        "max_unlike: 0.01: the 39 validation images allow a share from 0.025, or 0"
    )
    assert raised.value.field == "max_unlike"


def test_a_share_of_0_refuses_nothing(fitted):
    assert fitted.limit(0) == math.inf
    assert not is_unlike(np.array([1e300, np.nan]), math.inf).any()
    assert is_unlike(np.array([0.9, 1.4, np.nan]), 1.2).tolist() == [False, True, True]


@pytest.mark.parametrize("share", [-0.1, 1, 90, math.nan])
def test_a_share_that_is_none_is_refused(fitted, share):
    with pytest.raises(InputError, match="expected a number from 0 to below 1, such as 0"):
        fitted.limit(share)


def test_too_few_images_are_a_reason():
    assert why_too_few(30, 30) is None
    assert why_too_few(29, 500) == "29 training images, at least 30 are needed"
    assert why_too_few(30, 1) == "1 validation image, at least 30 are needed"


# === The file ===


def test_a_distance_survives_its_file(fitted):
    read = FeatureDistance.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert read.to_dict() == fitted.to_dict()
    images = embedded(30, 18)
    assert read.distances(images).tolist() == fitted.distances(images).tolist()
    assert read.limit() == fitted.limit()
    assert (read.width, read.training_images) == (WIDTH, 400)


def test_a_file_is_small():
    """With the features of EfficientNetB2 and thousands of validation images."""
    distance = fit_distance(embedded(300, 19, width=1408), embedded(3000, 20, width=1408))
    assert len(json.dumps(distance.to_dict())) < 600_000


@pytest.mark.parametrize(
    "change",
    [
        {"mean": "not base64!"},
        {"mean": 5},
        {"mean": ""},
        {"mean": "AAAA"},  # three bytes
        {"directions": "AAAAAA=="},
        {"variances": "AADAfw=="},  # NaN
        {"noise": 0},
        {"noise": -1},
        {"noise": "nan"},
        {"noise": None},
        {"validation": []},
        {"validation": {"scores": [], "counts": []}},
        {"validation": {"scores": [-1.0], "counts": [1]}},
        {"validation": {"scores": [2.0, 1.0], "counts": [1, 2]}},
        {"training_images": None},
    ],
)
def test_a_broken_file_is_refused(fitted, change):
    with pytest.raises((KeyError, TypeError, ValueError)):
        FeatureDistance.from_dict(fitted.to_dict() | change)
    missing = fitted.to_dict()
    del missing[next(iter(change))]
    with pytest.raises(KeyError):
        FeatureDistance.from_dict(missing)
