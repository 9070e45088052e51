"""Conformal sets: scores by hand, quantiles by sorting, and coverage by simulation."""

import doctest
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from multitask import conformal
from multitask.conformal import (
    FREE_RANKS,
    PENALTY,
    STORED,
    Conformal,
    ScoreTable,
    class_scores,
    coverage_interval,
    expected_interval,
    fit_conformal,
    prediction_sets,
    rank_of,
    why_too_few,
)
from multitask.spec import InputError


def sampled(rng, examples, classes, *, sharpness=1.5, error=1.0):
    """Labels of softmax(logits), and the probabilities of a model that sees the logits with an
    error: neither right nor calibrated, which conformal sets do not need."""
    logits = rng.normal(0, sharpness, (examples, classes))
    chances = scipy.special.softmax(logits, axis=1)
    labels = (chances.cumsum(axis=1) > rng.random((examples, 1))).argmax(axis=1)
    seen = logits + rng.normal(0, error, logits.shape)
    return labels, scipy.special.softmax(seen, axis=1)


def covered(labels, sets):
    return sets[np.arange(len(labels)), labels]


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(conformal)
    assert result.attempted >= 8
    assert result.failed == 0


# === Scores and sets ===


def test_scores_of_three_classes_by_hand():
    """Before the second class stands .5, before the third .8 and one penalty (rank 3 > 2)."""
    assert (PENALTY, FREE_RANKS) == (0.01, 2)
    scores = class_scores(np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], np.float32))
    np.testing.assert_allclose(scores, [[0.81, 0.0, 0.5], [0.8, 0.91, 0.0]], atol=1e-7)


def test_scores_are_those_of_the_formula():
    """Eq. 4 of the paper, class by class."""
    probabilities = np.random.default_rng(0).dirichlet(np.full(9, 0.5), 20)
    for row, scores in zip(probabilities, class_scores(probabilities), strict=True):
        for label, score in enumerate(scores):
            rank = 1 + (row > row[label]).sum()
            mass = row[row > row[label]].sum()
            assert score == pytest.approx(mass + PENALTY * max(0, rank - FREE_RANKS))


def test_sets_have_the_most_probable_classes_and_never_none():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.05, 0.9, 0.05]])
    assert prediction_sets(probabilities, 0.5).tolist() == [
        [False, True, True],
        [False, True, False],
    ]
    assert prediction_sets(probabilities, 0.95).tolist() == [
        [True, True, True],
        [True, True, False],
    ]
    assert prediction_sets(probabilities, -1.0).tolist() == [[False, True, False]] * 2
    assert prediction_sets(probabilities, math.inf).all()
    assert prediction_sets(np.zeros((0, 3)), 0.5).shape == (0, 3)


# === Tables ===


@pytest.mark.parametrize("coverage", [0.01, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("images", [99, 100, 257])
def test_a_quantile_is_that_of_the_sorted_scores(images, coverage):
    values = np.random.default_rng(images).random(images).round(2)  # with ties
    rank = math.ceil(round((images + 1) * coverage, 9))
    assert ScoreTable.of(values).quantile(coverage) == np.sort(values)[rank - 1]


def test_a_long_table_is_thinned_and_its_quantiles_are_never_lower():
    values = np.random.default_rng(0).random(50_000)
    ordered, table = np.sort(values), ScoreTable.of(values)
    assert len(table.scores) <= STORED
    assert table.images == len(values)
    for coverage in (0.001, 0.5, 0.8, 0.9, 0.99, 0.999, 0.9999, 0.99998):
        rank = rank_of(coverage, len(values))
        exact, stored = ordered[rank - 1], table.quantile(coverage)
        assert exact <= stored
        # 500 scores are evenly spaced, and 500 become closer towards the highest.
        excess = (values <= stored).sum() - rank
        assert excess <= min(101, 2 + 0.03 * (len(values) - rank))
    assert table.quantile(0.99998) == ordered[-1]


def test_a_table_survives_json():
    table = ScoreTable.of(np.array([0.25, 0.0, 0.0, 1 / 3]))
    assert (table.scores, table.counts) == ((0.0, 0.25, 1 / 3), (2, 3, 4))
    assert ScoreTable.from_dict(table.to_dict()) == table
    assert ScoreTable.from_dict(ScoreTable().to_dict()) == ScoreTable()


@pytest.mark.parametrize(
    "content",
    [
        {"scores": [0.1, 0.2], "counts": [1]},
        {"scores": [0.2, 0.1], "counts": [1, 2]},
        {"scores": [0.1, 0.2], "counts": [2, 2]},
        {"scores": [0.1], "counts": [0]},
        {"scores": [math.nan], "counts": [1]},
        {"scores": [0.1]},
        {"scores": 3, "counts": 3},
    ],
)
def test_a_broken_table_is_refused(content):
    with pytest.raises((KeyError, TypeError, ValueError)):
        ScoreTable.from_dict(content)


# === Coverage, by simulation ===


@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_the_coverage_of_each_task_is_kept(coverage):
    """The mean over many validation splits is at least the promise and less than 1 / (n + 1) above
    it; the coverages of single splits are spread as Beta(k, n + 1 - k)."""
    rng, images, tests = np.random.default_rng(1), 100, 2000
    shares = []
    for _ in range(300):
        labels, probabilities = sampled(rng, images + tests, 6, sharpness=1.0)
        fitted = fit_conformal({"t": labels[:images]}, {"t": probabilities[:images]})
        sets = prediction_sets(probabilities[images:], fitted.thresholds(coverage)["t"])
        shares.append(covered(labels[images:], sets).mean())
    rank = math.ceil(101 * coverage - 1e-9)
    beta = scipy.stats.beta(rank, 101 - rank)
    error = 3 * beta.std() / math.sqrt(len(shares))
    assert coverage - error < np.mean(shares) < coverage + 1 / 101 + error
    assert np.std(shares) == pytest.approx(
        math.sqrt(beta.var() + coverage * (1 - coverage) / tests), rel=0.15
    )


def three_tasks(rng, images, *, labelled=(0.6, 0.8, 0.9)):
    """Images whose tasks are hard together, and lack some labels."""
    effort = rng.gamma(2, 1, images)[:, None]
    labels, probabilities = {}, {}
    for task, classes, share in zip("abc", (4, 8, 12), labelled, strict=True):
        logits = rng.normal(0, 2, (images, classes)) / effort
        chances = scipy.special.softmax(logits, axis=1)
        own = (chances.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
        labels[task] = np.where(rng.random(images) < share, own, -1)
        noise = rng.normal(0, 0.5, logits.shape)
        probabilities[task] = scipy.special.softmax(logits + noise, axis=1)
    return labels, probabilities


def of_rows(arrays, rows):
    return {task: values[rows] for task, values in arrays.items()}


def all_covered(labels, probabilities, thresholds):
    """Whether the sets of an image hold all labels that it has."""
    result = np.ones(len(next(iter(labels.values()))), bool)
    for task, own in labels.items():
        result &= covered(own, prediction_sets(probabilities[task], thresholds[task])) | (own < 0)
    return result


def test_joint_coverage_is_kept_and_marginal_sets_do_not_have_it():
    """For images with several labels. The sets per task cover them less often, about as the
    product of the tasks; joint sets are not as large as Bonferroni's."""
    rng, images, tests = np.random.default_rng(2), 200, 2000
    levels = (0.8, 0.9)
    joint, marginal = ({coverage: [] for coverage in levels} for _ in range(2))
    sizes = {(coverage, name): [] for coverage in levels for name in ("joint", "bonferroni")}
    for _ in range(100):
        labels, probabilities = three_tasks(rng, images + tests)
        fitted = fit_conformal(
            of_rows(labels, slice(images)), of_rows(probabilities, slice(images))
        )
        test = of_rows(labels, slice(images, None))
        chances = of_rows(probabilities, slice(images, None))
        several = sum(own >= 0 for own in test.values()) > 1
        for coverage in levels:
            thresholds = fitted.thresholds(coverage, joint=True)
            alone, crude = (fitted.thresholds(c) for c in (coverage, 1 - (1 - coverage) / 3))
            joint[coverage].append(all_covered(test, chances, thresholds)[several].mean())
            marginal[coverage].append(all_covered(test, chances, alone)[several].mean())
            for name, used in (("joint", thresholds), ("bonferroni", crude)):
                sizes[coverage, name].append(
                    sum(prediction_sets(chances[task], used[task]).sum() for task in "abc")
                )
    n = fitted.joint.images
    for coverage in levels:
        beta = scipy.stats.beta(rank_of(coverage, n), n + 1 - rank_of(coverage, n))
        error = 3 * beta.std() / math.sqrt(len(joint[coverage]))
        # Levels are ranks among n + 1, so that up to one rank of each task is lost.
        assert coverage - error < np.mean(joint[coverage]) < coverage + 4 / (n + 1) + error
        assert coverage**3 - 0.03 < np.mean(marginal[coverage]) < coverage - 0.03
        assert np.mean(sizes[coverage, "joint"]) < np.mean(sizes[coverage, "bonferroni"])


def test_joint_thresholds_by_hand():
    """Two tasks of two classes. The second class has the score p, if p is the first's."""

    def of(*first):
        return np.stack([first, np.subtract(1, first)], axis=1)

    labels = {"a": np.array([1, 1, 1, 1, -1]), "b": np.array([1, 1, 1, -1, 1])}
    probabilities = {"a": of(0.6, 0.7, 0.8, 0.9, 0.5), "b": of(0.9, 0.8, 0.7, 0.5, 0.6)}
    fitted = fit_conformal(labels, probabilities)
    # Ranks of the first three images: a 1 2 3 of 4, b 4 3 2 of 4. The level of rank r is
    # (1 + r) / 5, so the maxima are 5/5, 4/5 and 4/5; the other two have one label.
    assert fitted.joint.to_dict() == {"scores": [0.8, 1.0], "counts": [2, 3]}
    # Coverage 1/2 of 3 images: rank 2, level 4/5: scores of rank 3 or less, so below the fourth.
    for task in "ab":
        threshold = fitted.thresholds(0.5, joint=True)[task]
        assert 0.8 < threshold < 0.9
        assert not prediction_sets(of(0.9), threshold)[0, 1]
        assert prediction_sets(of(0.8999), threshold)[0, 1]
    assert fitted.thresholds(0.75, joint=True) == {"a": math.inf, "b": math.inf}


def test_an_exported_task_keeps_its_sets():
    labels, probabilities = three_tasks(np.random.default_rng(3), 200)
    whole = fit_conformal(labels, probabilities)
    two = whole.of_tasks(("c", "a"))
    restored = Conformal.from_dict(two.to_dict(), ("c", "a"))
    assert restored == two
    for joint in (False, True):
        thresholds = whole.thresholds(0.9, joint=joint)
        assert restored.thresholds(0.9, joint=joint) == {t: thresholds[t] for t in "ca"}
    assert whole.of_tasks("b").joint == ScoreTable()


# === Too few images ===


@pytest.mark.parametrize(
    ("images", "coverage", "reason"),
    [
        (9, 0.9, None),
        (19, 0.95, None),
        (8, 0.9, "8 validation images have a label; they allow a coverage up to 0.888"),
        (1, 0.6, "1 validation image has a label; they allow a coverage up to 0.5"),
        (0, 0.1, "no validation image has a label"),
    ],
)
def test_the_number_of_images_limits_the_coverage(images, coverage, reason):
    table = ScoreTable.of(np.arange(images) / 10)
    assert why_too_few(table, coverage) == reason
    assert math.isinf(table.quantile(coverage)) == (reason is not None)


def test_a_coverage_that_cannot_be_promised_is_one_line():
    tables = {"a": ScoreTable.of(np.arange(30.0)), "b": ScoreTable.of(np.arange(5.0))}
    fitted = Conformal(tables, ScoreTable.of(np.arange(1, 4) / 3))
    with pytest.raises(InputError) as caught:
        fitted.thresholds(0.95)
    assert str(caught.value) == (
        "coverage: 0.95: b: 5 validation images have a label; they allow a coverage up to 0.833"
    )
    with pytest.raises(InputError) as caught:
        fitted.thresholds(0.8, joint=True)
    assert str(caught.value) == (
        "coverage: 0.8: joint: 3 validation images have labels of several tasks; they allow a "
        "coverage up to 0.75"
    )
    for wrong in (0, 1, -0.5, 90, math.nan):
        with pytest.raises(InputError, match=r"expected a number between 0 and 1, such as 0\.9"):
            fitted.thresholds(wrong)


# === Intervals ===


def test_intervals_are_those_of_scipys_distributions():
    for images, coverage, tests in ((250, 0.9, 1300), (40, 0.8, 7), (99, 0.99, 100)):
        rank = math.ceil(round((images + 1) * coverage, 9))
        beta = scipy.stats.beta(rank, images + 1 - rank)
        assert coverage_interval(images, coverage) == pytest.approx(beta.interval(0.95))
        both = scipy.stats.betabinom(tests, rank, images + 1 - rank)
        assert expected_interval(images, coverage, tests) == pytest.approx(
            np.array(both.interval(0.95)) / tests
        )
