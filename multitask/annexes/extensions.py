"""A spec's options -> the extensions that implement them."""

from multitask.annexes.balancing import build_balancer
from multitask.annexes.contrastive import build_contrastive
from multitask.annexes.mixing import build_mixing
from multitask.annexes.sampler import build_order
from multitask.annexes.smote import build_smote
from multitask.learning.extensions import Extensions, extension_options
from multitask.spec import DataSpec


def build_extensions(spec: DataSpec) -> Extensions:
    """Build what `training.train` needs for the options of a spec.

    Raises:
        SpecError, InputError: an option is wrong, or contradicts another.
    """
    return Extensions(
        balancer=build_balancer(spec.balancing, place=spec.place(None, "balancing")),
        batch_transforms=build_mixing(spec),
        extra_loss=build_contrastive(spec),
        order=build_order(spec),
        extra_rows=build_smote(spec),
        options=extension_options(spec),
    )
