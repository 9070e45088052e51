"""A run's best model -> one SavedModel that takes encoded pictures, and needs nothing of ours.

export/saved_model.pb, variables/   tf.saved_model.load reads it
export/classes.json                 tasks, class names, image size, where it came from
export/MODEL_CARD.md                data, counts, metrics, recipe, licence
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.data.decode import decode_image, resize_image
from multitask.data.pipeline import file_names, readable_pictures
from multitask.data.table import SPLITS, VAL, Table, load_table, read_classes
from multitask.evaluation.calibration import Calibration, saved_calibrations
from multitask.evaluation.predictions import compiled, softmax
from multitask.evaluation.trained_on import left_out
from multitask.model.network import load_network
from multitask.run import (
    Run,
    RunError,
    name_in_run,
    package_versions,
    replacing,
    write_json,
)
from multitask.spec import InputError

SIGNATURE, PIXELS = "serving_default", "pixels"
TOLERANCE = 1e-5  # greatest difference of a probability between the export and the Keras model
CHECKED_PICTURES = 32
FORMAT = 2  # of classes.json; goes up when a reader of the old one would be wrong


def serving_functions(
    model: keras.Model,
    classes: dict[str, tuple[str, ...]],
    *,
    size_px: int,
    how: str,
    calibrations: Mapping[str, Calibration],
) -> dict[str, Callable]:
    """Pictures -> every task's answer, as graphs.

    Args:
        model: image -> {task: logits}.
        classes: task -> class names.
        size_px: side of the model's input.
        how: one of decode.RESIZE_KINDS.
        calibrations: task -> the temperature that its logits are divided by.

    Returns:
        SIGNATURE: a tf.function from encoded pictures, string [batch]; PIXELS: one from pictures of
        the model's size, float32 [batch, size, size, 3] in 0..255. Both give, for each task,
        `{task}_probabilities` float32 [batch, classes] (calibrated), `{task}_logits` of the same
        shape (not calibrated), `{task}_classes` string [classes] (their names, in that order) and
        `{task}_label` string [batch] (the most probable name).
    """
    shape = [size_px, size_px, 3]

    def load(data: tf.Tensor) -> tf.Tensor:
        return resize_image(decode_image(data, target_px=size_px), size_px=size_px, how=how)

    @tf.function(input_signature=[tf.TensorSpec([None, *shape], tf.float32, name="image")])
    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = {}
        for task, logits in model(image, training=False).items():
            names = tf.constant(classes[task])
            temperature = calibrations[task].temperature
            answers[f"{task}_logits"] = logits
            answers[f"{task}_probabilities"] = tf.nn.softmax(logits / temperature)
            answers[f"{task}_classes"] = names
            answers[f"{task}_label"] = tf.gather(names, tf.argmax(logits, axis=-1))
        return answers

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(
            tf.map_fn(load, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.float32))
        )

    return {SIGNATURE: serve, PIXELS: answer}


def export(
    run: Run, *, model_file: Path | None = None, tell: Callable[[str], None] = print
) -> Path:
    """Write `export/`, after it has been run on real pictures and agrees with the Keras model.

    Args:
        run: from open_run.
        model_file: another model of the run; None: the best over all.
        tell: shows a line.

    Returns:
        The folder.

    Raises:
        InputError: no model yet, or no picture to check with.
        RunError: the export disagrees; the export folder is as it was before.
    """
    model_file = model_file or run.best_model
    if not model_file.is_file():
        raise InputError(f"{model_file}: no such model; `multitask train` makes it")
    spec = run.spec
    classes = {task.name: read_classes(run.data_dir / task.classes) for task in spec.tasks}
    model = load_network(model_file, spec, classes)
    calibrations = saved_calibrations(run, model_file)
    table = load_table(spec, run.data_dir, left_out=left_out(run))
    pictures = _pictures_to_check(run, table)
    target = run.workdir / "export"
    with replacing(target) as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        functions = serving_functions(
            model, classes, size_px=spec.image_size, how=spec.resize, calibrations=calibrations
        )
        for name, function in functions.items():
            archive.add_endpoint(name, function)
        archive.write_out(str(folder), verbose=False)
        difference = _disagreement(folder, model, run, pictures, calibrations)
        if difference > TOLERANCE:
            raise RunError(
                f"the export disagrees with {model_file} by {difference:.2g} in probability on "
                f"{len(pictures)} pictures (allowed: {TOLERANCE:g}); it was thrown away"
            )
        write_json(
            folder / "classes.json",
            {
                "format": FORMAT,
                "spec": spec.name,
                "image_size": spec.image_size,
                "resize": spec.resize,
                "classes": classes,
                "calibration": {task: found.to_dict() for task, found in calibrations.items()},
                "versions": package_versions(),
            },
        )
        card = model_card(run, model_file, table, difference, len(pictures), calibrations)
        (folder / "MODEL_CARD.md").write_text(card)
    tell(
        f"Checked on {len(pictures)} pictures: probabilities agree with {model_file.name} to "
        f"{difference:.1g}"
    )
    return target


def _pictures_to_check(run: Run, table: Table) -> list[str]:
    """Real pictures of the exam (no labels are read), else of training."""
    image_dir = run.data_dir / run.spec.images
    for split in (VAL, *SPLITS):
        names = [n for n in file_names(table, table.rows(split), image_dir) if Path(n).is_file()]
        if names:
            step = max(1, len(names) // CHECKED_PICTURES)
            return names[::step][:CHECKED_PICTURES]
    raise InputError(
        f"{image_dir}: no picture is there to check the export with; name where with --data_dir"
    )


def _disagreement(
    folder: Path,
    model: keras.Model,
    run: Run,
    pictures: list[str],
    calibrations: Mapping[str, Calibration],
) -> float:
    """The greatest difference of a probability: loaded export against the Keras model."""
    loaded = tf.saved_model.load(str(folder)).signatures
    infer = compiled(model)
    worst, seen = 0.0, 0
    for indices, image in readable_pictures(
        pictures, size_px=run.spec.image_size, how=run.spec.resize, batch_size=8
    ):
        data = tf.constant([Path(pictures[i]).read_bytes() for i in indices.numpy()])
        said = infer(image)
        for answers in (loaded[SIGNATURE](data), loaded[PIXELS](image)):
            for task, logits in said.items():
                expected = softmax(np.asarray(logits) / calibrations[task].temperature)
                found = answers[f"{task}_probabilities"].numpy()
                worst = float(np.maximum(worst, np.abs(found - expected).max()))  # NaN stays
        seen += len(indices)
    if not seen:
        raise InputError(f"{pictures[0]}: none of the pictures to check with can be read")
    # NaN on both sides would agree with itself.
    return worst if np.isfinite(worst) else float("inf")


def model_card(
    run: Run,
    model_file: Path,
    table: Table,
    difference: float,
    checked: int,
    calibrations: Mapping[str, Calibration],
) -> str:
    """The model card (Mitchell et al. 2019) as Markdown: data, counts, metrics, recipe."""
    spec = run.spec
    metrics, baseline = _results(run, model_file)
    lines = [
        f"# {spec.title or spec.name}: {', '.join(spec.task_names)}",
        "",
        f"One {spec.trunk.name} at {spec.image_size} px with one head a task. The signature "
        f"`{SIGNATURE}` takes encoded JPEG, PNG or WebP bytes, string [batch], and gives for "
        "each task `{task}_probabilities` (calibrated), `{task}_logits`, `{task}_classes` and "
        "`{task}_label`.",
        "",
        "## Data",
        "",
        f"- Source: {spec.source}",
        f"- Licence of the data: {spec.licence}",
        "- A picture that is val for one task was trained on for none; "
        f"{spec.selection:.0%} of the training pictures were held out for choosing the model.",
        "",
        "| split | pictures | " + " | ".join(f"{task} labels" for task in table.tasks) + " |",
        "|---|---|" + "---|" * len(table.tasks),
    ]
    for split, counts in table.counts().iterrows():
        lines.append(f"| {split} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    lines += ["", "## Metrics on the official val rows", ""]
    if metrics:
        lines += [
            "| task | labelled | top-1 | top-5 | macro-F1 | commonest class: top-1 | macro-F1 |",
            "|---|---|---|---|---|---|---|",
        ]
        for task in table.tasks:
            values = [
                *(metrics.get(f"{task}/{n}") for n in ("labelled", "top1", "top5", "macro_f1")),
                *(baseline.get(f"{task}/{n}") for n in ("top1", "macro_f1")),
            ]
            lines.append(f"| {task} | " + " | ".join(_cell(value) for value in values) + " |")
    else:
        lines.append("Not evaluated (`multitask evaluate` writes them).")
    lines += [
        "",
        "## Recipe",
        "",
        f"- Trunk weights to start from: {spec.trunk.weights}; batch {spec.batch_size}; epochs "
        f"heads {spec.phases.heads.epochs}, finetune {spec.phases.finetune.epochs} (at most); "
        f"seed {spec.seed}",
    ]
    for task in spec.tasks:
        lines.append(
            f"- {task.name}: head {_kind(task.head)}; loss {_kind(task.loss)}; "
            f"schedule {_kind(task.schedule)}; class-weight exponent "
            f"{task.class_weight_exponent:g}; freeze depth {task.freeze_depth}"
        )
    lines += ["", "## Confidence", ""]
    for task, found in calibrations.items():
        lines.append(
            f"- {task}: logits are divided by {found.temperature:.3f}, fitted on "
            f"{found.fitted_on:,} pictures held out of training"
            if found.fitted_on
            else f"- {task}: not calibrated"
        )
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    lines += [
        "",
        "## Checks",
        "",
        f"- Run on {checked} pictures from `tf.saved_model.load`: probabilities agree with the "
        f"Keras model to {difference:.1g} (allowed {TOLERANCE:g}).",
        f"- Made with {versions}.",
    ]
    return "\n".join(lines) + "\n"


def _results(run: Run, model_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics and baselines of the model's own evaluation; nothing where there is none."""
    path = run.results / "metrics.json"
    if not path.is_file():
        return {}, {}
    try:
        content = json.loads(path.read_text())
        if content["model"] != name_in_run(run, model_file):
            return {}, {}
        return content["metrics"], content["baseline"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what `multitask evaluate` writes: {error}") from None


def _cell(value: float | int | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _kind(choice) -> str:
    options = ", ".join(f"{name} {value}" for name, value in choice.options.items())
    return f"{choice.kind} ({options})" if options else choice.kind
