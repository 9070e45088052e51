"""A run's best model -> artifacts that need nothing of ours.

export/<spec>/1/          SavedModel: `tf.saved_model.load`, TensorFlow Serving
export/<spec>.onnx        ONNX; likewise .tflite (LiteRT) and .keras
export/classes.json       tasks, class names, image size, thresholds, which artifacts there are
export/report.json        each artifact against the model: agreement, size, speed
export/MODEL_CARD.md      data, counts, metrics, recipe, licence
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from multitask.data.decode import decode_image, resize_image
from multitask.data.pipeline import file_names
from multitask.data.records import prepare
from multitask.data.table import SPLITS, TRAIN, VAL, Table, load_table, read_classes
from multitask.evaluation.calibration import saved_calibrations
from multitask.evaluation.trained_on import left_out
from multitask.files import RunError, replacing, silent, write_json
from multitask.model.network import connect, in_float32, load_network, parts
from multitask.reading import sha256
from multitask.run import Run, package_versions
from multitask.serving.agreement import Artifact, compare, rounding_line, table_lines, why_refused
from multitask.serving.card import model_card
from multitask.serving.formats import FLOAT32, FORMATS, PRECISIONS, Source, check_installed
from multitask.spec import MISSING, NO_TEST_SET, InputError, expected

CHECKED_PICTURES = {"none": 32, "float16": 256, "int8": 256}
CALIBRATED_ON = 128  # training pictures, for the ranges of int8
FORMAT = 3  # of classes.json; goes up when a reader of the old one would be wrong


def export(
    run: Run,
    *,
    model_file: Path | None = None,
    formats: Sequence[str] = ("savedmodel",),
    quantize: str = "none",
    tasks: Sequence[str] | None = None,
    out: Path | None = None,
    records_dir: Path | None = None,
    pictures: int | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Write `export/`, after each artifact was run on real pictures and agrees with the model.

    Args:
        run: from open_run.
        model_file: another model of the run; None: the best over all.
        formats: of formats.FORMATS.
        quantize: of formats.PRECISIONS; a format that has none of it stays float32.
        tasks: which; None: all.
        out: the folder; None: `export` in the workdir.
        records_dir: where prepared records lie, for int8; None: `records` in the data's folder.
        pictures: to check with; 0: every one of the exam; None: CHECKED_PICTURES.
        tell: shows a line.

    Returns:
        The folder.

    Raises:
        InputError: no model yet, no picture to check with, no such format or task, or what it needs
            is not installed.
        RunError: an artifact disagrees; the export folder is as it was before.
    """
    spec, model_file = run.spec, model_file or run.best_model
    _check(formats, quantize)
    tasks = _asked(spec.task_names, tasks)
    if out:
        _refuse_other_content(out)
    if not model_file.exists():
        raise InputError(f"{model_file}: no such model; `multitask train` makes it")
    classes = {task.name: read_classes(run.data_dir / task.classes) for task in spec.tasks}
    model = load_network(model_file, spec, classes)
    if tasks != spec.task_names:
        trunk, heads = parts(model)
        model = connect(trunk, {task: heads[task] for task in tasks})
    trained = model
    # ONNX and LiteRT have no bfloat16 convolutions, and every format is to give the same answers.
    model = in_float32(trained)
    found = saved_calibrations(run, model_file)
    calibrations = {task: found[task] for task in tasks}
    table = load_table(spec, run.data_dir, left_out=left_out(run))
    rows, names, of_test = _pictures_to_check(
        run, table, CHECKED_PICTURES[quantize] if pictures is None else pictures
    )
    description = {
        "format": FORMAT,
        "spec": spec.name,
        "image_size": spec.image_size,
        "resize": spec.resize,
        "classes": {task: classes[task] for task in tasks},
        "calibration": {task: one.to_dict() for task, one in calibrations.items()},
        "model": sha256(model_file),
    }
    source = Source(
        name=spec.name,
        model=model,
        classes=description["classes"],
        how=spec.resize,
        calibrations=calibrations,
        description=description,
        representative=list(_representative(run, records_dir)) if quantize == "int8" else [],
    )
    target = out or run.workdir / "export"
    with replacing(target) as folder:
        folder.mkdir()
        artifacts = []
        for name in formats:
            with silent():
                path = folder / FORMATS[name].write(source, folder, quantize)
            quantized = FORMATS[name].quantizes and quantize != "none"
            artifacts.append(Artifact(name, path, quantize if quantized else FLOAT32))
        labels = table.labels if of_test else np.full_like(table.labels, MISSING)
        judged = replace(table, labels=labels)  # what is right in training tells nothing
        against = {"how": spec.resize, "trained": None if trained is model else trained}
        entries = compare(artifacts, model, calibrations, judged, rows, names, **against)
        for entry in entries[1:]:
            if refused := why_refused(entry):
                raise RunError(
                    f"the {FORMATS[entry['format']].title} export, run by {entry['runtime']}, "
                    f"disagrees with {model_file} {refused} on {entry['pictures']} pictures; it "
                    "was thrown away"
                )
        where = {a.format: a.path.relative_to(folder).as_posix() for a in artifacts}
        write_json(
            folder / "classes.json",
            {
                **description,
                "artifacts": where,
                "precisions": {a.format: a.precision for a in artifacts},
                "versions": package_versions(),
            },
        )
        write_json(folder / "report.json", {"artifacts": entries})
        kind = "pictures"
        if not of_test:
            why = "none of the test set is there" if len(table.rows(VAL)) else NO_TEST_SET
            kind = f"training pictures ({why})"
        card = model_card(run, model_file, table, calibrations, entries, where, checked_on=kind)
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    count = entries[0]["pictures"]
    tell(
        f"Checked on {count} {kind} against {model_file.name} (a task: top-1/macro-F1; a batch: "
        "pictures a second):"
    )
    for line in table_lines(entries):
        tell(line)
    if rounding := rounding_line(entries):
        tell(rounding)
    return target


def _check(formats: Sequence[str], quantize: str) -> None:
    if quantize not in PRECISIONS:
        raise InputError(f"--quantize: {quantize!r}. {expected(quantize, PRECISIONS)}")
    if not formats:
        raise InputError(f"--format: none named. {expected('', FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"--format: {name!r}. {expected(name, FORMATS)}")
        if formats.count(name) > 1:
            raise InputError(f"--format: {name} is named twice")
        check_installed(name)
    able = [name for name, kind in FORMATS.items() if kind.quantizes]
    if quantize != "none" and not set(able) & set(formats):
        raise InputError(
            f"--quantize={quantize}: is for {' and '.join(able)}; asked is {', '.join(formats)}"
        )


def _refuse_other_content(out: Path) -> None:
    """What is written replaces the folder whole, so that only an older export may stand there."""
    ours = out.is_dir() and ((out / "classes.json").is_file() or not any(out.iterdir()))
    if out.exists() and not ours:
        raise InputError(
            f"--out: {out}: holds something else than an export, which would be lost; name another "
            "folder"
        )


def _asked(known: tuple[str, ...], tasks: Sequence[str] | None) -> tuple[str, ...]:
    """In the spec's order."""
    if tasks is None:
        return known
    for task in tasks:
        if task not in known:
            raise InputError(f"--tasks: {task!r}. {expected(task, known)}")
    if not tasks:
        raise InputError(f"--tasks: none named. {expected('', known)}")
    return tuple(task for task in known if task in tasks)


def _pictures_to_check(run: Run, table: Table, count: int) -> tuple[np.ndarray, list[str], bool]:
    """Real pictures of the test set, else of training: rows of the table, files, and whether they
    are the test set's."""
    image_dir = run.data_dir / run.spec.images
    for split in (VAL, *SPLITS):
        rows = table.rows(split)
        names = file_names(table, rows, image_dir)
        here = [place for place, name in enumerate(names) if Path(name).is_file()]
        if here:
            step = max(1, len(here) // count) if count else 1
            here = here[::step][: count or None]
            return rows[here], [names[place] for place in here], split == VAL
    raise InputError(
        f"{image_dir}: no picture is there to check the export with; name where with --data_dir"
    )


def _representative(run: Run, records_dir: Path | None) -> Iterator[np.ndarray]:
    """Training pictures from their records, evenly over all, float32 [1, size, size, 3]."""
    spec = run.spec
    remedy = "Name where the images are with --data_dir"
    prepared = prepare(spec, run.data_dir, records_dir, remedy=remedy, allow="")
    count = len(prepared.table.rows(TRAIN))
    places = np.unique(np.linspace(0, count - 1, min(count, CALIBRATED_ON)).astype(np.int64))
    dataset = prepared.reader(TRAIN)(tf.data.Dataset.from_tensor_slices(places))
    for _, data in dataset:
        image = decode_image(data, target_px=spec.image_size)
        yield resize_image(image, size_px=spec.image_size, how=spec.resize).numpy()[None]
