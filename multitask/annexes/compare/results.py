"""Read the results of `evaluate` for the compared runs, and match their test images."""

import csv
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multitask.bootstrap import PairedPredictions, label_rank
from multitask.errors import counted
from multitask.files import read_json
from multitask.reading import open_regular
from multitask.results import are_unchanged
from multitask.run import Run, flatten
from multitask.spec import InputError, field_of

FILES = ("metrics.json", "predictions.csv", "probabilities.npz")


@dataclass(frozen=True)
class Results:
    """The results of `evaluate` for one run.

    Attributes:
        name: the workdir, as the user named it.
        settings: the spec as flat settings: `trunk.name`, `task.{task}.head.kind`.
        model: the evaluated model file.
        metrics: `{task}/{metric}` -> number, or None.
        paths: [n], of the images.
        true: task -> class name of each image, "" without a label.
        predicted: task -> class name of each image.
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


# === Reading ===


def read_results(run: Run) -> Results:
    """Read the results of `evaluate` for a run.

    Raises:
        InputError: there are no results, or the files are broken or not of one evaluation.
    """
    name = str(run.workdir)
    remedy = f"`multitask evaluate --workdir={name}` writes them"
    for file in FILES:
        if not (run.results / file).is_file():
            raise InputError(f"{name}: no results ({run.results / file}); {remedy}")
    try:
        if not are_unchanged(run, FILES):
            raise ValueError("they were changed, or the evaluation was interrupted")
        results = _read_files(run)
        for task in results.true:
            _check_one_evaluation(results, task)
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, csv.Error, zipfile.BadZipFile
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise InputError(
            f"{run.results}: not the results of one evaluation ({reason}); {remedy} again"
        ) from None
    return results


def _read_files(run: Run) -> Results:
    """Read FILES, which may raise any error of their formats."""
    content = read_json(run.results / "metrics.json")
    metrics = dict(content["metrics"])
    tasks = [key.removesuffix("/labelled") for key in metrics if key.endswith("/labelled")]
    with open_regular(run.results / "predictions.csv") as binary:
        header, *rows = csv.reader(io.TextIOWrapper(binary, encoding="utf-8", newline=""))
    cells = zip(*rows, strict=True) if rows else [()] * len(header)
    columns = dict(zip(header, cells, strict=True))
    if not all(field_of(task, "true") in columns for task in tasks):
        raise ValueError("predictions.csv is of an earlier version or of other tasks")
    with (
        open_regular(run.results / "probabilities.npz") as binary,
        np.load(binary, allow_pickle=False) as arrays,
    ):
        probabilities = {task: arrays[field_of(task, "probabilities")] for task in tasks}
    return Results(
        str(run.workdir),
        _settings(run),
        str(content["model"]),
        {key: value for key, value in metrics.items() if _is_number(value) or value is None},
        list(columns["path"]),
        {task: list(columns[field_of(task, "true")]) for task in tasks},
        {task: list(columns[field_of(task, "predicted")]) for task in tasks},
        probabilities,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings(run: Run) -> dict[str, Any]:
    """The spec as flat settings, by task name, as runs may have different orders of tasks."""
    settings = run.spec.to_dict()
    tasks = {task.pop("name"): task for task in settings.pop("task")}
    return flatten({**settings, "task": tasks})


def _check_one_evaluation(results: Results, task: str) -> None:
    """Raise ValueError if the three files disagree."""
    true, predicted = results.true[task], results.predicted[task]
    probabilities = results.probabilities[task]
    if probabilities.ndim != 2 or len(probabilities) != len(true):
        raise ValueError(f"{task}: probabilities of shape {probabilities.shape} for {len(true)}")
    names = class_names(results, task)
    if [names[index] for index in probabilities.argmax(axis=1)] != predicted:
        raise ValueError(f"{task}: predictions.csv and probabilities.npz disagree")
    right = [t == p for t, p in zip(true, predicted, strict=True) if t]
    labelled, top1 = results.metrics[f"{task}/labelled"], results.metrics[f"{task}/top1"]
    same_top1 = not right or (top1 is not None and math.isclose(top1, float(np.mean(right))))
    if labelled != len(right) or not same_top1:
        raise ValueError(f"{task}: metrics.json and predictions.csv disagree")


def class_names(results: Results, task: str) -> dict[int, str]:
    """Index -> name of the classes that the run predicted for some image."""
    return dict(
        zip(
            results.probabilities[task].argmax(axis=1).tolist(),
            results.predicted[task],
            strict=True,
        )
    )


# === The same test set ===


def common_test_set(task: str, results: Sequence[Results]) -> PairedPredictions:
    """A task's labelled images, in one order for all runs.

    Raises:
        InputError: the runs have different classes, images or true labels.
    """
    first = results[0]
    truth = _true_names(first, task)
    paths = sorted(truth)
    indices = class_names(first, task)
    rows = []
    for one in results:
        _check_same_classes(task, indices, first, one)
        indices |= class_names(one, task)
        _check_same_labels(task, first, one)
        place = {path: row for row, path in enumerate(one.paths)}
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
        true_columns = np.array([column[truth[path]] for path in paths], dtype=np.int64)
        in_top5 = np.array(
            [
                label_rank(true_columns, one.probabilities[task][places]) < 5
                for one, places in zip(results, rows, strict=True)
            ]
        )
    return PairedPredictions(labels, np.array(predictions), in_top5)


def common_exact_match(tasks: Sequence[str], results: Sequence[Results]) -> np.ndarray:
    """Whether all tasks of an image are predicted right, bool [runs, images].

    Args:
        tasks: the compared tasks, whose test sets are the same in all runs.
        results: of the runs.

    Returns:
        One column for each image that has a label of every task, sorted by path.
    """
    truths = [_true_names(results[0], task) for task in tasks]
    paths = sorted(set.intersection(*(set(truth) for truth in truths)))
    right = np.ones((len(results), len(paths)), bool)
    for row, one in enumerate(results):
        place = {path: index for index, path in enumerate(one.paths)}
        for task, truth in zip(tasks, truths, strict=True):
            predicted = one.predicted[task]
            right[row] &= [predicted[place[path]] == truth[path] for path in paths]
    return right


def _true_names(results: Results, task: str) -> dict[str, str]:
    """Path -> class name of the task's labelled images."""
    pairs = zip(results.paths, results.true[task], strict=True)
    return {path: true for path, true in pairs if true}


def _check_same_labels(task: str, first: Results, one: Results) -> None:
    """Raise InputError if two runs have different test sets of a task."""
    truths = _true_names(first, task), _true_names(one, task)
    differing = sorted(
        path
        for path in truths[0].keys() | truths[1].keys()
        if truths[0].get(path) != truths[1].get(path)
    )
    if not differing:
        return
    path = differing[0]
    there, here = (
        f"{truth[path]!r} in {run.name}" if path in truth else f"no label in {run.name}"
        for run, truth in zip((first, one), truths, strict=True)
    )
    count = counted(len(differing), "image differs", "images differ")
    raise InputError(
        f"{task}: the runs have different test sets: {count}, the first is {path} ({there}, {here})"
    )


def _check_same_classes(
    task: str, indices: Mapping[int, str], first: Results, one: Results
) -> None:
    """Raise InputError if two runs number their classes differently."""
    counts = [run.probabilities[task].shape[1] for run in (first, one)]
    if counts[0] != counts[1]:
        raise InputError(
            f"{task}: {counted(counts[0], 'class', 'classes')} in {first.name}, {counts[1]} in "
            f"{one.name}; only runs with the same classes can be compared"
        )
    for index, name in sorted(class_names(one, task).items()):
        if indices.get(index, name) != name:
            raise InputError(
                f"{task}: class {index} is {name!r} in {one.name} and {indices[index]!r} before; "
                "only runs with the same classes can be compared"
            )
