"""What a run needs to go on: the progress so far, and every variable after an epoch."""

import dataclasses
import json
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from multitask.model.network import parts
from multitask.model.trunks import finalize_normalization
from multitask.run import replacing
from multitask.spec import InputError

BEST = "macro_f1"  # the key of the model that is best over all tasks


@dataclass
class Progress:
    """Where a run is and what it has seen; all of it is saved with each epoch.

    Attributes:
        phase: the phase that `phase_epoch` counts in.
        epoch: epochs done, over all phases; what the input's random numbers are keyed by.
        phase_epoch: epochs done in this phase.
        finished: phases that are over.
        best: what -> its best score; `macro_f1` over all tasks, and each task by its name.
        best_epoch: what -> the epoch (over all phases, from 1) of its best score.
        waited: epochs since the best score over all.
        plateau_waited: epochs since the best score or the last reduction.
        plateau: the factor on every learning rate.
        history: one row an epoch.
    """

    phase: str = ""
    epoch: int = 0
    phase_epoch: int = 0
    finished: list[str] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: dict[str, int] = field(default_factory=dict)
    waited: int = 0
    plateau_waited: int = 0
    plateau: float = 1.0
    history: list[dict] = field(default_factory=list)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """Weights, seeds of dropout and all the optimizer's state, in a fixed order."""
    return [*model.variables, *model.optimizer.variables]


def _folders(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest last."""
    return sorted(folder.glob("epoch-*"))


def save_checkpoint(folder: Path, model: keras.Model, progress: Progress) -> None:
    """Write `folder/epoch-0007`, whole or not at all, and drop the older ones."""
    target = folder / f"epoch-{progress.epoch:04d}-{len(progress.finished)}"
    older = [path for path in _folders(folder) if path != target]
    with replacing(target) as temporary:
        temporary.mkdir()
        arrays = {str(i): np.asarray(v) for i, v in enumerate(_variables(model))}
        np.savez(temporary / "variables.npz", **arrays)
        (temporary / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)))
    for path in older:
        shutil.rmtree(path)


def load_progress(folder: Path) -> Progress:
    """The progress of the newest checkpoint; a fresh one where there is none.

    Raises:
        InputError: it cannot be read.
    """
    newest = _folders(folder)[-1:]
    if not newest:
        return Progress()
    path = newest[0] / "progress.json"
    try:
        return Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a run's progress: {error}") from None


def restore_variables(folder: Path, model: keras.Model) -> None:
    """Give a compiled model, built for the same phase, the newest checkpoint's variables.

    Raises:
        InputError: the file is broken or of another model.
    """
    path = _folders(folder)[-1] / "variables.npz"
    variables = _variables(model)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = [arrays[str(i)] for i in range(len(arrays.files))]
        if [v.shape for v in values] != [tuple(v.shape) for v in variables]:
            raise ValueError("its variables are those of another model")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be gone on from: {error}") from None
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    finalize_normalization(parts(model)[0])
