"""Images that have none of the classes of an open task."""

import numpy as np
import pandas as pd
import pytest
from specs import lists_of, spec_of

from multitask.data.merging import load_table, merge_tables
from multitask.data.others import held_out
from multitask.data.run_table import read_run_table, with_class_names, write_run_table
from multitask.data.table import TEST, TRAIN, VALIDATION
from multitask.spec import MISSING, OTHER_LABEL, InputError, load_spec, parse_spec, select_tasks


def open_spec(*, tasks=("artist", "style"), other=None, **fields):
    lists = lists_of(tasks, "wikiart_csv")
    lists[0] |= {"unlabelled": "other", "other": other or {}}
    return spec_of(*lists, **{"validation": 0.0} | fields)


@pytest.fixture
def data(tiny_data):
    """Twelve training and four test images with a style; artist and leaks as below."""
    style = [(f"Dots/p{i % 4}_{i:02}.jpg", i % 3) for i in range(12)]
    test = [(f"Dots/p{i}_test.jpg", i % 3) for i in range(4)]
    rows = {
        "style_train": style,
        "style_val": test,
        # 0 to 3 have an artist; 4 is contradictory; 5 is unknown; test image 0 is train here.
        "artist_train": [
            *((path, i % 2) for i, (path, _) in enumerate(style[:4])),
            (style[4][0], 0), (style[4][0], 1),
            (style[5][0], 99),
            (test[0][0], 1),
        ],
        "artist_val": [(test[1][0], 0)],
    }  # fmt: skip
    return tiny_data(rows=rows, only=True, images=False)


def labels_of(table, split, task="artist"):
    rows = table.rows(split)
    return dict(
        zip(table.paths[rows], table.labels[rows, table.tasks.index(task)].tolist(), strict=True)
    )


def test_only_images_that_no_file_of_the_task_lists_are_other(data):
    table = load_table(open_spec(max_unknown=0.5), data)
    train = labels_of(table, TRAIN)
    expected = {f"Dots/p{i % 4}_{i:02}.jpg": OTHER_LABEL for i in range(6, 12)}
    expected |= {f"Dots/p{i}_{i:02}.jpg": i % 2 for i in range(4)}
    # A contradictory and an unknown label may be of a class.
    expected |= {"Dots/p0_04.jpg": MISSING, "Dots/p1_05.jpg": MISSING}
    assert {path: label for path, label in train.items() if "other/" not in path} == expected
    test = labels_of(table, TEST)
    # A test image that is in the task's training list has a class.
    assert test["Dots/p0_test.jpg"] == MISSING
    assert test["Dots/p1_test.jpg"] == 0
    assert test["Dots/p2_test.jpg"] == test["Dots/p3_test.jpg"] == OTHER_LABEL
    assert any("have none of its classes (other)" in note for note in table.notes)


def test_a_closed_task_has_no_others(data):
    table = load_table(
        spec_of(*lists_of(("artist", "style"), "wikiart_csv"), validation=0.0, max_unknown=0.5),
        data,
    )
    assert (table.labels >= MISSING).all()


def test_others_do_not_count_as_labels(data):
    spec = open_spec(max_unknown=0.5)
    closed = spec_of(*lists_of(("artist", "style"), "wikiart_csv"), validation=0.0, max_unknown=0.5)
    table, plain = load_table(spec, data), load_table(closed, data)
    pd.testing.assert_frame_equal(table.counts(), plain.counts())
    assert table.paths.tolist() == plain.paths.tolist()
    assert np.array_equal(np.maximum(table.labels, MISSING), plain.labels)


def test_exclude_is_a_pattern_over_the_path(data):
    table = load_table(open_spec(max_unknown=0.5, other={"exclude": "/p3_"}), data)
    train = labels_of(table, TRAIN)
    assert train["Dots/p3_07.jpg"] == train["Dots/p3_11.jpg"] == MISSING
    assert train["Dots/p2_06.jpg"] == OTHER_LABEL
    assert any("3 more may have one (other.exclude)" in note for note in table.notes)


def test_held_out_groups_do_not_teach_and_are_tested(data):
    other = {"group": "/(p[0-9])_", "held_out": 0.5}
    spec = open_spec(max_unknown=0.5, other=other)
    table = load_table(spec, data)
    task = spec.tasks[0]
    out = {f"p{i}" for i in range(4) if held_out(task, np.array([f"x/p{i}_"]), seed=spec.seed)[0]}
    assert 0 < len(out) < 4
    for path, label in labels_of(table, TRAIN).items():
        if "/p" in path and int(path[-6:-4]) >= 6:
            assert label == (MISSING if path[5:7] in out else OTHER_LABEL)
    for path in ("Dots/p2_test.jpg", "Dots/p3_test.jpg"):
        assert labels_of(table, TEST)[path] == OTHER_LABEL


def test_about_the_share_of_the_groups_is_held_out_in_every_split():
    spec = open_spec(other={"group": "^([0-9]+)/", "held_out": 0.2})
    paths = np.array([f"{group}/{i}.jpg" for group in range(2000) for i in range(2)])
    out = held_out(spec.tasks[0], paths, seed=0)
    assert (out[::2] == out[1::2]).all()
    assert out.mean() == pytest.approx(0.2, abs=0.03)
    assert (out != held_out(spec.tasks[0], paths, seed=1)).any()
    assert not held_out(spec.tasks[0], np.array(["no group.jpg"]), seed=0).any()


def test_validation_images_of_held_out_groups_are_other(tiny_data):
    rows = {
        "style_train": [(f"Dots/p{i % 5}_{i:03}.jpg", i % 3) for i in range(100)],
        "artist_train": [(f"Dots/p{i % 5}_{i:03}.jpg", i % 2) for i in range(20)],
    }
    folder = tiny_data(rows=rows, only=True, images=False)
    other = {"group": "/(p[0-9])_", "held_out": 0.99}
    table = load_table(open_spec(validation=0.3, other=other), folder)
    validation = [v for p, v in labels_of(table, VALIDATION).items() if int(p[-7:-4]) >= 20]
    assert validation
    assert set(validation) == {OTHER_LABEL}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"other": {"exclude": "("}, "unlabelled": "other"},
            "other.exclude: '(': is not a regular",
        ),
        ({"other": {"group": "/x_"}, "unlabelled": "other"}, "other.group: '/x_': has no `(…)`"),
        ({"other": {"held_out": 0.2}, "unlabelled": "other"}, "held_out: needs `group`"),
        ({"other": {"weight": 2.0}}, 'other: needs `unlabelled = "other"`'),
        ({"unlabelled": "others"}, "unlabelled"),
    ],
)
def test_wrong_options_are_one_line(fields, message):
    with pytest.raises(InputError) as error:
        spec_of({"name": "artist", **fields}, "style")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_called_other_is_refused(data):
    text = "0 Ann\n1 other\n"
    (data / "wikiart_csv" / "artist_class.txt").write_text(text)
    with pytest.raises(InputError, match='the task has a class "other"; rename the class'):
        merge_tables(open_spec(max_unknown=0.5), data)


def test_without_any_other_image_it_is_one_line(tiny_data):
    rows = {
        "style_train": [(f"Dots/{i}.jpg", i % 3) for i in range(6)],
        "style_val": [("v.jpg", 0)],
    }
    rows |= {"artist_train": [(f"Dots/{i}.jpg", 0) for i in range(6)], "artist_val": [("v.jpg", 0)]}
    folder = tiny_data(rows=rows, images=False)
    with pytest.raises(InputError) as error:
        merge_tables(open_spec(), folder)
    assert str(error.value) == (
        'toy.toml: task[0] "artist": unlabelled: "other": every image has a label of this task, so '
        "no image is an example of `other`"
    )


def test_a_task_alone_is_not_open():
    with pytest.raises(InputError, match='unlabelled: "other" needs a further task'):
        open_spec(tasks=("artist",))
    other = {"group": "/(p)", "held_out": 0.5}
    alone = select_tasks(open_spec(other=other), ["artist"])
    assert alone == select_tasks(
        spec_of(*lists_of(("artist", "style"), "wikiart_csv"), validation=0.0), ["artist"]
    )
    assert select_tasks(load_spec("wikiart"), ["artist", "genre"]).open_tasks == ("artist",)


# === One table ===


@pytest.fixture
def collection(tmp_path):
    """A table whose column `painter` has names, empty cells, rare values and several values."""
    painters = ["Ann"] * 6 + ["Bo"] * 6 + [""] * 4 + ["Rare"] * 2 + ["Ann; Bo"] * 2
    frame = pd.DataFrame(
        {
            "image": [f"{i:02}.jpg" for i in range(20)],
            "painter": painters,
            "style": ["dots", "lines"] * 10,
            "split": ["train"] * 20,
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    raw = open_spec().to_dict()
    task = {key: raw["task"][0][key] for key in ("head", "loss", "schedule")}
    raw |= {
        "table": {"file": "t.csv", "image": "image", "split": "split"},
        "images": ".",
        "task": [
            task | {"name": "painter", "column": "painter", "unlabelled": "other",
                    "min_examples": 3, "separator": ";"},
            task | {"name": "style", "column": "style"},
        ],
    }  # fmt: skip
    return tmp_path, parse_spec(raw, source="t.toml")


def test_empty_and_rare_values_of_a_column_are_other(collection):
    folder, spec = collection
    table = merge_tables(spec, folder)
    labels = table.labels[:, 0].tolist()
    assert labels == [0] * 6 + [1] * 6 + [OTHER_LABEL] * 6 + [MISSING] * 2


def test_the_table_of_a_run_keeps_them(collection, tmp_path):
    folder, spec = collection
    table = merge_tables(spec, folder)
    workdir = tmp_path / "run"
    workdir.mkdir()
    spec = with_class_names(spec, folder, workdir)
    write_run_table(table, table, workdir)
    kept = read_run_table(spec, workdir)
    assert kept.paths.tolist() == table.paths.tolist()
    assert np.array_equal(kept.labels, table.labels)
