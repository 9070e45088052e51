"""What `prepare` refuses, and the same records by Apache Beam."""

import shutil

import pytest
from prepared import content, quiet, tree

from multitask.data import records_builder
from multitask.data.table import TRAIN
from multitask.disk import DiskError
from multitask.spec import InputError, override


@pytest.mark.parametrize(
    ("workers", "mode"),
    [(1, "in_memory"), pytest.param(2, "multi_processing", marks=pytest.mark.slow)],
)
def test_beam_makes_the_very_same_records(tiny_data, tiny_spec, monkeypatch, workers, mode):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(records_builder, "SHARD_IMAGES", 5)
    rows = [(f"Dots/{i:02}.jpg", i % 2) for i in range(21)]
    spec = tiny_spec(validation=0.25)
    data = tiny_data(rows={"style_train": rows, "genre_train": rows[::2], "artist_train": rows})
    (data / "wikiart/Dots/07.jpg").write_text("no image")
    spec = override(spec, {"max_missing": 0.1})
    here = quiet(spec, data, data / "here")
    beam = quiet(
        spec,
        data,
        data / "beam",
        beam_runner="DirectRunner",
        beam_options=[f"direct_num_workers={workers}", f"direct_running_mode={mode}"],
    )
    assert beam.fresh
    assert beam.fingerprint == here.fingerprint
    assert len(content(here.folder)) > 4
    assert content(beam.folder) == content(here.folder)
    assert beam.table.excluded == here.table.excluded != {}


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("DirektRunner", [], "beam_runner: 'DirektRunner'"),
        (None, ["a=1"], "beam_options: needs `beam_runner`"),
    ],
)
def test_wrong_beam_flags(tiny_data, tiny_spec, runner, options, message):
    data = tiny_data()
    before = tree(data)
    with pytest.raises(InputError, match=message):
        quiet(tiny_spec(), data, beam_runner=runner, beam_options=options)
    assert tree(data) == before


def test_too_many_missing_are_refused_before_any_work(tiny_data, tiny_spec):
    data = tiny_data()
    for name in ("Dots/someone_train-00.jpg", "Dots/someone_val-00.jpg"):
        (data / "wikiart" / name).unlink()
    before = tree(data)
    with pytest.raises(InputError, match=r"2 of 16 images \(12.500%\) are missing.*first: Dots/"):
        quiet(tiny_spec(max_missing=0.12), data)
    assert tree(data) == before
    assert quiet(tiny_spec(max_missing=0.125), data).fresh


def test_too_many_unreadable_are_refused_and_the_work_is_kept(tiny_data, tiny_spec):
    data = tiny_data()
    (data / "wikiart/Dots/someone_train-00.jpg").write_text("no image")
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 of 16 images.*not a JPEG, PNG or WebP image"):
            quiet(tiny_spec(), data)
    allowed = quiet(tiny_spec(max_missing=0.1), data)
    assert not allowed.fresh
    assert len(allowed.table.rows(TRAIN)) == 11


def test_no_readable_image_at_all(tiny_data, tiny_spec):
    data = tiny_data()
    for file in (data / "wikiart").glob("*/*train*.jpg"):
        file.write_text("no image")
    with pytest.raises(InputError, match="no training image can be read"):
        quiet(tiny_spec(max_missing=0.9), data)


def test_a_records_dir_that_cannot_be_created(tiny_data, tiny_spec):
    data = tiny_data()
    (data / "file").write_text("")
    for folder in (data / "file", data / "file/below"):
        with pytest.raises(InputError, match=r"^records_dir: .*cannot be written to"):
            quiet(tiny_spec(), data, folder)


def test_too_little_space_is_an_error_before_the_work(tiny_data, tiny_spec, monkeypatch):
    data = tiny_data()
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskError, match=r"for 12 images, 10 bytes free.* `records_dir`") as caught:
        quiet(tiny_spec(), data)
    assert str(caught.value).startswith(f"{data / 'records/multitask'}: no room on the disk (")
    assert not [name for name in tree(data) if "array_record" in name]
