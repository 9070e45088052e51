"""Train models from a spec and a folder of data: all the work of `multitask train`."""

import functools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from multitask.backend import be_deterministic, has_accelerator
from multitask.data.label_files import classes_of
from multitask.data.pipeline import evaluation_dataset, training_dataset
from multitask.data.records import (
    PreparedData,
    describe_table,
    is_whole,
    prepare,
)
from multitask.data.records_builder import NEAR_DUPLICATES
from multitask.data.run_table import with_class_names, write_run_table
from multitask.data.splitting import class_weights
from multitask.data.table import TRAIN, VALIDATION, Table
from multitask.files import check_is_folder, replacing
from multitask.learning.callbacks import (
    Checkpointer,
    Console,
    EpochRecorder,
    EpochTracker,
    StepCounter,
    StopOnNonFinite,
    collecting_signals,
)
from multitask.learning.checkpoints import (
    BEST,
    Checkpoint,
    Progress,
    drop_older_checkpoints,
    find_checkpoint,
    save_checkpoint,
)
from multitask.learning.co_occurrence import connect_answers
from multitask.learning.extensions import NO_EXTENSIONS, Extensions, check_extensions
from multitask.learning.feature_batches import Features
from multitask.learning.features import cache_features, cache_maps, wants_cache
from multitask.learning.frozen_maps import finetune_cut, phase_cut
from multitask.learning.losses import build_losses
from multitask.learning.phases import PhaseModel, prepare_phase, seed_phase
from multitask.learning.placement import ONE_DEVICE, Placement
from multitask.learning.schedules import build_schedule
from multitask.model.network import (
    build_network,
    load_network,
    parameter_table,
)
from multitask.model.trunks import check_trunk
from multitask.run import Run, check_same_data, check_workdir, start_run
from multitask.spec import PHASES, DataSpec, InputError, SpecError, wanted_phases

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training.

    Attributes:
        run: the workdir.
        table: the images and labels that were trained on.
        history: one row per epoch, over all phases.
        best: `macro_f1` and each task's `{task}/macro_f1` -> best score on the validation split.
        best_epoch: the same keys -> the epoch of that score, over all phases, from 1.
        trained: whether this call trained; False if everything was already done.
    """

    run: Run
    table: Table
    history: pd.DataFrame
    best: dict[str, float]
    best_epoch: dict[str, int]
    trained: bool


@dataclass(frozen=True)
class _Settings:
    """Settings that all phases of a training share; the fields are arguments of `train`."""

    per_task_best: bool
    checkpoint_minutes: float
    catch_signals: bool
    extensions: Extensions
    placement: Placement


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
    catch_signals: bool = False,
    extensions: Extensions = NO_EXTENSIONS,
    placement: Placement = ONE_DEVICE,
) -> TrainResult:
    """Train the one model, or resume the workdir's run exactly where it stopped.

    Args:
        spec: the spec, with the overrides of the flags.
        data_dir: the folder that the spec's paths are relative to.
        workdir: a new folder, or one with a run of the same settings.
        records_dir: folder of prepared records; None: `records` in data_dir.
        phase: `heads`, `finetune` or `all`.
        init_from: a `.keras` model that `finetune` starts from.
        per_task_best: save each task's own best epoch too.
        checkpoint_minutes: time between two checkpoints; each epoch also ends with one.
        deterministic: same bits for the same seed; None: only on a CPU, where it costs nothing.
        catch_signals: after SIGTERM or Ctrl-C, finish the step and save a checkpoint.
        extensions: built for this spec; required where it has an option of `extensions.FIELDS`.
        placement: devices and processes.

    Raises:
        InputError: an input is wrong; nothing has been written.
        RunError: the loss is not finite.
    """
    spec = with_class_names(spec, data_dir, workdir)
    checkpoint = _resume_point(workdir, spec)
    progress = checkpoint.progress
    todo = _phases_to_do(spec, phase, progress)
    check_spec(spec, extensions)
    placement.check(spec)
    facts = [spec.to_dict(), phase, checkpoint.folder.name if checkpoint.folder else None]
    placement.agree("what to train", json.dumps(facts))
    be_deterministic(not has_accelerator() if deterministic is None else deterministic)
    check_is_folder(data_dir, field="data_dir")
    classes = {task.name: classes_of(task, data_dir) for task in spec.tasks}
    with placement.scope():
        network = _first_network(spec, classes, workdir, progress, todo, phase, init_from)
    if network is not None:  # an impossible freeze depth is reported now, not after a phase
        finetune_cut(network, spec, extensions)
    run = Run(workdir, spec, data_dir)
    prepared = _prepare(run, records_dir, placement)
    _log_table(prepared.table, extensions)
    settings = _Settings(per_task_best, checkpoint_minutes, catch_signals, extensions, placement)
    for name in todo:
        start = checkpoint if name == progress.phase else Checkpoint(None, progress)
        network = _train_phase(run, prepared, network, start, name, settings)
    connect_answers(run, prepared, placement)
    history = pd.DataFrame(progress.history)
    return TrainResult(run, prepared.table, history, progress.best, progress.best_epoch, bool(todo))


def check_spec(spec: DataSpec, extensions: Extensions) -> None:
    """Check everything in a spec that `spec.py` cannot check, before any work.

    Raises:
        SpecError, InputError: with the place of the field.
    """
    check_trunk(spec.trunk, place=spec.place(None, "trunk"))
    build_schedule(spec.trunk.schedule, place=spec.place(None, "trunk.schedule"), steps_per_epoch=1)
    for task in spec.tasks:
        build_schedule(task.schedule, place=spec.place(task.name, "schedule"), steps_per_epoch=1)
    check_extensions(spec, extensions)
    if not any(task.weight for task in spec.tasks):
        raise SpecError(
            f"{spec.place(None, 'balancing')}: every task has the weight 0: there is nothing to "
            "learn"
        )
    wants_cache(spec, extensions)
    build_losses(spec, {task.name: np.ones(1, np.float32) for task in spec.tasks})


def _phases_to_do(spec: DataSpec, phase: str, progress: Progress) -> list[str]:
    """Return the phases that are not finished; none if the last one is finished."""
    if PHASES[1] in progress.finished:
        return []
    return [name for name in wanted_phases(spec, phase) if name not in progress.finished]


def _resume_point(workdir: Path, spec: DataSpec) -> Checkpoint:
    """Return the checkpoint to resume from; one without a folder for a new workdir."""
    if not check_workdir(workdir, spec):
        return Checkpoint(None, Progress())
    checkpoint = find_checkpoint(workdir / "checkpoint")
    for line in checkpoint.damaged:
        logger.info(f"{line}; resuming from the previous one")
    return checkpoint


def _prepare(run: Run, records_dir: Path | None, placement: Placement) -> PreparedData:
    """Prepare the records, and write the files that the workdir holds before the first step."""
    resumed = check_workdir(run.workdir, run.spec)
    prepared = prepare(
        run.spec,
        run.data_dir,
        records_dir,
        check=functools.partial(check_same_data, run.workdir) if resumed else None,
    )
    placement.agree("images and labels", prepared.fingerprint)
    if not placement.writes:
        return prepared
    start_run(run.workdir, run.spec, run.data_dir, fingerprint=prepared.fingerprint)
    drop_older_checkpoints(run.checkpoint)
    with replacing(run.workdir / "excluded.csv") as temporary:
        prepared.table.excluded_frame().to_csv(temporary, index=False)
    if run.spec.table is not None:
        write_run_table(prepared.merged, prepared.table, run.workdir)
    if prepared.near_duplicates is not None:
        with replacing(run.workdir / NEAR_DUPLICATES) as temporary:
            prepared.near_duplicates.to_csv(temporary, index=False)
    return prepared


def _first_network(
    spec: DataSpec,
    classes: dict[str, tuple[str, ...]],
    workdir: Path,
    progress: Progress,
    todo: list[str],
    phase: str,
    init_from: Path | None,
) -> keras.Model | None:
    """Return the network that the first unfinished phase starts with; None where all are done."""
    if not todo:
        return None
    keras.utils.set_random_seed(spec.seed)
    best = Run(workdir, spec, Path()).best_model
    if todo[0] == progress.phase and progress.in_phase:
        # All variables come from the checkpoint; no weights need to be fetched again.
        trunk = spec.trunk.model_copy(update={"weights": "none"})
        return build_network(spec.model_copy(update={"trunk": trunk}), classes)
    if init_from is not None:
        if phase != PHASES[1]:
            raise InputError("is for `phase=finetune` alone", field="init_from")
        return load_network(init_from, spec, classes)
    if todo[0] == PHASES[1] and (spec.phases.heads.epochs or phase != "all"):
        if not best.is_file() and phase != "all":
            first = "`phase=heads` (or all) first" if spec.phases.heads.epochs else "`phase=all`"
            raise InputError(
                f"finetune: {workdir} has no model of the phase heads to start from; "
                f"train with {first}, or name one with `init_from=MODEL`",
                field="phase",
            )
        return _load_best(best, spec, classes)
    return build_network(spec, classes)


def _load_best(path: Path, spec: DataSpec, classes: dict[str, tuple[str, ...]]) -> keras.Model:
    """Load the model that a phase starts with.

    The file does not contain the seeds of dropout. They are the same whether this process or an
    earlier one trained the model.
    """
    keras.utils.set_random_seed(spec.seed)
    return load_network(path, spec, classes)


def _train_phase(
    run: Run,
    prepared: PreparedData,
    network: keras.Model,
    checkpoint: Checkpoint,
    phase: str,
    settings: _Settings,
) -> keras.Model:
    """Train one phase to its end and return the network that the next one starts with."""
    spec, table, progress = run.spec, prepared.table, checkpoint.progress
    extensions, placement = settings.extensions, settings.placement
    resumed = progress.phase == phase and progress.in_phase
    if not resumed:
        progress.phase, progress.phase_epoch, progress.step = phase, 0, 0
        seed_phase(spec, phase)
    cached = phase == PHASES[0] and wants_cache(spec, extensions)
    cut = phase_cut(network, prepared, spec, progress, extensions, placement)
    rows = len(table.rows(TRAIN)) + (extensions.extra_rows.count(table) if cached else 0)
    steps = -(-rows // spec.batch_size)
    with placement.scope():
        phase_model = prepare_phase(
            network,
            spec,
            phase,
            class_weights=_class_weights(spec, table),
            steps_per_epoch=steps,
            plateau=progress.plateau,
            cached=cached,
            cut=cut,
            extensions=extensions,
        )
        from_file = checkpoint.folder if resumed else None
        metrics = phase_model.restore(from_file) if from_file else []
    if not resumed and placement.writes:
        # From now on the phase resumes from this checkpoint; its initial model is not read again.
        save_checkpoint(run.checkpoint, phase_model.variables, progress)
    _log_phase(phase_model, phase, steps, progress)
    try:
        source: PreparedData | Features = prepared
        if cached:
            source = cache_features(
                network, prepared, spec, extensions=extensions, placement=placement
            )
        elif cut:
            began = progress.epoch - progress.phase_epoch
            source = cache_maps(cut, prepared, spec, first_epoch=began, placement=placement)
        with collecting_signals(enabled=settings.catch_signals) as received:
            counting = {"received": received, "metrics": metrics}
            callbacks = _callbacks(run, progress, phase_model, steps, rows, settings, counting)
            with placement.scope():
                _fit(phase_model.model, source, spec, progress, steps, callbacks, settings)
    except tf.errors.OpError:
        # Keras' message would not say that the records are the cause.
        if is_whole(prepared.builder):
            raise
        raise InputError(
            f"{prepared.folder}: the prepared records were changed or removed during training; "
            "the same command prepares them again and resumes"
        ) from None
    return _end_phase(run, phase_model, phase, progress, table, placement)


def _log_table(table: Table, extensions: Extensions) -> None:
    for line in [*describe_table(table), *extensions.order.describe(table)]:
        logger.info(line)


def _class_weights(spec: DataSpec, table: Table) -> dict[str, np.ndarray]:
    """Return task -> float32 [classes], mean 1 over the training labels."""
    return {
        task.name: class_weights(
            table.labels_of(task.name, TRAIN),
            len(table.classes[task.name]),
            exponent=task.class_weight_exponent,
        )
        for task in spec.tasks
    }


def _callbacks(
    run: Run,
    progress: Progress,
    phase_model: PhaseModel,
    steps: int,
    rows: int,
    settings: _Settings,
    counting: dict,
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a phase; one process writes, the others keep the same state."""
    if not settings.placement.writes:
        return [
            StopOnNonFinite(progress),
            EpochTracker(run.spec, progress, phase_model),
            StepCounter(progress, **counting),
        ]
    minutes, epochs = settings.checkpoint_minutes, getattr(run.spec.phases, progress.phase).epochs
    return [
        StopOnNonFinite(progress),
        EpochRecorder(run, progress, phase_model, per_task=settings.per_task_best),
        Console(progress, run.spec.task_names, epochs=epochs, steps=steps, images=rows),
        Checkpointer(run, progress, phase_model, minutes=minutes, **counting),
    ]


def _end_phase(
    run: Run,
    phase_model: PhaseModel,
    phase: str,
    progress: Progress,
    table: Table,
    placement: Placement,
) -> keras.Model:
    """Mark a phase as finished and return the network that the next one starts with."""
    if progress.waited >= run.spec.early_stopping.patience:
        logger.info(f"Stopped early: no better epoch in {progress.waited}.")
        progress.waited = progress.plateau_waited = 0
    progress.finished.append(phase)
    if placement.writes:
        save_checkpoint(run.checkpoint, phase_model.variables, progress)
    placement.agree(f"the end of phase {phase}", json.dumps(progress.best))
    if BEST in progress.best_epoch:
        logger.info(f"Best epoch so far: {progress.best_epoch[BEST]}.")
    if phase == PHASES[0] and run.best_model.is_file():
        with placement.scope():
            return _load_best(run.best_model, run.spec, table.classes)
    phase_model.model.optimizer.use_averages(True)
    return phase_model.plain


def _fit(
    model: keras.Model,
    source: PreparedData | Features,
    spec: DataSpec,
    progress: Progress,
    steps: int,
    callbacks: list[keras.callbacks.Callback],
    settings: _Settings,
) -> None:
    """Train from `progress` to the end of its phase; `callbacks` keep it up to date."""
    epochs = getattr(spec.phases, progress.phase).epochs
    extensions, placement = settings.extensions, settings.placement
    shard = placement.shard
    transform = extensions.batch_transforms.get(progress.phase)
    training: Callable[..., tf.data.Dataset]
    evaluating: Callable[..., tf.data.Dataset]
    if isinstance(source, Features):
        training, evaluating = source.training_dataset, source.validation_dataset
        rows = len(source.validation)
    else:
        training = functools.partial(training_dataset, source)
        evaluating = functools.partial(evaluation_dataset, source, split=VALIDATION)
        rows = len(source.table.rows(VALIDATION))
    validation = placement.feed(evaluating(spec, shard=shard)) if rows else None
    if progress.step == steps:  # only the end of the epoch is missing
        _end_epoch(model, validation, progress, callbacks)
    while progress.phase_epoch < epochs and progress.waited < spec.early_stopping.patience:
        model.fit(
            placement.feed(
                training(
                    spec,
                    shard=shard,
                    order=extensions.order,
                    transform=transform,
                    first_epoch=progress.epoch,
                    first_step=progress.step,
                )
            ),
            initial_epoch=progress.phase_epoch,
            # The rest of an epoch has fewer steps than a whole one, so it needs a separate `fit`.
            epochs=progress.phase_epoch + 1 if progress.step else epochs,
            steps_per_epoch=steps - progress.step,
            validation_data=validation,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,
        )


def _end_epoch(
    model: keras.Model,
    validation: tf.data.Dataset | None,
    progress: Progress,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Do what `fit` does after the last step of an epoch."""
    epoch = progress.phase_epoch
    callback_list = keras.callbacks.CallbackList(callbacks, model=model, epochs=epoch + 1)
    callback_list.on_epoch_begin(epoch)
    logs = model.get_metrics_result()
    logs = {name: float(value) for name, value in logs.items()}
    if validation is not None:
        scores = model.evaluate(validation, callbacks=callback_list, return_dict=True, verbose=0)
        logs |= {f"val_{name}": value for name, value in scores.items()}
    callback_list.on_epoch_end(epoch, logs)


def _log_phase(
    phase_model: PhaseModel,
    phase: str,
    steps: int,
    progress: Progress,
) -> None:
    """Log the table of trainable parameters, and how to read the epoch lines."""
    rows = parameter_table(phase_model.plain)
    width = max(len(name) for name, *_ in rows)
    logger.info("")
    logger.info(f"Phase {phase}: the first {phase_model.frozen} trunk layers are frozen")
    logger.info(
        f"{'part':<{width}}  {'layers':>6}  {'trained':>7}  {'parameters':>12}  {'trainable':>12}"
    )
    totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    for name, layers, trained, parameters, trainable in [*rows, ("total", *totals)]:
        logger.info(
            f"{name:<{width}}  {layers:>6}  {trained:>7}  {parameters:>12,}  {trainable:>12,}"
        )
    resumed = ""
    if progress.phase_epoch or progress.step:
        resumed = f", resuming after step {progress.step} of epoch {progress.phase_epoch + 1}"
    logger.info(
        f"{steps} steps per epoch{resumed}. A task's metrics: top-1/macro-F1 in training → on the "
        "validation split; * is the best so far."
    )
