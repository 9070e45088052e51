"""The predictions of one image: its answer for each task, as lines and as a row of a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask.spec import field_of

TOP = 3
UNCERTAIN = "uncertain"


def answer(
    probabilities: np.ndarray, names: Sequence[str], *, min_confidence: float
) -> dict[str, Any]:
    """Return one task's prediction for one image.

    Args:
        probabilities: float [classes].
        names: class names.
        min_confidence: a lower confidence makes the answer `uncertain`.

    Returns:
        `{"answer": name or "uncertain", "top": [(name, probability), …]}`, at most three, most
        probable first.
    """
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    top = [(names[i], float(probabilities[i])) for i in order]
    return {"answer": top[0][0] if top[0][1] >= min_confidence else UNCERTAIN, "top": top}


def answer_lines(file: str | Path, predictions: dict) -> list[str]:
    """Format an image's predictions for the console: one line per task, with the top three."""
    width = max(len(task) for task in predictions)
    lines = [str(file)]
    for task, prediction in predictions.items():
        top = ", ".join(f"{name} {probability:.3f}" for name, probability in prediction["top"])
        mark = f"{UNCERTAIN}: " if prediction["answer"] == UNCERTAIN else ""
        lines.append(f"  {task:<{width}}  {mark}{top}")
    return lines


def columns(classes: Mapping[str, Sequence[str]]) -> dict[str, type]:
    """Return the columns of a table with one row per image: name -> str or float.

    `path` and `error`; then for each task, e.g. `artist`, `artist/predicted` and the most probable
    classes in `artist/1`, `artist/1_probability`, `artist/2` and so on.
    """
    kinds: dict[str, type] = {"path": str, "error": str}
    for task, names in classes.items():
        kinds[field_of(task, "predicted")] = str
        for place in range(1, min(TOP, len(names)) + 1):
            kinds[field_of(task, f"{place}")] = str
            kinds[field_of(task, f"{place}_probability")] = float
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
    return values
