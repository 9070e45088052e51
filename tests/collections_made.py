"""One small collection in every supported form, written by the libraries that people use.

It has forty photographs of twenty objects, two of each. The school of an object is the parity of
its number. Its period is the remainder of its number by three; every fifth object has none.
"""

import numpy as np
import pandas as pd

OBJECTS, VIEWS = 20, 2
SCHOOLS, PERIODS = ("Dutch", "French"), ("early", "late", "middle")
TASKS = ("school", "period")


def rows():
    """The collection as a frame: file, object, school, period ("" where it has none)."""
    listed = []
    for number in range(OBJECTS):
        period = "" if number % 5 == 4 else PERIODS[number % 3]
        listed += [
            {"file": f"{number:02}_{view}.png", "object": f"o.{number:02}",
             "school": SCHOOLS[number % 2], "period": period}
            for view in range(VIEWS)
        ]  # fmt: skip
    return pd.DataFrame(listed)


def paint(folder, write_image):
    """Write the photographs; return file -> bytes."""
    files = rows()["file"]
    paths = [write_image(folder / name, seed=seed) for seed, name in enumerate(files)]
    return dict(zip(files, (path.read_bytes() for path in paths), strict=True))


def make(form, folder, write_image, photos=None):
    """Write the collection.

    Args:
        photos: file -> bytes; None paints them.

    Returns:
        The arguments of `draft_spec`, and file -> the photograph's bytes.
    """
    photos = photos or paint(folder / "photos", write_image)
    return _MAKERS[form](folder, photos), photos


def _csv(folder, photos):
    rows().to_csv(folder / "catalogue.csv", index=False, sep=";", encoding="cp1252")
    return {"place": str(folder / "catalogue.csv"), "images": folder / "photos"}


def _tsv(folder, photos):
    rows().to_csv(folder / "catalogue.tsv", index=False, sep="\t", encoding="utf-16")
    return {"place": str(folder / "catalogue.tsv"), "images": folder / "photos"}


def _json_lines(folder, photos):
    frame = rows().replace("", None)
    frame.to_json(folder / "catalogue.jsonl", orient="records", lines=True)
    return {"place": str(folder / "catalogue.jsonl"), "images": folder / "photos"}


def _parquet(folder, photos):
    """With an index that is not 0, 1, …, and columns of category and text."""
    frame = rows().replace("", None).iloc[::-1]
    frame = frame.astype({"school": "category", "period": "string"})
    frame.to_parquet(folder / "catalogue.parquet")
    return {"place": str(folder / "catalogue.parquet"), "images": folder / "photos"}


def _metadata(folder, photos):
    """An image folder as `datasets` defines it: metadata.csv in the folder of the photographs."""
    frame = rows().rename(columns={"file": "file_name"})
    frame.to_csv(folder / "photos" / "metadata.csv", index=False)
    return {"place": str(folder / "photos")}


def _excel(folder, photos):
    rows().to_excel(folder / "catalogue.xlsx", index=False)
    return {"place": str(folder / "catalogue.xlsx"), "images": folder / "photos"}


def _folders(folder, photos):
    """An image without a period is in the folder `unknown`: every level needs a name."""
    for row in rows().itertuples():
        target = folder / "tree" / row.school / (row.period or "unknown") / row.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photos[row.file])
    return {"place": str(folder / "tree"), "tasks": list(TASKS)}


def _of_datasets(photos):
    """A `datasets.Dataset`: classes are numbers with names, and no period is None."""
    import datasets

    frame, features = rows(), datasets.Features()
    features["image"], features["object"] = datasets.Image(), datasets.Value("string")
    columns = {
        "image": [photos[name] and {"bytes": photos[name], "path": name} for name in frame["file"]],
        "object": list(frame["object"]),
    }
    for task, names in zip(TASKS, (SCHOOLS, PERIODS), strict=True):
        features[task] = datasets.ClassLabel(names=list(names))
        columns[task] = [names.index(value) if value else None for value in frame[task]]
    return datasets.Dataset.from_dict(columns, features=features)


def _hub(folder, photos):
    """Two shards, named as `push_to_hub` names them."""
    data = folder / "museum" / "data"
    data.mkdir(parents=True)
    whole = _of_datasets(photos)
    for part in range(2):
        shard = whole.shard(2, part, contiguous=True)
        shard.to_parquet(data / f"train-{part:05}-of-00002.parquet", batch_size=7)
    return {"place": str(folder / "museum"), "tasks": list(TASKS)}


def _saved(folder, photos):
    """Arrow files, by `save_to_disk`."""
    _of_datasets(photos).save_to_disk(folder / "saved", num_shards=2)
    return {"place": str(folder / "saved"), "tasks": list(TASKS)}


def _kaggle(folder, photos):
    """Its `genre` is really the style. There is no period, so the period is the artist here."""
    frame, root = rows(), folder / "wikiart"
    for row in frame.itertuples():
        target = root / row.school / row.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photos[row.file])
    table = pd.DataFrame(
        {
            "filename": frame["school"] + "/" + frame["file"],
            "artist": frame["period"].replace("", "unknown"),
            "genre": [str([school]) for school in frame["school"]],
            "description": [f"the view {name}" for name in frame["file"]],
            "phash": [f"{number:016x}" for number in np.arange(len(frame)) * 7919],
            "width": 40,
            "height": 30,
            "genre_count": 1,
            "subset": "train",
        }
    )
    table.loc[table.index % 10 < 2, "subset"] = "test"
    table.to_csv(root / "classes.csv", index=False)
    return {"place": str(root), "tasks": ["style", "artist"]}


def _tfds(folder, photos):
    import io

    import tensorflow_datasets as tfds

    frame = rows()

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="png"),
                "object": tfds.features.Text(),
                "school": tfds.features.ClassLabel(names=list(SCHOOLS)),
                "period": tfds.features.ClassLabel(names=list(PERIODS)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, row in enumerate(frame.itertuples()):
                period = PERIODS.index(row.period) if row.period else -1
                yield (
                    number,
                    {
                        "image": io.BytesIO(photos[row.file]),
                        "object": row.object,
                        "school": SCHOOLS.index(row.school),
                        "period": period,
                    },
                )

    Written.name = "museum"
    builder = Written(data_dir=str(folder / "tfds"), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return {"place": str(builder.data_path), "tasks": list(TASKS)}


_MAKERS = {
    "csv": _csv,
    "excel": _excel,
    "folders": _folders,
    "hub": _hub,
    "json_lines": _json_lines,
    "kaggle": _kaggle,
    "metadata": _metadata,
    "parquet": _parquet,
    "saved": _saved,
    "tfds": _tfds,
    "tsv": _tsv,
}
FORMS = tuple(_MAKERS)
