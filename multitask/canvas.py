"""What every plot begins with: a figure in one look, written as one PNG, and its title.

A figure is one of its own (pyplot's state is left alone). It is written under a temporary name in
the folder of its file and renamed into place, so that a reader never meets half a picture. `$`
starts no formula, and each letter comes from a font that has it, where the machine has one. Colours
are told apart by colour-blind readers (Okabe and Ito 2008).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Text

from multitask import fonts
from multitask.files import replacing
from multitask.text import shorten

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
}


@contextlib.contextmanager
def new_figure(path, size_in: tuple[float, float], layout="constrained") -> Iterator[Figure]:
    """A figure in the house style, written to `path` when the block ends without an error."""
    with matplotlib.rc_context(_STYLE), fonts.quiet():
        figure = Figure(figsize=size_in, dpi=DPI, layout=layout)
        if layout:
            figure.get_layout_engine().set(h_pad=0.08)
        yield figure
        _choose_fonts(figure)
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)


def _choose_fonts(figure: Figure) -> None:
    """Let every text of a figure be drawn with fonts that have its characters."""
    for axes in figure.axes:  # the labels of ticks are made when they are first asked for
        axes.get_xticklabels(), axes.get_yticklabels()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    families, lacking = fonts.families("".join(text.get_text() for text in texts))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    if lacking:
        fonts.report_lacking(lacking)


def write_message(path, task: str, kind: str, text: str) -> Path:
    """A small figure that says that there is nothing to draw."""
    with new_figure(path, (4.5, 1.6)) as figure:
        figure.text(0.01, 0.4, text, va="center", size=12, color=MUTED)
        write_title(figure, task, kind)
    return Path(path)


def write_title(figure: Figure, task: str, text: str) -> None:
    # A layout engine makes room for a title whose y is left to it. Without one, the title stands at
    # a fixed distance from the upper edge, however high the figure.
    y = None if figure.get_layout_engine() else 1 - 0.12 / figure.get_figheight()
    text = f"{shorten(task, 30)}: {text}"
    figure.suptitle(text, x=0.01, y=y, ha="left", size=12, weight="bold")
