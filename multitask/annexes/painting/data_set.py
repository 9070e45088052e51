"""Paint a small data set in the layout of ArtGAN's WikiArt, to try everything without a download.

Each image is painted for one class of every task. The classes are drawn independently of each
other: the genre is what is shown, the style is how it is painted, the artist is a palette and a
hand (size and direction of the strokes, grain of the ground). So every task can be learnt from the
pixels, and none from another task's label. Some labels are missing and some rows are wrong on
purpose, as in the real data. README.txt in the folder lists them.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from multitask.annexes.painting.artists import ARTISTS
from multitask.annexes.painting.genres import GENRES
from multitask.annexes.painting.styles import STYLES, draw_sketch, smooth_noise
from multitask.console import progress_bar
from multitask.errors import InputError
from multitask.files import check_writable, read_json, replacing, write_json

PAINTER_VERSION = 1  # goes up whenever the same flags would paint other bytes

SHARES = {  # of each task's classes; the rarest to the most frequent 1 : 3.1
    "artist": (0.34, 0.28, 0.11, 0.27),
    "style": (0.27, 0.34, 0.28, 0.11),
    "genre": (0.28, 0.11, 0.34, 0.27),
}
LABELLED_SHARE = {"artist": 0.60, "style": 0.985, "genre": 0.80}
VAL_SHARE = 0.30
LEAKS = 6  # images that are train for one task and test for another
UNKNOWN_LABEL = 9  # no class file has it
# UTF-8 read as Latin-1 and lower-cased, which is what happened to the real data's names.
MOJIBAKE_TITLES = tuple(
    title.encode().decode("latin-1").lower() for title in ("jardín", "café-azul", "la-bahía")
)
PUNCTUATED_TITLES = ("winter's-evening-(1)", "the-potter's-daughter-(study)", "l'estuaire-(detail)")
TITLE_WORDS = (
    ("quiet", "early", "late", "red", "long", "second", "open", "north", "small", "last"),
    ("morning", "harbour", "letter", "garden", "silence", "window", "crossing", "summer", "song"),
)

LEAST_IMAGES, LEAST_SIZE = 40, 16
OVERSAMPLING = 2  # painted at this multiple of the size, then shrunk

CLASSES: dict[str, tuple[str, ...]] = {
    "artist": tuple(ARTISTS),
    "style": tuple(STYLES),
    "genre": tuple(GENRES),
}


# === One image ===


def grain(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return float32 [size, size] about 0, within ±1: the ground that a hand prefers."""
    long, fine = max(2, size // 12), max(2, size // 2)
    if kind == "rows":
        return smooth_noise((size, size), (fine, long), rng)
    if kind == "columns":
        return smooth_noise((size, size), (long, fine), rng)
    if kind == "specks":
        return smooth_noise((size, size), (fine, fine), rng)
    threads = np.sin(2 * np.pi * (np.arange(size) / 5 + rng.random()))
    return (threads[:, None] * threads[None, :]).astype(np.float32)


def paint(artist: str, style: str, genre: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Paint one image of `size` pixels a side."""
    hand = ARTISTS[artist]
    sketch = draw_sketch(GENRES[genre](rng), hand, OVERSAMPLING * size, rng)
    painted = Image.fromarray(np.clip(STYLES[style](sketch, rng), 0, 255).astype(np.uint8))
    small = painted.resize((size, size), Image.Resampling.BOX)
    relief = 1 + rng.uniform(0.05, 0.09) * grain(hand.grain, size, rng)
    light = rng.uniform(0.92, 1.06) + 0.06 * smooth_noise((size, size), (2, 2), rng)
    pixels = np.asarray(small, dtype=np.float32) * (relief * light)[..., None]
    pixels = pixels + rng.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# === The plan: which images, which rows, which defects ===


@dataclass(frozen=True)
class Plan:
    """What will be painted and written.

    Attributes:
        classes: int64 [images, tasks]: what is painted, known or not.
        paths: of each image, relative to wikiart/.
        rows: of each CSV, by its stem (artist_train, ...): (path, label).
        defects: by kind: the paths concerned.
    """

    classes: np.ndarray
    paths: tuple[str, ...]
    rows: dict[str, list[tuple[str, int]]]
    defects: dict[str, list[str]]


def draw_plan(images: int, rng: np.random.Generator) -> Plan:
    """Draw plans until one has every class of every task in both of its CSVs."""
    while True:
        plan = draw_any_plan(images, rng)
        labels = {stem: {label for _, label in rows} for stem, rows in plan.rows.items()}
        if all(
            labels[f"{task}_{split}"].issuperset(range(len(names)))
            for task, names in CLASSES.items()
            for split in ("train", "val")
        ):
            return plan


def draw_any_plan(images: int, rng: np.random.Generator) -> Plan:
    """Draw one plan; in a small one, a rare class may be missing from a CSV."""
    classes = np.stack(
        [rng.permutation(shared_out(images, SHARES[task])) for task in CLASSES], axis=1
    )
    labelled = np.stack(
        [rng.permutation(images) < share * images for share in LABELLED_SHARE.values()], axis=1
    )
    tasks = list(CLASSES)
    labelled[~labelled[:, tasks.index("style")], tasks.index("genre")] = True  # none without any
    test = np.repeat((rng.permutation(images) < VAL_SHARE * images)[:, None], len(tasks), axis=1)

    odd_titles = MOJIBAKE_TITLES + PUNCTUATED_TITLES
    odd, plain = np.split(rng.permutation(images), [len(odd_titles)])
    complete = [number for number in plain if labelled[number].all()]
    leaks = complete[:LEAKS]
    for place, number in enumerate(leaks):
        column = place % len(tasks)
        test[number, column] = ~test[number, column]

    artist, genre = tasks.index("artist"), tasks.index("genre")
    others = [number for number in plain if number not in leaks]
    twice = next(n for n in others if labelled[n, genre] and test[n, genre])
    unknown = next(n for n in others if labelled[n, artist] and not test[n, artist])

    titles = dict(zip(odd, odd_titles, strict=True))
    paths = tuple(
        path_of(classes[number], titles.get(number) or drawn_title(rng), number)
        for number in range(images)
    )
    rows: dict[str, list[tuple[str, int]]] = {}
    for column, task in enumerate(tasks):
        for split, wanted in (("train", False), ("val", True)):
            numbers = np.flatnonzero(labelled[:, column] & (test[:, column] == wanted))
            rows[f"{task}_{split}"] = [(paths[n], int(classes[n, column])) for n in numbers]
    place = rows["artist_train"].index((paths[unknown], int(classes[unknown, artist])))
    rows["artist_train"][place] = (paths[unknown], UNKNOWN_LABEL)
    other_genre = (int(classes[twice, genre]) + 1) % len(GENRES)
    rows["genre_val"].append((paths[twice], other_genre))

    odd_paths = [paths[number] for number in odd]
    defects = {
        "contradictory": [paths[twice]],
        "leak": sorted(paths[number] for number in leaks),
        "unknown_label": [paths[unknown]],
        "mojibake": sorted(odd_paths[: len(MOJIBAKE_TITLES)]),
        "punctuation": sorted(odd_paths[len(MOJIBAKE_TITLES) :]),
    }
    return Plan(classes, paths, rows, defects)


def shared_out(images: int, shares: tuple[float, ...]) -> np.ndarray:
    """Return int64 [images]: the class of each, ordered, in numbers close to `shares`."""
    ends = np.round(np.cumsum(shares) * images)
    return np.searchsorted(ends, np.arange(images), side="right")


def drawn_title(rng: np.random.Generator) -> str:
    """Return a title of two words, which says nothing about any class."""
    return "-".join(rng.choice(words) for words in TITLE_WORDS)


def path_of(classes: np.ndarray, title: str, number: int) -> str:
    """Return <Style>/<artist>_<title>.jpg; the number keeps it unique."""
    artist, style = CLASSES["artist"][classes[0]], CLASSES["style"][classes[1]]
    return f"{style}/{artist.lower().replace('_', '-')}_{title}-{number + 1}.jpg"


# === Writing ===

README = """\
{images} images of {size} x {size} pixels, painted by `multitask paint` from seed {seed}.
No painter and no painting here is real; do with them what you like.

Layout, as in ArtGAN's WikiArt:
  wikiart/<Style>/<artist>_<title>.jpg
  wikiart_csv/<task>_<split>.csv     rows without a header: path below wikiart/, class index
  wikiart_csv/<task>_class.txt       lines: index, name

Genre is what is shown, style is how it is painted, artist is a palette and a hand (size and
direction of the strokes, grain of the ground). The three were drawn independently.

Rows:
{rows}

Missing labels are no defect: an image that stands in no CSV of a task has no label for it.

Defects, planted on purpose:

contradictory ({n_contradictory}): twice in genre_val.csv, with two labels.
{contradictory}

leak ({n_leak}): train for one task and test for another.
{leak}

unknown_label ({n_unknown_label}): artist_train.csv gives index {unknown}, which is no class.
{unknown_label}

mojibake ({n_mojibake}): UTF-8 read as Latin-1 in the file name, which is so on disk too.
{mojibake}

punctuation ({n_punctuation}): an apostrophe and parentheses in the file name.
{punctuation}

No file is missing and none is unreadable.
"""


@dataclass(frozen=True)
class Settings:
    """What decides every byte that is written."""

    images: int
    size: int
    seed: int

    def as_json(self) -> dict[str, int]:
        """Return the settings as DIR/demo.json holds them."""
        return {"painter_version": PAINTER_VERSION, **vars(self)}


def write_demo(folder: Path, settings: Settings) -> None:
    """Paint and write a whole set below `folder`, which must be empty."""
    plan_seed, *image_seeds = np.random.SeedSequence(settings.seed).spawn(settings.images + 1)
    plan = draw_plan(settings.images, np.random.default_rng(plan_seed))
    for style in STYLES:
        (folder / "wikiart" / style).mkdir(parents=True)
    with progress_bar("painting", settings.images) as bar:
        for path, classes, seed in zip(plan.paths, plan.classes, image_seeds, strict=True):
            artist, style, genre = (
                CLASSES[task][index] for task, index in zip(CLASSES, classes, strict=True)
            )
            image = paint(artist, style, genre, settings.size, np.random.default_rng(seed))
            image.save(folder / "wikiart" / path, quality=92, subsampling=0)
            bar.update()
    write_tables(folder / "wikiart_csv", plan)
    (folder / "README.txt").write_text(describe(plan, settings), encoding="utf-8")
    write_json(folder / "demo.json", {"settings": settings.as_json(), "defects": plan.defects})


def write_tables(folder: Path, plan: Plan) -> None:
    """Write the CSVs and the class files."""
    folder.mkdir()
    for stem, rows in plan.rows.items():
        with open(folder / f"{stem}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    for task, names in CLASSES.items():
        lines = "".join(f"{index} {name}\n" for index, name in enumerate(names))
        (folder / f"{task}_class.txt").write_text(lines, encoding="utf-8")


def describe(plan: Plan, settings: Settings) -> str:
    """Return the text of README.txt: what is there, and which defects are planted where."""
    return README.format(
        **vars(settings),
        unknown=UNKNOWN_LABEL,
        rows="\n".join(f"  {stem}.csv {len(rows)}" for stem, rows in plan.rows.items()),
        **{kind: "\n".join(f"  {path}" for path in paths) for kind, paths in plan.defects.items()},
        **{f"n_{kind}": len(paths) for kind, paths in plan.defects.items()},
    )


def paint_data_set(out: Path, settings: Settings) -> bool:
    """Write the data set to `out`, complete or not at all.

    Returns:
        Whether it was painted; False if `out` holds it already.

    Raises:
        InputError: there are too few images, they are too small, the seed is negative, or `out`
            holds something else or cannot be written.
    """
    least = {"images": LEAST_IMAGES, "size": LEAST_SIZE, "seed": 0}
    for name, smallest in least.items():
        if getattr(settings, name) < smallest:
            raise InputError(
                f"{getattr(settings, name)}: expected a number ≥ {smallest}", field=name
            )
    if is_same_set(out, settings):
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out}: holds something other than a demo of these settings; remove it or name "
            "another folder",
            field="out",
        )
    check_writable(out, field="out")
    with replacing(out) as unfinished:
        unfinished.mkdir()
        write_demo(unfinished, settings)
    return True


def is_same_set(out: Path, settings: Settings) -> bool:
    """Whether `out` holds a finished set of these settings."""
    try:
        record = read_json(out / "demo.json")
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("settings") == settings.as_json()
