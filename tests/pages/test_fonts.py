"""A character is drawn with a font that has it, or one line says that there is none.

The fonts are made here, of boxes: what is installed on a machine does not matter, but in the last
test.
"""

import io
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from multitask.pages import class_plots, diagram, fonts, image_sheets


def make_font(path, family, characters):
    """A font whose every character is the same black box."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"g{i}" for i in range(len(characters)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function: {family: characters} -> those fonts are the machine's, beside Matplotlib's."""
    manager = font_manager.fontManager
    own = font_manager.get_font(font_manager.findfont("DejaVu Sans")).fname.rpartition("/")[0]

    def install(characters_of):
        files = [
            make_font(tmp_path / f"{i}.ttf", family, characters)
            for i, (family, characters) in enumerate(characters_of.items())
        ]
        entries = [entry for entry in manager.ttflist if entry.fname.startswith(own)]
        monkeypatch.setattr(manager, "ttflist", entries)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
        fonts._fonts.cache_clear()

    monkeypatch.setattr(fonts, "_reported", set())
    yield install
    fonts._fonts.cache_clear()
    manager._findfont_cached.cache_clear()


def test_what_dejavu_has_needs_no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "_fonts", lambda: pytest.fail("the fonts were looked at"))
    assert fonts.families("Café Ж Ω العربية\n\u200d\ufe0f") == (["DejaVu Sans"], "")


def test_a_newly_installed_font_is_used(installed):
    """Matplotlib's own list is a file from when it first looked."""
    installed({"Ink Sans": "水墨"})
    assert fonts.families("a水") == (["DejaVu Sans", "Ink Sans"], "")
    assert fonts.families("墨字水字") == (["DejaVu Sans", "Ink Sans"], "字")


def test_the_font_with_the_most_is_taken_first(installed):
    installed({"A Sans": "水", "B Serif": "水墨", "C Sans": "字"})
    assert fonts.families("水墨字")[0] == ["DejaVu Sans", "B Serif", "C Sans"]
    assert fonts.families("水")[0] == ["DejaVu Sans", "A Sans"]  # alike: a sans, as DejaVu is


@pytest.mark.parametrize(("text", "region"), [("水", "SC"), ("水の", "JP"), ("水한", "KR")])
def test_an_ideograph_looks_as_in_the_region_of_the_text(installed, text, region):
    installed({f"Ink Sans {name}": "水の한" for name in ("HK", "JP", "KR", "SC")})
    assert fonts.families(text)[0] == ["DejaVu Sans", f"Ink Sans {region}"]


def test_a_font_of_boxes_is_no_font(installed):
    installed({"Last Resort": "水"})
    assert fonts.families("水") == (["DejaVu Sans"], "水")


def test_a_broken_font_is_passed_over(installed, tmp_path):
    installed({"Ink Sans": "水"})
    (tmp_path / "0.ttf").write_bytes(b"no font")
    assert fonts.families("水") == (["DejaVu Sans"], "水")


def test_what_is_lacking_is_one_line_once(installed, capsys):
    installed({})
    for _ in range(2):
        fonts.report_lacking("水墨の絵字風")
    fonts.report_lacking("山")  # the same remedy
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "Plots: no installed font has 水 墨 の 絵 字 and 1 more: boxes are shown instead. Install "
        "fonts that have them, e.g. Noto Sans CJK.\n",
    )
    fonts.report_lacking("ไ🎨")
    assert capsys.readouterr().err == (
        "Plots: no installed font has ไ 🎨: boxes are shown instead. Install fonts that have "
        "them, e.g. Noto Sans Thai, Noto Emoji.\n"
    )


def test_the_line_is_shown_on_a_terminal_that_has_not_the_characters(installed, monkeypatch):
    installed({})
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii"))
    fonts.report_lacking("水")
    assert written.getvalue().startswith(b"Plots: no installed font has \\u6c34: ")


# === In plots ===


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures_of, save = [], Figure.savefig

    def keep(self, *args, **options):
        save(self, *args, **options)
        figures_of.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures_of


NAMES = ["水墨", "$5 & $10^{2}", "a_b"]


def draw_all(folder, names):
    counts = np.eye(len(names), dtype=int)
    class_plots.confusion_matrix(folder / "a.png", counts, names, task=names[0])
    class_plots.f1_scores(
        folder / "b.png", [1, 0.5, 0], [1, 1, 1], names, task=names[0], macro_f1=0.5
    )
    class_plots.class_counts(folder / "c.png", [3, 2, 1], names, task=names[0])
    image_sheets.outliers(folder / "d.png", [None] * 3, names, task=names[0])
    image_sheets.similar(folder / "e.png", None, [None] * 3, names, title=names[0], text=names[0])
    node = {"name": names[0], "kind": names[1], "shape": "", "parameters": 1, "trainable": True}
    diagram.architecture(folder / "f.png", [node | {"inputs": []}], task=names[0])


def test_every_text_of_every_plot_has_its_fonts(installed, drawn, tmp_path, capfd, caplog):
    installed({"Ink Sans": "水墨"})
    draw_all(tmp_path, NAMES)
    assert len(drawn) == 6
    for figure in drawn:
        texts = [text for text in figure.findobj(Text) if "水墨" in text.get_text()]
        assert texts
        for text in texts:
            assert text.get_fontfamily() == ["DejaVu Sans", "Ink Sans"]
    # Not even that the font has no bold face for the titles.
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_plots_are_drawn_without_such_a_font_and_one_line_says_so(installed, tmp_path, capfd):
    installed({})
    draw_all(tmp_path, NAMES)
    assert len(list(tmp_path.glob("*.png"))) == 6
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "no installed font has 水 墨:" in err


def test_no_text_is_a_formula(drawn, tmp_path):
    draw_all(tmp_path, ["$x$", "$5 & $10^{2}", "\\frac{1}"])
    for figure in drawn:
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts
        assert not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize("name", ["浮世絵の北斎", "水墨画", "한국화", "ภาษาไทย", "देवनागरी"])
def test_a_font_of_this_machine_draws_it(drawn, tmp_path, name):
    families, lacking = fonts.families(name)
    if lacking:
        pytest.skip(f"no installed font has {lacking}")
    class_plots.class_counts(tmp_path / "a.png", [1], [name], task="t")
    text, *_ = [text for text in drawn[0].findobj(Text) if text.get_text() == name]
    assert text.get_fontfamily() == families != [fonts.BASE]
