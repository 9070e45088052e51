"""What a run needs to go on exactly: the progress so far, and every variable, at any step.

  checkpoint/000012/variables.npz     all variables, in their order; then the metrics'
                    progress.json     a Progress
                    sha256.json       of the two files

The last two are kept. A file that was torn or changed is noticed by its checksum, and the
checkpoint before it is used.
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

BEST = "macro_f1"  # the key of the best over all tasks; of a task it is `artist/macro_f1`
KEPT = 2
FORMAT = 2  # of progress.json; goes up when a reader of the old one would be wrong
VARIABLES, PROGRESS, CHECKSUMS = "variables.npz", "progress.json", "sha256.json"


@dataclass
class Progress:
    """Where a run is and what it has seen; all of it is saved with each checkpoint.

    Attributes:
        phase: the phase that `phase_epoch` counts in.
        epoch: epochs done, over all phases; what the input's random numbers are keyed by.
        phase_epoch: epochs done in this phase.
        step: steps done in the epoch after those.
        finished: phases that are over.
        best: what -> its best score: `macro_f1` over all tasks, and each task's `artist/macro_f1`.
        best_epoch: what -> the epoch (over all phases, from 1) of its best score.
        waited: epochs since the best score over all.
        plateau_waited: epochs since the best score or the last reduction.
        plateau: the factor on every learning rate.
        history: one row an epoch.
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
    history: list[dict] = field(default_factory=list)

    @property
    def in_phase(self) -> bool:
        """Whether its phase has begun and is not over."""
        return self.phase != "" and self.phase not in self.finished


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        folder: None: nothing has been saved yet.
        progress: a fresh one there.
        damaged: newer ones that cannot be used, and why, one line each.
    """

    folder: Path | None
    progress: Progress
    damaged: tuple[str, ...] = ()


def _folders(folder: Path) -> list[Path]:
    """Checkpoints, the newest last."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def save_checkpoint(
    folder: Path,
    variables: Sequence[keras.Variable],
    progress: Progress,
    metrics: Sequence[np.ndarray] = (),
) -> None:
    """Write the next checkpoint, whole or not at all, and drop those before the last two.

    Args:
        folder: of all checkpoints.
        variables: weights, seeds and the optimizer's state, in an order that another process
            comes to as well.
        progress: its `step` says how far into an epoch the variables are.
        metrics: what the epoch's metrics have summed up so far.
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
    for path in [*older, folder / f"{number:06d}"][:-KEPT]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole.

    Raises:
        InputError: there are some, and none is; or it is of another version.
    """
    damaged = []
    for path in reversed(_folders(folder)):
        try:
            for name, wanted in read_json(path / CHECKSUMS).items():
                if sha256(path / name) != wanted:
                    raise ValueError(f"{name} is not what was written")
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
    """Give the variables the values of a checkpoint's, all or none; return the metrics'.

    Raises:
        InputError: the file is broken or of another model.
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
        raise InputError(f"{path}: cannot be gone on from: {error}") from None
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return metrics
