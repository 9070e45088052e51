"""The result of an evaluation, which the report, its files and the console are made from."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from multitask.calibration import Calibration
from multitask.conformal import Conformal
from multitask.evaluation.predictions import Predictions
from multitask.evaluation.task_metrics import Fitted
from multitask.feature_distance import FeatureDistance


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        predictions: of every readable test image.
        metrics: task -> the metrics of `evaluate_tasks`.
        fitted: the calibrations and the scores for sets of classes, of the validation split.
        details: the rest of `metrics.json`, JSON-ready.
        unreadable: path and reason of the test images that could not be read.
        near_duplicates: paths of the test images that show the same painting as a training image;
            None if they were not searched for.
        metrics_without_near_duplicates: like `metrics`, for the test set without those images; None
            if they were not searched for.
        distance: the distance to the training images; None if it was not fitted.
        fitted_views: `fitted` for test-time augmentation; None without it.
    """

    predictions: Predictions
    metrics: dict[str, dict[str, Any]]
    fitted: Fitted
    details: dict[str, Any]
    unreadable: pd.DataFrame
    near_duplicates: tuple[str, ...] | None = None
    metrics_without_near_duplicates: dict[str, dict[str, Any]] | None = None
    distance: FeatureDistance | None = None
    fitted_views: Fitted | None = None

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """Task -> its calibration, estimated on the validation split."""
        return self.fitted.calibrations

    @property
    def conformal(self) -> Conformal:
        """The scores of the validation split, for sets of classes."""
        return self.fitted.conformal
