"""Train all tasks of a spec in one model, then evaluate it.

  multitask train --spec=wikiart --data_dir=DIR --workdir=runs/first

DIR holds wikiart/ and wikiart_csv/ as ArtGAN ships them. The images are prepared once, into
records that later runs also read. Everything else is written to the workdir: config.json, models/,
logs/, results/. The same command resumes a run that was stopped. Flags override fields of the
spec for this run.
"""

import logging
import os
import re
from pathlib import Path

from absl import flags

from multitask.commands.run_flags import define_similar
from multitask.commands.spec_flags import (
    define_records_dir,
    define_spec_flags,
    path_or_none,
    resolve_data,
)
from multitask.spec import PHASES, InputError, wanted_phases
from multitask.startup import BACKENDS, import_tensorflow

logger = logging.getLogger(__name__)

DISTRIBUTIONS = ("none", "mirrored", "multihost")


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `train`."""
    to = {"flag_values": values}
    define_spec_flags(values)
    define_records_dir(values)
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the run: a new one, or one of a run with the same settings",
        **to,
    )
    flags.DEFINE_enum("phase", "all", [*PHASES, "all"], "which phase to train", **to)
    flags.DEFINE_string(
        "init_from", None, "with --phase=finetune: the .keras model to start from", **to
    )
    flags.DEFINE_enum(
        "backend",
        None,
        BACKENDS,
        "Keras' backend (default: KERAS_BACKEND of the environment, else tensorflow)",
        **to,
    )
    flags.DEFINE_boolean("best_per_task", True, "also save the best epoch of each task", **to)
    flags.DEFINE_float(
        "checkpoint_minutes",
        10.0,
        "minutes between two checkpoints; there is also one at the end of each epoch",
        lower_bound=0,
        **to,
    )
    flags.DEFINE_boolean(
        "deterministic",
        None,
        "the same bits for the same seed (default: on for CPUs, where it costs nothing)",
        **to,
    )
    _define_distribution(values)
    flags.DEFINE_boolean("evaluate", True, "evaluate the best model when training ends", **to)
    define_similar(values)


def _define_distribution(values: flags.FlagValues) -> None:
    """Define the flags of the devices and processes."""
    to = {"flag_values": values}
    flags.DEFINE_enum(
        "distribute",
        "none",
        DISTRIBUTIONS,
        "mirrored: all GPUs of this machine; multihost: several machines, with the same command on "
        "each (JAX); --batch_size is the sum over all devices",
        **to,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "for multihost: host:port of process 0 (default: from the cluster)",
        **to,
    )
    flags.DEFINE_integer(
        "process_count",
        None,
        "for multihost: number of processes (default: from the cluster)",
        **to,
    )
    flags.DEFINE_integer(
        "process_index",
        None,
        "for multihost: number of this process, from 0 (default: from the cluster)",
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Train, then evaluate."""
    spec, data_dir = resolve_data(values, left, "train", ("workdir",))
    wanted_phases(spec, values.phase)  # an error does not wait for TensorFlow

    import_tensorflow(_backend(values))
    from multitask.annexes.extensions import build_extensions
    from multitask.annexes.parallel import build_placement, leave
    from multitask.evaluation.report import evaluate
    from multitask.learning.training import train
    from multitask.trained import open_trained

    placement = build_placement(
        values.distribute,
        coordinator=values.coordinator,
        processes=values.process_count,
        process=values.process_index,
    )
    if not placement.writes:
        logging.getLogger("multitask").setLevel(logging.WARNING)
    if placement.shard.devices > 1:
        logger.info(f"Training on {placement.shard.devices} devices")
    with placement.reporting_lost_processes():
        result = train(
            spec,
            data_dir,
            Path(values.workdir),
            records_dir=path_or_none(values.records_dir),
            phase=values.phase,
            init_from=path_or_none(values.init_from),
            per_task_best=values.best_per_task,
            checkpoint_minutes=values.checkpoint_minutes,
            deterministic=values.deterministic,
            catch_signals=True,
            extensions=build_extensions(spec),
            placement=placement,
        )
        leave()
    if not placement.writes:
        return
    run = result.run
    if not result.trained:
        print(f"Nothing is left to train in {run.workdir}.")
    if values.evaluate:
        model = open_trained(run)
        if result.trained or not model.is_evaluated():
            evaluate(model, similar=values.similar)
    print(f"\nModels:  {run.models}\nReports: {run.results}" if values.evaluate else run.models)


def _backend(values: flags.FlagValues) -> str:
    """Return Keras' backend; raise InputError if it does not support --distribute."""
    name = values.backend or os.environ.get("KERAS_BACKEND")
    if values.distribute != "multihost":
        for flag in ("coordinator", "process_count", "process_index"):
            if values[flag].value is not None:
                raise InputError(f"--{flag}: is only for --distribute=multihost")
        return name or BACKENDS[0]
    if values.coordinator is not None and not re.search(r":\d+$", values.coordinator):
        raise InputError(f"--coordinator: {values.coordinator!r}: expected host:port")
    if name not in (None, "jax"):
        raise InputError(f"--distribute=multihost: is for --backend=jax, not {name}")
    return "jax"
