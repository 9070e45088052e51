"""A search over the heads' settings on cached features: the whole of `multitask tune`'s work.

  WORKDIR/tune/
      config.json           what is searched, and how
      study.db              every trial, as Optuna keeps them
      trials.csv            what `tune` ends with: every trial,
      tuning_history.png    their scores
      best.toml             and the best one as a spec

A trial is the phase `heads` with some of the tasks' numbers changed. Trial 0 changes none, and
gives the very scores of a training with the spec.
"""

import dataclasses
import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.data.records import describe_table, prepare
from multitask.data.table import (
    SELECTION,
    TRAIN,
    Table,
    class_weights,
    hold_out_selection,
    read_classes,
)
from multitask.figures import tuning_history
from multitask.files import (
    RunError,
    check_writable,
    disk_error,
    locked,
    read_json,
    replacing,
    write_json,
    writing,
)
from multitask.learning.backend import be_deterministic, has_accelerator
from multitask.learning.callbacks import (
    EpochMemory,
    NonFiniteLoss,
    StopOnNonFinite,
    say,
    selection_scores,
)
from multitask.learning.checkpoints import BEST, Progress
from multitask.learning.features import Features, cache_features
from multitask.learning.losses import LOSSES
from multitask.learning.phases import prepare_phase, seed_phase
from multitask.learning.schedules import SCHEDULES
from multitask.learning.training import check_spec
from multitask.model.heads import HEADS
from multitask.model.network import build_heads, computing_in, connect
from multitask.model.trunks import build_trunk
from multitask.run import package_versions, refuse_other_settings
from multitask.spec import (
    PHASES,
    DataSpec,
    InputError,
    SpecError,
    Task,
    check_kind,
    expected,
    field_of,
    install,
    override,
    parse_spec,
)

FOLDER, CONFIG, STUDY = "tune", "config.json", "study.db"
TRIALS, PICTURE, BEST_SPEC = "trials.csv", "tuning_history.png", "best.toml"
SHOWN = 10  # trials in the table at the end
HEADS_PHASE = PHASES[0]
# The first epoch of a trial says little of it, and five scores make a median.
PRUNE_AFTER_EPOCHS, PRUNE_AFTER_TRIALS = 1, 5
SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of the validation split, that are advised
OUTCOME = "outcome"  # of a trial, among its attributes in the study
COMPLETE, PRUNED, NOT_FINITE = "complete", "pruned", "loss not finite"


# === The space ===


@dataclass(frozen=True)
class Dimension:
    """One number of a task that is searched.

    Attributes:
        task: its name.
        field: of the task, e.g. `schedule.rate`.
        value: what the spec says; a whole number is searched among whole numbers.
        low, high: the least and the greatest value; both occur.
        log: draw its logarithm.
        entries: of a list, as the spec has it; empty: the field is a number.
        index: of the list's entry that is meant; None: the first, and the others keep their
            proportion to it.
    """

    task: str
    field: str
    value: float
    low: float
    high: float
    log: bool = False
    entries: tuple[float, ...] = ()
    index: int | None = None

    @property
    def name(self) -> str:
        return f"{self.task}.{self.field}" + ("" if self.index is None else f"[{self.index}]")

    def suggest(self, trial) -> float:
        """What Optuna's trial tries, as `rounded` has it."""
        draw = trial.suggest_int if isinstance(self.value, int) else trial.suggest_float
        return self.rounded(draw(self.name, self.low, self.high, log=self.log))

    def rounded(self, value: float) -> float:
        """To three digits, so that a spec can be read; the spec's own value stays as it is."""
        if isinstance(self.value, int) or value == self.value:
            return value
        return float(f"{value:.3g}")

    def write(self, task: dict[str, Any], value: float) -> None:
        """Put a value into a task of a spec's dict."""
        *tables, name = self.field.split(".")
        for table in tables:
            task = task[table]
        if not self.entries:
            task[name] = value
        elif self.index is None:
            task[name] = [max(1, round(x * value / self.value)) for x in self.entries]
        else:
            task[name] = list(task.get(name, self.entries))
            task[name][self.index] = value


def _head(spec: DataSpec, task: Task) -> list[Dimension]:
    """Widths from a quarter to twice the spec's; dropout from 0 to 0.6."""
    options = check_kind(task.head, HEADS, place=spec.place(task.name, "head"))
    found = []
    for option, value in options.items():
        field = f"head.{option}"
        entries = value if isinstance(value, tuple) else ()
        if option == "units" or option.endswith("_units"):
            first = entries[0] if entries else value
            low = max(1, round(first / 4))
            found.append(Dimension(task.name, field, first, low, 2 * first, True, entries))
        elif option == "dropout":
            for index, rate in enumerate(entries) if entries else [(None, value)]:
                high = max(0.6, rate)
                found.append(
                    Dimension(task.name, field, float(rate), 0.0, high, False, entries, index)
                )
    return found


def _rate(spec: DataSpec, task: Task) -> list[Dimension]:
    """The learning rate, from a tenth to ten times the spec's; period and decay stay."""
    options = check_kind(task.schedule, SCHEDULES, place=spec.place(task.name, "schedule"))
    if "rate" not in options:
        return []
    rate = options["rate"]
    return [Dimension(task.name, "schedule.rate", rate, rate / 10, rate * 10, log=True)]


def _loss(spec: DataSpec, task: Task) -> list[Dimension]:
    """The focal loss' gamma, from 0 to 4, and the class weights' exponent, from 0 to 1."""
    options = check_kind(task.loss, LOSSES, place=spec.place(task.name, "loss"))
    found = []
    if "gamma" in options:
        gamma = float(options["gamma"])
        found.append(Dimension(task.name, "loss.gamma", gamma, 0.0, max(4.0, gamma)))
    exponent = float(task.class_weight_exponent)
    found.append(Dimension(task.name, "class_weight_exponent", exponent, 0.0, max(1.0, exponent)))
    return found


def _weight(spec: DataSpec, task: Task) -> list[Dimension]:
    """The task's weight, from a quarter to four times the spec's."""
    weight = float(task.weight)
    if not weight:  # the task is switched off
        return []
    return [Dimension(task.name, "weight", weight, weight / 4, weight * 4, log=True)]


# What may be searched; a group is a function of a task and a line here.
GROUPS = {"heads": _head, "rates": _rate, "losses": _loss, "weights": _weight}


def search_space(spec: DataSpec, groups: Sequence[str]) -> list[Dimension]:
    """What is searched of a spec, task by task.

    Args:
        spec: whose values lie in the middle.
        groups: names of GROUPS.

    Raises:
        InputError: an unknown group, or nothing to search.
    """
    for group in groups:
        if group not in GROUPS:
            raise InputError(f'--search: "{group}": {_lower(expected(group, GROUPS))}')
    space = [
        dimension
        for task in spec.tasks
        for group, of_task in GROUPS.items()
        if group in groups
        for dimension in of_task(spec, task)
    ]
    if not space:
        raise InputError(
            f'--search: "{",".join(groups)}": the spec has nothing of it to search; expected some '
            f"of: {', '.join(GROUPS)}"
        )
    return space


def with_values(
    spec: DataSpec, space: Sequence[Dimension], values: Mapping[str, float]
) -> DataSpec:
    """The spec with other numbers.

    Args:
        spec: what the space is of.
        space: from `search_space`.
        values: name of a dimension -> its value.
    """
    raw = spec.to_dict()
    tasks = {task["name"]: task for task in raw["task"]}
    for dimension in space:
        dimension.write(tasks[dimension.task], dimension.rounded(values[dimension.name]))
    return parse_spec(raw, source=spec.source_file)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


# === The search ===


@dataclass(frozen=True)
class TuneResult:
    """What came of a search.

    Attributes:
        folder: `tune` in the workdir.
        trials: one row a trial: `trial`, `state`, `score` (NaN where there is none), `epoch`
            (of the score), `epochs`, `seconds`, and each dimension by its name.
        best: the spec of the best trial that was not pruned.
    """

    folder: Path
    trials: pd.DataFrame
    best: DataSpec


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
    tell: Callable[[str], None] = say,
) -> TuneResult:
    """Search a spec's settings, or go on where the workdir's search was left.

    The trials are drawn by TPE (Bergstra et al. 2011), each from the seed, its number and the
    scores before it alone: a search that was stopped goes on as if it had not been. A trial whose
    best score is below the median of the others' at its epoch is pruned. (Hyperband would share
    the trials among several budgets, and learn in each apart; a phase of some epochs and some
    dozens of trials are too few for that.)

    Args:
        spec: with the flags' overrides.
        data_dir: what the spec's paths start at.
        workdir: a folder, new or with a search of the same settings.
        records_dir: where prepared records lie; None: `records` in data_dir.
        trials: in all; those of earlier calls count.
        minutes: after so many no further trial begins; 0: no limit.
        metric: what is to be high on the selection split: `macro_f1`, the mean of all tasks'
            macro-F1, or a task's name, its own (or `artist/macro_f1`, which a task called
            `macro_f1` needs).
        groups: what is searched, names of GROUPS.
        tell: shows a line.

    Raises:
        InputError: anything that the user gave is wrong, or a package is missing.
        RunError: no trial came to its end.
    """
    optuna, _ = _packages()
    spec = _tunable(spec)
    space = search_space(spec, groups)
    scores = {field_of(task, BEST): field_of(task, BEST) for task in spec.task_names}
    scores |= {task: field_of(task, BEST) for task in spec.task_names} | {BEST: BEST}
    if metric not in scores:
        choices = (BEST, *spec.task_names)
        raise InputError(f'--metric: "{metric}": {_lower(expected(metric, choices))}')
    folder = workdir / FOLDER
    settings = {"spec": spec.to_dict(), "metric": metric, "search": sorted(set(groups))}
    _check_folder(workdir, settings)
    metric = scores[metric]
    check_spec(spec)
    if not data_dir.is_dir():
        raise InputError(f"--data_dir: {data_dir}: is no folder")
    be_deterministic(not has_accelerator())
    classes = {task.name: read_classes(data_dir / task.classes) for task in spec.tasks}
    keras.utils.set_random_seed(spec.seed)
    with computing_in(spec.precision):
        trunk = build_trunk(spec.trunk, spec.image_size)
    drawn = random.getstate()

    prepared = prepare(
        spec, data_dir, records_dir, check=lambda f: _check_data(workdir, f), tell=tell
    )
    _check_selection(spec, prepared.table, metric)
    for line in describe_table(prepared.table):
        tell(line)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is searching in {folder}; waiting for it …"
    with writing(folder), locked(folder / ".lock", lambda: tell(waiting)):
        _check_folder(workdir, settings)
        write_json(
            folder / CONFIG,
            settings
            | {
                "data_fingerprint": prepared.fingerprint,
                "spec_file": spec.source_file,
                "versions": package_versions() | {"optuna": optuna.__version__},
            },
        )
        shape = trunk.output_shape[1:]
        with computing_in(spec.precision):
            network = connect(trunk, build_heads(spec, shape, classes))
        features = cache_features(network, prepared, spec, tell=tell)
        del trunk, network
        bench = Bench.of(spec, prepared.table, features, shape, drawn)
        study = _open_study(folder / STUDY)
        _search(study, bench, spec, space, metric, trials, minutes, tell)
        return _report(study, folder, spec, space, metric, tell)


def _packages() -> tuple:
    """Optuna and the writer of TOML, which only this command needs."""
    try:
        import optuna
        import tomli_w
    except ImportError as error:
        raise InputError(f"multitask tune: needs {error.name}: {install('tune')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna, tomli_w


def _tunable(spec: DataSpec) -> DataSpec:
    """The spec, to learn from cached features; SpecError where it cannot."""
    if spec.mix is not None:
        raise SpecError(
            f"{spec.place(None, 'mix')}: mix blends pictures, and tune learns from cached "
            "features; leave it out"
        )
    if spec.features.cache == "off":
        raise SpecError(f'{spec.place(None, "features.cache")}: "off": tune needs auto or on')
    if not spec.phases.heads.epochs:
        raise InputError("--epochs_heads: 0: a trial is the phase heads; expected 1 or more")
    if not spec.selection:
        raise InputError("--selection: 0: tune chooses by the selection split; expected more")
    return override(spec, {"cache_features": ("features.cache", "on")})


def _read_config(workdir: Path) -> dict[str, Any] | None:
    path = workdir / FOLDER / CONFIG
    if not path.exists():
        return None
    try:
        config = read_json(path)
        return {name: config[name] for name in ("spec", "metric", "search", "data_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a search's configuration: {error}") from None


def _check_folder(workdir: Path, settings: dict[str, Any]) -> None:
    """InputError where the folder holds a search of other settings, or cannot be written."""
    folder = workdir / FOLDER
    for path in (workdir, folder):
        if path.exists() and not path.is_dir():
            raise InputError(f"--workdir: {path}: is a file, not a folder")
    check_writable(folder, flag="--workdir")
    there = _read_config(workdir)
    if there is not None:
        del there["data_fingerprint"]
        refuse_other_settings(workdir, there, settings, what="search")


def _check_data(workdir: Path, fingerprint: str) -> None:
    there = _read_config(workdir)
    if there is not None and there["data_fingerprint"] != fingerprint:
        raise InputError(
            f"--workdir: {workdir}: the pictures or labels have changed since this search began; "
            "name another folder, or put the data back"
        )


def _check_selection(spec: DataSpec, table: Table, metric: str) -> None:
    judged = [task for task in spec.task_names if len(table.labels_of(task, SELECTION))]
    if not judged or metric not in (BEST, *(field_of(task, BEST) for task in judged)):
        what = "no task" if not judged else f'task "{metric.split("/")[0]}"'
        has = "has a label" if not judged else "has no label"
        raise InputError(
            f"--selection: {spec.selection:g}: {what} {has} among the {len(table.rows(SELECTION))} "
            f"images of the validation split; {_larger_share(spec, table, metric)}"
        )


def _larger_share(spec: DataSpec, table: Table, metric: str) -> str:
    """What gives `tune` validation images: the least share that does, where one does."""
    tasks = spec.task_names if metric == BEST else (metric.split("/")[0],)
    undone = dataclasses.replace(
        table, splits=np.where(table.splits == SELECTION, TRAIN, table.splits)
    )
    for share in SHARES:
        drawn = hold_out_selection(undone, share, seed=spec.seed)
        if any(len(drawn.labels_of(task, SELECTION)) for task in tasks):
            return f"give a larger share, such as --selection={share:g}"
    counts = (np.bincount(undone.labels_of(task, TRAIN), minlength=1).max() for task in tasks)
    most = int(max(counts))
    return (
        f"the largest class of {' and '.join(tasks)} has {most} training "
        f"image{'s' if most != 1 else ''}, and the last image of a class is never held out: add "
        "images, or train without a search (multitask train)"
    )


def _open_study(path: Path):
    """Optuna's study. SQLite's transactions outlive a process that is killed while it writes; a
    torn last line of Optuna's own journal file would make that file unreadable."""
    import sqlalchemy  # which Optuna brings

    optuna, _ = _packages()
    url = sqlalchemy.URL.create("sqlite", database=str(path.resolve()))  # quotes what it must
    try:
        return optuna.create_study(
            storage=url.render_as_string(),
            study_name=FOLDER,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=PRUNE_AFTER_EPOCHS
            ),
        )
    except sqlalchemy.exc.DatabaseError as error:
        if disk_error(error):
            raise
        raise InputError(f"{path}: not a study of Optuna ({error.orig})") from None


def _finished(study) -> list:
    """Optuna's trials that have an outcome, in order; a place in this list is a trial's number."""
    return [t for t in study.get_trials(deepcopy=False) if OUTCOME in t.user_attrs]


def _tell(study, number: int, outcome: Mapping[str, Any] | None) -> None:
    """End one of Optuna's trials; one without an outcome counts for nothing."""
    optuna, _ = _packages()
    states = optuna.trial.TrialState
    if outcome is None:
        study.tell(number, state=states.FAIL)
    elif outcome["state"] == COMPLETE:
        study.tell(number, outcome["score"])
    else:
        study.tell(number, state=states.PRUNED)


def _search(
    study,
    bench: "Bench",
    spec: DataSpec,
    space: Sequence[Dimension],
    metric: str,
    trials: int,
    minutes: float,
    tell: Callable[[str], None],
) -> None:
    optuna, _ = _packages()
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=[states.RUNNING]):  # of a process that was stopped
        _tell(study, trial.number, trial.user_attrs.get(OUTCOME))
    done = len(_finished(study))
    if done:
        tell(f"Going on after {done} trials.")
    tell(f"Searching {len(space)} numbers: {_what(space)}")
    began = time.monotonic()
    for number in range(done, trials):
        if minutes and time.monotonic() - began > 60 * minutes:
            tell(f"Stopped after {minutes:g} minutes; the same command goes on.")
            break
        seed = np.random.SeedSequence([spec.seed, number]).generate_state(1)[0]
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        if number == 0 and not study.get_trials(states=[states.WAITING]):
            study.enqueue_trial({dimension.name: dimension.value for dimension in space})
        trial = study.ask()
        values = {dimension.name: dimension.suggest(trial) for dimension in space}
        outcome = bench.run(
            with_values(spec, space, values),
            metric,
            told=lambda epoch, score, trial=trial: _prune(trial, epoch, score),
            label=f"trial {number}",
        )
        trial.set_user_attr(OUTCOME, dataclasses.asdict(outcome))
        _tell(study, trial.number, trial.user_attrs[OUTCOME])
        tell(_line(number, trials, outcome, metric, _finished(study)))


def _prune(trial, epoch: int, score: float) -> bool:
    trial.report(score, epoch)
    return trial.should_prune()


def _what(space: Sequence[Dimension]) -> str:
    fields: dict[str, list[str]] = {}
    for dimension in space:
        tasks = fields.setdefault(dimension.field, [])
        if dimension.task not in tasks:
            tasks.append(dimension.task)
    return "; ".join(f"{field} of {', '.join(tasks)}" for field, tasks in fields.items())


def _best(finished: Sequence) -> int | None:
    """The number of the best complete trial; the earliest where scores are equal."""
    outcomes = [trial.user_attrs[OUTCOME] for trial in finished]
    complete = [n for n, outcome in enumerate(outcomes) if outcome["state"] == COMPLETE]
    return max(complete, key=lambda n: (outcomes[n]["score"], -n), default=None)


def _line(number: int, trials: int, outcome: "Outcome", metric: str, finished: list) -> str:
    width = len(str(trials))
    score = "  n/a" if outcome.score is None else f"{outcome.score:.3f}"
    said = f"in epoch {outcome.epoch}" if outcome.epoch else ""
    if outcome.state != COMPLETE:
        said = f"{outcome.state} after epoch {outcome.epochs}"
    best = _best(finished)
    if best == number:
        against = "best so far"
    elif best is None:
        against = ""
    else:
        against = f"best {finished[best].user_attrs[OUTCOME]['score']:.3f} (trial {best})"
    name = _metric_name(metric)
    return (
        f"trial {number:>{width}} of {trials}  {name} {score}  {said:<20}  {against:<21}  "
        f"{outcome.seconds:.1f} s"
    )


def _metric_name(metric: str) -> str:
    return "macro-F1" if metric == BEST else f"{metric.split('/')[0]} macro-F1"


# === One trial ===


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: COMPLETE, PRUNED or NOT_FINITE.
        score: the best epoch's; None where no epoch came to its end.
        epoch: the best, from 1.
        epochs: how many it had.
        seconds: that it took.
    """

    state: str
    score: float | None
    epoch: int | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What all trials share: features and labels, and the state in which heads are drawn.

    Attributes:
        table: labels, and the classes of each task.
        feature_shape: of the trunk's map, [height, width, channels].
        drawn: the state of Python's generator, which Keras' initializers draw their seeds from,
            after the trunk was made: a trial's heads start with the weights that `train` gives.
        train, selection: batches.
        steps: of an epoch.
    """

    table: Table
    feature_shape: tuple[int, ...]
    drawn: tuple
    train: tf.data.Dataset
    selection: tf.data.Dataset
    steps: int

    @classmethod
    def of(
        cls, spec: DataSpec, table: Table, features: Features, shape: tuple[int, ...], drawn: tuple
    ) -> "Bench":
        return cls(
            table,
            shape,
            drawn,
            features.training_dataset(spec),
            features.selection_dataset(spec),
            steps=-(-len(features.labels) // spec.batch_size),
        )

    def run(
        self, spec: DataSpec, metric: str, *, told: Callable[[int, float], bool], label: str
    ) -> Outcome:
        """Train the heads of a spec as `train` does in its phase `heads`, and keep nothing.

        Args:
            spec: one that differs in what a `Dimension` may change alone.
            metric: as of `tune`.
            told: called with each epoch (from 0) and its score; whether to prune.
            label: of the bar, on a terminal.
        """
        began = time.monotonic()
        keras.utils.clear_session()
        gc.collect()  # a model holds itself in circles
        # The features are there; `prepare_phase` asks for a network with a trunk, and gets one
        # that does nothing.
        inputs = keras.Input(self.feature_shape)
        trunk = keras.Model(inputs, keras.layers.Identity()(inputs), name="trunk")
        random.setstate(self.drawn)
        with computing_in(spec.precision):
            network = connect(trunk, build_heads(spec, self.feature_shape, self.table.classes))
        seed_phase(spec, HEADS_PHASE)
        prepared = prepare_phase(
            network,
            spec,
            HEADS_PHASE,
            class_weights={
                task.name: class_weights(
                    self.table.labels_of(task.name, TRAIN),
                    len(self.table.classes[task.name]),
                    exponent=task.class_weight_exponent,
                )
                for task in spec.tasks
            },
            steps_per_epoch=self.steps,
            cached=True,
        )
        progress = Progress(phase=HEADS_PHASE)
        epochs = spec.phases.heads.epochs
        state = COMPLETE
        with tqdm(
            total=epochs * self.steps, desc=label, unit=" steps", leave=False, disable=None
        ) as bar:
            watch = _Watch(progress, spec.task_names, metric, told, bar)
            try:
                prepared.model.fit(
                    self.train,
                    epochs=epochs,
                    steps_per_epoch=self.steps,
                    validation_data=self.selection,
                    callbacks=[
                        StopOnNonFinite(progress),
                        EpochMemory(spec, progress, prepared),
                        watch,
                    ],
                    verbose=0,
                    shuffle=False,
                )
            except NonFiniteLoss:
                state = NOT_FINITE
        if watch.pruned:
            state = PRUNED
        return Outcome(
            state,
            progress.best.get(metric),
            progress.best_epoch.get(metric),
            progress.epoch,
            time.monotonic() - began,
        )


class _Watch(keras.callbacks.Callback):
    """Tells each epoch's score, stops a trial that is to be pruned, moves the bar."""

    def __init__(
        self,
        progress: Progress,
        tasks: tuple[str, ...],
        metric: str,
        told: Callable[[int, float], bool],
        bar: tqdm,
    ):
        super().__init__()
        self.progress, self.tasks, self.metric = progress, tasks, metric
        self.told, self.bar = told, bar
        self.pruned = False

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step += 1
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        score = selection_scores(logs, self.tasks)[self.metric]
        over = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if self.told(epoch, float(score)) and not over:
            self.pruned = self.model.stop_training = True


# === What came of it ===


def trials_frame(study, space: Sequence[Dimension]) -> pd.DataFrame:
    """The finished trials of a study, as `TuneResult.trials`."""
    rows = []
    for number, trial in enumerate(_finished(study)):
        row = {"trial": number} | trial.user_attrs[OUTCOME]
        rows.append(row | {d.name: d.rounded(trial.params[d.name]) for d in space})
    frame = pd.DataFrame(rows)
    return frame.astype({"score": float, "epoch": "Int64"})


def _report(
    study,
    folder: Path,
    spec: DataSpec,
    space: Sequence[Dimension],
    metric: str,
    tell: Callable[[str], None],
) -> TuneResult:
    finished = _finished(study)
    number = _best(finished)
    if number is None:
        raise RunError(
            "no trial came to its end: the loss of each was not finite. Lower the learning rates "
            "of the spec and search in another workdir"
        )
    frame = trials_frame(study, space)
    best = with_values(spec, space, finished[number].params)
    with replacing(folder / TRIALS) as temporary:
        frame.to_csv(temporary, index=False)
    tuning_history(
        folder / PICTURE,
        frame["score"],
        frame["state"] != COMPLETE,
        title=spec.name,
        metric=_metric_name(metric),
    )
    with replacing(folder / BEST_SPEC) as temporary:
        temporary.write_text(best_spec_text(best, spec, frame, number, metric), encoding="utf-8")
    tell("")
    for line in trials_table(frame, space, metric):
        tell(line)
    tell("")
    tell(f"Of {len(frame)} trials {(frame['state'] == COMPLETE).sum()} came to their end.")
    tell(
        "The score of the best of many trials is optimistic: the selection split chose it. The "
        "exam was not read."
    )
    tell(f"Best spec: {folder / BEST_SPEC}")
    tell(f"Trials:    {folder / TRIALS}, {folder / PICTURE}")
    return TuneResult(folder, frame, best)


def trials_table(frame: pd.DataFrame, space: Sequence[Dimension], metric: str) -> list[str]:
    """The spec and the best trials beside it, best first, with every number that differs.

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
        (f"selection {_metric_name(metric)}", [_three(score) for score in shown["score"]]),
        ("more than the spec's", ["", *(_three(s - base, sign="+") for s in best["score"])]),
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
    """A trial's spec as TOML, with a comment that says what it came from.

    Args:
        best: the trial's spec.
        spec: what was searched.
        frame: as `TuneResult.trials`.
        number: of the trial.
        metric: of the scores.
    """
    row, base = frame.iloc[number], _three(frame["score"].iloc[0])
    source = " ".join(spec.source_file.split())  # a name may hold the end of a line
    comment = [
        f"Trial {number}, the best of {len(frame)} that `multitask tune` made of",
        f"{source}.",
        f"{_metric_name(metric)} on the selection split {row['score']:.3f} after epoch "
        f"{row['epoch']} of the phase heads, on",
        f"cached features; the spec as it was had {base}. The same split chose the trial, so",
        "this is optimistic; `multitask evaluate` examines it.",
    ]
    head = "".join(f"# {line}\n" for line in comment)
    return f"{head}\n{best.to_toml()}"
