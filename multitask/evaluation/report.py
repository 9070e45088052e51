"""Evaluate a run's model on the test set and write every task's report to `results/`."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from multitask.data.merging import describe_respelt
from multitask.data.near_duplicates import leaking_images
from multitask.evaluation.coverage import coverage_metrics
from multitask.evaluation.distances import distance_metrics, fit_feature_distance
from multitask.evaluation.evaluation import Evaluation
from multitask.evaluation.examiner import examiner_of
from multitask.evaluation.gallery import Gallery, load_or_build, normalised, read_gallery
from multitask.evaluation.neighbours import retrieval_quality
from multitask.evaluation.open_sets import evaluate_open_tasks
from multitask.evaluation.predictions import Predictions, predict_split
from multitask.evaluation.result_files import write_results
from multitask.evaluation.summary import summary_lines
from multitask.evaluation.task_metrics import (
    detailed_metrics,
    evaluate_tasks,
    fit_calibrations,
    flat_metrics,
)
from multitask.evaluation.tta import TTA
from multitask.files import collect_written_files
from multitask.results import write_record
from multitask.trained import TrainedModel

logger = logging.getLogger(__name__)


def evaluate(
    trained: TrainedModel,
    *,
    batch_size: int | None = None,
    max_missing: float | None = None,
    exclude_near_duplicates: bool | None = None,
    tta: str | None = None,
    similar: bool = True,
) -> Evaluation:
    """Evaluate a model on each task's official test rows and write `results/`.

    Args:
        trained: from open_trained.
        batch_size: images at a time; None: as in training.
        max_missing: share of the images that may be missing; None: as in training.
        exclude_near_duplicates: also report the metrics without the test images that show the same
            painting as a training image; None: if training excluded them or `similar` is on.
        tta: also measure test-time augmentation, one of TTA.
        similar: also embed the training images (once per model), to report similar images and
            images that are far from their class, and to fit the distance to the training images.

    Raises:
        InputError: the model or the data cannot be read, or too many images are missing.
    """
    run, spec = trained.run, trained.spec
    table = trained.test_table
    logger.info(f"Evaluating {trained.model_file} on the test images of {run.data_dir}")
    for line in describe_respelt(table.findings):
        logger.info(f"  {line}")
    # Read first: if the file changes before the network is read, the record must not match it.
    digest = trained.digest
    examiner = examiner_of(trained)
    predict = functools.partial(
        predict_split,
        examiner,
        spec=spec,
        image_dir=trained.image_dir,
        batch_size=batch_size or spec.batch_size,
        max_missing=spec.max_missing if max_missing is None else max_missing,
    )
    if exclude_near_duplicates is None:
        exclude_near_duplicates = similar or spec.exclude_near_duplicates
    evaluation = _measure(
        trained, predict, tta=tta, exclude_near_duplicates=exclude_near_duplicates
    )
    gallery = load_or_build(trained, examiner=examiner) if similar else read_gallery(trained)
    evaluation = _with_distance(evaluation, gallery)
    if similar:
        assert gallery is not None
        evaluation.details["similar"] = _retrieval_metrics(trained, evaluation.predictions, gallery)
    else:
        gallery = None
    with collect_written_files() as written:
        write_results(trained, evaluation, examiner=examiner, gallery=gallery)
    write_record(run, digest, written)
    trained.calibrations, trained.conformal = evaluation.calibrations, evaluation.conformal
    trained.distance = evaluation.distance
    for line in summary_lines(evaluation):
        logger.info(line)
    return evaluation


def _measure(
    trained: TrainedModel, predict: Callable, *, tta: str | None, exclude_near_duplicates: bool
) -> Evaluation:
    """Predict the test images and compute all metrics that need no gallery.

    Args:
        trained: the model.
        predict: `predict_split` of the model, with a table and further options.
        tta: as in `evaluate`.
        exclude_near_duplicates: as in `evaluate`.
    """
    table, training_table = trained.test_table, trained.training_table
    predictions, unreadable = predict(table)
    fitted = fit_calibrations(predict, training_table, trained.spec)
    calibrations = fitted.calibrations
    near_duplicates, metrics_without = None, None
    if exclude_near_duplicates:
        leaked = leaking_images(trained.near_duplicates, test=True)
        near_duplicates = tuple(sorted(set(leaked) & set(predictions.paths)))
        metrics_without = evaluate_tasks(predictions.excluding(near_duplicates), training_table)
    task_metrics = evaluate_tasks(predictions, training_table)
    details = detailed_metrics(predictions, training_table, calibrations)
    if open_set := evaluate_open_tasks(predictions, calibrations, trained.spec):
        details["open_set"] = open_set
    details["conformal"] = coverage_metrics(predictions, calibrations, fitted.conformal)
    fitted_views = None
    if tta:
        predict_views = functools.partial(predict, views=TTA[tta])
        averaged, _ = predict_views(table)
        fitted_views = fit_calibrations(predict_views, training_table, trained.spec)
        details["tta"] = {"kind": tta} | flat_metrics(evaluate_tasks(averaged, training_table))
    return Evaluation(
        predictions,
        task_metrics,
        fitted,
        details,
        unreadable,
        near_duplicates,
        metrics_without,
        fitted_views=fitted_views,
    )


def _with_distance(evaluation: Evaluation, gallery: Gallery | None) -> Evaluation:
    """The evaluation with the distance to the training images, if it can be fitted."""
    fitted = fit_feature_distance(gallery, evaluation.fitted.validation)
    evaluation.details["distance"] = distance_metrics(evaluation.predictions, fitted)
    return replace(evaluation, distance=None if isinstance(fitted, str) else fitted)


def _retrieval_metrics(
    trained: TrainedModel, predictions: Predictions, gallery: Gallery
) -> dict[str, dict[str, Any]]:
    return retrieval_quality(
        {name: normalised(vectors) for name, vectors in predictions.vectors.items()},
        predictions.paths,
        predictions.labels,
        gallery,
        near_duplicates=trained.near_duplicates,
    )
