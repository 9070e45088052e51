"""The search space: the searched numbers of a spec, and their ranges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multitask.learning.losses import LOSSES
from multitask.learning.schedules import SCHEDULES
from multitask.model.heads import HEADS
from multitask.spec import DataSpec, InputError, Task, check_kind, expected, parse_spec


@dataclass(frozen=True)
class Dimension:
    """One searched number of a task.

    Attributes:
        task: its name.
        field: of the task, e.g. `schedule.rate`.
        value: the spec's value; an integer is searched among integers.
        low: the lowest value, inclusive.
        high: the highest value, inclusive.
        log: sample the logarithm.
        entries: of a list, as in the spec; empty if the field is a number.
        index: the searched entry of the list; None: the first, and the others keep their ratio to
            it.
    """

    task: str
    field: str
    value: float
    low: float
    high: float
    log: bool = False
    entries: tuple[float, ...] = ()
    index: int | None = None

    @property
    def name(self) -> str:
        """The dimension's name in the study and in trials.csv."""
        return f"{self.task}.{self.field}" + ("" if self.index is None else f"[{self.index}]")

    def suggest(self, trial: Any) -> float:
        """Sample a value for an Optuna trial, rounded by `rounded`."""
        sample = trial.suggest_int if isinstance(self.value, int) else trial.suggest_float
        return self.rounded(sample(self.name, self.low, self.high, log=self.log))

    def rounded(self, value: float) -> float:
        """Round to three digits, for a readable spec; the spec's own value is kept exactly."""
        if isinstance(self.value, int) or value == self.value:
            return value
        return float(f"{value:.3g}")

    def write(self, task: dict[str, Any], value: float) -> None:
        """Write a value into a task of a spec's dict."""
        *tables, name = self.field.split(".")
        for table in tables:
            task = task[table]
        if not self.entries:
            task[name] = value
        elif self.index is None:
            task[name] = [max(1, round(x * value / self.value)) for x in self.entries]
        else:
            task[name] = list(task.get(name, self.entries))
            task[name][self.index] = value


def _head_dimensions(spec: DataSpec, task: Task) -> list[Dimension]:
    """Widths from a quarter to twice the spec's; dropout from 0 to 0.6."""
    options = check_kind(task.head, HEADS, place=spec.place(task.name, "head"))
    dimensions = []
    for option, value in options.items():
        field = f"head.{option}"
        entries = value if isinstance(value, tuple) else ()
        if option == "units" or option.endswith("_units"):
            first = entries[0] if entries else value
            low = max(1, round(first / 4))
            dimensions.append(Dimension(task.name, field, first, low, 2 * first, True, entries))
        elif option == "dropout":
            indexed = list(enumerate(entries)) if entries else [(None, value)]
            for index, rate in indexed:
                high = max(0.6, rate)
                dimensions.append(
                    Dimension(task.name, field, float(rate), 0.0, high, False, entries, index)
                )
    return dimensions


def _rate_dimensions(spec: DataSpec, task: Task) -> list[Dimension]:
    """The learning rate, from a tenth to ten times the spec's; period and decay stay."""
    options = check_kind(task.schedule, SCHEDULES, place=spec.place(task.name, "schedule"))
    if "rate" not in options:
        return []
    rate = options["rate"]
    return [Dimension(task.name, "schedule.rate", rate, rate / 10, rate * 10, log=True)]


def _loss_dimensions(spec: DataSpec, task: Task) -> list[Dimension]:
    """The focal loss' gamma, from 0 to 4, and the class weights' exponent, from 0 to 1."""
    options = check_kind(task.loss, LOSSES, place=spec.place(task.name, "loss"))
    dimensions = []
    if "gamma" in options:
        gamma = float(options["gamma"])
        dimensions.append(Dimension(task.name, "loss.gamma", gamma, 0.0, max(4.0, gamma)))
    exponent = float(task.class_weight_exponent)
    high = max(1.0, exponent)
    dimensions.append(Dimension(task.name, "class_weight_exponent", exponent, 0.0, high))
    return dimensions


def _weight_dimensions(spec: DataSpec, task: Task) -> list[Dimension]:
    """The task's weight, from a quarter to four times the spec's."""
    weight = float(task.weight)
    if not weight:  # the task is switched off
        return []
    return [Dimension(task.name, "weight", weight, weight / 4, weight * 4, log=True)]


# A new group of searched numbers needs a function of a task and a line here.
GROUPS = {
    "heads": _head_dimensions,
    "rates": _rate_dimensions,
    "losses": _loss_dimensions,
    "weights": _weight_dimensions,
}


def search_space(spec: DataSpec, groups: Sequence[str]) -> list[Dimension]:
    """The searched numbers of a spec, task by task.

    Args:
        spec: its values are the middle of the ranges.
        groups: names of GROUPS.

    Raises:
        InputError: an unknown group, or nothing to search.
    """
    for group in groups:
        if group not in GROUPS:
            text = f'"{group}": {lower_first(expected(group, GROUPS))}'
            raise InputError(text, field="search")
    space = [
        dimension
        for task in spec.tasks
        for group, dimensions in GROUPS.items()
        if group in groups
        for dimension in dimensions(spec, task)
    ]
    if not space:
        raise InputError(
            f'"{",".join(groups)}": the spec has no numbers to search; expected some '
            f"of: {', '.join(GROUPS)}",
            field="search",
        )
    return space


def with_values(
    spec: DataSpec, space: Sequence[Dimension], values: Mapping[str, float]
) -> DataSpec:
    """The spec with other numbers.

    Args:
        spec: the spec that the space was made from.
        space: from `search_space`.
        values: name of a dimension -> its value.
    """
    raw = spec.to_dict()
    tasks = {task["name"]: task for task in raw["task"]}
    for dimension in space:
        dimension.write(tasks[dimension.task], dimension.rounded(values[dimension.name]))
    return parse_spec(raw, source=spec.source_file)


def lower_first(text: str) -> str:
    """The text with its first letter in lower case."""
    return text[0].lower() + text[1:]
