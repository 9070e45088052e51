"""The page: what it chooses, and that a browser shows it whole, alone and safely."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from multitask.data.table import TRAIN, Table
from multitask.evaluation import page
from multitask.evaluation.calibration import Calibration
from multitask.evaluation.judging import details_of, judge, named
from multitask.evaluation.page import Album, cells, chart, galleries, in_turns, write_page
from multitask.evaluation.predictions import Predictions, read_predictions
from multitask.evaluation.report import evaluate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

FRAME = pd.DataFrame(
    {
        "path": list("abcdef"),
        "mood_true": ["calm", "calm", "loud", "", "loud", "calm"],
        "mood_predicted": ["calm", "loud", "loud", "calm", "calm", "calm"],
        "mood_confidence": [0.4, 0.6, 0.9, 0.99, 0.95, 0.45],
        "mood_class_distance": [0.1, 0.9, 0.3, np.nan, 0.5, np.nan],
    }
)


# === What is chosen ===


def test_outliers_are_sorted_by_what_makes_them_one(monkeypatch):
    monkeypatch.setattr(page, "GALLERY", 2)
    found = {}
    for card in galleries(FRAME, ["mood"]):
        found.setdefault(card["kind"], []).append(card["path"])
    # d has no label. Wrong: e (.95), b (.6). Right below .5: a (.4), f (.45).
    assert found == {
        "misclassified": ["e", "b"],
        "low confidence": ["a", "f"],
        "farthest from their class": ["b", "e"],
    }
    first = galleries(FRAME, ["mood"])[0]
    assert (first["true"], first["predicted"], first["confidence"]) == ("loud", "calm", 0.95)
    without = galleries(FRAME.drop(columns="mood_class_distance"), ["mood"])
    assert {card["kind"] for card in without} == {"misclassified", "low confidence"}
    assert without[0]["distance"] is None


def test_a_cell_has_its_pictures_the_surest_first():
    assert cells(FRAME, "mood") == {
        ("loud", "calm"): [("e", 0.95)],
        ("loud", "loud"): [("c", 0.9)],
        ("calm", "loud"): [("b", 0.6)],
        ("calm", "calm"): [("f", 0.45), ("a", 0.4)],
    }


def test_every_cell_has_its_turn_before_one_has_two_and_mistakes_come_first():
    assert in_turns([cells(FRAME, "mood")]) == ["e", "b", "c", "f", "a"]


def test_a_picture_is_held_once_and_not_beyond_the_room(monkeypatch):
    loaded = []

    def load(path):
        loaded.append(path)
        return None if path == "gone" else np.full((300, 200, 3), 90, np.uint8)

    album = Album(load)
    assert [album.add(path) for path in ("a", "gone", "a")] == [0, 1, 0]
    assert loaded == ["a", "gone"]
    assert album.sources[1] is None
    assert album.sources[0].startswith("data:image/jpeg;base64,")
    monkeypatch.setattr(page, "MAX_BYTES", album.bytes)
    assert album.sources[album.add("b")] is None
    assert loaded == ["a", "gone"]  # what has no room is not even read


def test_a_chart_puts_points_where_they_belong():
    line = {"label": "", "look": "", "points": [(0, 0), (1, 1), (0.5, 0.25), (0.5, None)]}
    box = chart([line], x=(0.0, 1.0), y=(0.0, 1.0), x_label="x")
    (x0, y0), (x1, y1), (x2, y2) = box["lines"][0]["points"]
    assert (x0, y0) == (box["left"], box["bottom"])
    assert (x1, y1) == (box["width"] - 8, 8)
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.1)
    assert y2 == pytest.approx(y0 + 0.25 * (y1 - y0), abs=0.1)
    assert box["y_ticks"][0] == (box["bottom"], "0")
    whole = chart([line], x=(1.0, 3.0), y=(0.0, 1.0), x_label="", whole_x=True)
    assert [text for _, text in whole["x_ticks"]] == ["1", "2", "3"]
    loss = chart([line], x=(1.0, 1.0), y=(0.0, 3.04), x_label="", whole_x=True)
    assert [text for _, text in loss["x_ticks"]] == ["1"]
    assert [text for _, text in loss["y_ticks"]] == ["0", "1", "2", "3"]


def test_the_page_of_a_whole_exam_stays_below_15_mb(known, tmp_path):
    """As many pictures, classes and mistakes as WikiArt's exam has, and pictures of noise."""
    rng = np.random.default_rng(0)
    classes = {
        task: tuple(f"{task}_class_of_some_length_{i}" for i in range(count))
        for task, count in {"shade": 27, "warmth": 23, "empty": 10}.items()
    }
    paths = np.array([f"Some_Style/{'x' * 50}_{i:05}.jpg" for i in range(24_000)], object)
    labels = np.stack([rng.integers(-1, len(names), len(paths)) for names in classes.values()], 1)
    predictions = Predictions(
        classes,
        paths,
        labels.astype(np.int32),
        {task: rng.dirichlet([0.3] * len(names), len(paths)) for task, names in classes.items()},
    )
    trained_on = Table(classes, paths, predictions.labels, np.full(len(paths), TRAIN, object))
    calibrations = {task: Calibration(1.5, 100, {"calibrated": (), "raw": ()}) for task in classes}
    content = {"pictures": len(paths), "unusable_pictures": 0, "model": "m", "versions": {}}
    content |= named(judge(predictions, trained_on))
    content |= details_of(predictions, trained_on, calibrations)
    predictions.save(tmp_path)
    write_page(
        tmp_path / "report.html",
        title="whole",
        spec=known.colour_spec().to_dict(),
        content=content,
        frame=read_predictions(tmp_path / "predictions.csv"),
        history=pd.DataFrame(),
        load=lambda path: rng.integers(0, 256, (150, 150, 3), np.uint8),
    )
    size = (tmp_path / "report.html").stat().st_size
    assert page.MAX_BYTES < size < 15e6


# === In a browser ===


@pytest.fixture(scope="module")
def evaluated(known, data, tmp_path_factory):
    run = known.make_run(tmp_path_factory.mktemp("runs") / "paged", data)
    history = {"epoch": [1, 2], "phase": ["heads"] * 2, "shade_top1": [0.2, 0.4]}
    pd.DataFrame(history).to_csv(run.logs / "history.csv", index=False)
    evaluate(run, tell=str)
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
      .find((b) => b.dataset.true !== b.dataset.said);
    result.cell = [button.dataset.task, button.dataset.true, button.dataset.said];
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
      ({dataset: d}) => [d.task, d.kind, d.true, d.said]);
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
    found, console = browse(text, tmp_path, width)
    # The policy in its head forbids any request, and the console tells of one that was tried.
    assert "default-src 'none'" in text
    assert found["problems"] == found["asked"] == console == []
    assert found["width"] == width
    assert found["overflow"] <= 0, "the page is wider than the window"
    frame = read_predictions(evaluated.results / "predictions.csv")
    task, true, said = found["cell"]
    own = frame[(frame[f"{task}_true"] == true) & (frame[f"{task}_predicted"] == said)]
    assert found["opened"] and found["closed"]
    own = own.sort_values(f"{task}_confidence", ascending=False)
    assert [c.split()[-1] for c in found["captions"]] == own["path"].tolist()[: page.PICTURED]
    cards = galleries(frame, evaluated.spec.task_names)
    wanted = [[card[key] for key in ("task", "kind", "true", "predicted")] for card in cards]
    assert found["first"] == [row for row in wanted if row[1] == "misclassified"]
    assert found["all"] == wanted
    assert found["task"] == [row for row in wanted if row[0] == "warmth"]
    assert found["kind"] == [row for row in wanted if row[:2] == ["warmth", "misclassified"]]
    assert found["class"] == [row for row in wanted if "rust" in row[2:]]
    assert found["text"] == f"{len(found['class'])} shown"
    assert found["images"] > 20 and found["missing"] == 0


@in_a_browser
def test_names_are_text_and_not_html(evaluated, tmp_path):
    evil = '<img src=x onerror="window.alerted=1">$&\'</script><script>window.alerted=1</script>'

    def spoiled(text):
        return text.replace('"rust"', json.dumps(evil))

    content = json.loads(spoiled((evaluated.results / "metrics.json").read_text()))
    frame = read_predictions(evaluated.results / "predictions.csv").replace("rust", evil)
    frame["path"] = frame["path"] + evil
    write_page(
        tmp_path / "report.html",
        title=evil,
        spec=evaluated.spec.to_dict(),
        content=content,
        frame=frame,
        history=pd.DataFrame(),
        load=lambda path: None,
    )
    found, console = browse((tmp_path / "report.html").read_text(), tmp_path, 1400)
    assert found["problems"] == found["asked"] == console == []
    assert not found["alerted"]
    assert any(evil in row[2:] for row in found["all"])


def test_every_figure_is_that_of_the_metrics(evaluated):
    """The cards and tables of the text, against metrics.json."""
    text = (evaluated.results / "report.html").read_text()
    content = json.loads((evaluated.results / "metrics.json").read_text())
    for task in ("shade", "warmth"):
        for name in ("top1", "top5", "macro_f1", "balanced_accuracy"):
            low, high = content["intervals"][f"{task}/{name}"]
            value = content["metrics"][f"{task}/{name}"]
            shown = rf"<b>{value:.3f}</b></td>\s*<td[^>]*>{low:.3f} – {high:.3f}"
            assert re.search(shown, text), (task, name)
    titles = re.findall(r'title="(\w+) said to be (\w+): (\d+) of (\d+)', text)
    frame = read_predictions(evaluated.results / "predictions.csv")
    for task in ("shade", "warmth"):
        names = evaluated_names(content, task)
        shown = {(t, s): int(n) for t, s, n, _ in titles if t in names and s in names}
        counts = frame[frame[f"{task}_true"] != ""]
        counts = counts.groupby([f"{task}_true", f"{task}_predicted"]).size()
        assert {key: n for key, n in shown.items() if n} == counts.to_dict()
        assert len(shown) == len(names) ** 2
    assert "no exam picture has a label of this task" in text  # of "empty"


def evaluated_names(content, task):
    return [row["name"] for row in content["classes"][task]]
