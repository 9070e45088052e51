"""Paths of rows and files on the disk: what is the same, what is ambiguous, what stays missing."""

import os
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from multitask.data import matching
from multitask.data.matching import (
    ACCENTS,
    BACKSLASH,
    CASE,
    ESCAPES,
    IMAGE_FOLDER,
    LETTERS,
    PERCENT,
    SPACES,
    UNICODE,
    letters,
    match_files,
    repair_mojibake,
    why_missing,
)
from multitask.data.merging import load_table, merge_tables
from multitask.data.records import prepare
from multitask.data.table import MISSING_FILE, TEST, TRAIN
from multitask.spec import InputError

NFC, NFD = (unicodedata.normalize(form, "Dots/café.jpg") for form in ("NFC", "NFD"))


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return folder


@pytest.mark.parametrize(
    ("path", "file", "kind"),
    [
        ("Dots/a.JPG", "Dots/a.jpg", CASE),
        ("dots/A.jpg", "Dots/a.jpg", CASE),
        (NFC, NFD, UNICODE),
        (NFD, NFC, UNICODE),
        ("Dots\\a.jpg", "Dots/a.jpg", BACKSLASH),
        ("wikiart/Dots/a.jpg", "Dots/a.jpg", IMAGE_FOLDER),
        ("data/wikiart/Dots/a.jpg", "Dots/a.jpg", IMAGE_FOLDER),
        ("Dots/a.jpg", "Dots /a.jpg ", SPACES),
        ("Dots/a .jpg/b.jpg", "Dots/a .jpg/ b.jpg", SPACES),
        ("Dots/joaqu\xe3\xadn.jpg", "Dots/joaqu\xedn.jpg", ACCENTS),
        ("Dots/joaqu\xedn.jpg", "Dots/joaqu\xe3\xadn.jpg", ACCENTS),
        ("Dots/o%27keeffe%20caf%C3%A9.jpg", "Dots/o'keeffe café.jpg", PERCENT),
        ("Dots/a b.jpg", "Dots/a%20b.jpg", PERCENT),
        ("Dots/l\xe3\xb3pez.jpg", "Dots/l#U00e3#U00b3pez.jpg", ESCAPES),  # `unzip` wrote it
        ("Dots/l\xe3\xb3pez.jpg", "Dots/l├ú┬│pez.jpg", ACCENTS),  # and here a reader of cp437
        ("WikiArt\\dots\\a.JPG", "Dots/a.jpg", f"{BACKSLASH} + {IMAGE_FOLDER} + {CASE}"),
        ("Dots/JOAQU\xc3\xadN.jpg", "Dots/joaqui\u0301n.jpg", f"{UNICODE} + {ACCENTS} + {CASE}"),
    ],
)  # fmt: skip
def test_one_file_with_another_spelling_matches(tmp_path, path, file, kind):
    folder = touch(tmp_path / "data" / "wikiart", file, "Dots/other.jpg", "Lines/a.png")
    match = match_files([path, "Dots/other.jpg"], folder)
    assert {name: (result.file, result.kind) for name, result in match.items()} == {
        path: (file, kind)
    }
    assert (folder / match[path].file).read_bytes() == file.encode()


def test_the_exact_file_wins_and_costs_no_listing(tmp_path, monkeypatch):
    folder = touch(tmp_path, "a.jpg", "A.JPG", "x/%41.jpg", "x/A.jpg", "wikiart/b.jpg", "b.jpg")
    monkeypatch.setattr(matching.os, "listdir", lambda folder: pytest.fail(f"listed {folder}"))
    paths = ["a.jpg", "A.JPG", "x/%41.jpg", "x/A.jpg", "wikiart/b.jpg", "b.jpg"]
    assert match_files(paths, folder) == {}


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("a.JPG", ("A.jpg", "a.jpg")),
        ("x/a.JPG", ("X/a.jpg", "x/a.jpg")),
        (NFC, (NFD, NFD.replace("jpg", "JPG"))),
        ("wikiart/b.JPG", ("b.jpg", "wikiart/b.jpg")),  # below the folder, or repeating it
        ("a%20b.jpg", ("a b.jpg", "a b.jpg ")),
    ],
)
def test_of_two_files_none_is_taken(tmp_path, path, files):
    folder = touch(tmp_path / "wikiart", *files)
    match = match_files([path], folder)[path]
    assert match.files == tuple(sorted(files))
    assert match.file is None
    reason = why_missing(path, folder, MISSING_FILE)
    assert reason.startswith("no such file; 2 files have a similar spelling, none is used: ")
    assert all(file in reason for file in files)


@pytest.mark.parametrize(
    "path",
    [
        "b.jpg",
        "Dots/b.jpg",
        "a",  # a folder in the place of a file
        "a/x.jpg/y.jpg",
        "wikiart",
        "%2e%2e/secret.jpg",
        "%2E%2E%2Fsecret.jpg",
        " .. /secret.jpg",
        ".. /secret.jpg",
        "a/%2e%2e/%2e%2e/secret.jpg",
        "a/\u2025/secret.jpg",
        "%00.jpg",
        "a" * 5000,
    ],
)
def test_what_is_not_there_stays_missing_and_nothing_leads_out(tmp_path, path):
    folder = touch(tmp_path / "wikiart", "a/x.jpg")
    touch(tmp_path, "secret.jpg")
    assert match_files([path], folder) == {}
    assert why_missing(path, folder, MISSING_FILE) == MISSING_FILE


def test_only_files_are_matched(tmp_path):
    folder = touch(tmp_path, "Dots/x.png")
    (folder / "Dots" / "a.jpg").mkdir()
    os.symlink("nowhere", folder / "Dots" / "b.jpg")
    os.mkfifo(folder / "Dots" / "c.jpg")
    assert match_files(["dots/a.jpg", "dots/b.jpg", "dots/c.jpg"], folder) == {}


def test_links_are_followed_and_loops_do_no_harm(tmp_path):
    folder = touch(tmp_path / "wikiart", "real/a.jpg")
    touch(tmp_path / "elsewhere", "b.jpg")
    os.symlink(".", folder / "loop")
    os.symlink(tmp_path / "elsewhere", folder / "Linked")
    match = match_files(["LINKED/B.jpg", "Loop/loop/real/A.jpg"], folder)
    assert [result.file for result in match.values()] == ["Linked/b.jpg", "loop/loop/real/a.jpg"]


def test_one_file_under_two_spellings_is_one_path(tmp_path):
    """On a file system that ignores case; here, two names of one file."""
    folder = touch(tmp_path, "a.jpg", "b.jpg", "B.jpg")
    os.link(folder / "a.jpg", folder / "A.JPG")
    match = match_files(["a.jpg", "A.JPG", "b.jpg", "B.jpg"], folder)
    assert {path: (result.file, result.kind) for path, result in match.items()} == {
        "a.jpg": ("A.JPG", CASE)
    }


def test_a_folder_of_a_hundred_thousand_files_is_listed_once(tmp_path, monkeypatch):
    folder = touch(tmp_path, "z.jpg")
    names, listed = [f"{i:06}_name-of-a-image-(1918).jpg" for i in range(100_000)], []

    def listdir(path):
        listed.append(Path(path))
        return names

    monkeypatch.setattr(matching.os, "listdir", listdir)
    monkeypatch.setattr(matching.os.path, "isfile", lambda path: True)
    tracemalloc.start()
    match = match_files([name.upper() for name in names[::50]], folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [result.file for result in match.values()] == names[::50]
    assert listed == [folder]
    assert peak < 60e6


# === In the table ===


def rows_by_path(table):
    return dict(zip(table.paths, table.splits, strict=True))


def test_a_test_image_under_another_spelling_is_not_trained_on(tiny_data, tiny_spec, write_image):
    """Rule 2: for another task, and for the same one."""
    rows = {
        "style_train": [("Dots/a.jpg", 0), ("Dots/B.JPG", 1), ("Dots\\c.jpg", 2)],
        "genre_val": [("DOTS/A.JPG", 0)],
        "style_val": [("Dots/b.jpg", 1)],
    }
    data = tiny_data(only=True, images=False, rows=rows)
    for seed, name in enumerate("abc"):
        write_image(data / f"wikiart/Dots/{name}.jpg", seed=seed)
    table = merge_tables(tiny_spec(), data)
    result = rows_by_path(table)
    assert {path for path in result if path.startswith("Dots")} == {
        "Dots/a.jpg",
        "Dots/b.jpg",
        "Dots/c.jpg",
    }
    assert (result["Dots/a.jpg"], result["Dots/b.jpg"], result["Dots/c.jpg"]) == (TEST, TEST, TRAIN)
    assert table.findings.leaks["path"].tolist() == ["Dots/a.jpg"] * 2
    assert table.findings.repeated["path"].tolist() == ["Dots/b.jpg"] * 2
    respelt = table.findings.respelt
    assert list(respelt[["file", "line", "path", "file_path", "kind"]].itertuples(index=False)) == [
        ("wikiart_csv/style_train.csv", 2, "Dots/B.JPG", "Dots/b.jpg", CASE),
        ("wikiart_csv/style_train.csv", 3, "Dots\\c.jpg", "Dots/c.jpg", BACKSLASH),
        ("wikiart_csv/genre_val.csv", 1, "DOTS/A.JPG", "Dots/a.jpg", CASE),
    ]
    (note,) = [note for note in table.notes if "spelled differently" in note]
    assert note == (
        "3 paths are spelled differently from their file, which is read nevertheless (letter case "
        "2, backslash for slash 1; first: style_train.csv: line 2: 'Dots/B.JPG' is 'Dots/b.jpg')"
    )


def test_contradictory_labels_under_two_spellings_are_seen(tiny_data, tiny_spec, write_image):
    rows = {"style_train": [("a.jpg", 0), ("a.JPG", 1), ("x.jpg", 1)]}
    data = tiny_data(only=True, images=False, rows=rows)
    write_image(data / "wikiart/a.jpg")
    table = merge_tables(tiny_spec(), data)
    assert table.findings.contradictory[["line", "path", "label"]].to_numpy().tolist() == [
        [1, "a.jpg", 0],
        [2, "a.jpg", 1],
    ]


def test_an_ambiguous_path_stays_missing_and_says_why(tiny_data, tiny_spec, write_image):
    rows = {"style_train": [("a.JPG", 0), ("x.jpg", 1)]}
    data = tiny_data(only=True, images=False, rows=rows)
    for seed, name in enumerate(("a.jpg", "A.jpg", "x.jpg")):
        write_image(data / "wikiart" / name, seed=seed)
    table = merge_tables(tiny_spec(), data)
    assert "a.JPG" in table.paths
    assert not {"a.jpg", "A.jpg"} & set(table.paths)
    assert table.findings.respelt.empty
    (note,) = [note for note in table.notes if "none of these is read" in note]
    assert "style_train.csv: line 1: 'a.JPG': A.jpg, a.jpg" in note


def test_missing_files_are_refused_with_their_cause(tiny_data, tiny_spec, write_image):
    rows = {"style_train": [("a.JPG", 0), ("x.jpg", 1)]}
    data = tiny_data(only=True, rows=rows)
    (data / "wikiart/a.JPG").rename(data / "wikiart/a.jpg")
    write_image(data / "wikiart/A.jpg")
    with pytest.raises(InputError) as caught:
        prepare(tiny_spec(tasks=("style",)), data, progress=False)
    assert (
        "first: a.JPG (no such file; 2 files have a similar spelling, none is used: A.jpg, a.jpg)."
    ) in str(caught.value)


def test_without_repairs_nothing_changes(tiny_data, tiny_spec):
    """The same lists with all files, with some missing, and without an image folder."""
    data = tiny_data()
    whole = load_table(tiny_spec(), data)
    missing = data / "wikiart" / whole.paths[0]
    missing.unlink()
    fewer = load_table(tiny_spec(), data)
    (data / "wikiart").rename(data / "elsewhere")
    nothing = load_table(tiny_spec(), data)
    for other in (fewer, nothing):
        assert other.paths.tolist() == whole.paths.tolist()
        assert other.labels.tolist() == whole.labels.tolist()
        assert other.notes == whole.notes
        assert other.findings.respelt.empty


# === Mojibake ===


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("jardÃ\xadn", "jardín"),  # Latin-1
        ("jardã\xadn", "jardín"),  # and lower-cased after
        ("o’keeffe".encode().decode("cp1252"), "o’keeffe"),
        ("日本".encode().decode("latin-1"), "日本"),
        ("jard├¡n", "jardín"),  # cp437
        ("jard├ú┬¡n", "jardín"),  # lower-cased Latin-1, and then cp437
        ("plain-name_(1918)", None),
        ("café", None),
        ("naïve façade", None),
        ("Été à Übersee", None),
        ("日本", None),
        ("Łódź", None),
        ("", None),
    ],
)
def test_mojibake(text, repaired):
    assert repair_mojibake(text) == repaired


# Invented names with the defects of WikiArt's names: the garbled name, the right one, and the one
# without accents and punctuation.
DAMAGED = [
    ("Dots/jos\xe3\xa9-vila_(sea).jpg", "Dots/josé-vila_(sea).jpg", "jose_vila_sea"),
    ("Dots/n\xe3\xbar\xe3\xadn_noon(2).jpg", "Dots/núrín_noon(2).jpg", "nurin_noon_2"),
    ("Dots/rom\xe3\xa8re_l'eau.jpg", "Dots/romère_l'eau.jpg", "romere_leau"),
    ("Dots/s\xe3\xb6rling_a.jpg", "Dots/sörling_a.jpg", "soerling-a"),
    ("Dots/m\xe3\xbcnch_a.jpg", "Dots/münch_a.jpg", "munch a"),
    ("Dots/ram\xe3\xb3n_b.jpg", "Dots/ramón_b.jpg", "ramn_b"),
    ("Dots/lena\xe2\xa0_c.jpg", "Dots/lena\xa0_c.jpg", "lena_c"),
    ("Dots/l\xe3\xa9on_d.jpg", "Dots/léon_d.jpg", "laon_d"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rewritten", "kinds"),
    [
        (lambda garbled, right, plain: right, {ACCENTS}),
        (
            lambda garbled, right, plain: unicodedata.normalize("NFD", right),
            {ACCENTS, f"{UNICODE} + {ACCENTS}"},
        ),
        (lambda garbled, right, plain: garbled.encode().decode("cp437"), {ACCENTS}),
        (lambda garbled, right, plain: f"DOTS/{plain}.png", {LETTERS}),
    ],
)
def test_damaged_names_are_matched_one_to_one(tmp_path, rewritten, kinds):
    files = {names[0]: rewritten(*names) for names in DAMAGED}
    folder = touch(tmp_path, *files.values())
    matches = match_files(list(files), folder, by_letters=True)
    assert {path: match.file for path, match in matches.items()} == files
    assert {match.kind for match in matches.values()} == kinds


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("A_(1)-b.c.JPG", {"a1bc"}),
        ("b\xe3\xb6cklin_(1).jpg", {"bocklin1", "boecklin1", "bcklin1", "backlin1"}),
        ("böcklin.jpg", {"bocklin", "boecklin", "bcklin"}),
        ("d%27or.jpg", {"dor"}),
        ("_-_.jpg", set()),
        ("日本.jpg", set()),
    ],
)
def test_letters(name, forms):
    assert letters(name) == forms


@pytest.mark.parametrize(
    ("paths", "files"),
    [
        (["x(1).jpg", "x-1.jpg"], ["x_1.jpg"]),  # two rows, one file
        (["x(1).jpg", "x-1.jpg"], ["x-1.jpg"]),  # it is the other row's
        (["x(1).jpg", "X-1.jpg"], ["x-1.jpg"]),  # it is, in another spelling
        (["x(1).jpg"], ["x-1.jpg", "x_1.jpg"]),  # two files
        (["x(1).jpg"], ["x-1.jpg", "x1.png"]),
        (["x(1).jpg", "x1.gif"], ["x-1.jpg", "x_1.jpg"]),
    ],
)
def test_letters_never_choose(tmp_path, paths, files):
    matches = match_files(paths, touch(tmp_path, *files), by_letters=True)
    by_letters = [match for match in matches.values() if match.kind == LETTERS]
    assert by_letters
    assert [match.file for match in by_letters] == [None] * len(by_letters)
    assert all(set(match.files) <= set(files) for match in by_letters)


def test_letters_count_only_with_by_letters(tmp_path):
    folder = touch(tmp_path, "Dots/x_1.jpg")
    assert match_files(["Dots/x(1).jpg"], folder) == {}
    (match,) = match_files(["Dots/x(1).jpg"], folder, by_letters=True).values()
    assert (match.file, match.kind) == ("Dots/x_1.jpg", LETTERS)
    assert match_files(["Dots/(-).jpg", "Dots/y.jpg"], folder, by_letters=True) == {}


# ftfy does not repair lower-cased garbled text, which the lists have. U+00E0 to U+00FE are made
# upper-case for it first.
RAISED = {c: c - 0x20 for c in range(0xE0, 0xFF) if c != 0xF7}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["right", "NFD", "escaped", "cp437", "without accents"])
def test_the_damaged_paths_of_the_real_lists_are_matched_one_to_one(tmp_path, form):
    import ftfy

    data = os.environ.get("WIKIART_DIR")
    if not data or not (Path(data) / "wikiart_csv").is_dir():
        pytest.skip("WIKIART_DIR is not the folder with wikiart_csv/ of ArtGAN")
    lines = (
        line
        for file in sorted((Path(data) / "wikiart_csv").glob("*.csv"))
        for line in file.read_text(encoding="utf-8").split("\n")
    )
    paths = sorted({line.rpartition(",")[0] for line in lines if not line.isascii()})
    assert len(paths) == 709

    def written(path):
        right = ftfy.fix_encoding(path.translate(RAISED))
        assert right != path
        apart = unicodedata.normalize("NFKD", right)
        return {
            "right": right,
            "NFD": unicodedata.normalize("NFD", right),
            "escaped": "".join(c if c.isascii() else f"#U{ord(c):04x}" for c in path),
            "cp437": path.encode().decode("cp437"),
            "without accents": apart.encode("ascii", "ignore").decode(),
        }[form]

    files = {path: written(path) for path in paths}
    assert len(set(files.values())) == 709
    folder = touch(tmp_path, *files.values())
    matches = match_files(paths, folder, by_letters=form == "without accents")
    assert {path: match.file for path, match in matches.items()} == files
    if form == "right":
        assert {path: repair_mojibake(path) for path in paths} == files
