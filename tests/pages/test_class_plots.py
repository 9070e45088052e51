"""Tests of multitask/pages/class_plots.py."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from plotting import check, names_of

from multitask.pages import class_plots, curves, image_sheets


def history(epochs=6, **columns):
    """The column `t/loss` is given as `t__loss`."""
    columns = {name.replace("__", "/"): values for name, values in columns.items()}
    phases = ["heads"] * (epochs // 2) + ["finetune"] * (epochs - epochs // 2)
    return pd.DataFrame({"epoch": range(1, epochs + 1), "phase": phases, **columns})


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved, save = [], Figure.savefig

    def keep(self, *args, **options):
        save(self, *args, **options)
        saved.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def shown_names(axis):
    """The names beside the bars or cells; none covers its neighbour, all are large enough."""
    labels = axis.get_ticklabels()
    assert min(label.get_fontsize() for label in labels) >= 7
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    if labels[0].get_rotation() == 0:
        assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    return [label.get_text() for label in labels]


MANY = [300, 1000, 3000]
SLOW = pytest.mark.slow


# Cells with percentages and counts, with percentages, and without a text.
@pytest.mark.parametrize("classes", [1, 2, 21, 40])
def test_confusion_matrix(tmp_path, classes):
    matrix = np.random.default_rng(0).integers(0, 2000, (classes, classes))
    matrix[classes // 2] = 0  # all of them where there is one class
    path = tmp_path / "matrix.png"
    names = names_of(classes)
    assert class_plots.confusion_matrix(path, matrix, names, task="ta$k_$") == path
    check(path, tmp_path)


def test_confusion_matrix_refuses_other_sizes(tmp_path):
    for matrix, names in ((np.ones((2, 3)), ["a", "b"]), (np.ones((2, 2)), ["a"]), ([], [])):
        with pytest.raises(ValueError, match="does not match"):
            class_plots.confusion_matrix(tmp_path / "a.png", matrix, names, task="t")
    assert list(tmp_path.iterdir()) == []


def test_cell_text():
    assert class_plots.cell_text(0, 0.0, True) == ""
    assert class_plots.cell_text(1234, 0.831, True) == "83 %\n(1,234)"
    assert class_plots.cell_text(1234, 0.831, False) == "83"
    assert class_plots.cell_text(1, 0.004, False) == "<1"


@pytest.mark.parametrize("classes", [1, 4, 30])
@pytest.mark.parametrize("empty", [False, True])
def test_f1_scores(tmp_path, classes, empty):
    f1 = np.full(classes, np.nan) if empty else np.linspace(0, 1, classes)
    support = np.zeros(classes) if empty else np.arange(classes) * 1000
    path = tmp_path / "f1.png"
    macro_f1 = None if empty else 0.5
    class_plots.f1_scores(path, f1, support, names_of(classes), task="t", macro_f1=macro_f1)
    check(path, tmp_path)


def test_f1_order():
    f1, support = [0.5, np.nan, 0.9, 0.5, 0.0, 0.99], [3, 0, 1, 2, 4, 0]
    assert class_plots.f1_order(f1, support).tolist() == [2, 0, 3, 4, 1, 5]


def test_f1_scores_refuses_other_lengths(tmp_path):
    with pytest.raises(ValueError, match="do not match"):
        class_plots.f1_scores(tmp_path / "a.png", [1.0], [1, 2], ["a", "b"], task="t", macro_f1=1)


@pytest.mark.parametrize("classes", [1, 4, 40])
@pytest.mark.parametrize("empty", [False, True])
def test_class_counts(tmp_path, classes, empty):
    counts = np.zeros(classes, int) if empty else 3 ** np.arange(classes).clip(max=12)
    path = tmp_path / "classes.png"
    assert class_plots.class_counts(path, counts, names_of(classes), task="t$_", rare=5) == path
    check(path, tmp_path)


@pytest.mark.parametrize("sets", [1, 7])
def test_label_sets(tmp_path, sets):
    path = tmp_path / "sets.png"
    counts = 10 ** np.arange(sets)
    assert class_plots.label_sets(path, counts, names_of(sets), title="a $x$") == path
    check(path, tmp_path)


def test_counts_are_drawn_largest_first_with_the_ratio_in_the_title(tmp_path, monkeypatch):
    drawn, titles = [], []
    monkeypatch.setattr(
        class_plots, "_draw_count_bars", lambda axes, *drawing: drawn.append(drawing)
    )
    monkeypatch.setattr(class_plots, "write_title", lambda figure, task, text: titles.append(text))
    path = tmp_path / "a.png"
    class_plots.class_counts(path, [3, 0, 1200, 3], list("abcd"), task="t", rare=2)
    ((places, counts, names, colours),) = drawn
    assert places.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [1200, 3, 3, 0]
    assert names == ["c", "a", "d", "b"]
    assert colours == [class_plots.BLUE] * 3 + [class_plots.ORANGE]
    assert titles == ["1,206 training labels, largest : smallest class 400.0 : 1, 1 without any"]


def test_counts_refuse_other_lengths(tmp_path):
    for counts, names in (([1], ["a", "b"]), ([], [])):
        with pytest.raises(ValueError, match="do not match"):
            class_plots.class_counts(tmp_path / "a.png", counts, names, task="t")
        with pytest.raises(ValueError, match="do not match"):
            class_plots.label_sets(tmp_path / "a.png", counts, names, title="t")


@pytest.mark.parametrize(
    ("classes", "rest"), [(5, 1), pytest.param(40, 960, marks=pytest.mark.slow), (40, 12_345)]
)
def test_confusion_matrix_of_some_classes_and_all_remaining(tmp_path, drawn, classes, rest):
    matrix = np.random.default_rng(0).integers(0, 9, (classes + 1, classes + 1))
    matrix[2] = 0
    names = [f"class_number_{i}" for i in range(classes)]
    path = tmp_path / "matrix.png"
    class_plots.confusion_matrix(path, matrix, names, task="t", rest=rest, right=7)
    check(path, tmp_path)
    (figure,) = drawn
    axes = figure.axes[0]
    last = {1: "1 more class", 960: "960 more classes", 12_345: "12,345 more classes"}[rest]
    assert shown_names(axes.xaxis) == [*(name.replace("_", " ") for name in names), last]
    assert shown_names(axes.yaxis)[-1] == f"{last}  ({matrix[-1].sum():,})"
    total = matrix.sum()
    assert figure.get_suptitle() == (
        f"t: confusion matrix, {classes} of {classes + rest:,} classes, those most often confused; "
        f"{700 / total:.1f} % of all {total:,} right"
    )
    # Right and wrong ones together are neither: that cell and the empty row have no colour.
    mask = axes.collections[0].get_array().mask.reshape(matrix.shape)
    assert mask[-1, -1]
    assert mask[2].all()
    assert mask.sum() == classes + 2
    with pytest.raises(ValueError, match="does not match"):
        class_plots.confusion_matrix(path, matrix, names, task="t")


@pytest.mark.parametrize("classes", MANY)
def test_f1_of_the_best_and_the_worst_of_many_classes(tmp_path, drawn, classes):
    rng = np.random.default_rng(classes)
    f1, support = rng.beta(2, 2, classes).round(2), rng.integers(0, 50, classes)
    path = tmp_path / "f1.png"
    names = [str(i) for i in range(classes)]
    class_plots.f1_scores(path, f1, support, names, task="t", macro_f1=0.5)
    check(path, tmp_path)
    bars, distribution = drawn[0].axes
    present = [i for i in range(classes) if support[i]]
    best = sorted(present, key=lambda i: (-f1[i], -support[i], i))[:20]
    worst = sorted(set(present) - set(best), key=lambda i: (-f1[i], support[i], i))[-20:]
    assert shown_names(bars.yaxis) == [str(i) for i in best + worst]
    widths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(widths, f1[best + worst])
    assert sum(bar.get_height() for bar in distribution.patches) == len(present)
    assert f"{len(present) - 40:,} classes between" in " ".join(t.get_text() for t in bars.texts)
    assert drawn[0].get_suptitle() == (
        f"t: F1 by class, the 20 best and the 20 worst, macro-F1 0.500 over {len(present):,} of "
        f"{classes:,} classes"
    )


def test_f1_of_equal_classes_shows_no_class_twice(tmp_path, drawn):
    names = [str(i) for i in range(200)]
    class_plots.f1_scores(
        tmp_path / "a.png", np.zeros(200), range(1, 201), names, task="t", macro_f1=0
    )
    assert len(set(shown_names(drawn[0].axes[0].yaxis))) == 40


def test_f1_of_many_classes_of_which_few_are_examined(tmp_path, drawn):
    support = np.zeros(1000, int)
    support[[5, 7, 900]] = 3
    names = [str(i) for i in range(1000)]
    class_plots.f1_scores(
        tmp_path / "a.png", np.linspace(0, 1, 1000), support, names, task="t", macro_f1=1
    )
    assert shown_names(drawn[0].axes[0].yaxis) == ["900", "7", "5"]
    class_plots.f1_scores(
        tmp_path / "a.png", support * 0.0, support * 0, names, task="t", macro_f1=None
    )
    check(tmp_path / "a.png", tmp_path)


@pytest.mark.parametrize("classes", MANY)
def test_counts_of_the_largest_and_the_smallest_of_many_classes(tmp_path, drawn, classes):
    counts = np.random.default_rng(0).zipf(1.5, classes).clip(max=10**6)
    counts[::7] = 0
    path = tmp_path / "classes.png"
    names = [str(i) for i in range(classes)]
    class_plots.class_counts(path, counts, names, task="t", rare=5)
    check(path, tmp_path)
    present = sorted(np.flatnonzero(counts), key=lambda i: (-counts[i], i))
    bars, distribution = drawn[0].axes
    assert shown_names(bars.yaxis) == [str(i) for i in present[:20] + present[-20:]]
    assert sum(bar.get_height() for bar in distribution.patches) == len(present)
    assert "the 20 largest and the 20 smallest classes" in drawn[0].get_suptitle()
    assert not any("$" in text.get_text() for text in drawn[0].findobj(Text))


@pytest.mark.parametrize(
    "classes", [pytest.param(300, marks=SLOW), 1000, pytest.param(3000, marks=SLOW)]
)
@pytest.mark.parametrize("each", [0, 1, 2])
def test_counts_of_many_classes_with_no_label_or_as_many_of_each(tmp_path, drawn, classes, each):
    path = tmp_path / "classes.png"
    names = [str(i) for i in range(classes)]
    class_plots.class_counts(path, np.full(classes, each), names, task="t")
    check(path, tmp_path)
    assert not any("$" in text.get_text() for text in drawn[0].findobj(Text))


def test_many_sets_of_labels(tmp_path, drawn):
    names = [f"set {i}" for i in range(1024)]
    path = tmp_path / "sets.png"
    class_plots.label_sets(path, np.arange(1024)[::-1], names, title="t")
    check(path, tmp_path)
    assert shown_names(drawn[0].axes[0].yaxis) == names[:40]
    assert "40 of 1,024 sets of labels" in drawn[0].get_suptitle()


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: class_plots.confusion_matrix(path, np.eye(12), ["name_" * 6] * 12, task="t"),
        lambda path: class_plots.confusion_matrix(path, np.eye(2), ["a", "b"], task="t"),
        lambda path: class_plots.f1_scores(path, [1], [1], ["a"], task="t", macro_f1=1.0),
        lambda path: curves.training_history(path, history(t__val_macro_f1=range(6)), task="t"),
        lambda path: image_sheets.outliers(path, [None] * 7, ["a\nb\nc"] * 7, task="t"),
        lambda path: image_sheets.similar(
            path, None, [None] * 7, ["a\nb"] * 7, title="t", text="x"
        ),
    ],
)
def test_the_title_stands_clear_of_the_panels(tmp_path, monkeypatch, draw):
    drawn = []
    save = Figure.savefig

    def keep(self, *args, **options):
        save(self, *args, **options)
        drawn.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(tmp_path / "figure.png")
    (figure,) = drawn
    title = figure._suptitle.get_window_extent()
    panels = [panel for axes in figure.axes for panel in ([axes] if axes.axison else axes.images)]
    assert title.y0 > max(panel.get_window_extent().y1 for panel in panels)
    for axes in figure.axes:
        assert not axes.axison or title.y0 > axes.get_tightbbox().y1
