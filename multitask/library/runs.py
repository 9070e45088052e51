"""Specs and runs: train, open, evaluate, export."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitask import spec as specs
from multitask.console import log_shown
from multitask.library.html import curves_html, table_html
from multitask.run import Run, flatten
from multitask.run import open_run as open_workdir
from multitask.spec import PHASES, DataSpec, InputError, expected
from multitask.startup import import_tensorflow_once

if TYPE_CHECKING:
    import pandas as pd

    from multitask.library.drafts import SpecDraft
    from multitask.library.evaluations import RunEvaluation
    from multitask.library.models import ImageModel

PathLike = str | os.PathLike


def load_spec(
    name: PathLike,
    changes: Mapping[str, Any] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    allow_outside: bool = False,
    **fields: Any,
) -> DataSpec:
    """Read a spec, and replace some of its fields.

    Args:
        name: name of a shipped spec (`demo`, `wikiart`, `wikiart_lite`), or a TOML file.
        changes: field -> value, for fields inside tables: `phases.heads.epochs`; `task.subset` of
            every task; `task[style].head` of one task.
        tasks: names of the tasks to use; None: all.
        allow_outside: whether the spec's paths may leave the data folder.
        **fields: fields at the top of the spec, such as `image_size`.

    Raises:
        InputError: no such spec, or a wrong field; `field` names it.

    Example:
        >>> import multitask as mt
        >>> spec = mt.load_spec("wikiart_lite", {"phases.heads.epochs": 3}, image_size=224)
        >>> spec.image_size, spec.phases.heads.epochs
        (224, 3)
        >>> mt.load_spec("wikiart", tasks=["style"], batch_size=0)
        Traceback (most recent call last):
            ...
        multitask.errors.SpecError: batch_size: 0: input should be greater than 0
    """
    spec = specs.load_spec(os.fspath(name), allow_outside=allow_outside)
    if tasks is not None:
        spec = specs.select_tasks(spec, tasks)
    return specs.override(spec, {**fields, **(changes or {})})


def train(
    spec: "DataSpec | SpecDraft | PathLike | None" = None,
    data_dir: PathLike | None = None,
    workdir: PathLike | None = None,
    *,
    data: PathLike | None = None,
    images: PathLike | None = None,
    phase: str = "all",
    records_dir: PathLike | None = None,
    init_from: PathLike | None = None,
    checkpoint_minutes: float = 10.0,
    deterministic: bool | None = None,
) -> "TrainingRun":
    """Train the one model of a spec, or resume the run of a workdir exactly where it stopped.

    Args:
        spec: from `load_spec` or `draft_spec`; or a spec's name or file; None: guessed from `data`.
        data_dir: the folder that the spec's paths are relative to. None: the draft's folder, or the
            folder of a spec file that has a [table].
        workdir: a new folder, or one with a run of the same settings; always needed.
        data: a collection, whose spec is guessed; with a spec: another copy of its images.
        images: the folder of the images of `data`; None: that of the table.
        phase: `heads`, `finetune` or `all`.
        records_dir: folder of prepared records; None: `records` in `data_dir`.
        init_from: with `finetune`: the .keras model to start from.
        checkpoint_minutes: time between two checkpoints; each epoch also ends with one.
        deterministic: same bits for the same seed; None: only on a CPU, where it costs nothing.

    Returns:
        The run. It has the files that `multitask train` writes, except for the evaluation.

    Raises:
        InputError: an argument is wrong; nothing has been written.
        RunError: the loss is not finite.

    Example:
        >>> import multitask as mt
        >>> run = mt.train("museum.toml", data_dir="museum", workdir="runs/second")
        >>> run.history["phase"].tolist()
        ['heads', 'finetune']
    """
    workdir = _check_arguments(workdir, phase)
    with log_shown():
        spec, data_dir = _resolve_data(spec, _path(data_dir), data, images)
        import_tensorflow_once()
        from multitask.annexes.extensions import build_extensions
        from multitask.learning import training

        result = training.train(
            spec,
            data_dir,
            workdir,
            records_dir=_path(records_dir),
            phase=phase,
            init_from=_path(init_from),
            checkpoint_minutes=checkpoint_minutes,
            deterministic=deterministic,
            extensions=build_extensions(spec),
        )
    return TrainingRun(result.run)


def _check_arguments(workdir: PathLike | None, phase: str) -> Path:
    if workdir is None:
        raise InputError("needed: the folder of the run", field="workdir")
    if phase not in (*PHASES, "all"):
        raise InputError(f"{phase!r}. {expected(phase, (*PHASES, 'all'))}", field="phase")
    return Path(workdir)


def _resolve_data(
    spec: "DataSpec | SpecDraft | PathLike | None",
    data_dir: Path | None,
    data: PathLike | None,
    images: PathLike | None,
) -> tuple[DataSpec, Path]:
    """The spec and its data folder; a name is read and a collection is drafted, see `train`."""
    from multitask.library.drafts import SpecDraft, draft_spec

    if spec is None:
        if data is None:
            raise InputError("needed, or `data`, whose spec is guessed", field="spec")
        if data_dir is not None:
            raise InputError(
                "with `data` alone, the paths start at the table's folder", field="data_dir"
            )
        spec, data, images = draft_spec(data, images=images), None, None
    if isinstance(spec, SpecDraft):
        data_dir = data_dir or spec.data_dir
        spec = spec.spec
    elif not isinstance(spec, DataSpec):
        spec = load_spec(spec)
    if data is not None:
        from multitask.data.copies import with_copy

        return with_copy(spec, data_dir, Path(data), images=_path(images))
    if images is not None:
        raise InputError("is for `data`", field="images")
    if data_dir is None:
        if spec.table is None or Path(spec.source_file).suffix != ".toml":
            raise InputError(
                "needed: the folder that the spec's paths are relative to", field="data_dir"
            )
        data_dir = Path(spec.source_file).parent
    return spec, data_dir


def open_run(
    workdir: PathLike, data_dir: PathLike | None = None, *, allow_outside: bool = False
) -> "TrainingRun":
    """Open the run of a workdir.

    Args:
        workdir: the folder that `train` wrote.
        data_dir: the new folder of data that was moved; None: the folder used for training.
        allow_outside: whether the spec's paths may leave the data folder.

    Raises:
        InputError: there is no run.

    Example:
        >>> import multitask as mt
        >>> mt.open_run("runs/first").spec.task_names
        ('shade', 'warmth')
        >>> mt.open_run("no/such/folder")
        Traceback (most recent call last):
            ...
        multitask.errors.InputError: workdir: no/such/folder: there is no such folder; `multitask \
train` makes one
    """
    return TrainingRun(open_workdir(Path(workdir), _path(data_dir), allow_outside=allow_outside))


class TrainingRun:
    """A trained run, from `train` or `open_run`.

    Args:
        run: the workdir and its settings.

    Attributes:
        workdir: folder of the run.
        data_dir: the folder that the spec's paths are relative to.
        spec: the settings.

    Example:
        >>> import multitask as mt
        >>> run = mt.open_run("runs/first")
        >>> run
        TrainingRun('runs/first')
        >>> run.export(["onnx"]).name
        'export'
        >>> run.load_model().size_px
        32
    """

    def __init__(self, run: Run):
        self._run = run
        self.workdir, self.data_dir, self.spec = run.workdir, run.data_dir, run.spec

    def __repr__(self) -> str:
        return f"TrainingRun({str(self.workdir)!r})"

    @property
    def history(self) -> "pd.DataFrame":
        """One row per epoch over both phases, the columns of `logs/history.csv`."""
        import pandas as pd

        file = self._run.logs / "history.csv"
        return pd.read_csv(file) if file.is_file() else pd.DataFrame()

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best model, from 1 over both phases; None without a validation split."""
        scores = self.history.get("val_macro_f1")
        return None if scores is None or scores.isna().all() else int(scores.argmax()) + 1

    def evaluate(
        self,
        *,
        model: PathLike | None = None,
        batch_size: int | None = None,
        max_missing: float | None = None,
        tta: str | None = None,
        similar: bool = True,
        auxiliary: bool = False,
    ) -> "RunEvaluation":
        """Evaluate the best model on the test set and write the reports to `results/`.

        Args:
            model: another model file of the run; None: the best one.
            batch_size: images at a time; None: as in training.
            max_missing: share of the images that may be missing; None: as in training.
            tta: also measure test-time augmentation, `flip` or `crops`.
            similar: also embed the training images, to report similar images.
            auxiliary: also evaluate the auxiliary tasks.

        Raises:
            InputError: there is no model, or the data cannot be read.
        """
        if tta not in (None, "flip", "crops"):
            raise InputError(f"{tta!r}. {expected(str(tta), ('flip', 'crops'))}", field="tta")
        with log_shown():
            import_tensorflow_once()
            from multitask.evaluation.report import evaluate
            from multitask.library.evaluations import RunEvaluation
            from multitask.trained import open_trained

            trained = open_trained(self._run, _path(model), auxiliary=auxiliary)
            evaluation = evaluate(
                trained, batch_size=batch_size, max_missing=max_missing, tta=tta, similar=similar
            )
        return RunEvaluation(trained, evaluation)

    def export(
        self,
        formats: Sequence[str] = ("savedmodel",),
        *,
        quantize: str = "none",
        tasks: Sequence[str] | None = None,
        tta: str | None = None,
        model: PathLike | None = None,
        out: PathLike | None = None,
        images: int | None = None,
    ) -> Path:
        """Export the best model, and check every artifact on real images.

        Args:
            formats: some of `savedmodel`, `onnx`, `litert` and `keras`.
            quantize: `none`, `float16` or `int8`.
            tasks: the tasks to export; None: all but the auxiliary ones.
            tta: `flip`: the artifacts average the image and its mirror image.
            model: another model file of the run; None: the best one.
            out: the folder; None: `export` in the workdir.
            images: number of images to check with; 0: the whole test set; None: 32, or 256 with
                quantisation.

        Returns:
            The folder, for `load_model`.

        Raises:
            InputError: an argument is wrong, or a package is missing.
            RunError: an artifact disagrees with the model; an existing export is unchanged.
        """
        with log_shown():
            import_tensorflow_once()
            from multitask.serving.export import export

            return export(
                self._run,
                model_file=_path(model),
                formats=[formats] if isinstance(formats, str) else list(formats),
                quantize=quantize,
                tasks=tasks,
                tta=tta,
                out=_path(out),
                images=images,
            )

    def load_model(self, model: PathLike | None = None) -> "ImageModel":
        """Load the best model, or another model file of the run, for predictions."""
        from multitask.library.models import model_of_run

        return model_of_run(self._run, _path(model))

    def _repr_html_(self) -> str:
        shipped, own = self._shipped_settings(), flatten(self.spec.to_dict())
        changed = {
            field: f"{value} (spec: {shipped[field]})"
            for field, value in own.items()
            if field in shipped and shipped[field] != value
        }
        facts = {
            "workdir": self.workdir,
            "data": self.data_dir,
            "epochs": len(self.history),
            "best epoch": self.best_epoch,
            **changed,
        }
        title = f"Run of {self.spec.title or self.spec.name}"
        return table_html(title, facts) + curves_html(self.history, self.spec.task_names)

    def _shipped_settings(self) -> dict[str, Any]:
        """The settings of the spec's file, flattened; empty if the file is no longer there."""
        try:
            before = specs.load_spec(self._spec_file(), allow_outside=True)
            known = [name for name in self.spec.task_names if name in before.task_names]
            return flatten(specs.select_tasks(before, known).to_dict())
        except InputError:
            return {}

    def _spec_file(self) -> str:
        from multitask.files import read_json

        return str(read_json(self.workdir / "config.json").get("spec_file", ""))


def _path(value: PathLike | None) -> Path | None:
    return None if value is None else Path(value)
