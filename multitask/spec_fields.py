"""The fields of a spec, each described once.

The flags' help and docs/options.md are generated from the descriptions.
"""

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveInt

from multitask.errors import InputError, install
from multitask.spec_training import (
    Contrastive,
    EarlyStopping,
    FeatureOptions,
    Fields,
    Kind,
    NonNegative,
    OptimizerOptions,
    Phases,
    Plateau,
    Rate,
    RecordOptions,
    Share,
)

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


class TableOptions(Fields):
    """A collection in one table: a row an image, a column a task."""

    file: str = Field(
        description="the table, below `--data_dir`: CSV, TSV, JSON Lines, Parquet or Excel; a "
        "folder of a data set (the Hub's, TFDS', Kaggle's WikiArt) or of class folders (`.` is "
        "`--data_dir` itself); or `tfds:NAME`"
    )
    image: str | None = Field(
        None,
        description="column of the images: paths below `images`, or the images themselves; without "
        "it, the column is found",
    )
    levels: tuple[str, ...] | None = Field(
        None, description="names of the levels of class folders, from the top; each is a column"
    )
    split: str | None = Field(
        None,
        description="column with each image's split: train, validation or test, in any of their "
        "usual spellings; without it, the splits of the data set's own files",
    )
    test: Rate | None = Field(
        None,
        description="share of the images that is drawn as the test set, where nothing names the "
        "splits: about the same share of every class, the same images for the same seed",
    )
    group: str | None = Field(
        None,
        description="what stays on one side of a split, such as all photographs of an object: a "
        "column, or a regular expression over the paths whose first `(…)` is the group",
    )


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
        try:
            groups = re.compile(value or "").groups
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        if value and info.field_name == "group" and not groups:
            raise ValueError("has no `(…)` that captures the group from a path")
        return value

    @pydantic.model_validator(mode="after")
    def _groups_to_hold_out(self) -> "OtherOptions":
        if self.held_out and not self.group:
            raise ValueError("held_out: needs `group`, which defines the groups")
        return self


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
        return self

    @pydantic.model_validator(mode="after")
    def _files_or_column(self) -> "Task":
        of_column = [name for name in OF_COLUMN if getattr(self, name) is not None]
        if self.column is None:
            for name in ("train", "classes"):
                if not getattr(self, name):
                    raise ValueError(f"{name}: this field is missing")
            if of_column:
                raise ValueError(f"{of_column[0]}: is for a task with a column, not with files")
        elif self.train or self.classes or self.test is not None:
            raise ValueError("column: the task has files too; name the column or the files")
        return self


# The fields of a task that say how its column is read.
OF_COLUMN = ("min_examples", "rare", "missing", "several", "separator", "map", "class_names")


class Trunk(Fields):
    """The shared network below the heads."""

    name: str = Field(
        "efficientnetb2",
        description="efficientnetb0 to efficientnetb7, efficientnetv2b0 to efficientnetv2b3, "
        "efficientnetv2s, -m, -l, convnexttiny, -small, -base, -large, -xlarge, or "
        "efficientnet_lite2",
    )
    weights: str = Field(
        "imagenet",
        description="`imagenet` (downloaded once; for efficientnet_lite2 from a package of the "
        "extra [lite]), `none` for random weights, or a file of ImageNet weights",
    )
    batchnorm: Literal["auto", "frozen", "train"] = Field(
        "auto",
        description="`frozen`: BatchNorm of the trunk stays in inference mode; `train`: it is "
        "trained; `auto`: it is trained where `weights` is `none`",
    )
    batchnorm_momentum: Rate | None = Field(
        None,
        description="momentum of the moving statistics (default: the network's own, .99; V2: .9); "
        "a trunk with random weights needs a lower one, such as .9; ConvNeXt has no BatchNorm",
    )
    stochastic_depth: Rate | None = Field(
        None,
        description="probability that the last block is skipped in training, less for earlier "
        "blocks (default: the network's own, .2; ConvNeXt: 0); short training from random "
        "weights is faster with 0",
    )
    zero_init_residual: bool = Field(
        False,
        description="each residual block of random weights begins as the identity (its last "
        "BatchNorm scales by 0): training from random weights is much faster",
    )
    weight_decay: NonNegative = Field(
        1e-5, description="decoupled weight decay; none on biases and normalisation"
    )
    schedule: Kind = Field(description="learning rate of the trunk, see schedules")


class DataSpec(Fields):
    """One data set and its tasks. docs/options.md lists every field."""

    name: TaskName = Field(
        description="short name of the data set: lower-case letters, digits and `_`"
    )
    title: str = Field("", description="title for the reports and the model card")
    licence: str = Field("unknown", description="licence of the data, for the model card")
    source: str = Field("unknown", description="where the data comes from, for the model card")
    table: TableOptions | None = Field(
        None, description="a collection in one table, in place of each task's files"
    )
    images: str = Field(
        "wikiart",
        description="folder of the images, below `--data_dir`; the paths in the CSVs start there. "
        "Images inside a table's files are written there once",
    )
    match: Literal["letters"] | None = Field(
        None,
        description="`letters`: a row without a file of its spelling means the one file whose name "
        "has the same letters and digits, whatever its accents, punctuation and suffix, unless "
        "another row means it too; for other people's copies of a data set (default: only the "
        "spelling may differ, such as letter case)",
    )
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(
        224, description="side of the model's input in px, 32 to 1024"
    )
    resize: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="`squash` ignores the aspect ratio, `crop` cuts out the middle square, `pad` "
        "adds black borders",
    )
    convert_profiles: bool = Field(
        True,
        description="convert images by their embedded color profile (Adobe RGB, Display P3, CMYK, "
        "…) to sRGB; otherwise their numbers are taken for sRGB",
    )
    batch_size: PositiveInt = Field(32, description="images per step")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="float32, or bfloat16: mixed precision (weights, logits and losses stay "
        "float32), faster on accelerators and slower on CPUs",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="seed of all random numbers: validation split, subset, order, augmentation, "
        "weights, dropout",
    )
    validation: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.05,
        description="share of the training images held out as the validation split, which chooses "
        "the best epoch, early stopping, plateau reduction and calibration; sampled class by "
        "class; 0 is none, and the last epoch is then the best",
    )
    max_missing: Rate = Field(
        0.0,
        description="share of all images that may be missing or unreadable before the run stops; "
        "unreadable includes images of more than 179 million pixels, with a side over 65,535 or "
        "one over 200 times the other",
    )
    max_unknown: Rate = Field(
        0.01,
        description="share of a file's rows whose class may be unknown before the run stops",
    )
    exclude_near_duplicates: bool = Field(
        False,
        description="exclude training images that show the same painting as a test image (detected "
        "by a perceptual hash); where `table.test` draws the test set, such images are kept on one "
        "side instead",
    )
    mix: Kind | None = Field(None, description="mixing of the images of a batch, see mixing")
    sampler: Kind | None = Field(
        None,
        description='`{ kind = "balanced", power }`, see the sampler; without it, each image '
        "occurs once an epoch",
    )
    freeze_depth: int | str | None = Field(
        None,
        description="frozen part of the trunk in phase finetune, instead of each task's "
        "freeze_depth: N for the first N layers, -N for all but the last N, none, all, or a block "
        "such as block5 or stage_2",
    )
    trunk: Trunk = Field(description="the shared network")
    phases: Phases = Field(Phases(), description="the two phases")
    records: RecordOptions = Field(RecordOptions(), description="prepared records")
    features: FeatureOptions = Field(FeatureOptions(), description="cached features")
    early_stopping: EarlyStopping = Field(EarlyStopping(), description="early stopping")
    plateau: Plateau = Field(Plateau(), description="reduction of the learning rates")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="the optimizer")
    balancing: Kind | None = Field(
        None, description='how the task losses are combined (default: `{ kind = "fixed" }`)'
    )
    contrastive: Contrastive = Field(Contrastive(), description="the contrastive loss")
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, alias="task")] = Field(
        description="the tasks, each a table [[task]]"
    )

    # The file of the spec, for messages. It is not a field of the spec.
    _source: str = pydantic.PrivateAttr(default="spec")

    @pydantic.model_validator(mode="after")
    def _unique_names(self) -> "DataSpec":
        seen: set[str] = set()
        for index, task in enumerate(self.tasks):
            if task.name in seen:
                raise ValueError(f'task[{index}]: name: two tasks are called "{task.name}"')
            seen.add(task.name)
        return self

    @pydantic.model_validator(mode="after")
    def _columns_of_a_table(self) -> "DataSpec":
        for index, task in enumerate(self.tasks):
            if (task.column is None) != (self.table is None):
                reason = (
                    "column: needs a [table]"
                    if self.table is None
                    else "column: this field is missing; with a [table], a task has a column"
                )
                raise ValueError(f'task[{index}] "{task.name}": {reason}')
        if self.table is not None and self.table.test is not None and self.table.split is not None:
            raise ValueError("table.test: the column `split` names the test set; omit one of both")
        return self

    @pydantic.model_validator(mode="after")
    def _open_tasks(self) -> "DataSpec":
        for index, task in enumerate(self.tasks):
            if task.is_open and len(self.tasks) == 1:
                raise ValueError(
                    f'task[{index}] "{task.name}": unlabelled: "other" needs a further task; the '
                    "images without a label of this task come from its files"
                )
            if task.is_open and self.mix is not None:
                raise ValueError(
                    f'task[{index}] "{task.name}": unlabelled: "other" cannot be combined with '
                    'mix; set it to "unknown"'
                )
        return self

    @property
    def source_file(self) -> str:
        """The file of the spec."""
        return self._source

    @property
    def reduced_px(self) -> int:
        """The bound of an image's shorter side before it becomes the model's input.

        Training reads records, which were reduced to it. Images that are evaluated or predicted
        are reduced to it as well, or they would be sharper than all training images.
        """
        return round(self.image_size * self.records.margin)

    @property
    def resizing(self) -> dict[str, Any]:
        """The arguments of `decode.resize_image` that make a model's input of an image."""
        return {"size_px": self.image_size, "how": self.resize, "reduced_px": self.reduced_px}

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `pipeline.readable_images` that make a model's input of a file."""
        return self.resizing | {"convert_profiles": self.convert_profiles}

    @property
    def open_tasks(self) -> tuple[str, ...]:
        """The names of the tasks that can answer that an image has none of their classes."""
        return tuple(task.name for task in self.tasks if task.is_open)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in the order of the spec."""
        return tuple(task.name for task in self.tasks)

    def place(self, task: str | None, field: str) -> str:
        """The place of a field, for messages: `wikiart.toml: task[2] "genre": head.kind`."""
        if task is None:
            return f"{self._source}: {field}"
        return f'{self._source}: task[{self.task_names.index(task)}] "{task}": {field}'

    def to_dict(self) -> dict[str, Any]:
        """Every resolved field, ready for JSON and for `parse_spec`."""
        return self.model_dump(mode="json", by_alias=True)

    def to_toml(self) -> str:
        """The text of a spec file; InputError where tomli-w is missing."""
        try:
            import tomli_w
        except ImportError:
            raise InputError(f"writing a spec needs tomli_w: {install('tune')}") from None
        return tomli_w.dumps(_without_none(self.to_dict()))


def _without_none(value: Any) -> Any:
    """TOML has no None; leaving the field out of a spec means the same."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
