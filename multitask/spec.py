"""The description of one data set and its tasks: data_specs/*.toml -> DataSpec.

The only reader of specs. What a head, trunk, schedule, ... may be is known by the rooms that
build them; they check their own part with `check_kind` and raise SpecError with its place.
"""

import difflib
import inspect
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from multitask.reading import read_text

MISSING = -1  # the label of an image that a task has no label for
NO_TEST_SET = "no test set"  # of a task; what every output says of it
PHASES = ("heads", "finetune")
# Keys of our own in mappings from the tasks' names. No task's name begins with an underscore.
TRUNK, BALANCING, CONTRASTIVE, SHARED = "_trunk", "_balancing", "_contrastive", "_shared"
BUILT_IN_FOLDERS = (  # in a wheel, and in a checkout
    Path(__file__).parent / "data_specs",
    Path(__file__).parent.parent / "data_specs",
)

CONTROL = "control characters are refused"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # but for line breaks and tabs
DEEPEST = 20  # tables and lists within each other; a spec of all fields has 5
TOO_DEEP = f"more than {DEEPEST} tables or lists within each other"
LARGEST = 2**63  # of whole numbers; what TOML promises
TOO_LARGE = "a whole number has 64 bits at most"
MOST_TEXT, MOST_LINE = 1_000_000, 10_000  # characters of a spec, and of its lines
LONGEST = 200  # characters of a word that is compared with others

Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
# The name becomes an output, a file name and a part of columns' and layers' names. What the pattern
# excludes (a slash, a hyphen, a first underscore) keeps them apart from our own: see `field_of`.
TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


class InputError(ValueError):
    """What the user gave is wrong; its text is the one line to show. Exit status 2."""


class SpecError(InputError):
    """A field of a spec, or the flag that overrides it, is wrong."""


def field_of(owner: str, field: str) -> str:
    """The name of a value in flat tables, logs and files: `artist/top1`, `trunk_rate`.

    A task's has a slash and ours have none, so that they never meet; two tasks' differ before it.

    Args:
        owner: a task's name, or one of our keys (TRUNK, …).
        field: one of ours, without a slash.
    """
    return f"{owner[1:]}_{field}" if owner.startswith("_") else f"{owner}/{field}"


def shown(value: Any, most: int = 80) -> str:
    """A value as messages quote it: control characters escaped, cut to `most` characters."""
    text = repr(value[:most] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def quoted(name: Any) -> str:
    """A name in double quotes, as `shown` cuts and escapes it."""
    text = shown(str(name))
    return f'"{text[1:-1] if text[-1] == text[0] else text[1:]}"'


def near(word: str, choices: Iterable[str]) -> str:
    """` Did you mean "…"?`, or nothing where no choice is near."""
    matches = difflib.get_close_matches(str(word)[:LONGEST], list(choices), n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def expected(word: str, choices: Iterable[str]) -> str:
    """`Expected one of: … Did you mean "…"?`, the same in every message."""
    names = sorted(choices)
    return f"Expected one of: {', '.join(names)}.{near(word, names)}"


def install(extra: str) -> str:
    """How to install an extra. Of PyPI, `multitask` is another project, so not by that name."""
    return f"pip install '.[{extra}]' (in the folder of this project)"


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Kind(pydantic.BaseModel):
    """A named choice with its options, e.g. `{ kind = "linear", dropout = 0.2 }`."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def _range(low: float, high: float, least: float, most: float, what: str) -> None:
    if not least <= low <= high <= most:
        raise ValueError(f"{what} must be [low, high] with {least:g} <= low <= high <= {most:g}")


class Augmentation(_Strict):
    """One task's policy. An operation that is not named is not applied."""

    flip: bool = False
    brightness: Annotated[float, Field(ge=0, le=1)] | None = None
    contrast: tuple[float, float] | None = None
    saturation: tuple[float, float] | None = None
    crop: tuple[float, float] | None = None
    crop_probability: Annotated[float, Field(ge=0, le=1)] = 1.0

    @pydantic.field_validator("contrast", "saturation")
    @classmethod
    def _factors(cls, value):
        if value is not None:
            _range(*value, 0, 10, "a factor's range")
        return value

    @pydantic.field_validator("crop")
    @classmethod
    def _shares(cls, value):
        if value is not None:
            _range(*value, 0.05, 1, "a crop's range")
        return value


class Task(_Strict):
    """What is predicted, from which files, by which head and how it is learnt."""

    name: TaskName
    train: str
    val: str | None = None  # None: the task has no test set
    classes: str
    head: Kind
    loss: Kind
    schedule: Kind
    weight: NonNegative = 1.0
    contrastive_weight: NonNegative = 1.0
    class_weight_exponent: NonNegative = 1.0
    weight_decay: NonNegative = 1e-5
    freeze_depth: int | str = "none"
    subset: Share = 1.0
    augment: Augmentation = Augmentation()


class Trunk(_Strict):
    """The shared network below the heads."""

    name: str = "efficientnetb2"
    weights: str = "imagenet"
    batchnorm: Literal["auto", "frozen", "train"] = "auto"
    batchnorm_momentum: Rate | None = None
    stochastic_depth: Rate | None = None
    weight_decay: NonNegative = 1e-5
    schedule: Kind


class Phase(_Strict):
    epochs: Annotated[int, Field(ge=0)]
    rate_factor: PositiveFloat = 1.0


class Phases(_Strict):
    heads: Phase = Phase(epochs=7)
    finetune: Phase = Phase(epochs=10, rate_factor=0.1)


class RecordOptions(_Strict):
    """How the training side's pictures are prepared."""

    # Of the image size, for the shorter side: what a crop and an aspect may cut off.
    margin: Annotated[float, Field(ge=1, le=4)] = 1.15
    quality: Annotated[int, Field(ge=1, le=100)] = 92  # of JPEG


class FeatureOptions(_Strict):
    """How the phase heads learns from features that the frozen trunk gave once."""

    cache: Literal["auto", "on", "off"] = "auto"
    views: Annotated[int, Field(ge=0)] = 0  # augmented ones, beside the plain one
    dtype: Literal["float16", "float32"] = "float16"
    # Of the commonest class's examples: up to how many SMOTE fills up each rarer class.
    smote: Annotated[float, Field(ge=0, le=1)] = 0.0


class EarlyStopping(_Strict):
    patience: PositiveInt = 12


class Plateau(_Strict):
    patience: PositiveInt = 4
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    least: Annotated[float, Field(gt=0, le=1)] = 0.01


class OptimizerOptions(_Strict):
    """What the optimizers of all parts have in common; off by default."""

    clip_norm: NonNegative = 0.0  # of each part's gradient; 0: off
    ema: Rate = 0.0  # momentum of the weights' moving average; 0: off
    trunk_layer_decay: Share = 1.0  # of the rate, from block to block; 1: off
    accumulate: PositiveInt = 1  # steps to an update; 1: off


class Contrastive(_Strict):
    """The supervised contrastive loss beside the tasks' own."""

    weight: NonNegative = 0.0
    temperature: PositiveFloat = 0.1  # Khosla et al. 2020, section 4
    width: PositiveInt = 128  # of the projection; section 3.1


class DataSpec(_Strict):
    """One data set and its tasks. data_specs/README.md explains every field."""

    name: TaskName
    title: str = ""
    licence: str = "unknown"
    source: str = "unknown"
    images: str = "wikiart"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    resize: Literal["squash", "crop", "pad"] = "squash"
    batch_size: PositiveInt = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    selection: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    max_missing: Rate = 0.0
    max_unknown: Rate = 0.01
    exclude_near_duplicates: bool = False
    # None: no mixing, and each row once an epoch.
    mix: Kind | None = None
    sampler: Kind | None = None
    # None: each task's own depth, merged by rule 8 of the design.
    freeze_depth: int | str | None = None
    trunk: Trunk
    phases: Phases = Phases()
    records: RecordOptions = RecordOptions()
    features: FeatureOptions = FeatureOptions()
    early_stopping: EarlyStopping = EarlyStopping()
    plateau: Plateau = Plateau()
    optimizer: OptimizerOptions = OptimizerOptions()
    balancing: Kind | None = None  # None: fixed
    contrastive: Contrastive = Contrastive()
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, alias="task")]

    # Not a field of the file: where it was read, for messages.
    _source: str = pydantic.PrivateAttr(default="spec")

    @pydantic.model_validator(mode="after")
    def _unique_names(self):
        seen: set[str] = set()
        for index, task in enumerate(self.tasks):
            if task.name in seen:
                raise ValueError(f'task[{index}]: name: two tasks are called "{task.name}"')
            seen.add(task.name)
        return self

    @property
    def source_file(self) -> str:
        return self._source

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def place(self, task: str | None, field: str) -> str:
        """Where a field stands, for messages: `wikiart.toml: task[2] "genre": head.kind`."""
        if task is None:
            return f"{self._source}: {field}"
        return f'{self._source}: task[{self.task_names.index(task)}] "{task}": {field}'

    def to_dict(self) -> dict[str, Any]:
        """Every resolved field, ready for JSON and for `parse_spec`."""
        return self.model_dump(mode="json", by_alias=True)

    def to_toml(self) -> str:
        """The same as the text of a spec file; InputError where tomli-w is missing."""
        try:
            import tomli_w
        except ImportError:
            raise InputError(f"writing a spec needs tomli_w: {install('tune')}") from None
        return tomli_w.dumps(_without_none(self.to_dict()))


def _without_none(value: Any) -> Any:
    """TOML has no None; in a spec a field that is left out is the same."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value


def _location(loc: tuple, raw: Mapping[str, Any]) -> tuple[str, str]:
    """A pydantic location -> (`task[2] "genre": `, `head.kind`)."""
    loc = tuple(part for part in loc if part not in ("int", "str", "function-after"))
    if len(loc) >= 2 and loc[0] == "task" and isinstance(loc[1], int):
        tasks = raw.get("task")
        task = tasks[loc[1]] if isinstance(tasks, list) and loc[1] < len(tasks) else None
        name = f" {quoted(task['name'])}" if isinstance(task, dict) and "name" in task else ""
        return f"task[{loc[1]}]{name}: ", ".".join(_part(part) for part in loc[2:])
    return "", ".".join(_part(part) for part in loc)


def _part(name: str | int) -> str:
    """Of a field's place, which may be a name that nobody knows."""
    return quoted(name)[1:-1]


def _fields_at(loc: tuple) -> list[str]:
    """The names that a table of the spec may have, for the near miss."""
    model: Any = DataSpec
    for part in loc:
        if isinstance(part, int):
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if field is None:
            return []
        model = field.annotation
        for argument in getattr(model, "__args__", ()):
            if inspect.isclass(argument) and issubclass(argument, pydantic.BaseModel):
                model = argument
        if not (inspect.isclass(model) and issubclass(model, pydantic.BaseModel)):
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


_REASONS = {  # where pydantic's own words speak of Python
    "tuple_type": "input should be a list",
    "model_type": "input should be a table, { field = value, … }",
}


def _reason(error: Mapping[str, Any]) -> str:
    """What is wrong with a value: the value, what is allowed and what is near."""
    value, kind = error["input"], error["type"]
    text = error["msg"].removeprefix("Value error, ")
    text = _REASONS.get(kind, text[0].lower() + text[1:])
    if kind == "literal_error":
        text = expected(value, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    elif error["loc"][-1:] in (("int",), ("str",)):
        text = "input should be a whole number or a text"
    return f"{shown(value)}: {text}"


def _message(errors: list[Mapping[str, Any]], raw: Mapping[str, Any]) -> str:
    """The first thing wrong, as `place: field: value, what is allowed, what is near`."""
    error = errors[0]
    if error["type"] == "missing":  # because it was misspelt?
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
        return "task: every task is a table of its own, which starts with [[task]]"
    if error["type"] == "value_error" and not field:
        return place + error["msg"].removeprefix("Value error, ")
    return f"{place}{field}: {_reason(error)}" if field else f"{place}{_reason(error)}"


def _validate(model: type[pydantic.BaseModel], raw: Any) -> Any:
    """Checked by JSON's rules, as TOML has its types: a list is a tuple, "3" is no number."""
    return model.model_validate_json(json.dumps(raw, default=str), strict=True)


def parse_spec(raw: Mapping[str, Any], *, source: str) -> DataSpec:
    """A spec's content -> DataSpec.

    Args:
        raw: what the TOML or JSON file holds.
        source: where it was read, the start of every message.

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
    """What no field may hold, before a library meets it: SpecError with its place."""
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
    """What a path that starts at a folder must not have; None where it has nothing of it."""
    windows = PureWindowsPath(path)
    if PurePosixPath(path).is_absolute() or windows.root or windows.drive:
        return "absolute paths are refused"
    if ".." in windows.parts:  # splits at both kinds of slash
        return "paths with `..` are refused"
    if any(ord(c) < 32 for c in path):
        return CONTROL
    return None


def outside_paths(spec: DataSpec) -> Iterator[tuple[str, str, str]]:
    """Place, path and reason of the paths that may leave the data folder.

    By their text alone: a link inside the folder was put there by the folder's owner, and large
    collections are made of links.
    """
    paths = [(None, "images", spec.images)]
    for task in spec.tasks:
        paths += [(task.name, field, getattr(task, field)) for field in ("train", "val", "classes")]
    for task, field, path in paths:
        if path is not None and (reason := why_unsafe(path)):
            yield spec.place(task, field), path, reason


def refuse_outside(spec: DataSpec, *, allowed: bool) -> None:
    """SpecError where a path leaves the data folder, unless that is `allowed`."""
    for place, path, reason in outside_paths(spec):
        if reason == CONTROL:
            raise SpecError(f"{place}: {shown(path)}: {reason}")
        if not allowed:
            raise SpecError(
                f"{place}: {shown(path)}: {reason}; name a path inside the data folder, or allow "
                "it with --allow_outside"
            )


def find_spec(name: str) -> Path:
    """The name of a spec that is shipped (`wikiart`), or a path -> the file."""
    path, shipped = Path(name), shipped_specs()
    if name in shipped:
        return shipped[name]
    if os.path.exists(path):  # whoever reads it says what it is
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise SpecError(f"--spec: {name}: no such file.{near(path.stem, shipped)}")
    raise SpecError(f'--spec: no spec called "{name}". {expected(name, shipped)}')


def shipped_specs() -> dict[str, Path]:
    return {p.stem: p for folder in BUILT_IN_FOLDERS for p in sorted(folder.glob("*.toml"))}


def load_spec(name: str, *, allow_outside: bool = False) -> DataSpec:
    """Read and check a spec file.

    Args:
        name: of a spec that is shipped, or a file.
        allow_outside: whether its paths may leave the data folder.

    Raises:
        SpecError: no such file, not TOML, or the first wrong field.
    """
    path = find_spec(name)
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    # The parser takes minutes over a long dotted key.
    if len(text) > MOST_TEXT or any(len(line) > MOST_LINE for line in text.split("\n")):
        raise SpecError(
            f"{path}: too large for a spec: at most {MOST_TEXT:,} characters, {MOST_LINE:,} a line"
        )
    try:
        raw = tomllib.loads(text)
    except RecursionError:
        raise SpecError(f"{path}: {TOO_DEEP}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except ValueError:  # Python's own limit, of digits
        raise SpecError(f"{path}: {TOO_LARGE}") from None
    spec = parse_spec(raw, source=str(path))
    refuse_outside(spec, allowed=allow_outside)
    return spec


def override(spec: DataSpec, changes: Mapping[str, Any]) -> DataSpec:
    """The spec with some fields replaced by flags.

    Args:
        spec: what the file says.
        changes: `{"image_size": ("image_size", 64), "epochs_heads": ("phases.heads.epochs", 3)}`:
            flag -> (field, value). The field `task.subset` stands for that of every task.

    Raises:
        SpecError: naming the flag and its value.
    """
    raw = spec.to_dict()
    for flag, (field, value) in changes.items():
        *tables, name = field.split(".")
        targets = [raw]
        for table in tables:
            targets = [
                inner
                for outer in targets
                for inner in (outer[table] if isinstance(outer[table], list) else [outer[table]])
            ]
        for target in targets:
            target[name] = value
        try:
            _validate(DataSpec, raw)
        except pydantic.ValidationError as error:
            reason = _reason(error.errors()[0])
            raise SpecError(f"--{flag}: {reason} (field {field})") from None
    return parse_spec(raw, source=spec.source_file)


def select_tasks(spec: DataSpec, names: Iterable[str]) -> DataSpec:
    """The spec with only the named tasks, in the spec's order."""
    names = list(names)
    for name in names:
        if name not in spec.task_names:
            raise SpecError(
                f'--tasks: {spec.source_file} has no task "{name}". '
                f"{expected(name, spec.task_names)}"
            )
    raw = spec.to_dict()
    raw["task"] = [task for task in raw["task"] if task["name"] in names]
    if not raw["task"]:
        raise SpecError(f"--tasks: name at least one of: {', '.join(spec.task_names)}")
    return parse_spec(raw, source=spec.source_file)


def check_kind(choice: Kind, registry: Mapping[str, Callable], *, place: str) -> dict[str, Any]:
    """Check a named choice against the function that builds it.

    The function's keyword-only parameters are the options; their annotations (with pydantic's
    bounds) say what is allowed.

    Args:
        choice: e.g. `{ kind = "linear", dropout = 0.2 }`.
        registry: name -> function.
        place: where the choice stands, without `.kind`.

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
    fields = {
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
