"""Which changes make new records, and which do not."""

import os

import numpy as np
from prepared import quiet, read_by_tfds

from multitask.data.merging import merge_tables
from multitask.data.records import table_fingerprint
from multitask.data.table import TRAIN
from multitask.spec import override

SAME = {
    "batch_size": 7,
    "trunk.name": "efficientnetb0",
    "phases.heads.epochs": 3,
    "max_missing": 0.5,
    "freeze_depth": "all",
    "co_occurrence": "auto",
    "early_stopping.patience": 2,
    "resize": "crop",
    "title": "another",
}
NEW = {
    "image_size": 48,
    "records.margin": 1.5,
    "records.quality": 80,
    "validation": 0.4,
    "task.subset": 0.75,
    "seed": 1,
}


def test_which_fields_make_new_records(tiny_data, tiny_spec):
    rows = [(f"Dots/{i:02}.jpg", i % 2) for i in range(12)]
    spec, data = tiny_spec(tasks=("style",)), tiny_data(rows={"style_train": rows})
    spec = override(spec, {"task.subset": 0.5})  # by the seed, and one split is made in less time
    first = quiet(spec, data)
    assert first.fresh
    same = quiet(override(spec, SAME), data)  # all at once: any of them would make new ones
    assert (same.fresh, same.folder) == (False, first.folder)
    for field, value in NEW.items():
        second = quiet(override(spec, {field: value}), data)
        assert second.fresh, field
        assert second.folder != first.folder, field
    again = quiet(spec, data)
    assert (again.fresh, again.folder) == (False, first.folder)  # all of them are there now


def test_fewer_tasks_make_new_records(there, tiny_spec):
    _, data = there
    assert not quiet(tiny_spec(), data).fresh
    assert quiet(tiny_spec(tasks=("style", "genre")), data).fresh
    assert not quiet(tiny_spec(), data).fresh


def test_which_changes_of_the_data_make_new_records(there, write_image):
    spec, data = there
    csv = data / "wikiart_csv/style_train.csv"
    text = csv.read_text()

    csv.write_text(text.replace('"', "").replace("\n", "\r\n") + "\r\n")  # says the same
    assert not quiet(spec, data).fresh
    lines = text.splitlines()
    csv.write_text("\n".join(reversed(lines)) + "\n")
    assert not quiet(spec, data).fresh

    csv.write_text(text.replace('train-00.jpg",0', 'train-00.jpg",2'))
    assert quiet(spec, data).fresh
    csv.write_text(text)
    assert not quiet(spec, data).fresh

    names = (data / "wikiart_csv/style_class.txt").read_text()
    (data / "wikiart_csv/style_class.txt").write_text(names.replace("Waves", "Ripples"))
    assert quiet(spec, data).fresh
    (data / "wikiart_csv/style_class.txt").write_text(names)

    image = data / "wikiart" / lines[0].split('"')[1]
    old = image.read_bytes()
    write_image(image, width=90, height=80, seed=99)
    changed = quiet(spec, data)
    assert changed.fresh
    assert read_by_tfds(changed.folder, TRAIN)[0]["image"].shape == (37, 42, 3)
    os.utime(image)  # only touched
    assert not quiet(spec, data).fresh
    image.write_bytes(old)

    write_image(data / "wikiart/Dots/new.jpg")
    assert not quiet(spec, data).fresh  # a file that no CSV names
    csv.write_text(text + "Dots/new.jpg,0\n")
    assert "Dots/new.jpg" in quiet(spec, data).builder.paths(TRAIN)


def test_the_test_set_is_part_of_the_fingerprint(there):
    """excluded.csv lists the unreadable images of the test set."""
    spec, data = there
    first = quiet(spec, data)
    csv = data / "wikiart_csv/style_val.csv"
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:-1]))
    assert quiet(spec, data).fingerprint != first.fingerprint


def test_paths_cannot_be_confused_with_each_other(tiny_data, tiny_spec):
    """The fingerprint knows where a path ends and which split it is in."""
    spec = tiny_spec(tasks=("style",))
    fingerprints = set()
    for rows in ([("a", 0), ("b", 0)], [("ab", 0), ("c", 0)], [("a", 0), ("b", 1)]):
        data = tiny_data(rows={"style_train": rows}, only=True, images=False, folder=str(rows))
        table = merge_tables(spec, data)
        fingerprints.add(table_fingerprint(spec, table, table, np.zeros(len(table), np.int64)))
    assert len(fingerprints) == 3
