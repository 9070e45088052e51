"""Checkpoints: the progress and every variable of a run, to resume it exactly at any step.

  checkpoint/000012/variables.npz     all variables, in order; then those of the metrics
                    progress.json     a Progress
                    sha256.json       checksums of the two files

The last two checkpoints are kept. A checksum detects a file that is incomplete or was changed;
the previous checkpoint is then used.
"""

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
from pydantic import TypeAdapter

from multitask.files import read_json, replacing
from multitask.reading import sha256
from multitask.spec import InputError

BEST = "macro_f1"  # the key for all tasks together; the key for one task is `artist/macro_f1`
KEPT = 2
FORMAT = 2  # of progress.json; incremented when the old format would be misread
VARIABLES, PROGRESS, CHECKSUMS = "variables.npz", "progress.json", "sha256.json"


@dataclass
class Progress:
    """The position of a run, and its state between epochs; each checkpoint saves all of it.

    Attributes:
        phase: the current phase; `phase_epoch` counts its epochs.
        epoch: epochs done, over all phases; the key of the input's random numbers.
        phase_epoch: epochs done in this phase.
        step: steps done in the current epoch.
        finished: phases that are finished.
        best: name -> best score: `macro_f1` over all tasks, and each task's `{task}/macro_f1`.
        best_epoch: name -> the epoch (over all phases, from 1) of its best score.
        waited: epochs since the best `macro_f1`.
        plateau_waited: epochs since the best `macro_f1` or the last reduction.
        plateau: the factor on every learning rate.
        on_maps: whether the current phase trains on cached maps of frozen blocks.
        history: one row per epoch.
    """

    phase: str = ""
    epoch: int = 0
    phase_epoch: int = 0
    step: int = 0
    finished: list[str] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: dict[str, int] = field(default_factory=dict)
    waited: int = 0
    plateau_waited: int = 0
    plateau: float = 1.0
    on_maps: bool = False
    history: list[dict] = field(default_factory=list)

    @property
    def in_phase(self) -> bool:
        """Whether the current phase has begun and is not finished."""
        return self.phase != "" and self.phase not in self.finished


@dataclass(frozen=True)
class Checkpoint:
    """The point that a run resumes from.

    Attributes:
        folder: folder of the checkpoint; None: nothing has been saved yet.
        progress: the saved progress; a new one if the folder is None.
        damaged: newer checkpoints that cannot be used, and why, one line each.
    """

    folder: Path | None
    progress: Progress
    damaged: tuple[str, ...] = ()


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoints, the newest last."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def save_checkpoint(
    folder: Path,
    variables: Sequence[keras.Variable],
    progress: Progress,
    metrics: Sequence[np.ndarray] = (),
) -> None:
    """Write the next checkpoint atomically, and remove those before the last two.

    Args:
        folder: the folder of all checkpoints.
        variables: weights, seeds and the optimizer's state, in an order that is the same in every
            process.
        progress: its `step` is the step of the epoch that the variables belong to.
        metrics: values of the metrics' variables, if in the middle of an epoch.
    """
    older = _folders(folder)
    number = int(older[-1].name) + 1 if older else 1
    with replacing(folder / f"{number:06d}") as temporary:
        temporary.mkdir()
        arrays = {f"variable_{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        arrays |= {f"metric_{i}": value for i, value in enumerate(metrics)}
        np.savez(temporary / VARIABLES, **arrays)
        content = {"format": FORMAT} | dataclasses.asdict(progress)
        (temporary / PROGRESS).write_text(json.dumps(content))
        sums = {name: sha256(temporary / name) for name in (VARIABLES, PROGRESS)}
        (temporary / CHECKSUMS).write_text(json.dumps(sums))
    drop_older_checkpoints(folder)


def drop_older_checkpoints(folder: Path) -> None:
    """Remove all but the last two checkpoints; a killed process may have left more."""
    for path in _folders(folder)[:-KEPT]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path) -> Checkpoint:
    """Find the newest undamaged checkpoint.

    Raises:
        InputError: every checkpoint is damaged, or the newest has another format.
    """
    damaged = []
    for path in reversed(_folders(folder)):
        try:
            for name, expected in read_json(path / CHECKSUMS).items():
                if sha256(path / name) != expected:
                    raise ValueError(f"{name} does not match its checksum")
            content = read_json(path / PROGRESS)
            written = content.pop("format", 1)
            if written != FORMAT:
                raise InputError(
                    f"{path}: a checkpoint in format {written}, this version reads {FORMAT}; "
                    "resume with the version that wrote it, or train in another workdir"
                )
            progress = Progress(**content)
            progress = TypeAdapter(Progress).validate_python(vars(progress))
        except InputError:
            raise
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).split("\n")[0]
            damaged.append(f"{path}: a damaged checkpoint ({reason})")
        else:
            return Checkpoint(path, progress, tuple(damaged))
    if damaged:
        raise InputError(
            f"{damaged[0]}, and no older one is whole; remove {folder} to train from the start"
        )
    return Checkpoint(None, Progress())


def restore_variables(folder: Path, variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Assign a checkpoint's values to the variables, all or none; return those of the metrics.

    Raises:
        InputError: the file is damaged or of another model.
    """
    path = folder / VARIABLES
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values, metrics = (
                [arrays[f"{kind}_{i}"] for i in range(sum(f.startswith(kind) for f in arrays))]
                for kind in ("variable", "metric")
            )
        if [v.shape for v in values] != [tuple(v.shape) for v in variables]:
            raise ValueError("its variables are those of another model")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be resumed: {error}") from None
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return metrics
