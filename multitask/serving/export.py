"""Exports a model of a run to artifacts that do not need this package.

export/<spec>/1/          SavedModel: `tf.saved_model.load`, TensorFlow Serving
export/<spec>.onnx        ONNX; likewise .tflite (LiteRT) and .keras
export/classes.json       tasks, class names, image size, thresholds, artifacts
export/distance.json      the distance to the training images, if the evaluation fitted it
export/report.json        comparison of each artifact with the model: agreement, size, speed
export/MODEL_CARD.md      data, counts, metrics, recipe, licence
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.data.decode import decode_image, resize_image
from multitask.data.pipeline import file_names
from multitask.data.records import prepare
from multitask.data.table import SPLITS, TEST, TRAIN, Table
from multitask.errors import RunError
from multitask.feature_distance import DISTANCE
from multitask.files import replacing, silent, write_json
from multitask.model.network import in_float32, of_tasks, with_flips
from multitask.run import Run, package_versions
from multitask.serving.agreement import (
    Artifact,
    compare,
    rounding_line,
    table_lines,
    unlike_line,
    why_refused,
)
from multitask.serving.formats import FLOAT32, FORMATS, PRECISIONS, Source, check_installed
from multitask.serving.model_card import model_card
from multitask.serving.predictor import FORMAT
from multitask.spec import MISSING, NO_TEST_SET, DataSpec, InputError, expected
from multitask.trained import TrainedModel, open_trained

logger = logging.getLogger(__name__)

CHECKED_IMAGES = {"none": 32, "float16": 256, "int8": 256}
INT8_IMAGES = 128  # training images for measuring the ranges of int8


def export(
    run: Run,
    *,
    model_file: Path | None = None,
    formats: Sequence[str] = ("savedmodel",),
    quantize: str = "none",
    tasks: Sequence[str] | None = None,
    tta: str | None = None,
    out: Path | None = None,
    records_dir: Path | None = None,
    images: int | None = None,
) -> Path:
    """Write artifacts of a model that agree with it on real images.

    Args:
        run: from open_run.
        model_file: another model of the run; None: the best one.
        formats: of formats.FORMATS.
        quantize: of formats.PRECISIONS; formats without quantization stay float32.
        tasks: to export; None: all but the auxiliary ones.
        tta: `flip`: the artifacts average the logits of the image and of its mirror image.
        out: the folder; None: `export` in the workdir.
        records_dir: folder of prepared records, for int8; None: `records` in the data's folder.
        images: number of images to check with; 0: the whole test set; None: CHECKED_IMAGES.

    Returns:
        The folder.

    Raises:
        InputError: no model, no image to check with, an unknown format or task, or a missing
            package.
        RunError: an artifact disagrees; an existing export folder is unchanged.
    """
    _check(formats, quantize)
    if tta not in (None, "flip"):
        raise InputError(f"{tta!r}. {expected(str(tta), ('flip',))}", field="tta")
    tasks = _selected_tasks(run.spec, tasks)
    if out:
        _refuse_other_content(out)
    auxiliary = not {*tasks} <= {*run.spec.main_tasks}
    trained = open_trained(run, model_file, auxiliary=auxiliary, tta=tta)
    table = trained.training_table  # first, because it has the classes too
    source, exported = _source(trained, tasks)
    _check_convertible(source.model, formats)
    count = CHECKED_IMAGES[quantize] if images is None else images
    images_to_check = _images_to_check(run, table, count)
    if quantize == "int8":
        source = replace(source, representative=list(_representative(run, records_dir)))
    target = out or run.workdir / "export"
    with replacing(target) as folder:
        folder.mkdir()
        artifacts = _write_artifacts(source, folder, formats, quantize)
        entries = _check_artifacts(artifacts, source, exported, trained, images_to_check)
        _write_descriptions(folder, trained, source, artifacts, entries, images_to_check.kind)
    _log_checks(entries, images_to_check.kind, trained.model_file)
    return target


def _write_descriptions(
    folder: Path,
    trained: TrainedModel,
    source: Source,
    artifacts: Sequence[Artifact],
    entries: Sequence[dict[str, Any]],
    kind: str,
) -> None:
    """Write classes.json, distance.json, report.json and the model card."""
    paths = {a.format: a.path.relative_to(folder).as_posix() for a in artifacts}
    content = {
        **source.description,
        "artifacts": paths,
        "precisions": {a.format: a.precision for a in artifacts},
        "versions": package_versions(),
    }
    write_json(folder / "classes.json", content)
    if trained.distance is not None:
        write_json(folder / DISTANCE, trained.distance.to_dict())
    write_json(folder / "report.json", {"artifacts": entries})
    card = model_card(
        trained, trained.training_table, source.calibrations, entries, paths, checked_on=kind
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


@dataclass(frozen=True)
class _ImagesToCheck:
    """Real images on which the artifacts are compared with the model.

    Attributes:
        rows: int [n], of the table.
        names: str [n], image files.
        in_test_set: whether they belong to the test set; their labels are used only then.
        kind: kind of the images, for display.
    """

    rows: np.ndarray
    names: list[str]
    in_test_set: bool
    kind: str


def _source(trained: TrainedModel, tasks: tuple[str, ...]) -> tuple[Source, keras.Model]:
    """The content of the export, in float32, and the same model in its original precision."""
    if trained.tta and not any(one.fitted_on for one in trained.calibrations.values()):
        logger.info(
            f"Not calibrated: `multitask evaluate --tta={trained.tta}` calibrates what this export "
            "averages"
        )
    spec, model = trained.spec, of_tasks(trained.network, tasks)
    calibrations = {task: trained.calibrations[task] for task in tasks}
    classes = {task: trained.classes[task] for task in tasks}
    description = {
        "format": FORMAT,
        "spec": spec.name,
        "image_size": spec.image_size,
        "resize": spec.resize,
        "reduced_px": spec.reduced_px,
        "convert_profiles": spec.convert_profiles,
        "classes": classes,
        "calibration": {task: one.to_dict() for task, one in calibrations.items()},
        "model": trained.digest,
        "tta": trained.tta,
    }
    if trained.conformal is not None:
        description["conformal"] = trained.conformal.of_tasks(tasks).to_dict()
    if trained.distance is not None:
        description["distance"] = DISTANCE
    source = Source(
        name=spec.name,
        # ONNX and LiteRT have no bfloat16 convolutions, and all formats must agree.
        model=in_float32(model),
        classes=classes,
        how=spec.resize,
        reduced_px=spec.reduced_px,
        calibrations=calibrations,
        flips=trained.tta is not None,
        description=description,
        representative=[],
    )
    return source, model


def _write_artifacts(
    source: Source, folder: Path, formats: Sequence[str], quantize: str
) -> list[Artifact]:
    artifacts = []
    for name in formats:
        with silent():
            path = folder / FORMATS[name].write(source, folder, quantize)
        quantized = FORMATS[name].quantizes and quantize != "none"
        artifacts.append(Artifact(name, path, quantize if quantized else FLOAT32))
    return artifacts


def _check_artifacts(
    artifacts: Sequence[Artifact],
    source: Source,
    exported: keras.Model,
    trained: TrainedModel,
    images: _ImagesToCheck,
) -> list[dict[str, Any]]:
    """Return the entries of `compare`.

    Raises:
        RunError: an artifact disagrees with the model.
    """
    table = trained.training_table
    # Metrics on training images would be misleading.
    labels = table.labels if images.in_test_set else np.full_like(table.labels, MISSING)
    entries = compare(
        artifacts,
        source.answering,
        source.calibrations,
        replace(table, labels=labels),
        images.rows,
        images.names,
        reading={
            "size_px": source.model.input_shape[1],
            "how": source.how,
            "reduced_px": source.reduced_px,
            "convert_profiles": source.description["convert_profiles"],
        },
        mixed_precision_model=_as_trained(source, exported),
        distance=trained.distance,
    )
    for entry in entries[1:]:
        if reason := why_refused(entry):
            raise RunError(
                f"the {FORMATS[entry['format']].title} export, run by {entry['runtime']}, "
                f"disagrees with {trained.model_file} {reason} on {entry['images']} images; it was "
                "discarded"
            )
    return entries


def _as_trained(source: Source, trained: keras.Model) -> keras.Model | None:
    """The answers of the model in its original precision; None if that is float32."""
    if trained is source.model:
        return None
    return with_flips(trained) if source.flips else trained


def _log_checks(entries: Sequence[dict[str, Any]], kind: str, model_file: Path) -> None:
    logger.info(
        f"Checked {entries[0]['images']} {kind} against {model_file.name} (task columns: "
        "top-1/macro-F1; batch columns: images a second):"
    )
    for line in table_lines(entries):
        logger.info(line)
    for note in (rounding_line(entries), unlike_line(entries)):
        if note:
            logger.info(note)


def _check(formats: Sequence[str], quantize: str) -> None:
    if quantize not in PRECISIONS:
        raise InputError(f"{quantize!r}. {expected(quantize, PRECISIONS)}", field="quantize")
    if not formats:
        raise InputError(f"none named. {expected('', FORMATS)}", field="format")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"{name!r}. {expected(name, FORMATS)}", field="format")
        if formats.count(name) > 1:
            raise InputError(f"{name} is named twice", field="format")
        check_installed(name)
    quantizable = [name for name, kind in FORMATS.items() if kind.quantizes]
    if quantize != "none" and not set(quantizable) & set(formats):
        raise InputError(
            f"{quantize}: supported by {' and '.join(quantizable)}, not by {', '.join(formats)}",
            field="quantize",
        )


def _check_convertible(model: keras.Model, formats: Sequence[str]) -> None:
    """Raise InputError for a format that cannot hold the network."""
    for name in formats:
        if reason := FORMATS[name].why_not(model):
            others = [other for other, kind in FORMATS.items() if kind.why_not(model) is None]
            raise InputError(f"{name}: {reason}; export to {', '.join(others)}", field="format")


def _refuse_other_content(out: Path) -> None:
    """Refuse to replace a folder that is neither empty nor an older export."""
    replaceable = out.is_dir() and ((out / "classes.json").is_file() or not any(out.iterdir()))
    if out.exists() and not replaceable:
        raise InputError(
            f"{out}: holds other files than an export, which would be lost; name another folder",
            field="out",
        )


def _selected_tasks(spec: DataSpec, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the selected tasks in the spec's order; None: all but the auxiliary ones."""
    if tasks is None:
        return spec.main_tasks
    known = spec.task_names
    for task in tasks:
        if task not in known:
            raise InputError(f"{task!r}. {expected(task, known)}", field="tasks")
    if not tasks:
        raise InputError(f"none named. {expected('', known)}", field="tasks")
    return tuple(task for task in known if task in tasks)


def _images_to_check(run: Run, table: Table, count: int) -> _ImagesToCheck:
    """Select evenly spaced images that exist: of the test set, or else of another split.

    Args:
        run: the run with the data.
        table: table of the run.
        count: number of images; 0: all.
    """
    image_dir = run.data_dir / run.spec.images
    for split in (TEST, *SPLITS):
        rows = table.rows(split)
        names = file_names(table, rows, image_dir)
        here = [place for place, name in enumerate(names) if Path(name).is_file()]
        if here:
            step = max(1, len(here) // count) if count else 1
            here = here[::step][: count or None]
            kind = "images"
            if split != TEST:
                in_table = len(table.rows(TEST))
                reason = "no image of the test set exists" if in_table else NO_TEST_SET
                kind = f"training images ({reason})"
            return _ImagesToCheck(rows[here], [names[place] for place in here], split == TEST, kind)
    raise InputError(
        f"{image_dir}: no image to check the export with; name the data's folder with `data_dir`"
    )


def _representative(run: Run, records_dir: Path | None) -> Iterator[np.ndarray]:
    """Yield evenly spaced training images from the records, float32 [1, size, size, 3]."""
    spec = run.spec
    remedy = "Name the images' folder with `data_dir`"
    prepared = prepare(spec, run.data_dir, records_dir, remedy=remedy, allow="")
    count = len(prepared.table.rows(TRAIN))
    places = np.unique(np.linspace(0, count - 1, min(count, INT8_IMAGES)).astype(np.int64))
    dataset = prepared.reader(TRAIN)(tf.data.Dataset.from_tensor_slices(places))
    for _, data in dataset:
        image = decode_image(data, target_px=spec.reduced_px)
        yield resize_image(image, size_px=spec.image_size, how=spec.resize).numpy()[None]
