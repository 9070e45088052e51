"""One evaluation of the one model -> every task's report in `results/`."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from multitask import diagram, figures, metrics
from multitask.data.files import count_reasons, read_frame, read_reduced
from multitask.data.near_duplicates import across_splits
from multitask.data.table import describe_respelt, load_table
from multitask.evaluation.calibration import CALIBRATION, Calibration
from multitask.evaluation.examples import attention_examples, similar_examples
from multitask.evaluation.judging import (
    LOW_CONFIDENCE,
    calibrated_confidences,
    calibrations_of,
    details_of,
    judge,
    named,
)
from multitask.evaluation.page import write_page
from multitask.evaluation.predictions import (
    Predictions,
    compiled,
    predict_exam,
    read_predictions,
)
from multitask.evaluation.record import sha256, write_record
from multitask.evaluation.similar import (
    Gallery,
    class_distances,
    load_or_build,
    normalised,
    retrieval_quality,
)
from multitask.evaluation.trained_on import left_out, near_duplicate_pairs
from multitask.evaluation.views import TTA
from multitask.files import noting_files, replacing, write_json
from multitask.model.network import VECTORS, examined_model, load_network, parts
from multitask.model.trunks import group_of
from multitask.run import Run, name_in_run, package_versions
from multitask.spec import NO_TEST_SET, InputError, field_of

PICTURED_OUTLIERS = 24
THUMBNAIL_PX = 240


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        predictions: of every val picture.
        metrics: task -> figures of `metrics.classification_metrics`, and under `baseline` those
            of the commonest training class.
        calibrations: task -> what the selection split says of its confidences.
        details: more of `metrics.json`, JSON-ready: calibration, across, …
        unusable: path and reason of the val pictures that could not be read.
        near_duplicates: val pictures that are the same painting as a training picture; None where
            they were not looked for.
        without: as `metrics`, of the exam less those; None where they were not looked for.
    """

    predictions: Predictions
    metrics: dict[str, dict[str, Any]]
    calibrations: dict[str, Calibration]
    details: dict[str, Any]
    unusable: pd.DataFrame
    near_duplicates: tuple[str, ...] | None = None
    without: dict[str, dict[str, Any]] | None = None


def evaluate(
    run: Run,
    *,
    model_file: Path | None = None,
    batch_size: int | None = None,
    max_missing: float | None = None,
    exclude_near_duplicates: bool | None = None,
    tta: str | None = None,
    similar: bool = True,
    tell: Callable[[str], None] = print,
) -> Evaluation:
    """Examine the best model on each task's official val rows and write `results/`.

    Args:
        run: from open_run.
        model_file: another model of the run; None: the best over all.
        batch_size: pictures at a time; None: as in training.
        max_missing: share of the pictures that may be missing; None: as in training.
        exclude_near_duplicates: judge also without the val pictures that are the same painting as
            a training picture; None: where training left those out, or `similar` looks for them.
        tta: also measure test-time augmentation, one of views.TTA.
        similar: embed the training pictures too (once a model), for similar pictures and for
            those that are far from their class.
        tell: shows a line.

    Raises:
        InputError: no model yet, or pictures are missing.
    """
    model_file = model_file or run.best_model
    if not model_file.exists():
        raise InputError(f"{model_file}: no such model; `multitask train` makes it")
    table = load_table(run.spec, run.data_dir)
    tell(f"Evaluating {model_file} on the exam pictures of {run.data_dir}")
    for line in describe_respelt(table.findings):
        tell(f"  {line}")
    digest = sha256(model_file)
    model = load_network(model_file, run.spec, table.classes)
    infer = compiled(examined_model(model))
    examine = functools.partial(
        predict_exam,
        model,
        infer=infer,
        spec=run.spec,
        image_dir=run.data_dir / run.spec.images,
        batch_size=batch_size or run.spec.batch_size,
        max_missing=run.spec.max_missing if max_missing is None else max_missing,
    )
    predictions, unusable = examine(table)
    trained_on = load_table(run.spec, run.data_dir, left_out=left_out(run))
    calibrations = calibrations_of(examine, trained_on, tell)
    if exclude_near_duplicates is None:
        exclude_near_duplicates = similar or run.spec.exclude_near_duplicates
    seen, without = None, None
    if exclude_near_duplicates:
        both_sides = across_splits(near_duplicate_pairs(run), val=True)
        seen = sorted(set(both_sides) & set(predictions.paths))
        without = judge(predictions.without(seen), trained_on)
    judged = judge(predictions, trained_on)
    details = details_of(predictions, trained_on, calibrations)
    if tta:
        temperatures = {task: found.temperature for task, found in calibrations.items()}
        seen_so, _ = examine(table, views=TTA[tta], temperatures=temperatures)
        details["tta"] = {"kind": tta} | named(judge(seen_so, trained_on))
    gallery = None
    if similar:
        gallery = load_or_build(
            run,
            model,
            model_file,
            table=trained_on,
            infer=lambda image: infer(image)[VECTORS],
            tell=tell,
        )
        details["similar"] = retrieval_quality(
            {name: normalised(vectors) for name, vectors in predictions.vectors.items()},
            predictions.paths,
            predictions.labels,
            gallery,
            near_duplicates=near_duplicate_pairs(run),
        )
    evaluation = Evaluation(
        predictions,
        judged,
        calibrations,
        details,
        unusable,
        None if seen is None else tuple(seen),
        without,
    )
    with noting_files() as written:
        write_results(run, model, model_file, evaluation, infer=infer, gallery=gallery)
    write_record(run, digest, written)
    for line in summary_lines(evaluation):
        tell(line)
    return evaluation


def write_results(
    run: Run,
    model: keras.Model,
    model_file: Path,
    evaluation: Evaluation,
    *,
    infer: Callable,
    gallery: Gallery | None,
) -> None:
    """Everything in `results/`; each file is written whole or not at all."""
    predictions, folder = evaluation.predictions, run.results
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        field_of(task, "calibrated_confidence"): confidence
        for task, confidence in calibrated_confidences(predictions, evaluation.calibrations).items()
    }
    if gallery:
        distances = class_distances(gallery, predictions)
        columns |= {field_of(task, "class_distance"): far for task, far in distances.items()}
    predictions.save(folder, **columns)
    write_json(
        run.results / CALIBRATION,
        {
            "model": name_in_run(run, model_file),
            "tasks": {task: found.to_dict() for task, found in evaluation.calibrations.items()},
        },
    )
    history = read_history(run)
    for task, names in predictions.classes.items():
        rows, labels, probabilities = predictions.exam(task)
        predicted = probabilities.argmax(axis=1)
        with replacing(folder / f"classification_report_{task}.txt") as temporary:
            temporary.write_text(
                metrics.report_text(labels, predicted, names=names), encoding="utf-8"
            )
        shown = evaluation.details["confusion"][task]
        figures.confusion_matrix(
            folder / f"confusion_matrix_{task}.png",
            # A whole matrix has the order of the class file.
            shown["counts"]
            if shown["others"]
            else metrics.confusion(labels, predicted, classes=len(names)),
            shown["names"] if shown["others"] else names,
            task=task,
            others=shown["others"],
            right=int((predicted == labels).sum()),
        )
        by_class = metrics.per_class(labels, predicted, classes=len(names))
        figures.f1_scores(
            folder / f"f1_scores_{task}.png",
            by_class["f1"].to_numpy(),
            by_class["support"].to_numpy(),
            names,
            task=task,
            macro_f1=evaluation.metrics[task]["macro_f1"],
        )
        figures.training_history(folder / f"training_history_{task}.png", history, task=task)
        diagram.architecture(
            folder / f"model_architecture_{task}.png", architecture_nodes(model, task), task=task
        )
        _write_outliers(run, predictions, task, rows, labels, probabilities)
        _write_classes(folder, task, labels, predicted, names)
    content = {
        "spec": run.spec.name,
        "model": name_in_run(run, model_file),
        "pictures": len(predictions.paths),
        "unusable_pictures": len(evaluation.unusable),
        "without_test_set": [
            task for task, found in evaluation.metrics.items() if not found["labelled"]
        ],
        "versions": package_versions(),
        **named(evaluation.metrics),
        **evaluation.details,
    }
    if evaluation.without:
        content["without_near_duplicates"] = {
            "pictures": len(predictions.paths) - len(evaluation.near_duplicates),
            "near_duplicates": list(evaluation.near_duplicates),
            **named(evaluation.without),
        }
    write_json(folder / "metrics.json", content)

    def load(path: str) -> np.ndarray | None:
        return read_reduced(run.data_dir / run.spec.images / path, target_px=THUMBNAIL_PX)

    with replacing(folder / "report.html") as temporary:
        write_page(
            temporary,
            title=f"{run.spec.title or run.spec.name}: {run.workdir.resolve().name}",
            spec=run.spec.to_dict(),
            content=content,
            frame=read_predictions(folder / "predictions.csv"),
            history=history,
            load=load,
            attention=attention_examples(run, model, infer, predictions, load),
            similar=similar_examples(gallery, predictions) if gallery else (),
        )


def read_history(run: Run) -> pd.DataFrame:
    """`history.csv`; empty where there is none.

    Before columns had a slash, they were called `artist_top1` and `val_artist_top1`; those of an
    earlier version get their names of today.
    """
    file = run.logs / "history.csv"
    if not file.is_file():
        return pd.DataFrame()
    remedy = "the same `multitask train` writes it again, or remove it"
    history = read_frame(file, ("epoch",), remedy)
    if any("/" in name for name in history):
        return history
    names = {
        f"{prefix}{task}_{field}": field_of(task, prefix + field)
        for task in run.spec.task_names
        for prefix in ("", "val_")
        for field in ("loss", "contrastive_loss", "top1", "macro_f1", "labelled", "rate", "weight")
    }
    return history.rename(columns=names)


def _write_outliers(
    run: Run,
    predictions: Predictions,
    task: str,
    rows: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Low confidence or misclassified, worst first: all of them as CSV, the first as pictures."""
    names = predictions.classes[task]
    order = metrics.outliers(labels, probabilities, below=LOW_CONFIDENCE)
    predicted = probabilities.argmax(axis=1)
    frame = pd.DataFrame(
        {
            "path": predictions.paths[rows[order]],
            "true": [names[i] for i in labels[order]],
            "predicted": [names[i] for i in predicted[order]],
            "confidence": probabilities[order].max(axis=1),
            "probability_of_true": probabilities[order, labels[order]],
            "reason": np.where(
                predicted[order] != labels[order], "misclassified", "low confidence"
            ),
        }
    )
    with replacing(run.results / f"outliers_{task}.csv") as temporary:
        frame.to_csv(temporary, index=False)
    shown = frame.head(PICTURED_OUTLIERS)
    image_dir = run.data_dir / run.spec.images
    figures.outliers(
        run.results / f"outliers_{task}.png",
        [read_reduced(image_dir / path, target_px=THUMBNAIL_PX) for path in shown["path"]],
        [
            f"true: {row.true}\nsaid: {row.predicted}\nconfidence {row.confidence:.2f}"
            for row in shown.itertuples()
        ],
        task=task,
        total=len(frame),
    )


def _write_classes(
    folder: Path, task: str, labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> None:
    """Every class and every pair of classes that are confused, for which a page has no room."""
    pairs = metrics.confusion_pairs(labels, predicted, classes=len(names))
    table = metrics.per_class(labels, predicted, classes=len(names))
    counts = np.bincount(predicted, minlength=len(names))
    mistakes = pairs[pairs["true"] != pairs["predicted"]].drop_duplicates("true").set_index("true")
    taken_for = mistakes["predicted"].reindex(table.index)
    names = np.asarray(names, object)
    classes = pd.DataFrame(
        {
            "label": table.index,
            "class": names,
            "examples": table["support"],
            "predicted": counts,
            "precision": table["precision"],
            "recall": table["recall"],
            "f1": table["f1"],
            "most_often_taken_for": [names[int(i)] if i == i else "" for i in taken_for],
            "times": mistakes["count"].reindex(table.index, fill_value=0),
        }
    )
    confusion = pd.DataFrame(
        {
            "true": names[pairs["true"]],
            "predicted": names[pairs["predicted"]],
            "count": pairs["count"],
            "share_of_true": pairs["count"] / table["support"].to_numpy()[pairs["true"]],
        }
    )
    for kind, frame in (("classes", classes), ("confusion", confusion)):
        with replacing(folder / f"{kind}_{task}.csv") as temporary:
            frame.to_csv(temporary, index=False)


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The console's table, a line a task."""
    lines = _judged_lines(evaluation.metrics)
    if evaluation.near_duplicates:
        count = len(evaluation.near_duplicates)
        lines += [
            "",
            f"Without the {count:,} val pictures that are the same painting as a training picture:",
            *_judged_lines(evaluation.without)[1:],
        ]
    lines += _calibration_lines(evaluation)
    if len(evaluation.unusable):
        lines.append(f"val pictures left out: {count_reasons(evaluation.unusable['reason'])}")
    return lines


def _calibration_lines(evaluation: Evaluation) -> list[str]:
    lines = []
    judged = evaluation.details["calibration"]
    parts = [
        "{} {raw:.3f} → {calibrated:.3f} (T {:.2f})".format(task, c["temperature"], **c["ece"])
        for task, c in judged.items()
        if "ece" in c and not c["reason"]
    ]
    if parts:
        lines.append("Calibration error by temperature scaling: " + ", ".join(parts))
    lines += [
        f"Not calibrated (T = 1): {t}: {c['reason']}" for t, c in judged.items() if c["reason"]
    ]
    tta = evaluation.details.get("tta")
    if tta:
        parts = []
        for task, judged in evaluation.metrics.items():
            if judged["labelled"]:
                then = [tta["metrics"][f"{task}/{name}"] for name in ("top1", "macro_f1")]
                parts.append(
                    f"{task} top-1 {judged['top1']:.3f} → {then[0]:.3f}, "
                    f"macro-F1 {judged['macro_f1']:.3f} → {then[1]:.3f}"
                )
        if parts:
            lines.append(f"Test-time augmentation ({tta['kind']}): " + "; ".join(parts))
    return [""] * bool(lines) + lines


def _judged_lines(judged: dict[str, dict[str, Any]]) -> list[str]:
    width = max(4, *(len(task) for task in judged))
    lines = [
        "",
        f"{'task':<{width}}  labelled   top-1   top-5  macro-F1  weighted F1   "
        "commonest class: top-1  macro-F1",
    ]
    for task, found in judged.items():
        if not found["labelled"]:
            lines.append(f"{task:<{width}}  n/a ({NO_TEST_SET})")
            continue
        baseline = found["baseline"]
        lines.append(
            f"{task:<{width}}  {found['labelled']:>8,}   {found['top1']:.3f}   {found['top5']:.3f}"
            f"     {found['macro_f1']:.3f}        {found['weighted_f1']:.3f}"
            f"   {'':<16} {_or_none(baseline['top1'])}     {_or_none(baseline['macro_f1'])}"
        )
        absent = found["classes"] - found["classes_present"]
        if absent:
            lines[-1] += f"   (over {found['classes_present']} classes; {absent} have no exam)"
    return lines


def _or_none(value: float | None) -> str:
    return "  n/a" if value is None else f"{value:.3f}"


def architecture_nodes(model: keras.Model, task: str) -> list[dict[str, Any]]:
    """The trunk block by block and one head layer by layer, for `diagram.architecture`."""
    trunk, heads = parts(model)
    groups: dict[str, list[keras.Layer]] = {}
    for layer in trunk.layers:
        groups.setdefault(group_of(layer.name), []).append(layer)
    nodes, above = [], []
    for name, layers in groups.items():
        kind = f"{len(layers)} layers" if len(layers) > 1 else type(layers[0]).__name__
        nodes.append(_node(f"trunk {name}", kind, layers, above))
        above = [nodes[-1]["name"]]
    for layer in heads[task].layers:
        if isinstance(layer, keras.layers.InputLayer):
            renamed = {layer.name: above[0]}
            continue
        inputs = [
            renamed.get(parent.operation.name, parent.operation.name)
            for parent in layer._inbound_nodes[0].parent_nodes
        ]
        nodes.append(_node(layer.name, _kind(layer), [layer], inputs))
    return nodes


def _kind(layer: keras.Layer) -> str:
    """The layer's class, with what tells it from others of its kind."""
    detail = {
        "Dropout": lambda: f" {layer.rate:g}",
        "Activation": lambda: f" {layer.activation.__name__}",
        "Dense": lambda: (
            "" if layer.activation.__name__ == "linear" else f" + {layer.activation.__name__}"
        ),
    }.get(type(layer).__name__)
    return type(layer).__name__ + (detail() if detail else "")


def _node(name: str, kind: str, layers: list[keras.Layer], inputs: list[str]) -> dict[str, Any]:
    weights = [w for layer in layers for w in layer.weights]
    trainable = any(layer.trainable_weights for layer in layers)
    shape = layers[-1].output.shape[1:]
    return {
        "name": name,
        "kind": kind,
        "shape": "×".join(str(side) for side in shape),
        "parameters": sum(int(np.prod(w.shape)) for w in weights),
        "trainable": trainable if weights else None,
        "inputs": inputs,
    }
