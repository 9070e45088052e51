"""Mixup and cutmix: each image of a batch is mixed with a partner of the same batch.

Fine-tuning on cached maps of the frozen blocks can mix these in the same way (manifold mixup, Verma
et al. 2019).

A new kind is a function and a line in MIXES; its options are its keyword-only parameters. It
returns where the partner is visible and how strongly; partners and labels do not depend on it.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import tensorflow as tf
from keras import ops
from pydantic import Field

from multitask.learning.extensions import BatchTransform
from multitask.learning.losses import MaskedLoss
from multitask.spec import PHASES, DataSpec, InputError, Kind, SpecError, check_kind, is_labelled

# Below 0.05, nearly every sample is 0 or 1, and nothing is mixed.
Alpha = Annotated[float, Field(ge=0.05, le=20)]
Probability = Annotated[float, Field(ge=0, le=1)]

FINETUNE_FIELD = "phases.finetune.mix"


class Patch(NamedTuple):
    """Where an image's partner is visible, and how strongly.

    Attributes:
        strength: float32 [batch], the partner's share of a pixel inside the box; 0: not mixed.
        box: int32 [batch, 4], px: top, left, bottom, right; the last two are just outside.
    """

    strength: tf.Tensor
    box: tf.Tensor


def sample_lambda(count: int | tf.Tensor, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Sample Beta(alpha, alpha), as the share of one of two gamma samples: float64 [count]."""
    # In float64, because there two samples of the smallest alpha are never both 0.
    gammas = tf.random.stateless_gamma([2, count], seed, alpha, dtype=tf.float64)
    return gammas[0] / (gammas[0] + gammas[1])


def _choose(count: int | tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Sample bool [count], each true with the probability."""
    return tf.random.stateless_uniform([count], seed) < probability


def _seeds(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
    """Split a seed into several."""
    return tf.unstack(tf.random.experimental.stateless_split(seed, count))


def mixup(
    count: int | tf.Tensor,
    size_px: int,
    seed: tf.Tensor,
    *,
    alpha: Alpha = 0.2,
    probability: Probability = 1.0,
) -> Patch:
    """Mixup (Zhang et al. 2018, sec. 2): lambda · image + (1 - lambda) · partner, everywhere.

    Lambda is sampled for each image; the paper's code samples one for the batch. The expectation
    is the same, and every step has weak and strong mixtures.

    Args:
        count: number of images in the batch.
        size_px: side of the images.
        seed: int [2].
        alpha: of Beta(alpha, alpha); the paper takes 0.1 to 0.4 for ImageNet.
        probability: that an image is mixed.
    """
    lambda_seed, choice_seed = _seeds(seed, 2)
    strength = tf.cast(1 - sample_lambda(count, lambda_seed, alpha), tf.float32)
    strength = tf.where(_choose(count, choice_seed, probability), strength, 0.0)
    return Patch(strength, tf.tile([[0, 0, size_px, size_px]], [count, 1]))


def cutmix(
    count: int | tf.Tensor,
    size_px: int,
    seed: tf.Tensor,
    *,
    alpha: Alpha = 1.0,
    probability: Probability = 1.0,
) -> Patch:
    """Cutmix (Yun et al. 2019, eq. 1 and 2): a box of the partner's pixels in their own place.

    The box has the image's aspect ratio and 1 - lambda of its area. Its centre is sampled
    anywhere, and the image's border clips the box. Lambda is sampled for each image; the paper's
    code samples one box for the batch.

    Args:
        count: number of images in the batch.
        size_px: side of the images.
        seed: int [2].
        alpha: of Beta(alpha, alpha); 1, the paper's, is uniform.
        probability: that an image is mixed.
    """
    lambda_seed, middle_seed, choice_seed = _seeds(seed, 3)
    side = tf.sqrt(1 - sample_lambda(count, lambda_seed, alpha)) * size_px
    side = tf.cast(tf.round(side), tf.int32)[:, None]
    middle = tf.random.stateless_uniform([count, 2], middle_seed, 0, size_px, tf.int32)
    start = middle - side // 2
    box = tf.clip_by_value(tf.concat([start, start + side], axis=1), 0, size_px)
    return Patch(tf.cast(_choose(count, choice_seed, probability), tf.float32), box)


def mixup_cutmix(
    count: int | tf.Tensor,
    size_px: int,
    seed: tf.Tensor,
    *,
    mixup_alpha: Alpha = 0.2,
    cutmix_alpha: Alpha = 1.0,
    probability: Probability = 1.0,
) -> Patch:
    """Mix each image by mixup or by cutmix, with equal probability."""
    mixup_seed, cutmix_seed, kind_seed = _seeds(seed, 3)
    mixed = mixup(count, size_px, mixup_seed, alpha=mixup_alpha, probability=probability)
    cut = cutmix(count, size_px, cutmix_seed, alpha=cutmix_alpha, probability=probability)
    first = _choose(count, kind_seed, 0.5)
    return Patch(
        tf.where(first, mixed.strength, cut.strength),
        tf.where(first[:, None], mixed.box, cut.box),
    )


MIXES = {f.__name__: f for f in (mixup, cutmix, mixup_cutmix)}


def sample_partners(labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Sample each image's partner from the batch's images with labels of exactly the same tasks.

    Every label can thus be mixed with another label of the same task, and none is lost. An image
    with OTHER_LABEL is mixed with another such image, and the mixture has none of the task's
    classes either. The images of such a group form one random cycle, in which each image is
    followed by its partner.

    Args:
        labels: int32 [batch, tasks]; MISSING or OTHER_LABEL where the task has no label.
        seed: int [2].

    Returns:
        int32 [batch]: every image is the partner of one image, or of itself if alone in its group.
    """
    count = tf.shape(labels)[0]
    group = tf.raw_ops.UniqueV2(x=tf.minimum(labels, 0), axis=[0]).idx
    cycle = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
    cycle = tf.gather(cycle, tf.argsort(tf.gather(group, cycle), stable=True))  # group by group
    group = tf.gather(group, cycle)
    first, end = (tf.searchsorted(group, group, side) for side in ("left", "right"))
    after = tf.range(count) + 1
    after = tf.where(after < end, after, first)
    return tf.scatter_nd(cycle[:, None], tf.gather(cycle, after), [count])


def blend(images: tf.Tensor, partner: tf.Tensor, patch: Patch) -> tf.Tensor:
    """Blend each image with its partner inside the patch: float32 [batch, side, side, channels]."""
    side, channels = images.shape[2:]
    top, left, bottom, right = tf.unstack(patch.box[:, :, None], axis=1)
    place = tf.range(side)
    rows = tf.cast((place >= top) & (place < bottom), tf.float32) * patch.strength[:, None]
    columns = tf.cast((place >= left) & (place < right), tf.float32)
    columns = tf.repeat(columns, channels, axis=1)
    flat = tf.reshape(images, [-1, side, side * channels])

    # One image at a time fits the processor's cache, and is faster than the batch as a whole.
    # Not own + (other - own) · share, which rounds: inside a cutmix box the partner must be exact.
    def one(inputs: tuple[tf.Tensor, ...]) -> tf.Tensor:
        own, other, row, column = inputs
        share = row[:, None] * column
        return flat[own] * (1 - share) + flat[other] * share

    inputs = (tf.range(tf.shape(partner)[0]), partner, rows, columns)
    mixed = tf.map_fn(one, inputs, fn_output_signature=tf.float32)
    return tf.reshape(mixed, [-1, side, side, channels])


def mix_batch(
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    draw: Callable[[tf.Tensor, int, tf.Tensor], Patch],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mix a batch.

    Args:
        images: images or maps, float32 [batch, side, side, channels].
        labels: int32 [batch, tasks]; MISSING or OTHER_LABEL where the task has no label.
        seed: int [2]; the same seed gives the same mix.
        draw: a function of MIXES with its options.

    Returns:
        images: float32 [batch, side, side, channels].
        labels: int32 [batch, tasks, 2], the image's own and its partner's; its own twice where
            it is not mixed, MISSING or OTHER_LABEL twice where the task has none.
        weights: float32 [batch, tasks, 2], the two images' shares of the pixels, sum 1;
            0 and 0 where the task has no label.
    """
    partner_seed, patch_seed = _seeds(seed, 2)
    own = tf.range(tf.shape(labels)[0])
    partner = sample_partners(labels, partner_seed)
    side = images.shape[1]
    patch = draw(tf.shape(labels)[0], side, patch_seed)
    patch = Patch(tf.where(partner == own, 0.0, patch.strength), patch.box)
    images = blend(images, partner, patch)

    # Correct lambda to the visible pixels: the clipped part of the box does not count.
    top, left, bottom, right = tf.unstack(patch.box, axis=1)
    area = (bottom - top) * (right - left) / side**2
    share = patch.strength * tf.cast(area, tf.float32)
    partner = tf.where(share > 0, partner, own)
    pair = tf.stack([labels, tf.gather(labels, partner)], axis=2)
    weights = tf.stack([1 - share, share], axis=1)[:, None]
    return images, pair, tf.where(is_labelled(pair), weights, 0.0)


class MixedLoss(MaskedLoss):
    """A masked loss for plain labels [batch] and for the pairs of mixed images, [batch, 2].

    The two weights of an image sum to 0 or 1.
    """

    def total(self, labels: Any, logits: Any, weights: Any) -> tuple[Any, Any]:
        """Sum the loss over the labelled images and count them; arguments as in MaskedLoss."""
        if len(labels.shape) == 1:
            return super().total(labels, logits, weights)
        own, partner = (
            ops.sum(self.example_losses(labels[:, i], logits) * weights[:, i]) for i in range(2)
        )
        return own + partner, ops.sum(ops.cast(weights, "float32"))

    def rejection_sums(self, labels: Any, logits: Any) -> tuple[Any, Any, Any, Any]:
        """Sum the rejection loss; a mixed image is labelled or other as both of its images are."""
        return super().rejection_sums(labels if len(labels.shape) == 1 else labels[:, 0], logits)


class Mixing(BatchTransform):
    """Mixup, cutmix or both, as a batch transform.

    Args:
        draw: a function of MIXES with its options.
        takes_maps: mix cached maps where the phase has them, instead of images.
    """

    def __init__(
        self, draw: Callable[[tf.Tensor, int, tf.Tensor], Patch], *, takes_maps: bool = False
    ):
        self.draw = draw
        self.takes_maps = takes_maps

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Mix a batch; shapes as in `mix_batch`."""
        return mix_batch(images, labels, seed, draw=self.draw)

    def wrap_loss(self, loss: MaskedLoss) -> MixedLoss:
        """Return the loss for pairs of labels."""
        return MixedLoss(loss.function, loss.class_weights, loss.options, loss.rejection)

    def metric_targets(self, labels: Any, weights: Any) -> tuple[Any, Any]:
        """Return the label with the larger weight of each image, and the sum of both weights."""
        if len(labels.shape) == 1:
            return labels, weights
        largest = ops.argmax(weights, axis=1)[:, None]
        labels = ops.take_along_axis(labels, largest, axis=1)[:, 0]
        return labels, ops.sum(weights, axis=1)


def build_mixing(spec: DataSpec) -> dict[str, Mixing]:
    """Return the mixing of each phase that mixes.

    Raises:
        SpecError: unknown kind or option, with its place; or both phases' mixing and one phase's.
        InputError: the spec mixes images, and uses cached features as well.
    """
    finetune = spec.phases.finetune.mix
    if spec.mix is None:
        if finetune is None:
            return {}
        return {PHASES[1]: _mixing(spec, finetune, FINETUNE_FIELD, takes_maps=True)}
    if finetune is not None:
        raise SpecError(
            f"{spec.place(None, FINETUNE_FIELD)}: mix already mixes the images of both phases; "
            "remove one of them"
        )
    features = spec.features
    if features.cache == "on" or features.views or features.smote:
        raise InputError(
            f"{spec.place(None, 'features')}: mix blends images; cached features are not images"
        )
    return dict.fromkeys(PHASES, _mixing(spec, spec.mix, "mix"))


def _mixing(spec: DataSpec, kind: Kind, field: str, *, takes_maps: bool = False) -> Mixing:
    options = check_kind(kind, MIXES, place=spec.place(None, field))
    return Mixing(functools.partial(MIXES[kind.kind], **options), takes_maps=takes_maps)
