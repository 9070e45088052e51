"""The tables of a spec that set up the training, and the types that all tables share."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


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


class Phase(Fields):
    """One phase of the training."""

    epochs: Annotated[int, Field(ge=0)] = Field(description="epochs of the phase; 0 skips it")
    rate_factor: PositiveFloat = Field(
        1.0, description="multiplies every learning rate of the phase"
    )


class FinetunePhase(Phase):
    """The fine-tuning phase, which can train on cached maps of the blocks that stay frozen."""

    cache: Literal["auto", "on", "off"] = Field(
        "auto",
        description="fine-tune on cached maps of the frozen blocks, computed once for each view: "
        "`on`; `off`: every step runs the whole trunk; `auto`: on a CPU, for 2,000 training images "
        "or more, if most of the trunk is frozen and the disk has room. The frozen blocks then "
        "have no stochastic depth",
    )
    views: Annotated[int, Field(ge=0)] = Field(
        0,
        description="cached views of each image, augmented as in as many epochs; 0: one for each "
        "epoch; fewer take less disk space, and epochs share them",
    )
    mix: Kind | None = Field(
        None,
        description="mixing in this phase only, of the cached maps, or of the images if the phase "
        "has no cached maps; see mixing",
    )


class Phases(Fields):
    """`heads` trains the heads on a frozen trunk, `finetune` all above the freeze depth."""

    heads: Phase = Field(Phase(epochs=7), description="heads on a frozen trunk")
    finetune: FinetunePhase = Field(
        FinetunePhase(epochs=10, rate_factor=0.1),
        description="heads and the trunk above the freeze depth",
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
    runtime: Literal["auto", "tensorflow", "onnxruntime", "openvino", "litert"] = Field(
        "auto",
        description="library that runs the frozen trunk for cached features, evaluation and "
        "similar images: tensorflow, onnxruntime, openvino, litert, or `auto`: on a CPU the "
        "fastest that is installed, measured once, if there are 2,000 images or more",
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
