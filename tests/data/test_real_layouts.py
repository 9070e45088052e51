"""Real paintings in each supported layout give the same rows, labels and frozen-trunk features."""

import os
from pathlib import Path

import datasets
import keras
import numpy as np
import pandas as pd
import pytest

from multitask.data.copies import with_copy
from multitask.data.draft import draft_spec
from multitask.data.records import prepare
from multitask.data.table import TEST, TRAIN
from multitask.learning.features import cache_features, file_features
from multitask.model.network import build_network
from multitask.spec import load_spec, override

pytestmark = pytest.mark.slow

TASKS = ("artist", "style", "genre")
FOLDER = {"Art_Nouveau": "Art_Nouveau_Modern"}  # class -> the folder of its images, if it differs
TRAINED, TESTED = 224, 64  # whole batches of the trunk: in a partial one the rounding could differ
LEAST = 4
# What the layouts' own specs differ in; the trunk's weights are random.
SAME = {
    "image_size": 96,
    "resize": "squash",
    "validation": 0.0,
    "trunk.name": "efficientnet_lite2",
    "trunk.weights": "none",
    "task.augment": {},
    "features.cache": "on",
    "features.dtype": "float32",
}


@pytest.fixture(scope="module")
def sample():
    """A frame of real paintings by path: the file, its split, and its class of each task or None.

    Only pandas reads the lists here. Every class has LEAST training images: otherwise it would be
    a class of the lists, but not of a table.
    """
    data = Path(os.environ.get("WIKIART_DIR", "nowhere")).absolute()
    if not (data / "wikiart").is_dir() or not (data / "wikiart_csv").is_dir():
        pytest.skip("WIKIART_DIR is not the folder with wikiart/ and wikiart_csv/ of ArtGAN")
    rows = {"train": [], "val": []}
    for task in TASKS:
        lines = (data / f"wikiart_csv/{task}_class.txt").read_text().splitlines()
        names = dict(line.split(maxsplit=1) for line in lines)
        for part, parts in rows.items():
            file = data / f"wikiart_csv/{task}_{part}.csv"
            frame = pd.read_csv(file, header=None, names=["path", "label"], dtype=str)
            parts.append(frame.assign(task=task, name=frame["label"].map(names)))
    train, test = (pd.concat(parts) for parts in rows.values())
    chosen = []
    for frame, split, count in (
        (train[~train["path"].isin(test["path"])], TRAIN, TRAINED),
        (test, TEST, TESTED),
    ):
        wide = frame.drop_duplicates(["path", "task"], keep=False)
        wide = wide.pivot(index="path", columns="task", values="name").sort_index()
        files = pd.Series({path: data / "wikiart" / path for path in wide.index})
        wide = wide.assign(file=files, split=split)[[file.is_file() for file in files]]
        for task in TASKS:
            seen = chosen[0] if chosen else wide.iloc[:: len(wide) // count].iloc[:count]
            counts = seen[task].value_counts()
            rare = wide[task].notna() & (wide[task].map(counts).fillna(0) < LEAST)
            wide = wide[~rare]
        chosen.append(wide.iloc[:: len(wide) // count].iloc[:count])
    frame = pd.concat(chosen).astype(object)
    frame = frame.where(frame.notna(), None)
    assert len({file.read_bytes() for file in frame["file"]}) == TRAINED + TESTED
    return frame


def link(sample, root):
    for path, file in sample["file"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, root / path)
    return root


# === The layouts: each returns a spec and the folder that its paths start at ===


def lists(sample, root, *, images=True):
    """ArtGAN's: its own rows of these paintings, and its own class files."""
    source = Path(os.environ["WIKIART_DIR"]) / "wikiart_csv"
    (root / "wikiart_csv").mkdir(parents=True)
    for file in source.glob("*_*"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if file.suffix == ".csv":
            lines = [line for line in lines if line.rsplit(",", 1)[0].strip('"') in sample.index]
        (root / "wikiart_csv" / file.name).write_text("".join(lines), encoding="utf-8")
    if images:
        link(sample, root / "wikiart")
    return load_spec("wikiart"), root


def table(sample, root):
    """One CSV: a row per painting, a column per task."""
    columns = sample[["split", *TASKS]].sample(frac=1, random_state=0)
    columns.to_csv(root / "catalogue.csv", index_label="file")
    place = str(root / "catalogue.csv")
    return drafted(place, TASKS, images=link(sample, root / "photos"))


def kaggle(sample, root):
    """Folders by style and classes.csv, as a data set of its own: its styles are the folders."""
    return drafted(str(kaggles(sample, root)), ("artist", "style"))


def kaggle_copy(sample, root):
    """The same folder as another copy of ArtGAN's images."""
    spec, data_dir = lists(sample, root / "lists", images=False)
    return with_copy(spec, data_dir, kaggles(sample, root))


def kaggles(sample, root):
    folder = link(sample, root / "kaggle")
    paths = sample.index.to_series()
    columns = {
        "filename": paths,
        "artist": [
            (artist or path.split("/")[1].split("_")[0]).replace("_", " ").replace("-", " ")
            for path, artist in sample["artist"].items()
        ],
        "genre": [str([path.split("/")[0].replace("_", " ")]) for path in paths],
        "description": paths.str.split("_").str[-1],
        "phash": [f"{number * 7919:016x}" for number in range(len(paths))],
        "width": 224, "height": 224, "genre_count": 1, "subset": sample["split"],
    }  # fmt: skip
    pd.DataFrame(columns).sample(frac=1, random_state=1).to_csv(folder / "classes.csv", index=False)
    return folder


def hub(sample, root):
    """Parquet by `datasets`, with the files inside, as a data set of its own."""
    return drafted(str(hubs(sample, root)), TASKS)


def hub_copy(sample, root):
    """The same Parquet files as another copy of ArtGAN's images, by the names of the files."""
    spec, data_dir = lists(sample, root / "lists", images=False)
    return with_copy(spec, data_dir, hubs(sample, root))


def hubs(sample, root):
    names = {task: sorted(set(sample[task].dropna())) for task in TASKS}
    features = {task: datasets.ClassLabel(names=names[task]) for task in TASKS}
    features |= {"image": datasets.Image()}
    (root / "hub" / "data").mkdir(parents=True)
    for split, frame in sample.sample(frac=1, random_state=2).groupby("split"):
        files = zip(frame.index, frame["file"], strict=True)
        columns = {task: [name and names[task].index(name) for name in frame[task]]
                   for task in TASKS}  # fmt: skip
        columns["image"] = [{"path": Path(p).name, "bytes": f.read_bytes()} for p, f in files]
        whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        for part in range(2):
            name = f"{split}-{part:05}-of-00002.parquet"
            whole.shard(2, part, contiguous=True).to_parquet(root / "hub" / "data" / name)
    return root / "hub"


def drafted(place, tasks, **options):
    draft = draft_spec(place, tasks=list(tasks), **options)
    # Of a table with a long tail, `init` takes the classes with ten examples or more.
    return override(draft.spec(), {"task.min_examples": 1}), draft.data_dir


# === What training gets ===


@pytest.fixture(scope="module")
def trunk_of():
    """A function: spec, prepared records -> a network with the one trunk of all tests."""
    made = []

    def network(spec, prepared):
        if not made:
            keras.utils.set_random_seed(0)
            spec = override(spec, {"task.head": {"kind": "linear"}})
            made.append(build_network(spec, prepared.table.classes))
        return made[0]

    return network


@pytest.fixture(scope="module")
def computed(sample, trunk_of, tmp_path_factory):
    """A function: layout -> a frame by the path in ArtGAN's lists: split, classes, features."""
    done = {}
    of_bytes = {file.read_bytes(): path for path, file in sample["file"].items()}

    def compute(layout):
        if layout not in done:
            root = tmp_path_factory.mktemp(layout.__name__)
            spec, data_dir = layout(sample, root)
            spec = override(spec, SAME)
            prepared = prepare(spec, data_dir, root / "records", progress=False)
            done[layout] = frame_of(spec, prepared, data_dir / spec.images)
        return done[layout]

    def frame_of(spec, prepared, image_dir):
        table, network = prepared.table, trunk_of(spec, prepared)
        files = np.array([str(image_dir / path) for path in table.paths])
        frame = pd.DataFrame({"split": table.splits, "file": files}, dtype=object)
        for column, task in enumerate(table.tasks):
            names = [*table.classes[task], None]
            labels = np.maximum(table.labels[:, column], -1)  # an image of no class has no name
            frame[task] = pd.Series([names[k] for k in labels], dtype=object)
        train, test = table.rows(TRAIN), table.rows(TEST)
        cached = cache_features(network, prepared, spec)
        frame["features"] = None
        for rows, values in (
            (train, cached.train),
            (test, file_features(network, list(files[test]), spec)),
        ):
            frame.loc[rows, "features"] = pd.Series([v.tobytes() for v in values], index=rows)
        # The files are those of ArtGAN, byte by byte: otherwise they are not in `of_bytes`.
        frame.index = [of_bytes[Path(file).read_bytes()] for file in files]
        return frame.sort_index()

    return compute


def test_the_lists_are_read_as_pandas_reads_them(sample, computed):
    frame = computed(lists)
    expected = sample.sort_index()
    for column in ("split", *TASKS):
        assert frame[column].to_dict() == expected[column].to_dict()
    assert frame["features"].nunique() == TRAINED + TESTED  # equal features would show nothing


@pytest.mark.parametrize("layout", [table, hub, kaggle_copy, hub_copy])
def test_same_rows_labels_and_features(layout, computed):
    frame, expected = computed(layout), computed(lists)
    assert list(frame.index) == list(expected.index)
    for column in ("split", *TASKS, "features"):
        assert frame[column].to_dict() == expected[column].to_dict()


def test_kaggles_own_labels(computed):
    """It has no genre, a painter for every painting, and the style is the folder, whose name is not
    always that of the class. So rows and features are the same, the style is that of the folder,
    and the artist is compared where ArtGAN names one.
    """
    frame, expected = computed(kaggle), computed(lists)
    assert list(frame.index) == list(expected.index)
    for column in ("split", "features"):
        assert frame[column].to_dict() == expected[column].to_dict()
    folders = expected["style"].map(lambda style: FOLDER.get(style, style), na_action="ignore")
    listed = expected["style"].notna()
    assert listed.sum() > 200
    assert frame["style"][listed].tolist() == folders[listed].str.replace("_", " ").tolist()
    listed = expected["artist"].notna()
    assert listed.sum() > 50
    artists = expected["artist"][listed].str.replace("_", " ").str.replace("-", " ")
    assert frame["artist"][listed].tolist() == artists.tolist()


def test_images_inside_parquet_become_files_of_the_same_bytes(sample, computed):
    files = computed(hub)["file"]
    assert {path: Path(file).read_bytes() for path, file in files.items()} == {
        path: file.read_bytes() for path, file in sample["file"].items()
    }
    assert all("hub_images/data/" in file for file in files)
