"""The fields of a spec with their descriptions, for the flags' help and docs/options.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pydantic

from multitask.spec_fields import DataSpec
from multitask.spec_training import Fields


@dataclass(frozen=True)
class FieldDescription:
    """One field of a spec.

    Attributes:
        place: its table and name, e.g. `trunk.name`.
        annotation: its type.
        description: its effect, in Markdown.
        default: its value if the spec does not set it; `...` if the spec must set it.
    """

    place: str
    annotation: Any
    description: str
    default: Any


def described_fields(
    model: type[pydantic.BaseModel] = DataSpec, table: str = "", defaults: Any = None
) -> Iterator[FieldDescription]:
    """Yield every field of a spec, including those of its tables, in the order of the models.

    Args:
        model: the table to list.
        table: its place, "" for the spec itself.
        defaults: the table's own default, whose values replace those of the model.
    """
    for name, info in model.model_fields.items():
        place = f"{table}.{info.alias or name}".removeprefix(".")
        default = ... if info.is_required() else info.get_default()
        if defaults is not None:
            default = getattr(defaults, name)
        inner = inner_table(info.annotation)
        if inner is not None:
            yield from described_fields(inner, place, None if default is ... else default)
        else:
            yield FieldDescription(place, info.annotation, info.description or "", default)


def inner_table(annotation: Any) -> type[Fields] | None:
    """The model of a field that is a table, or a list of tables."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Fields):
            return candidate
    return None
