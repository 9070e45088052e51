"""The files of `results/`: predictions, plots, CSVs, `metrics.json` and the page."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from multitask import metrics
from multitask.calibration import CALIBRATION
from multitask.data.image_files import read_frame, read_reduced
from multitask.evaluation.architecture import architecture_nodes
from multitask.evaluation.examples import attention_examples, similar_examples
from multitask.evaluation.gallery import Gallery
from multitask.evaluation.neighbours import class_distances
from multitask.evaluation.predictions import Predictions, read_predictions
from multitask.evaluation.task_metrics import LOW_CONFIDENCE, calibrated_confidences, flat_metrics
from multitask.files import replacing, write_json
from multitask.pages import class_plots, curves, diagram, image_sheets
from multitask.pages.report_page import write_page
from multitask.run import Run, package_versions
from multitask.spec import field_of
from multitask.trained import TrainedModel

if TYPE_CHECKING:
    from multitask.evaluation.report import Evaluation

SHOWN_OUTLIERS = 24  # images of the plot
THUMBNAIL_PX = 240

Load = Callable[[str], np.ndarray | None]


def write_results(
    trained: TrainedModel,
    evaluation: "Evaluation",
    *,
    infer: Callable,
    gallery: Gallery | None,
) -> None:
    """Write everything in `results/`; each file is written completely or not at all.

    Args:
        trained: the evaluated model.
        evaluation: its result.
        infer: `compiled(examined_model(model))`.
        gallery: the embedded training images; None if they were not embedded.
    """
    run, predictions = trained.run, evaluation.predictions
    folder = run.results
    folder.mkdir(parents=True, exist_ok=True)
    _write_predictions(evaluation, folder, gallery)
    write_json(
        folder / CALIBRATION,
        {
            "model": trained.name,
            "tasks": {task: one.to_dict() for task, one in evaluation.calibrations.items()},
        },
    )
    load = functools.partial(_thumbnail, trained.image_dir)
    history = read_history(run)
    for task in predictions.classes:
        _write_task_plots(trained, evaluation, task, history)
        _write_outliers(folder, predictions, task, load)
        _write_class_tables(folder, predictions, task)
    content = _metrics_content(trained, evaluation)
    write_json(folder / "metrics.json", content)
    with replacing(folder / "report.html") as temporary:
        write_page(
            temporary,
            title=f"{run.spec.title or run.spec.name}: {run.workdir.resolve().name}",
            spec=run.spec.to_dict(),
            content=content,
            frame=read_predictions(folder / "predictions.csv"),
            history=history,
            load=load,
            attention=attention_examples(trained, infer, predictions, load),
            similar=similar_examples(gallery, predictions) if gallery else (),
        )


def read_history(run: Run) -> pd.DataFrame:
    """Read `history.csv`; empty if there is none."""
    file = run.logs / "history.csv"
    if not file.is_file():
        return pd.DataFrame()
    remedy = "the same `multitask train` writes it again, or remove it"
    return read_frame(file, ("epoch",), remedy)


def _thumbnail(image_dir: Path, path: str) -> np.ndarray | None:
    return read_reduced(image_dir / path, target_px=THUMBNAIL_PX)


def _metrics_content(trained: TrainedModel, evaluation: "Evaluation") -> dict[str, Any]:
    """The content of `metrics.json`."""
    count = len(evaluation.predictions.paths)
    content = {
        "spec": trained.spec.name,
        "model": trained.name,
        "test_images": count,
        "unusable_test_images": len(evaluation.unreadable),
        "without_test_set": [
            task for task, values in evaluation.metrics.items() if not values["labelled"]
        ],
        "versions": package_versions(),
        **flat_metrics(evaluation.metrics),
        **evaluation.details,
    }
    near_duplicates = evaluation.near_duplicates
    if near_duplicates is not None and evaluation.metrics_without_near_duplicates:
        content["without_near_duplicates"] = {
            "test_images": count - len(near_duplicates),
            "near_duplicates": list(near_duplicates),
            **flat_metrics(evaluation.metrics_without_near_duplicates),
        }
    return content


def _write_predictions(evaluation: "Evaluation", folder: Path, gallery: Gallery | None) -> None:
    """Write `predictions.csv` with the calibrated confidences and the distances to the class."""
    predictions = evaluation.predictions
    confidences = calibrated_confidences(predictions, evaluation.calibrations)
    columns = {
        field_of(task, "calibrated_confidence"): confidence
        for task, confidence in confidences.items()
    }
    if gallery:
        distances = class_distances(gallery, predictions)
        columns |= {field_of(task, "class_distance"): values for task, values in distances.items()}
    predictions.save(folder, **columns)


# === One task ===


def _write_task_plots(
    trained: TrainedModel, evaluation: "Evaluation", task: str, history: pd.DataFrame
) -> None:
    """Write a task's classification report, and its plots without images."""
    folder, names = trained.run.results, evaluation.predictions.classes[task]
    _, labels, probabilities = evaluation.predictions.labelled_examples(task)
    predicted = probabilities.argmax(axis=1)
    with replacing(folder / f"classification_report_{task}.txt") as temporary:
        temporary.write_text(metrics.report_text(labels, predicted, names=names), encoding="utf-8")
    counts, shown_names, others = _plotted_matrix(
        evaluation.details["confusion"][task], labels, predicted, names
    )
    class_plots.confusion_matrix(
        folder / f"confusion_matrix_{task}.png",
        counts,
        shown_names,
        task=task,
        others=others,
        right=int((predicted == labels).sum()),
    )
    class_metrics = metrics.per_class(labels, predicted, classes=len(names))
    class_plots.f1_scores(
        folder / f"f1_scores_{task}.png",
        class_metrics["f1"].to_numpy(),
        class_metrics["support"].to_numpy(),
        names,
        task=task,
        macro_f1=evaluation.metrics[task]["macro_f1"],
    )
    curves.training_history(folder / f"training_history_{task}.png", history, task=task)
    diagram.architecture(
        folder / f"model_architecture_{task}.png",
        architecture_nodes(trained.network, task),
        task=task,
    )


def _plotted_matrix(
    matrix: Mapping[str, Any], labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray | list, Sequence[str], int]:
    """Counts, names and number of other classes of the plotted confusion matrix.

    A complete matrix is plotted in the order of the class file.
    """
    if matrix["others"]:
        return matrix["counts"], matrix["names"], matrix["others"]
    return metrics.confusion(labels, predicted, classes=len(names)), names, 0


def _write_outliers(folder: Path, predictions: Predictions, task: str, load: Load) -> None:
    """Write the images with a wrong or unconfident prediction, worst first.

    The CSV lists all of them; the plot shows the first ones.
    """
    names = predictions.classes[task]
    rows, labels, probabilities = predictions.labelled_examples(task)
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
    with replacing(folder / f"outliers_{task}.csv") as temporary:
        frame.to_csv(temporary, index=False)
    shown = frame.head(SHOWN_OUTLIERS)
    image_sheets.outliers(
        folder / f"outliers_{task}.png",
        [load(path) for path in shown["path"]],
        [
            f"true: {row.true}\npredicted: {row.predicted}\nconfidence {row.confidence:.2f}"
            for row in shown.itertuples()
        ],
        task=task,
        total=len(frame),
    )


def _write_class_tables(folder: Path, predictions: Predictions, task: str) -> None:
    """Write tables of all classes and all confused pairs, which may not fit on the page."""
    names = np.asarray(predictions.classes[task], object)
    _, labels, probabilities = predictions.labelled_examples(task)
    predicted = probabilities.argmax(axis=1)
    pairs = metrics.confusion_pairs(labels, predicted, classes=len(names))
    table = metrics.per_class(labels, predicted, classes=len(names))
    mistakes = pairs[pairs["true"] != pairs["predicted"]].drop_duplicates("true").set_index("true")
    most_confused = mistakes["predicted"].reindex(table.index)
    classes = pd.DataFrame(
        {
            "label": table.index,
            "class": names,
            "examples": table["support"],
            "predicted": np.bincount(predicted, minlength=len(names)),
            "precision": table["precision"],
            "recall": table["recall"],
            "f1": table["f1"],
            "most_confused_with": ["" if np.isnan(i) else names[int(i)] for i in most_confused],
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
