"""References and bytes of images that are inside shards."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from multitask.data.sources.shards import ImageShard, open_shard
from multitask.data.sources.source import TFDS, Source
from multitask.errors import InputError, counted, shown

# References with eight digits sort in the order of the rows, which is the fast order to read.
_DIGITS = 8


def reference(shard: str, row: int) -> str:
    """The reference of an image: `data/train-00000-of-00002.parquet#00000017`.

    Args:
        shard: the file, relative to the source's folder.
        row: its row in that file, from 0.
    """
    return f"{shard}#{row:0{_DIGITS}}"


class EmbeddedImages:
    """Reads the bytes of embedded images; one shard is open at a time.

    Not thread-safe: each thread needs its own instance.

    Args:
        source: a source with embedded images.

    Example:
        >>> with EmbeddedImages(source) as images:  # doctest: +SKIP
        ...     for reference, data in images.iterate(source.frame[source.image]):
        ...         ...
    """

    def __init__(self, source: Source):
        if not source.embedded:
            raise ValueError(f"the images of {source.place} are files")
        self._kind, self._place, self._column = source.kind, source.place, source.image
        self._rank = {shard: rank for rank, shard in enumerate(source.shards)}
        self._open: tuple[str, ImageShard] | None = None

    def read(self, reference: str) -> bytes:
        """The bytes of an image, as they were embedded.

        Reading in the order of the rows is fast. An earlier row may make it read the shard again.

        Raises:
            InputError: the source has no such image, the row has no bytes, or the shard is damaged.
        """
        data = self._read(reference)
        if not data:
            shard, row = self._split(reference)
            column = shown(self._column)
            raise InputError(f"{self._path(shard)}: row {row}: column {column} has no bytes")
        return data

    def _read(self, reference: str) -> bytes | None:
        """The bytes of an image; None or empty where the row has none."""
        shard, row = self._split(reference)
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = shard, self._open_shard(shard)
        opened = self._open[1]
        if row >= opened.row_count:
            raise InputError(
                f"{self._path(shard)}: no row {row}; it has {counted(opened.row_count, 'row')}"
            )
        return opened.image(self._column, row)

    def iterate(self, references: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Read many images, shard by shard, in the order of the rows.

        Args:
            references: in any order; a repeated one yields its image once.

        Yields:
            Reference and bytes, in the order of the shards' rows; rows without bytes are skipped.

        Raises:
            InputError: the source has no such image, or a shard is damaged.
        """
        keys = sorted((self._rank[shard], row, ref) for ref in set(references)
                      for shard, row in [self._split(ref)])  # fmt: skip
        for _, _, name in keys:
            if data := self._read(name):
                yield name, data

    def _split(self, reference: str) -> tuple[str, int]:
        # Only the source's own shards are opened, whatever a reference says.
        shard, _, digits = str(reference).rpartition("#")
        if shard not in self._rank or not (digits.isascii() and digits.isdecimal()):
            raise InputError(f"{self._place}: no embedded image {shown(reference)}")
        return shard, int(digits)

    def _path(self, shard: str) -> Path:
        return self._place / shard if self._place.is_dir() else self._place

    def _open_shard(self, shard: str) -> ImageShard:
        path = self._path(shard)
        if self._kind == TFDS:
            from multitask.data.sources.tfds_shards import open_tfds_shard

            return open_tfds_shard(path)
        return open_shard(path)

    def close(self) -> None:
        """Close the open shard."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __enter__(self) -> "EmbeddedImages":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
