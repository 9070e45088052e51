"""Keep the table of a run's first training: classes, labels and splits.

A collection may grow or be corrected later. But a run's classes are the outputs of its heads, and
an image that it was trained on must not become one of its test images.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from multitask.data.lists import read_labels_as
from multitask.data.merging import merge_tables
from multitask.data.splitting import TRAIN, VALIDATION
from multitask.data.table import Table
from multitask.files import replacing
from multitask.run import saved_spec
from multitask.spec import OTHER_LABEL, DataSpec, is_labelled

RUN_TABLE = "table.csv"
_DRAWN = "drawn"  # earlier versions' tables lack it, and list drawn validation images as train


def with_class_names(spec: DataSpec, data_dir: Path, workdir: Path) -> DataSpec:
    """The spec with the classes of its columns and paths: those of the run, or the present ones.

    Args:
        spec: any spec; if all its tasks have class files, it is returned unchanged.
        data_dir: the folder that the spec's paths start at.
        workdir: the folder that may have a run.

    Raises:
        InputError: the table is wrong.
    """
    unnamed = {task.name for task in spec.tasks if not task.classes and task.class_names is None}
    if not unnamed:
        return spec
    before = saved_spec(workdir)
    names = {task.name: task.class_names for task in before.tasks} if before else {}
    if any(names.get(task) is None for task in unnamed):
        names = dict(merge_tables(spec, data_dir).classes)
    tasks = tuple(
        task.model_copy(update={"class_names": names[task.name]}) if task.name in unnamed else task
        for task in spec.tasks
    )
    return spec.model_copy(update={"tasks": tasks})


def write_run_table(table: Table, used: Table, workdir: Path) -> None:
    """Write the merged table of a run: path, split, drawn, group, and each task's class by name.

    Args:
        table: the merged table, before the validation split is drawn.
        used: the table that the run trains on. Its drawn validation images are marked in the
            column `drawn`, so that the merged table can be read back.
        workdir: the run's folder.
    """
    validation = np.zeros(len(table), bool)
    validation[table.find(used.paths[used.splits == VALIDATION])] = True
    drawn = validation & (table.splits == TRAIN)
    columns = {
        "path": table.paths,
        "split": np.where(drawn, VALIDATION, table.splits),
        _DRAWN: np.where(drawn, "yes", ""),
        "group": table.units,
    }
    for column, (task, names) in enumerate(table.classes.items()):
        labels = table.labels[:, column]
        places = np.where(is_labelled(labels), labels, len(names))
        columns[f"{task}/label"] = np.asarray([*names, ""], object)[places]
        if (labels == OTHER_LABEL).any():
            columns[f"{task}/other"] = np.where(labels == OTHER_LABEL, "yes", "")
    with replacing(workdir / RUN_TABLE) as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False)


def read_run_table(spec: DataSpec, workdir: Path) -> Table | None:
    """Read the merged table of a run; None if the run has none.

    Args:
        spec: the run's spec, with its classes.
        workdir: the run's folder.

    Raises:
        InputError: the file is broken.
    """
    path = workdir / RUN_TABLE
    if spec.table is None or not path.is_file():
        return None
    from multitask.data.image_files import read_frame  # imports TensorFlow

    classes = {task.name: tuple(task.class_names or ()) for task in spec.tasks}
    columns = ("path", "split", "group", *(f"{task}/label" for task in classes))
    remedy = "the same `multitask train` writes it again"
    frame = read_frame(path, columns, remedy, dtype=str, keep_default_na=False)
    labels = []
    for task, names in classes.items():
        named = np.asarray(read_labels_as(frame[f"{task}/label"], names, names=True))
        if f"{task}/other" in frame:
            named = np.where(frame[f"{task}/other"] == "yes", OTHER_LABEL, named)
        labels.append(named)
    splits = frame["split"].to_numpy(object)
    if _DRAWN in frame:
        splits[(frame[_DRAWN] == "yes").to_numpy()] = TRAIN
    return Table(
        classes,
        frame["path"].to_numpy(object),
        np.stack(labels, axis=1).astype(np.int32),
        splits,
        units=frame["group"].to_numpy().astype(np.int64),
    )
