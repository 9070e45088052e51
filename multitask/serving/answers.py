"""The predictions of one image: its answer for each task, as lines and as a row of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multitask.conformal import prediction_sets
from multitask.feature_distance import UNLIKE, is_unlike
from multitask.spec import field_of

TOP = 3
UNCERTAIN = "uncertain"
MARKS = {UNCERTAIN: f"{UNCERTAIN}: ", UNLIKE: "no answer: "}  # before the probabilities
DISTANCE_COLUMNS: dict[str, type] = {"distance": float, "unlike": bool}
SEPARATOR = " | "  # between the classes of a set in a CSV


@dataclass(frozen=True)
class Distance:
    """The distance of an image to the training images.

    Attributes:
        value: of `Predictor.distances`.
        limit: of an image that is like the training images, from `Predictor.distance_limit`.
    """

    value: float
    limit: float

    @property
    def unlike(self) -> bool:
        """Whether the image is not like the training images."""
        return bool(is_unlike(self.value, self.limit))

    @property
    def fields(self) -> dict[str, Any]:
        """The values of DISTANCE_COLUMNS."""
        return {"distance": self.value, "unlike": self.unlike}


def answer(
    probabilities: np.ndarray,
    names: Sequence[str],
    *,
    min_confidence: float,
    set_threshold: float | None = None,
    distance: Distance | None = None,
) -> dict[str, Any]:
    """Return one task's prediction for one image.

    Args:
        probabilities: float [classes].
        names: class names.
        min_confidence: a lower confidence makes the answer `uncertain`.
        set_threshold: of the set of classes, from `Predictor.set_thresholds`; None: no set.
        distance: of the image; an image that is not like the training images gets no other answer.

    Returns:
        `{"answer": name, "uncertain" or UNLIKE, "top": [(name, probability), …]}`, at most three,
        most probable first; with a threshold also `"set": [name, …]`, in the same order.
    """
    order = np.argsort(-probabilities, kind="stable")
    top = [(names[i], float(probabilities[i])) for i in order[:TOP]]
    result = {"answer": top[0][0] if top[0][1] >= min_confidence else UNCERTAIN, "top": top}
    if distance and distance.unlike:
        result["answer"] = UNLIKE
    if set_threshold is not None:
        inside = prediction_sets(probabilities[None], set_threshold)[0]
        result["set"] = [names[i] for i in order if inside[i]]
    return result


def answer_lines(
    file: str | Path, predictions: dict, distance: Distance | None = None
) -> list[str]:
    """Format an image's predictions for the console: one line per task, with the top three.

    A set of classes is a second line. An image that is not like the training images has a line that
    says so.
    """
    width = max(len(task) for task in predictions)
    lines = [str(file)]
    if distance and distance.unlike:
        lines.append(f"  {UNLIKE} (distance {distance.value:.3f}, limit {distance.limit:.3f})")
    for task, prediction in predictions.items():
        top = ", ".join(f"{name} {probability:.3f}" for name, probability in prediction["top"])
        mark = MARKS.get(prediction["answer"], "")
        lines.append(f"  {task:<{width}}  {mark}{top}")
        if "set" in prediction:
            inside = prediction["set"]
            noun = "class" if len(inside) == 1 else "classes"
            lines.append(f"  {'':<{width}}  set of {len(inside)} {noun}: {', '.join(inside)}")
    return lines


def columns(
    classes: Mapping[str, Sequence[str]], *, sets: bool = False, distances: bool = False
) -> dict[str, type]:
    """Return the columns of a table with one row per image: name -> str, float, int, bool or list.

    `path` and `error`; with `distances` also `distance` to the training images and `unlike`,
    whether the image is not like them; then for each task, e.g. `artist`, `artist/predicted` and
    the most probable classes in `artist/1`, `artist/1_probability`, `artist/2` and so on; with
    `sets` also `artist/set`, the list of names, and `artist/set_size`.
    """
    kinds: dict[str, type] = {"path": str, "error": str}
    if distances:
        kinds |= DISTANCE_COLUMNS
    for task, names in classes.items():
        kinds[field_of(task, "predicted")] = str
        for place in range(1, min(TOP, len(names)) + 1):
            kinds[field_of(task, f"{place}")] = str
            kinds[field_of(task, f"{place}_probability")] = float
        if sets:
            kinds[field_of(task, "set")] = list
            kinds[field_of(task, "set_size")] = int
    return kinds


def row(
    path: str, predictions: Mapping[str, Any] | str, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return one image's row of that table; columns without a value are absent.

    Args:
        path: name of the image.
        predictions: task -> `answer`, or the reason why the image cannot be read.
        fields: `Distance.fields` of the image, if the table has distances.
    """
    if isinstance(predictions, str):
        return {"path": path, "error": predictions}
    values: dict[str, Any] = {"path": path, "error": "", **(fields or {})}
    for task, prediction in predictions.items():
        values[field_of(task, "predicted")] = prediction["answer"]
        for place, (name, probability) in enumerate(prediction["top"], start=1):
            values[field_of(task, f"{place}")] = name
            values[field_of(task, f"{place}_probability")] = probability
        if "set" in prediction:
            values[field_of(task, "set")] = prediction["set"]
            values[field_of(task, "set_size")] = len(prediction["set"])
    return values
