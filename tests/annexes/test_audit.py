"""Every kind of finding, planted and then counted and listed; and the facts of the real CSVs."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import multitask as mt
from multitask.annexes.audit import (
    FINDINGS,
    RARE,
    audit_data_set,
    imbalance,
    name_findings,
    rare_classes,
)
from multitask.annexes.audit_text import RARE_LISTED, summary
from multitask.spec import InputError, load_spec

TASKS = ("artist", "style", "genre")


def add(data, name, *lines):
    """Append lines to a CSV -> the number of the first of them."""
    file = data / f"wikiart_csv/{name}.csv"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return text.count("\n") + 1


def audit(spec, data, **options):
    return audit_data_set(spec, data, progress=False, **options)


@pytest.fixture
def planted(tiny_data, write_image):
    """The clean data with something of every kind in it."""
    data = tiny_data(classes={"artist": ("Ann_Alder", "Bo_Birch", "Cy_Cedar")})
    images = data / "wikiart"
    names = ("c.jpg", "r.jpg", "b.jpg", "jardã\xadn.jpg", "naïve.jpg", "café.jpg")
    for seed, name in enumerate(names, start=100):
        write_image(images / "Dots" / name, seed=seed)
    first = add(
        data,
        "style_train",
        "Dots/c.jpg,0",
        "Dots/c.jpg,1",  # contradictory
        "Dots/b.jpg,2",
        "../x.jpg,0",  # unsafe
        "/etc/x.jpg,0",
        '"Dots/a\tb.jpg",0',
        "Waves/gone.jpg,2",  # missing
        "Waves/broken.jpg,2",  # unreadable
        "Dots/jardã\xadn.jpg,0",  # mojibake, there
        "Dots/cafã©.jpg,0",  # mojibake, there as repaired
        "Dots/naïve.jpg,0",  # no mojibake
        "Dots/copy.jpg,1",  # near-duplicate
    )
    assert first == 13
    assert add(data, "style_val", "Dots/b.jpg,2") == 5  # repeated: in train and in test
    assert add(data, "genre_train", "Dots/r.jpg,1", "Dots/r.jpg,1") == 10  # repeated
    assert add(data, "artist_train", "Dots/u.jpg,7", "Dots/u2.jpg,grene") == 7  # unknown
    add(data, "genre_val", "Lines/someone_train-10.jpg,0")  # leak: has a style in train
    (images / "Waves/broken.jpg").write_bytes(b"not an image")
    detailed = np.random.default_rng(7).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    for name, size in (("someone_val-00.jpg", (160, 120)), ("copy.jpg", (80, 60))):
        image = Image.fromarray(detailed).resize(size, Image.Resampling.BICUBIC)
        image.save(images / "Dots" / name, quality=60)
    return data


def test_clean_data_has_no_findings(tiny_data, tiny_spec):
    result = audit(tiny_spec(), tiny_data())
    assert list(result.findings) == list(FINDINGS)
    assert set(result.findings.values()) == {0}
    assert name_findings(result.findings) == ""
    assert len(result.pairs) == len(result.unusable) == len(result.mojibake) == 0


def test_every_planted_finding_is_counted(planted, tiny_spec):
    result = audit(tiny_spec(), planted)
    assert result.findings == {
        "missing": 1,
        "unreadable": 1,
        "unsafe": 3,
        "unknown": 2,
        "contradictory": 1,
        "repeated": 2,
        "leaks": 1,
        "near_duplicates": 1,
        "empty_classes": 1,
    }
    assert name_findings(result.findings).startswith("1 missing file, 1 unreadable file, 3 rows")


def test_every_planted_finding_is_named(planted, tiny_spec):
    result = json.loads(json.dumps(audit(tiny_spec(), planted).to_json()))
    assert result["missing"] == ["Waves/gone.jpg"]
    ((broken),) = result["unreadable"]
    assert broken["path"] == "Waves/broken.jpg"
    assert broken["reason"]
    style_train = {"task": "style", "split": "train", "file": "wikiart_csv/style_train.csv"}
    assert result["unsafe"] == [
        {**style_train, "line": 16, "path": "../x.jpg", "reason": "paths with `..` are refused"},
        {**style_train, "line": 17, "path": "/etc/x.jpg", "reason": "absolute paths are refused"},
        {
            **style_train,
            "line": 18,
            "path": "Dots/a\tb.jpg",
            "reason": "control characters are refused",
        },
    ]
    assert [(u["file"], u["line"], u["path"], u["value"]) for u in result["unknown"]] == [
        ("wikiart_csv/artist_train.csv", 7, "Dots/u.jpg", "7"),
        ("wikiart_csv/artist_train.csv", 8, "Dots/u2.jpg", "grene"),
    ]
    (contradiction,) = result["contradictory"]
    assert (contradiction["task"], contradiction["path"]) == ("style", "Dots/c.jpg")
    assert [(r["line"], r["label"], r["name"]) for r in contradiction["rows"]] == [
        (13, 0, "Dots"),
        (14, 1, "Lines"),
    ]
    repeated = {(r["task"], r["path"]): r["rows"] for r in result["repeated"]}
    assert repeated.keys() == {("style", "Dots/b.jpg"), ("genre", "Dots/r.jpg")}
    rows = repeated["style", "Dots/b.jpg"]
    assert [(r["split"], r["line"]) for r in rows] == [("train", 15), ("test", 5)]
    assert [r["line"] for r in repeated["genre", "Dots/r.jpg"]] == [10, 11]
    assert result["leaks"]["images"] == [
        {"path": "Lines/someone_train-10.jpg", "train": ["style"], "test": ["genre"]}
    ]
    assert result["leaks"]["by_test_task"] == {"artist": 0, "style": 0, "genre": 1}
    assert result["empty_classes"] == [
        {
            "task": "artist", "label": 2, "name": "Cy_Cedar",
            "listed": 0, "train": 0, "readable": 0, "test": 0,
        }
    ]  # fmt: skip
    assert result["mojibake"] == [
        {"path": "Dots/cafã©.jpg", "repaired": "Dots/café.jpg", "file": "there as repaired"},
        {"path": "Dots/jardã\xadn.jpg", "repaired": "Dots/jardín.jpg", "file": "there"},
    ]


def test_a_near_duplicate_of_a_test_image_is_listed(planted, tiny_spec):
    result = audit(tiny_spec(), planted)
    (pair,) = result.pairs.to_dict("records")
    assert (pair["first"], pair["first_split"]) == ("Dots/copy.jpg", "train")
    assert (pair["second"], pair["second_split"]) == ("Dots/someone_val-00.jpg", "test")
    assert pair["labels_differ"] == "style"  # 1 and 0; the copy has no other label
    assert list(result.seen) == ["Dots/someone_val-00.jpg"]
    assert result.labels_of("Dots/copy.jpg") == {"style": "Lines"}
    # The same two within train are no finding.
    csvs = planted / "wikiart_csv"
    for task in TASKS:
        text = (csvs / f"{task}_val.csv").read_text(encoding="utf-8")
        line = next(x for x in text.splitlines(keepends=True) if "someone_val-00.jpg" in x)
        (csvs / f"{task}_val.csv").write_text(text.replace(line, ""), encoding="utf-8")
        add(planted, f"{task}_train", line.rstrip("\n"))
    result = audit(tiny_spec(), planted)
    assert len(result.pairs) == 1
    assert result.findings["near_duplicates"] == 0


def test_counts_sets_of_labels_and_classes_by_hand(planted, tiny_spec):
    """The default data: 12 images of train and 4 of test, with 6/12/9 and 2/4/3 labels."""
    result = audit(tiny_spec(), planted)
    assert result.label_sets() == {
        # 16 by default less 6 + 2 and 3 + 1, less the leak; c, gone, broken, 2 mojibake, naïve,
        # copy and b.
        ("style",): 3 + 1 - 1 + 8,
        TASKS: 6 + 2,
        ("style", "genre"): 3 + 1 + 1,
        ("genre",): 1,
    }
    counts = result.counts()
    # Train: less the leak; less c, which has no label left; b is a test set.
    assert counts.loc["train"].to_dict() == {
        "images": 12 - 1 + 6 + 1,
        "artist/labels": 6,
        "style/labels": 12 - 1 + 6,
        "genre/labels": 9 + 1,
    }
    assert counts.loc["test"].to_dict() == {
        "images": 4 + 2,
        "artist/labels": 2,
        "style/labels": 5,
        "genre/labels": 4,
    }
    readable = result.counts(readable=True)
    assert (counts - readable)["images"].to_dict() == {"train": 2, "test": 0}
    assert result.leak_cost().loc["before"].to_dict() == {
        "images": 19,
        "artist/labels": 6,
        "style/labels": 18,
        "genre/labels": 10,
    }
    style = result.classes[result.classes["task"] == "style"].set_index("name")
    # By default 4 each. Dots: two mojibake and naïve; Lines: the copy, the leak is lost.
    assert style["listed"].to_dict() == {"Dots": 7, "Lines": 5, "Waves": 6}
    assert style["train"].to_dict() == {"Dots": 7, "Lines": 4, "Waves": 6}
    assert style["readable"].to_dict() == {"Dots": 7, "Lines": 4, "Waves": 4}
    assert style["test"].to_dict() == {"Dots": 2, "Lines": 1, "Waves": 2}
    ends = imbalance(result.classes, "style")
    assert ends == {"ratio": 7 / 5, "largest": ("Dots", 7), "smallest": ("Lines", 5)}


def test_rare_classes_are_those_below_the_limit(tiny_data, tiny_spec):
    rows = [(f"{i:03}.jpg", 0 if i < RARE - 1 else 1) for i in range(2 * RARE - 1)]
    data = tiny_data(images=False, rows={"style_train": rows})
    (data / "wikiart").mkdir()
    result = audit(tiny_spec(tasks=("style",)), data)
    rare = rare_classes(result.classes)
    assert rare[["name", "train"]].to_numpy().tolist() == [["Dots", RARE - 1]]
    assert result.findings["empty_classes"] == 1  # Waves, only in test
    assert any("Dots has 19 training labels, fewer than 20" in line for line in summary(result))


def test_the_console_names_a_bounded_number_of_rare_classes(tiny_data, tiny_spec):
    names = [f"style {i}" for i in range(300)]
    rows = {"style_train": [(f"gone/{i}.jpg", i) for i in range(300)]}
    data = tiny_data(rows=rows, classes={"style": names}, images=False)
    (data / "wikiart").mkdir()
    result = audit(tiny_spec(tasks=("style",)), data)
    lines = summary(result)
    assert sum("has 1 training label, fewer than 20" in line for line in lines) == RARE_LISTED
    assert (
        "  and 280 more classes with fewer than 20: audit.json has all under rare_classes" in lines
    )
    assert len(result.to_json()["rare_classes"]) == 300


def test_most_images_may_be_missing(tiny_data, tiny_spec):
    data = tiny_data()
    for file in sorted((data / "wikiart").rglob("*.jpg"))[1:]:
        file.unlink()
    assert audit(tiny_spec(), data).findings["missing"] == 15
    shutil.rmtree(data / "wikiart")
    (data / "wikiart").mkdir()
    assert audit(tiny_spec(), data).findings["missing"] == 16


def test_a_list_without_a_single_good_row(tiny_data, tiny_spec):
    bad = {"style_train": [("x.jpg", 9)], "style_val": [("../x.jpg", 0), ("v.jpg", 0)]}
    data = tiny_data(rows=bad, images=False)
    (data / "wikiart").mkdir()
    result = audit(tiny_spec(tasks=("style",)), data)
    assert (result.findings["unknown"], result.findings["unsafe"]) == (1, 1)
    assert result.findings["empty_classes"] == 3
    assert imbalance(result.classes, "style") == {}
    assert result.label_sets() == {("style",): 1}
    assert "style: no training labels" in "\n".join(summary(result))
    json.dumps(result.to_json())


def test_no_image_folder_and_no_csv_are_wrong_input(tiny_data, tiny_spec):
    data = tiny_data(images=False)
    with pytest.raises(InputError, match=r"^[^:]+: images: .*: there is no such folder of images"):
        audit(tiny_spec(), data)
    (data / "wikiart_csv/genre_val.csv").unlink()
    with pytest.raises(InputError, match=r"genre_val\.csv: no such file"):
        audit(tiny_spec(), data)


def test_hashes_are_kept_for_the_next_time(tiny_data, tiny_spec, tmp_path):
    data = tiny_data()
    first = audit(tiny_spec(), data, records_dir=tmp_path / "records")
    assert [file.name for file in (tmp_path / "records").iterdir()] == ["hashes_tiny.npz"]
    assert not (data / "records").exists()
    again = audit(tiny_spec(), data, records_dir=tmp_path / "records")
    assert first.to_json() == again.to_json()


def test_the_demo_data_has_its_stated_defects_and_no_others(tmp_path):
    data = mt.paint_demo(tmp_path / "demo", images=160, size=32)
    defects = json.loads((data / "demo.json").read_text(encoding="utf-8"))["defects"]

    result = audit(load_spec("demo"), data)
    report = result.to_json()
    # Some of its portraits are alike by chance, so near-duplicates are not checked.
    assert {kind: n for kind, n in result.findings.items() if n and kind != "near_duplicates"} == {
        "unknown": len(defects["unknown_label"]),
        "contradictory": len(defects["contradictory"]),
        "leaks": len(defects["leak"]),
    }
    assert [row["path"] for row in report["unknown"]] == defects["unknown_label"]
    assert [row["path"] for row in report["contradictory"]] == defects["contradictory"]
    assert [row["path"] for row in report["leaks"]["images"]] == defects["leak"]
    assert result.mojibake["path"].tolist() == defects["mojibake"]
    assert set(result.mojibake["file"]) == {"there"}


# === The real CSVs and the real sample ===


@pytest.mark.slow
def test_the_real_data_set_has_its_known_facts(tmp_path):
    folder = os.environ.get("WIKIART_DIR")
    if not folder:
        pytest.skip("WIKIART_DIR is not set: the folder with wikiart/ and wikiart_csv/ of ArtGAN")
    if not (Path(folder) / "wikiart").is_dir() or not (Path(folder) / "wikiart_csv").is_dir():
        pytest.skip(f"WIKIART_DIR={folder} holds no wikiart/ and wikiart_csv/")
    result = audit(load_spec("wikiart"), Path(folder), records_dir=tmp_path)
    report = json.loads(json.dumps(result.to_json()))
    assert report["images"] == 81_446
    assert {(r["task"], r["split"]): r["rows"] for r in report["rows"]} == {
        ("artist", "train"): 13_346,
        ("artist", "test"): 5_706,
        ("genre", "train"): 45_503,
        ("genre", "test"): 19_492,
        ("style", "train"): 57_025,
        ("style", "test"): 24_421,
    }
    assert result.label_sets() == {
        ("style", "genre"): 48_744,
        TASKS: 16_250,
        ("style",): 13_650,
        ("artist", "style"): 2_802,
    }
    assert result.findings["leaks"] == 566
    assert result.leaks_by_test_task() == {"artist": 142, "genre": 237, "style": 315}
    left = {
        "images": 56_774,
        "artist/labels": 13_201,
        "genre/labels": 45_194,
        "style/labels": 56_774,
    }
    assert report["splits"]["train"] == left
    assert report["leaks"]["training_after"] == left
    assert report["leaks"]["training_before"] == {
        "images": 57_340,
        "artist/labels": 13_346,
        "genre/labels": 45_503,
        "style/labels": 57_025,
    }
    (contradiction,) = report["contradictory"]
    assert contradiction["path"] == "Post_Impressionism/maurice-de-vlaminck_the-village.jpg"
    assert contradiction["task"] == "genre"
    assert [(r["file"], r["label"]) for r in contradiction["rows"]] == [
        ("wikiart_csv/genre_val.csv", 1),
        ("wikiart_csv/genre_val.csv", 4),
    ]
    assert len(report["mojibake"]) == 709
    ratios = {task: round(ends["ratio"], 1) for task, ends in report["imbalance"].items()}
    assert ratios == {"artist": 3.9, "genre": 7.4, "style": 132.5}
    style = result.classes[result.classes["task"] == "style"].set_index("name")["listed"]
    assert style.nsmallest(3).to_dict() == {
        "Action_painting": 69,
        "Analytical_Cubism": 77,
        "Synthetic_Cubism": 152,
    }
    assert (style.idxmax(), style.max()) == ("Impressionism", 9_142)
    for kind in ("unsafe", "unknown", "repeated", "empty_classes", "unreadable"):
        assert result.findings[kind] == 0

    # The same, from the files themselves.
    csvs = Path(folder) / "wikiart_csv"
    frame = pd.concat(
        pd.read_csv(csvs / f"{task}_{split}.csv", header=None, names=["path", "label"]).assign(
            task=task, split=split
        )
        for task in TASKS
        for split in ("train", "val")
    )
    split_of = frame.drop_duplicates(["path", "task", "split"]).groupby("path")["split"].nunique()
    assert (split_of > 1).sum() == 566
    paths = frame["path"].unique()
    there = np.asarray([(Path(folder) / "wikiart" / path).is_file() for path in paths])
    assert result.findings["missing"] == (~there).sum()
    if there.sum() == 12_500:  # the sample; the whole data set has them all
        assert result.findings["missing"] == 68_946
    assert sum(not path.isascii() for path in paths) == 709


def test_images_that_no_csv_names_are_listed(planted, tiny_spec, write_image):
    """A file that a CSV names through a link, by a garbled name or with an unknown label, is not
    among them."""
    images = planted / "wikiart"
    for name in ("Dots/extra.jpg", "a.jfif", "roll-store/1.png", "Dots/u.jpg"):
        write_image(images / name, seed=5)
    (images / "notes.txt").write_text("")
    (images / "a-link").symlink_to("roll-store")
    add(planted, "style_train", "a-link/1.png,0")
    result = audit(tiny_spec(), planted)
    # café.jpg is there as repaired; u.jpg has an unknown label.
    assert result.unnamed == ["Dots/extra.jpg", "a.jfif"]
    assert result.to_json()["unnamed"] == result.unnamed
    text = "\n".join(summary(result))
    assert "Images that no CSV names: 2 (Dots/extra.jpg, …)" in text
    assert "1 of another type (.txt), 1 link to a folder that was already read" in text
    assert result.findings["missing"] == 1  # the garbled name is read; the rest is no finding
