"""Readers of collections: a table, a Hub or TFDS data set, class folders -> one row per image."""

from multitask.data.sources.embedded import EmbeddedImages
from multitask.data.sources.opening import open_source
from multitask.data.sources.source import FOLDERS, HUB, KAGGLE, KINDS, TABLE, TFDS, Source

__all__ = [
    "FOLDERS",
    "HUB",
    "KAGGLE",
    "KINDS",
    "TABLE",
    "TFDS",
    "EmbeddedImages",
    "Source",
    "open_source",
]
