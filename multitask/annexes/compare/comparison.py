"""Compare the results of several runs, with tests of the differences.

The results of `evaluate` are read. TensorFlow is not imported, so the command starts quickly.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import bdtr

from multitask.annexes.compare.results import Results, common_exact_match, common_test_set
from multitask.bootstrap import DRAWS, FEWEST_EXAMPLES, SEED, PairedPredictions, bootstrap
from multitask.files import replacing
from multitask.pages import render
from multitask.spec import NO_TEST_SET, InputError

ALL_TASKS = "all tasks"  # in place of a task, whose name has no space
TEST_SET_METRICS = ("labelled", "classes", "classes_present")  # the same for every run


@dataclass(frozen=True)
class Difference:
    """The difference between a run's metric and the first run's.

    Attributes:
        run: index of the run.
        value: the difference; None if one of the runs lacks the metric.
        low: lower end of the 95 % interval, or None.
        high: upper end of it, or None.
        p: of McNemar's test for top-1; None for other metrics.
    """

    run: int
    value: float | int | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Row:
    """One metric of one task, or of all tasks together.

    Attributes:
        task: its name, or ALL_TASKS.
        metric: its name.
        values: values of all runs; None if a run lacks the metric.
        differences: differences of all runs but the first.
    """

    task: str
    metric: str
    values: tuple[float | int | None, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        runs: names; the others are compared to the first.
        models: the evaluated model of each run.
        labelled: compared task -> number of images in its test set; ALL_TASKS -> number of images
            that are in the test sets of all compared tasks, if there are several.
        rows: by task, then by metric.
        settings: differing setting -> its value in each run (None: not set).
        notes: tasks that are not compared or have no intervals, with the reasons.
    """

    runs: tuple[str, ...]
    models: tuple[str, ...]
    labelled: dict[str, int]
    rows: tuple[Row, ...]
    settings: dict[str, tuple]
    notes: tuple[str, ...]


# === McNemar's test ===


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Compute McNemar's exact test (1947) of two predictions on the same examples.

    Among the examples that only one of the two gets right, it tests whether the share of either
    differs from one half.

    Args:
        first_right: bool [n].
        second_right: bool [n], of the same examples.

    Returns:
        The two-sided p; 1 if they are right on the same examples.
    """
    first, second = first_right & ~second_right, second_right & ~first_right
    fewer, more = sorted((int(first.sum()), int(second.sum())))
    return min(1.0, 2 * float(bdtr(fewer, fewer + more, 0.5)))


# === Comparing ===


def compare(results: Sequence[Results], *, draws: int = DRAWS, seed: int = SEED) -> Comparison:
    """Compare every task's metrics of all runs to the first run's.

    Top-1 has McNemar's p. Accuracies and F1 have the 2.5 % and 97.5 % quantiles of the difference
    over bootstrapped test sets. A calibration error has no interval, because it is biased on such
    test sets. All this measures only the chance in the choice of test images, not in the seed of
    the training.

    Args:
        results: of at least two runs.
        draws: number of bootstrapped test sets.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than two runs, no common task with a test set, or different test sets or
            classes.
    """
    if len(results) < 2:
        raise InputError(f"a comparison needs two runs or more, not {len(results)}")
    shared, notes = _shared_tasks(results)
    rows, labelled = [], {}
    for task in shared:
        test_set = common_test_set(task, results)
        labelled[task] = len(test_set.labels)
        if len(test_set.labels) < FEWEST_EXAMPLES:
            notes.append(
                f"{task}: no intervals: {len(test_set.labels)} test images have a label, at least "
                f"{FEWEST_EXAMPLES} are needed"
            )
        rows += _rows(task, results, test_set, draws=draws, seed=seed)
    right = common_exact_match(shared, results)
    if len(shared) > 1 and right.size:
        labelled[ALL_TASKS] = right.shape[1]
        rows.append(_exact_match_row(right, draws=draws, seed=seed))
    return Comparison(
        tuple(one.name for one in results),
        tuple(one.model for one in results),
        labelled,
        tuple(rows),
        _differing_settings(results, shared),
        tuple(notes),
    )


def _shared_tasks(results: Sequence[Results]) -> tuple[list[str], list[str]]:
    """The compared tasks, and a note for each of the others."""
    shared, notes = [], []
    for task in dict.fromkeys(task for one in results for task in one.true):
        owners = [one.name for one in results if task in one.true]
        if len(owners) < len(results):
            notes.append(f"{task}: not compared, because it is a task of {', '.join(owners)} only")
        elif not any(one.metrics[f"{task}/labelled"] for one in results):
            notes.append(f"{task}: not compared, {NO_TEST_SET}")
        else:
            shared.append(task)
    if not shared:
        raise InputError(f"the runs have no task in common to compare: {'; '.join(notes)}")
    return shared, notes


def _rows(
    task: str, results: Sequence[Results], test_set: PairedPredictions, *, draws: int, seed: int
) -> list[Row]:
    samples = bootstrap(test_set, draws=draws, seed=seed)
    right = test_set.predictions == test_set.labels
    keys = dict.fromkeys(key for one in results for key in one.metrics)
    rows = []
    for key in keys:
        key_task, _, metric = key.partition("/")
        if key_task != task or metric in TEST_SET_METRICS:
            continue
        values = tuple(one.metrics.get(key) for one in results)
        differences = []
        for run in range(1, len(results)):
            first, own = values[0], values[run]
            value = None if first is None or own is None else own - first
            low = high = None
            if value is not None and metric in samples and len(test_set.labels) >= FEWEST_EXAMPLES:
                sampled = samples[metric][:, run] - samples[metric][:, 0]
                low, high = map(float, np.quantile(sampled, (0.025, 0.975)))
            p = mcnemar(right[0], right[run]) if metric == "top1" else None
            differences.append(Difference(run, value, low, high, p))
        rows.append(Row(task, metric, values, tuple(differences)))
    return rows


def _exact_match_row(right: np.ndarray, *, draws: int, seed: int) -> Row:
    """Compare the shares of images with no wrong prediction.

    Args:
        right: bool [runs, images].
        draws: number of bootstrapped test sets.
        seed: of the bootstrap.
    """
    images = right.shape[1]
    values = tuple(right.mean(axis=1).tolist())
    differences = []
    for run in range(1, len(right)):
        low = high = None
        if images >= FEWEST_EXAMPLES:
            # An image adds 1, 0 or -1 to the difference: the sums over samples are multinomial.
            change = right[run].astype(int) - right[0]
            shares = [(change == step).mean() for step in (1, 0, -1)]
            counts = np.random.default_rng(seed).multinomial(images, shares, draws)
            sampled = (counts[:, 0] - counts[:, 2]) / images
            low, high = map(float, np.quantile(sampled, (0.025, 0.975)))
        p = mcnemar(right[0], right[run])
        differences.append(Difference(run, values[run] - values[0], low, high, p))
    return Row(ALL_TASKS, "exact_match", values, tuple(differences))


def _differing_settings(results: Sequence[Results], shared: Sequence[str]) -> dict[str, tuple]:
    keys = sorted({key for one in results for key in one.settings})
    differing = {}
    for key in keys:
        values = tuple(one.settings.get(key) for one in results)
        compared = not key.startswith("task.") or key.split(".")[1] in shared
        if compared and any(value != values[0] for value in values):
            differing[key] = values
    return differing


# === Output ===


def text(value: float | int | None, *, signed: bool = False) -> str:
    """A count as a whole number, anything else with three decimals."""
    if not isinstance(value, int):
        return render.figure(value, signed=signed)
    sign = "+" if signed and value else ""
    return f"{value:{sign},}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """A p value with three decimals."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _uncertainty(difference: Difference) -> str:
    parts = []
    if difference.low is not None:
        low, high = (text(end, signed=True) for end in (difference.low, difference.high))
        parts.append(f"[{low}, {high}]")
    if difference.p is not None:
        parts.append(p_text(difference.p))
    return "  ".join(parts)


def table_lines(comparison: Comparison) -> list[str]:
    """The console's table: a row per task and metric, a column per run, then the differences."""
    first, *others = comparison.runs
    head = ["task", "metric", *comparison.runs, *(f"{name} - {first}" for name in others)]
    body = [
        [
            row.task,
            row.metric,
            *(text(value) for value in row.values),
            *(
                f"{text(d.value, signed=True):>6}  {_uncertainty(d)}".replace("\N{MINUS SIGN}", "-")
                for d in row.differences
            ),
        ]
        for row in comparison.rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    numbers = range(2, 2 + len(comparison.runs))

    def line(cells: list[str]) -> str:
        return "  ".join(
            f"{cell:>{width}}" if column in numbers else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return [
        "",
        line(head),
        *map(line, body),
        *([""] if comparison.notes else []),
        *comparison.notes,
    ]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.csv`, a row per task, metric and run, and the page `comparison.html`."""
    with (
        replacing(folder / "comparison.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["task", "metric", "run", "value", "difference", "low", "high", "p"])
        for row in comparison.rows:
            for run, value in enumerate(row.values):
                d = row.differences[run - 1] if run else Difference(0, None)
                cells = [row.task, row.metric, comparison.runs[run], value]
                writer.writerow([*cells, d.value, d.low, d.high, d.p])
    with replacing(folder / "comparison.html") as temporary:
        temporary.write_text(page(comparison), encoding="utf-8", errors="backslashreplace")


def page(comparison: Comparison) -> str:
    """The comparison as one self-contained page."""
    ends = [
        abs(end)
        for row in comparison.rows
        for d in row.differences
        for end in (d.low, d.high, d.value if isinstance(d.value, float) else None)
        if end is not None
    ]
    widest = max(ends, default=0)
    span = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if widest <= step), 1.0)
    return render.render(
        "comparison.html.j2",
        comparison=comparison,
        span=span,
        text=text,
        p_text=p_text,
        show=lambda value: "not set" if value is None else json.dumps(value, ensure_ascii=False),
        draws=DRAWS,
    )
