"""The flags of every command that works on a spec and its data.

The help of a flag that overrides a field is the description of the field.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from multitask.spec import (
    TFDS_PREFIX,
    DataSpec,
    InputError,
    load_spec,
    override,
    refuse_outside,
    select_tasks,
)
from multitask.spec_description import described_fields

if TYPE_CHECKING:
    from multitask.data.draft import Draft

# flag -> the field of the spec that it overrides. The field `task.subset` is set in every task.
OVERRIDES = {
    "image_size": "image_size",
    "batch_size": "batch_size",
    "precision": "precision",
    "epochs_heads": "phases.heads.epochs",
    "epochs_finetune": "phases.finetune.epochs",
    "cache_finetune": "phases.finetune.cache",
    "finetune_views": "phases.finetune.views",
    "subset": "task.subset",
    "validation_share": "validation",
    "max_missing": "max_missing",
    "exclude_near_duplicates": "exclude_near_duplicates",
    "seed": "seed",
    "convert_profiles": "convert_profiles",
    "records_margin": "records.margin",
    "records_quality": "records.quality",
    "cache_features": "features.cache",
    "feature_views": "features.views",
    "feature_dtype": "features.dtype",
    "feature_runtime": "features.runtime",
    "smote": "features.smote",
    "trunk": "trunk.name",
    "trunk_weights": "trunk.weights",
    "freeze_depth": "freeze_depth",
    "co_occurrence": "co_occurrence",
    "accumulate": "optimizer.accumulate",
    "clip_norm": "optimizer.clip_norm",
    "ema": "optimizer.ema",
    "trunk_layer_decay": "optimizer.trunk_layer_decay",
}
# Flags that describe a collection -> their help.
COLLECTION_FLAGS = {
    "images": "the folder of the images (default: that of the table); for a copy with images "
    "inside its files: the folder to write them to",
    "image_column": "the column of the images (default: detected)",
    "split_column": "the column of train, validation and test (default: detected)",
    "group": "the column of groups that stay on one side of a split, or a regular expression over "
    "the paths whose (…) is the group (default: detected)",
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
    "convert_profiles",
    "records_margin",
    "records_quality",
)


def define_spec_flags(values: flags.FlagValues, overrides: Iterable[str] = OVERRIDES) -> None:
    """Define --spec, --data_dir, --tasks and the given flags of OVERRIDES."""
    to = {"flag_values": values}
    flags.DEFINE_string(
        "spec", None, "spec file, or the name of a shipped one: wikiart, demo", **to
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder that the spec's paths are relative to (default for a spec with a [table]: the "
        "folder of the spec; with --data: that folder)",
        **to,
    )
    flags.DEFINE_string(
        "data",
        None,
        "a table, class folders or a data set, in place of a spec: the spec is guessed, as "
        "`multitask init` does; with --spec: another copy of its images, such as Kaggle's WikiArt; "
        "labels and split still come from the lists in --data_dir",
        **to,
    )
    define_collection_flags(values, "with --data: ")
    flags.DEFINE_list(
        "tasks",
        None,
        "use only these tasks of the spec, e.g. artist,style; with --data: the columns to learn",
        **to,
    )
    define_allow_outside(values)
    for flag in overrides:
        field = _FIELDS[OVERRIDES[flag]]
        define = _DEFINE.get(field.annotation, flags.DEFINE_string)
        shown = "subset of each task" if field.place == "task.subset" else field.place
        define(flag, None, f"{field.description.replace('`', '')} (field {shown})", **to)


def with_flags(text: str, values: flags.FlagValues) -> str:
    """Replace the settings in a message by the flags of the command that set them.

    Args:
        text: a message with fields of the spec and arguments in backticks, such as `records_dir`
            or `features.cache=off`. A field or argument that no flag sets is not replaced.
        values: the flags of the command.

    Returns:
        The message, with `--records_dir` and `--cache_features=off` instead, without backticks.
    """
    names = {field: flag for flag, field in OVERRIDES.items()}

    def flag(setting: re.Match[str]) -> str:
        name = names.get(setting[1], setting[1])
        return f"--{name}{setting[2]}" if name in values else setting[0]

    return re.sub(r"`([a-z_.]+)((?:=[^`\s]+)?)`", flag, text)


def define_collection_flags(values: flags.FlagValues, condition: str = "") -> None:
    """Define the flags that describe a collection.

    Args:
        values: the flags to add them to.
        condition: the beginning of each flag's help.
    """
    for flag, text in COLLECTION_FLAGS.items():
        flags.DEFINE_string(flag, None, condition + text, flag_values=values)


def draft_of_flags(
    values: flags.FlagValues, place: str, *, spec_dir: Path | None = None
) -> "Draft":
    """Draft the spec of a collection as the flags say.

    Args:
        values: the flags of `define_collection_flags`, and --tasks.
        place: the table, folder or `tfds:NAME`.
        spec_dir: the folder of the spec's file.
    """
    from multitask.data.draft import draft_spec

    tasks = [name.strip() for name in values.tasks or () if name.strip()]
    return draft_spec(
        place,
        images=path_or_none(values.images),
        spec_dir=spec_dir,
        tasks=tasks or None,
        image_column=values.image_column,
        split=values.split_column,
        group=values.group,
    )


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


def path_or_none(value: str | None) -> Path | None:
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


def resolve_data(
    values: flags.FlagValues, left: list[str], command: str, needed: Iterable[str] = ()
) -> tuple[DataSpec, Path]:
    """The spec that the flags name, with the fields that they override, and the data's folder.

    Args:
        values: the flags: --spec, --data, or both.
        left: other arguments, which are refused.
        command: its name, for messages.
        needed: further flags that must be given.
    """
    if values.spec is not None and values.data is not None:
        check_needed(values, left, command, needed)
        return _with_copy(values)
    if values.data is None:
        _refuse_collection_flags(values)
        check_needed(values, left, command, ("spec",))
        spec = load_spec(values.spec, allow_outside=values.allow_outside)
        if spec.table is None or values.data_dir:
            check_needed(values, left, command, ("data_dir", *needed))
            data_dir = Path(values.data_dir)
        else:
            check_needed(values, left, command, needed)
            data_dir = Path(spec.source_file).parent
            _check_table(spec, data_dir)
        return _overridden(values, spec, values.tasks), data_dir
    if values.data_dir is not None:
        raise InputError(
            "--data_dir: needs --spec; with --data alone, the paths start at the table's folder"
        )
    check_needed(values, left, command, needed)
    draft = draft_of_flags(values, values.data)
    draft.log()
    return _overridden(values, draft.spec(values.data), None), draft.data_dir


def _check_table(spec: DataSpec, data_dir: Path) -> None:
    """Raise InputError if the table is not there: `tune` writes a spec to another folder."""
    from multitask.data.sources.source import near_sibling

    assert spec.table is not None
    place = data_dir / spec.table.file
    if not spec.table.file.startswith(TFDS_PREFIX) and not os.path.lexists(place):
        raise InputError(
            f"{place}: no such file or folder.{near_sibling(place)} The paths of "
            f"{spec.source_file} start at its folder; --data_dir names another one"
        )


def _refuse_collection_flags(values: flags.FlagValues, *allowed: str) -> None:
    for flag in COLLECTION_FLAGS:
        if flag not in allowed and values[flag].value is not None:
            raise InputError(f"--{flag}: is only for --data without --spec")


def _with_copy(values: flags.FlagValues) -> tuple[DataSpec, Path]:
    """The spec of --spec with the images of --data, and the folder of the lists."""
    from multitask.data.copies import with_copy

    _refuse_collection_flags(values, "images")
    spec = load_spec(values.spec, allow_outside=True)
    # `images` is replaced, so it is not checked: in a spec by `tune` it may be a copy's folder.
    refuse_outside(override(spec, {"images": "."}), allowed=values.allow_outside)
    return with_copy(
        _overridden(values, spec, values.tasks),
        path_or_none(values.data_dir),
        Path(values.data),
        images=path_or_none(values.images),
    )


def _overridden(values: flags.FlagValues, spec: DataSpec, tasks: Iterable[str] | None) -> DataSpec:
    if tasks is not None:
        spec = select_tasks(spec, [name.strip() for name in tasks if name.strip()])
    changes = {
        field: values[flag].value
        for flag, field in OVERRIDES.items()
        if flag in values and values[flag].value is not None
    }
    return override(spec, changes)
