"""Drawn splits: compared with hashes and counts of our own, scikit-learn and all possible draws."""

import hashlib
import unicodedata

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from multitask.data.draw import draw_rows
from multitask.data.groups import join_units
from multitask.spec import InputError

SIZES = (9, 6, 4)  # classes of three tasks


def names_for(rows):
    return [f"photos/{row:05}.jpg" for row in range(rows)]


def random_labels(rows, seed=0, sizes=SIZES, missing=0.2):
    rng = np.random.default_rng(seed)
    columns = [rng.choice(size, rows, p=rng.dirichlet(np.ones(size))) for size in sizes]
    labels = np.stack(columns, axis=1).astype(np.int32)
    labels[rng.random(labels.shape) < missing] = -1
    return labels


def chi_square(labels, drawn, share):
    """Pearson's statistic of the drawn counts against the share of each class of each task."""
    total = 0.0
    for column in labels.T:
        counts = np.bincount(column[column >= 0])
        got = np.bincount(column[drawn & (column >= 0)], minlength=len(counts))
        got, counts = got[counts > 0], counts[counts > 0]
        total += ((got - share * counts) ** 2 / (share * counts)).sum()
    return total


def units_of_classes(labels, units):
    """(task, class) -> its units."""
    return {
        (task, label): set(units[labels[:, task] == label].tolist())
        for task in range(labels.shape[1])
        for label in np.unique(labels[:, task])
        if label >= 0
    }


# === Which rows ===


def test_the_rows_of_one_task_are_those_of_the_lowest_hashes():
    labels = np.repeat([0, 1, 2], [10, 25, 5])[:, None].astype(np.int32)
    names = names_for(40)
    names[3] = "photos/caf\u00e9.jpg"
    drawn = draw_rows(labels, names, 0.2, seed=7).rows
    for label, count in ((0, 2), (1, 5), (2, 1)):
        rows = np.flatnonzero(labels[:, 0] == label)
        digests = [
            hashlib.blake2b(f"7\0test\0{names[row]}".encode(), digest_size=8).hexdigest()
            for row in rows
        ]
        assert set(np.flatnonzero(drawn & (labels[:, 0] == label))) == set(
            rows[np.argsort(digests)[:count]]
        )


def test_a_decomposed_name_is_drawn_like_a_composed_one():
    labels = random_labels(200)
    names = [f"café/{row}.jpg" for row in range(200)]
    other = [unicodedata.normalize("NFD", name) for name in names]
    assert names != other
    one, two = (draw_rows(labels, n, 0.2, seed=0).rows for n in (names, other))
    assert (one == two).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_the_rows_does_not_matter(grouped):
    labels, names = random_labels(3000), np.asarray(names_for(3000), object)
    units = np.arange(3000) // 3 if grouped else None
    drawn = draw_rows(labels, names, 0.2, seed=0, units=units).rows
    order = np.random.default_rng(1).permutation(3000)
    shuffled = draw_rows(
        labels[order], names[order], 0.2, seed=0, units=None if units is None else units[order]
    ).rows
    assert (drawn[order] == shuffled).all()


def test_numbers_of_units_do_not_matter():
    labels, units = random_labels(600), np.arange(600) // 4
    other = np.random.default_rng(2).permutation(150)[units]
    one, two = (
        draw_rows(labels, names_for(600), 0.2, seed=0, units=u).rows for u in (units, other)
    )
    assert (one == two).all()


def test_seed_and_purpose_change_the_draw():
    labels, names = random_labels(2000), names_for(2000)
    draws = [
        draw_rows(labels, names, 0.2, seed=seed, purpose=purpose).rows
        for seed, purpose in ((0, "test"), (1, "test"), (0, "validation"))
    ]
    assert (draws[0] == draw_rows(labels, names, 0.2, seed=0).rows).all()
    for one, two in ((0, 1), (0, 2), (1, 2)):
        # Two independent fifths share 4 % of the rows.
        assert (draws[one] & draws[two]).mean() == pytest.approx(0.04, abs=0.015)


def test_rows_of_one_image_stay_together():
    names = [f"{row // 2}.jpg" for row in range(400)]
    drawn = draw_rows(random_labels(400, missing=0), names, 0.2, seed=0).rows
    assert drawn.sum() == 80
    assert (drawn[::2] == drawn[1::2]).all()


def test_rows_without_a_label_and_rows_not_allowed_are_never_drawn():
    labels = random_labels(1000, missing=0.6)
    test = draw_rows(labels, names_for(1000), 0.2, seed=0).rows
    validation = draw_rows(
        labels, names_for(1000), 0.1, seed=0, allowed=~test, purpose="validation", at_least=0
    ).rows
    unlabelled = (labels < 0).all(axis=1)
    assert unlabelled.any()
    assert not (unlabelled & (test | validation)).any()
    assert not (test & validation).any()
    assert validation.sum() == round(0.1 * (~test & ~unlabelled).sum())


# === How many of each class ===


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_one_task_is_drawn_as_evenly_as_by_scikit_learn(share):
    labels = random_labels(2000, sizes=(12,), missing=0)
    drawn = draw_rows(labels, names_for(2000), share, seed=0).rows
    splitter = StratifiedShuffleSplit(1, test_size=share, random_state=0)
    (_, theirs), *_ = splitter.split(labels, labels[:, 0])
    counts = np.bincount(labels[:, 0])
    ours = np.bincount(labels[drawn, 0], minlength=len(counts))
    assert drawn.sum() == len(theirs) == share * 2000
    assert np.abs(ours - share * counts).max() < 1
    assert np.abs(ours - np.bincount(labels[theirs, 0], minlength=len(counts))).max() <= 1


def test_several_tasks_are_drawn_evenly_at_once_and_so_are_their_combinations():
    labels = random_labels(5000)
    drawn = draw_rows(labels, names_for(5000), 0.2, seed=0).rows
    assert drawn.sum() == round(0.2 * (labels >= 0).any(axis=1).sum())
    for column in labels.T:
        counts = np.bincount(column[column >= 0])
        got = np.bincount(column[drawn & (column >= 0)], minlength=len(counts))
        assert np.abs(got - 0.2 * counts).max() <= 4
    combined = (labels[:, 0] + 1) * 100 + labels[:, 1] + 1
    random = np.random.default_rng(0).permutation(drawn)
    ours, chance = (chi_square(combined[:, None], rows, 0.2) for rows in (drawn, random))
    assert ours < chance / 3


def test_groups_are_drawn_as_evenly_as_by_scikit_learn_or_better():
    rng = np.random.default_rng(3)
    for seed in range(3):
        labels = random_labels(3000, seed, sizes=(8,), missing=0)
        units = np.sort(rng.integers(0, 300, 3000))
        # A group has mostly one class, as an artist has a style.
        labels[:, 0] = np.where(rng.random(3000) < 0.7, units % 8, labels[:, 0])
        drawn = draw_rows(labels, names_for(3000), 0.2, seed=seed, units=units).rows
        folds = StratifiedGroupKFold(5).split(labels, labels[:, 0], units)
        theirs = [np.isin(np.arange(3000), test) for _, test in folds]
        assert not set(units[drawn]) & set(units[~drawn])
        assert chi_square(labels, drawn, 0.2) <= np.mean(
            [chi_square(labels, t, 0.2) for t in theirs]
        )
        assert drawn.mean() == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize("grouped", [False, True])
def test_each_class_of_two_units_is_on_both_sides(grouped):
    rng = np.random.default_rng(4)
    labels = np.stack([rng.zipf(1.4, 1500) % 200, rng.zipf(1.6, 1500) % 90], axis=1)
    labels = labels.astype(np.int32)
    units = rng.integers(0, 700, 1500) if grouped else np.arange(1500)
    drawn = draw_rows(labels, names_for(1500), 0.2, seed=0, units=units).rows
    inside, outside = set(units[drawn].tolist()), set(units[~drawn].tolist())
    classes = units_of_classes(labels, units)
    assert any(len(members) == 2 for members in classes.values())
    for members in classes.values():
        assert members & outside
        assert (members & inside) or len(members) == 1


def test_small_tables_are_compared_with_all_possible_draws():
    """Nearly always, as many classes are on both sides as in the best possible draw."""
    rng = np.random.default_rng(5)
    ours = best = 0
    for seed in range(150):
        labels = np.stack([rng.integers(0, 3, 8), rng.integers(0, 3, 8)], axis=1).astype(np.int32)
        classes = units_of_classes(labels, np.arange(8)).values()
        if max(len(members) for members in classes) < 2:
            continue
        draws = [{row for row in range(8) if bits >> row & 1} for bits in range(255)]
        possible = [d for d in draws if not any(members <= d for members in classes)]
        best += max(sum(bool(members & d) for members in classes) for d in possible)
        drawn = set(np.flatnonzero(draw_rows(labels, names_for(8), 0.3, seed=seed).rows).tolist())
        assert drawn in possible
        ours += sum(bool(members & drawn) for members in classes)
    assert best > 600
    assert ours >= 0.99 * best


def test_a_class_needs_no_image_in_the_draw_if_at_least_is_0():
    labels = np.repeat(np.arange(100), 2)[:, None].astype(np.int32)
    with_all = draw_rows(labels, names_for(200), 0.05, seed=0)
    assert with_all.rows.sum() == 100
    assert with_all.notes == (
        "test: 100 of 200 labelled images are drawn instead of 10 (the share 0.05), because of "
        "rare classes or large groups",
    )
    assert draw_rows(labels, names_for(200), 0.05, seed=0, at_least=0).rows.sum() == 10


def test_a_large_group_stays_in_training_and_is_noted():
    labels = np.tile([0, 1], 50)[:, None].astype(np.int32)
    units = np.where(np.arange(100) < 40, 0, np.arange(100))
    drawn = draw_rows(labels, names_for(100), 0.2, seed=0, units=units)
    assert not drawn.rows[:40].any()
    assert drawn.rows.sum() == 20
    assert drawn.notes == (
        "1 group has more than the 20 images to draw: kept in training, 40 images",
    )


def test_classes_of_one_group_are_noted():
    labels = np.asarray([0] * 10 + [1] * 10 + [2] * 3, np.int32)[:, None]
    units = np.where(np.arange(23) < 20, np.arange(23), 20)
    drawn = draw_rows(labels, names_for(23), 0.2, seed=0, units=units, tasks=["style"])
    assert not drawn.rows[20:].any()
    assert drawn.notes[0] == (
        'task "style": 1 of 3 classes have only one image or group, which stays in training'
    )


def test_a_share_of_nothing_draws_nothing():
    assert not draw_rows(random_labels(50), names_for(50), 0, seed=0).rows.any()
    assert not draw_rows(np.full((5, 2), -1, np.int32), names_for(5), 0.2, seed=0).rows.any()


# === Bad input ===


@pytest.mark.parametrize(
    ("labels", "units", "share", "message"),
    [
        ([0, 1] * 5, [0] * 10, 0.2, "0.2: all 10 labelled images are in one group, which cannot "),
        (
            [0, 1] * 10,
            [0] * 19 + [1],
            0.2,
            "0.2: 1 group has more than the 4 images to draw (the largest, that of "
            '"photos/00000.jpg", has 19 of 20), and the others have only 1; group by another '
            "column, or change the share",
        ),
        (
            [0] * 5 + [1] * 5,
            [0] * 5 + [1] * 5,
            0.5,
            '0.5: each class of the task "style" is in one image or group, so that no class could '
            "be on both sides; group by another column, or exclude the task",
        ),
        ([0, 1], None, 1.0, "1: must be at least 0 and below 1"),
        ([0, 1], None, -0.1, "-0.1: must be at least 0 and below 1"),
    ],
)
def test_bad_input_is_one_line(labels, units, share, message):
    with pytest.raises(InputError) as error:
        draw_rows(
            np.asarray(labels, np.int32)[:, None],
            names_for(len(labels)),
            share,
            seed=0,
            units=None if units is None else np.asarray(units),
            tasks=["style"],
        )
    assert str(error.value).startswith(f"table: test: {message}")
    assert "\n" not in str(error.value)


def test_nothing_can_be_drawn_if_each_image_is_the_only_one_of_a_class():
    labels = np.asarray([[0, 0], [0, 1], [1, 2], [2, 2]], np.int32)
    with pytest.raises(InputError) as error:
        draw_rows(labels, names_for(4), 0.3, seed=0)
    assert str(error.value) == (
        "table: test: 0.3: no test image can be drawn, because each image or group is the only "
        "one of some class; raise min_examples, or group by another column"
    )
    labels[3, 0] = 1  # now the last two have no class of their own
    assert draw_rows(labels, names_for(4), 0.3, seed=0).rows.tolist() in (
        [False, False, True, False],
        [False, False, False, True],
    )


# === Units ===


def test_groupings_are_joined_as_by_hand():
    names = ["a", "b", "c", "d", "e", "f"]
    groups = ["x", "x", None, "y", "z", float("nan")]
    near_duplicates = [None, 5, 5, None, 9, 9]
    units = join_units(names, groups, near_duplicates)
    assert units.tolist() == [0, 0, 0, 1, 2, 2]
    assert join_units(["a", "b", "a"]).tolist() == [0, 1, 0]


def test_groupings_are_joined_as_by_merging_sets():
    rng = np.random.default_rng(6)
    first, second = rng.integers(0, 150, 200), rng.integers(0, 150, 200)
    units = join_units([f"{i}" for i in range(200)], first, second)
    sets = [{row} for row in range(200)]
    for grouping in (first, second):
        for one in range(200):
            for two in np.flatnonzero(grouping == grouping[one]):
                if sets[one] is not sets[two]:
                    sets[one] |= sets[two]
                    for row in list(sets[one]):
                        sets[row] = sets[one]
    for row in range(200):
        assert set(np.flatnonzero(units == units[row])) == sets[row]
