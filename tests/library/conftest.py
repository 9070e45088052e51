"""A folder as the examples of the library have it: a small collection and a run."""

import dataclasses
import importlib
import shutil

import pytest

TASKS = ("shade", "warmth")


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    """The parts that a test or an example registers are gone after it."""
    from multitask.learning.losses import LOSSES
    from multitask.learning.schedules import SCHEDULES
    from multitask.library import parts
    from multitask.model.heads import HEADS
    from multitask.model.trunks import TRUNKS

    monkeypatch.setattr(parts, "_own", set())
    registries = (HEADS, LOSSES, SCHEDULES, TRUNKS)
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


@pytest.fixture(scope="session")
def collected(known, tmp_path_factory):
    """(a folder with museum.toml, museum/, catalogue.csv and a.png, the painted data)."""
    folder = tmp_path_factory.mktemp("museum")
    data = known.paint(folder / "museum")
    trunk = {"name": "tiny", "weights": "none", "schedule": {"kind": "constant", "rate": 1e-3}}
    phases = {"heads": {"epochs": 1}, "finetune": {"epochs": 1}}
    spec = known.colour_spec(TASKS, trunk=trunk, phases=phases, validation=0.2)
    (folder / "museum.toml").write_text(spec.to_toml())
    shutil.copy(sorted((folder / "museum" / "images").rglob("*.png"))[0], folder / "a.png")
    write_catalogue(folder)
    return folder, data


@pytest.fixture(scope="session")
def made(known, collected, without_drawing, tmp_path_factory):
    """(`museum_made`, the evaluation of its run)."""
    import multitask as mt
    from multitask.model.trunks import TRUNKS

    folder = tmp_path_factory.mktemp("evaluated") / "museum"
    shutil.copytree(collected[0], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRUNKS, "tiny", importlib.import_module("tiny_trunk").two_blocks)
        patch.setattr("multitask.serving.agreement.TIMED_S", 0.0)
        data = dataclasses.replace(collected[1], folder=folder / "museum")
        known.make_run(folder / "runs" / "first", data, tasks=TASKS)
        run = mt.open_run(folder / "runs" / "first")
        with without_drawing(["svg"]):  # the files are compared with the plots of `plot()`
            evaluation = run.evaluate()
        run.export(["savedmodel", "onnx", "litert"])
    return folder, evaluation


def write_catalogue(folder):
    """catalogue.csv, a table of the images by name: shade, and a note that does not repeat."""
    images = folder / "museum" / "images"
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    rows = [f"{name},{('dark', 'light')[i % 2]},image {i} of all" for i, name in enumerate(names)]
    (folder / "catalogue.csv").write_text("\n".join(["file,shade,note", *rows]) + "\n")


@pytest.fixture(scope="session")
def museum_made(made):
    """museum.toml, museum/, catalogue.csv, a.png, and runs/first: evaluated and exported."""
    return made[0]


@pytest.fixture
def museum(museum_made, tmp_path, monkeypatch, tiny_trunk):
    """A copy of it, which is the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(museum_made, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def collection(collected, tmp_path, monkeypatch, tiny_trunk):
    """A copy of the folder as it is before its first run, which is the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(collected[0], folder)
    monkeypatch.chdir(folder)
    return folder
