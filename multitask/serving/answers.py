"""The predictions of one image: its answer for each task, as lines and as a row of a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask.conformal import prediction_sets
from multitask.spec import field_of

TOP = 3
UNCERTAIN = "uncertain"
SEPARATOR = " | "  # between the classes of a set in a CSV


def answer(
    probabilities: np.ndarray,
    names: Sequence[str],
    *,
    min_confidence: float,
    set_threshold: float | None = None,
) -> dict[str, Any]:
    """Return one task's prediction for one image.

    Args:
        probabilities: float [classes].
        names: class names.
        min_confidence: a lower confidence makes the answer `uncertain`.
        set_threshold: of the set of classes, from `Predictor.set_thresholds`; None: no set.

    Returns:
        `{"answer": name or "uncertain", "top": [(name, probability), …]}`, at most three, most
        probable first; with a threshold also `"set": [name, …]`, in the same order.
    """
    order = np.argsort(-probabilities, kind="stable")
    top = [(names[i], float(probabilities[i])) for i in order[:TOP]]
    result = {"answer": top[0][0] if top[0][1] >= min_confidence else UNCERTAIN, "top": top}
    if set_threshold is not None:
        inside = prediction_sets(probabilities[None], set_threshold)[0]
        result["set"] = [names[i] for i in order if inside[i]]
    return result


def answer_lines(file: str | Path, predictions: dict) -> list[str]:
    """Format an image's predictions for the console: one line per task, with the top three.

    A set of classes is a second line.
    """
    width = max(len(task) for task in predictions)
    lines = [str(file)]
    for task, prediction in predictions.items():
        top = ", ".join(f"{name} {probability:.3f}" for name, probability in prediction["top"])
        mark = f"{UNCERTAIN}: " if prediction["answer"] == UNCERTAIN else ""
        lines.append(f"  {task:<{width}}  {mark}{top}")
        if "set" in prediction:
            inside = prediction["set"]
            noun = "class" if len(inside) == 1 else "classes"
            lines.append(f"  {'':<{width}}  set of {len(inside)} {noun}: {', '.join(inside)}")
    return lines


def columns(classes: Mapping[str, Sequence[str]], *, sets: bool = False) -> dict[str, type]:
    """Return the columns of a table with one row per image: name -> str, float, int or list.

    `path` and `error`; then for each task, e.g. `artist`, `artist/predicted` and the most probable
    classes in `artist/1`, `artist/1_probability`, `artist/2` and so on; with `sets` also
    `artist/set`, the list of names, and `artist/set_size`.
    """
    kinds: dict[str, type] = {"path": str, "error": str}
    for task, names in classes.items():
        kinds[field_of(task, "predicted")] = str
        for place in range(1, min(TOP, len(names)) + 1):
            kinds[field_of(task, f"{place}")] = str
            kinds[field_of(task, f"{place}_probability")] = float
        if sets:
            kinds[field_of(task, "set")] = list
            kinds[field_of(task, "set_size")] = int
    return kinds


def row(path: str, predictions: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return one image's row of that table; columns without a value are absent.

    Args:
        path: name of the image.
        predictions: task -> `answer`, or the reason why the image cannot be read.
    """
    if isinstance(predictions, str):
        return {"path": path, "error": predictions}
    values: dict[str, Any] = {"path": path, "error": ""}
    for task, prediction in predictions.items():
        values[field_of(task, "predicted")] = prediction["answer"]
        for place, (name, probability) in enumerate(prediction["top"], start=1):
            values[field_of(task, f"{place}")] = name
            values[field_of(task, f"{place}_probability")] = probability
        if "set" in prediction:
            values[field_of(task, "set")] = prediction["set"]
            values[field_of(task, "set_size")] = len(prediction["set"])
    return values
