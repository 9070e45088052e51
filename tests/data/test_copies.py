"""Another copy of a data set: the rows, labels and split of the lists, the images of the copy."""

import json
import logging
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from multitask.__main__ import main
from multitask.data.copies import with_copy
from multitask.data.extracted import INDEX
from multitask.data.merging import merge_tables
from multitask.run import open_run, start_run
from multitask.spec import InputError, load_spec, outside_paths

# The folder of the style Lines has another name, as that of Art_Nouveau has in WikiArt.
FOLDERS = {"Dots": "Dots", "Lines": "Lines_Modern", "Waves": "Waves"}
# name in the lists (some are garbled), name in the copies, style, genre, artist, split
IMAGES = [
    ("ann-alder_sea.jpg", "ann-alder_sea.jpg", "Dots", "harbour", "Ann_Alder", "train"),
    ("ann-alder_sea.jpg", "ann-alder_sea.jpg", "Lines", None, "Ann_Alder", "train"),
    ("ann-alder_sea(1).jpg", "ann-alder_sea(1).jpg", "Waves", "portrait", None, "test"),
    ("jos\xe3\xa9-vila_d'or-1901.jpg", "josé-vila_d'or-1901.jpg", "Waves", None, None, "train"),
    ("n\xe3\xbar\xe3\xadn_x.jpg", "núrín_x.jpg", "Lines", "portrait", None, "test"),
    ("bo-birch_a.b-(c).jpg", "bo-birch_a.b-(c).jpg", "Dots", "harbour", "Bo_Birch", "test"),
    ("bo-birch_noon.jpg", "bo-birch_noon.jpg", "Lines", None, "Bo_Birch", "train"),
    ("bo-birch_night.jpg", "bo-birch_night.jpg", None, "harbour", "Bo_Birch", "train"),
    ("lena\xe2\xa0_z.jpg", "lena_z.jpg", "Dots", "portrait", None, "train"),
]
COLUMNS = ("name", "right", "style", "genre", "artist", "split")
FORMS = ("same", "kaggle", "letters", "hub")


def images():
    """IMAGES as a frame, with the columns `path` (in the lists) and `folder`."""
    frame = pd.DataFrame(IMAGES, columns=COLUMNS, dtype=object)
    # An image without a style is in a folder nevertheless.
    frame["folder"] = [FOLDERS.get(style, "Waves") for style in frame["style"]]
    frame["path"] = frame["folder"] + "/" + frame["name"]
    return frame


@pytest.fixture
def lists(tiny_data):
    """The folder of the lists alone."""
    classes = {"artist": ("Ann_Alder", "Bo_Birch"), "style": tuple(FOLDERS),
               "genre": ("harbour", "portrait")}  # fmt: skip
    frame, rows = images(), {}
    for task, names in classes.items():
        for split, file in (("train", "train"), ("test", "val")):
            own = frame[frame[task].notna() & (frame["split"] == split)]
            labels = [names.index(name) for name in own[task]]
            rows[f"{task}_{file}"] = list(zip(own["path"], labels, strict=True))
    return tiny_data(rows=rows, classes=classes, images=False, folder="lists")


@pytest.fixture
def photos(tmp_path, write_image):
    """Path in the lists -> the bytes of its image."""
    return {
        path: write_image(tmp_path / "photos" / f"{seed}.jpg", seed=seed).read_bytes()
        for seed, path in enumerate(images()["path"])
    }


@pytest.fixture
def copy(tmp_path, photos):
    """A function that writes a copy and returns its folder."""

    def write(form, folder="copy"):
        root = tmp_path / folder
        (_hub if form == "hub" else _folders)(root, photos, form)
        return root

    return write


def _folders(root, photos, form):
    """Folders of styles; `same` has the names of the lists, and below wikiart/."""
    frame = images()
    for row in frame.itertuples():
        name = {"same": row.name, "kaggle": row.right}.get(form)
        name = name or f"{row.right.translate(str.maketrans('éúí', 'eui', '()'))}".replace("-", "_")
        file = root / ("wikiart" if form == "same" else "") / row.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photos[row.path])
    if form == "kaggle":
        table = {
            "filename": frame["folder"] + "/" + frame["right"],
            "artist": "somebody",
            "genre": [str([folder.replace("_", " ")]) for folder in frame["folder"]],
            "description": "x", "phash": "0", "width": 1, "height": 1, "genre_count": 1,
            "subset": "train",  # its split is not that of the lists
        }  # fmt: skip
        pd.DataFrame(table).to_csv(root / "classes.csv", index=False)


def _hub(root, photos, form, *, path=True, again=(), **changes):
    """Shards with bytes, base names and the style of every image, in another order.

    Args:
        path: whether the images have names.
        again: rows that come twice.
        changes: row -> its style.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = images()
    frame["style"] = frame["style"].fillna("Waves")
    for row, style in changes.items():
        frame.loc[int(row.removeprefix("row")), "style"] = style
    frame = frame.loc[[*reversed(frame.index), *again]]
    cells = [
        {"bytes": photos[row.path], "path": row.right if path else None}
        for row in frame.itertuples()
    ]
    names = list(FOLDERS)
    table = pa.table(
        {
            "image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "style": pa.array([names.index(style) for style in frame["style"]], pa.int64()),
        }
    )
    features = {"image": {"_type": "Image"}, "style": {"names": names, "_type": "ClassLabel"}}
    schema = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": schema})
    (root / "data").mkdir(parents=True)
    pq.write_table(table[:4], root / "data/train-00000-of-00002.parquet")
    pq.write_table(table[4:], root / "data/train-00001-of-00002.parquet")


def rows_by_image(table, image_dir, photos):
    """Path in the lists -> split, and each task's class name; by the content of the files."""
    path_of = {content: path for path, content in photos.items()}
    rows = {}
    for path, split, labels in zip(table.paths, table.splits, table.labels, strict=True):
        names = {
            task: None if label < 0 else table.classes[task][label]
            for task, label in zip(table.tasks, labels, strict=True)
        }
        rows[path_of[(image_dir / path).read_bytes()]] = {"split": split, **names}
    return rows


def expected_rows():
    frame = images().set_index("path")[["split", "artist", "style", "genre"]]
    return frame.to_dict("index")


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_has_the_rows_labels_and_split_of_the_lists(form, lists, copy, photos, tiny_spec):
    spec, data_dir = with_copy(tiny_spec(), lists, copy(form))
    table = merge_tables(spec, data_dir)
    assert len(table) == len(IMAGES)
    assert rows_by_image(table, data_dir / spec.images, photos) == expected_rows()


@pytest.mark.parametrize(
    ("form", "counts"),
    [
        ("same", "9 same path, 0 missing"),
        ("kaggle", "6 same path, 2 damaged accents, 1 same letters and digits, 0 missing"),
        ("letters", "9 same letters and digits, 0 missing"),
        ("hub", "6 same path, 2 damaged accents, 1 same letters and digits, 0 missing"),
    ],
)
def test_the_log_counts_the_images_by_rule(form, counts, lists, copy, tiny_spec, caplog):
    caplog.set_level(logging.INFO)
    root = copy(form)
    with_copy(tiny_spec(), lists, root)
    assert f"{root}: 9 images of the lists: {counts}" in caplog.messages


def test_missing_images_are_counted_and_the_first_named(lists, copy, tiny_spec, caplog):
    caplog.set_level(logging.INFO)
    root = copy("kaggle")
    gone = sorted(images()["path"])[:6]
    for path in gone:
        for file in (root / path.partition("/")[0]).iterdir():
            if file.name == images().set_index("path").loc[path, "right"]:
                file.unlink()
    spec, _ = with_copy(tiny_spec(), lists, root)
    assert f"  missing: {', '.join(gone[:5])}, … (all: `multitask audit`, and excluded.csv of a " \
        "run)" in caplog.messages  # fmt: skip
    table = merge_tables(spec, lists)
    assert [path for path in table.paths if not (lists / spec.images / path).is_file()] == gone


def test_the_lists_may_be_in_the_copy(lists, copy, photos, tiny_spec):
    root = copy("kaggle")
    shutil.move(lists / "wikiart_csv", root)
    spec, data_dir = with_copy(tiny_spec(), None, root)
    assert (data_dir, spec.images) == (root, ".")
    table = merge_tables(spec, data_dir)
    assert rows_by_image(table, root, photos) == expected_rows()


def test_a_run_knows_the_images(lists, copy, photos, tiny_spec, tmp_path):
    """Its config is enough to open it again, as `evaluate` does; so is a file of its spec."""
    root = copy("letters")
    spec, data_dir = with_copy(tiny_spec(), lists, root)
    assert any(outside_paths(spec))
    start_run(tmp_path / "run", spec, data_dir)
    run = open_run(tmp_path / "run")
    assert (run.spec.images, run.spec.match) == (str(root), "letters")
    table = merge_tables(run.spec, run.data_dir)
    assert rows_by_image(table, run.data_dir / run.spec.images, photos) == expected_rows()


# === Images inside files ===


def test_embedded_images_are_written_once_in_the_folders_of_the_lists(lists, copy, tiny_spec):
    root = copy("hub")
    spec, _ = with_copy(tiny_spec(), lists, root)
    assert spec.images == "copy_images"
    folder = lists / spec.images
    frame = images()
    written = {str(file.relative_to(folder)) for file in folder.rglob("*.jpg")}
    assert written == set(frame["folder"] + "/" + frame["right"])
    before = (folder / INDEX).stat().st_mtime_ns
    assert with_copy(tiny_spec(), lists, root)[0] == spec
    assert (folder / INDEX).stat().st_mtime_ns == before


def test_without_the_task_of_the_folders_classes_are_folders_by_name(
    lists, copy, photos, tiny_spec
):
    """The folder of the class Lines has another name, and nothing in the copy says which."""
    spec, _ = with_copy(tiny_spec(tasks=("genre",)), lists, copy("hub"))
    table = merge_tables(spec, lists)
    there = [path for path in table.paths if (lists / spec.images / path).is_file()]
    frame = images()
    frame = frame[frame["genre"].notna() & (frame["style"] != "Lines")]
    assert there == sorted(frame["folder"] + "/" + frame["right"])


def test_embedded_images_are_written_where_the_user_says(lists, copy, photos, tiny_spec, tmp_path):
    spec, data_dir = with_copy(tiny_spec(), lists, copy("hub"), images=tmp_path / "here")
    assert spec.images == str(tmp_path / "here")
    table = merge_tables(spec, data_dir)
    assert rows_by_image(table, tmp_path / "here", photos) == expected_rows()


def test_two_images_of_one_name_and_style_are_not_used(lists, photos, tiny_spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _hub(tmp_path / "copy", photos, "hub", again=[6])
    spec, _ = with_copy(tiny_spec(), lists, tmp_path / "copy")
    assert (
        "  not matched: 2 images with the folder and name of another, 0 without a name or folder"
    ) in caplog.messages
    table = merge_tables(spec, lists)
    missing = [path for path in table.paths if not (lists / spec.images / path).is_file()]
    assert missing == ["Lines_Modern/bo-birch_noon.jpg"]


def test_an_image_of_another_style_is_not_matched(lists, photos, tiny_spec, tmp_path):
    _hub(tmp_path / "copy", photos, "hub", row6="Dots")
    spec, _ = with_copy(tiny_spec(), lists, tmp_path / "copy")
    table = merge_tables(spec, lists)
    missing = [path for path in table.paths if not (lists / spec.images / path).is_file()]
    assert missing == ["Lines_Modern/bo-birch_noon.jpg"]


# === Refused ===


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.field, str(caught.value)


def test_a_copy_without_names_is_refused(lists, photos, tiny_spec, tmp_path):
    """Data sets from before `datasets` stored file names have none."""
    root = tmp_path / "copy"
    _hub(root, photos, "hub", path=False)
    field, text = refusal(lambda: with_copy(tiny_spec(), lists, root))
    assert field == "data"
    assert text.endswith(
        f"{root}: the images inside its files have no file names (as in image.path) to match them "
        "by; use a copy with file names"
    )
    assert not (lists / "copy_images").exists()


def test_missing_lists_are_one_line_with_what_to_get(copy, tiny_spec, tmp_path):
    (tmp_path / "empty").mkdir()
    spec = tiny_spec(source="https://example.org/lists")
    root = copy("kaggle")
    for data_dir, place in ((tmp_path / "empty", tmp_path / "empty"), (None, root)):
        field, text = refusal(lambda data_dir=data_dir: with_copy(spec, data_dir, root))
        assert field == "data_dir"
        assert text.endswith(
            f"{place}: no wikiart_csv/artist_train.csv: a copy has the images, but not the labels "
            "and the split; get wikiart_csv from https://example.org/lists, and name the folder "
            "that it is in"
        )


def test_a_folder_of_something_else_is_refused(lists, tiny_spec, tmp_path, write_image):
    write_image(tmp_path / "other/Cats/a.jpg")
    field, text = refusal(lambda: with_copy(tiny_spec(), lists, tmp_path / "other"))
    assert field == "data"
    assert "has neither the folders of the lists (Dots, …) nor files with images inside" in text


def test_a_folder_for_images_that_are_files_is_refused(lists, copy, tiny_spec, tmp_path):
    root = copy("kaggle")
    field, text = refusal(lambda: with_copy(tiny_spec(), lists, root, images=tmp_path))
    assert field == "images"
    assert text.endswith(f"the images of {root} are in {root}")


# === Commands and library ===


def spec_file(folder, spec, **changes):
    """Write a spec as a file; the tests' own trunk has random weights."""
    path = folder / "tiny.toml"
    path.write_text(spec.model_copy(update=changes).to_toml(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--split_column=split"], "--split_column: is only for --data without --spec"),
        (["--images=x"], "--images: the images of copy are in copy"),
        (["--data_dir=copy"], "--data_dir: copy: no wikiart_csv/artist_train.csv: "),
        (["--data=elsewhere"], "elsewhere: no such file or folder."),
    ],
)
def test_wrong_calls_are_one_line(
    flags, line, lists, copy, tiny_spec, tmp_path, monkeypatch, capsys
):
    copy("kaggle")
    monkeypatch.chdir(tmp_path)
    spec_file(tmp_path, tiny_spec())
    argv = ["--spec=tiny.toml", "--data_dir=lists", "--data=copy", "--workdir=run", *flags]
    with pytest.raises(SystemExit) as caught:
        main(["train", *argv])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1
    assert err.startswith(line)
    assert not (tmp_path / "run").exists()


def test_audit_and_prepare_read_a_copy(lists, copy, tiny_spec, tmp_path, monkeypatch, capsys):
    copy("letters")
    (tmp_path / "copy/Dots/bo_birch_a.b_c.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    spec_file(tmp_path, tiny_spec())
    data = ("--spec=tiny.toml", "--data_dir=lists", "--data=copy")
    with pytest.raises(SystemExit) as caught:
        main(["audit", *data, "--out=audit"])
    assert caught.value.code == 3
    audit = json.loads((tmp_path / "audit/audit.json").read_text())
    assert audit["missing"] == ["Dots/bo-birch_a.b-(c).jpg"]
    with pytest.raises(SystemExit):
        main(["prepare", *data])
    assert "Dots/bo-birch_a.b-(c).jpg (no such file)" in capsys.readouterr().err
    main(["prepare", *data, "--max_missing=0.2"])
    assert "copy: 9 images of the lists: 8 same letters and digits, 1 missing" in (
        capsys.readouterr().out
    )


def test_the_library_trains_on_a_copy(lists, copy, tiny_spec, tmp_path, monkeypatch):
    import multitask as mt
    from multitask.learning import training

    given = []

    def stop(*arguments, **_):
        given.extend(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    root = copy("kaggle")
    with pytest.raises(KeyboardInterrupt):
        mt.train(tiny_spec(), lists, tmp_path / "run", data=root)
    spec, data_dir, workdir = given
    assert (spec.images, spec.match) == (str(root), "letters")
    assert (data_dir, workdir) == (lists, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["kaggle", "hub"])
def test_a_run_on_a_copy_resumes_and_is_evaluated(
    form, lists, copy, tiny_spec, tiny_trunk, tmp_path, monkeypatch, capsys
):
    copy(form)
    monkeypatch.chdir(tmp_path)
    spec_file(tmp_path, tiny_spec(validation=0.2))
    train = ("train", "--spec=tiny.toml", "--data_dir=lists", "--data=copy", "--workdir=run",
             f"--trunk={tiny_trunk}", "--epochs_finetune=0", "--cache_features=off",
             "--freeze_depth=all", "--nosimilar")  # fmt: skip
    main(list(train))
    results = json.loads((tmp_path / "run/results/metrics.json").read_text())
    assert results["metrics"]["style/labelled"] == 3
    main(list(train))
    assert "Nothing is left to train" in capsys.readouterr().out
    monkeypatch.chdir("/")
    main(["evaluate", f"--workdir={tmp_path / 'run'}", "--nosimilar"])
    again = json.loads((tmp_path / "run/results/metrics.json").read_text())
    assert again["metrics"] == results["metrics"]


# === The real paintings ===


@pytest.mark.slow
@pytest.mark.parametrize("form", ["kaggle", "hub"])
def test_copies_of_the_real_sample_have_its_rows(form, tmp_path):
    """Links to every tenth painting with repaired names; and these in Parquet."""
    import ftfy
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = Path(os.environ.get("WIKIART_DIR", "nowhere"))
    if not (data / "wikiart").is_dir() or not (data / "wikiart_csv").is_dir():
        pytest.skip("WIKIART_DIR is not the folder with wikiart/ and wikiart_csv/ of ArtGAN")
    spec = load_spec("wikiart")
    (tmp_path / "lists").mkdir()
    os.symlink(data / "wikiart_csv", tmp_path / "lists/wikiart_csv")
    own = merge_tables(spec, data)
    there = [row for row, path in enumerate(own.paths) if (data / "wikiart" / path).is_file()][::10]
    raised = {c: c - 0x20 for c in range(0xE0, 0xFF) if c != 0xF7}
    files = {own.paths[row]: ftfy.fix_encoding(own.paths[row].translate(raised)) for row in there}
    root = tmp_path / "copy"
    if form == "kaggle":
        for path, file in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(data / "wikiart" / path, root / file)
    else:
        styles, column = own.classes["style"], own.tasks.index("style")
        cells = [{"bytes": (data / "wikiart" / path).read_bytes(), "path": Path(file).name}
                 for path, file in files.items()]  # fmt: skip
        folders = {"Art_Nouveau_Modern": "Art_Nouveau"}
        labels = [styles.index(folders.get(f, f)) for f in (p.split("/")[0] for p in files)]
        assert [own.labels[r, column] in (-1, k) for r, k in zip(there, labels, strict=True)]
        features = {"image": {"_type": "Image"},
                    "style": {"names": list(styles), "_type": "ClassLabel"}}  # fmt: skip
        table = pa.table({"image": cells, "style": labels}).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        (root / "data").mkdir(parents=True)
        pq.write_table(table, root / "data/train-00000-of-00001.parquet", row_group_size=100)
    spec, data_dir = with_copy(spec, tmp_path / "lists", root)
    table, image_dir = merge_tables(spec, data_dir), data_dir / spec.images
    assert len(table) == len(own)
    rows = table.find([files[own.paths[row]] for row in there])
    assert (rows >= 0).all()
    assert table.splits[rows].tolist() == own.splits[there].tolist()
    assert table.labels[rows].tolist() == own.labels[there].tolist()
    for row, there_row in zip(rows, there, strict=True):
        content = (image_dir / table.paths[row]).read_bytes()
        assert content == (data / "wikiart" / own.paths[there_row]).read_bytes()
