"""The table and the page of a comparison."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from compared_runs import results, rows_of

from multitask.annexes.compare import comparison
from multitask.annexes.compare.comparison import compare, page, table_lines
from multitask.pages import render


class Outside(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_escapes_names():
    name = 'runs/<script>alert("x")</script>&amp;'
    result = compare([results("runs/a", 1), results(name, 2)])
    html = page(result)
    reader = Outside()
    reader.feed(html)
    assert reader.loads == []
    assert "script" not in reader.tags
    assert name in "".join(reader.text)
    assert "<script>" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("<svg") == 3 + len(result.rows)  # an axis a section, a plot a metric
    for text in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert text in html


def test_dots_and_whiskers_stand_where_the_figures_are():
    result = compare([results("runs/a", 1), results("runs/b", 2)])
    html = page(result)
    dots = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)%"', html)]
    whiskers = re.findall(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', html)
    differences = [row.differences[0] for row in result.rows]
    span = float(re.findall(r"\+([\d.]+)</text>", html)[0])
    np.testing.assert_allclose(dots, [50 + 46 * d.value / span for d in differences], atol=0.01)
    ends = [(d.low, d.high) for d in differences if d.low is not None]
    np.testing.assert_allclose(
        np.array(whiskers, float), 50 + 46 * np.array(ends) / span, atol=0.01
    )
    assert max(map(abs, np.ravel(ends))) <= span


def test_the_table_has_a_row_a_figure(capsys):
    result = compare([results("runs/a", 1), results("runs/b", 2)])
    lines = [line for line in table_lines(result) if line]
    assert lines[0].split() == ["task", "metric", "runs/a", "runs/b", "runs/b", "-", "runs/a"]
    assert len(lines) == 1 + len(result.rows)
    top1 = next(line for line in lines if line.split()[:2] == ["style", "top1"])
    values = rows_of(result)["style", "top1"].values
    assert top1.split()[2:4] == [f"{value:.3f}" for value in values]
    assert re.search(r"\[[+-]0\.\d{3}, [+-]0\.\d{3}\]  p [=<] 0\.\d{3}$", top1)


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (0.71249, "0.712", "+0.712"),
        (-0.0042, "−0.004", "−0.004"),
        (-0.0001, "0.000", "0.000"),
        (0.0, "0.000", "0.000"),
        (None, "n/a", "n/a"),
        (math.nan, "n/a", "n/a"),
    ],
)
def test_figures_have_three_decimals(value, plain, signed):
    assert render.figure(value) == plain
    assert render.figure(value, signed=True) == signed


def test_counts_are_whole():
    assert [comparison.text(n) for n in (0, 24000)] == ["0", "24,000"]
    assert [comparison.text(n, signed=True) for n in (0, 1200, -3)] == ["0", "+1,200", "−3"]
    assert render.count(24000) == "24,000"
    assert render.count(None) == "n/a"
