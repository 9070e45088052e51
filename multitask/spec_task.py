"""The fields of a task of a spec, each described once; see `spec_fields.py`."""

import re
from typing import Annotated, Literal

import pydantic
from pydantic import Field, PositiveInt

from multitask.spec_training import Fields, Kind, NonNegative, Share

# The name becomes an output, a file name and a part of the names of columns and layers. The
# pattern excludes a slash, a hyphen and a leading underscore, so that the name of a task never
# clashes with the program's own names: see `field_of`.
TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


def _check_range(
    low: float, high: float, lowest: float, highest: float, subject: str
) -> tuple[float, float]:
    if not lowest <= low <= high <= highest:
        raise ValueError(
            f"{subject} must be [low, high] with {lowest:g} <= low <= high <= {highest:g}"
        )
    return low, high


def _check_pattern(pattern: str, *, captures: bool) -> str:
    """Return a regular expression; ValueError if it is not one, or `captures` nothing."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    if captures and not groups:
        raise ValueError("has no `(…)` that captures a part of a path")
    return pattern


class Augmentation(Fields):
    """The augmentation policy of one task. An operation that is not named is not applied."""

    flip: bool = Field(False, description="mirror left to right, with probability 0.5")
    brightness: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="largest shift; 0.1 is a tenth of the range up or down"
    )
    contrast: tuple[float, float] | None = Field(None, description="`[low, high]` factors")
    saturation: tuple[float, float] | None = Field(None, description="`[low, high]` factors")
    crop: tuple[float, float] | None = Field(
        None,
        description="`[low, high]` share of each side that is kept; the aspect ratio is unchanged",
    )
    crop_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="probability of a crop"
    )

    @pydantic.field_validator("contrast", "saturation")
    @classmethod
    def _factors(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return value and _check_range(*value, 0, 10, "a factor's range")

    @pydantic.field_validator("crop")
    @classmethod
    def _crop_shares(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return value and _check_range(*value, 0.05, 1, "a crop's range")


class OtherOptions(Fields):
    """Images that have none of the task's classes, for a task with `unlabelled` = `other`."""

    weight: NonNegative = Field(
        1.0, description="weight of the rejection loss, relative to the loss of the task's labels"
    )
    exclude: str | None = Field(
        None,
        description="regular expression that is searched in the paths: matching images without a "
        "label may still have a class of the task, and count as unlabelled",
    )
    group: str | None = Field(
        None,
        description="regular expression that is searched in the paths: its first `(…)` captures "
        "the group of an image, such as its painter; `held_out` needs it",
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of these groups that are excluded from the rejection loss; the report "
        "measures rejection on them separately",
    )

    @pydantic.field_validator("exclude", "group")
    @classmethod
    def _pattern(cls, value: str | None, info: pydantic.ValidationInfo) -> str | None:
        return value and _check_pattern(value, captures=info.field_name == "group")

    @pydantic.model_validator(mode="after")
    def _groups_to_hold_out(self) -> "OtherOptions":
        if self.held_out and not self.group:
            raise ValueError("held_out: needs `group`, which defines the groups")
        return self


class LabelSource(Fields):
    """Where the labels of a task come from that has neither files nor a column."""

    path: str = Field(
        description="regular expression that is searched in the paths: its first `(…)` captures "
        "the label, such as the painter's name; a path without a match has no label"
    )

    @pydantic.field_validator("path")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return _check_pattern(value, captures=True)


class Task(Fields):
    """A task: its files or its column, its head and the settings of its training."""

    name: TaskName = Field(
        description="name of the model's output and of the task's files: lower-case letters, "
        "digits and `_`; columns and metrics of a task have a slash (`artist/top1`)"
    )
    train: str = Field(
        "", description="CSV below `--data_dir`: headerless `path,class_index`; not with `column`"
    )
    test: str | None = Field(
        None,
        description="CSV of the test set, in the same format; without it, or with an empty file, "
        "the task has no test set: it is trained, its best epoch is chosen on the validation "
        "split, and every output says `no test set`",
    )
    classes: str = Field(
        "", description="class file: lines `index name`, indices 0 to n-1; not with `column`"
    )
    column: str | None = Field(
        None, description="column of the table with the task's labels, in place of its files"
    )
    label_from: LabelSource | None = Field(
        None,
        description="`{ path = … }`: the task's labels are parts of the paths, in place of its "
        "files or its column. They are read like a column, for all images of the other tasks; its "
        "test set are the test images of the other tasks",
    )
    auxiliary: bool = Field(
        False,
        description="the task only helps to train the trunk: its scores appear in the log, but it "
        "has no part in the choice of the best epoch, in the report, in exports and in predictions "
        "(`evaluate --auxiliary` and `export --tasks` include it). It changes neither the "
        "validation split, nor the augmentation, nor the freeze depth",
    )
    min_examples: PositiveInt | None = Field(
        None, description="classes of a column with fewer training images are rare (default: 1)"
    )
    rare: Literal["exclude", "other"] | None = Field(
        None, description="`exclude` rare classes (the default), or join them as the class `other`"
    )
    missing: tuple[str, ...] | None = Field(
        None,
        description="values of a column that mean that there is no label, in any case (default: "
        "`unknown`, `n/a`, `na`, `none`, `-`, `?`, `null`; an empty cell always does)",
    )
    several: Literal["exclude", "first"] | None = Field(
        None,
        description="a cell with several values has no label (`exclude`, the default), or the "
        "`first` is its label",
    )
    separator: str | None = Field(
        None, description="text between the values of a cell, such as `;` (default: none)"
    )
    map: dict[str, str] | None = Field(
        None, description="value -> the value that replaces it: other spellings, other languages"
    )
    class_names: tuple[str, ...] | None = Field(
        None,
        description="classes of a column, in order (default: its values, sorted; a run keeps those "
        "of its first training)",
    )
    head: Kind = Field(description="`{ kind = …, options }`, see heads")
    loss: Kind = Field(description="`{ kind = …, options }`, see losses")
    schedule: Kind = Field(description="learning rate of the head, see schedules")
    weight: NonNegative = Field(
        1.0, description="weight of the task's loss in the sum; 0 excludes the task from training"
    )
    contrastive_weight: NonNegative = Field(
        1.0, description="multiplies `contrastive.weight` for this task"
    )
    class_weight_exponent: NonNegative = Field(
        1.0,
        description="1 is scikit-learn's `balanced`, 0.5 its square root, 0 no class weights; "
        "their mean over the training labels is 1",
    )
    weight_decay: NonNegative = Field(1e-5, description="weight decay of the head")
    freeze_depth: int | str = Field(
        "none", description="frozen part of the trunk in phase `finetune`, see freeze depth"
    )
    subset: Share = Field(
        1.0,
        description="share of the task's training labels to use, sampled class by class, at least "
        "one for each class",
    )
    augment: Augmentation = Field(Augmentation(), description="see augmentation")
    unlabelled: Literal["unknown", "other"] = Field(
        "unknown",
        description="what a missing label means, for an image with labels of other tasks only: "
        "its class is `unknown`, or it has none of the classes (`other`); such an image trains and "
        "tests the answer `other`",
    )
    other: OtherOptions = Field(OtherOptions(), description="options of `unlabelled` = `other`")

    @property
    def is_open(self) -> bool:
        """Whether the task can answer that an image has none of its classes."""
        return self.unlabelled == "other"

    @pydantic.model_validator(mode="after")
    def _open_task(self) -> "Task":
        if not self.is_open and self.other != OtherOptions():
            raise ValueError('other: needs `unlabelled = "other"`')
        if self.is_open and (self.auxiliary or self.label_from is not None):
            raise ValueError(
                'unlabelled: "other" is not for a task that is `auxiliary` or has `label_from`'
            )
        return self

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "Task":
        has_files = bool(self.train or self.classes or self.test is not None)
        if self.label_from is not None:
            if has_files or self.column is not None:
                raise ValueError(
                    "label_from: the task has files or a column too; name one of the three"
                )
            return self
        of_column = [name for name in OF_COLUMN if getattr(self, name) is not None]
        if self.column is None:
            for name in ("train", "classes"):
                if not getattr(self, name):
                    raise ValueError(f"{name}: this field is missing")
            if of_column:
                raise ValueError(f"{of_column[0]}: is for a task with a column, not with files")
        elif has_files:
            raise ValueError("column: the task has files too; name the column or the files")
        return self


# The fields of a task that say how the values of its column, or from its paths, are read.
OF_COLUMN = ("min_examples", "rare", "missing", "several", "separator", "map", "class_names")
