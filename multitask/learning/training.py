"""From a spec and a folder of data to trained models: the whole of `multitask train`'s work."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from multitask.data.mixing import build_mixing
from multitask.data.pipeline import evaluation_dataset, training_dataset
from multitask.data.records import (
    NEAR_DUPLICATES,
    Prepared,
    describe_table,
    is_whole,
    prepare,
)
from multitask.data.sampling import describe_sampler, row_chances
from multitask.data.table import SELECTION, TRAIN, Table, class_weights, read_classes
from multitask.files import replacing
from multitask.learning.backend import be_deterministic, has_accelerator
from multitask.learning.balancing import build_balancing
from multitask.learning.callbacks import (
    Checkpointer,
    Console,
    EpochEnd,
    EpochMemory,
    StepCounter,
    StopOnNonFinite,
    noting_signals,
    say,
)
from multitask.learning.checkpoints import (
    BEST,
    Checkpoint,
    Progress,
    find_checkpoint,
    save_checkpoint,
)
from multitask.learning.distribution import ALONE, Distribution, check_distribution
from multitask.learning.features import Features, cache_features, synthetic_rows, wants_cache
from multitask.learning.losses import build_losses
from multitask.learning.phases import (
    PhaseModel,
    contrastive_weights,
    prepare_phase,
    seed_phase,
    wanted_phases,
)
from multitask.learning.schedules import build_schedule
from multitask.model.network import build_network, load_network, parameter_table, parts
from multitask.model.trunks import check_trunk, merged_frozen_count
from multitask.run import Run, check_same_data, check_workdir, start_run
from multitask.spec import PHASES, DataSpec, InputError, SpecError


@dataclass(frozen=True)
class TrainResult:
    """What came of a training.

    Attributes:
        run: the workdir.
        table: what was trained on.
        history: one row an epoch, over all phases.
        best: `macro_f1` and each task's `artist/macro_f1` -> the best score on the selection split.
        best_epoch: the same -> its epoch, over all phases, from 1.
        trained: whether this call trained, or found everything done.
    """

    run: Run
    table: Table
    history: pd.DataFrame
    best: dict[str, float]
    best_epoch: dict[str, int]
    trained: bool


def train(
    spec: DataSpec,
    data_dir: Path,
    workdir: Path,
    *,
    records_dir: Path | None = None,
    phase: str = "all",
    init_from: Path | None = None,
    per_task_best: bool = True,
    checkpoint_minutes: float = 10.0,
    deterministic: bool | None = None,
    distribution: Distribution = ALONE,
    tell: Callable[[str], None] = say,
) -> TrainResult:
    """Train the one model, or go on exactly where the workdir's run was left.

    Args:
        spec: with the flags' overrides.
        data_dir: what the spec's paths start at.
        workdir: a new folder, or one with a run of the same settings.
        records_dir: where prepared records lie; None: `records` in data_dir.
        phase: `heads`, `finetune` or `all`.
        init_from: a `.keras` model that `finetune` starts from.
        per_task_best: save each task's own best epoch too.
        checkpoint_minutes: from one checkpoint to the next; each epoch ends with one, too.
        deterministic: the same bits for the same seed; None: where that costs nothing, on a CPU.
        distribution: over which devices and processes.
        tell: shows a line.

    Raises:
        InputError: anything that the user gave is wrong; nothing was written then.
        RunError: the loss is not finite.
    """
    going_on = check_workdir(workdir, spec)
    found = find_checkpoint(workdir / "checkpoint") if going_on else Checkpoint(None, Progress())
    progress = found.progress
    for line in found.damaged:
        tell(f"{line}; going on from the one before")
    todo = [p for p in wanted_phases(spec, phase) if p not in progress.finished]
    if PHASES[1] in progress.finished:
        todo = []
    check_spec(spec)
    check_distribution(spec, distribution)
    asked = [spec.to_dict(), phase, found.folder.name if found.folder else None]
    distribution.agree("what to train", json.dumps(asked))
    be_deterministic(not has_accelerator() if deterministic is None else deterministic)
    if not data_dir.is_dir():
        raise InputError(f"--data_dir: {data_dir}: is no folder")
    classes = {task.name: read_classes(data_dir / task.classes) for task in spec.tasks}
    with distribution.scope():
        network = _first_network(spec, classes, workdir, progress, todo, phase, init_from)
    if network is not None:  # a depth beyond the trunk is told now, not after the first phase
        merged_frozen_count(spec, parts(network)[0])

    prepared = prepare(
        spec,
        data_dir,
        records_dir,
        check=functools.partial(check_same_data, workdir) if going_on else None,
        tell=tell,
    )
    table = prepared.table
    weights = {
        task.name: class_weights(
            table.labels_of(task.name, TRAIN),
            len(classes[task.name]),
            exponent=task.class_weight_exponent,
        )
        for task in spec.tasks
    }
    distribution.agree("pictures and labels", prepared.fingerprint)
    run = Run(workdir, spec, data_dir)
    if distribution.writes:
        start_run(workdir, spec, data_dir, fingerprint=prepared.fingerprint)
        with replacing(workdir / "left_out.csv") as temporary:
            table.left_out_frame().to_csv(temporary, index=False)
        if prepared.near_duplicates is not None:
            with replacing(workdir / NEAR_DUPLICATES) as temporary:
                prepared.near_duplicates.to_csv(temporary, index=False)
    for line in [*describe_table(table), *describe_sampler(table, spec)]:
        tell(line)
    for name in todo:
        network = _train_phase(
            run,
            prepared,
            network,
            found if name == progress.phase else Checkpoint(None, progress),
            name,
            weights,
            per_task_best=per_task_best,
            checkpoint_minutes=checkpoint_minutes,
            distribution=distribution,
            tell=tell,
        )
    return TrainResult(
        run,
        table,
        pd.DataFrame(progress.history),
        progress.best,
        progress.best_epoch,
        bool(todo),
    )


def check_spec(spec: DataSpec) -> None:
    """Everything of a spec that only its rooms know, before any work."""
    check_trunk(spec.trunk, place=spec.place(None, "trunk"))
    build_schedule(spec.trunk.schedule, place=spec.place(None, "trunk.schedule"), steps_per_epoch=1)
    for task in spec.tasks:
        build_schedule(task.schedule, place=spec.place(task.name, "schedule"), steps_per_epoch=1)
    build_balancing(
        spec.balancing,
        {task.name: task.weight for task in spec.tasks},
        place=spec.place(None, "balancing"),
    )
    wants_cache(spec)
    if spec.mix is not None and contrastive_weights(spec):
        raise SpecError(
            f"{spec.place(None, 'contrastive')}: mixed pictures are of no one class; leave out "
            "mix or contrastive"
        )
    build_losses(spec, {task.name: np.ones(1, np.float32) for task in spec.tasks})
    build_mixing(spec)
    row_chances(np.zeros((1, len(spec.tasks)), np.int32), spec)


def _first_network(
    spec: DataSpec,
    classes: dict[str, tuple[str, ...]],
    workdir: Path,
    progress: Progress,
    todo: list[str],
    phase: str,
    init_from: Path | None,
) -> keras.Model | None:
    """The network that the first phase to do starts with; None where nothing is to be done."""
    if not todo:
        return None
    keras.utils.set_random_seed(spec.seed)
    best = Run(workdir, spec, Path()).best_model
    if todo[0] == progress.phase and progress.in_phase:
        # Its variables come from the checkpoint; no weights need to be fetched again.
        trunk = spec.trunk.model_copy(update={"weights": "none"})
        return build_network(spec.model_copy(update={"trunk": trunk}), classes)
    if init_from is not None:
        if phase != PHASES[1]:
            raise InputError("--init_from: is for --phase=finetune alone")
        return load_network(init_from, spec, classes)
    if todo[0] == PHASES[1] and (spec.phases.heads.epochs or phase != "all"):
        if not best.is_file() and phase != "all":
            first = "--phase=heads (or all) first" if spec.phases.heads.epochs else "--phase=all"
            raise InputError(
                f"--phase=finetune: {workdir} has no model of the phase heads to start from; "
                f"train with {first}, or name one with --init_from=MODEL"
            )
        return _load_best(best, spec, classes)
    return build_network(spec, classes)


def _load_best(path: Path, spec: DataSpec, classes: dict[str, tuple[str, ...]]) -> keras.Model:
    """The model that a phase starts with; the same, down to the seeds of dropout (which the file
    does not hold), whether this process trained it or an earlier one."""
    keras.utils.set_random_seed(spec.seed)
    return load_network(path, spec, classes)


def _train_phase(
    run: Run,
    prepared: Prepared,
    network: keras.Model,
    found: Checkpoint,
    phase: str,
    weights: dict[str, np.ndarray],
    *,
    per_task_best: bool,
    checkpoint_minutes: float,
    distribution: Distribution,
    tell: Callable[[str], None],
) -> keras.Model:
    """Train one phase to its end and return the network that the next one starts with."""
    spec, table, progress = run.spec, prepared.table, found.progress
    going_on = progress.phase == phase and progress.in_phase
    if not going_on:
        progress.phase, progress.phase_epoch, progress.step = phase, 0, 0
        seed_phase(spec, phase)
    cached = phase == PHASES[0] and wants_cache(spec)
    rows = len(table.rows(TRAIN)) + (synthetic_rows(table, spec) if cached else 0)
    steps = -(-rows // spec.batch_size)
    with distribution.scope():
        phase_model = prepare_phase(
            network,
            spec,
            phase,
            class_weights=weights,
            steps_per_epoch=steps,
            plateau=progress.plateau,
            cached=cached,
        )
        metrics = phase_model.restore(found.folder) if going_on else []
    if not going_on and distribution.writes:
        # From now on nothing is read again that this phase began with.
        save_checkpoint(run.checkpoint, phase_model.variables, progress)
    _tell_phase(phase_model, phase, steps, progress, tell)
    try:
        features = cache_features(network, prepared, spec, tell=tell) if cached else None
        with noting_signals() as noted:
            callbacks = [StopOnNonFinite(progress)]
            counting = {"noted": noted, "metrics": metrics}
            if distribution.writes:
                callbacks += [
                    EpochEnd(run, progress, phase_model, per_task=per_task_best),
                    Console(progress, spec.task_names, steps, rows),
                    Checkpointer(
                        run, progress, phase_model, minutes=checkpoint_minutes, **counting
                    ),
                ]
            else:
                callbacks += [
                    EpochMemory(spec, progress, phase_model),
                    StepCounter(progress, **counting),
                ]
            source = prepared if features is None else features
            with distribution.scope():
                _fit(phase_model.model, source, spec, progress, steps, callbacks, distribution)
    except tf.errors.OpError:
        # Keras' message would not say that it was the records.
        if is_whole(prepared.builder):
            raise
        raise InputError(
            f"{prepared.folder}: the prepared records were changed or removed in training; "
            "the same command prepares them again and goes on"
        ) from None
    if progress.waited >= spec.early_stopping.patience:
        tell(f"Stopped early: no better epoch in {progress.waited}.")
        progress.waited = progress.plateau_waited = 0
    progress.finished.append(phase)
    if distribution.writes:
        save_checkpoint(run.checkpoint, phase_model.variables, progress)
    distribution.agree(f"the end of phase {phase}", json.dumps(progress.best))
    if BEST in progress.best_epoch:
        tell(f"Best epoch so far: {progress.best_epoch[BEST]}.")
    if phase == PHASES[0] and run.best_model.is_file():
        with distribution.scope():
            return _load_best(run.best_model, spec, table.classes)
    phase_model.model.optimizer.use_averages(True)
    return phase_model.plain


def _fit(
    model: keras.Model,
    source: Prepared | Features,
    spec: DataSpec,
    progress: Progress,
    steps: int,
    callbacks: list[keras.callbacks.Callback],
    distribution: Distribution,
) -> None:
    """Go on at `progress` to the end of its phase; `callbacks` keep it up to date."""
    epochs = getattr(spec.phases, progress.phase).epochs
    shard = distribution.shard
    if isinstance(source, Features):
        training, of_selection = source.training_dataset, source.selection_dataset
        rows = len(source.selection)
    else:
        training = functools.partial(training_dataset, source)
        of_selection = functools.partial(evaluation_dataset, source, split=SELECTION)
        rows = len(source.table.rows(SELECTION))
    selection = distribution.feed(of_selection(spec, shard=shard)) if rows else None
    if progress.step == steps:  # what is left of the epoch is its end
        _end_epoch(model, selection, progress, callbacks)
    while progress.phase_epoch < epochs and progress.waited < spec.early_stopping.patience:
        place = {"first_epoch": progress.epoch, "first_step": progress.step}
        model.fit(
            distribution.feed(training(spec, shard=shard, **place)),
            initial_epoch=progress.phase_epoch,
            # The rest of an epoch is shorter than the others, so it is a `fit` of its own.
            epochs=progress.phase_epoch + 1 if progress.step else epochs,
            steps_per_epoch=steps - progress.step,
            validation_data=selection,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,
        )


def _end_epoch(
    model: keras.Model,
    selection: tf.data.Dataset | None,
    progress: Progress,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """What `fit` does after the last step of an epoch."""
    epoch = progress.phase_epoch
    every = keras.callbacks.CallbackList(callbacks, model=model, epochs=epoch + 1)
    every.on_epoch_begin(epoch)
    logs = model.get_metrics_result()
    logs = {name: float(value) for name, value in logs.items()}
    if selection is not None:
        scores = model.evaluate(selection, callbacks=every, return_dict=True, verbose=0)
        logs |= {f"val_{name}": value for name, value in scores.items()}
    every.on_epoch_end(epoch, logs)


def _tell_phase(
    prepared: PhaseModel,
    phase: str,
    steps: int,
    progress: Progress,
    tell: Callable[[str], None],
) -> None:
    """The table of what is trainable, and how the epoch lines read."""
    rows = parameter_table(prepared.plain)
    width = max(len(name) for name, *_ in rows)
    tell("")
    tell(f"Phase {phase}: the first {prepared.frozen} trunk layers are frozen")
    tell(f"{'part':<{width}}  {'layers':>6}  {'trained':>7}  {'parameters':>12}  {'trainable':>12}")
    totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    for name, layers, trained, parameters, trainable in [*rows, ("total", *totals)]:
        tell(f"{name:<{width}}  {layers:>6}  {trained:>7}  {parameters:>12,}  {trainable:>12,}")
    again = ""
    if progress.phase_epoch or progress.step:
        again = f", going on after step {progress.step} of epoch {progress.phase_epoch + 1}"
    tell(
        f"{steps} steps an epoch{again}. A task's figures: top-1/macro-F1 in training → on the "
        "selection split; * is the best so far."
    )
