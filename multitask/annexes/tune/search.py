"""The search of `multitask tune`, over the heads' settings on cached features.

Its files:

  WORKDIR/tune/
      config.json           the spec, the metric and the searched groups
      study.db              every trial, as Optuna stores them
      trials.csv            every trial, written at the end
      tuning_history.png    the scores of the trials
      best.toml             the best trial as a spec

A trial is the phase `heads` with some of the tasks' numbers changed. Trial 0 changes none, and has
exactly the scores of a training with the spec.
"""

import dataclasses
import functools
import logging
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multitask.annexes.extensions import build_extensions
from multitask.annexes.tune.report import (
    OUTCOME,
    TuneResult,
    best_number,
    finished_trials,
    metric_name,
    write_report,
)
from multitask.annexes.tune.space import GROUPS, Dimension, lower_first, search_space, with_values
from multitask.annexes.tune.trial import COMPLETE, Outcome, TrialTrainer
from multitask.backend import be_deterministic, has_accelerator
from multitask.data.records import PreparedData, describe_table, prepare
from multitask.data.run_table import with_class_names
from multitask.data.table import TRAIN, VALIDATION, Table, hold_out_validation
from multitask.disk import disk_error, writing
from multitask.errors import counted
from multitask.files import locked
from multitask.learning.checkpoints import BEST
from multitask.learning.features import cache_features
from multitask.learning.training import check_spec
from multitask.model.network import build_heads, computing_in, connect
from multitask.model.trunks import build_trunk
from multitask.run import check_same_data, check_workdir, package_versions, write_config
from multitask.spec import DataSpec, InputError, SpecError, expected, field_of, install, override

logger = logging.getLogger(__name__)

FOLDER, STUDY, KIND = "tune", "study.db", "search"
# A trial's first epoch is a poor indicator of its result, and a median needs five scores.
PRUNE_AFTER_EPOCHS, PRUNE_AFTER_TRIALS = 1, 5
SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # suggested shares of the validation split


def tune(
    spec: DataSpec,
    data_dir: Path,
    workdir: Path,
    *,
    records_dir: Path | None = None,
    trials: int = 50,
    minutes: float = 0.0,
    metric: str = BEST,
    groups: Sequence[str] = tuple(GROUPS),
) -> TuneResult:
    """Search a spec's settings, or resume the workdir's search.

    The trials are sampled by TPE (Bergstra et al. 2011). Each depends only on the seed, its number
    and the earlier scores, so a resumed search has the same trials. A trial whose best score is
    below the median of the others' at its epoch is pruned.

    Args:
        spec: with the flags' overrides.
        data_dir: the folder that the spec's paths start at.
        workdir: a folder, new or with a search of the same settings.
        records_dir: folder of the prepared records; None: `records` in data_dir.
        trials: total number, including the trials of earlier calls.
        minutes: no further trial starts after this time; 0: no limit.
        metric: of the validation split: `macro_f1`, the mean of all tasks' macro-F1, or a task's
            name for its macro-F1 (or `artist/macro_f1`, which a task called `macro_f1` needs).
        groups: searched groups, names of GROUPS; or `all` alone.

    Raises:
        InputError: the user's input is wrong, or a package is missing.
        RunError: no trial was completed.
    """
    optuna, folder = _optuna(), workdir / FOLDER
    spec = with_class_names(_tunable(spec), data_dir, folder)
    groups = tuple(GROUPS) if list(groups) == ["all"] else groups
    space, settings = search_space(spec, groups), {"metric": metric, "search": sorted(set(groups))}
    metric = _score_name(spec, metric)
    _check_is_folder(workdir)
    resumed = check_workdir(folder, spec, kind=KIND, **settings)
    check_spec(spec, build_extensions(spec))
    be_deterministic(not has_accelerator())
    check_data = functools.partial(check_same_data, folder, kind=KIND) if resumed else None
    prepared = prepare(spec, data_dir, records_dir, check=check_data)
    _check_validation(spec, prepared.table, metric)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is searching in {folder}; waiting for it …"
    with writing(folder), locked(folder / ".lock", lambda: logger.info(waiting)):
        check_workdir(folder, spec, kind=KIND, **settings)  # another process may have begun
        write_config(
            folder,
            spec,
            data_dir,
            fingerprint=prepared.fingerprint,
            versions=package_versions() | {"optuna": optuna.__version__},
            **settings,
        )
        trainer = _make_trainer(spec, prepared)
        study = _open_study(folder / STUDY)
        _search(study, trainer, spec, space, metric, trials=trials, minutes=minutes)
        return write_report(study, folder, spec, space, metric)


# === Checks ===


def _optuna() -> Any:
    """Import Optuna, and check for the writer of TOML. Only this command needs them."""
    try:
        import optuna
        import tomli_w  # noqa: F401 - the report needs it, at the end of the search
    except ImportError as error:
        raise InputError(f"multitask tune: needs {error.name}: {install('tune')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _tunable(spec: DataSpec) -> DataSpec:
    """The spec with cached features; SpecError if it cannot be trained on them."""
    if spec.mix is not None:
        raise SpecError(
            f"{spec.place(None, 'mix')}: mix blends images, and tune trains on cached "
            "features; remove it"
        )
    if spec.features.cache == "off":
        raise SpecError(f'{spec.place(None, "features.cache")}: "off": tune needs auto or on')
    if not spec.phases.heads.epochs:
        text = "0: a trial is the phase heads; expected 1 or more"
        raise InputError(text, field="phases.heads.epochs")
    if not spec.validation:
        raise InputError(
            "0: tune chooses by the validation split; expected more", field="validation"
        )
    return override(spec, {"features.cache": "on"})


def _score_name(spec: DataSpec, metric: str) -> str:
    """The key of the validation score that --metric names."""
    scores = {field_of(task, BEST): field_of(task, BEST) for task in spec.main_tasks}
    scores |= {task: field_of(task, BEST) for task in spec.main_tasks} | {BEST: BEST}
    if metric not in scores:
        choices = (BEST, *spec.main_tasks)
        text = f'"{metric}": {lower_first(expected(metric, choices))}'
        raise InputError(text, field="metric")
    return scores[metric]


def _check_is_folder(workdir: Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir}: is a file, not a folder", field="workdir")


def _check_validation(spec: DataSpec, table: Table, metric: str) -> None:
    """Raise InputError if the metric has no label in the validation split."""
    labelled = [task for task in spec.main_tasks if len(table.labels_of(task, VALIDATION))]
    if not labelled or metric not in (BEST, *(field_of(task, BEST) for task in labelled)):
        subject = (
            f'task "{metric.split("/")[0]}" has no label' if labelled else "no task has a label"
        )
        raise InputError(
            f"{spec.validation:g}: {subject} among the "
            f"{counted(len(table.rows(VALIDATION)), 'image')} of the validation split; "
            f"{_validation_remedy(spec, table, metric)}",
            field="validation",
        )


def _validation_remedy(spec: DataSpec, table: Table, metric: str) -> str:
    """Describe how to get validation labels: the smallest sufficient share, if there is one."""
    tasks = spec.main_tasks if metric == BEST else (metric.split("/")[0],)
    unsplit = dataclasses.replace(
        table, splits=np.where(table.splits == VALIDATION, TRAIN, table.splits)
    )
    for share in SHARES:
        split = hold_out_validation(unsplit, share, seed=spec.seed, tasks=spec.main_tasks)
        if any(len(split.labels_of(task, VALIDATION)) for task in tasks):
            return f"give a larger share, such as validation = {share:g}"
    counts = (np.bincount(unsplit.labels_of(task, TRAIN), minlength=1).max() for task in tasks)
    most = int(max(counts))
    return (
        f"the largest class of {' and '.join(tasks)} has {most} training "
        f"image{'s' if most != 1 else ''}, and the last image of a class is never held out: add "
        "images, or train without a search (multitask train)"
    )


# === Trials ===


def _make_trainer(spec: DataSpec, prepared: PreparedData) -> TrialTrainer:
    """Cache the trunk's features, and make the trainer of the trials."""
    for line in describe_table(prepared.table):
        logger.info(line)
    keras.utils.set_random_seed(spec.seed)
    with computing_in(spec.precision):
        trunk = build_trunk(spec.trunk, spec.image_size)
    random_state = random.getstate()
    shape = trunk.output_shape[1:]
    with computing_in(spec.precision):
        network = connect(trunk, build_heads(spec, shape, prepared.table.classes))
    features = cache_features(network, prepared, spec, extensions=build_extensions(spec))
    return TrialTrainer.from_features(
        spec, prepared.table, features, feature_shape=shape, random_state=random_state
    )


def _open_study(path: Path) -> Any:
    """Open Optuna's study.

    SQLite's transactions survive a process that is killed while it writes. In Optuna's own journal
    file, an incomplete last line makes the whole file unreadable.
    """
    import sqlalchemy  # a dependency of Optuna

    optuna = _optuna()
    # Hyperband would split the trials among several budgets and learn in each separately; a phase
    # of some epochs and some dozens of trials are too few for that.
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=PRUNE_AFTER_EPOCHS
    )
    url = sqlalchemy.URL.create("sqlite", database=str(path.resolve()))  # escapes the path
    try:
        return optuna.create_study(
            storage=url.render_as_string(),
            study_name=FOLDER,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )
    except sqlalchemy.exc.DatabaseError as error:
        if disk_error(error):
            raise
        raise InputError(f"{path}: not a study of Optuna ({error.orig})") from None


def _end_trial(study: Any, number: int, outcome: Mapping[str, Any] | None) -> None:
    """End one of Optuna's trials; a trial without an outcome does not count."""
    states = _optuna().trial.TrialState
    if outcome is None:
        study.tell(number, state=states.FAIL)
    elif outcome["state"] == COMPLETE:
        study.tell(number, outcome["score"])
    else:
        study.tell(number, state=states.PRUNED)


def _search(
    study: Any,
    trainer: TrialTrainer,
    spec: DataSpec,
    space: Sequence[Dimension],
    metric: str,
    *,
    trials: int,
    minutes: float,
) -> None:
    """Run the remaining trials of a study."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=[states.RUNNING]):  # of an interrupted process
        _end_trial(study, trial.number, trial.user_attrs.get(OUTCOME))
    done = len(finished_trials(study))
    if done:
        logger.info(f"Resuming after {counted(done, 'trial')}.")
    logger.info(f"Searching {counted(len(space), 'number')}: {_space_text(space)}")
    start = time.monotonic()
    for number in range(done, trials):
        if minutes and time.monotonic() - start > 60 * minutes:
            logger.info(f"Stopped after {minutes:g} minutes; the same command resumes the search.")
            break
        seed = np.random.SeedSequence([spec.seed, number]).generate_state(1)[0]
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        if number == 0 and not study.get_trials(states=[states.WAITING]):
            study.enqueue_trial({dimension.name: dimension.value for dimension in space})
        trial = study.ask()
        values = {dimension.name: dimension.suggest(trial) for dimension in space}
        outcome = trainer.run(
            with_values(spec, space, values),
            metric,
            should_prune=functools.partial(_should_prune, trial),
            label=f"trial {number}",
        )
        trial.set_user_attr(OUTCOME, dataclasses.asdict(outcome))
        _end_trial(study, trial.number, trial.user_attrs[OUTCOME])
        logger.info(_trial_line(number, trials, outcome, metric, finished_trials(study)))


def _should_prune(trial: Any, epoch: int, score: float) -> bool:
    trial.report(score, epoch)
    return trial.should_prune()


def _space_text(space: Sequence[Dimension]) -> str:
    fields: dict[str, list[str]] = {}
    for dimension in space:
        tasks = fields.setdefault(dimension.field, [])
        if dimension.task not in tasks:
            tasks.append(dimension.task)
    return "; ".join(f"{field} of {', '.join(tasks)}" for field, tasks in fields.items())


def _trial_line(number: int, trials: int, outcome: Outcome, metric: str, finished: list) -> str:
    """The console line of a trial."""
    width = len(str(trials))
    score = "  n/a" if outcome.score is None else f"{outcome.score:.3f}"
    epoch = f"in epoch {outcome.epoch}" if outcome.epoch else ""
    if outcome.state != COMPLETE:
        epoch = f"{outcome.state} after epoch {outcome.epochs}"
    best = best_number(finished)
    if best == number:
        comparison = "best so far"
    elif best is None:
        comparison = ""
    else:
        comparison = f"best {finished[best].user_attrs[OUTCOME]['score']:.3f} (trial {best})"
    return (
        f"trial {number:>{width}} of {trials}  {metric_name(metric)} {score}  {epoch:<20}  "
        f"{comparison:<21}  {outcome.seconds:.1f} s"
    )
