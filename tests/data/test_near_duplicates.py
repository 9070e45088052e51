"""Near-duplicates: copies match and other paintings do not; the search; the cache; splits."""

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from multitask.data import near_duplicates
from multitask.data.image_files import MISSING_FILE
from multitask.data.near_duplicates import (
    CACHE_VERSION,
    IMAGE_PX,
    MAX_DISTANCE,
    WORDS,
    _read_cache,
    describe_pairs,
    find_pairs,
    hash_image,
    leaking_images,
    scan_images,
)
from multitask.data.table import Table


def paint(seed, *, width=240, height=180):
    """An image with detail of every size, as paintings have."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for side in (3, 6, 12, 24):
        coarse = random.integers(0, 256, (side, side + 1, 3)).astype(np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(layer) / side
    return Image.fromarray((image * 255 / image.max()).astype(np.uint8))


def scan(folder, names, **options):
    return scan_images(names, folder, cache=None, progress=False, **options)


def pairs_of(hashes):
    frame = find_pairs(hashes, np.ones(len(hashes), bool))
    return list(frame[["first", "second"]].itertuples(index=False, name=None))


# === Copies and other paintings ===

CHANGES = {
    "encoded again": lambda image: image,
    "smaller": lambda image: image.resize((120, 90), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((500, 375), Image.Resampling.BICUBIC),
    "of another shape": lambda image: image.resize((230, 180)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "of more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "of another cast": lambda image: Image.fromarray(
        (np.asarray(image) * [1.0, 0.9, 0.8]).astype(np.uint8)
    ),
    "grey": lambda image: image.convert("L"),
    "cropped": lambda image: image.crop((3, 2, 236, 178)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def test_copies_are_pairs_and_other_paintings_are_not(tmp_path):
    paintings = [f"{seed}.png" for seed in range(20)]
    for seed, name in enumerate(paintings):
        paint(seed).save(tmp_path / name)
    for name, change in CHANGES.items():
        change(paint(7)).save(tmp_path / f"{name}.jpg", quality=60)
    hashes, unusable = scan(tmp_path, [*paintings, *(f"{name}.jpg" for name in CHANGES)])
    assert unusable == {}
    with_painting = [pair for pair in pairs_of(hashes) if pair[0] < len(paintings)]
    assert with_painting == [(7, len(paintings) + i) for i in range(len(CHANGES))]


def test_different_images_of_a_data_set_are_not_pairs(tiny_data):
    data = tiny_data()
    names = sorted(str(p.relative_to(data / "wikiart")) for p in (data / "wikiart").rglob("*.jpg"))
    hashes, _ = scan(data / "wikiart", names)
    assert len(names) == 16
    assert pairs_of(hashes) == []


def colour_field(seed):
    """Two soft rectangles on a ground, always at the same places, in colours of their own."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (180, 220), tuple(random.integers(0, 60, 3)))
    draw = ImageDraw.Draw(image)
    for top, bottom in ((12, 100), (112, 205)):
        draw.rectangle((15, top, 165, bottom), tuple(random.integers(120, 256, 3)))
    return image.filter(ImageFilter.GaussianBlur(3))


FLAT = {
    "colour field": colour_field,
    "one colour": lambda seed: Image.new("RGB", (100, 100), (40 * seed, 20, 30)),
    "one pixel": lambda seed: Image.new("RGB", (1, 1), (40 * seed, 20, 30)),
    "stripes": lambda seed: Image.fromarray(
        np.repeat(np.random.default_rng(seed).integers(0, 256, (1, 64, 3)), 64, 0).astype("u1")
    ),
}


def test_flat_images_are_in_no_pair(tmp_path):
    names = [f"{name} {seed}.{end}" for name in FLAT for seed in range(4) for end in ("png", "jpg")]
    for name in names:
        kind, seed = name[:-4].rsplit(maxsplit=1)
        FLAT[kind](int(seed)).save(tmp_path / name)
    hashes, unusable = scan(tmp_path, names)
    assert unusable == {}
    assert pairs_of(hashes) == []


def test_a_hash_is_the_librarys_with_its_even_columns_first():
    image = np.asarray(paint(1).resize((IMAGE_PX, IMAGE_PX)))
    bits = np.unpackbits(hash_image(image).view(np.uint8)).reshape(2, 16, 8)
    expected = imagehash.phash(Image.fromarray(image), hash_size=16).hash
    np.testing.assert_array_equal(bits[0], expected[:, 0::2])
    np.testing.assert_array_equal(bits[1], expected[:, 1::2])


# === The search ===


def distance_by_hand(a, b):
    """Bits that differ, with the odd half of one as it is or all flipped."""
    a, b = (np.unpackbits(x.view(np.uint8)).reshape(2, -1) for x in (a, b))
    even, odd = (a != b).sum(axis=1)
    return min(even + odd, even + a.shape[1] - odd)


def flip_bits(value, bits):
    """One hash with those bits changed."""
    unpacked = np.unpackbits(value.view(np.uint8))
    unpacked[bits] ^= 1
    return np.packbits(unpacked).view(np.uint64)


@pytest.mark.parametrize("block", [near_duplicates.BLOCK, (7, 13), (300, 5)])
def test_the_search_is_that_of_brute_force(monkeypatch, block):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    random = np.random.default_rng(3)
    hashes = random.integers(0, 2**64, (120, WORDS), np.uint64)
    hashes[70] = flip_bits(hashes[20], random.permutation(128)[:MAX_DISTANCE])
    hashes[71] = flip_bits(hashes[21], random.permutation(128)[: MAX_DISTANCE + 1])
    hashes[5] = flip_bits(hashes[119], random.permutation(256)[:10])
    hashes[6] = hashes[118] ^ np.uint64([0, 0, 2**64 - 1, 2**64 - 1])  # mirrored
    hashes[40:43] = hashes[40]
    usable = np.ones(120, bool)
    usable[[42, 90]] = False
    hashes[[60, 61]] = 0
    expected = [
        (i, j, distance)
        for i in range(120)
        for j in range(i + 1, 120)
        if usable[i] and usable[j] and hashes[i].any() and hashes[j].any()
        and (distance := distance_by_hand(hashes[i], hashes[j])) <= MAX_DISTANCE
    ]  # fmt: skip
    frame = find_pairs(hashes, usable)
    assert list(frame.columns) == ["first", "second", "distance"]
    assert list(frame.itertuples(index=False, name=None)) == expected
    assert [(i, j) for i, j, _ in expected] == [(5, 119), (6, 118), (20, 70), (40, 41)]
    assert [distance for *_, distance in expected] == [10, 0, MAX_DISTANCE, 0]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count):
    frame = find_pairs(np.full((count, WORDS), 7, np.uint64), np.ones(count, bool))
    assert len(frame) == (count == 2)
    assert list(frame.columns) == ["first", "second", "distance"]


# === Scanning and its cache ===


@pytest.fixture
def decoded(monkeypatch):
    """A list with one number per call of `hash_image`."""
    calls = []

    def counted(image):
        calls.append(1)
        return hash_image(image)

    monkeypatch.setattr(near_duplicates, "hash_image", counted)
    return calls


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    names = [f"Dots/ã\xad'{seed}.jpg" for seed in range(5)]
    (folder / "Dots").mkdir(parents=True)
    for seed, name in enumerate(names):
        paint(seed).save(folder / name)
    return folder, names


def test_missing_and_unreadable_images_have_a_reason_and_no_hash(images, tmp_path):
    folder, names = images
    (folder / "text.jpg").write_text("text")
    names = [names[0], "absent.jpg", "text.jpg", names[1]]
    cache = tmp_path / "cache.npz"
    for _ in range(2):  # the unreadable one is not cached
        hashes, unusable = scan_images(names, folder, cache=cache, progress=False)
        assert unusable == {
            1: MISSING_FILE,
            2: "not a JPEG, PNG or WebP image: unknown content",
        }
        assert hashes.shape == (4, WORDS)
        assert hashes.dtype == np.uint64
        assert hashes.any(axis=1).tolist() == [True, False, False, True]
    assert scan(folder, [])[0].shape == (0, WORDS)


def test_a_second_scan_decodes_only_what_is_new_or_changed(images, tmp_path, decoded):
    folder, names = images
    cache = tmp_path / "made" / "cache.npz"

    def scanned(names):
        decoded.clear()
        hashes, unusable = scan_images(names, folder, cache=cache, progress=False)
        assert unusable == {}
        return hashes, len(decoded)

    first, count = scanned(names[:4])
    assert count == 4
    again, count = scanned(names[:4])
    assert count == 0
    np.testing.assert_array_equal(again, first)
    wider, count = scanned(names[::-1])
    assert count == 1
    np.testing.assert_array_equal(wider[:0:-1], first)
    paint(9).save(folder / names[2])
    changed, count = scanned(names)
    assert count == 1
    assert (changed != wider[::-1]).any(axis=1).tolist() == [False, False, True, False, False]
    assert scanned(names[:1])[1] == 0
    assert scanned(names)[1] == 0  # a scan of few forgets nothing of the others
    (folder / names[0]).unlink()
    hashes, unusable = scan_images(names, folder, cache=cache, progress=False)
    assert unusable == {0: MISSING_FILE}
    assert not hashes[0].any()
    assert [p.name for p in cache.parent.iterdir()] == ["cache.npz"]


def test_the_caches_name_needs_no_ending(images, tmp_path, decoded):
    folder, names = images
    for _ in range(2):
        scan_images(names, folder, cache=tmp_path / "hashes", progress=False)
    assert len(decoded) == len(names)
    assert (tmp_path / "hashes").is_file()


def foreign(names, **changes):
    content = {
        "version": CACHE_VERSION,
        "paths": np.asarray(names),
        "sizes": np.asarray([10**6] * len(names), np.int64),
        "hashes": np.ones((len(names), WORDS), np.uint64),
    } | changes
    return lambda file: np.savez(file, **{k: v for k, v in content.items() if v is not None})


NAMES = [f"Dots/ã\xad'{seed}.jpg" for seed in range(5)]
BROKEN = {
    "text": lambda file: file.write_text("text"),
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: (foreign(NAMES)(file), file.write_bytes(file.read_bytes()[:300])),
    "one array": lambda file: np.save(file.open("wb"), np.zeros(3)),
    "objects": lambda file: np.savez(file, version=np.asarray([{}], object)),
    "another version": foreign(NAMES, version="average_hash"),
    "no sizes": foreign(NAMES, sizes=None),
    "too few sizes": foreign(NAMES, sizes=np.asarray([1], np.int64)),
    "floats": foreign(NAMES, hashes=np.ones((5, WORDS))),
    "another hash": foreign(NAMES, hashes=np.ones((5, WORDS + 1), np.uint64)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_or_foreign_cache_is_empty(tmp_path, kind):
    foreign(NAMES)(tmp_path / "good.npz")
    assert list(_read_cache(tmp_path / "good.npz")) == NAMES
    BROKEN[kind](tmp_path / "cache.npz")
    assert _read_cache(tmp_path / "cache.npz") == {}


@pytest.mark.parametrize("kind", ["cut off", "other sizes"])
def test_a_broken_or_foreign_cache_is_ignored_and_written_again(images, tmp_path, decoded, kind):
    folder, names = images
    assert names == NAMES
    cache = tmp_path / "cache.npz"
    (BROKEN | {"other sizes": foreign(NAMES)})[kind](cache)
    hashes, unusable = scan_images(names, folder, cache=cache, progress=False)
    assert unusable == {}
    assert len(decoded) == len(names)
    assert not (hashes == 1).any()
    again, _ = scan_images(names, folder, cache=cache, progress=False)
    assert len(decoded) == len(names)
    np.testing.assert_array_equal(again, hashes)


def test_a_cache_that_cannot_be_written_is_not_an_error(images, tmp_path, decoded):
    folder, names = images
    (tmp_path / "file").write_text("no folder")
    hashes, unusable = scan_images(
        names, folder, cache=tmp_path / "file" / "cache.npz", progress=False
    )
    assert unusable == {}
    assert hashes.any(axis=1).all()


# === Sides ===


def test_sides_by_hand():
    table = Table(
        {"kind": ("a",)},
        np.asarray(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"], object),
        np.zeros((6, 1), np.int32),
        np.asarray(["train", "test", "validation", "test", "train", "test"], object),
    )
    rows = [(0, 1, 4), (0, 3, 6), (0, 4, 8), (1, 2, 10), (1, 3, 12)]
    pairs = pd.DataFrame(rows, columns=["first", "second", "distance"])
    described = describe_pairs(table, pairs)
    assert leaking_images(described, test=False).tolist() == ["a.jpg", "c.jpg"]
    assert leaking_images(described, test=True).tolist() == ["b.jpg", "d.jpg"]
    assert list(described.columns) == [
        "first",
        "second",
        "first_split",
        "second_split",
        "distance",
    ]
    assert described.iloc[3].tolist() == ["b.jpg", "c.jpg", "test", "validation", 10]
    assert len(described) == 5
    none = find_pairs(np.zeros((6, WORDS), np.uint64), np.ones(6, bool))
    described = describe_pairs(table, none)
    assert len(described) == 0
    for test in (False, True):
        assert leaking_images(described, test=test).tolist() == []
