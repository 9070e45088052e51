"""Compare distances to the training images: which of them tells that an image is no painting?

    pip install scikit-image
    python tools/measure_distance.py --spec=wikiart_lite --data_dir=DIR --out=OUT

    python tools/measure_distance.py --workdir=runs/first --out=OUT --photographs=FOLDER

The first line measures on the features of the spec's initial trunk, the second on those of a
trained run. The other images need no network. They are few:

  photographs   those that scikit-image, scikit-learn and Matplotlib install, and those of FOLDER
  graphics      logos, charts and test patterns of the same packages
  pages         pages of text, drawn
  blank         one colour, or two colours that blend
  noise         five kinds of random pixels
  damaged       test images whose file is cut off or has wrong bytes, as far as it can be decoded

Large images are reduced to the size of the training images and stored as JPEG, as those are.
Otherwise, sharpness alone would tell them apart. OUT/images/ has them all, for a look.

The table has, for each method and kind of image, the AUROC against the test images and the share
that is refused if at most 1 % and 5 % of the validation images may be. OUT/distance.csv has the
same rows. The embeddings are kept in OUT; the same command continues with them.
"""

import importlib.util
import io
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from absl import flags
from PIL import Image, ImageDraw, ImageFile, ImageFont

from multitask.commands.spec_flags import define_spec_flags, resolve_data
from multitask.conformal import ScoreTable
from multitask.errors import InputError
from multitask.files import replacing
from multitask.open_set import auroc
from multitask.spec import SHARED
from multitask.startup import import_tensorflow

SIDE_PX, QUALITY = 224, 90  # longer side of the other images, and their JPEG quality
EACH = 40  # drawn images of each kind
SHARES = (0.01, 0.05)  # of the validation images, that may be refused
TRAINING_IMAGES = (200, 2000)  # and all
NEIGHBOURS = (1, 10, 50)
RANKS = (16, 64, 256)  # directions
SPLITS = ("train", "validation", "test")
# Of scikit-image; the other files of its folder are no photographs.
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins"),
    *("grass", "gravel", "hubble_deep_field", "ihc", "microaneurysms", "moon", "motorcycle_left"),
    *("retina", "rocket", "flower", "china", "grace_hopper"),
)
GRAPHICS = (
    *("chessboard_GRAY", "chessboard_RGB", "color", "horse", "logo", "phantom"),
    *("logo2", "Minduka_Present_Blue_Pack"),
)
PAGES = ("page", "text")
FOLDERS = {
    "skimage": "data",
    "sklearn": "datasets/images",
    "matplotlib": "mpl-data/sample_data",
}


# === Images that are no paintings ===


def installed_images() -> Iterator[tuple[str, Image.Image]]:
    """Kind and image of each sample image of the installed packages."""
    kinds = {"photographs": PHOTOGRAPHS, "graphics": GRAPHICS, "pages": PAGES}
    for module, inside in FOLDERS.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            print(f"{module} is not installed; its images are not measured", file=sys.stderr)
            continue
        for file in sorted((Path(spec.origin).parent / inside).iterdir()):
            for kind, names in kinds.items():
                if file.stem in names and file.suffix in (".png", ".jpg"):
                    yield kind, Image.open(file)


def page(rng: random.Random) -> Image.Image:
    """A page of text."""
    image = Image.new("RGB", (620, 877), "white")
    draw, words = ImageDraw.Draw(image), __doc__.split()
    font = ImageFont.load_default(rng.choice([11, 14, 18, 24]))
    top = 40
    while top < 840:
        draw.text((40, top), " ".join(rng.choices(words, k=rng.randint(3, 16))), "black", font)
        top += rng.choice([20, 26, 30])
    return image


def blank(rng: random.Random) -> Image.Image:
    """One colour, or two that blend from the top to the bottom."""
    first, second = (np.array([rng.randrange(256) for _ in range(3)]) for _ in range(2))
    share = np.linspace(0, rng.choice([0, 0, 1]), 200)[:, None, None]
    pixels = first * (1 - share) + second * share
    return Image.fromarray(np.repeat(pixels, 200, axis=1).astype(np.uint8))


def noise(rng: random.Random) -> Image.Image:
    """Independent pixels, grey ones, stripes, coarse squares, or clouds."""
    pixels = np.random.default_rng(rng.randrange(2**32))
    kind = rng.choice(["colour", "grey", "stripes", "squares", "clouds"])
    shape = {"grey": (200, 200, 1), "stripes": (200, 1, 3), "squares": (10, 10, 3)}
    values = pixels.random(shape.get(kind, (200, 200, 3)))
    if kind == "clouds":
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(200), np.fft.fftfreq(200)))
        waves = np.fft.fft2(values, axes=(0, 1)) / np.maximum(frequency, 1 / 200)[:, :, None] ** 1.5
        values = np.fft.ifft2(waves, axes=(0, 1)).real
        values = (values - values.min()) / np.ptp(values)
    if kind == "squares":
        values = np.kron(values, np.ones((20, 20, 1)))
    return Image.fromarray((np.ones((200, 200, 3)) * values * 255).astype(np.uint8))


def damaged(path: Path, rng: random.Random) -> Image.Image | None:
    """A JPEG file that is cut off or has wrong bytes; None if it cannot be decoded."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del data[int(len(data) * rng.uniform(0.15, 0.6)) :]
    else:
        for place in rng.sample(range(len(data) // 5, len(data)), 40):
            data[place] = rng.randrange(255)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except OSError:
        return None
    return image


DRAWN: dict[str, Callable[[random.Random], Image.Image]] = {
    "pages": page,
    "blank": blank,
    "noise": noise,
}


def write_images(folder: Path, more: Path | None, tests: list[str]) -> None:
    """Write all images, reduced, as `folder`/KIND/NUMBER.jpg."""
    rng = random.Random(0)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    images = [*installed_images()]
    for file in sorted(more.iterdir()) if more else ():
        images.append(("photographs", Image.open(file)))
    for kind, draw in DRAWN.items():
        images += [(kind, draw(rng)) for _ in range(EACH)]
    for name in rng.sample(tests, min(2 * EACH, len(tests))):
        image = damaged(Path(name), rng)
        images += [("damaged", image)] if image else []
    for number, (kind, image) in enumerate(images):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image = image.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        opaque.thumbnail((SIDE_PX, SIDE_PX))
        opaque.convert("RGB").save(folder / kind / f"{number:03}.jpg", quality=QUALITY)


# === Embeddings ===


def embeddings(values: flags.FlagValues, left: list[str], out: Path) -> dict[str, np.ndarray]:
    """Split, or kind of other image, -> float32 [n, width] of length 1; kept in `out`."""
    file = out / "embeddings.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return dict(arrays)
    import_tensorflow()
    from multitask.data.pipeline import file_names
    from multitask.evaluation.gallery import embed_all

    spec, table, image_dir, examiner = _opened(values, left)
    names = {}
    for split in SPLITS:
        files = file_names(table, table.rows(split), image_dir)
        names[split] = [name for name in files if os.path.isfile(name)]
    more = Path(values.photographs) if values.photographs else None
    with replacing(out / "images") as temporary:
        write_images(temporary, more, names["test"])
    for folder in sorted((out / "images").iterdir()):
        names[folder.name] = [str(image) for image in sorted(folder.iterdir())]
    arrays = {}
    for kind, files in names.items():
        arrays[kind] = embed_all(examiner, files, spec, description=kind)[1][SHARED]
    with replacing(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **arrays)
    return arrays


def _opened(values: flags.FlagValues, left: list[str]) -> tuple[Any, Any, Path, Any]:
    """Spec, table, folder of the images and examiner of the run, or of the spec's trunk."""
    from multitask.data.merging import merge_tables
    from multitask.data.table import sample_table
    from multitask.evaluation.examiner import Examiner, examiner_of
    from multitask.model.network import build_network
    from multitask.run import open_run
    from multitask.trained import open_trained

    if values.workdir:
        trained = open_trained(open_run(Path(values.workdir)))
        return trained.spec, trained.training_table, trained.image_dir, examiner_of(trained)
    spec, data_dir = resolve_data(values, left, "measure_distance", ("out",))
    table = sample_table(spec, merge_tables(spec, data_dir))
    return spec, table, data_dir / spec.images, Examiner(build_network(spec, table.classes))


# === Distances ===


def mahalanobis(training: np.ndarray, rank: int) -> Callable[[np.ndarray], np.ndarray]:
    """That of `fit_distance` with `rank` directions; of the full covariance if it has the width."""
    from multitask import feature_distance

    with mock.patch.multiple(
        feature_distance, DIRECTIONS=rank, MOST_IMAGES=len(training), IMAGES_PER_DIRECTION=2
    ):
        return feature_distance.fit_distance(training, training[:1]).distances


def shrunk(training: np.ndarray, share: float) -> Callable[[np.ndarray], np.ndarray]:
    """That of Mahalanobis; a share of the covariance is the same variance in all directions."""
    mean, covariance = training.mean(axis=0), np.cov(training.T)
    width = len(mean)
    even = np.trace(covariance) / width * np.eye(width)
    inverse = np.linalg.inv((1 - share) * covariance + share * even)
    return lambda x: ((x - mean) @ inverse * (x - mean)).sum(axis=1)


def neighbour(training: np.ndarray, k: int) -> Callable[[np.ndarray], np.ndarray]:
    """The distance to the k-th nearest training image (Sun et al. 2022)."""
    return lambda x: np.partition(1 - x @ training.T, k - 1, axis=1)[:, k - 1]


def methods(training: np.ndarray, images: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name -> distance, fitted on a number of the training images, drawn with a seed."""
    rows = np.random.default_rng(0).permutation(len(training))[:images]
    training = training[np.sort(rows)].astype(np.float64)
    result = {f"neighbour {k}": neighbour(training, k) for k in NEIGHBOURS if k <= len(training)}
    result |= {
        f"mahalanobis {rank}": mahalanobis(training, rank)
        for rank in RANKS
        if rank <= min(len(training), training.shape[1]) // 2
    }
    return result | {"mahalanobis, shrunk": shrunk(training, 0.1)}


def measure(arrays: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row for each number of training images, method and kind of other images."""
    rows = []
    kinds = [kind for kind in arrays if kind not in SPLITS]
    counts = [count for count in TRAINING_IMAGES if count < len(arrays["train"])]
    for images in [*counts, len(arrays["train"])]:
        for name, distance in methods(arrays["train"], images).items():
            validation = ScoreTable.of(distance(arrays["validation"]))
            limits = [validation.quantile(1 - share) for share in SHARES]
            test = distance(arrays["test"])
            for kind in kinds:
                others = distance(arrays[kind])
                row = {"training": images, "method": name, "kind": kind, "images": len(others)}
                row["auroc"] = auroc(others, test)
                for share, limit in zip(SHARES, limits, strict=True):
                    row[f"refused_{share:g}"] = (others > limit).mean()
                    row[f"test_{share:g}"] = (test > limit).mean()
                rows.append(row)
    return pd.DataFrame(rows)


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    define_spec_flags(values)
    flags.DEFINE_string("workdir", None, "a run; None: the spec's trunk", flag_values=values)
    flags.DEFINE_string("out", None, "folder of the results", flag_values=values)
    flags.DEFINE_string("photographs", None, "folder of more photographs", flag_values=values)
    try:
        left = values(argv)[1:]
        if not values.out:
            raise InputError("out: is needed", field="out")
        out = Path(values.out)
        out.mkdir(parents=True, exist_ok=True)
        table = measure(embeddings(values, left, out))
    except (flags.Error, InputError) as error:
        flag = "--" if getattr(error, "field", None) in values else ""
        print(f"measure_distance.py: {flag}{error}", file=sys.stderr)
        sys.exit(2)
    with replacing(out / "distance.csv") as temporary:
        table.to_csv(temporary, index=False)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv)
