"""Pictures and folders -> every task's answer, from an export or from a run."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.data.decode import RESIZE_KINDS, decode_image, resize_image
from multitask.data.files import why_unreadable
from multitask.data.table import read_classes
from multitask.evaluation.calibration import Calibration, saved_calibrations
from multitask.evaluation.predictions import softmax
from multitask.evaluation.views import TTA
from multitask.model.network import load_network
from multitask.run import Run, replacing
from multitask.serving.export import FORMAT, PIXELS, SIGNATURE, serving_functions
from multitask.spec import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TOP = 3
UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class Predictor:
    """A model that answers encoded pictures.

    Attributes:
        classes: task -> class names.
        functions: as `export.serving_functions` makes them.
        calibrations: task -> what the selection split said of its confidences.
        size_px, how: the model's input, for test-time augmentation.
        calibrated: whether probabilities are scaled by the temperature.
        tta: one of views.TTA; None: the plain picture.
    """

    classes: dict[str, tuple[str, ...]]
    functions: Mapping[str, Callable]
    calibrations: Mapping[str, Calibration]
    size_px: int
    how: str
    calibrated: bool = True
    tta: str | None = None

    def probabilities(self, pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Encoded pictures -> task -> float32 [n, classes].

        Raises:
            tf.errors.InvalidArgumentError: one of them cannot be read.
        """
        if self.tta:
            image = tf.stack(
                [
                    resize_image(
                        decode_image(tf.constant(data), target_px=self.size_px),
                        size_px=self.size_px,
                        how=self.how,
                    )
                    for data in pictures
                ]
            )
            said = [self.functions[PIXELS](view) for view in TTA[self.tta](image)]
        else:
            said = [self.functions[SIGNATURE](tf.constant(list(pictures), tf.string))]
        found = {}
        for task in self.classes:
            if self.calibrated:
                views = [answers[f"{task}_probabilities"].numpy() for answers in said]
            else:
                views = [softmax(answers[f"{task}_logits"].numpy()) for answers in said]
            found[task] = np.mean(views, axis=0, dtype=np.float32)
        return found

    def thresholds(self, accuracy: float) -> dict[str, float]:
        """Task -> the confidence from which on this share is right on the selection split.

        Raises:
            InputError: there is no such confidence, or nothing is known of the selection split.
        """
        found = {}
        for task, calibration in self.calibrations.items():
            threshold = calibration.threshold(accuracy, calibrated=self.calibrated)
            if threshold is None:
                highest = calibration.highest(calibrated=self.calibrated)
                raise InputError(
                    f"--min_confidence: auto:{accuracy:g}: "
                    + (
                        "nothing is known of the model on a selection split; `multitask evaluate` "
                        "finds it out, and `export` carries it"
                        if highest is None
                        else f"on the selection split {task} is never right that often; the "
                        f"highest is {highest:.3f}"
                    )
                )
            found[task] = threshold
        return found


class _Kept(dict):
    """Functions of a loaded model, which alone would not keep its variables alive."""

    def __init__(self, loaded, functions: Mapping[str, Callable]):
        super().__init__(functions)
        self.loaded = loaded


def load_export(folder: Path) -> Predictor:
    """What `multitask export` wrote.

    Raises:
        InputError: not such a folder.
    """
    path = folder / "classes.json"
    if not folder.is_dir():
        raise InputError(f"--model: {folder}: no such folder; `multitask export` makes one")
    try:
        description = json.loads(path.read_text())
        written = description["format"]
        if written != FORMAT:
            raise InputError(
                f"--model: {folder}: written in format {written}, this version reads {FORMAT}; "
                "export it again"
            )
        classes = {task: tuple(names) for task, names in description["classes"].items()}
        calibrations = {
            task: Calibration.from_dict(description["calibration"][task]) for task in classes
        }
        size_px, how = int(description["image_size"]), description["resize"]
        if how not in RESIZE_KINDS:
            raise ValueError(f"resize {how!r}")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--model: {folder}: not an export of multitask ({error})") from None
    try:
        loaded = tf.saved_model.load(str(folder))
        functions = {name: loaded.signatures[name] for name in (SIGNATURE, PIXELS)}
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"--model: {folder}: the SavedModel cannot be loaded ({reason})") from None
    outputs = functions[SIGNATURE].structured_outputs
    for task, names in classes.items():
        answer_of = outputs.get(f"{task}_probabilities")
        if answer_of is None:
            raise InputError(f"--model: {folder}: its model does not answer {task}")
        if answer_of.shape[-1] != len(names):
            raise InputError(
                f"--model: {folder}: classes.json names {len(names)} classes of {task}, its model "
                f"has {answer_of.shape[-1]}"
            )
    return Predictor(classes, _Kept(loaded, functions), calibrations, size_px, how)


def load_best(run: Run, *, model_file: Path | None = None) -> Predictor:
    """A run's best model, with the export's own preprocessing.

    Raises:
        InputError: no model yet.
    """
    classes = {task.name: read_classes(run.data_dir / task.classes) for task in run.spec.tasks}
    model_file = model_file or run.best_model
    model = load_network(model_file, run.spec, classes)
    calibrations = saved_calibrations(run, model_file)
    size_px, how = run.spec.image_size, run.spec.resize
    functions = serving_functions(
        model, classes, size_px=size_px, how=how, calibrations=calibrations
    )
    return Predictor(classes, functions, calibrations, size_px, how)


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Pictures and folders -> picture files, sorted within a folder, each once.

    Of a folder, everything below it whose name ends as a picture's does.

    Raises:
        InputError: nothing was named, or there is no such file or folder, or no picture in it.
    """
    if not names:
        raise InputError("name at least one picture or folder")
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not inside:
                raise InputError(
                    f"{path}: no picture in this folder (names ending in {', '.join(SUFFIXES)})"
                )
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    return list(found)


def predict_files(
    predictor: Predictor, files: Sequence[Path], *, batch_size: int
) -> Iterator[tuple[Path, dict[str, np.ndarray] | str]]:
    """Each file's answer, in order: task -> float32 [classes], or why it cannot be read."""
    with tqdm(
        total=len(files), desc="predicting", unit=" pictures", leave=False, disable=None
    ) as bar:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            yield from zip(batch, _predict_batch(predictor, batch), strict=True)
            bar.update(len(batch))


def _predict_batch(
    predictor: Predictor, files: Sequence[Path]
) -> list[dict[str, np.ndarray] | str]:
    contents: dict[int, bytes] = {}
    answers: list[dict[str, np.ndarray] | str] = [""] * len(files)
    for index, path in enumerate(files):
        try:
            contents[index] = path.read_bytes()
        except OSError as error:
            answers[index] = f"cannot be read: {error.strerror}"
    if not contents:
        return answers
    try:
        probabilities = predictor.probabilities(list(contents.values()))
    except tf.errors.InvalidArgumentError as error:
        if len(files) > 1:  # one at a time finds out which
            return [_predict_batch(predictor, [path])[0] for path in files]
        reason = why_unreadable(files[0]) or error.message
        return [" ".join(reason.split())]
    for place, index in enumerate(contents):
        answers[index] = {task: values[place] for task, values in probabilities.items()}
    return answers


def answer(
    probabilities: np.ndarray, names: Sequence[str], *, min_confidence: float
) -> dict[str, Any]:
    """One task's answer for one picture.

    Args:
        probabilities: float [classes].
        names: of the classes.
        min_confidence: below it, the answer is `uncertain`.

    Returns:
        `{"answer": name or "uncertain", "top": [(name, probability), …]}`, the most probable
        first, three at most.
    """
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    top = [(names[i], float(probabilities[i])) for i in order]
    return {"answer": top[0][0] if top[0][1] >= min_confidence else UNCERTAIN, "top": top}


def write_answers(path: Path, answers: Sequence[tuple[Path, dict | str]]) -> None:
    """Write `.csv` (a row a picture) or `.json` (a list), whole or not at all.

    Args:
        path: where; its suffix says which.
        answers: file, and task -> `answer`'s result or the reason why it cannot be read.
    """
    if path.suffix.lower() == ".json":
        records = [
            {"path": str(file), "error": said}
            if isinstance(said, str)
            else {
                "path": str(file),
                "tasks": {
                    task: {
                        "answer": found["answer"],
                        "top": [{"name": n, "probability": p} for n, p in found["top"]],
                    }
                    for task, found in said.items()
                },
            }
            for file, said in answers
        ]
        text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    else:
        # As objects: a file's name may be no text, which pandas' strings refuse.
        rows = pd.DataFrame([_row(file, said) for file, said in answers], dtype=object)
        text = rows.to_csv(index=False)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _row(file: Path, said: dict | str) -> dict[str, Any]:
    if isinstance(said, str):
        return {"path": str(file), "error": said}
    row: dict[str, Any] = {"path": str(file), "error": ""}
    for task, found in said.items():
        row[task] = found["answer"]
        for place, (name, probability) in enumerate(found["top"], start=1):
            row[f"{task}_{place}"] = name
            row[f"{task}_{place}_probability"] = probability
    return row


def answer_lines(file: Path, said: dict) -> list[str]:
    """A picture's answers for the console: a line a task, with the top three."""
    width = max(len(task) for task in said)
    lines = [str(file)]
    for task, found in said.items():
        top = ", ".join(f"{name} {probability:.3f}" for name, probability in found["top"])
        mark = f"{UNCERTAIN}: " if found["answer"] == UNCERTAIN else ""
        lines.append(f"  {task:<{width}}  {mark}{top}")
    return lines
