"""Runs beside each other, from what `evaluate` wrote of each: is one better, or is it chance?

Nothing here needs TensorFlow, so that the command is there at once.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtr

from multitask.bootstrap import DRAWS, FEWEST_EXAMPLES, SEED, Exam, bootstrap, label_rank
from multitask.evaluation import pages
from multitask.evaluation.record import are_of_one_evaluation
from multitask.files import read_json, replacing
from multitask.reading import open_regular
from multitask.run import Run, flatten
from multitask.spec import NO_TEST_SET, InputError, field_of

OF_THE_EXAM = ("labelled", "classes", "classes_present")  # the same for every run


@dataclass(frozen=True)
class Results:
    """What `evaluate` wrote of one run.

    Attributes:
        name: the workdir, as it was named.
        settings: of the spec, flat: `trunk.name`, `task.{task}.head.kind`.
        model: the model file that was examined.
        metrics: `{task}/{metric}` -> number, or None where there is none.
        paths: [n], of the pictures.
        true: task -> class name of each picture, "" without a label.
        predicted: task -> class name of each picture.
        probabilities: task -> float32 [n, classes].
    """

    name: str
    settings: dict[str, Any]
    model: str
    metrics: dict[str, float | int | None]
    paths: list[str]
    true: dict[str, list[str]]
    predicted: dict[str, list[str]]
    probabilities: dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A run's figure less the first run's.

    Attributes:
        run: place of the run among all.
        value: the difference; None where one has no such figure.
        low, high: 95 % interval; None where there is none.
        p: McNemar's, of top-1; else None.
    """

    run: int
    value: float | int | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Row:
    """One figure of one task: the value of every run, and of all but the first the difference."""

    task: str
    metric: str
    values: tuple[float | int | None, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        runs: names, the first is what the others are compared to.
        models: that were examined, one a run.
        labelled: task that is compared -> pictures of its exam.
        rows: by task, then by metric.
        settings: setting -> its value in each run (None: not set), where they differ.
        notes: what is not compared, and why.
    """

    runs: tuple[str, ...]
    models: tuple[str, ...]
    labelled: dict[str, int]
    rows: tuple[Row, ...]
    settings: dict[str, tuple]
    notes: tuple[str, ...]


# === Reading ===


def read_results(run: Run) -> Results:
    """What `evaluate` wrote of a run.

    Raises:
        InputError: it wrote nothing yet, or the files are broken or not of one evaluation.
    """
    name = str(run.workdir)
    remedy = f"`multitask evaluate --workdir={name}` makes them"
    files = ("metrics.json", "predictions.csv", "probabilities.npz")
    for file in files:
        if not (run.results / file).is_file():
            raise InputError(f"{name}: no results ({run.results / file}); {remedy}")
    try:
        if not are_of_one_evaluation(run, files):
            raise ValueError("they were changed, or the evaluation was stopped")
        written = read_json(run.results / "metrics.json")
        metrics, model = dict(written["metrics"]), str(written["model"])
        tasks = [key.removesuffix("/labelled") for key in metrics if key.endswith("/labelled")]
        with open_regular(run.results / "predictions.csv") as file:
            header, *rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
        cells = zip(*rows, strict=True) if rows else [()] * len(header)
        columns = dict(zip(header, cells, strict=True))
        if not all(field_of(task, "true") in columns for task in tasks):
            raise ValueError("predictions.csv is of an earlier version or of other tasks")
        with (
            open_regular(run.results / "probabilities.npz") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            probabilities = {task: arrays[field_of(task, "probabilities")] for task in tasks}
        results = Results(
            name,
            _settings(run),
            model,
            {k: v for k, v in metrics.items() if _is_number(v) or v is None},
            list(columns["path"]),
            {task: list(columns[field_of(task, "true")]) for task in tasks},
            {task: list(columns[field_of(task, "predicted")]) for task in tasks},
            probabilities,
        )
        for task in tasks:
            _check_one_evaluation(results, task)
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, csv.Error, zipfile.BadZipFile
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise InputError(
            f"{run.results}: not the results of one evaluation ({reason}); {remedy} anew"
        ) from None
    return results


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings(run: Run) -> dict[str, Any]:
    """By the tasks' names, which may stand in another order in another run."""
    settings = run.spec.to_dict()
    tasks = {task.pop("name"): task for task in settings.pop("task")}
    return flatten({**settings, "task": tasks})


def _check_one_evaluation(results: Results, task: str) -> None:
    """ValueError where the three files do not tell the same."""
    true, predicted = results.true[task], results.predicted[task]
    probabilities = results.probabilities[task]
    if probabilities.ndim != 2 or len(probabilities) != len(true):
        raise ValueError(f"{task}: probabilities of shape {probabilities.shape} for {len(true)}")
    names = class_names(results, task)
    if [names[index] for index in probabilities.argmax(axis=1)] != predicted:
        raise ValueError(f"{task}: predictions.csv and probabilities.npz disagree")
    right = [t == p for t, p in zip(true, predicted, strict=True) if t]
    said = results.metrics[f"{task}/labelled"], results.metrics[f"{task}/top1"]
    found = len(right), float(np.mean(right)) if right else None
    if said[0] != found[0] or (found[1] is not None and not math.isclose(said[1], found[1])):
        raise ValueError(f"{task}: metrics.json and predictions.csv disagree")


def class_names(results: Results, task: str) -> dict[int, str]:
    """Index -> name of the classes that the run predicts."""
    return dict(
        zip(
            results.probabilities[task].argmax(axis=1).tolist(),
            results.predicted[task],
            strict=True,
        )
    )


# === The same exam ===


def take_exam(task: str, results: Sequence[Results]) -> Exam:
    """A task's labelled pictures, in one order for all runs.

    Raises:
        InputError: the runs have other classes, pictures or true labels.
    """
    first = results[0]
    truth = {path: true for path, true in zip(first.paths, first.true[task], strict=True) if true}
    paths = sorted(truth)
    indices = class_names(first, task)
    rows = []
    for one in results:
        _check_same_classes(task, indices, first, one)
        indices |= class_names(one, task)
        place = {
            path: row
            for row, (path, true) in enumerate(zip(one.paths, one.true[task], strict=True))
            if true
        }
        wrong = sorted(
            path
            for path in truth.keys() | place.keys()
            if path not in place or truth.get(path) != one.true[task][place[path]]
        )
        if wrong:
            path = wrong[0]
            there, here = (
                f"{label!r} in {run.name}" if label else f"no label in {run.name}"
                for run, label in (
                    (first, truth.get(path)),
                    (one, one.true[task][place[path]] if path in place else None),
                )
            )
            many = f"{len(wrong):,} pictures differ" if len(wrong) > 1 else "1 picture differs"
            raise InputError(
                f"{task}: the runs have other exams: {many}, the first is {path} ({there}, {here})"
            )
        rows.append([place[path] for path in paths])
    names, codes = np.unique(
        [truth[path] for path in paths]
        + [
            one.predicted[task][row]
            for one, places in zip(results, rows, strict=True)
            for row in places
        ],
        return_inverse=True,
    )
    labels, *predictions = codes.reshape(1 + len(results), len(paths))
    column = {name: index for index, name in indices.items()}
    in_top5 = None
    if all(str(names[label]) in column for label in np.unique(labels)):
        labelled = np.array([column[truth[path]] for path in paths], dtype=np.int64)
        in_top5 = np.array(
            [
                label_rank(labelled, one.probabilities[task][places]) < 5
                for one, places in zip(results, rows, strict=True)
            ]
        )
    return Exam(labels, np.array(predictions), in_top5)


def _check_same_classes(task: str, indices: Mapping[int, str], first: Results, one: Results):
    counts = [run.probabilities[task].shape[1] for run in (first, one)]
    if counts[0] != counts[1]:
        raise InputError(
            f"{task}: {counts[0]} classes in {first.name}, {counts[1]} in {one.name}; only runs "
            "with the same classes are compared"
        )
    for index, name in sorted(class_names(one, task).items()):
        if indices.get(index, name) != name:
            raise InputError(
                f"{task}: class {index} is {name!r} in {one.name} and {indices[index]!r} before; "
                "only runs with the same classes are compared"
            )


# === Chance ===


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """McNemar's test (1947), exact: of the examples that one alone has right, is either's share
    other than a half?

    Args:
        first_right: bool [n].
        second_right: bool [n], of the same examples.

    Returns:
        The two-sided p, 1 where they are right on the same examples.
    """
    first, second = first_right & ~second_right, second_right & ~first_right
    fewer, all_of_one = sorted((int(first.sum()), int(second.sum())))
    return min(1.0, 2 * float(bdtr(fewer, fewer + all_of_one, 0.5)))


# === Comparing ===


def compare(results: Sequence[Results], *, draws: int = DRAWS, seed: int = SEED) -> Comparison:
    """Every task's figures of all runs, and how far each is from the first run's.

    Top-1 has McNemar's p. Accuracies and F1 have the 2.5 % and 97.5 % points of the difference
    over drawn exams; a calibration error is biased on a drawn exam and has none. All of it is
    about the exam's pictures: another seed of the training is another chance, not counted.

    Args:
        results: of at least two runs.
        draws: of the bootstrap.
        seed: of those.

    Raises:
        InputError: fewer runs, no common task with an exam, or other exams or classes.
    """
    if len(results) < 2:
        raise InputError(f"two runs or more are compared, not {len(results)}")
    shared, notes = _shared_tasks(results)
    rows, labelled = [], {}
    for task in shared:
        exam = take_exam(task, results)
        labelled[task] = len(exam.labels)
        if len(exam.labels) < FEWEST_EXAMPLES:
            notes.append(
                f"{task}: without intervals: {len(exam.labels)} test images have a label, at least "
                f"{FEWEST_EXAMPLES} are needed"
            )
        rows += _rows(task, results, exam, draws=draws, seed=seed)
    return Comparison(
        tuple(one.name for one in results),
        tuple(one.model for one in results),
        labelled,
        tuple(rows),
        _differing_settings(results, shared),
        tuple(notes),
    )


def _shared_tasks(results: Sequence[Results]) -> tuple[list[str], list[str]]:
    """The tasks that are compared, and a line for each that is not."""
    shared, notes = [], []
    for task in dict.fromkeys(task for one in results for task in one.true):
        having = [one.name for one in results if task in one.true]
        if len(having) < len(results):
            notes.append(f"{task}: not compared, it is a task of {', '.join(having)} alone")
        elif not any(one.metrics[f"{task}/labelled"] for one in results):
            notes.append(f"{task}: not compared, {NO_TEST_SET}")
        else:
            shared.append(task)
    if not shared:
        raise InputError(f"the runs have no task in common to compare: {'; '.join(notes)}")
    return shared, notes


def _rows(task: str, results: Sequence[Results], exam: Exam, *, draws: int, seed: int) -> list[Row]:
    drawn = bootstrap(exam, draws=draws, seed=seed)
    right = exam.predictions == exam.labels
    keys = dict.fromkeys(key for one in results for key in one.metrics)
    rows = []
    for key in keys:
        of, _, metric = key.partition("/")
        if of != task or metric in OF_THE_EXAM:
            continue
        values = tuple(one.metrics.get(key) for one in results)
        differences = []
        for run in range(1, len(results)):
            known = values[0] is not None and values[run] is not None
            value = values[run] - values[0] if known else None
            low = high = None
            if known and metric in drawn and len(exam.labels) >= FEWEST_EXAMPLES:
                less = drawn[metric][:, run] - drawn[metric][:, 0]
                low, high = map(float, np.quantile(less, (0.025, 0.975)))
            p = mcnemar(right[0], right[run]) if metric == "top1" else None
            differences.append(Difference(run, value, low, high, p))
        rows.append(Row(task, metric, values, tuple(differences)))
    return rows


def _differing_settings(results: Sequence[Results], shared: Sequence[str]) -> dict[str, tuple]:
    keys = sorted({key for one in results for key in one.settings})
    differing = {}
    for key in keys:
        values = tuple(one.settings.get(key) for one in results)
        of_shared = not key.startswith("task.") or key.split(".")[1] in shared
        if of_shared and any(value != values[0] for value in values):
            differing[key] = values
    return differing


# === Showing ===


def text(value: float | int | None, *, signed: bool = False) -> str:
    """A count whole, anything else with three decimals."""
    if not isinstance(value, int):
        return pages.figure(value, signed=signed)
    sign = "+" if signed and value else ""
    return f"{value:{sign},}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
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
    """The console's table: a row a task and metric, a column a run, then the differences."""
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
    """`comparison.csv`, a row a task, metric and run, and the page `comparison.html`."""
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
    """The comparison as one page that needs nothing else."""
    ends = [
        abs(end)
        for row in comparison.rows
        for d in row.differences
        for end in (d.low, d.high, d.value if isinstance(d.value, float) else None)
        if end is not None
    ]
    widest = max(ends, default=0)
    span = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if widest <= step), 1.0)
    return pages.render(
        "comparison.html.j2",
        comparison=comparison,
        span=span,
        text=text,
        p_text=p_text,
        show=lambda value: "not set" if value is None else json.dumps(value, ensure_ascii=False),
        draws=DRAWS,
    )
