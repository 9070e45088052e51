"""Figures in the style of the project, written as a PNG file or as SVG for a page.

pyplot's global state is not used. A PNG is written under a temporary name and renamed into place.
`$` does not start a formula, and each character is drawn with an installed font that has it, if
there is one. The colours can be distinguished by colour-blind readers (Okabe and Ito 2008).
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Text

from multitask.files import replacing
from multitask.pages import fonts
from multitask.pages.text import shorten

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, MUTED, PALE = "#222222", "#6B7280", "#E5E7EB"
DPI = 130

_STYLE = {
    **sns.axes_style("whitegrid"),
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": [fonts.BASE],
    "font.size": 9,
    "grid.color": PALE,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5 & $10"
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "multitask",  # the same plot has the same bytes
}
# The colours of a plot as variables of the page's style sheet, light and dark.
_CSS_COLOURS = {
    BLUE: "var(--first)",
    ORANGE: "var(--second)",
    INK: "currentColor",
    MUTED: "var(--muted)",
    PALE: "var(--line)",
    "#9CA3AF": "var(--muted)",
    "#000000": "currentColor",
    "#262626": "var(--muted)",  # seaborn's ticks
}


@dataclass
class Svg:
    """A target of a plot: the SVG element for a page of HTML.

    Attributes:
        text: the element, once the plot is drawn.
    """

    text: str = ""


class Plot(Figure):
    """A figure that a notebook shows, in the style of the project."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        with matplotlib.rc_context(_STYLE), fonts.quiet():
            self.savefig(data, format="png", bbox_inches="tight", pad_inches=0.15)
        return data.getvalue()


@dataclass
class Drawing:
    """A target of a plot: the figure itself.

    Attributes:
        figure: the figure, once the plot is drawn.
    """

    figure: Plot | None = None


Target = Path | str | Svg | Drawing
AnyTarget = TypeVar("AnyTarget", bound=Target)


@contextlib.contextmanager
def new_figure(
    target: Target,
    size_in: tuple[float, float],
    layout: Literal["constrained", "compressed"] | None = "constrained",
) -> Iterator[Figure]:
    """Yield a figure; it is written to the target when the block ends without an error.

    Args:
        target: path of a PNG, or an `Svg` or `Drawing` to fill.
        size_in: width and height in inches.
        layout: Matplotlib's layout engine.
    """
    with matplotlib.rc_context(_STYLE), fonts.quiet():
        figure = Plot(figsize=size_in, dpi=DPI, layout=layout)
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.set(h_pad=0.08)  # type: ignore[call-arg]  # both engines have it
        yield figure
        _choose_fonts(figure)
        if isinstance(target, Drawing):
            target.figure = figure
            return
        if isinstance(target, Svg):
            target.text = _svg_text(figure)
            return
        with replacing(Path(target)) as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)


def _svg_text(figure: Figure) -> str:
    """The SVG element of a figure, in the fonts and colours of the page that it is put into."""
    data = io.StringIO()
    figure.savefig(
        data, format="svg", bbox_inches="tight", pad_inches=0.02, transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )  # fmt: skip
    text = data.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'<svg ([^>]*?)(width|height)="[^"]*" ', r"<svg \1", text)
    text = re.sub(r'<svg ([^>]*?)(width|height)="[^"]*" ', r"<svg \1", text)
    text = re.sub(r"font(-family)?: ((?:[\w.]+ )*[\d.]+px )?'[^;\"]*", _page_font, text)
    # A style sheet inside would apply to the whole page.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # The ids of groups would occur in several plots of a page, and nothing refers to them.
    text = re.sub(r' id="[A-Za-z.]+[0-9]*d?_\d+"', "", text)
    for colour, variable in _CSS_COLOURS.items():
        text = re.sub(f"{colour}\\b", variable, text, flags=re.IGNORECASE)
    return text


def _page_font(match: re.Match[str]) -> str:
    """The font of the page instead of Matplotlib's, in the same size and weight."""
    return f"font{match[1] or ''}: {match[2] or ''}system-ui, sans-serif"


def _choose_fonts(figure: Figure) -> None:
    """Draw every text of a figure with fonts that have its characters."""
    for axes in figure.axes:  # tick labels exist from their first use on
        axes.get_xticklabels()
        axes.get_yticklabels()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    families, lacking = fonts.families("".join(text.get_text() for text in texts))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    if lacking:
        fonts.report_lacking(lacking)


def write_message(target: AnyTarget, task: str, kind: str, text: str) -> AnyTarget:
    """Write a small figure with a text instead of a plot."""
    with new_figure(target, (4.5, 1.6)) as figure:
        figure.text(0.01, 0.4, text, va="center", size=12, color=MUTED)
        write_title(figure, task, kind)
    return target


def write_title(figure: Figure, task: str, text: str) -> None:
    """Write the title above a figure: the name, then the text."""
    # A layout engine reserves space for a title without a y. Without an engine, the title has a
    # fixed distance from the upper edge.
    y = None if figure.get_layout_engine() else 1 - 0.12 / figure.get_figheight()
    text = f"{shorten(task, 30)}: {text}"
    figure.suptitle(text, x=0.01, y=y, ha="left", size=12, weight="bold")
