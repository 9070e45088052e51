"""The result of an evaluation, which the report, its files and the console are made from."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from multitask.calibration import Calibration
from multitask.conformal import Conformal
from multitask.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        predictions: of every readable test image.
        metrics: task -> the metrics of `evaluate_tasks`.
        calibrations: task -> its calibration, estimated on the validation split.
        conformal: the scores of the validation split, for sets of classes.
        details: the rest of `metrics.json`, JSON-ready.
        unreadable: path and reason of the test images that could not be read.
        near_duplicates: paths of the test images that show the same painting as a training image;
            None if they were not searched for.
        metrics_without_near_duplicates: like `metrics`, for the test set without those images; None
            if they were not searched for.
    """

    predictions: Predictions
    metrics: dict[str, dict[str, Any]]
    calibrations: dict[str, Calibration]
    conformal: Conformal
    details: dict[str, Any]
    unreadable: pd.DataFrame
    near_duplicates: tuple[str, ...] | None = None
    metrics_without_near_duplicates: dict[str, dict[str, Any]] | None = None
