"""Merge the CSVs or the collection of all tasks into one Table, one row per image.

The rule numbers are those of the rules in docs/data.md: 1 one row per image, 2 no
test image in training, 4 contradictory labels are dropped, 5 unknown labels are filtered.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from multitask.data.collection import read_collection
from multitask.data.label_files import LabelledRows, read_lists
from multitask.data.matching import Match, match_files
from multitask.data.others import label_others
from multitask.data.path_labels import add_path_labels
from multitask.data.table import (
    TEST,
    TRAIN,
    UNKNOWN_LABEL,
    VALIDATION,
    Findings,
    Table,
    sample_table,
    sample_without,
)
from multitask.errors import counted
from multitask.files import check_is_folder
from multitask.spec import MISSING, DataSpec, is_labelled, shown


def _match_paths(
    frame: pd.DataFrame, matches: Mapping[str, Match]
) -> tuple[pd.DataFrame, Findings]:
    """Replace paths by those of their files; also return the rows that are spelled differently."""
    unmatched = frame[frame["path"].isin(list(matches))]
    row_matches = [matches[path] for path in unmatched["path"]]
    unmatched = unmatched.assign(
        file_path=[match.file for match in row_matches],
        kind=[match.kind for match in row_matches],
        candidates=[", ".join(match.files) for match in row_matches],
    )
    one = unmatched["file_path"].notna()
    frame = frame.assign(path=[_file_path(path, matches) for path in frame["path"]])
    return frame, Findings(respelt=unmatched[one], ambiguous=unmatched[~one])


def _file_path(path: str, matches: Mapping[str, Match]) -> str:
    match = matches.get(path)
    return path if match is None or match.file is None else match.file


def describe_respelt(findings: Findings) -> list[str]:
    """Count the paths that are spelled differently from their file.

    Returns:
        A line on the paths whose file is read, and a line on those that match several files or
        another path's file; each only if there are any.
    """
    notes = []
    if len(findings.respelt):
        paths = findings.respelt.drop_duplicates("path")
        one = "path is spelled differently from its file"
        many = "paths are spelled differently from their file"
        kinds = ", ".join(
            f"{kind} {count:,}" for kind, count in paths["kind"].value_counts().items()
        )
        first = paths.iloc[0]
        notes.append(
            f"{counted(len(paths), one, many)}, which is read "
            f"nevertheless ({kinds}; first: {Path(first['file']).name}: line {first['line']}: "
            f"{shown(first['path'])} is {shown(first['file_path'])})"
        )
    if len(findings.ambiguous):
        paths = findings.ambiguous.drop_duplicates("path")
        first = paths.iloc[0]
        notes.append(
            f"{counted(len(paths), 'path has no file, but is', 'paths have no file, but are')} "
            "spelled like several files or like another path's file; none of these is read "
            f"(first: {Path(first['file']).name}: line {first['line']}: "
            f"{shown(first['path'])}: {first['candidates']})"
        )
    return notes


def _one_row_per_path(frame: pd.DataFrame) -> tuple[pd.DataFrame, Findings, list[str]]:
    """Reduce the rows of a task's files to one per path.

    Returns:
        The rows, the findings in them, and the notes.
    """
    notes, task = [], frame["task"].iloc[0] if len(frame) else ""
    safe, known = frame["unsafe"] == "", is_labelled(frame["label"])
    unsafe = frame[~safe].rename(columns={"unsafe": "reason"})
    unknown = frame[safe & ~known]
    frame = frame[safe & known]
    grouped = frame.groupby("path", sort=False)["label"].agg(["min", "max", "size"])
    alike = grouped["min"] == grouped["max"]
    contradictory = frame[frame["path"].isin(grouped.index[~alike])]
    repeated = frame[frame["path"].isin(grouped.index[alike & (grouped["size"] > 1)])]
    if len(contradictory):
        names = sorted(set(contradictory["path"]))
        notes.append(
            f"{task}: {counted(len(names), 'image is', 'images are')} listed with two labels "
            f"that contradict each other; neither is kept ({', '.join(names[:3])})"
        )
    if len(repeated):
        count = repeated["path"].nunique()
        notes.append(
            f"{task}: {counted(count, 'image is', 'images are')} listed more than once with the "
            "same label"
        )
    # A test row takes precedence over train rows: it is put last within its path.
    order = np.argsort(frame["split"] == TEST, kind="stable")
    frame = frame.iloc[order].drop_duplicates("path", keep="last")
    frame.loc[frame["path"].isin(contradictory["path"]), "label"] = MISSING
    findings = Findings(
        unsafe=unsafe, unknown=unknown, contradictory=contradictory, repeated=repeated
    )
    return frame, findings, notes


def merge_tables(spec: DataSpec, data_dir: Path, *, strict: bool = True) -> Table:
    """Merge the CSVs of all tasks into one Table with the splits train and test.

    Rules 1, 2, 4 and 5 of the data are applied.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        strict: refuse unsafe paths and too many unknown labels; False excludes such rows and
            continues, so that all of them can be listed.

    Raises:
        InputError: the data is invalid; the message names the file and the line.
    """
    check_is_folder(data_dir, field="data_dir")
    read = read_lists if spec.table is None else read_collection
    rows = read(spec, data_dir, strict=strict)
    frames, findings, notes = dict(rows.frames), [Findings(rows.files)], list(rows.notes)
    image_dir = data_dir / spec.images
    listed = {}
    matches = _find_matches(frames.values(), image_dir, by_letters=spec.match == "letters")
    for task, unmatched in frames.items():
        frame, spelling = _match_paths(unmatched, matches)
        ambiguous = [_file_path(path, matches) for path in rows.ambiguous.get(task, ())]
        listed[task] = {*frame["path"], *ambiguous}
        frames[task], row_findings, row_notes = _one_row_per_path(frame)
        findings += [spelling, row_findings]
        notes += row_notes
    paths, labels, is_test, leaks, leak_notes = _merge_frames(frames)
    classes, labels, path_notes = add_path_labels(
        spec, rows.classes, paths, labels, is_test, image_dir
    )
    labels, other_notes = label_others(spec, classes, labels, paths, listed)
    merged = _join([*findings, Findings(leaks=leaks)])
    notes += [*path_notes, *other_notes, *leak_notes, *describe_respelt(merged)]
    nowhere = sorted(set(merged.unknown["path"]) - set(paths))
    splits = np.where(is_test, TEST, TRAIN).astype(object)
    table = Table(
        classes,
        paths,
        labels,
        splits,
        tuple(notes),
        dict.fromkeys(nowhere, UNKNOWN_LABEL),
        merged,
    )
    return _with_units(table, rows, matches)


def _with_units(table: Table, rows: LabelledRows, matches: Mapping[str, Match]) -> Table:
    """Add the validation images and the groups of a collection."""
    if not rows.units:
        return table
    units = {_file_path(path, matches): unit for path, unit in rows.units.items()}
    validation = [_file_path(path, matches) for path in rows.validation]
    splits = table.splits.copy()
    splits[np.isin(table.paths, validation) & (splits == TRAIN)] = VALIDATION
    return replace(table, splits=splits, units=np.array([units[path] for path in table.paths]))


def _merge_frames(
    frames: Mapping[str, pd.DataFrame],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame, list[str]]:
    """Merge the rows of the tasks by path (rule 1) and resolve the leaks (rule 2).

    Returns:
        Paths, str [rows]; labels, int32 [rows, tasks]; bool [rows], which are test; the rows that
        leak; and the notes.
    """
    paths = np.unique(np.concatenate([f["path"].to_numpy(dtype=object) for f in frames.values()]))
    index = pd.Index(paths)
    labels = np.full((len(paths), len(frames)), MISSING, np.int32)
    test_labels = np.zeros(labels.shape, bool)
    for column, frame in enumerate(frames.values()):
        rows = index.get_indexer(frame["path"])
        labels[rows, column] = frame["label"]
        test_labels[rows, column] = frame["split"] == TEST
    is_test = np.asarray(test_labels.any(axis=1))
    leaked = is_test[:, None] & ~test_labels & is_labelled(labels)
    notes = []
    if leaked.any():
        cost = ", ".join(
            f"{task} {count}" for task, count in zip(frames, leaked.sum(axis=0), strict=True)
        )
        images = counted(int(leaked.any(axis=1).sum()), "image is", "images are")
        notes.append(
            f"{images} test for one task and train for another; none is used for training "
            f"(labels lost in training: {cost})"
        )
    labels[leaked] = MISSING
    leaks = pd.concat(frames.values())
    leaks = leaks[leaks["path"].isin(paths[leaked.any(axis=1)])].sort_values("path", kind="stable")
    leaks = leaks[(leaks["split"] == TEST) | is_labelled(leaks["label"])]
    return paths, labels, is_test, leaks, notes


def _find_matches(
    frames: Iterable[pd.DataFrame], image_dir: Path, *, by_letters: bool
) -> dict[str, Match]:
    """Match the paths of all rows to files; {} if there is no image folder."""
    if not image_dir.is_dir():
        return {}
    paths = [frame.loc[frame["unsafe"] == "", "path"] for frame in frames]
    return match_files(pd.unique(pd.concat(paths)), image_dir, by_letters=by_letters)


def _join(findings: Sequence[Findings]) -> Findings:
    """Concatenate findings; each frame keeps only its own columns."""
    joined = {}
    for kind, empty in vars(Findings()).items():
        frames = [frame for part in findings if len(frame := getattr(part, kind))]
        if frames:
            joined[kind] = pd.concat(frames, ignore_index=True)[list(empty.columns)]
    return Findings(**joined)


def load_table(spec: DataSpec, data_dir: Path, *, excluded: pd.DataFrame | None = None) -> Table:
    """Load the table that a run is trained and evaluated on.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        excluded: columns path and reason, as `Table.excluded_frame` gives them.
    """
    table = merge_tables(spec, data_dir)
    return sample_table(spec, table) if excluded is None else sample_without(spec, table, excluded)
