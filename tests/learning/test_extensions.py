"""The seams: their defaults, and a spec whose extensions are missing."""

import numpy as np
import pytest

from multitask.annexes.extensions import build_extensions
from multitask.learning.extensions import (
    FIELDS,
    NO_EXTENSIONS,
    ExtraRows,
    check_extensions,
    extension_options,
)
from multitask.learning.placement import ONE_DEVICE
from multitask.learning.training import check_spec, train
from multitask.spec import SpecError

SET = {
    "mix": {"mix": {"kind": "mixup"}},
    "phases.finetune.mix": {"phases": {"finetune": {"epochs": 1, "mix": {"kind": "mixup"}}}},
    "sampler": {"sampler": {"kind": "balanced"}},
    "balancing": {"balancing": {"kind": "uncertainty"}},
    "contrastive": {"contrastive": {"weight": 0.1}},
    "features.smote": {"features": {"smote": 0.5}},
}


def test_every_field_is_tried():
    assert set(SET) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_train_without_the_extensions_of_a_spec_is_refused(tiny_spec, tmp_path, field):
    spec = tiny_spec(**SET[field])
    with pytest.raises(SpecError) as error:
        train(spec, tmp_path, tmp_path / "run")
    assert str(error.value).startswith(f"tiny.toml: {field}: needs an extension that was not given")
    assert not (tmp_path / "run").exists()
    check_extensions(spec, build_extensions(spec))


def test_extensions_of_another_spec_are_refused(tiny_spec):
    spec, other = tiny_spec(**SET["sampler"]), tiny_spec()
    with pytest.raises(SpecError, match="sampler: needs an extension"):
        check_extensions(other, build_extensions(spec))


def test_a_plain_spec_needs_no_extensions(tiny_spec):
    spec = tiny_spec()
    assert extension_options(spec) == NO_EXTENSIONS.options
    check_spec(spec, NO_EXTENSIONS)
    built = build_extensions(spec)
    assert built.extra_loss is None
    assert built.batch_transforms == {}
    assert not built.order.repeats
    assert type(built.extra_rows) is ExtraRows
    assert built.balancer({"style": 0.5}).current_weights() == {"style": 0.5}


def test_tasks_of_weight_0_alone_are_refused(tiny_spec):
    with pytest.raises(SpecError) as error:
        check_spec(tiny_spec(of_tasks={"weight": 0.0}), NO_EXTENSIONS)
    assert str(error.value) == (
        "tiny.toml: balancing: every task has the weight 0: there is nothing to learn"
    )


def test_mixing_excludes_the_contrastive_loss(tiny_spec):
    spec = tiny_spec(**SET["mix"], **SET["contrastive"])
    with pytest.raises(SpecError, match="contrastive: mixed images have no single class"):
        build_extensions(spec)


def test_one_device_changes_nothing(tiny_spec):
    batches, network = object(), object()
    assert ONE_DEVICE.feed(batches) is batches
    assert ONE_DEVICE.local_copy(network) is network
    assert ONE_DEVICE.writes
    ONE_DEVICE.check(tiny_spec())
    ONE_DEVICE.agree("anything", "1")
    with ONE_DEVICE.scope(), ONE_DEVICE.reporting_lost_processes():
        pass


def test_no_extra_rows_have_the_shape_of_features():
    rows, labels = ExtraRows().make(np.ones((4, 3), np.float16), np.zeros((2, 5), np.int32))
    assert (rows.shape, rows.dtype) == ((0, 3), np.float32)
    assert (labels.shape, labels.dtype) == ((0, 5), np.int32)
