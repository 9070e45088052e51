"""Names of splits in names of folders and files."""

import itertools
import re
from collections.abc import Iterable

from multitask.data.split_column import ALIASES

# Names that data sets give to their splits: those that a column of splits may hold. They are
# recognised here, not interpreted.
SPLIT_NAMES = tuple(itertools.chain(*ALIASES.values()))
_SHARD = re.compile(r"(?:.*[-.])?(?P<split>[A-Za-z]\w*)-(?P<index>\d{5})-of-(?P<count>\d{5})")
_WORD = re.compile(rf"(?:^|[^a-z0-9])({'|'.join(SPLIT_NAMES)})(?=$|[^a-z0-9])", re.IGNORECASE)


def is_split_name(name: str) -> bool:
    """Whether a folder's name is the name of a split; letter case is ignored."""
    return name.lower() in SPLIT_NAMES


def split_of_path(path: str) -> str | None:
    """The split of a file, taken from its name or else from the nearest folder's name.

    Args:
        path: relative to the data set: `data/train-00000-of-00002.parquet`, `train/0000.parquet`,
            `test.parquet`.

    Returns:
        The split's name as written; None if the path has none.
    """
    *folders, name = path.split("/")
    stem = name.rsplit(".", 1)[0]
    if shard := _SHARD.fullmatch(stem):
        return shard["split"]
    if word := _WORD.search(stem):
        return word[1]
    for folder in reversed(folders):
        if word := _WORD.search(folder):
            return word[1]
    return None


def missing_shards(paths: Iterable[str]) -> str | None:
    """The first shard that is missing from a numbered series (`…-00001-of-00002`), or None."""
    indices: dict[tuple[str, int, str], set[int]] = {}
    for path in paths:
        if match := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(.*)", path):
            key = match[1], int(match[3]), match[4]
            indices.setdefault(key, set()).add(int(match[2]))
    for (prefix, count, suffix), present in sorted(indices.items()):
        if absent := sorted(set(range(min(count, 100_000))) - present):
            return f"{prefix}-{absent[0]:05}-of-{count:05}{suffix}"
    return None
