"""The demo data set: learnable and independent tasks, and exactly the stated defects."""

import csv
import hashlib
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import cross_val_score

import multitask as mt
from multitask.__main__ import main
from multitask.annexes.painting import data_set

TASKS = ("artist", "style", "genre")
IMAGES, SIZE, SEED = 160, 32, 3


def run(out: Path, *flags: str) -> None:
    main(["paint", f"--out={out}", *flags])


def refused(out: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(out, *flags)
    return caught.value.code


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paint") / "demo"
    run(out, f"--images={IMAGES}", f"--size={SIZE}", f"--seed={SEED}")
    return out


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, dict[str, list[tuple[str, int]]]]:
    """The classes [images, tasks] and CSV rows of a full-sized set that nobody has to paint."""
    plan = data_set.draw_plan(1200, np.random.default_rng(5))
    return plan.classes, plan.rows


def read_rows(demo: Path, stem: str) -> list[tuple[str, int]]:
    with open(demo / "wikiart_csv" / f"{stem}.csv", encoding="utf-8", newline="") as file:
        return [(path, int(label)) for path, label in csv.reader(file)]


def read_names(demo: Path, task: str) -> dict[int, str]:
    lines = (demo / "wikiart_csv" / f"{task}_class.txt").read_text(encoding="utf-8").splitlines()
    return {int(index): name for index, name in (line.split(" ") for line in lines)}


def all_rows(demo: Path) -> list[tuple[str, str, str, int]]:
    """Every row of every CSV: task, split, path, label."""
    return [
        (task, split, path, label)
        for task in TASKS
        for split in ("train", "val")
        for path, label in read_rows(demo, f"{task}_{split}")
    ]


def painted_files(demo: Path) -> set[str]:
    root = demo / "wikiart"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def digests(demo: Path) -> dict[str, str]:
    return {
        path.relative_to(demo).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in demo.rglob("*")
        if path.is_file()
    }


# === Layout ===


def test_layout_holds_the_images_the_tables_and_nothing_else(demo: Path) -> None:
    tables = {f"wikiart_csv/{t}_{kind}" for t in TASKS for kind in ("train.csv", "val.csv")}
    tables |= {f"wikiart_csv/{task}_class.txt" for task in TASKS}
    images = {f"wikiart/{path}" for path in painted_files(demo)}
    assert len(images) == IMAGES
    assert set(digests(demo)) == images | tables | {"README.txt", "demo.json"}
    assert [path.name for path in demo.parent.iterdir()] == ["demo"]


def test_every_row_has_a_file_and_every_file_a_row(demo: Path) -> None:
    assert {path for _, _, path, _ in all_rows(demo)} == painted_files(demo)


def test_every_image_is_a_readable_square(demo: Path) -> None:
    for path in painted_files(demo):
        with Image.open(demo / "wikiart" / path) as image:
            image.load()
            assert (image.size, image.mode, image.format) == ((SIZE, SIZE), "RGB", "JPEG")


def test_labels_agree_with_the_paths(demo: Path) -> None:
    artists, styles = read_names(demo, "artist"), read_names(demo, "style")
    for task, _, path, label in all_rows(demo):
        folder, name = path.split("/")
        if task == "style":
            assert styles[label] == folder
        if task == "artist" and label in artists:
            assert artists[label].lower().replace("_", "-") == name.split("_")[0]


def test_every_class_stands_in_both_tables_of_its_task(demo: Path) -> None:
    for task, split in itertools.product(TASKS, ("train", "val")):
        names = read_names(demo, task)
        assert list(names) == [0, 1, 2, 3]
        assert {label for _, label in read_rows(demo, f"{task}_{split}")} >= set(names)


# === Tasks: shares, imbalance, independence, pixels ===


def test_shares_of_labels_and_of_the_test(drawn: tuple) -> None:
    _, rows = drawn
    for task, share in (("artist", 0.60), ("style", 0.985), ("genre", 0.80)):
        train, test = len(rows[f"{task}_train"]), len(rows[f"{task}_val"])
        assert (train + test) / 1200 == pytest.approx(share, abs=0.01)
        assert test / (train + test) == pytest.approx(0.30, abs=0.04)


def test_some_images_have_a_single_label(drawn: tuple) -> None:
    _, rows = drawn
    tasks_of = defaultdict(set)
    for stem, pairs in rows.items():
        for path, _ in pairs:
            tasks_of[path].add(stem.split("_")[0])
    assert len(tasks_of) == 1200
    counts = Counter(len(tasks) for tasks in tasks_of.values())
    assert counts[1] > 20
    assert counts[3] > 400


def test_rarest_class_is_a_third_to_a_quarter_of_the_majority_class(drawn: tuple) -> None:
    classes, _ = drawn
    for column in classes.T:
        counts = np.bincount(column)
        assert len(counts) == 4
        assert 1 / 4 <= counts.min() / counts.max() <= 1 / 3


def test_no_task_tells_another(drawn: tuple) -> None:
    classes, _ = drawn
    for one, other in itertools.combinations(range(3), 2):
        assert mutual_info_score(classes[:, one], classes[:, other]) < 0.02  # nats, of about 1.3
        table = np.zeros((4, 4), dtype=int)
        np.add.at(table, (classes[:, one], classes[:, other]), 1)
        assert table.min() > 0
        assert chi2_contingency(table).pvalue > 0.001


def test_the_other_labels_predict_no_better_than_the_majority_class(drawn: tuple) -> None:
    classes, _ = drawn
    for task in range(3):
        others = np.delete(np.eye(4)[classes], task, axis=1).reshape(len(classes), -1)
        forest = RandomForestClassifier(50, min_samples_leaf=10, random_state=0)
        accuracy = cross_val_score(forest, others, classes[:, task], cv=3).mean()
        assert accuracy < np.bincount(classes[:, task]).max() / len(classes) + 0.03


def test_pixels_show_every_task() -> None:
    """Simple features of a few images are well above chance, which is .25 here."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, (480, 3))
    features = []
    for row in classes:
        names = (data_set.CLASSES[task][index] for task, index in zip(TASKS, row, strict=True))
        image = data_set.paint(*names, size=48, rng=rng)
        pixels = np.asarray(image, dtype=np.float32)
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float32)
        down, along = np.abs(np.diff(pixels, axis=0)), np.abs(np.diff(pixels, axis=1))
        steps = np.percentile(np.concatenate([down.ravel(), along.ravel()]), range(10, 100, 10))
        hues = [pixels.mean((0, 1)), pixels.std((0, 1)), [down.mean(), along.mean()]]
        features.append(np.concatenate([small.ravel(), small.std((1, 2)), steps, *hues]))
    for task, least in enumerate((0.85, 0.8, 0.55)):
        forest = RandomForestClassifier(40, random_state=0)
        accuracy = cross_val_score(forest, np.array(features), classes[:, task], cv=3).mean()
        assert accuracy > least, TASKS[task]


# === Defects ===


def planted(demo: Path) -> dict[str, list[str]]:
    return json.loads((demo / "demo.json").read_text(encoding="utf-8"))["defects"]


def test_one_contradiction_in_a_genre_table(demo: Path) -> None:
    labels, times = defaultdict(set), Counter()
    for task, split, path, label in all_rows(demo):
        labels[task, split, path].add(label)
        times[task, split, path] += 1
    (twice,) = [key for key, values in labels.items() if len(values) > 1]
    assert twice == ("genre", "val", planted(demo)["contradictory"][0])
    assert times[twice] == 2
    assert sum(times.values()) == len(times) + 1  # and no row stands twice anywhere


def test_leaks_are_six_and_no_image_is_train_and_val_of_one_task(demo: Path) -> None:
    splits = defaultdict(set)
    for task, split, path, _ in all_rows(demo):
        splits[path].add(split)
        splits[path, task].add(split)
    leaks = {key for key, values in splits.items() if len(values) == 2}
    assert leaks == set(planted(demo)["leak"])
    assert len(leaks) == 6


def test_one_unknown_label(demo: Path) -> None:
    unknown = [
        (task, path)
        for task, _, path, label in all_rows(demo)
        if label not in read_names(demo, task)
    ]
    assert unknown == [("artist", planted(demo)["unknown_label"][0])]


def test_odd_file_names(demo: Path) -> None:
    files = painted_files(demo)
    mojibake = {path for path in files if not path.isascii()}
    assert mojibake == set(planted(demo)["mojibake"])
    assert len(mojibake) == 3
    assert any("jardã\xadn" in path for path in mojibake)
    punctuated = {path for path in files if "'" in path and "(" in path and ")" in path}
    assert punctuated == set(planted(demo)["punctuation"])
    assert len(punctuated) == 3


def test_readme_names_every_defect(demo: Path) -> None:
    readme = (demo / "README.txt").read_text(encoding="utf-8")
    for kind, paths in planted(demo).items():
        assert f"\n{kind} ({len(paths)}): " in readme
        assert all(f"\n  {path}\n" in readme for path in paths)
    for task, split in itertools.product(TASKS, ("train", "val")):
        count = len(read_rows(demo, f"{task}_{split}"))
        assert f"{task}_{split}.csv {count}\n" in readme


# === Runs ===


def test_the_same_seed_paints_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        run(tmp_path / name, "--images=40", "--size=16", f"--seed={seed}")
    one, two, three = (digests(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    shared = {name for name in one.keys() & three.keys() if one[name] == three[name]}
    assert shared == {f"wikiart_csv/{task}_class.txt" for task in TASKS}


def test_images_of_one_set_all_differ(demo: Path) -> None:
    images = [digest for name, digest in digests(demo).items() if name.endswith(".jpg")]
    assert len(set(images)) == IMAGES


def test_a_finished_set_is_left_alone(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    run(demo, f"--images={IMAGES}", f"--size={SIZE}", f"--seed={SEED}")
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == times


def test_says_what_was_painted_and_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "demo"
    run(out, "--images=40", "--size=16")
    (line,) = capsys.readouterr().out.splitlines()
    assert "40 images" in line
    assert str(out) in line


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    run(tmp_path, "--images=40", "--size=16")
    assert len(painted_files(tmp_path)) == 40


def test_a_folder_that_holds_something_else_is_refused(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("dear reader", encoding="utf-8")
    before = digests(demo)
    for out in (tmp_path, tmp_path / "letter.txt", demo):
        assert refused(out, "--images=40", "--size=16") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"--out: {out}: holds something other than a demo of these settings")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    assert digests(demo) == before


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_set, "paint", stop)
    assert refused(tmp_path / "demo", "--images=40", "--size=16") == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--images=39", "images"),
        ("--images=many", "images"),
        ("--size=15", "size"),
        ("--seed=-1", "seed"),
        ("--colour=red", "colour"),
        ("--out=", "out"),
        ("stray", "stray"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(
    flag: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(tmp_path / "demo", flag) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert list(tmp_path.iterdir()) == []


def test_from_python_as_by_the_command(tmp_path: Path, demo: Path) -> None:
    out = mt.paint_demo(tmp_path / "demo", images=IMAGES, size=SIZE, seed=SEED)
    assert out == tmp_path / "demo"
    assert digests(out) == digests(demo)
    with pytest.raises(mt.InputError, match=r"^size: 15: expected a number ≥ 16$") as error:
        mt.paint_demo(tmp_path / "other", size=15)
    assert error.value.field == "size"
