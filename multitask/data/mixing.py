"""Mixup and cutmix: each picture of a batch with a partner of the same batch, and their labels.

A new kind is a function and a line in MIXES; what it may be told are its keyword-only parameters.
It says where the partner shows and how strongly; partners and labels are the same for all.
"""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import tensorflow as tf
from pydantic import Field

from multitask.spec import MISSING, DataSpec, check_kind

# Below 0.05, nearly every draw is 0 or 1, and nothing is mixed.
Alpha = Annotated[float, Field(ge=0.05, le=20)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Patch(NamedTuple):
    """Where a picture's partner shows, and how strongly.

    Attributes:
        strength: float32 [batch], the partner's share of a pixel inside the box; 0: not mixed.
        box: int32 [batch, 4], px: top, left, bottom, right; the last two are just outside.
    """

    strength: tf.Tensor
    box: tf.Tensor


def draw_lambda(count: int | tf.Tensor, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """float64 [count] in [0, 1]: Beta(alpha, alpha), as the share of one of two gamma draws."""
    # In float64, where two draws of the least alpha are never both 0.
    gammas = tf.random.stateless_gamma([2, count], seed, alpha, dtype=tf.float64)
    return gammas[0] / (gammas[0] + gammas[1])


def _chosen(count: int | tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    return tf.random.stateless_uniform([count], seed) < probability


def _seeds(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
    return tf.unstack(tf.random.experimental.stateless_split(seed, count))


def mixup(
    count: int | tf.Tensor,
    size_px: int,
    seed: tf.Tensor,
    *,
    alpha: Alpha = 0.2,
    probability: Probability = 1.0,
) -> Patch:
    """Mixup (Zhang et al. 2018, sec. 2): lambda · picture + (1 - lambda) · partner, everywhere.

    Lambda is drawn for each picture, where the paper's code draws one for the batch: in
    expectation the same, and every step sees weak and strong mixtures alike.

    Args:
        count: pictures of the batch.
        size_px: their side.
        seed: int [2].
        alpha: of Beta(alpha, alpha); the paper takes 0.1 to 0.4 for ImageNet.
        probability: that a picture is mixed.
    """
    for_lambda, for_choice = _seeds(seed, 2)
    strength = tf.cast(1 - draw_lambda(count, for_lambda, alpha), tf.float32)
    strength = tf.where(_chosen(count, for_choice, probability), strength, 0.0)
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

    The box has the picture's aspect and 1 - lambda of its area; its middle is drawn anywhere, and
    the picture's border cuts off what lies beyond. Lambda is drawn for each picture, where the
    paper's code draws one box for the batch.

    Args:
        count: pictures of the batch.
        size_px: their side.
        seed: int [2].
        alpha: of Beta(alpha, alpha); 1, the paper's, is uniform.
        probability: that a picture is mixed.
    """
    for_lambda, for_middle, for_choice = _seeds(seed, 3)
    side = tf.sqrt(1 - draw_lambda(count, for_lambda, alpha)) * size_px
    side = tf.cast(tf.round(side), tf.int32)[:, None]
    middle = tf.random.stateless_uniform([count, 2], for_middle, 0, size_px, tf.int32)
    start = middle - side // 2
    box = tf.clip_by_value(tf.concat([start, start + side], axis=1), 0, size_px)
    return Patch(tf.cast(_chosen(count, for_choice, probability), tf.float32), box)


def mixup_cutmix(
    count: int | tf.Tensor,
    size_px: int,
    seed: tf.Tensor,
    *,
    mixup_alpha: Alpha = 0.2,
    cutmix_alpha: Alpha = 1.0,
    probability: Probability = 1.0,
) -> Patch:
    """Of the pictures that are mixed, each by mixup or by cutmix, with equal chances."""
    for_mixup, for_cutmix, for_kind = _seeds(seed, 3)
    mixed = mixup(count, size_px, for_mixup, alpha=mixup_alpha, probability=probability)
    cut = cutmix(count, size_px, for_cutmix, alpha=cutmix_alpha, probability=probability)
    first = _chosen(count, for_kind, 0.5)
    return Patch(
        tf.where(first, mixed.strength, cut.strength),
        tf.where(first[:, None], mixed.box, cut.box),
    )


MIXES = {f.__name__: f for f in (mixup, cutmix, mixup_cutmix)}


def draw_partners(labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Each picture's partner, among those of the batch with labels of exactly the same tasks.

    So a task's label always has another to be mixed with, and none is lost. The pictures of such
    a group form one random cycle, in which each is followed by its partner.

    Args:
        labels: int32 [batch, tasks]; MISSING where the task has no label.
        seed: int [2].

    Returns:
        int32 [batch]: every picture is the partner of one; alone in its group, of itself.
    """
    count = tf.shape(labels)[0]
    group = tf.raw_ops.UniqueV2(x=labels != MISSING, axis=[0]).idx
    cycle = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
    cycle = tf.gather(cycle, tf.argsort(tf.gather(group, cycle), stable=True))  # group by group
    group = tf.gather(group, cycle)
    first, end = (tf.searchsorted(group, group, side) for side in ("left", "right"))
    after = tf.range(count) + 1
    after = tf.where(after < end, after, first)
    return tf.scatter_nd(cycle[:, None], tf.gather(cycle, after), [count])


def blend(images: tf.Tensor, partner: tf.Tensor, patch: Patch, *, size_px: int) -> tf.Tensor:
    """Each picture with its partner in the patch: float32 [batch, size_px, size_px, 3]."""
    top, left, bottom, right = tf.unstack(patch.box[:, :, None], axis=1)
    place = tf.range(size_px)
    rows = tf.cast((place >= top) & (place < bottom), tf.float32) * patch.strength[:, None]
    columns = tf.cast((place >= left) & (place < right), tf.float32)
    columns = tf.repeat(columns, 3, axis=1)  # of one channel each
    flat = tf.reshape(images, [-1, size_px, size_px * 3])

    # Picture by picture, which stays in the processor's cache: faster than the batch as a whole.
    # Not own + (other - own) · share, which rounds: inside a cutmix box the partner is exact.
    def one(inputs):
        own, other, row, column = inputs
        share = row[:, None] * column
        return flat[own] * (1 - share) + flat[other] * share

    inputs = (tf.range(tf.shape(partner)[0]), partner, rows, columns)
    mixed = tf.map_fn(one, inputs, fn_output_signature=tf.float32)
    return tf.reshape(mixed, [-1, size_px, size_px, 3])


def mix_batch(
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    size_px: int,
    draw: Callable[[tf.Tensor, int, tf.Tensor], Patch],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mix a batch.

    Args:
        images: float32 [batch, size_px, size_px, 3].
        labels: int32 [batch, tasks]; MISSING where the task has no label.
        seed: int [2]; the same seed mixes alike.
        size_px: side of the pictures.
        draw: a function of MIXES with its options.

    Returns:
        images: float32 [batch, size_px, size_px, 3].
        labels: int32 [batch, tasks, 2], the picture's own and its partner's; its own twice where
            it is not mixed, MISSING twice where the task has none.
        weights: float32 [batch, tasks, 2], the two pictures' shares of the pixels, sum 1;
            0 and 0 where the task has no label.
    """
    for_partner, for_patch = _seeds(seed, 2)
    own = tf.range(tf.shape(labels)[0])
    partner = draw_partners(labels, for_partner)
    patch = draw(tf.shape(labels)[0], size_px, for_patch)
    patch = Patch(tf.where(partner == own, 0.0, patch.strength), patch.box)
    images = blend(images, partner, patch, size_px=size_px)

    # Lambda corrected: of pixels, so that what the border cut off is no part of the share.
    top, left, bottom, right = tf.unstack(patch.box, axis=1)
    area = (bottom - top) * (right - left) / size_px**2
    share = patch.strength * tf.cast(area, tf.float32)
    partner = tf.where(share > 0, partner, own)
    pair = tf.stack([labels, tf.gather(labels, partner)], axis=2)
    weights = tf.stack([1 - share, share], axis=1)[:, None]
    return images, pair, tf.where(pair == MISSING, 0.0, weights)


def build_mixing(spec: DataSpec) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]] | None:
    """A spec's mixing, a function (images, labels, seed) as `mix_batch`; None where it has none.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    if spec.mix is None:
        return None
    options = check_kind(spec.mix, MIXES, place=spec.place(None, "mix"))
    draw = functools.partial(MIXES[spec.mix.kind], **options)
    return functools.partial(mix_batch, size_px=spec.image_size, draw=draw)
