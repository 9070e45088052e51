"""The files of `results/`: predictions, plots, CSVs, `metrics.json` and the page."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask import metrics
from multitask.calibration import CALIBRATION
from multitask.data.image_files import read_frame
from multitask.evaluation.coverage import class_table
from multitask.evaluation.evaluation import Evaluation
from multitask.evaluation.examiner import Examiner
from multitask.evaluation.examples import attention_examples, similar_examples
from multitask.evaluation.gallery import Gallery
from multitask.evaluation.neighbours import class_distances
from multitask.evaluation.predictions import Predictions, read_predictions
from multitask.evaluation.task_metrics import calibrated_confidences, flat_metrics
from multitask.evaluation.task_plots import OPEN_SET, PLOTS, PlotSource, thumbnail
from multitask.feature_distance import DISTANCE
from multitask.files import replacing, write_json
from multitask.pages.distance_plots import distance_plot
from multitask.pages.report_page import write_page
from multitask.run import Run, package_versions
from multitask.spec import SHARED, field_of
from multitask.trained import TrainedModel


def write_results(
    trained: TrainedModel,
    evaluation: Evaluation,
    *,
    examiner: Examiner,
    gallery: Gallery | None,
) -> None:
    """Write everything in `results/`; each file is written completely or not at all.

    Args:
        trained: the evaluated model.
        evaluation: its result.
        examiner: its network.
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
            **evaluation.fitted.to_dict(),
            "tta": _of_views(evaluation),
        },
    )
    _write_distance(trained, evaluation)
    load = functools.partial(thumbnail, trained.image_dir)
    history = read_history(run)
    for task in predictions.classes:
        _write_task_files(PlotSource(trained, evaluation, task, history))
        _write_class_tables(folder, predictions, task)
        with replacing(folder / f"coverage_{task}.csv") as temporary:
            of_task = evaluation.details["conformal"]["tasks"][task]
            class_table(of_task).to_csv(temporary, index=False)
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
            attention=attention_examples(trained, examiner, predictions, load),
            similar=similar_examples(gallery, predictions) if gallery else (),
        )


def _write_distance(trained: TrainedModel, evaluation: "Evaluation") -> None:
    """Write the distance to the training images and its plot; remove those of an older model."""
    file, plot = (trained.run.results / name for name in (DISTANCE, "distance.png"))
    if evaluation.distance is None:
        file.unlink(missing_ok=True)
        plot.unlink(missing_ok=True)
        return
    write_json(file, {"model": trained.name, **evaluation.distance.to_dict()})
    distance_plot(plot, evaluation.details["distance"])


def _of_views(evaluation: "Evaluation") -> dict[str, Any] | None:
    """What is fitted for test-time augmentation; None without it."""
    if evaluation.fitted_views is None:
        return None
    return {"kind": evaluation.details["tta"]["kind"], **evaluation.fitted_views.to_dict()}


def read_history(run: Run) -> pd.DataFrame:
    """Read `history.csv`; empty if there is none."""
    file = run.logs / "history.csv"
    if not file.is_file():
        return pd.DataFrame()
    remedy = "the same `multitask train` writes it again, or remove it"
    return read_frame(file, ("epoch",), remedy)


def _metrics_content(trained: TrainedModel, evaluation: Evaluation) -> dict[str, Any]:
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


def _write_predictions(evaluation: Evaluation, folder: Path, gallery: Gallery | None) -> None:
    """Write `predictions.csv` with calibrated confidences and distances to the class.

    For an open task, the file also has the probability that the image has one of its classes.
    """
    predictions = evaluation.predictions
    confidences = calibrated_confidences(predictions, evaluation.calibrations)
    columns = {
        field_of(task, "calibrated_confidence"): confidence
        for task, confidence in confidences.items()
    }
    columns |= {
        field_of(task, "known"): rejection.known(predictions.scores[task]).astype(np.float32)
        for task, calibration in evaluation.calibrations.items()
        if (rejection := calibration.rejection) and task in predictions.scores
    }
    if evaluation.distance is not None:
        distances_to_all = evaluation.distance.distances(predictions.vectors[SHARED])
        columns["distance"] = distances_to_all.astype(np.float32)
    if gallery:
        distances = class_distances(gallery, predictions)
        columns |= {field_of(task, "class_distance"): values for task, values in distances.items()}
    predictions.save(folder, **columns)


# === One task ===


def _write_task_files(source: PlotSource) -> None:
    """Write a task's plots, its classification report and its outliers."""
    folder, task = source.trained.run.results, source.task
    _, labels, probabilities = source.predictions.labelled_examples(task)
    text = metrics.report_text(labels, probabilities.argmax(axis=1), names=source.names)
    with replacing(folder / f"classification_report_{task}.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with replacing(folder / f"outliers_{task}.csv") as temporary:
        source.outliers.to_csv(temporary, index=False)
    open_tasks = source.evaluation.details.get("open_set", {})
    for kind, draw in PLOTS.items():
        if kind == OPEN_SET and task not in open_tasks:
            continue
        draw(folder / f"{kind}_{task}.png", source)


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
