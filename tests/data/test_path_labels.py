"""Labels from the paths, and what auxiliary tasks leave as it is."""

import numpy as np
import pytest
from specs import lists_of, spec_of

from multitask.data.augment import image_policies
from multitask.data.merging import load_table, merge_tables
from multitask.data.others import held_out
from multitask.data.records import image_sizes, table_fingerprint
from multitask.data.run_table import read_run_table, with_class_names, write_run_table
from multitask.data.table import TEST, TRAIN, VALIDATION
from multitask.spec import MISSING, OTHER_LABEL, InputError, SpecError, select_tasks

PAINTER = {
    "name": "painter",
    "train": "",
    "test": None,
    "classes": "",
    "label_from": {"path": "/([^/_]+)_"},
    "auxiliary": True,
}
# Painter -> number of training and of test images.
COUNTS = {"ann": (6, 2), "bo": (4, 0), "cy": (2, 5), "unknown": (3, 0)}


def spec_with(*, painter=None, tasks=("style", "genre"), first=None, **fields):
    lists = lists_of(tasks, "wikiart_csv")
    lists[0] |= first or {}
    return spec_of(*lists, PAINTER | (painter or {}), **{"validation": 0.0} | fields)


@pytest.fixture
def data(tiny_data):
    """The paintings of COUNTS, and two whose names hold no painter; half have a genre."""
    train = [f"Dots/{name}_{i}.jpg" for name, (n, _) in COUNTS.items() for i in range(n)]
    test = [f"Dots/{name}_t{i}.jpg" for name, (_, n) in COUNTS.items() for i in range(n)]
    train += ["Dots/plain.jpg", "Waves/plain.jpg"]
    rows = {
        "style_train": [(path, i % 3) for i, path in enumerate(train)],
        "style_val": [(path, i % 3) for i, path in enumerate(test)],
        "genre_train": [(path, i % 2) for i, path in enumerate(train[::2])],
        "genre_val": [(path, i % 2) for i, path in enumerate(test[::2])],
    }
    return tiny_data(rows=rows)


def painters(table, split):
    """Path -> painter, "" without a label."""
    rows = table.rows(split)
    labels = table.labels[rows, table.tasks.index("painter")]
    names = (*table.classes["painter"], "")
    return {path: names[label] for path, label in zip(table.paths[rows], labels, strict=True)}


def by_name(paths, classes):
    """The painters that the names of some files tell, if they are among the classes."""
    names = {path: path.split("/")[1].partition("_")[0] for path in paths}
    return {path: name if name in classes else "" for path, name in names.items()}


def test_labels_are_the_captured_parts_of_the_paths(data):
    table = merge_tables(spec_with(painter={"min_examples": 3}), data)
    # "cy" has enough test images, but two training images; "unknown" means no label.
    assert table.classes["painter"] == ("ann", "bo")
    assert table.tasks == ("style", "genre", "painter")
    for split in (TRAIN, TEST):
        labels = painters(table, split)
        assert labels == by_name(labels, ("ann", "bo"))
    assert painters(table, TRAIN)["Dots/plain.jpg"] == ""
    assert sum(name == "ann" for name in painters(table, TEST).values()) == 2
    assert any(note.startswith("painter: 12 of ") for note in table.notes), table.notes


def test_rare_ones_joined_and_values_replaced(data):
    fields = {"min_examples": 5, "rare": "other", "map": {"cy": "ann"}, "missing": ["plain"]}
    table = merge_tables(spec_with(painter=fields), data)
    assert table.classes["painter"] == ("ann", "other")
    counts = np.bincount(table.labels_of("painter", TRAIN)).tolist()
    assert counts == [6 + 2, 4 + 3]  # ann and cy; bo and, by these settings, unknown


def test_only_images_that_are_there_are_counted(data):
    for i in range(3):
        (data / f"wikiart/Dots/bo_{i}.jpg").unlink()
    spec = spec_with(painter={"min_examples": 2}, max_missing=0.5)
    assert merge_tables(spec, data).classes["painter"] == ("ann", "cy")


def test_a_run_keeps_its_classes(data, tmp_path):
    spec = spec_with(painter={"min_examples": 3})
    named = with_class_names(spec, data, tmp_path)
    assert named.tasks[2].class_names == ("ann", "bo")
    assert named.tasks[:2] == spec.tasks[:2]
    (data / "wikiart/Dots/bo_0.jpg").unlink()
    (data / "wikiart/Dots/bo_1.jpg").unlink()
    assert merge_tables(named, data).classes["painter"] == ("ann", "bo")
    assert with_class_names(named, data, tmp_path) is named


def test_an_auxiliary_task_leaves_the_other_tasks_as_they_are(data):
    """The same splits, labels, records and augmentation with and without it."""
    augment = {"flip": True, "crop": [0.8, 1.0]}
    plain = spec_of(*lists_of(("style", "genre"), "wikiart_csv"), validation=0.3,
                    of_tasks={"augment": augment})  # fmt: skip
    helped = spec_with(validation=0.3, painter={"augment": {}}, first={"augment": augment})
    helped = helped.model_copy(update={"tasks": (*plain.tasks, helped.tasks[2])})
    first, second = load_table(plain, data), load_table(helped, data)
    assert len(first.rows(VALIDATION)) > 3
    assert first.splits.tolist() == second.splits.tolist()
    assert first.paths.tolist() == second.paths.tolist()
    assert np.array_equal(second.of_tasks(("style", "genre")).labels, first.labels)
    sizes = image_sizes(first.paths, data / "wikiart")
    assert table_fingerprint(plain, first, first, sizes) == table_fingerprint(
        helped, second, second, sizes
    )
    main = helped.without_auxiliary()
    assert main.tasks == plain.tasks
    policies, _ = image_policies(first.labels, [task.augment for task in main.tasks])
    assert policies[:, 0].min() > 0  # flipped, although the auxiliary task flips nothing


def test_held_out_groups_are_new_to_the_trunk(data):
    """Images held out from rejection lose the label that is the name of their group."""
    other = {"group": "/([^/_]+)_", "held_out": 0.5}
    rows = "".join(f"Dots/ann_{i}.jpg,{i % 2}\n" for i in range(6))
    (data / "wikiart_csv/genre_train.csv").write_text(rows)
    spec = spec_with(tasks=("genre", "style"), painter={"min_examples": 2}, seed=2,
                     first={"unlabelled": "other", "other": other})  # fmt: skip
    table = load_table(spec, data)
    train = table.rows(TRAIN)
    out = held_out(spec.tasks[0], table.paths, seed=spec.seed)[train]
    genre, _, painter = table.labels[train].T
    merged = merge_tables(spec, data)
    before = merged.labels[merged.find(table.paths[train])]
    lost = out & (before[:, 0] == OTHER_LABEL)
    assert 0 < lost.sum() < len(train) / 2
    assert (painter[lost] == MISSING).all()
    assert (before[lost, 2] >= 0).any()
    assert np.array_equal(painter[~lost], before[~lost, 2])
    assert (genre[lost] == MISSING).all()
    # Test images keep their labels: nothing is learnt from them.
    of_test = table.rows(TEST)
    assert (table.labels[of_test, 2] >= 0).any()


def test_a_task_from_the_paths_is_evaluated_if_it_is_not_auxiliary(data):
    spec = spec_with(painter={"auxiliary": False, "min_examples": 2})
    assert spec.main_tasks == ("style", "genre", "painter")
    table = load_table(spec, data)
    assert len(table.labels_of("painter", TEST)) == 7  # two of ann, five of cy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_from": {"path": "("}}, 'label_from.path: "(": is not a regular expression'),
        ({"label_from": {"path": "a"}}, 'label_from.path: "a": has no `(…)`'),
        ({"label_from": {}}, "label_from.path: this field is missing"),
        ({"train": "x.csv"}, "label_from: the task has files or a column too"),
        ({"column": "x"}, "label_from: the task has files or a column too"),
        ({"unlabelled": "other"}, 'unlabelled: "other" is not for a task that is `auxiliary`'),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(change, message):
    with pytest.raises(SpecError) as caught:
        spec_with(painter=change)
    assert message.replace('"', "'") in str(caught.value).replace('"', "'")


def test_a_spec_needs_a_main_task_and_a_list_of_images():
    lists = [task | {"auxiliary": True} for task in lists_of(("style",), "wikiart_csv")]
    with pytest.raises(SpecError, match="every task is auxiliary"):
        spec_of(*lists)
    with pytest.raises(SpecError, match="every task has `label_from`"):
        spec_of(PAINTER | {"auxiliary": False})
    spec = spec_with()
    with pytest.raises(SpecError, match="every task is auxiliary"):
        select_tasks(spec, ["painter"])
    assert select_tasks(spec, ["style", "painter"]).task_names == ("style", "painter")


@pytest.mark.parametrize(
    ("painter", "message"),
    [
        ({"min_examples": 7}, "min_examples: 7: 0 classes have at least 7 examples ("),
        ({"label_from": {"path": "^(nowhere)$"}}, 'label_from: "path": none of 24 rows'),
    ],
)  # fmt: skip
def test_too_few_classes(data, painter, message):
    with pytest.raises(InputError) as caught:
        merge_tables(spec_with(painter=painter), data)
    assert f'toy.toml: task[2] "painter": {message}' in str(caught.value)


def test_a_column_may_be_auxiliary(tmp_path, write_image):
    """The draws of a collection are those without it, and a run keeps its labels."""
    rows = [(f"{'ab'[i % 2]}-{i}.jpg", "xyz"[i % 3], ("oil", "ink", "")[i % 3]) for i in range(40)]
    for path, *_ in rows:
        write_image(tmp_path / "images" / path)
    lines = ["path,school,medium", *(",".join(row) for row in rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    files = {"train": "", "test": None, "classes": ""}
    school = files | {"name": "school", "column": "school"}
    medium = files | {"name": "medium", "column": "medium", "auxiliary": True}
    hand = PAINTER | {"name": "hand", "label_from": {"path": "^([ab])-"}}
    fields = {"table": {"file": "table.csv", "image": "path", "test": 0.25}, "images": "images",
              "validation": 0.2}  # fmt: skip
    plain = load_table(spec_of(school, **fields), tmp_path)
    spec = with_class_names(spec_of(medium, school, hand, **fields), tmp_path, tmp_path)
    merged = merge_tables(spec, tmp_path)
    assert merged.classes == {
        "medium": ("ink", "oil"),
        "school": ("x", "y", "z"),
        "hand": ("a", "b"),
    }
    table = load_table(spec, tmp_path)
    assert table.splits.tolist() == plain.splits.tolist()
    assert {*table.splits} == {TRAIN, VALIDATION, TEST}
    known = {path: medium for path, _, medium in rows}
    names = ("ink", "oil", "")
    assert [names[label] for label in table.labels[:, 0]] == [known[path] for path in table.paths]
    assert ["ab"[label] for label in table.labels[:, 2]] == [path[0] for path in table.paths]
    write_run_table(merged, table, tmp_path)
    assert np.array_equal(read_run_table(spec, tmp_path).labels, merged.labels)
