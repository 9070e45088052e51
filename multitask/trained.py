"""A run's model, opened once, with all data that the commands after training read.

Each part is read when it is first needed and kept. Importing this module does not import
TensorFlow; `network` and the parts that read images do.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from multitask.calibration import CALIBRATION, Calibration
from multitask.conformal import Conformal
from multitask.data.label_files import classes_of
from multitask.data.merging import merge_tables
from multitask.data.run_table import read_run_table
from multitask.data.table import Table, sample_table, sample_without
from multitask.feature_distance import DISTANCE, FeatureDistance
from multitask.files import read_json, replacing
from multitask.open_set import Rejection
from multitask.reading import sha256
from multitask.results import is_complete, is_of_model
from multitask.run import Run, name_in_run
from multitask.spec import DataSpec, InputError

if TYPE_CHECKING:
    import keras

T = TypeVar("T")


@dataclass(eq=False)
class TrainedModel:
    """A model file of a run, and its data and results.

    Attributes:
        run: from open_run.
        model_file: one of the run's models.
        auxiliary: include the auxiliary tasks; all parts below are without them otherwise.
        tta: one of evaluation.tta.TTA: calibrations and sets are those of the averaged views. The
            network is the same.
    """

    run: Run
    model_file: Path
    auxiliary: bool = False
    tta: str | None = None

    @cached_property
    def spec(self) -> DataSpec:
        """The settings of the run; without its auxiliary tasks, unless `auxiliary`."""
        return self.run.spec if self.auxiliary else self.run.spec.without_auxiliary()

    @property
    def image_dir(self) -> Path:
        """The folder that the table's paths start at."""
        return self.run.data_dir / self.spec.images

    @property
    def name(self) -> str:
        """The model's name in the reports."""
        return name_in_run(self.run, self.model_file)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return sha256(self.model_file)

    # === Data ===

    @cached_property
    def _merged_table(self) -> Table:
        """`merged_table` with the auxiliary tasks."""
        kept = read_run_table(self.run.spec, self.run.workdir)
        return kept if kept is not None else merge_tables(self.run.spec, self.run.data_dir)

    @cached_property
    def merged_table(self) -> Table:
        """The images of all CSVs, before the subset and the validation split are sampled.

        Of a collection, the table of the first training, whatever the collection is by now.
        """
        return self._merged_table.of_tasks(self.spec.task_names)

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Task -> class names, by index."""
        every = self._classes
        if tuple(every) == self.spec.task_names:
            return every
        return {task: every[task] for task in self.spec.task_names}

    @cached_property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        """`classes` with the auxiliary tasks."""
        if "_merged_table" in self.__dict__:
            return self._merged_table.classes
        # Serving a model needs its class names and no CSV.
        return {task.name: classes_of(task, self.run.data_dir) for task in self.run.spec.tasks}

    @cached_property
    def test_table(self) -> Table:
        """The table whose test rows are evaluated; it still contains missing files."""
        table = sample_table(self.run.spec, self._merged_table)
        return table.of_tasks(self.spec.task_names)

    @cached_property
    def training_table(self) -> Table:
        """The table that the run trained on, without the images that training excluded."""
        excluded = self.excluded_images
        if excluded is None:
            return self.test_table
        table = sample_without(self.run.spec, self._merged_table, excluded)
        return table.of_tasks(self.spec.task_names)

    @cached_property
    def excluded_images(self) -> pd.DataFrame | None:
        """Path and reason of the images that training excluded; None before any training."""
        from multitask.data.image_files import read_frame
        from multitask.data.records_builder import EXCLUDED

        path = self.run.workdir / EXCLUDED
        if not path.is_file():
            return None
        remedy = "the same `multitask train` writes it again"
        return read_frame(path, ("path", "reason"), remedy, dtype=str, keep_default_na=False)

    @cached_property
    def near_duplicates(self) -> pd.DataFrame:
        """Pairs of near-duplicates among all images of the CSVs, in the format of `describe_pairs`.

        They are searched for once per run and kept in the workdir.
        """
        from multitask.data.image_files import read_frame
        from multitask.data.near_duplicates import describe_pairs, hash_cache, near_pairs
        from multitask.data.records_builder import NEAR_DUPLICATES, default_records_dir

        file = self.run.workdir / NEAR_DUPLICATES
        if not file.is_file():
            table, records = self.merged_table, default_records_dir(self.run.data_dir)
            shared = records.is_dir() and os.access(records, os.W_OK)
            cache = hash_cache(self.spec, records if shared else self.run.workdir)
            pairs = near_pairs(table, self.image_dir, cache)
            with replacing(file) as temporary:
                describe_pairs(table, pairs).to_csv(temporary, index=False)
        return read_frame(file, ("first", "second"), "remove it to have it written again")

    # === Model ===

    @cached_property
    def network(self) -> "keras.Model":
        """The network, read by `load_network`."""
        from multitask.model.network import load_network, of_tasks

        network = load_network(self.model_file, self.run.spec, self._classes)
        return of_tasks(network, self.spec.task_names)

    # === Results ===

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """Task -> the calibration that `evaluate` saved; an empty one if it saved none."""

        def parse(content: dict[str, Any]) -> dict[str, Calibration]:
            saved = self._of_views(content).get("tasks", {})
            return {
                task.name: Calibration.from_dict(saved[task.name])
                for task in self.spec.tasks
                # `evaluate` excludes auxiliary tasks by default, and views are an option.
                if task.name in saved or not (task.auxiliary or self.tta)
            }

        return uncalibrated(self.spec) | (self.read_results(CALIBRATION, parse) or {})

    @cached_property
    def conformal(self) -> Conformal | None:
        """The scores for sets of classes, as saved by `evaluate`; None if there are none."""

        def parse(content: dict[str, Any]) -> Conformal | None:
            content = self._of_views(content)
            saved = content.get("conformal")  # missing in files of older versions
            if saved is None or content["tasks"].keys() != set(self.spec.task_names):
                return None  # of other tasks: `evaluate` may include or exclude auxiliary ones
            return Conformal.from_dict(saved, self.spec.task_names)

        return self.read_results(CALIBRATION, parse)

    @cached_property
    def distance(self) -> FeatureDistance | None:
        """The distance to the training images, as saved by `evaluate`; None if there is none."""
        return self.read_results(DISTANCE, FeatureDistance.from_dict)

    def _of_views(self, content: dict[str, Any]) -> dict[str, Any]:
        """The part of calibration.json for `tta`; empty if it was not evaluated."""
        if self.tta is None:
            return content
        views = content.get("tta") or {}
        return views if views.get("kind") == self.tta else {}

    def read_results(self, name: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """Read a JSON file of results/ if it belongs to this model.

        Args:
            name: name of the file.
            parse: converts its content; may raise KeyError, TypeError and ValueError.

        Returns:
            The value; None if there is no file, or if it belongs to another model.

        Raises:
            InputError: the file is broken.
        """
        path = self.run.results / name
        if not path.is_file():
            return None
        try:
            content = read_json(path)
            if content["model"] != self.name:
                return None
            value = parse(content)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path}: not what `multitask evaluate` writes: {error}") from None
        return value if is_of_model(self.run, name, self.digest) else None

    def is_evaluated(self) -> bool:
        """Whether results/ holds the complete evaluation of this model."""
        return is_complete(self.run, self.digest)


def uncalibrated(spec: DataSpec, reason: str | None = None) -> dict[str, Calibration]:
    """Task -> a calibration that changes nothing; an open task rejects as it was trained.

    Args:
        spec: the tasks.
        reason: why nothing was fitted.
    """
    return {
        task.name: Calibration(
            reason=reason, rejection=Rejection(reason=reason) if task.is_open else None
        )
        for task in spec.tasks
    }


def open_trained(
    run: Run,
    model_file: Path | None = None,
    *,
    auxiliary: bool = False,
    tta: str | None = None,
) -> TrainedModel:
    """Open a run's model; nothing is read yet.

    Args:
        run: from open_run.
        model_file: another model of the run; None: the best over all tasks.
        auxiliary: include the auxiliary tasks.
        tta: use the calibrations of these averaged views.

    Raises:
        InputError: there is no such model.
    """
    model_file = model_file or run.best_model
    if not model_file.exists():
        raise InputError(f"{model_file}: no such model; `multitask train` makes it")
    return TrainedModel(run, model_file, auxiliary, tta)
