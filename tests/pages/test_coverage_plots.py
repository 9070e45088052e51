"""The plots of the sets of classes: which classes and sizes they show."""

import pytest

from multitask.pages import coverage_plots
from multitask.pages.canvas import Drawing
from multitask.pages.coverage_plots import MOST_SIZES, ON_PAGE, SHOWN, coverage, coverage_panels


def of_task(*, classes=5, sizes=(40, 0, 10), reason=None, images=50):
    """A task of `metrics.json`; class i is covered in i of 100 images, the last has none."""
    level = {"target_coverage": 0.9, "reason": reason}
    if reason is None and images:
        level |= {"coverage": 0.876, "mean_set_size": 1.4, "set_sizes": list(sizes)}
    rows = [
        {
            "name": f"class_{i}",
            "test_images": 0 if i == classes - 1 else 100,
            "coverage": [None, None if i == classes - 1 else i / 100, None],
        }
        for i in reversed(range(classes))
    ]
    others = {"target_coverage": 0.5, "reason": "not shown"}
    return {"test_images": images, "levels": [others, level, others], "classes": rows}


def drawn(content):
    drawing = Drawing()
    coverage(drawing, content, task="mood")
    return drawing.figure


def test_bars_are_sizes_and_the_least_covered_classes():
    figure = drawn(of_task())
    sizes, classes = figure.axes
    # 40 of 50 images have one class, 10 have three.
    assert [bar.get_height() for bar in sizes.patches] == [80.0, 0.0, 20.0]
    assert [text.get_text() for text in sizes.get_xticklabels()] == ["1", "2", "3"]
    assert [bar.get_width() for bar in classes.patches] == [0.0, 0.01, 0.02, 0.03]
    names = [text.get_text() for text in classes.get_yticklabels()]
    assert names == [f"class {i}" for i in range(4)]  # the one without images is not there
    assert classes.lines[0].get_xdata()[0] == 0.9
    assert figure._suptitle.get_text() == (
        "mood: sets of coverage 0.9: 0.876 on the test set, 1.4 classes on average"
    )


def test_many_classes_and_large_sets_are_cut():
    content = of_task(classes=90, sizes=[3] * 20)
    sizes, classes = drawn(content).axes
    assert len(classes.patches) == SHOWN
    assert len(sizes.patches) == MOST_SIZES
    # 20 sizes of 3 images each: the last bar has sizes 12 to 20.
    assert sizes.patches[-1].get_height() == pytest.approx(100 * 9 / 20)
    assert sizes.get_xticklabels()[-1].get_text() == "12+"
    _, panel = coverage_panels(content)
    assert panel.title == f"Coverage by class, the lowest {ON_PAGE}"
    assert panel.svg.count("class ") == ON_PAGE
    assert "class 0<" in panel.svg


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (of_task(reason="no validation image has a label"), "no validation image has a label"),
        (of_task(images=0), "no test set"),
    ],
)
def test_without_a_measurement_a_text_is_drawn(content, text):
    figure = drawn(content)
    assert [one.get_text() for one in figure.texts if one is not figure._suptitle] == [text]
    assert coverage_panels(content) == []


def test_the_file_and_the_page_draw_with_the_same_functions(tmp_path, monkeypatch):
    calls = []
    for name in ("_draw_sizes", "_draw_classes"):
        original = getattr(coverage_plots, name)

        def draw(axes, values, name=name, original=original):
            calls.append((name, values))
            original(axes, values)

        monkeypatch.setattr(coverage_plots, name, draw)
    coverage(tmp_path / "a.png", of_task(), task="mood")
    coverage_panels(of_task())
    assert len(calls) == 4
    assert calls[:2] == calls[2:]
    assert (tmp_path / "a.png").stat().st_size > 5000
