"""The flags of every command that works on a spec and its data.

The help of a flag that overrides a field is the description of the field.
"""

from collections.abc import Iterable
from pathlib import Path

from absl import flags

from multitask.spec import DataSpec, InputError, load_spec, override, select_tasks
from multitask.spec_fields import described_fields

# flag -> the field of the spec that it overrides. The field `task.subset` is set in every task.
OVERRIDES = {
    "image_size": "image_size",
    "batch_size": "batch_size",
    "precision": "precision",
    "epochs_heads": "phases.heads.epochs",
    "epochs_finetune": "phases.finetune.epochs",
    "subset": "task.subset",
    "validation_share": "validation",
    "max_missing": "max_missing",
    "exclude_near_duplicates": "exclude_near_duplicates",
    "seed": "seed",
    "records_margin": "records.margin",
    "records_quality": "records.quality",
    "cache_features": "features.cache",
    "feature_views": "features.views",
    "feature_dtype": "features.dtype",
    "smote": "features.smote",
    "trunk": "trunk.name",
    "trunk_weights": "trunk.weights",
    "freeze_depth": "freeze_depth",
    "accumulate": "optimizer.accumulate",
    "clip_norm": "optimizer.clip_norm",
    "ema": "optimizer.ema",
    "trunk_layer_decay": "optimizer.trunk_layer_decay",
}
_FIELDS = {field.place: field for field in described_fields()}
_DEFINE = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
}
# Flags that determine which images are prepared, and how.
OF_RECORDS = (
    "image_size",
    "subset",
    "validation_share",
    "max_missing",
    "exclude_near_duplicates",
    "seed",
    "records_margin",
    "records_quality",
)


def define_spec_flags(values: flags.FlagValues, overrides: Iterable[str] = OVERRIDES) -> None:
    """Define --spec, --data_dir, --tasks and the given flags of OVERRIDES."""
    to = {"flag_values": values}
    flags.DEFINE_string(
        "spec", None, "spec file, or the name of a shipped one: wikiart, demo", **to
    )
    flags.DEFINE_string("data_dir", None, "folder that the spec's paths are relative to", **to)
    flags.DEFINE_list("tasks", None, "use only these tasks of the spec, e.g. artist,style", **to)
    define_allow_outside(values)
    for flag in overrides:
        field = _FIELDS[OVERRIDES[flag]]
        define = _DEFINE.get(field.annotation, flags.DEFINE_string)
        shown = "subset of each task" if field.place == "task.subset" else field.place
        define(flag, None, f"{field.description.replace('`', '')} (field {shown})", **to)


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
    """Raise InputError if a needed flag is missing, or if there are other arguments."""
    if left:
        raise InputError(f"multitask {command}: takes flags only, not {left[0]!r}")
    for name in needed:
        if not values[name].value:
            raise InputError(f"multitask {command}: --{name} is needed; --help lists the flags")


def resolve_spec(values: flags.FlagValues) -> DataSpec:
    """The spec that the flags name, with the fields that they override."""
    spec = load_spec(values.spec, allow_outside=values.allow_outside)
    if values.tasks is not None:
        spec = select_tasks(spec, [name.strip() for name in values.tasks if name.strip()])
    changes = {
        field: values[flag].value
        for flag, field in OVERRIDES.items()
        if flag in values and values[flag].value is not None
    }
    return override(spec, changes)
