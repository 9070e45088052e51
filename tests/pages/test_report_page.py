"""The page: what it chooses, and that a browser shows it whole, alone and safely."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from multitask.bootstrap import FEWEST_EXAMPLES
from multitask.calibration import Calibration
from multitask.data.table import TRAIN, Table
from multitask.evaluation.coverage import conformal_of, coverage_metrics
from multitask.evaluation.predictions import Predictions, read_predictions
from multitask.evaluation.report import evaluate
from multitask.evaluation.task_metrics import detailed_metrics, evaluate_tasks, flat_metrics
from multitask.pages import report_page
from multitask.pages.report_page import (
    Album,
    cells,
    galleries,
    in_turns,
    labelled_in,
    mistakes,
    write_page,
)
from multitask.trained import open_trained

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

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


# === What is chosen ===


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


def noise(path):
    return np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)


def write_big_page(folder, known, classes, count, paths=None, more=None):
    """The page of as many random answers; its size, and metrics.json."""
    rng = np.random.default_rng(0)
    paths = paths or [f"Some_Style/{'x' * 50}_{i:05}.jpg" for i in range(count)]
    paths = np.array(paths, object)
    labels = np.stack([rng.integers(-1, len(names), count) for names in classes.values()], 1)
    probabilities = {}
    for column, (task, names) in enumerate(classes.items()):
        drawn = rng.random((count, len(names))) ** 6
        right = rng.random(count) < 0.5
        drawn[right, labels[right, column]] += 1
        probabilities[task] = drawn / drawn.sum(axis=1, keepdims=True)
    predictions = Predictions(classes, paths, labels.astype(np.int32), probabilities)
    training_table = Table(classes, paths, predictions.labels, np.full(count, TRAIN, object))
    calibrations = {task: Calibration(1.5, 100, {"calibrated": (), "raw": ()}) for task in classes}
    content = {"test_images": count, "unusable_test_images": 0, "model": "m", "versions": {}}
    content |= flat_metrics(evaluate_tasks(predictions, training_table))
    content |= detailed_metrics(predictions, training_table, calibrations)
    conformal = conformal_of(predictions, calibrations)
    content["conformal"] = coverage_metrics(predictions, calibrations, conformal)
    predictions.save(folder)
    spec = known.colour_spec().to_dict()
    spec["task"] = [{"name": task} for task in classes]
    values = {
        "title": "whole",
        "spec": spec,
        "content": content,
        "frame": read_predictions(folder / "predictions.csv"),
        "history": pd.DataFrame(),
        "load": noise,
    }
    write_page(folder / "report.html", **values | (more or {}))
    return (folder / "report.html").stat().st_size, content


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


# === In a browser ===


@pytest.fixture(scope="module")
def evaluated(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "paged", data)
    history = {"epoch": [1, 2], "phase": ["heads"] * 2, "shade/top1": [0.2, 0.4]}
    pd.DataFrame(history).to_csv(run.logs / "history.csv", index=False)
    evaluate(open_trained(run))
    return run


WATCH = """<script>
window.problems = [];
window.addEventListener("error", (event) => window.problems.push(String(event.message)));
</script>"""
CHECK = """<script>
window.addEventListener("load", () => {
  const result = {problems: window.problems};
  try {
    result.overflow = document.documentElement.scrollWidth - window.innerWidth;
    result.width = window.innerWidth;
    const button = [...document.querySelectorAll(".confusion button")]
      .find((b) => !b.parentElement.classList.contains("right"));
    result.cell = [button.closest("table").dataset.task, button.title];
    button.click();
    const panel = button.closest("section").querySelector(".cell");
    result.opened = !panel.hidden;
    result.captions = [...panel.querySelectorAll("figcaption")].map((c) => c.innerText);
    button.click();
    result.closed = panel.hidden;
    const form = document.querySelector(".filters");
    const cards = [...document.querySelectorAll(".outliers figure")];
    const set = (name, value) => {
      form.elements.namedItem(name).value = value;
      form.elements.namedItem(name).dispatchEvent(new Event("change", {bubbles: true}));
    };
    const left = () => cards.filter((c) => !c.hidden).map(
      ({dataset: d}) => [d.task, d.kind, d.true, d.predicted]);
    result.first = left();
    set("kind", "");
    result.all = left();
    set("task", "warmth");
    result.task = left();
    set("kind", "misclassified");
    result.kind = left();
    set("task", ""); set("kind", ""); set("class", "rust");
    result.class = left();
    result.text = form.querySelector("output").textContent;
    result.images = [...document.images].filter((i) => i.complete && i.naturalWidth).length;
    result.missing = document.querySelectorAll("img.gone").length;
    result.asked = performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => !name.startsWith("data:"));
    result.alerted = Boolean(window.alerted);
  } catch (error) { result.problems.push(String(error)); }
  const out = document.createElement("pre");
  out.id = "result";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
});
</script>"""


def browse(text, folder, width):
    """The page in Chromium: what the script above found, and what the console had to say."""
    file = folder / "page.html"
    file.write_text(text.replace("<head>", "<head>" + WATCH).replace("</body>", CHECK + "</body>"))
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
            "--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (result,) = re.findall(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(result)), console


@in_a_browser
@pytest.mark.parametrize("width", [1400, 500])
def test_it_works_in_a_browser_alone(evaluated, tmp_path, width):
    text = (evaluated.results / "report.html").read_text()
    matches, console = browse(text, tmp_path, width)
    # The policy in its head forbids any request, and the console tells of one that was tried.
    assert "default-src 'none'" in text
    assert matches["problems"] == matches["asked"] == console == []
    assert matches["width"] == width
    assert matches["overflow"] <= 0, "the page is wider than the window"
    frame = read_predictions(evaluated.results / "predictions.csv")
    task, title = matches["cell"]
    true, message = re.match(r"(.*) predicted as (.*): \d", title).groups()
    own = frame[(frame[f"{task}/true"] == true) & (frame[f"{task}/predicted"] == message)]
    assert matches["opened"]
    assert matches["closed"]
    own = own.sort_values(f"{task}/confidence", ascending=False)
    assert [c.split()[-1] for c in matches["captions"]] == own["path"].tolist()[
        : report_page.SHOWN_IMAGES
    ]
    cards = galleries({task: labelled_in(frame, task) for task in evaluated.spec.task_names})
    wanted = [[card[key] for key in ("task", "kind", "true", "predicted")] for card in cards]
    assert matches["first"] == [row for row in wanted if row[1] == "misclassified"]
    assert matches["all"] == wanted
    assert matches["task"] == [row for row in wanted if row[0] == "warmth"]
    assert matches["kind"] == [row for row in wanted if row[:2] == ["warmth", "misclassified"]]
    assert matches["class"] == [row for row in wanted if "rust" in row[2:]]
    assert matches["text"] == f"{len(matches['class'])} shown"
    assert matches["images"] > 20
    assert matches["missing"] == 0


@in_a_browser
def test_names_are_text_and_not_html(evaluated, tmp_path):
    evil = '<img src=x onerror="alerted=1">$&\'</script>'
    assert len(evil) < report_page.NAME

    def spoiled(text):
        return text.replace('"rust"', json.dumps(evil))

    content = json.loads(spoiled((evaluated.results / "metrics.json").read_text()))
    frame = read_predictions(evaluated.results / "predictions.csv").replace("rust", evil)
    frame["path"] = frame["path"] + evil + "<script>window.alerted=1</script>"
    write_page(
        tmp_path / "report.html",
        title=evil,
        spec=evaluated.spec.to_dict(),
        content=content,
        frame=frame,
        history=pd.DataFrame(),
        load=lambda path: None,
    )
    matches, console = browse((tmp_path / "report.html").read_text(), tmp_path, 1400)
    assert matches["problems"] == matches["asked"] == console == []
    assert not matches["alerted"]
    assert any(evil in row[2:] for row in matches["all"])


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    if not chromium.PATH:
        pytest.skip("chromium is not installed")
    tab = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def many(known, tmp_path_factory):
    """A page of 100 classes, its folder."""
    folder = tmp_path_factory.mktemp("many")
    classes = {"shade": tuple(f"{('Gogh_', 'Émile ')[i % 2]}{i}" for i in range(100))}
    small = {"load": lambda path: np.full((30, 40, 3), 90, np.uint8)}
    write_big_page(folder, known, classes, 2000, more=small)
    return folder


ROWS = """[...document.querySelectorAll(".classes tbody tr")].filter((row) => !row.hidden)
  .map((row) => row.cells[%d].textContent)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tables_of_many_rows_are_sorted_and_searched_by_keyboard(browser, many, scheme):
    browser.open((many / "report.html").as_uri(), scheme=scheme)
    heads = "document.querySelectorAll('.classes th button')"
    names = browser.run(ROWS % 0)
    assert len(names) == 100
    f1 = [float(x) for x in browser.run(ROWS % 1)]
    assert f1 == sorted(f1, reverse=True)
    # The head of F1 has the focus: the space bar sorts, and sorts the other way round.
    browser.run(f"{heads}[1].focus()")
    browser.press(" ")
    assert browser.run("document.activeElement.parentElement.ariaSort") == "descending"
    assert [float(x) for x in browser.run(ROWS % 1)] == f1
    browser.press(" ")
    assert browser.run("document.activeElement.parentElement.ariaSort") == "ascending"
    assert [float(x) for x in browser.run(ROWS % 1)] == f1[::-1]
    browser.run(f"{heads}[0].focus()")
    browser.press(" ")
    by_name = sorted(names, key=lambda name: (name.startswith("G"), int(name.split()[1])))
    assert browser.run(ROWS % 0) == by_name
    assert browser.run("document.querySelectorAll('.classes [aria-sort]').length") == 1
    # Without accents and capitals; two words are both wanted.
    browser.run("document.querySelectorAll('input[type=search]')[1].focus()")
    browser("Input.insertText", text="EMILE 7")
    matches = [name for name in by_name if name.startswith("É") and "7" in name]
    shown = browser.run("[...document.querySelectorAll('.classes tbody tr')]"
                        ".filter((row) => !row.hidden).map((row) => row.textContent)")  # fmt: skip
    assert set(matches) <= {name for name in names if any(name in row for row in shown)}
    assert 0 < len(shown) < 100
    message = browser.run("document.querySelectorAll('.filters output')[1].textContent")
    assert message == f"{len(shown)} of 100 classes"
    assert browser.console_lines == []
    assert browser.run("document.documentElement.scrollWidth") <= 1400


def test_a_pair_of_classes_opens_its_images_and_links_lead_to_the_files(browser, many):
    browser.open((many / "report.html").as_uri(), width=420)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.run("document.querySelector('.sortable td button').focus()")
    row = browser.run("[...document.activeElement.closest('tr').cells].map((c) => c.textContent)")
    browser.press(" ")
    panel = "document.querySelectorAll('.cell')[1]"
    assert not browser.run(f"{panel}.hidden")
    title = browser.run(f"{panel}.querySelector('p').textContent")
    assert (
        title == f"{row[0]} predicted as {row[1]}: {row[2]} of {row[3]}. Highest confidence first:"
    )
    frame = read_predictions(many / "predictions.csv")
    chosen = frame[(frame["shade/true"].str.replace("_", " ") == row[0])
                   & (frame["shade/predicted"].str.replace("_", " ") == row[1])]  # fmt: skip
    assert len(chosen) == int(row[2])
    chosen = chosen.sort_values("shade/confidence", ascending=False, kind="stable")
    captions = browser.run(f"[...{panel}.querySelectorAll('figcaption')].map((c) => c.innerText)")
    assert [c.split()[-1] for c in captions] == chosen["path"].tolist()[: report_page.SHOWN_IMAGES]
    links = browser.run("[...document.querySelectorAll('main a')].map((a) => a.href)")
    assert links == [(many / f"{kind}_shade.csv").as_uri() for kind in ("classes", "confusion")]
    # The remaining classes' common cell is neither right nor wrong, and their cells open no images.
    rows = "[...document.querySelectorAll('.confusion tbody tr')]"
    cells_of = browser.run(f"{rows}.map((row) => [...row.cells].map((c) => c.title))")
    assert len(cells_of) == 41
    assert cells_of[-1][-1].startswith("60 more classes predicted as 60 more classes")
    assert browser.run("!document.querySelector('.confusion tr:last-child button')")
    assert browser.console_lines == []


def test_on_paper_the_first_rows_stand(browser, many):
    browser.open((many / "report.html").as_uri())
    browser("Emulation.setEmulatedMedia", media="print")
    shown = "[...document.querySelectorAll('.classes tbody tr')].filter((r) => r.offsetHeight)"
    assert browser.run(f"{shown}.length") == 40
    assert browser.run("!document.querySelector('.filters').offsetHeight")


def test_every_figure_is_that_of_the_metrics(evaluated):
    """The cards and tables of the text, against metrics.json."""
    text = (evaluated.results / "report.html").read_text()
    content = json.loads((evaluated.results / "metrics.json").read_text())
    for task in ("shade", "warmth"):
        for name in ("top1", "top5", "macro_f1", "balanced_accuracy"):
            interval = content["intervals"][f"{task}/{name}"]
            few = content["metrics"][f"{task}/labelled"] < FEWEST_EXAMPLES
            assert (interval is None) == (few or (task, name) == ("warmth", "top5"))
            value = content["metrics"][f"{task}/{name}"]
            between = "{:.3f} – {:.3f}".format(*interval) if interval else ""
            shown = rf"<b>{value:.3f}</b></td>\s*<td[^>]*>{between}</td>"
            assert re.search(shown, text), (task, name)
    frame = read_predictions(evaluated.results / "predictions.csv")
    tables = re.findall(r'<table class="confusion" data-task="(\w+)".*?</table>', text, re.S)
    assert tables == ["shade", "warmth"]
    for task, table in zip(tables, re.findall(r'<table class="confusion".*?</table>', text, re.S),
                           strict=True):  # fmt: skip
        names = re.findall(r"<th><span>(\w+)</span></th>", table)
        assert sorted(names) == sorted(evaluated_names(content, task))
        counts = frame[frame[f"{task}/true"] != ""]
        counts = counts.groupby([f"{task}/true", f"{task}/predicted"]).size().to_dict()
        rows = re.findall(r'<tr><th>(\w+) <span class="count">(\d+)</span></th>(.*)</tr>', table)
        assert [label for label, _, _ in rows] == names
        for label, total, cells_of in rows:
            shown = [int(n or 0) for n in re.findall(r'<td(?: data-n="(\d+)")?', cells_of)]
            assert shown == [counts.get((label, message), 0) for message in names]
            assert int(total) == sum(shown)
    assert "n/a (no test set)" in text  # of "empty"


def evaluated_names(content, task):
    return [row["name"] for row in content["classes"][task]]
