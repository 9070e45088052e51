"""Self-contained HTML pages, rendered from the templates in templates/.

Every template extends `base.html.j2`, which defines the style of all pages: light, dark and
printed. Values are text and are escaped; a missing value is an error.
"""

from typing import Any

import jinja2

from multitask.pages.text import shorten


def figure(value: float | None, *, signed: bool = False) -> str:
    """Three decimals: `0.713`, signed `+0.012`, `−0.004` or `0.000`; n/a if there is no value."""
    if value is None or value != value:
        return "n/a"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def count(value: int | None) -> str:
    """A whole number with separators; n/a if there is no value."""
    return "n/a" if value is None else f"{value:,}"


_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("multitask.pages", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.filters |= {"figure": figure, "count": count, "shorten": shorten}


def render(template: str, **values: Any) -> str:
    """Render a template with these values.

    Args:
        template: name of a file in templates/.
        values: variables of the template.

    Raises:
        jinja2.TemplateError: no such template, or a variable has no value.
    """
    return _templates.get_template(template).render(values)
