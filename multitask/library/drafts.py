"""Draft the spec of a collection by guessing the roles of its columns."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from multitask.console import log_shown
from multitask.library.html import grid_html, list_html, table_html
from multitask.spec import DataSpec

if TYPE_CHECKING:
    from multitask.data.draft import Draft

PathLike = str | os.PathLike


class SpecDraft:
    """The draft of a spec, from `draft_spec`; `train` takes it in place of a spec.

    A notebook shows the role of each column with its reason; `print` shows the same.

    Args:
        draft: the source, the guesses and the spec's text.
        file: the spec's file; None if there is none.

    Attributes:
        spec: the spec.
        data_dir: the folder that the spec's paths are relative to.
        columns: one row per column: `column`, `role` (image, split, group, task or none), `reason`.
        warnings: problems for the training or the evaluation, one line each.
        text: the content of the spec's file: TOML with a comment for each guess.
    """

    def __init__(self, draft: "Draft", file: Path | None = None):
        self._draft, self._file = draft, file
        self.spec: DataSpec = draft.spec(str(file or draft.source.place))
        self.data_dir: Path = draft.data_dir
        guesses = draft.guesses
        self.columns = pd.DataFrame(
            [(guess.name, guess.role, guess.reason) for guess in guesses.columns],
            columns=["column", "role", "reason"],
        )
        self.warnings: tuple[str, ...] = guesses.warnings
        self.text: str = draft.text

    def __repr__(self) -> str:
        return f"SpecDraft({str(self._draft.source.place)!r})"

    def __str__(self) -> str:
        return "\n".join(self._draft.summary())

    def _repr_html_(self) -> str:
        source, tasks = self._draft.source, self._draft.guesses.tasks
        facts = {"images": f"{len(source):,}", "data": self.data_dir, "spec": self._file}
        facts |= {
            f"task {task.name}": f"{len(task.classes):,} classes, {task.labels:,} labels"
            for task in tasks
        }
        return (
            table_html(f"Draft of a spec for {source.place}", facts)
            + grid_html(list(self.columns), self.columns.itertuples(index=False))
            + list_html("Warnings", self.warnings)
        )


def draft_spec(
    data: PathLike,
    *,
    images: PathLike | None = None,
    tasks: Iterable[str] | None = None,
    image_column: str | None = None,
    split_column: str | None = None,
    group: str | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
) -> SpecDraft:
    """Look at a collection and draft its spec, as `multitask init` does.

    Args:
        data: a table, a folder of classes, a data set of the Hub or of TFDS, or `tfds:NAME`.
        images: the folder of the images; None: that of the table.
        tasks: the columns to learn, or names for the levels of class folders; None: guessed.
        image_column: the column of the images; None: guessed.
        split_column: the column of train, validation and test; None: guessed.
        group: the column of groups to keep on one side of a split, or a pattern; None: guessed.
        out: the spec's file to write, `*.toml`; None: there is no file.
        overwrite: replace the file if it exists.

    Returns:
        The draft.

    Raises:
        InputError: the collection is unreadable, or an argument is wrong; nothing is written.

    Example:
        >>> import multitask as mt
        >>> draft = mt.draft_spec("catalogue.csv", images="museum/images", out="drafted.toml")
        >>> draft.columns["role"].tolist()
        ['image', 'task', 'none']
        >>> print(draft)
        catalogue.csv: 61 images
          images: column 'file', because its values are files
        ...
    """
    from multitask.data import draft

    tasks = [tasks] if isinstance(tasks, str) else tasks
    file = None if out is None else Path(out)
    if file is not None:
        draft.check_out(file, overwrite=overwrite)
    with log_shown():
        made = draft.draft_spec(
            os.fspath(data),
            images=None if images is None else Path(images),
            spec_dir=None if file is None else file.parent,
            tasks=None if tasks is None else list(tasks),
            image_column=image_column,
            split=split_column,
            group=group,
        )
        made.log()
    if file is not None:
        made.write(file)
    return SpecDraft(made, file)
