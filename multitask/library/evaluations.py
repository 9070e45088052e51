"""The result of an evaluation, for programs and notebooks."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from multitask.evaluation.evaluation import Evaluation
from multitask.evaluation.result_files import read_history
from multitask.evaluation.task_plots import PLOTS, PlotSource
from multitask.library.html import figure_html
from multitask.pages.canvas import Drawing
from multitask.spec import InputError, expected
from multitask.trained import TrainedModel

HEADLINE = ("labelled", "top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy")


class RunEvaluation:
    """An evaluation on the test set, from `TrainingRun.evaluate`.

    Args:
        trained: the evaluated model.
        evaluation: its result.

    Attributes:
        folder: the folder of all files of the evaluation.
        report: path of `report.html`.
        metrics: one row per task: `labelled` (test images), `top1`, `top5`, `macro_f1`,
            `weighted_f1`, `balanced_accuracy`, and those of the majority class, `majority_top1` and
            `majority_macro_f1`; NaN without a test set.
        predictions: one row per test image: `path`, and of each task the `true` and `predicted`
            class and the `confidence`, as `style/true`; a missing label is None.

    Example:
        >>> import multitask as mt
        >>> evaluation = mt.open_run("runs/first").evaluate(similar=False)
        >>> evaluation.metrics.index.tolist()
        ['shade', 'warmth']
        >>> evaluation.report.as_posix()
        'runs/first/results/report.html'
        >>> evaluation.plot("confusion_matrix", task="shade").savefig("confusion.png")
    """

    def __init__(self, trained: TrainedModel, evaluation: Evaluation):
        self._trained, self._evaluation = trained, evaluation
        self.folder: Path = trained.run.results
        self.report: Path = self.folder / "report.html"
        self.metrics: pd.DataFrame = _metric_table(evaluation)
        self.predictions: pd.DataFrame = evaluation.predictions.frame().replace({"": None})

    def __repr__(self) -> str:
        return f"RunEvaluation({str(self.folder)!r})\n{self.metrics}"

    def plot(self, kind: str, task: str) -> Figure:
        """Draw a plot of the report.

        Args:
            kind: `confusion_matrix`, `f1_scores`, `coverage`, `training_history`,
                `model_architecture`, `outliers`, or `open_set` (of a task that answers `other`).
            task: name of the task.

        Returns:
            A figure, which a notebook shows. `figure.savefig("a.png")` writes it.

        Raises:
            InputError: unknown kind or task.
        """
        if kind not in PLOTS:
            raise InputError(f"{kind!r}. {expected(kind, PLOTS)}", field="kind")
        tasks = self._evaluation.predictions.classes
        if task not in tasks:
            raise InputError(f"{task!r}. {expected(task, tasks)}", field="task")
        drawing = Drawing()
        history = read_history(self._trained.run)
        PLOTS[kind](drawing, PlotSource(self._trained, self._evaluation, task, history))
        assert drawing.figure is not None  # every plot fills its target
        return drawing.figure

    def _repr_html_(self) -> str:
        shown = [self.metrics.rename_axis(None).to_html(float_format="{:.3f}".format, na_rep="n/a")]
        for task in self._evaluation.predictions.classes:
            figure = self.plot("confusion_matrix", task)
            shown.append(figure_html(figure._repr_png_(), f"confusion matrix of {task}"))  # type: ignore[attr-defined]
        return "".join(shown)


def _metric_table(evaluation: Evaluation) -> pd.DataFrame:
    rows = {
        task: {name: values[name] for name in HEADLINE}
        | {f"majority_{name}": values["baseline"][name] for name in ("top1", "macro_f1")}
        for task, values in evaluation.metrics.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")
    return table.astype({name: float for name in table.columns if name != "labelled"})
