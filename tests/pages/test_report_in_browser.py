"""The page of a report in a browser: complete, alone and safe."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from report_pages import write_big_page

from multitask.bootstrap import FEWEST_EXAMPLES
from multitask.evaluation.predictions import read_predictions
from multitask.evaluation.report import evaluate
from multitask.pages import report_page
from multitask.pages.report_page import galleries, labelled_in, write_page
from multitask.trained import open_trained

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


@pytest.fixture(scope="module")
def evaluated(known, data, without_drawing, tmp_path_factory):
    """A run with its page, which shows the plots in SVG; no PNG is made."""
    run = known.make_run(tmp_path_factory.mktemp("runs") / "paged", data)
    history = {"epoch": [1, 2], "phase": ["heads"] * 2, "shade/top1": [0.2, 0.4]}
    pd.DataFrame(history).to_csv(run.logs / "history.csv", index=False)
    with without_drawing(["png"]):
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
    # The others' common cell is neither right nor wrong, and no cell of theirs opens images.
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
