"""Train all the tasks of a spec in one model, then evaluate it.

  multitask train --spec=wikiart --data_dir=DIR --workdir=runs/first

DIR holds wikiart/ and wikiart_csv/ as ArtGAN ships them. The pictures are prepared once, into
records that later runs read too. Everything else goes to the workdir: config.json, models/, logs/,
results/. The same command again goes on where it was stopped. A flag overrides a field of the
spec, for this run."""

import os
import re
from pathlib import Path

from absl import flags

from multitask.commands import BACKENDS, DISTRIBUTIONS, import_tensorflow
from multitask.commands.run_flags import define_similar
from multitask.commands.spec_flags import (
    check_needed,
    define_records_dir,
    define_spec_flags,
    folder_or_none,
    resolve_spec,
)
from multitask.spec import PHASES, InputError


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    define_spec_flags(values)
    define_records_dir(values)
    flags.DEFINE_string("workdir", None, "folder of the run; new, or of the same run", **to)
    flags.DEFINE_enum("phase", "all", [*PHASES, "all"], "which phase to train", **to)
    flags.DEFINE_string(
        "init_from", None, "with --phase=finetune: the .keras model to start from", **to
    )
    flags.DEFINE_enum(
        "backend",
        None,
        BACKENDS,
        "what Keras computes with (default: KERAS_BACKEND of the environment, else tensorflow)",
        **to,
    )
    flags.DEFINE_boolean("best_per_task", True, "save each task's own best epoch too", **to)
    flags.DEFINE_float(
        "checkpoint_minutes",
        10.0,
        "minutes from one checkpoint to the next; each epoch ends with one, too",
        lower_bound=0,
        **to,
    )
    flags.DEFINE_boolean(
        "deterministic",
        None,
        "the same bits for the same seed (default: on a CPU, where it costs nothing)",
        **to,
    )
    flags.DEFINE_enum(
        "distribute",
        "none",
        DISTRIBUTIONS,
        "mirrored: over all GPUs of this machine; multihost: over several machines, with this very "
        "command on each (JAX); --batch_size is that of all together",
        **to,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "of multihost: host:port of process 0 (default: what the cluster says)",
        **to,
    )
    flags.DEFINE_integer(
        "process_count", None, "of multihost: how many processes (default: as above)", **to
    )
    flags.DEFINE_integer(
        "process_index", None, "of multihost: which this is, from 0 (default: as above)", **to
    )
    flags.DEFINE_boolean("evaluate", True, "evaluate the best model when training ends", **to)
    define_similar(values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    check_needed(values, left, "train", ("spec", "data_dir", "workdir"))
    spec = resolve_spec(values)
    asked = PHASES if values.phase == "all" else (values.phase,)
    if not any(getattr(spec.phases, phase).epochs for phase in asked):
        wanted = " or ".join(f"--epochs_{phase}" for phase in asked)
        raise InputError(f"--phase={values.phase}: has 0 epochs to train; give {wanted}")

    import_tensorflow(_backend(values))
    from multitask.evaluation.record import is_evaluated
    from multitask.evaluation.report import evaluate
    from multitask.learning.callbacks import say
    from multitask.learning.distribution import build_distribution, part
    from multitask.learning.training import train

    distribution = build_distribution(
        values.distribute,
        coordinator=values.coordinator,
        processes=values.process_count,
        process=values.process_index,
    )
    speaks = distribution.writes
    if speaks and distribution.shard.devices > 1:
        say(f"Training on {distribution.shard.devices} devices")
    with distribution.noticing():
        result = train(
            spec,
            Path(values.data_dir),
            Path(values.workdir),
            records_dir=folder_or_none(values.records_dir),
            phase=values.phase,
            init_from=folder_or_none(values.init_from),
            per_task_best=values.best_per_task,
            checkpoint_minutes=values.checkpoint_minutes,
            deterministic=values.deterministic,
            distribution=distribution,
            tell=say if speaks else lambda line: None,
        )
        part()
    if not speaks:
        return
    run = result.run
    if not result.trained:
        print(f"Nothing is left to train in {run.workdir}.")
    if values.evaluate and (result.trained or not is_evaluated(run, run.best_model)):
        evaluate(run, similar=values.similar)
    print(f"\nModels:  {run.models}\nReports: {run.results}" if values.evaluate else run.models)


def _backend(values: flags.FlagValues) -> str:
    """What Keras is to compute with; InputError where that and --distribute do not fit."""
    asked = values.backend or os.environ.get("KERAS_BACKEND")
    if values.distribute != "multihost":
        for name in ("coordinator", "process_count", "process_index"):
            if values[name].value is not None:
                raise InputError(f"--{name}: is for --distribute=multihost alone")
        return asked or BACKENDS[0]
    if values.coordinator is not None and not re.search(r":\d+$", values.coordinator):
        raise InputError(f"--coordinator: {values.coordinator!r}: expected host:port")
    if asked not in (None, "jax"):
        raise InputError(f"--distribute=multihost: is for --backend=jax, not {asked}")
    return "jax"
