"""Fine-tuning on cached maps: what the blocks below the freeze depth compute, once for each view.

These blocks stay as they are in the whole phase, so that the same view of an image always gives
the same map. The maps are computed by the fastest library, in inference mode: without stochastic
depth, as in the phase `heads`.
"""

import logging

import keras

from multitask.backend import has_accelerator
from multitask.data.records import PreparedData
from multitask.data.table import TRAIN
from multitask.learning.checkpoints import Progress
from multitask.learning.extensions import Extensions
from multitask.learning.features import has_room_for_maps
from multitask.learning.placement import ONE_DEVICE, Placement
from multitask.model.cut import Cut, cut_trunk
from multitask.model.inference import FEW
from multitask.model.network import trunk_and_heads
from multitask.model.trunks import merged_frozen_count
from multitask.spec import PHASES, DataSpec, InputError

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.5  # of the multiply-adds, for which `auto` caches


def finetune_cut(network: keras.Model, spec: DataSpec, extensions: Extensions) -> Cut | None:
    """Return where the trunk is cut if fine-tuning may train on cached maps; otherwise None.

    Raises:
        SpecError: the freeze depth is impossible.
        InputError: `phases.finetune.cache` is "on", and it is not possible.
    """
    trunk, option = trunk_and_heads(network)[0], spec.phases.finetune.cache
    frozen = merged_frozen_count(spec, trunk)
    if option == "off" or not spec.phases.finetune.epochs:
        return None
    cut = cut_trunk(trunk, frozen)
    transform = extensions.batch_transforms.get(PHASES[1])
    obstacle = None
    if transform is not None and not transform.takes_maps:
        obstacle = "mix changes the images of each batch"
    elif extensions.order.repeats:
        obstacle = "the sampler repeats images within an epoch, each with its own augmentation"
    elif cut is None:
        obstacle = f"no whole block is below the freeze depth, {frozen} layers"
    if obstacle and option == "on":
        raise InputError(f'{spec.place(None, "phases.finetune.cache")}: "on": {obstacle}')
    return None if obstacle else cut


def phase_cut(
    network: keras.Model,
    prepared: PreparedData,
    spec: DataSpec,
    progress: Progress,
    extensions: Extensions,
    placement: Placement = ONE_DEVICE,
) -> Cut | None:
    """Return the cut below which the current phase caches maps; None if it does not.

    A new phase decides, and notes it in `progress`; a resumed phase goes on as it began.
    """
    if progress.phase == PHASES[0]:
        return None
    cut = finetune_cut(network, spec, extensions)
    if not (progress.phase_epoch or progress.step):
        # Several processes might decide differently: each may have another disk.
        decides = spec.phases.finetune.cache == "on" or placement.shard.count == 1
        progress.on_maps = (
            cut is not None and decides and _is_worth_caching(cut, prepared, spec, progress)
        )
    return cut if progress.on_maps else None


def _is_worth_caching(cut: Cut, prepared: PreparedData, spec: DataSpec, progress: Progress) -> bool:
    """Decide for `auto`; always True for `on`."""
    if spec.phases.finetune.cache == "on":
        return True
    many = len(prepared.table.rows(TRAIN)) >= FEW
    if not many or cut.share <= LEAST_SHARE or has_accelerator():
        return False
    if has_room_for_maps(cut, prepared, spec, first_epoch=progress.epoch):
        return True
    logger.info("The maps of the frozen blocks are not cached: the disk has too little free space.")
    return False
