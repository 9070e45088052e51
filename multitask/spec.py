"""Reading specs: data_specs/*.toml -> DataSpec.

This module is the only reader of specs. The modules that build heads, trunks, schedules, … define
their own options, check them with `check_kind` and raise SpecError with the field's place.
"""

import inspect
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pydantic

from multitask.errors import (
    InputError,
    SpecError,
    expected,
    install,
    near,
    quoted,
    shown,
)
from multitask.reading import read_text
from multitask.spec_description import inner_table
from multitask.spec_fields import DataSpec, Trunk
from multitask.spec_task import Augmentation, Task
from multitask.spec_training import Kind, NonNegative, OptimizerOptions, Rate, Share

__all__ = [
    "Augmentation",
    "DataSpec",
    "InputError",
    "Kind",
    "NonNegative",
    "OptimizerOptions",
    "Rate",
    "Share",
    "SpecError",
    "Task",
    "Trunk",
    "expected",
    "install",
    "near",
    "quoted",
    "shown",
]

MISSING = -1  # the label of an image without a label for the task
OTHER_LABEL = -2  # the label of an image that has none of the task's classes, see `unlabelled`
OTHER_ANSWER = "other"  # the answer of an open task for such an image
TFDS_PREFIX = "tfds:"  # of the name of a prepared data set, in place of a path
NO_TEST_SET = "no test set"  # the text of every output for a task without a test set
PHASES = ("heads", "finetune")
# The program's own keys in mappings from task names. No task name begins with an underscore.
TRUNK, BALANCING, CONTRASTIVE, SHARED = "_trunk", "_balancing", "_contrastive", "_shared"
BUILT_IN_FOLDERS = (  # in a wheel, and in a checkout
    Path(__file__).parent / "data_specs",
    Path(__file__).parent.parent / "data_specs",
)

CONTROL = "control characters are refused"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # except line breaks and tabs
DEEPEST = 20  # nested tables and lists; a spec with all fields has 5
TOO_DEEP = f"more than {DEEPEST} nested tables or lists"
LARGEST = 2**63  # limit of whole numbers; TOML guarantees 64 bits
TOO_LARGE = "a whole number has 64 bits at most"
MOST_TEXT, MOST_LINE = 1_000_000, 10_000  # largest number of characters of a spec, and of a line


def field_of(owner: str, field: str) -> str:
    """The name of a value in flat tables, logs and files: `artist/top1`, `trunk_rate`.

    A slash follows the name of a task, and the program's own names contain none. Therefore the two
    never clash.

    Args:
        owner: a task's name, or one of the program's own keys (TRUNK, …).
        field: a name that the program defines, without a slash.
    """
    return f"{owner[1:]}_{field}" if owner.startswith("_") else f"{owner}/{field}"


def is_labelled(labels: Any) -> Any:
    """Whether labels are classes: neither MISSING nor OTHER_LABEL.

    Args:
        labels: int, or an array or tensor of ints.

    Returns:
        bool of the same shape.
    """
    return labels >= 0


# === Messages ===


def _location(loc: tuple[str | int, ...], raw: Mapping[str, Any]) -> tuple[str, str]:
    """Convert a pydantic location to (`task[2] "genre": `, `head.kind`)."""
    loc = tuple(part for part in loc if part not in ("int", "str", "function-after"))
    if len(loc) >= 2 and loc[0] == "task" and isinstance(loc[1], int):
        tasks = raw.get("task")
        task = tasks[loc[1]] if isinstance(tasks, list) and loc[1] < len(tasks) else None
        name = f" {quoted(task['name'])}" if isinstance(task, dict) and "name" in task else ""
        return f"task[{loc[1]}]{name}: ", ".".join(_part(part) for part in loc[2:])
    return "", ".".join(_part(part) for part in loc)


def _part(name: str | int) -> str:
    """One part of a field's place, which may be an unknown name."""
    return quoted(name)[1:-1]


def _fields_at(loc: tuple[str | int, ...]) -> list[str]:
    """The fields that a table of the spec may have, to suggest a similar one."""
    model: type[pydantic.BaseModel] = DataSpec
    for part in loc:
        if isinstance(part, int):
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        table = field and inner_table(field.annotation)
        if table is None:
            return []
        model = table
    return [field.alias or name for name, field in model.model_fields.items()]


_REASONS = {  # instead of pydantic's texts that name Python types
    "tuple_type": "input should be a list",
    "model_type": "input should be a table, { field = value, … }",
}


def _reason(error: Mapping[str, Any]) -> str:
    """The value, the allowed values and a similar one."""
    value, kind = error["input"], error["type"]
    text = error["msg"].removeprefix("Value error, ")
    text = _REASONS.get(kind, text[0].lower() + text[1:])
    if kind == "literal_error":
        text = expected(value, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    elif error["loc"][-1:] in (("int",), ("str",)):
        text = "input should be a whole number or a text"
    return f"{shown(value)}: {text}"


def _message(errors: Sequence[Mapping[str, Any]], raw: Mapping[str, Any]) -> str:
    """The first error, as `place: field: value, allowed values, a similar one`."""
    error = errors[0]
    if error["type"] == "missing":  # probably misspelt: then report the unknown field
        error = next((e for e in errors if e["type"] == "extra_forbidden"), error)
    place, field = _location(error["loc"], raw)
    if error["type"] == "extra_forbidden":
        *table, name = error["loc"]
        where = f"{field.rsplit('.', 1)[0]}: " if "." in field else ""
        allowed = expected(name, _fields_at(tuple(table)))
        return f"{place}{where}unknown field {quoted(name)}. {allowed}"
    if error["type"] == "missing":
        return f"{place}{field}: this field is missing"
    if error["type"] == "tuple_type" and error["loc"] == ("task",):
        return "task: every task is a separate table, which starts with [[task]]"
    if error["type"] == "value_error" and not field:
        return place + error["msg"].removeprefix("Value error, ")
    return f"{place}{field}: {_reason(error)}" if field else f"{place}{_reason(error)}"


# === Reading ===


def _validate(model: type[pydantic.BaseModel], raw: Any) -> Any:
    """Validate by JSON's rules, which suit TOML: a list is a tuple, and "3" is not a number."""
    return model.model_validate_json(json.dumps(raw, default=str), strict=True)


def parse_spec(raw: Mapping[str, Any], *, source: str) -> DataSpec:
    """Validate the content of a spec.

    Args:
        raw: parsed content of the TOML or JSON file.
        source: name of the file; every message starts with it.

    Raises:
        SpecError: the first wrong field, as one line.
    """
    _check_values(raw, source)
    try:
        spec = _validate(DataSpec, raw)
    except pydantic.ValidationError as error:
        raise SpecError(f"{source}: {_message(error.errors(), raw)}") from None
    spec._source = source
    return spec


def _check_values(raw: Any, source: str) -> None:
    """Raise SpecError for values that no field may have, before a library handles them."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), raw)]
    while todo:
        place, value = todo.pop()
        reason = None
        if isinstance(value, Mapping | list):
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            if len(place) > DEEPEST:
                reason = TOO_DEEP
            else:
                todo += [((*place, str(key)), inner) for key, inner in pairs]
        elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
            reason = TOO_LARGE
        elif isinstance(value, str) and _CONTROL.search(value):
            reason = f"{shown(value)}: {CONTROL}"
        if reason:
            field = ".".join(_part(part) for part in place[:3]) + ".…" * (len(place) > 3)
            raise SpecError(f"{source}: {field}: {reason}")


def why_unsafe(path: str) -> str | None:
    """The reason why a path relative to a folder is refused; None if it is safe."""
    windows = PureWindowsPath(path)
    if PurePosixPath(path).is_absolute() or windows.root or windows.drive:
        return "absolute paths are refused"
    if ".." in windows.parts:  # splits at both kinds of slash
        return "paths with `..` are refused"
    if any(ord(c) < 32 for c in path):
        return CONTROL
    return None


def outside_paths(spec: DataSpec) -> Iterator[tuple[str, str, str]]:
    """Yield place, path and reason of each path that may leave the data folder.

    Only the text of a path is checked. Links may lead anywhere: the owner of the folder created
    them, and large collections consist of links.
    """
    paths: list[tuple[str | None, str, str | None]] = [(None, "images", spec.images)]
    if spec.table is not None and not spec.table.file.startswith(TFDS_PREFIX):
        paths.append((None, "table.file", spec.table.file))
    for task in spec.tasks:
        paths += [
            (task.name, field, getattr(task, field)) for field in ("train", "test", "classes")
        ]
    for owner, field, path in paths:
        if path is not None and (reason := why_unsafe(path)):
            yield spec.place(owner, field), path, reason


def refuse_outside(spec: DataSpec, *, allowed: bool) -> None:
    """Raise SpecError if a path leaves the data folder, unless that is `allowed`."""
    for place, path, reason in outside_paths(spec):
        if reason == CONTROL:
            raise SpecError(f"{place}: {shown(path)}: {reason}")
        if not allowed:
            raise SpecError(
                f"{place}: {shown(path)}: {reason}; name a path inside the data folder, or allow "
                "it with `allow_outside`"
            )


def find_spec(name: str) -> Path:
    """The file of a shipped spec (`wikiart`), or of a path."""
    path, shipped = Path(name), shipped_specs()
    if name in shipped:
        return shipped[name]
    if os.path.exists(path):  # the reader reports a folder or another kind of file
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise SpecError(f"{name}: no such file.{near(path.stem, shipped)}", field="spec")
    raise SpecError(f'no spec called "{name}". {expected(name, shipped)}', field="spec")


def shipped_specs() -> dict[str, Path]:
    """Name -> file of the specs that are part of the program."""
    return {p.stem: p for folder in BUILT_IN_FOLDERS for p in sorted(folder.glob("*.toml"))}


def load_spec(name: str, *, allow_outside: bool = False) -> DataSpec:
    """Read and check a spec file.

    Args:
        name: name of a shipped spec, or a file.
        allow_outside: whether its paths may leave the data folder.

    Raises:
        SpecError: no such file, not TOML, or the first wrong field.
    """
    path = find_spec(name)
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    # The parser needs minutes for a long dotted key.
    if len(text) > MOST_TEXT or any(len(line) > MOST_LINE for line in text.split("\n")):
        raise SpecError(
            f"{path}: too large for a spec: at most {MOST_TEXT:,} characters, and {MOST_LINE:,} "
            "per line"
        )
    try:
        raw = tomllib.loads(text)
    except RecursionError:
        raise SpecError(f"{path}: {TOO_DEEP}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except ValueError:  # Python's own limit on digits
        raise SpecError(f"{path}: {TOO_LARGE}") from None
    spec = parse_spec(raw, source=str(path))
    refuse_outside(spec, allowed=allow_outside)
    return spec


def override(spec: DataSpec, changes: Mapping[str, Any]) -> DataSpec:
    """The spec with some fields replaced.

    Args:
        spec: content of the file.
        changes: field -> value: `{"image_size": 64, "phases.heads.epochs": 3}`. A field of
            `task` is set in every task (`task.subset`), or in one (`task[style].subset`).

    Raises:
        SpecError: unknown field, or a value that is not allowed; its `field` is the field.
    """
    raw = spec.to_dict()
    for field, value in changes.items():
        *tables, name = field.split(".")
        for target in _tables(raw, tables, field):
            target[name] = value
        try:
            _validate(DataSpec, raw)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                raise _unknown_field(field, name, _fields_at(first["loc"][:-1])) from None
            raise SpecError(_reason(first), field=field) from None
    return parse_spec(raw, source=spec.source_file)


def _tables(raw: dict[str, Any], names: Sequence[str], field: str) -> list[dict[str, Any]]:
    """The tables of a spec that a dotted field is in: several if it belongs to every task."""
    targets: list[dict[str, Any]] = [raw]
    place: list[str] = []
    for part in names:
        name, _, task = part.partition("[")
        inner: list[dict[str, Any]] = []
        for target in targets:
            value = target.get(name)
            if not isinstance(value, dict | list):
                raise _unknown_field(field, part, _fields_at(tuple(place)))
            inner += value if isinstance(value, list) else [value]
        if task:
            known = [str(one.get("name")) for one in inner]
            inner = [one for one in inner if one.get("name") == task.removesuffix("]")]
            if not inner:
                raise SpecError(
                    f"no such task. {expected(task.removesuffix(']'), known)}", field=field
                )
        targets = inner
        place.append(name)
    return targets


def _unknown_field(field: str, name: str, known: Iterable[str]) -> SpecError:
    return SpecError(f"unknown field. {expected(name, known)}", field=quoted(field)[1:-1])


def select_tasks(spec: DataSpec, names: Iterable[str]) -> DataSpec:
    """The spec with only the named tasks, in the spec's order.

    If a single task lists the images, it cannot be open: no image is without its label.
    """
    names = list(names)
    for name in names:
        if name not in spec.task_names:
            raise SpecError(
                f'{spec.source_file} has no task "{name}". {expected(name, spec.task_names)}',
                field="tasks",
            )
    raw = spec.to_dict()
    raw["task"] = [task for task in raw["task"] if task["name"] in names]
    listing = [task for task in raw["task"] if task["label_from"] is None]
    if len(listing) == 1:  # no file lists an image without a label of the only task
        listing[0] |= {"unlabelled": "unknown", "other": {}}
    if not raw["task"]:
        raise SpecError(f"name at least one of: {', '.join(spec.task_names)}", field="tasks")
    return parse_spec(raw, source=spec.source_file)


def wanted_phases(spec: DataSpec, phase: str) -> tuple[str, ...]:
    """Return the phases to train; `all` means both, and a phase of 0 epochs is skipped.

    Raises:
        InputError: no phase is left.
    """
    names = PHASES if phase == "all" else (phase,)
    wanted = tuple(name for name in names if getattr(spec.phases, name).epochs)
    if not wanted:
        fields = " or ".join(f"`phases.{name}.epochs`" for name in names)
        raise InputError(f"`phase={phase}`: has 0 epochs to train; give {fields}")
    return wanted


def check_kind(choice: Kind, registry: Mapping[str, Callable], *, place: str) -> dict[str, Any]:
    """Check a named choice against the function that builds it.

    The function's keyword-only parameters are the options; their annotations (with pydantic's
    bounds) define the allowed values.

    Args:
        choice: e.g. `{ kind = "linear", dropout = 0.2 }`.
        registry: name -> function.
        place: location of the choice in the spec, without `.kind`.

    Returns:
        The options, checked and converted.

    Raises:
        SpecError: unknown kind, unknown option, or a value that is not allowed.
    """
    if choice.kind not in registry:
        raise SpecError(
            f"{place}.kind: unknown kind {quoted(choice.kind)}. {expected(choice.kind, registry)}"
        )
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(registry[choice.kind]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for option in choice.options:
        if option not in parameters:
            raise SpecError(
                f'{place}: unknown option {quoted(option)} of "{choice.kind}". '
                f"{expected(option, parameters)}"
            )
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is p.empty else p.default)
        for name, p in parameters.items()
    }
    try:
        config = pydantic.ConfigDict(allow_inf_nan=False)
        model = pydantic.create_model("Options", __config__=config, **fields)
        checked = _validate(model, choice.options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = ".".join(_part(part) for part in first["loc"])
        if first["type"] == "missing" and len(first["loc"]) == 1:
            raise SpecError(f'{place}: "{choice.kind}" needs the option "{option}"') from None
        raise SpecError(f"{place}.{option}: {_reason(first)}") from None
    return {name: getattr(checked, name) for name in parameters}
