"""The results of a search: trials.csv, tuning_history.png, best.toml and the console's table."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask.annexes.tune.space import Dimension, with_values
from multitask.annexes.tune.trial import COMPLETE
from multitask.errors import RunError, counted
from multitask.files import replacing
from multitask.learning.checkpoints import BEST
from multitask.pages.curves import tuning_history
from multitask.spec import DataSpec

logger = logging.getLogger(__name__)

TRIALS, PLOT, BEST_SPEC = "trials.csv", "tuning_history.png", "best.toml"
SHOWN = 10  # trials in the table at the end
OUTCOME = "outcome"  # a trial's attribute in the study


@dataclass(frozen=True)
class TuneResult:
    """The result of a search.

    Attributes:
        folder: `tune` in the workdir.
        trials: one row per trial: `trial`, `state`, `score` (NaN if there is none), `epoch`
            (of the score), `epochs`, `seconds`, and each dimension by its name.
        best: the spec of the best complete trial.
    """

    folder: Path
    trials: pd.DataFrame
    best: DataSpec


def finished_trials(study: Any) -> list:
    """Optuna's trials with an outcome, in order; an index of this list is a trial's number."""
    return [trial for trial in study.get_trials(deepcopy=False) if OUTCOME in trial.user_attrs]


def best_number(finished: Sequence) -> int | None:
    """The number of the best complete trial, on a tie the earliest; None if there is none."""
    outcomes = [trial.user_attrs[OUTCOME] for trial in finished]
    complete = [n for n, outcome in enumerate(outcomes) if outcome["state"] == COMPLETE]
    return max(complete, key=lambda n: (outcomes[n]["score"], -n), default=None)


def metric_name(metric: str) -> str:
    """The name of a searched metric for display, e.g. `artist macro-F1`."""
    return "macro-F1" if metric == BEST else f"{metric.split('/')[0]} macro-F1"


def trials_frame(study: Any, space: Sequence[Dimension]) -> pd.DataFrame:
    """The finished trials of a study, as `TuneResult.trials`."""
    rows = []
    for number, trial in enumerate(finished_trials(study)):
        row = {"trial": number} | trial.user_attrs[OUTCOME]
        rows.append(row | {d.name: d.rounded(trial.params[d.name]) for d in space})
    frame = pd.DataFrame(rows)
    return frame.astype({"score": float, "epoch": "Int64"})


def write_report(
    study: Any, folder: Path, spec: DataSpec, space: Sequence[Dimension], metric: str
) -> TuneResult:
    """Write the files of a search and log its table.

    Args:
        study: Optuna's study.
        folder: `tune` in the workdir.
        spec: the searched spec.
        space: its dimensions.
        metric: of the scores.

    Raises:
        RunError: no trial is complete.
    """
    finished = finished_trials(study)
    number = best_number(finished)
    if number is None:
        raise RunError(
            "no trial was completed: the loss of each was not finite. Lower the learning rates "
            "of the spec and search in another workdir"
        )
    frame = trials_frame(study, space)
    best = with_values(spec, space, finished[number].params)
    with replacing(folder / TRIALS) as temporary:
        frame.to_csv(temporary, index=False)
    tuning_history(
        folder / PLOT,
        frame["score"],
        frame["state"] != COMPLETE,
        title=spec.name,
        metric=metric_name(metric),
    )
    with replacing(folder / BEST_SPEC) as temporary:
        temporary.write_text(best_spec_text(best, spec, frame, number, metric), encoding="utf-8")
    complete = int((frame["state"] == COMPLETE).sum())
    for line in (
        "",
        *trials_table(frame, space, metric),
        "",
        f"Completed: {complete} of {counted(len(frame), 'trial')}.",
        "The score of the best of many trials is optimistic: the validation split chose it. The "
        "test set was not read.",
        f"Best spec: {folder / BEST_SPEC}",
        f"Trials:    {folder / TRIALS}, {folder / PLOT}",
    ):
        logger.info(line)
    return TuneResult(folder, frame, best)


def trials_table(frame: pd.DataFrame, space: Sequence[Dimension], metric: str) -> list[str]:
    """The spec and the best trials as columns, best first, with every number that differs.

    Args:
        frame: as `TuneResult.trials`.
        space: the dimensions in it.
        metric: of the scores.
    """
    complete = frame[(frame["state"] == COMPLETE) & (frame["trial"] > 0)]
    best = complete.sort_values("score", ascending=False, kind="stable").head(SHOWN)
    shown = pd.concat([frame.head(1), best])
    base = frame["score"].iloc[0]
    rows = [
        ("", ["spec", *(f"trial {number}" for number in best["trial"])]),
        (f"validation {metric_name(metric)}", [_three(score) for score in shown["score"]]),
        ("gain over the spec", ["", *(_three(s - base, sign="+") for s in best["score"])]),
        ("in epoch", ["n/a" if pd.isna(epoch) else str(epoch) for epoch in shown["epoch"]]),
        ("seconds", [f"{seconds:.1f}" for seconds in shown["seconds"]]),
    ]
    for dimension in space:
        if shown[dimension.name].nunique() > 1:
            rows.append((dimension.name, [f"{value:g}" for value in shown[dimension.name]]))
    width = max(len(name) for name, _ in rows)
    cell = max(len(text) for _, cells in rows for text in cells)
    return [
        f"{name:<{width}}  {'  '.join(f'{text:>{cell}}' for text in cells)}".rstrip()
        for name, cells in rows
    ]


def _three(score: float, sign: str = "") -> str:
    return "n/a" if np.isnan(score) else f"{score:{sign}.3f}"


def best_spec_text(
    best: DataSpec, spec: DataSpec, frame: pd.DataFrame, number: int, metric: str
) -> str:
    """A trial's spec as TOML, with a comment on its origin.

    Args:
        best: the trial's spec.
        spec: the searched spec.
        frame: as `TuneResult.trials`.
        number: of the trial.
        metric: of the scores.
    """
    row, base = frame.iloc[number], _three(frame["score"].iloc[0])
    source = " ".join(spec.source_file.split())  # a file name may contain a line break
    comment = [
        f"Trial {number}, the best of {counted(len(frame), 'trial')} of `multitask tune` with "
        "the spec",
        f"{source}.",
        f"{metric_name(metric)} on the validation split: {row['score']:.3f} after epoch "
        f"{row['epoch']} of the phase heads,",
        f"on cached features; the unchanged spec had {base}. The same split chose the trial, so",
        "this is optimistic; `multitask evaluate` measures it on the test set.",
    ]
    head = "".join(f"# {line}\n" for line in comment)
    return f"{head}\n{best.to_toml()}"
