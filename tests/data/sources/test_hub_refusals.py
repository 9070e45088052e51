"""Data sets of the Hub that are damaged, incomplete or ambiguous."""

import numpy as np
import pyarrow as pa
import pytest
from hub_files import (
    FEATURES,
    check,
    refusal,
    save,
    table,
    write_arrow,
    write_parquet,
)

from multitask.data.sources import open_source
from multitask.errors import InputError


def test_a_shard_that_is_missing(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-00003.parquet", table(0, 3))
    write_parquet(tmp_path / "data" / "train-00000-of-00003.parquet", table(0, 3))
    assert refusal(tmp_path) == (".: the shard data/train-00002-of-00003.parquet is missing")


def test_shards_that_differ(tmp_path):
    write_parquet(tmp_path / "test.parquet", table(0, 3))
    write_parquet(tmp_path / "train.parquet", table(0, 3).drop(["title"]))
    assert refusal(tmp_path) == (
        'train.parquet: no column "title", which the first shard has; it has image, style'
    )
    other = FEATURES | {"style": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    write_parquet(tmp_path / "train.parquet", table(0, 3, features=other))
    assert refusal(tmp_path) == (
        "train.parquet: column 'style' has other classes than the first shard"
    )


def test_an_index_without_a_class(tmp_path):
    rows = table(0, 4)
    rows = rows.set_column(1, "style", [[0, 1, 3, 2]])
    write_parquet(tmp_path / "train.parquet", rows)
    assert refusal(tmp_path) == (
        "train.parquet: column 'style': row 2: class 3: expected -1 to 2, because the file names "
        "3 classes"
    )


def test_several_data_sets_in_one_folder(tmp_path):
    for name in ("artists/train", "styles/train", "styles/test"):
        write_parquet(tmp_path / f"{name}.parquet", table(0, 3))
    assert refusal(tmp_path) == (
        ".: shards of several data sets (artists, styles); give the folder of one of them"
    )
    check(open_source(tmp_path / "styles"), [*range(3), *range(3)], ["test"] * 3 + ["train"] * 3)


def test_partitions_of_several_kinds_are_refused(tmp_path):
    for name in ("style=a/x", "maker=b/style=c/x"):
        write_parquet(tmp_path / f"{name}.parquet", table(0, 3))
    assert refusal(tmp_path) == (
        ".: the folders of style=a/x.parquet name the columns style, those of "
        "maker=b/style=c/x.parquet maker, style"
    )


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_shards(tmp_path, suffix):
    place = tmp_path / f"train.{suffix}"
    (write_parquet if suffix == "parquet" else write_arrow)(place, table(0, 9))
    data = place.read_bytes()
    name = suffix.capitalize()
    for cut in (data[: len(data) // 2], data[:3], b"", b"x" * 100, b"\0" * 100):
        place.write_bytes(cut)
        assert refusal(tmp_path).startswith(f"train.{suffix}: not a readable {name} file: ")
    place.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "run `git lfs pull` first" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("state.json", "{", "state.json: not JSON: Expecting property name"),
        ("state.json", "[]", "state.json: expected a JSON object"),
        ("state.json", "{}", "state.json: no list of files (_data_files)"),
        (
            "state.json",
            '{"_data_files": [{"filename": "../x.arrow"}]}',
            "state.json: '../x.arrow': paths with `..` are refused",
        ),
        (
            "state.json",
            '{"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}',
            "state.json: it stores a selection of rows as indices; apply flatten_indices() of the "
            "library datasets and save it again",
        ),
        ("state.json", '{"_data_files": []}', ".: no rows"),
        (
            "state.json",
            '{"_data_files": [{"filename": "gone.arrow"}]}',
            "gone.arrow: no such file.",
        ),
        ("dataset_info.json", "{", "dataset_info.json: not JSON: Expecting property name"),
        ("dataset_dict.json", "{}", "dataset_dict.json: splits: expected a list of names"),
        (
            "dataset_dict.json",
            '{"splits": ["train"]}',
            "dataset_dict.json: names the split 'train', which has no state.json",
        ),
        (
            "dataset_dict.json",
            '{"splits": [".."]}',
            "dataset_dict.json: names the split '..', which has no state.json",
        ),
    ],
)
def test_damaged_saved_data_sets(tmp_path, file, text, line):
    save(tmp_path, table(0, 3))
    (tmp_path / file).write_text(text)
    assert refusal(tmp_path).startswith(line)


def test_wrong_offsets_in_an_arrow_file_do_not_end_the_process(tmp_path):
    """Arrow trusts them unless it is told to check."""
    right, wrong = (np.array([0, 3, end], "<i4").tobytes() for end in (6, 2**30))
    path = tmp_path / "t.arrow"
    write_arrow(path, pa.table({"image": [b"x"] * 2, "style": ["abc", "def"]}))
    assert path.read_bytes().count(right) == 1
    path.write_bytes(path.read_bytes().replace(right, wrong))
    with pytest.raises(InputError, match=r"t\.arrow: not a readable Arrow file: .*[Oo]ffset"):
        open_source(path)
