"""The page of a report: what it chooses, and how large it gets."""

import re

import numpy as np
import pandas as pd
import pytest
from report_pages import write_big_page

from multitask.evaluation.task_metrics import detailed_metrics
from multitask.pages import report_page
from multitask.pages.report_page import Album, cells, galleries, in_turns, labelled_in, mistakes

FRAME = pd.DataFrame(
    {
        "path": list("abcdef"),
        "mood/true": ["calm", "calm", "loud", "", "loud", "calm"],
        "mood/predicted": ["calm", "loud", "loud", "calm", "calm", "calm"],
        "mood/confidence": [0.4, 0.6, 0.9, 0.99, 0.95, 0.45],
        "mood/class_distance": [0.1, 0.9, 0.3, np.nan, 0.5, np.nan],
    }
)


IMAGES = labelled_in(FRAME, "mood")
EVERY = [(true, message) for true in ("calm", "loud") for message in ("calm", "loud")]


def test_outliers_are_sorted_by_what_makes_them_one(monkeypatch):
    monkeypatch.setattr(report_page, "GALLERY", 2)
    matches = {}
    for card in galleries({"mood": IMAGES}):
        matches.setdefault(card["kind"], []).append(card["path"])
    # d has no label. Wrong: e (.95), b (.6). Right below .5: a (.4), f (.45).
    assert matches == {
        "misclassified": ["e", "b"],
        "low confidence": ["a", "f"],
        "farthest from their class": ["b", "e"],
    }
    first = galleries({"mood": IMAGES})[0]
    assert (first["true"], first["predicted"], first["confidence"]) == ("loud", "calm", 0.95)
    without = galleries({"mood": labelled_in(FRAME.drop(columns="mood/class_distance"), "mood")})
    assert {card["kind"] for card in without} == {"misclassified", "low confidence"}
    assert without[0]["distance"] is None


def test_a_cell_has_its_images_the_surest_first():
    assert cells(IMAGES, EVERY) == {
        ("loud", "calm"): [("e", 0.95)],
        ("loud", "loud"): [("c", 0.9)],
        ("calm", "loud"): [("b", 0.6)],
        ("calm", "calm"): [("f", 0.45), ("a", 0.4)],
    }
    assert cells(IMAGES, [("loud", "calm"), ("calm", "wild")]) == {("loud", "calm"): [("e", 0.95)]}


def test_the_most_frequent_mistakes_come_first():
    images = pd.DataFrame({"true": list("aabbbcc"), "predicted": list("abaaccc")})
    matches = mistakes(images).itertuples(index=False, name=None)
    assert list(matches) == [("b", "a", 2, 3), ("a", "b", 1, 2), ("b", "c", 1, 3)]
    assert mistakes(images.head(0)).empty


def test_every_cell_has_its_turn_before_one_has_two_and_mistakes_come_first():
    matches = [(cell, path) for _, cell, path, _ in in_turns([cells(IMAGES, EVERY)])]
    assert [path for _, path in matches] == ["e", "b", "c", "f", "a"]
    assert matches[0] == (("loud", "calm"), "e")


def test_an_image_is_held_once_and_not_beyond_the_room():
    loaded = []

    def load(path):
        loaded.append(path)
        return None if path == "gone" else np.full((300, 200, 3), 90, np.uint8)

    def filled(room):
        album = Album(load)
        assert [album.add(path) for path in ("a", "gone", "a", "b", "c")] == [0, 1, 0, 2, 3]
        album.fill(room)
        return album.sources

    sources = filled(10**6)
    assert loaded == ["a", "gone", "b", "c"]
    assert [source is None for source in sources] == [False, True, False, False]
    assert sources[0].startswith("data:image/jpeg;base64,")
    loaded.clear()
    room = 2 * len(sources[0])
    assert filled(room) == [*sources[:3], None]
    assert filled(room - 1) == [*sources[:2], None, None]
    loaded.clear()
    assert filled(0) == [None] * 4
    assert loaded == ["a"]  # once there is no room, nothing is even read


def test_the_page_of_a_whole_test_is_below_10_mb(known, tmp_path):
    """As many images, classes and mistakes as WikiArt's test set has, and images of noise."""
    classes = {
        task: tuple(f"{task}_class_of_some_length_{i}" for i in range(count))
        for task, count in {"shade": 27, "warmth": 23, "empty": 10}.items()
    }
    size, content = write_big_page(tmp_path, known, classes, 24_000)
    assert (
        0.95 * report_page.PAGE_BYTES < size <= report_page.PAGE_BYTES == 10_000_000
    )  # all room is used
    assert [content["confusion"][task]["others"] for task in classes] == [0, 0, 0]


@pytest.mark.slow
def test_the_page_of_1000_classes_in_three_tasks_is_below_10_mb(known, tmp_path):
    classes = {
        task: tuple(f"{task} {'浮世絵<&>' * 20} {i}" for i in range(1000))
        for task in ("shade", "warmth", "empty")
    }
    size, content = write_big_page(tmp_path, known, classes, 5000)
    assert size <= report_page.PAGE_BYTES
    text = (tmp_path / "report.html").read_text()
    assert len(re.findall("<td", text)) < 40_000
    assert text.count("data:image/jpeg") > 100
    # Every class has its row, and of the confusions there are the most frequent.
    tables = re.findall(r'<table class="sortable.*?</table>', text, re.S)
    assert [table.count("<tr><td>") for table in tables] == [300, 1000] * 3
    # metrics.json has a row a class, and of the confusion no more than of 41 classes.
    assert all(np.shape(content["confusion"][task]["counts"]) == (41, 41) for task in classes)
    assert all(len(content["classes"][task]) == 1000 for task in classes)


@pytest.mark.slow
def test_the_text_of_the_page_has_a_bound(known, tmp_path, monkeypatch):
    """The worst that can be: more tasks, classes, long names of characters that take most bytes,
    long paths and more pairs of tasks than a page has room for."""
    quotes, tasks = '"' * 500, [f"task{i:036}" for i in range(report_page.TASKS + 5)]
    classes = {task: tuple(f"{quotes}{i}" for i in range(3)) for task in tasks}
    paths = [f"{i}{quotes}.jpg" for i in range(400)]
    names = [f"{i}{quotes}" for i in range(1000)]
    side = report_page.TASKS

    def grown(content):
        """As if each task had 1,000 classes, all of them confused."""
        either = {"count": 10**6, "accuracy": 0.5}
        lost = [{"name": n, "given_right": either, "given_wrong": either} for n in names]
        row = {"precision": 0.123, "recall": 0.123, "f1": 0.123, "support": 10**6}
        for task in tasks:
            content["classes"][task] = [{"name": name} | row for name in names]
            content["confusion"][task] = {
                "names": names[:28],
                "counts": [[10**6] * 29 for _ in range(29)],
                "others": 972,
            }
        for one in content["task_pairs"]["dependence"]:
            one["classes"] = lost
        content["task_pairs"]["contradictions"] = [
            {
                "path": paths[i], "first": tasks[0], "second": tasks[1], "confidence": 0.5,
                "first_predicted": names[0], "second_predicted": names[1],
            }
            for i in range(24)
        ]  # fmt: skip

    monkeypatch.setattr(report_page, "mistakes", lambda images: every_pair(names))
    one = {"path": paths[0], "labels": ", ".join(names[:25]), "distance": 0.5}
    look = {"true": names[0], "predicted": names[1], "confidence": 0.5}
    pixels = np.zeros((2, 2, 3), np.uint8)
    more = {
        "similar": [one | {"neighbours": [one] * 5}] * 8,
        "attention": [
            look | {"task": task, "path": paths[0], "overlay": pixels}
            for task in tasks
            for _ in range(18)
        ],
        "history": pd.DataFrame({"epoch": range(1000)} | {
            f"{kind}{task}_{name}": np.random.default_rng(0).random(1000)
            for kind in ("", "val_") for task in tasks for name in ("loss", "top1", "macro_f1")
        }),
        "load": lambda path: None,
        "title": quotes,
    }  # fmt: skip
    real = detailed_metrics

    def details(*of):
        content = real(*of)
        grown(content)
        return content

    monkeypatch.setitem(write_big_page.__globals__, "detailed_metrics", details)
    assert 29**2 * side <= 17_000
    size, _ = write_big_page(tmp_path, known, classes, 400, paths, more)
    assert 3e6 < size <= report_page.PAGE_BYTES
    page = (tmp_path / "report.html").read_text()
    assert f"shows {report_page.TASKS} of the {len(tasks)} tasks" in page
    assert "(the 33 of 1,000 with the greatest loss)" in page  # 1,000 rows of 30 lists


def every_pair(names):
    pairs = [(a, b) for a in names[:40] for b in names[40:80]]
    true, predicted = zip(*pairs, strict=True)
    return pd.DataFrame({"true": true, "predicted": predicted, "count": 10**6, "total": 10**7})
