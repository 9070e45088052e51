"""Image files in folders: which are listed, in which order, and how the others are counted."""

import os

import pytest

from multitask.data.folders import SHOWN, SUFFIXES, ImageSearch


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def search(folder):
    """The image files, relative to the folder, and the line on what is skipped."""
    one = ImageSearch()
    files = one.find(str(folder))
    return [os.path.relpath(path, folder) for path in files], one.skipped.line()


def test_every_suffix_counts_in_any_case(tmp_path):
    names = [f"{i}{suffix}" for i, suffix in enumerate(SUFFIXES)]
    names += [f"{name.upper()}" for name in names]
    fill(tmp_path, *names)
    assert search(tmp_path) == (sorted(set(names)), "")
    assert {".jpg", ".jfif", ".jpe", ".png", ".webp"} <= set(SUFFIXES)


def test_images_in_a_linked_folder_are_listed(tmp_path):
    top, store = tmp_path / "top", tmp_path / "store"
    fill(top, "own.jpg")
    fill(store, "1.jpg", "deep/2.jpg")
    (top / "roll").symlink_to(store)
    assert search(top) == (["own.jpg", "roll/1.jpg", "roll/deep/2.jpg"], "")
    # The folder that is named may be a link itself.
    assert search(top / "roll") == (["1.jpg", "deep/2.jpg"], "")


@pytest.mark.parametrize("target", [".", "..", "../../a/b"])
def test_a_loop_ends(tmp_path, target):
    fill(tmp_path, "a/1.jpg", "a/b/2.jpg")
    (tmp_path / "a/b/back").symlink_to(target)
    files, line = search(tmp_path / "a")
    assert files == ["1.jpg", "b/2.jpg"]
    assert line == "Skipped: 1 link to a folder that was already read"


def test_a_folder_reached_twice_is_read_once_and_under_its_own_name(tmp_path):
    fill(tmp_path, "z/1.jpg", "m.png")
    (tmp_path / "a").symlink_to("z")  # sorts before the real folder
    (tmp_path / "b").symlink_to("a")
    files, line = search(tmp_path)
    assert files == ["m.png", "z/1.jpg"]
    assert line == "Skipped: 2 links to a folder that was already read"
    # Of two links to one folder outside, the first by name.
    (tmp_path / "x").mkdir()
    (tmp_path / "x/q").symlink_to("../z")
    (tmp_path / "x/p").symlink_to("../z")
    assert search(tmp_path / "x")[0] == ["p/1.jpg"]


def test_one_search_of_several_folders_reads_each_once(tmp_path):
    fill(tmp_path, "a/1.jpg", "a/b/2.jpg")
    one = ImageSearch()
    assert one.find(str(tmp_path / "a/b")) == [str(tmp_path / "a/b/2.jpg")]
    assert one.find(str(tmp_path / "a")) == [str(tmp_path / "a/1.jpg")]
    assert one.has_read(str(tmp_path / "a/b/.."))
    assert one.skipped.line() == ""


def test_what_is_skipped_is_counted_by_its_reason(tmp_path):
    fill(tmp_path, "1.jpg", "a.psd", "b.PSD", "c.txt", "notes", ".hidden.jpg", "._1.jpg")
    fill(tmp_path, ".thumbs/t1.jpg", ".thumbs/t2.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    files, line = search(tmp_path)
    # A link that leads nowhere gets its own line from whoever reads it.
    assert files == ["1.jpg", "gone.jpg"]
    assert line == (
        "Skipped 9 files: 4 of another type (.psd, no suffix, .txt), 2 not regular files "
        f"({tmp_path}/pipe.jpg, …), 3 hidden (names that begin with a dot)"
    )


def test_the_line_stays_one_short_line(tmp_path):
    fill(tmp_path, *(f"{i}.x{i:02}" for i in range(2000)))
    os.mkfifo(tmp_path / "two\nlines.jpg")
    files, line = search(tmp_path)
    assert files == []
    assert line.startswith("Skipped 2,001 files: 2,000 of another type (.x00, ")
    assert line.count(".x") == SHOWN
    assert "…" in line
    assert "1 not a regular file" in line
    assert "\n" not in line


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
    fill(tmp_path, "1.jpg", "closed/2.jpg")
    listing = os.scandir

    def scandir(path):  # root may list everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    files, line = search(tmp_path)
    assert files == ["1.jpg"]
    assert line == f"Skipped: {tmp_path}/closed cannot be listed (Permission denied)"
