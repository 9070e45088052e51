"""The gallery: the stored embeddings of the training images, which are known from their colours."""

import dataclasses
import shutil

import numpy as np
import pytest
from logged import logged
from PIL import Image

from multitask.evaluation import gallery as gallery_module
from multitask.evaluation.gallery import load_or_build, normalised, read_gallery
from multitask.spec import MISSING, SHARED, InputError
from multitask.trained import open_trained


@pytest.fixture
def run(known, data, tmp_path):
    return known.make_run(tmp_path / "run", data)


def test_the_gallery_holds_the_training_images(run, data, known):
    lines = []
    with logged(lines):
        gallery = load_or_build(open_trained(run))
    assert list(gallery.paths) == sorted(data.train_labels["shade"])
    for column, task in enumerate(known.CLASSES):
        labels = [data.train_labels[task].get(path, MISSING) for path in gallery.paths]
        np.testing.assert_array_equal(gallery.labels[:, column], labels)
    colours = np.array([data.painted[path] for path in gallery.paths], np.float32)
    assert set(gallery.vectors) == {SHARED, *known.CLASSES}
    for name, vectors in gallery.vectors.items():
        assert (vectors.dtype, isinstance(vectors, np.memmap)) == (np.float16, True)
        loaded = gallery.loaded(name)
        np.testing.assert_allclose(np.linalg.norm(loaded, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(loaded, normalised(colours), atol=1e-3)
    assert len(lines) == 1
    assert "24 training images" in lines[0]
    assert {p.name for p in gallery.folder.iterdir()} == {
        "gallery.json",
        *(f"{name}.npy" for name in gallery.vectors),
    }


def test_the_gallery_is_built_again_only_if_it_no_longer_matches(known, data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    run = known.make_run(tmp_path / "run", data, tasks=("shade",))
    run = dataclasses.replace(run, data_dir=folder)

    def count_lines(run=run):
        lines = []
        with logged(lines):
            load_or_build(open_trained(run))
        return len(lines)

    assert [count_lines(), count_lines()] == [1, 0]
    known.colour_model(("shade",)).save(run.best_model)  # the same weights in another file
    assert count_lines() <= 1
    assert count_lines() == 0
    csv = folder / "lists" / "shade_train.csv"  # another label of an image
    first, *rest = csv.read_text().splitlines()
    path, label = first.split(",")
    csv.write_text("\n".join([f"{path},{1 - min(int(label), 1)}", *rest]) + "\n")
    assert [count_lines(), count_lines()] == [1, 0]
    image = folder / "images" / sorted(data.train_labels["shade"])[0]
    Image.new("RGB", (70, 70), (1, 2, 3)).save(image)
    assert [count_lines(), count_lines()] == [1, 0]
    folder = run.workdir / "similar" / "best_model"
    (folder / "_shared.npy").write_bytes(b"half")
    assert [count_lines(), count_lines()] == [1, 0]
    larger = run.spec.model_copy(update={"resize": "pad"})
    assert count_lines(dataclasses.replace(run, spec=larger)) == 1


def test_unreadable_images_are_excluded_and_shift_nothing(run, data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data.folder, folder)
    names = sorted(data.train_labels["shade"])
    (folder / "images" / names[4]).write_text("a text")
    (folder / "images" / names[9]).unlink()
    lines = []
    run = dataclasses.replace(run, data_dir=folder)
    with logged(lines):
        gallery = load_or_build(open_trained(run))
    kept = [name for name in names if name not in (names[4], names[9])]
    assert list(gallery.paths) == kept
    colours = normalised(np.array([data.painted[path] for path in kept], np.float32))
    np.testing.assert_allclose(gallery.loaded(SHARED), colours, atol=1e-3)
    assert lines[-1] == "  excluded: 2 that are missing or unreadable"


def test_an_interrupted_gallery_leaves_no_files(run, monkeypatch):
    def stop(*args, **kwargs):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery_module, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        load_or_build(open_trained(run))
    assert [p.name for p in (run.workdir / "similar").iterdir()] == [".best_model.lock"]


def test_no_readable_image_is_refused(run, data, tmp_path):
    shutil.copytree(data.folder / "lists", tmp_path / "data" / "lists")
    (tmp_path / "data" / "images").mkdir()
    run = dataclasses.replace(run, data_dir=tmp_path / "data")
    with pytest.raises(InputError, match=r"none of the training images can be read \(24\)"):
        load_or_build(open_trained(run))
    assert not (run.workdir / "similar" / "best_model").exists()


def test_an_existing_gallery_is_read(run):
    assert read_gallery(open_trained(run)) is None
    built = load_or_build(open_trained(run))
    read = read_gallery(open_trained(run))
    assert list(read.paths) == list(built.paths)
    assert read.classes == built.classes
    with run.best_model.open("ab") as file:  # now it is another model's
        file.write(b"x")
    assert read_gallery(open_trained(run)) is None
