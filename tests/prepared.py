"""Prepare records without a progress bar, and read what was written."""

import hashlib
from pathlib import Path

import tensorflow_datasets as tfds

from multitask.data.records import prepare


def quiet(spec, data, *args, **options):
    return prepare(spec, data, *args, progress=False, **options)


def read_by_tfds(folder, split):
    """What someone without this package reads: a list of examples."""
    return list(tfds.builder_from_directory(folder).as_data_source(split))


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of each record file."""
    files = sorted(folder.glob("*.array_record*"))
    assert files
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
