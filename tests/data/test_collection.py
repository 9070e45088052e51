"""A collection in one table: its labels, its splits, and what a run keeps of it."""

import shutil

import collections_made as made
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from multitask.data import near_duplicates
from multitask.data.draft import draft_spec
from multitask.data.extracted import INDEX
from multitask.data.merging import load_table, merge_tables
from multitask.data.records import describe_table
from multitask.data.run_table import read_run_table, with_class_names, write_run_table
from multitask.data.table import TEST, TRAIN, VALIDATION
from multitask.run import write_config
from multitask.spec import InputError, SpecError, override, parse_spec, refuse_outside

HEAD = {
    "head": {"kind": "linear"},
    "loss": {"kind": "focal"},
    "schedule": {"kind": "constant", "rate": 1e-3},
}


def spec_of(table=None, tasks=made.TASKS, options=None, **fields):
    """A spec of catalogue.csv, with a task per column."""
    raw = {
        "name": "museum",
        "images": "photos",
        "validation": 0.0,
        "table": {"file": "catalogue.csv", "image": "file", **(table or {})},
        "trunk": {"weights": "none", "schedule": HEAD["schedule"]},
        "task": [
            {"name": name, "column": name, **HEAD, **(options or {}).get(name, {})}
            for name in tasks
        ],
        **fields,
    }
    return parse_spec(raw, source="museum.toml")


@pytest.fixture
def museum(tmp_path, write_image):
    """A folder with photos/ and catalogue.csv; a function that writes another catalogue."""
    made.paint(tmp_path / "photos", write_image)

    def write(frame):
        frame.to_csv(tmp_path / "catalogue.csv", index=False)
        return tmp_path

    write(made.rows())
    write.folder = tmp_path
    return write


def labels_by_name(table, task):
    """path -> class name, of the labelled images."""
    labels = table.labels[:, table.tasks.index(task)]
    names = table.classes[task]
    return {p: names[k] for p, k in zip(table.paths, labels, strict=True) if k >= 0}


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# === Every form ===


@pytest.mark.parametrize("form", made.FORMS)
def test_every_form_has_the_same_images_and_labels(form, tmp_path, write_image):
    """No line of TOML is written by hand."""
    given, photos = made.make(form, tmp_path, write_image)
    draft = draft_spec(**given)
    spec = draft.spec()
    assert draft.data_dir == tmp_path or form in ("metadata", "tfds")
    table = merge_tables(spec, draft.data_dir)
    names = {"style": "school", "artist": "period"} if form == "kaggle" else {}
    assert {names.get(task, task) for task in table.tasks} == set(made.TASKS)
    image_dir = draft.data_dir / spec.images
    of_bytes = {data: name for name, data in photos.items()}
    file_of = {path: of_bytes[(image_dir / path).read_bytes()] for path in table.paths}
    assert sorted(file_of.values()) == sorted(photos)
    frame = made.rows().set_index("file")
    for task in table.tasks:
        column = frame[names.get(task, task)]
        result = {file_of[path]: name for path, name in labels_by_name(table, task).items()}
        assert result == column[column != ""].to_dict()
    share = (table.splits == TEST).mean()
    assert share == pytest.approx(0.2, abs=0.05)


def test_embedded_images_are_written_once(tmp_path, write_image):
    given, _ = made.make("hub", tmp_path, write_image)
    draft = draft_spec(**given)
    spec, folder = draft.spec(), tmp_path / draft.spec().images
    merge_tables(spec, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert len(times) == 41
    merge_tables(spec, tmp_path)
    assert times == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    # A call that was killed before the last file: everything is written again.
    (folder / INDEX).unlink()
    next(path for path in times if path.suffix == ".png").write_bytes(b"half")
    table = merge_tables(spec, tmp_path)
    assert (folder / INDEX).is_file()
    assert all((folder / path).read_bytes().startswith(b"\x89PNG") for path in table.paths)
    # Images are not written into a folder that has other files.
    shutil.rmtree(folder)
    (tmp_path / f".{folder.name}.lock").unlink()
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    assert refusal(lambda: merge_tables(spec, tmp_path)).startswith(
        f"images: {folder}: holds other files"
    )


@pytest.mark.parametrize("form", ["hub", "saved"])
def test_rows_without_an_image_inside_the_files_are_not_used(form, tmp_path, write_image):
    """`datasets` stores None for them."""
    photos = made.paint(tmp_path / "photos", write_image)
    lacking = list(photos)[3:36:4]
    photos = {name: None if name in lacking else data for name, data in photos.items()}
    given, _ = made.make(form, tmp_path, write_image, photos=photos)
    draft = draft_spec(**given)
    table = merge_tables(draft.spec(), draft.data_dir)
    image_dir = draft.data_dir / draft.spec().images
    assert "9 rows have no image bytes" in table.notes
    school = {photos[row.file]: row.school for row in made.rows().itertuples()}
    labels = labels_by_name(table, "school")
    assert {(image_dir / path).read_bytes(): name for path, name in labels.items()} == {
        data: name for data, name in school.items() if data is not None
    }
    again = merge_tables(draft.spec(), draft.data_dir)  # from the files
    assert list(again.paths) == list(table.paths)


# === Labels ===


def test_options_of_a_column(museum):
    """Missing, mapped, several and rare values, against answers by hand."""
    frame = made.rows()
    frame["period"] = ["early"] * 12 + ["Early "] * 4 + ["late"] * 12 + ["late; early"] * 4 + [
        "n/a"] * 4 + ["once"] * 4  # fmt: skip
    folder = museum(frame)
    options = {"map": {"Early": "early"}, "separator": ";", "min_examples": 5}
    table = merge_tables(spec_of(options={"period": options}), folder)
    assert table.classes["period"] == ("early", "late")
    assert np.bincount(table.labels[:, 1] + 1).tolist() == [12, 16, 12]
    joined = {**options, "rare": "other", "min_examples": 5, "several": "first"}
    table = merge_tables(spec_of(options={"period": joined}), folder)
    # "other" would have four images, fewer than five, so it is not a class.
    assert np.bincount(table.labels[:, 1] + 1).tolist() == [8, 16, 16]


def test_an_image_listed_twice_with_two_labels_has_none(museum):
    frame = made.rows()
    again = frame.iloc[[0]].assign(school="French")
    table = merge_tables(spec_of(), museum(pd.concat([frame, again])))
    assert labels_by_name(table, "school").keys() == set(frame["file"][1:])
    assert "school: 1 image is listed with two labels" in "\n".join(table.notes)


def test_paths_are_matched_as_those_of_lists(museum):
    frame = made.rows()
    frame.loc[3, "file"] = frame["file"][3].upper()
    table = merge_tables(spec_of(), museum(frame))
    assert sorted(table.paths) == sorted(made.rows()["file"])
    assert len(table.findings.respelt["path"].unique()) == 1


# === Splits ===


def units_on_one_side(table):
    """The splits of each object, from the names of its photographs."""
    objects = pd.Series([path.split("_")[0] for path in table.paths])
    return pd.Series(table.splits).groupby(objects).nunique()


def test_a_drawn_test_set_and_validation_keep_groups_together(museum):
    spec = spec_of({"test": 0.2, "group": "object"}, validation=0.2)
    table = load_table(spec, museum.folder)
    assert {split: len(table.rows(split)) for split in (TRAIN, VALIDATION, TEST)} == {
        TRAIN: 26, VALIDATION: 6, TEST: 8,
    }  # fmt: skip
    assert (units_on_one_side(table) == 1).all()
    pattern = load_table(spec_of({"test": 0.2, "group": r"^(\d+)_"}, validation=0.2), museum.folder)
    assert (units_on_one_side(pattern) == 1).all()
    without = load_table(spec_of({"test": 0.2}, validation=0.2), museum.folder)
    assert (units_on_one_side(without) > 1).any()


def test_the_draw_does_not_depend_on_the_order_of_the_rows(museum):
    spec = spec_of({"test": 0.2, "group": "object"}, validation=0.1)
    one = load_table(spec, museum.folder)
    two = load_table(spec, museum(made.rows().sample(frac=1, random_state=5)))
    assert one.paths.tolist() == two.paths.tolist()
    assert one.splits.tolist() == two.splits.tolist()
    other = load_table(override(spec, {"seed": 1}), museum.folder)
    assert other.splits.tolist() != one.splits.tolist()


def test_splits_that_a_column_names(museum):
    frame = made.rows()
    frame["part"] = ["training"] * 20 + ["Val"] * 8 + ["TEST"] * 10 + ["spare"] * 2
    table = load_table(spec_of({"split": "part"}, validation=0.3), museum(frame))
    expected = frame["part"].map({"training": TRAIN, "Val": VALIDATION, "TEST": TEST})
    expected = dict(zip(frame["file"], expected, strict=True))
    assert dict(zip(table.paths, table.splits, strict=True)) == {
        name: split for name, split in expected.items() if isinstance(split, str)
    }


def test_a_group_on_both_sides_of_a_named_split_is_not_trained_on(museum):
    frame = made.rows()
    frame["part"] = (["train", "test"] + ["train"] * 8) * 4
    table = merge_tables(spec_of({"split": "part", "group": "object"}), museum(frame))
    leaking = set(frame["file"][[0, 10, 20, 30]])
    assert leaking.isdisjoint(table.paths)
    assert set(table.paths) == set(frame["file"]) - leaking
    assert "4 images of train belong to the same image or group as one of test" in "\n".join(
        table.notes
    )


def test_the_classes_of_each_split_are_shown(museum):
    table = load_table(spec_of({"test": 0.2, "group": "object"}, validation=0.2), museum.folder)
    split = pd.Series(table.splits, table.paths)
    frame = made.rows().assign(split=lambda rows: rows["file"].map(split))
    for task, classes in zip(made.TASKS, (made.SCHOOLS, made.PERIODS), strict=True):
        counts = pd.crosstab(frame[task], frame["split"])[["train", "validation", "test"]]
        texts = {name: "/".join(map(str, counts.loc[name])) for name in classes}
        (line,) = [x for x in describe_table(table) if x.startswith(f"  {task}, images in ")]
        start, _, listed = line.partition(": ")
        assert start == f"  {task}, images in train/validation/test"
        assert dict(part[1:].split('" ') for part in listed.split(", ")) == texts


# === What a run keeps ===


def test_a_run_keeps_its_classes_and_its_splits(museum, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    spec = spec_of({"test": 0.2}, options={"period": {"min_examples": 5}}, max_unknown=0.2)
    first = with_class_names(spec, museum.folder, workdir)
    assert [task.class_names for task in first.tasks] == [made.SCHOOLS, made.PERIODS]
    merged = merge_tables(first, museum.folder)
    write_config(workdir, first, museum.folder, fingerprint="x")
    write_run_table(merged, load_table(first, museum.folder), workdir)
    # The collection is corrected and grows; the run goes on with its own classes.
    frame = made.rows()
    frame.loc[frame["period"] == "", "period"] = "ancient"
    frame.loc[:5, "school"] = "Ankara"
    again = with_class_names(spec, museum(frame), workdir)
    assert again == first
    table = merge_tables(again, museum.folder)
    assert table.classes == merged.classes
    assert set(labels_by_name(table, "school").values()) == set(made.SCHOOLS)
    assert any("Ankara" in note for note in table.notes)
    strict = override(again, {"max_unknown": 0.1})
    assert refusal(lambda: merge_tables(strict, museum.folder)) == (
        'museum.toml: task[0] "school": column: 6 of 40 rows have a value that is none of the '
        "run's classes (first: 'Ankara'); more than the allowed share max_unknown = 0.1"
    )
    kept = read_run_table(first, workdir)
    for name in ("paths", "labels", "splits", "units"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(merged, name))
    assert kept.classes == merged.classes


@pytest.mark.parametrize("named", [False, True])
def test_the_table_of_a_run_names_its_validation_images(museum, tmp_path, named):
    frame = made.rows().assign(
        part=["train"] * 20 + ["val" if named else "train"] * 8 + ["test"] * 12
    )
    spec = spec_of({"split": "part"}, validation=0.2)
    spec = with_class_names(spec, museum(frame), tmp_path / "run")
    merged, used = (read(spec, museum.folder) for read in (merge_tables, load_table))
    (tmp_path / "run").mkdir()
    write_run_table(merged, used, tmp_path / "run")
    written = pd.read_csv(tmp_path / "run/table.csv").set_index("path")["split"]
    assert written.to_dict() == dict(zip(used.paths, used.splits, strict=True))
    assert (written == VALIDATION).sum() == (8 if named else 6)  # or 28 / 5, rounded
    kept = read_run_table(spec, tmp_path / "run")
    assert kept.splits.tolist() == merged.splits.tolist()
    # A run of before this column was written.
    written = pd.read_csv(tmp_path / "run/table.csv", dtype=str, keep_default_na=False)
    written.assign(split=merged.splits).drop(columns="drawn").to_csv(
        tmp_path / "run/table.csv", index=False
    )
    assert read_run_table(spec, tmp_path / "run").splits.tolist() == merged.splits.tolist()


# === Refused ===


@pytest.mark.parametrize(
    ("table", "tasks", "message"),
    [
        (None, ("school",), 'museum.toml: task[0] "school": column: needs a [table]'),
        (
            {"test": 0.2, "split": "part"},
            ("school",),
            "museum.toml: table.test: the column `split`",
        ),
        ({"test": 1.0}, ("school",), "museum.toml: table.test: 1.0: input should be less than 1"),
        ({"colum": "x"}, ("school",), "museum.toml: table: unknown field 'colum'"),
    ],
)
def test_a_wrong_spec(table, tasks, message):
    raw = spec_of().to_dict()
    raw["task"] = [task for task in raw["task"] if task["name"] in tasks]
    raw["table"] = None if table is None else raw["table"] | table
    with pytest.raises(SpecError) as caught:
        parse_spec(raw, source="museum.toml")
    assert str(caught.value).replace('"colum"', "'colum'").startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"table": {"image": "fil"}},
            'museum.toml: table.image: {}/catalogue.csv: no column "fil". Expected ',
        ),
        ({"tasks": ("shool",)}, 'museum.toml: task[0] "shool": column'),
        ({"table": {"split": "objct"}}, "museum.toml: table.split"),
        ({"table": {"group": "objct", "test": 0.2}}, "museum.toml: table.group"),
        ({"table": {"group": "all", "test": 0.2}}, "museum.toml: table.test: 0.2: all 40 labelled"),
        ({"table": {"group": "all", "split": "part"}}, "museum.toml: table.group: no training im"),
        ({"table": {"file": "catalog.csv"}}, "{}/catalog.csv: no such file"),
        ({"tasks": ("nothing",)}, 'museum.toml: task[0] "nothing": column: "nothing": none of 40'),
        ({"tasks": ("all",)}, 'museum.toml: task[0] "all": column: "all": only one value'),
        ({"images": "elsewhere"}, "museum.toml: images: 'elsewhere': the images of"),
        ({"table": {"image": "link"}}, "{}/catalogue.csv: column 'link' holds URLs"),
    ],
)
def test_wrong_columns_are_one_line(museum, changes, message):
    frame = made.rows().assign(all="x", nothing="", part=["train", "test"] * 20)
    frame["link"] = "https://museum.example/" + frame["file"]
    folder = museum(frame)
    line = refusal(lambda: merge_tables(spec_of(**changes), folder))
    assert line.startswith(message.format(folder)), line


@pytest.mark.parametrize("file", ["/etc/passwd", "../catalogue.csv"])
def test_a_table_outside_the_data_folder_is_refused(file):
    with pytest.raises(SpecError, match=r"^museum\.toml: table\.file: .* are refused; name a path"):
        refuse_outside(spec_of({"file": file}), allowed=False)
    refuse_outside(spec_of({"file": file}), allowed=True)
    refuse_outside(spec_of({"file": "tfds:museum"}), allowed=False)


def test_an_absolute_path_is_named_with_its_row(museum):
    """Rows of text files are lines, those of other tables rows."""
    frame = made.rows()
    frame.loc[2, "file"] = "/elsewhere/a.png"
    folder = museum(frame)
    frame.to_parquet(folder / "catalogue.parquet")
    for file, row in (("catalogue.csv", "line 4"), ("catalogue.parquet", "row 2")):
        line = refusal(lambda file=file: merge_tables(spec_of({"file": file}), folder))
        assert line.startswith(f"{folder}/{file}: {row}: '/elsewhere/a.png': absolute paths")


# === Near-duplicates ===


def paint_copies(folder, *, distinct=40):
    """Paint images and a copy of each under another name: encoded again, half the size or mirrored.

    Returns the table: file, painting, school.
    """
    rng = np.random.default_rng(0)
    listed = []
    (folder / "photos").mkdir()
    for number in range(distinct):
        seeds = rng.integers(0, 256, (9, 8, 3)).astype(np.uint8)
        image = Image.fromarray(seeds).resize((96, 108), Image.Resampling.BICUBIC)
        changed = (image, image.resize((48, 54)), ImageOps.mirror(image))[number % 3]
        names = (f"{number:02}.png", f"copy{rng.integers(10**6):06}.jpg")
        image.save(folder / "photos" / names[0])
        changed.save(folder / "photos" / names[1], quality=85)
        listed += [(name, number, made.SCHOOLS[number % 2]) for name in names]
    frame = pd.DataFrame(listed, columns=["file", "painting", "school"])
    frame.to_csv(folder / "catalogue.csv", index=False)
    return frame


def separated(table, frame, split):
    """How many paintings have one of their two files in a split and the other elsewhere."""
    is_in = pd.Series(table.splits == split, index=table.paths)
    inside = frame.assign(inside=is_in[frame["file"]].to_numpy()).groupby("painting")["inside"]
    return int((inside.sum() == 1).sum())


def test_a_draw_keeps_near_duplicates_on_one_side(tmp_path, monkeypatch):
    frame = paint_copies(tmp_path)
    plain = spec_of({"test": 0.2}, tasks=("school",), validation=0.2)
    table = load_table(plain, tmp_path)
    assert separated(table, frame, TEST) > 3
    assert separated(table, frame, VALIDATION) > 3
    spec = override(plain, {"exclude_near_duplicates": True})
    table = load_table(spec, tmp_path)
    assert separated(table, frame, TEST) == separated(table, frame, VALIDATION) == 0
    assert len(table) == 80
    # 40 images of each school, a fifth of them test.
    for label in (0, 1):
        assert (table.splits[table.labels[:, 0] == label] == TEST).sum() == 8
    assert (
        "near-duplicates: 80 images in 40 groups, the largest of 2; each group is kept on one side "
        "of the split" in table.notes
    )
    # The exclusion that follows has nothing to exclude, and decodes nothing again.
    monkeypatch.setattr(near_duplicates, "_hash_files", None)
    cache = near_duplicates.hash_cache(spec, tmp_path / "records")
    kept, _ = near_duplicates.exclude_near_duplicates(table, tmp_path / "photos", cache)
    assert len(kept) == 80
    again = load_table(spec, tmp_path)
    assert again.splits.tolist() == table.splits.tolist()


def test_near_duplicates_under_another_spelling(tmp_path):
    frame = paint_copies(tmp_path)
    respelled = frame.assign(file=frame["file"].str.upper())
    respelled.to_csv(tmp_path / "catalogue.csv", index=False)
    spec = spec_of({"test": 0.2}, tasks=("school",), validation=0.2, exclude_near_duplicates=True)
    table = load_table(spec, tmp_path)
    assert len(table) == 80
    assert separated(table, frame, TEST) == separated(table, frame, VALIDATION) == 0


def test_a_validation_split_next_to_a_given_test_set_keeps_near_duplicates_on_one_side(tmp_path):
    frame = paint_copies(tmp_path)
    parts = frame.assign(part=["test", *["train"] * 79])  # its copy is a training image
    parts.to_csv(tmp_path / "catalogue.csv", index=False)
    spec = spec_of(
        {"split": "part"}, tasks=("school",), validation=0.2, exclude_near_duplicates=True
    )
    table = load_table(spec, tmp_path)
    assert len(table) == 80  # whether the copy is excluded is decided with the records
    assert (table.splits == TEST).sum() == 1
    assert separated(table, frame[2:], VALIDATION) == 0
    plain = load_table(override(spec, {"exclude_near_duplicates": False}), tmp_path)
    assert separated(plain, frame[2:], VALIDATION) > 3


def test_images_are_hashed_once_where_no_cache_can_be_written(tmp_path, monkeypatch):
    paint_copies(tmp_path, distinct=10)
    (tmp_path / "records").write_text("a file, not a folder")
    spec = spec_of({"test": 0.3}, tasks=("school",), exclude_near_duplicates=True)
    one = merge_tables(spec, tmp_path)
    monkeypatch.setattr(near_duplicates, "_hash_files", None)
    assert merge_tables(spec, tmp_path).splits.tolist() == one.splits.tolist()
    # The hashes in memory are written to the next cache that can be written.
    cache = tmp_path / "elsewhere.npz"
    near_duplicates.scan_images(one.paths, tmp_path / "photos", cache=cache)
    assert len(np.load(cache)["paths"]) == 20


def test_no_image_is_decoded_where_too_many_are_missing(tmp_path, monkeypatch):
    frame = paint_copies(tmp_path, distinct=10)
    (tmp_path / "photos" / frame["file"][1]).unlink()
    monkeypatch.setattr(near_duplicates, "scan_images", None)
    spec = spec_of({"test": 0.3}, tasks=("school",), exclude_near_duplicates=True)
    assert len(merge_tables(spec, tmp_path)) == 20


def test_near_duplicates_that_leave_nothing_to_draw_are_named(tmp_path):
    frame = paint_copies(tmp_path, distinct=1)
    frame.assign(school=made.SCHOOLS).to_csv(tmp_path / "catalogue.csv", index=False)
    spec = spec_of({"test": 0.2}, tasks=("school",), exclude_near_duplicates=True)
    message = refusal(lambda: merge_tables(spec, tmp_path))
    assert "all 2 labelled images are in one group" in message
    assert message.endswith(
        "(near-duplicates: 2 images in 1 group, the largest of 2; each group is kept on one side "
        "of the split; exclude_near_duplicates = false ignores them)"
    )


def test_missing_files_have_no_near_duplicates(tmp_path):
    frame = paint_copies(tmp_path, distinct=10)
    (tmp_path / "photos" / frame["file"][1]).unlink()
    (tmp_path / "photos" / frame["file"][4]).write_bytes(b"")
    spec = spec_of({"test": 0.3}, tasks=("school",), exclude_near_duplicates=True, max_missing=0.1)
    table = merge_tables(spec, tmp_path)
    assert len(table) == 20
    assert "near-duplicates: 16 images in 8 groups" in "\n".join(table.notes)
