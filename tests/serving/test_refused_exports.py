"""Exports that are refused, and the older export that stays."""

import dataclasses

import numpy as np
import onnx
import pytest

from multitask.errors import RunError
from multitask.runtimes.libraries import RUNTIMES
from multitask.serving import agreement, formats
from multitask.serving.agreement import Bound, why_refused
from multitask.serving.export import export
from multitask.spec import InputError

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture
def folder(run):
    """The export of the run that already exists."""
    return run.workdir / "export"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"difference": 1e-5, "same_top1": 1.0}, None),
        ({"difference": 2e-5, "same_top1": 1.0}, "by 2e-05 in probability (allowed: 1e-05)"),
        ({"difference": float("inf"), "same_top1": 1.0}, "by inf in probability"),
        ({"difference": float("nan"), "same_top1": 1.0}, "by nan in probability"),
        ({"difference": 0.0, "same_top1": 0.5}, "in 50.0% of the predictions of a (allowed: 25%)"),
    ],
)
def test_bounds(monkeypatch, entry, message):
    monkeypatch.setitem(agreement.BOUNDS, "float32", Bound(1e-5, 0.75))
    result = why_refused({"precision": "float32", "tasks": {"a": entry}})
    assert result == message if message is None else result.startswith(message)


def test_one_bad_artifact_leaves_the_older_export(run, folder, monkeypatch):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    halve = formats.halve_weights
    monkeypatch.setattr(formats, "halve_weights", lambda model: spoil(model, halve))
    with pytest.raises(RunError, match=r"ONNX Runtime \S+, disagrees with .*; it was discarded"):
        export(run, formats=["onnx"], quantize="float16")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert not list(run.workdir.glob(".*"))


def test_every_library_that_reads_an_artifact_must_agree(run, folder, monkeypatch):
    """OpenVINO reads the ONNX that ONNX Runtime was right about, and is off by a thousandth."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    openvino = RUNTIMES["openvino"]

    def off(path):
        infer = openvino.load(path)
        return lambda image: {
            name: values + 1e-3 * name.endswith("_probabilities")
            for name, values in infer(image).items()
        }

    monkeypatch.setitem(RUNTIMES, "openvino", dataclasses.replace(openvino, load=off))
    with pytest.raises(RunError, match=r"ONNX export, run by OpenVINO .* by 0\.001 in probability"):
        export(run, formats=["onnx"])

    def broken(path):
        raise ValueError("no such operation\nand more")

    monkeypatch.setitem(RUNTIMES, "openvino", dataclasses.replace(openvino, load=broken))
    with pytest.raises(RunError) as caught:
        export(run, formats=["onnx"])
    assert str(caught.value) == (
        "the ONNX export cannot be loaded by OpenVINO (no such operation); it was discarded"
    )
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def spoil(model, halve):
    halve(model)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.shape == (3, 12):
            tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onxn"]}, "format: 'onxn'. Expected one of: keras, litert, onnx, saved"),
        ({"formats": []}, "format: none named"),
        ({"formats": ["keras", "keras"]}, "format: keras is named twice"),
        ({"quantize": "int4"}, "quantize: 'int4'. Expected one of: float16, int8, none"),
        ({"quantize": "int8"}, "quantize: int8: supported by onnx and litert, not by savedmodel"),
        ({"tasks": ["shadow"]}, "tasks: 'shadow'. Expected one of: empty, shade, warmth. Did"),
        ({"tasks": []}, "tasks: none named"),
    ],
)
def test_wrong_wishes_are_one_line(run, options, message):
    with pytest.raises(InputError) as caught:
        export(run, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_only_an_older_export_is_replaced(run, tmp_path, capsys):
    """A home folder, say; its content stays."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(InputError, match=r"^out: .* holds other files than an export"):
            export(run, out=out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # an empty folder, then an export
        assert export(run, formats=["keras"], out=tmp_path / "empty") == tmp_path / "empty"
