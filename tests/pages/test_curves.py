"""Tests of multitask/pages/curves.py."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from plotting import AWKWARD, check

from multitask.pages import curves, image_sheets

NAN = np.nan


def history(epochs=6, **columns):
    """The column `t/loss` is given as `t__loss`."""
    columns = {name.replace("__", "/"): values for name, values in columns.items()}
    phases = ["heads"] * (epochs // 2) + ["finetune"] * (epochs - epochs // 2)
    return pd.DataFrame({"epoch": range(1, epochs + 1), "phase": phases, **columns})


@pytest.mark.parametrize(
    ("scores", "stopped"),
    [
        ([0.3], [False]),
        ([np.nan], [True]),
        ([0.3, np.nan, 0.5, 0.9, 0.2, 0.5], [False, True, False, True, True, False]),
    ],
)
def test_tuning_history(tmp_path, scores, stopped):
    path = tmp_path / "search.png"
    assert curves.tuning_history(path, scores, stopped, title="ta$k_$", metric="F1") == path
    check(path, tmp_path)


def test_tuning_history_refuses_other_lengths(tmp_path):
    for scores, stopped in (([0.1, 0.2], [True]), ([], [])):
        with pytest.raises(ValueError, match="do not match"):
            curves.tuning_history(tmp_path / "a.png", scores, stopped, title="t", metric="m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_comparison(tmp_path, seeds):
    rng, path = np.random.default_rng(0), tmp_path / "comparison.png"
    keys = itertools.product(range(seeds), AWKWARD[:3], ("top-1", "macro-F1"), "abcd")
    rows = [{"task": t, "metric": m, "model": f"model {w} $_$", "value": rng.random()}
            for _, t, m, w in keys]  # fmt: skip
    seconds = pd.DataFrame({"heads": [60.0, 90.0], "records $": [0.0, 30.0]}, ["one", "three"])
    assert curves.comparison(path, pd.DataFrame(rows), seconds, title="ta$k_$") == path
    check(path, tmp_path)


def test_best_so_far():
    scores, stopped = [np.nan, 0.3, 0.9, 0.2, np.nan, 0.4], [0, 0, 1, 0, 1, 0]
    best = curves.best_so_far(scores, np.array(stopped, bool))
    np.testing.assert_array_equal(best, [np.nan, 0.3, 0.3, 0.3, 0.3, 0.4])


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(),
        history(0),
        history(),
        history(1, loss=[1.0]),
        history(t__loss=[3, 2, np.inf, NAN, 1, 1], t__val_macro_f1=[0.1, 0.2, NAN, 0.4, 0, 0]),
        history(t__val_top1=np.linspace(0, 1, 6), t__rate=[1e-3, 5e-4, 0, 1e-4, 5e-5, 1e-5]),
        history(loss=[3, 2, 1, 1, 1, 1]).drop(columns=["phase", "epoch"]),
    ],
)
def test_training_history(tmp_path, table):
    path = tmp_path / "history.png"
    assert curves.training_history(path, table, task="t") == path
    check(path, tmp_path)


def test_best_epoch():
    assert curves.best_epoch(history(t__val_macro_f1=[0, np.nan, 5, 5, 1, 2]), task="t") == 2
    assert curves.best_epoch(history(t__val_macro_f1=[np.nan] * 6), task="t") is None
    assert curves.best_epoch(history(), task="t") is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "figure.png"
    image_sheets.outliers(path, [], [], task="t")
    before = path.read_bytes()

    def fail(self, target, **_):
        target.write_bytes(b"half a pic")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        curves.training_history(path, pd.DataFrame(), task="t")
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


# === Panels of a page ===


def lines_of(svg):
    """The points of each line of data, in the units of the SVG, by its colour."""
    lines = {}
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg):
        colour = re.search(r"stroke: (var\(--(?:first|second)\))", style)
        if colour and "fill: none" in style and "stroke-width: 1.6" in style:
            numbers = [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", path)]
            points = np.reshape(numbers, (-1, 2))
            lines.setdefault(colour[1], points)  # those of the legend come last
    return lines


def is_linear(values, positions):
    """Whether positions are a linear function of the values."""
    fit = np.polyfit(values, positions, 1)
    return np.allclose(np.polyval(fit, values), positions, atol=0.01)


def test_a_panel_of_the_history_has_the_points_of_the_history():
    training, validation = [0.1, 0.5, 0.3, 0.9, 0.7, 0.8], [0.2, 0.1, 0.6, 0.4, 0.5, 0.3]
    table = history(t__top1=training, t__val_top1=validation, t__rate=[1e-3] * 6)
    (panel,) = curves.history_panels(table, task="t")  # none of the learning rate
    assert panel.title == "top-1"
    lines = lines_of(panel.svg)
    for colour, values in (("var(--first)", training), ("var(--second)", validation)):
        x, y = lines[colour].T
        assert is_linear(range(1, 7), x)
        assert is_linear(values, y)
        assert np.argmax(values) == np.argmin(y)  # y points down
    # One scale for both.
    (x, y), (_, other) = (lines[c].T for c in ("var(--first)", "var(--second)"))
    assert is_linear(training + validation, np.append(y, other))


def test_a_long_history_is_thinned_and_keeps_its_ends():
    values = np.linspace(0, 1, 5000) ** 2
    (panel,) = curves.history_panels(history(5000, t__val_top1=values), task="t")
    assert len(panel.svg) < 60_000
    (points,) = lines_of(panel.svg).values()
    assert len(points) <= curves.MOST_POINTS + 2
    fit = np.polyfit([0, 1], [points[0][1], points[-1][1]], 1)
    assert np.polyval(fit, values.min()) == pytest.approx(points[0][1])


def test_panels_of_calibration():
    bins = [{"confidence": c, "accuracy": a} for c, a in ((0.2, 0.1), (0.5, 0.6), (0.9, 0.8))]
    curve = [{"coverage": c, "accuracy": 1 - c / 4} for c in (0.1, 0.4, 1.0)]
    calibration = {"reliability": {"raw": bins, "calibrated": bins[::-1]}, "coverage": curve}
    reliability, accuracy = curves.calibration_panels(calibration)
    x, y = lines_of(reliability.svg)["var(--first)"].T
    assert is_linear([0.2, 0.5, 0.9], x)
    assert is_linear([0.1, 0.6, 0.8], y)
    x, y = lines_of(accuracy.svg)["var(--second)"].T
    assert is_linear([0.1, 0.4, 1.0], x)
    assert is_linear([0.975, 0.9, 0.75], y)
    assert curves.calibration_panels({"temperature": 1.0}) == []


def test_panels_take_the_look_of_their_page():
    """Its colours and its font; nothing that applies to the rest of the page; the same bytes."""
    table = history(t__top1=[0.1, 0.9], epochs=2, t__val_macro_f1=[0.1, 0.2])
    panels = curves.history_panels(table, task="t")
    assert panels == curves.history_panels(table, task="t")
    for panel in panels:
        assert panel.svg.startswith("<svg ")
        assert "<style" not in panel.svg
        assert "DejaVu" not in panel.svg
        assert not re.search(r"#(0072B2|D55E00|222222|262626|000000)", panel.svg, re.IGNORECASE)
        assert not re.search(r"<svg [^>]*(width|height)=", panel.svg)
        named = re.findall(r' id="([^"]*)"', panel.svg)
        assert all(f"#{name}" in panel.svg for name in named)


def test_the_file_and_the_page_draw_with_one_function(tmp_path, monkeypatch):
    drawn = []
    original = curves._draw_history

    def draw(axes, table, quantity, task):
        drawn.append((quantity.title, [list(line.get_ydata()) for line in axes.lines]))
        original(axes, table, quantity, task)
        drawn[-1] = (quantity.title, [list(line.get_ydata()) for line in axes.lines])

    monkeypatch.setattr(curves, "_draw_history", draw)
    table = history(t__loss=range(6), t__top1=np.linspace(0, 1, 6), t__val_macro_f1=range(6))
    curves.training_history(tmp_path / "a.png", table, task="t")
    curves.history_panels(table, task="t")
    assert len(drawn) == 6
    assert drawn[:3] == drawn[3:]
