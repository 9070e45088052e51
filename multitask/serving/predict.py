"""Pictures and folders -> every task's answer, a batch at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from multitask.data.files import why_unreadable
from multitask.data.folders import SUFFIXES, ImageSearch
from multitask.data.pipeline import readable_pictures
from multitask.serving.predictor import Predictor
from multitask.spec import InputError

TOP = 3
UNCERTAIN = "uncertain"


def find_pictures(names: Sequence[str], *, tell: Callable[[str], None] = print) -> list[str]:
    """Pictures and folders -> picture files, sorted within a folder, each once.

    Of a folder, what `ImageSearch` finds below it.

    Args:
        names: of pictures and folders.
        tell: shows a line, of what was skipped.

    Raises:
        InputError: nothing was named, or there is no such file or folder, or no picture in it.
    """
    if not names:
        raise InputError("name at least one picture or folder")
    found: dict[str, None] = {}
    search = ImageSearch()
    for name in names:
        path = str(Path(name))
        if os.path.isdir(path):
            if search.has_read(path):
                continue
            inside = search.find(path)
            if not inside:
                skipped = search.skipped.line()
                raise InputError(
                    f"{path}: no picture in this folder (names ending in {', '.join(SUFFIXES)})"
                    + (f". {skipped}" if skipped else "")
                )
            found |= dict.fromkeys(inside)
        elif os.path.exists(path):
            found[path] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    if skipped := search.skipped.line():
        tell(skipped)
    return list(found)


def predict_files(
    predictor: Predictor, files: Sequence[str | Path], *, batch_size: int
) -> Iterator[tuple[str, dict[str, np.ndarray] | str]]:
    """Each file's answer, in order: task -> float32 [classes], or why it cannot be read.

    Pictures are read and decoded beside the model's work on those before them; memory does not
    grow with their number.
    """
    names = [os.fspath(file) for file in files]
    batches = readable_pictures(
        [os.fsencode(name) for name in names],
        size_px=predictor.size_px,
        how=predictor.how,
        batch_size=batch_size,
    )
    done = 0

    def unreadable(until: int) -> Iterator[tuple[str, str]]:
        for name in names[done:until]:
            yield name, " ".join((why_unreadable(name) or "could not be read").split())

    with tqdm(
        total=len(names), desc="predicting", unit=" pictures", leave=False, disable=None
    ) as bar:
        for places, images in batches:
            # `numpy()` would copy ten megabytes a batch while the model waits.
            probabilities = predictor.probabilities(np.asarray(images))
            for row, place in enumerate(places.numpy().tolist()):
                yield from unreadable(place)
                yield names[place], {task: each[row] for task, each in probabilities.items()}
                done = place + 1
            bar.update(done - bar.n)
        yield from unreadable(len(names))


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


def answer_lines(file: str | Path, said: dict) -> list[str]:
    """A picture's answers for the console: a line a task, with the top three."""
    width = max(len(task) for task in said)
    lines = [str(file)]
    for task, found in said.items():
        top = ", ".join(f"{name} {probability:.3f}" for name, probability in found["top"])
        mark = f"{UNCERTAIN}: " if found["answer"] == UNCERTAIN else ""
        lines.append(f"  {task:<{width}}  {mark}{top}")
    return lines
