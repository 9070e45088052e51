"""Write docs/options.md: every field of a spec, from the descriptions in multitask/spec_fields.py.

  python tools/write_options.py

`tests/tools/test_write_options.py` compares the page with the descriptions.
"""

import inspect
from itertools import groupby
from pathlib import Path
from typing import Any

import pydantic

from multitask.commands.spec_flags import OVERRIDES
from multitask.spec_description import FieldDescription, described_fields, inner_table
from multitask.spec_fields import DataSpec

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
HEAD = """\
# The options of a spec

A spec is a TOML file; [data_specs/README.md](../data_specs/README.md) explains how to write one,
and lists the kinds of heads, losses, schedules, trunks and the other named choices. An unknown
field is refused. A flag overrides its field for one run. A field without a default must be in the
spec.
"""


def table_of(field: FieldDescription) -> str:
    """The table that a field stands in, "" for the spec itself."""
    return field.place.rpartition(".")[0]


def model_of(table: str) -> type[pydantic.BaseModel]:
    """The model of a table, e.g. of `phases.heads`."""
    model: Any = DataSpec
    for name in filter(None, table.split(".")):
        info = next(i for n, i in model.model_fields.items() if name in (n, i.alias))
        model = inner_table(info.annotation)
    return model


def default_text(value: Any) -> str:
    """A default as TOML has it."""
    if value is ...:
        return "–"
    if value is None:
        return "none"
    return (
        f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else '`""`'
    )


def page() -> str:
    """The text of docs/options.md."""
    flags = {field: flag for flag, field in OVERRIDES.items()}
    blocks = [HEAD]
    fields = sorted(described_fields(), key=lambda f: (table_of(f) != "", table_of(f)))
    for table, rows in groupby(fields, key=table_of):
        title = f"[[{table}]]" if table == "task" else f"[{table}]"
        about = inspect.getdoc(model_of(table)) or ""
        lines = [f"## {title if table else 'The spec itself'}", "", about.split("\n\n")[0], ""]
        lines += ["| field | default | flag | meaning |", "|---|---|---|---|"]
        for field in rows:
            flag = f"`--{flags[field.place]}`" if field.place in flags else ""
            name = field.place.rpartition(".")[2]
            default, text = default_text(field.default), field.description.replace("|", "\\|")
            lines.append(f"| `{name}` | {default} | {flag} | {text} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Written: {PAGE}")
