"""Train all the tasks of a spec in one model, then evaluate it.

  multitask train --spec=wikiart --data_dir=DIR --workdir=runs/first

DIR holds wikiart/ and wikiart_csv/ as ArtGAN ships them. Everything goes to the workdir:
config.json, models/, logs/, results/. The same command again goes on where it was stopped. A flag
overrides a field of the spec, for this run."""

from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.spec import PHASES, DataSpec, InputError, load_spec, override, select_tasks

# flag -> field of the spec
OVERRIDES = {
    "image_size": "image_size",
    "batch_size": "batch_size",
    "epochs_heads": "phases.heads.epochs",
    "epochs_finetune": "phases.finetune.epochs",
    "subset": "task.subset",
    "selection": "selection",
    "max_missing": "max_missing",
    "seed": "seed",
    "trunk": "trunk.name",
    "trunk_weights": "trunk.weights",
    "freeze_depth": "freeze_depth",
}


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_string(
        "spec", None, "spec file, or the name of a shipped one: wikiart, demo", **to
    )
    flags.DEFINE_string("data_dir", None, "folder that the spec's paths start at", **to)
    flags.DEFINE_string("workdir", None, "folder of the run; new, or of the same run", **to)
    flags.DEFINE_list(
        "tasks", None, "train only these of the spec's tasks, e.g. artist,style", **to
    )
    flags.DEFINE_enum("phase", "all", [*PHASES, "all"], "which phase to train", **to)
    flags.DEFINE_string(
        "init_from", None, "with --phase=finetune: the .keras model to start from", **to
    )
    flags.DEFINE_boolean("best_per_task", True, "save each task's own best epoch too", **to)
    flags.DEFINE_boolean("evaluate", True, "evaluate the best model when training ends", **to)
    number, text = flags.DEFINE_integer, flags.DEFINE_string
    number("image_size", None, "side of the model's input in px (field image_size)", **to)
    number("batch_size", None, "pictures a step (field batch_size)", **to)
    number("epochs_heads", None, "epochs of the phase heads (field phases.heads.epochs)", **to)
    number(
        "epochs_finetune", None, "epochs of the phase finetune (field phases.finetune.epochs)", **to
    )
    flags.DEFINE_float(
        "subset", None, "share of every task's training labels (field subset of each task)", **to
    )
    flags.DEFINE_float(
        "selection",
        None,
        "share of the training pictures held out for choosing; 0 = none (field selection)",
        **to,
    )
    flags.DEFINE_float(
        "max_missing", None, "share of pictures that may be missing (field max_missing)", **to
    )
    number("seed", None, "seed of everything that is drawn (field seed)", **to)
    text("trunk", None, "name of the trunk, e.g. efficientnetb2 (field trunk.name)", **to)
    text(
        "trunk_weights",
        None,
        "imagenet, none, or a file of ImageNet weights (field trunk.weights)",
        **to,
    )
    text(
        "freeze_depth",
        None,
        "what stays frozen in finetune: N = the first N layers, -N = all but the last N, none, "
        "all, or a block such as block5 (instead of each task's freeze_depth)",
        **to,
    )


def resolve_spec(values: flags.FlagValues) -> DataSpec:
    """The spec that the flags ask for."""
    spec = load_spec(values.spec)
    if values.tasks is not None:
        spec = select_tasks(spec, [name.strip() for name in values.tasks if name.strip()])
    changes = {
        flag: (field, values[flag].value)
        for flag, field in OVERRIDES.items()
        if values[flag].value is not None
    }
    return override(spec, changes)


def main(values: flags.FlagValues, left: list[str]) -> None:
    if left:
        raise InputError(f"multitask train: takes flags only, not {left[0]!r}")
    for name in ("spec", "data_dir", "workdir"):
        if not values[name].value:
            raise InputError(f"multitask train: --{name} is needed; --help lists the flags")
    spec = resolve_spec(values)
    asked = PHASES if values.phase == "all" else (values.phase,)
    if not any(getattr(spec.phases, phase).epochs for phase in asked):
        wanted = " or ".join(f"--epochs_{phase}" for phase in asked)
        raise InputError(f"--phase={values.phase}: has 0 epochs to train; give {wanted}")

    import_tensorflow()
    from multitask.evaluation.report import evaluate
    from multitask.learning.training import train

    result = train(
        spec,
        Path(values.data_dir),
        Path(values.workdir),
        phase=values.phase,
        init_from=Path(values.init_from) if values.init_from else None,
        per_task_best=values.best_per_task,
    )
    run = result.run
    if not result.trained:
        print(f"Nothing is left to train in {run.workdir}.")
    if values.evaluate and (result.trained or not (run.results / "metrics.json").is_file()):
        evaluate(run)
    print(f"\nModels:  {run.models}\nReports: {run.results}" if values.evaluate else run.models)
