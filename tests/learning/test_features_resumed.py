"""Features whose computation was stopped, by any library, and disks without room."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cached import (
    GRU,
    HELD,
    TRAINED,
    by_trunk,
    folders,
    images_of,
    slow,
)
from logged import logged

from multitask import disk as disk_module
from multitask.data.table import TRAIN, VALIDATION
from multitask.disk import DiskError
from multitask.files import locked
from multitask.learning import features
from multitask.learning.features import cache_features
from multitask.model import inference
from multitask.runtimes import choice
from multitask.runtimes.libraries import RUNTIMES


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def each_conversion_once(converted_once):
    with converted_once():
        yield


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def watched_calls(monkeypatch):
    """A list to which each reading of images adds (split, view, first row) from now on."""
    calls, original = [], features.view_dataset

    def watched(*args, split, view, rows, **options):
        calls.append((split, view, rows[0]))
        return original(*args, split=split, view=view, rows=rows, **options)

    monkeypatch.setattr(features, "view_dataset", watched)
    return calls


@pytest.fixture
def begun(shared, made, monkeypatch):
    """Computing that stops after some batches; (prepared, spec, network, its folder's bytes)."""
    prepared, spec, network = shared(features__views=1, features__dtype="float16")
    monkeypatch.setattr(features, "BATCH", 5)  # of so few images, several
    if "whole" not in made:
        train = cache_features(network, prepared, spec).train
        folder = Path(train.filename).parent
        made["whole"] = folder, bytes_of(folder)
    folder, whole = made["whole"]
    original = features.view_dataset

    def stop_after(batches, *, saved):
        """Compute again and stop after some batches; `saved`: done.json was written by then."""
        shutil.rmtree(folder)
        left = iter(range(batches))

        def view_dataset(*args, **options):
            for images in original(*args, **options):
                if next(left, None) is None:
                    raise StoppedError
                yield images

        with monkeypatch.context() as patch:
            patch.setattr(features, "view_dataset", view_dataset)
            patch.setattr(features, "SAVE_EVERY_S", 0.0 if saved else 1e9)
            with pytest.raises(StoppedError):
                cache_features(network, prepared, spec)
        assert not (folder / "features.json").exists()

    return SimpleNamespace(
        prepared=prepared, spec=spec, network=network, folder=folder, whole=whole, stop=stop_after
    )


@pytest.mark.parametrize(
    ("batches", "saved", "read"),
    [
        # Of 4 batches of the plain view, 4 of the augmented one, 2 of the validation split.
        slow(0, True, [("train", 0, 0), ("train", 1, 0), ("validation", 0, 0)]),
        slow(2, True, [("train", 0, 10), ("train", 1, 0), ("validation", 0, 0)]),
        slow(4, True, [("train", 1, 0), ("validation", 0, 0)]),
        (7, True, [("train", 1, 15), ("validation", 0, 0)]),
        slow(9, True, [("validation", 0, 5)]),
        slow(6, False, [("train", 0, 0), ("train", 1, 0), ("validation", 0, 0)]),
        (9, False, [("validation", 0, 0)]),
    ],
)
def test_computing_goes_on_where_it_stopped(begun, monkeypatch, batches, saved, read):
    begun.stop(batches, saved=saved)
    calls = watched_calls(monkeypatch)
    cache_features(begun.network, begun.prepared, begun.spec)
    assert calls == read
    assert bytes_of(begun.folder) == begun.whole


@pytest.fixture
def fastest(tmp_path, monkeypatch):
    """A function: from now on, a library is measured as the fastest, even for few images."""
    monkeypatch.setattr(inference, "FEW", 0)
    monkeypatch.setattr(choice, "TURN_S", 0.0)

    def choose(name):
        folder = str(tmp_path / name)
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda program: folder)
        monkeypatch.setattr(choice, "speed", lambda infer, *_, **__: 1 + (infer.runtime == name))

    return choose


def gone(monkeypatch, name):
    """A library is not installed from now on."""
    monkeypatch.setitem(RUNTIMES, name, dataclasses.replace(RUNTIMES[name], module="gone"))


def test_computing_goes_on_in_the_library_that_began(begun, fastest, tmp_path, monkeypatch):
    gone(monkeypatch, "openvino")  # two to choose from are enough: a conversion takes a second
    fastest("litert")
    shutil.rmtree(begun.folder)
    by_litert = cache_features(begun.network, begun.prepared, begun.spec)
    # The values are the trunk's, within the rounding of float16.
    images = images_of(begun.prepared, begun.spec, VALIDATION)
    wanted = by_trunk(begun.network, images)
    np.testing.assert_allclose(by_litert.validation, wanted, rtol=2e-3, atol=1e-4)
    whole = bytes_of(begun.folder)
    begun.stop(7, saved=True)
    shutil.copytree(begun.folder, tmp_path / "stopped")
    fastest("onnxruntime")  # such as on a busy machine
    cache_features(begun.network, begun.prepared, begun.spec)
    assert json.loads((begun.folder / "features.json").read_text())["runtime"] == "litert"
    assert bytes_of(begun.folder) == whole
    # Without the library they are computed anew, in one that is there.
    shutil.rmtree(begun.folder)
    shutil.copytree(tmp_path / "stopped", begun.folder)
    assert json.loads((begun.folder / "done.json").read_text())["runtime"] == "litert"
    gone(monkeypatch, "litert")
    calls, lines = watched_calls(monkeypatch), []
    with logged(lines):
        cache_features(begun.network, begun.prepared, begun.spec)
    assert json.loads((begun.folder / "features.json").read_text())["runtime"] == "onnxruntime"
    assert any(line.startswith("The trunk runs in ONNX Runtime 1.") for line in lines)
    assert calls == [("train", 0, 0), ("train", 1, 0), ("validation", 0, 0)]


# tests/model/test_inference.py compares the maps of every library with those of Keras, and the
# test above the features by LiteRT with the trunk's.
@pytest.mark.parametrize(
    ("runtime", "head"),
    [
        ("onnxruntime", None),
        ("onnxruntime", GRU),
        *(slow(name, head) for name in ("litert", "openvino") for head in (None, GRU)),
    ],
)
def test_features_by_a_named_library_are_the_trunks(shared, plain_images, head, runtime):
    prepared, spec, network = shared(head=head, features__runtime=runtime)
    cached = cache_features(network, prepared, spec)
    wanted = by_trunk(network, plain_images(TRAIN), pooled=head is None)
    rms = np.sqrt(np.mean(wanted**2))
    np.testing.assert_allclose(cached.train, wanted, rtol=0, atol=1e-4 * rms)


def test_what_was_written_and_not_noted_is_written_again(begun):
    """A machine that lost its power may hold anything behind what `done.json` counts."""
    begun.stop(6, saved=True)
    done = json.loads((begun.folder / "done.json").read_text())
    assert done == {"runtime": "tensorflow", "train": 28, "validation": 0}
    array = np.lib.format.open_memmap(begun.folder / "train.npy", "r+")
    array[28:] = 7
    array.flush()
    cache_features(begun.network, begun.prepared, begun.spec)
    assert bytes_of(begun.folder) == begun.whole


def test_both_files_stand_before_anything_is_counted(begun):
    """Else a process that is killed while it makes the second leaves one that cannot be read."""
    begun.stop(2, saved=True)
    for name in ("train", "validation"):
        array = np.load(begun.folder / f"{name}.npy", mmap_mode="r")
        assert array.shape == ({"train": 2 * TRAINED, "validation": HELD}[name], 12)


def test_a_second_process_waits_and_uses_what_the_first_made(prepared_data):
    prepared, spec, network = prepared_data()
    cache_features(network, prepared, spec)
    (folder,) = folders(prepared)
    kept = (folder / "features.json").read_bytes()
    (folder / "features.json").unlink()  # as if it were still computing

    class Lines(list):
        def append(self, line):
            super().append(line)
            if "waiting" in line:
                (folder / "features.json").write_bytes(kept)
                first.close()

    with contextlib.ExitStack() as first, logged(Lines()) as lines:
        first.enter_context(locked(folder.parent / f".{folder.name}.lock", lambda: None))
        cache_features(network, prepared, spec)
    assert lines == [
        f"Another process is computing these features ({folder}); waiting for it …",
        f"Features of the frozen trunk: {folder}",
    ]


# === What cannot be stored ===


def test_too_little_room_is_one_line_and_leaves_nothing(prepared_data, monkeypatch):
    prepared, spec, network = prepared_data()
    needed = (TRAINED + HELD) * 12 * 4
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda path: free)
    with pytest.raises(DiskError) as error:
        cache_features(network, prepared, spec)
    assert str(error.value) == (
        f"{prepared.folder.parents[2] / 'features'}: no room on the disk "
        f"({disk_module.size_text(needed)} needed for features, "
        f"{disk_module.size_text(needed - 1)} free); "
        "make room, name another `records_dir` or set `features.cache=off`, then run the same "
        "command again"
    )
    assert folders(prepared) == []
    free.free = needed
    cache_features(network, prepared, spec)
    assert len(folders(prepared)) == 1


def test_room_that_is_not_there_is_no_end_of_the_process(prepared_data, small_disk, monkeypatch):
    """For example under a quota, which the disk's free room does not include."""
    disk = small_disk(10**6)
    views = {"cache": "on", "dtype": "float32", "views": 200}
    prepared, spec, network = prepared_data(features=views)
    (prepared.folder.parents[2] / "features").symlink_to(disk.files)
    monkeypatch.setattr(features, "check_room", lambda *_, **__: None)
    size = 128 + 201 * TRAINED * 12 * 4
    disk.leave(100_000)
    with pytest.raises(DiskError, match=f"{disk_module.size_text(size)} needed, .* free.*=off"):
        cache_features(network, prepared, spec)
    assert folders(prepared) == []
    assert [path for path in disk.files.rglob("*") if path.suffix == ".npy"] == []


def test_mapped_files_have_all_their_blocks_before_anything_is_computed(begun):
    begun.stop(2, saved=True)
    for name in ("train", "validation"):
        result = (begun.folder / f"{name}.npy").stat()
        assert result.st_blocks * 512 >= result.st_size
