"""HTML with which objects show themselves in a notebook."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    import pandas as pd


def table_html(title: str, facts: Mapping[str, Any]) -> str:
    """A title and a table of two columns."""
    rows = Markup("").join(
        Markup("<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>")
        .format(name, "–" if value is None else value)
        for name, value in facts.items()
    )  # fmt: skip
    return str(Markup("<strong>{}</strong><table>{}</table>").format(title, rows))


def grid_html(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a header; a cell that is Markup stays HTML."""
    heads = Markup("").join(Markup("<th>{}</th>").format(name) for name in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td style='text-align:left'>{}</td>").format(cell) for cell in cells
            )
        )
        for cells in rows
    )
    table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>")
    return str(table.format(heads, body))


def list_html(title: str, lines: Sequence[str]) -> str:
    """A title and a list; "" without lines."""
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return str(Markup("<strong>{}</strong><ul>{}</ul>").format(title, items)) if lines else ""


def image_html(source: str) -> Markup:
    """An image from a data URL."""
    return Markup("<img src='{}' style='max-height:96px'>").format(source)


def figure_html(png: bytes, description: str) -> str:
    """A plot as an image."""
    data = base64.b64encode(png).decode()
    image = Markup("<img alt='{}' src='data:image/png;base64,{}' style='max-width:100%'>")
    return str(image.format(description, data))


def curves_html(history: "pd.DataFrame", tasks: Sequence[str]) -> str:
    """The training history of each task as plots."""
    if not len(history):
        return str(escape("No epoch has ended yet."))
    from multitask.pages.canvas import Drawing
    from multitask.pages.curves import training_history

    shown = []
    for task in tasks:
        figure = training_history(Drawing(), history, task=task).figure
        if figure is not None:
            shown.append(figure_html(figure._repr_png_(), f"training history of {task}"))
    return "".join(shown)
