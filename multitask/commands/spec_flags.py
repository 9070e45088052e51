"""The flags of every command that works on a spec and its data: one place for their words."""

from collections.abc import Iterable
from pathlib import Path

from absl import flags

from multitask.spec import DataSpec, InputError, load_spec, override, select_tasks

# flag -> (field of the spec, how absl defines it, help)
OVERRIDES = {
    "image_size": (
        "image_size",
        flags.DEFINE_integer,
        "side of the model's input in px",
    ),
    "batch_size": ("batch_size", flags.DEFINE_integer, "pictures a step"),
    "precision": (
        "precision",
        flags.DEFINE_string,
        "float32, or bfloat16: mixed precision, which accelerators compute faster",
    ),
    "epochs_heads": ("phases.heads.epochs", flags.DEFINE_integer, "epochs of the phase heads"),
    "epochs_finetune": (
        "phases.finetune.epochs",
        flags.DEFINE_integer,
        "epochs of the phase finetune",
    ),
    "subset": ("task.subset", flags.DEFINE_float, "share of every task's training labels"),
    "selection": (
        "selection",
        flags.DEFINE_float,
        "share of the training pictures held out for choosing; 0 = none",
    ),
    "max_missing": ("max_missing", flags.DEFINE_float, "share of pictures that may be missing"),
    "exclude_near_duplicates": (
        "exclude_near_duplicates",
        flags.DEFINE_boolean,
        "leave out training pictures that are the same painting as an exam's picture",
    ),
    "seed": ("seed", flags.DEFINE_integer, "seed of everything that is drawn"),
    "records_margin": (
        "records.margin",
        flags.DEFINE_float,
        "shorter side of a prepared picture, in image sizes",
    ),
    "records_quality": (
        "records.quality",
        flags.DEFINE_integer,
        "JPEG quality of a prepared picture, 1 to 100",
    ),
    "cache_features": (
        "features.cache",
        flags.DEFINE_string,
        "auto, on or off: phase heads learns from features that the frozen trunk gave once",
    ),
    "feature_views": (
        "features.views",
        flags.DEFINE_integer,
        "augmented views of each picture among the cached features, beside the plain one",
    ),
    "feature_dtype": (
        "features.dtype",
        flags.DEFINE_string,
        "float16 or float32: of the cached features on disk",
    ),
    "smote": (
        "features.smote",
        flags.DEFINE_float,
        "fill up rare classes to this share of the commonest, in feature space; 0 = off",
    ),
    "trunk": (
        "trunk.name",
        flags.DEFINE_string,
        "name of the trunk: efficientnetb0 to efficientnetb7, efficientnetv2b0 to "
        "efficientnetv2b3, efficientnetv2s, -m, -l, convnexttiny, -small, -base, -large, -xlarge, "
        "or efficientnet_lite2",
    ),
    "trunk_weights": (
        "trunk.weights",
        flags.DEFINE_string,
        "imagenet (fetched once; of efficientnet_lite2: from a package of the extra [lite]), none, "
        "or a file of ImageNet weights",
    ),
    "freeze_depth": (
        "freeze_depth",
        flags.DEFINE_string,
        "what stays frozen in finetune: N = the first N layers, -N = all but the last N, none, "
        "all, or a block such as block5 or stage_2; instead of each task's freeze_depth",
    ),
    "accumulate": (
        "optimizer.accumulate",
        flags.DEFINE_integer,
        "steps whose gradients make one update: a larger batch in the same memory",
    ),
    "clip_norm": (
        "optimizer.clip_norm",
        flags.DEFINE_float,
        "largest norm of each part's gradient; 0 = any",
    ),
    "ema": (
        "optimizer.ema",
        flags.DEFINE_float,
        "momentum of the weights' moving average, which is what is evaluated; 0 = none",
    ),
    "trunk_layer_decay": (
        "optimizer.trunk_layer_decay",
        flags.DEFINE_float,
        "the trunk's rate, from a block to the one below it; 1 = the same",
    ),
}
# What decides which pictures are prepared, and how.
OF_RECORDS = (
    "image_size",
    "subset",
    "selection",
    "max_missing",
    "exclude_near_duplicates",
    "seed",
    "records_margin",
    "records_quality",
)


def define_spec_flags(values: flags.FlagValues, overrides: Iterable[str] = OVERRIDES) -> None:
    """--spec, --data_dir, --tasks, and those of OVERRIDES that the command takes."""
    to = {"flag_values": values}
    flags.DEFINE_string(
        "spec", None, "spec file, or the name of a shipped one: wikiart, demo", **to
    )
    flags.DEFINE_string("data_dir", None, "folder that the spec's paths start at", **to)
    flags.DEFINE_list("tasks", None, "only these of the spec's tasks, e.g. artist,style", **to)
    define_allow_outside(values)
    for flag in overrides:
        field, define, text = OVERRIDES[flag]
        shown = "subset of each task" if field == "task.subset" else field
        define(flag, None, f"{text} (field {shown})", **to)


def define_allow_outside(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "allow_outside",
        False,
        "let the spec's paths leave the data folder: absolute ones, and those with `..`",
        flag_values=values,
    )


def define_records_dir(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "records_dir",
        None,
        "folder of prepared records, shared by all specs and runs (default: records in --data_dir)",
        flag_values=values,
    )


def folder_or_none(value: str | None) -> Path | None:
    return Path(value) if value else None


def check_needed(
    values: flags.FlagValues, left: list[str], command: str, needed: Iterable[str]
) -> None:
    """InputError where a flag is missing that the command needs, or something else is given."""
    if left:
        raise InputError(f"multitask {command}: takes flags only, not {left[0]!r}")
    for name in needed:
        if not values[name].value:
            raise InputError(f"multitask {command}: --{name} is needed; --help lists the flags")


def resolve_spec(values: flags.FlagValues) -> DataSpec:
    """The spec that the flags ask for."""
    spec = load_spec(values.spec, allow_outside=values.allow_outside)
    if values.tasks is not None:
        spec = select_tasks(spec, [name.strip() for name in values.tasks if name.strip()])
    changes = {
        flag: (field, values[flag].value)
        for flag, (field, *_) in OVERRIDES.items()
        if flag in values and values[flag].value is not None
    }
    return override(spec, changes)
