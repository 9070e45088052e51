"""Data sets of the Hub on disk, as `datasets` writes them, by pyarrow."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from multitask.data.sources import EmbeddedImages, open_source
from multitask.errors import InputError

STYLES = ("Cubism", "Ukiyo-e", "naïve, art")
FEATURES = {
    "image": {"_type": "Image"},
    "style": {"names": list(STYLES), "_type": "ClassLabel"},
    "title": {"dtype": "string", "_type": "Value"},
}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image_bytes(i):
    file = io.BytesIO()
    Image.new("RGB", (4 + i, 5), (i, 2 * i, 255 - i)).save(file, "PNG")
    return file.getvalue()


def table(first, count, *, features=FEATURES):
    """Rows first, first + 1, … with style = row % 4 - 1, which includes -1 (no style)."""
    rows = range(first, first + count)
    arrays = {
        "image": pa.array([{"bytes": image_bytes(i), "path": f"{i}.png"} for i in rows], IMAGE),
        "style": pa.array([i % 4 - 1 for i in rows], pa.int64()),
        "title": pa.array([f"Title {i}" if i % 2 else None for i in rows]),
    }
    result = pa.table(arrays)
    if features:
        text = json.dumps({"info": {"features": features}})
        result = result.replace_schema_metadata({"huggingface": text})
    return result


def style_of(i):
    return None if i % 4 == 0 else STYLES[i % 4 - 1]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=3)


def write_arrow(path, rows, *, as_file=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with new(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "").replace(str(place), ".")


def check(source, rows, splits):
    """Check that a source has these rows of `table`, in this order."""
    assert (source.kind, source.image, source.embedded) == ("hub", "image", True)
    assert source.class_names == {"style": STYLES}
    assert source.frame["style"].tolist() == [style_of(i) for i in rows]
    assert source.frame["title"].tolist() == [f"Title {i}" if i % 2 else None for i in rows]
    assert source.frame["image.path"].tolist() == [f"{i}.png" for i in rows]
    if splits is None:
        assert source.split is None
    else:
        assert source.frame[source.split].tolist() == splits
    assert len(source.rows) == len(source) == len(rows)
    references = source.frame["image"].tolist()
    with EmbeddedImages(source) as images:
        assert [images.read(reference) for reference in references] == [
            image_bytes(i) for i in rows
        ]
        mixed = list(np.random.default_rng(0).permutation(references))
        assert dict(images.iterate(mixed)) == {
            reference: image_bytes(i) for reference, i in zip(references, rows, strict=True)
        }
        assert [reference for reference, _ in images.iterate(mixed)] == references


def save(folder, rows, *, split="train", files=1, **state):
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(rows) // files
    names = [f"data-{i:05}-of-{files:05}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        write_arrow(folder / name, rows.slice(i * size, size))
    content = {"_data_files": [{"filename": name} for name in names], "_split": split} | state
    (folder / "state.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
