"""From a collection to a report in one command, and the spec that `init` writes."""

import json
import tomllib

import collections_made as made
import pandas as pd
import pytest

from multitask.__main__ import main

QUICK = (
    *("--trunk=tiny", "--trunk_weights=none", "--image_size=32", "--freeze_depth=all"),
    *("--epochs_heads=1", "--epochs_finetune=0", "--cache_features=off", "--nosimilar"),
    "--batch_size=40",
)


@pytest.fixture
def folder(tmp_path, write_image, monkeypatch):
    """The current folder, with catalogue.csv and photos/."""
    made.make("csv", tmp_path, write_image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrong(capsys, *argv):
    """The one line of a refused call."""
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1
    return err.rstrip("\n")


def test_it_writes_a_spec_that_loads_and_prints_each_guess(folder, capsys):
    main(["init", "catalogue.csv", "--images=photos", "--out=mine.toml"])
    out = capsys.readouterr().out
    assert "catalogue.csv: 40 images" in out
    assert "  school: 2 classes, 40 labels" in out
    assert "  period: 3 classes, 32 labels" in out
    assert "multitask train --spec=mine.toml --workdir=runs/catalogue" in out
    raw = tomllib.loads((folder / "mine.toml").read_text(encoding="utf-8"))
    table = {"file": "catalogue.csv", "image": "file", "test": 0.2, "group": "object"}
    assert raw["table"] == table
    assert raw["images"] == "photos"
    assert [(task["name"], task["column"]) for task in raw["task"]] == [
        (name, name) for name in made.TASKS
    ]


@pytest.mark.usefixtures("undrawn")
def test_one_command_from_a_table_to_a_report(
    folder, tiny_trunk, uncompiled, without_plots, capsys
):
    data = ("--data=catalogue.csv", "--images=photos")
    with uncompiled():
        main(["train", *data, "--workdir=run", *QUICK])
    out = capsys.readouterr().out
    assert "catalogue.csv: 40 images; tasks: school (2 classes), period (3 classes)" in out
    results = json.loads((folder / "run/results/metrics.json").read_text())
    assert results["metrics"]["school/labelled"] == 8
    assert (folder / "run/results/report.html").is_file()
    kept = pd.read_csv(folder / "run/table.csv", keep_default_na=False)
    assert sorted(kept["path"]) == sorted(made.rows()["file"])
    assert (kept["split"] == "test").sum() == 8
    # The same command resumes, and the commands after training need no table. The evaluation
    # after it is the one below.
    main(["train", *data, "--workdir=run", *QUICK, "--noevaluate"])
    assert "Nothing is left to train" in capsys.readouterr().out
    (folder / "catalogue.csv").unlink()
    with without_plots():
        main(["evaluate", "--workdir=run", "--nosimilar"])
    again = json.loads((folder / "run/results/metrics.json").read_text())
    assert again["metrics"] == results["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted({*made.FORMS} - {"tsv", "json_lines", "parquet"}))
def test_one_command_from_every_form_to_a_report(form, tmp_path, write_image, tiny_trunk):
    given, _ = made.make(form, tmp_path, write_image)
    flags = [f"--data={given['place']}"]
    flags += [f"--images={given['images']}"] if "images" in given else []
    flags += [f"--tasks={','.join(given['tasks'])}"] if "tasks" in given else []
    main(["train", *flags, f"--workdir={tmp_path / 'run'}", *QUICK])
    kept = pd.read_csv(tmp_path / "run/table.csv", keep_default_na=False)
    results = json.loads((tmp_path / "run/results/metrics.json").read_text())["metrics"]
    names = {"style": made.SCHOOLS, "artist": made.PERIODS} if form == "kaggle" else {
        "school": made.SCHOOLS, "period": made.PERIODS}  # fmt: skip
    report = (tmp_path / "run/results/report.html").read_text(encoding="utf-8")
    assert len(kept) == 40
    for task, classes in names.items():
        labels = kept[f"{task}/label"]
        assert set(labels) - {""} == set(classes)
        assert results[f"{task}/labelled"] == (labels[kept["split"] == "test"] != "").sum() > 0
        assert all(f">{name}<" in report for name in classes)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["init"], "multitask init: name one table or folder; --help shows how"),
        (["init", "catalogue.csv"], "multitask init: --out is needed; --help lists the flags"),
        (["init", "catalogue.csv", "--out=a.csv"],
         "--out: a.csv: expected a file that ends in .toml"),
        (["init", "catalogue.csv", "--out=old.toml"],
         "--out: old.toml: exists; replace it with --overwrite, or name another file"),
        (["train", "--spec=wikiart", "--images=photos", "--workdir=run"],
         "--images: is only for --data without --spec"),
        (["train", "--data=catalogue.csv", "--data_dir=.", "--workdir=run"],
         "--data_dir: needs --spec; with --data alone, the paths start at the table's folder"),
    ],
)  # fmt: skip
def test_wrong_calls_are_one_line(folder, capsys, argv, line):
    (folder / "old.toml").write_text("")
    assert wrong(capsys, *argv) == line
    assert (folder / "old.toml").read_text() == ""


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (["--tasks=shool"], "--tasks: "),
        (
            ["--image_column=fil"],
            '--image_column: catalogue.csv: no column "fil". Expected one of: ',
        ),
        (["--tasks=file,school"], '--tasks: "file" is the column of the images'),
        (["--split_column=school"], "--split_column: "),
        (["--split_column=schol"], '--split_column: unknown column "schol". Expected one of: '),
        (["--group=objct"], "--group: "),
        ([r"--group=(\d"], r"--group: '(\\d': not a regular expression: missing )"),
        (["--group=(zzz)"], '--group: "(zzz)": all 40 rows do not match the pattern'),
        (["--images=photo"], "--images: photo: there is no such folder of images"),
    ],
)
def test_wrong_columns_are_one_line(folder, capsys, flags, start):
    images = [] if flags[0].startswith("--images") else ["--images=photos"]
    argv = ["init", "catalogue.csv", *images, "--out=mine.toml", *flags]
    assert wrong(capsys, *argv).startswith(start)
    assert not (folder / "mine.toml").exists()


def test_what_the_guesses_leave_open_is_a_warning(folder, capsys):
    """Images that are not there, cells of several values, a value that may mean "no label"."""
    frame = made.rows().assign(maker=["Ann", "Bo", "Ann | Bo", "unbekannt"] * 10, empty="")
    frame.to_csv("catalogue.csv", index=False)
    main(["init", "catalogue.csv", "--images=photos", "--out=a.toml"])
    out = capsys.readouterr().out
    assert "\n  maker: 3 classes, 30 labels; 10 images with several values have no label\n" in out
    assert 'task "maker": classes that may mean "no label": "unbekannt" 10; if so, add them' in out
    assert "were looked for" not in out
    for file in list((folder / "photos").iterdir())[:21]:
        file.unlink()
    main(["init", "catalogue.csv", "--images=photos", "--out=b.toml"])
    out = capsys.readouterr().out
    assert "  images: 21 of 40 that were looked for are not in photos (first: '" in out
    assert "'); name the folder of the images (images)\n" in out
    line = wrong(
        capsys, "init", "catalogue.csv", "--images=photos", "--out=c.toml", "--tasks=empty"
    )
    assert line == '--tasks: "empty": none of 40 rows has a value ("" 40); choose another column'


def test_class_folders_without_a_test_folder_are_drawn_and_noted(tmp_path, write_image, capsys):
    for number in range(24):
        split, style = ("Training", "Validation")[number % 3 == 0], ("a", "b")[number % 2]
        write_image(tmp_path / "tree" / split / style / f"{number}.png", seed=number)
    main(["init", str(tmp_path / "tree"), f"--out={tmp_path / 'a.toml'}"])
    line = (
        "  the splits of the source (Training, Validation) have no test set: 20% of all images are "
        "drawn as the test set, and these splits are not used\n"
    )
    assert line in capsys.readouterr().out
    assert tomllib.loads((tmp_path / "a.toml").read_text())["table"]["test"] == 0.2
    for place in ("Validation", "Testing"):
        (tmp_path / "tree/Validation").rename(tmp_path / "tree" / place)
        main(["init", str(tmp_path / "tree"), f"--out={tmp_path / f'{place}.toml'}"])
        assert (line in capsys.readouterr().out) == (place == "Validation")
    table = tomllib.loads((tmp_path / "Testing.toml").read_text())["table"]
    assert (table["split"], table.get("test")) == ("split", None)


@pytest.mark.parametrize(("tasks", "end"), [
    ([], "its images are 2 folders deep ('Dutch/early/00_0.png'); name each level, from the top, "
         "such as style,artist"),
    (["--tasks=a,b,c"], "3 names (a, b, c), but the images in tree are only 2 folders deep"),
])  # fmt: skip
def test_levels_are_named_by_the_flag(tmp_path, write_image, monkeypatch, capsys, tasks, end):
    made.make("folders", tmp_path, write_image)
    monkeypatch.chdir(tmp_path)
    line = wrong(capsys, "init", "tree", "--out=a.toml", *tasks)
    assert line == f"--tasks: {'' if tasks else 'tree: '}{end}"


def test_a_spec_in_another_folder_than_its_table(folder, capsys):
    """As `tune` writes it."""
    main(["init", "catalogue.csv", "--images=photos", "--out=mine.toml"])
    capsys.readouterr()
    (folder / "best").mkdir()
    (folder / "mine.toml").rename(folder / "best" / "mine.toml")
    assert wrong(capsys, "prepare", "--spec=best/mine.toml") == (
        "best/catalogue.csv: no such file or folder. The paths of best/mine.toml start at its "
        "folder; --data_dir names another one"
    )
    main(["prepare", "--spec=best/mine.toml", "--data_dir=.", "--image_size=32"])
    assert "Prepared: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ('column = "school"', 'column = "shool"',
         'mine.toml: task[0] "school": column: unknown column "shool". Expected one of: '),
        ('column = "school"', 'column = "school"\nmin_examples = 100',
         'mine.toml: task[0] "school": min_examples: 100: 0 classes have at least 100 examples'),
        ('image = "file"', 'image = "fil"',
         'mine.toml: table.image: catalogue.csv: no column "fil". Expected one of: '),
        ('group = "object"', 'group = "objct"', 'mine.toml: table.group: unknown column "objct"'),
        ("test = 0.2", 'split = "school"',
         'mine.toml: table.split: "school": no row is a training row (train, training, learn); '),
    ],
)  # fmt: skip
def test_a_wrong_line_of_the_spec_is_named(folder, capsys, old, new, start):
    """The place in the spec stands before what is wrong there, on the console too."""
    main(["init", "catalogue.csv", "--images=photos", "--out=mine.toml"])
    capsys.readouterr()
    text = (folder / "mine.toml").read_text(encoding="utf-8")
    assert text.count(f"\n{old}\n") == 1
    (folder / "mine.toml").write_text(text.replace(f"\n{old}\n", f"\n{new}\n"), encoding="utf-8")
    line = wrong(capsys, "prepare", "--spec=mine.toml")
    assert line.startswith(start), line
