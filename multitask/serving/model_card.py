"""The model card of an export (Mitchell et al. 2019), as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multitask.calibration import Calibration
from multitask.data.table import Table
from multitask.errors import counted
from multitask.feature_distance import DISTANCE, UNLIKE, FeatureDistance
from multitask.run import package_versions
from multitask.serving.agreement import BOUNDS, rounding_line
from multitask.serving.formats import FORMATS
from multitask.spec import NO_TEST_SET, OTHER_ANSWER, DataSpec
from multitask.trained import TrainedModel


def model_card(
    trained: TrainedModel,
    table: Table,
    calibrations: Mapping[str, Calibration],
    entries: Sequence[Mapping[str, Any]],
    artifacts: Mapping[str, str],
    *,
    checked_on: str = "images",
) -> str:
    """Describe artifacts, data, metrics, recipe, calibration and checks.

    Args:
        trained: the exported model.
        table: of the run.
        calibrations: exported task -> its temperature.
        entries: from `agreement.compare`.
        artifacts: format -> path in the export.
        checked_on: kind of the images that were checked.
    """
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    tasks, spec = tuple(calibrations), trained.spec
    lines = [
        *_introduction(spec, tasks, artifacts),
        *_data(spec, table),
        *_metrics(trained, table, tasks),
        *_recipe(spec),
        *_confidence(calibrations, trained.distance),
        *_checks(entries, checked_on),
        "",
        f"Made with {versions}.",
    ]
    return "\n".join(lines) + "\n"


def _introduction(
    spec: DataSpec, tasks: Sequence[str], artifacts: Mapping[str, str]
) -> Iterator[str]:
    yield from (
        f"# {spec.title or spec.name}: {', '.join(tasks)}",
        "",
        f"One {spec.trunk.name} at {spec.image_size} px with one head per task. For each task it "
        "gives `{task}_probabilities` (calibrated) and `{task}_logits`; `classes.json` holds the "
        "class names in their order.",
        "",
    )
    for name, path in artifacts.items():
        inputs = FORMATS[name].takes.format(size=spec.image_size)
        yield f"- {FORMATS[name].title}, `{path}`: {inputs}."
    yield ""


def _data(spec: DataSpec, table: Table) -> Iterator[str]:
    yield from (
        "## Data",
        "",
        f"- Source: {spec.source}",
        f"- Licence of the data: {spec.licence}",
        "- No test image of any task was used for training; "
        f"{spec.validation:.0%} of the training images were held out for choosing the model.",
        "",
        "| split | images | " + " | ".join(f"{task} labels" for task in table.tasks) + " |",
        "|---|---|" + "---|" * len(table.tasks),
    )
    for split, counts in table.counts().iterrows():
        yield f"| {split} | " + " | ".join(f"{count:,}" for count in counts) + " |"
    yield ""


def _metrics(trained: TrainedModel, table: Table, tasks: Sequence[str]) -> Iterator[str]:
    metrics, baseline = saved_metrics(trained)
    yield from ("## Metrics on the official test set", "")
    if metrics:
        yield "| task | labelled | top-1 | top-5 | macro-F1 | majority class: top-1 | macro-F1 |"
        yield "|---|---|---|---|---|---|---|"
        for task in tasks:
            if not metrics.get(f"{task}/labelled"):
                yield f"| {task} | n/a ({NO_TEST_SET}) |" + " |" * 5
                continue
            values = [
                *(metrics.get(f"{task}/{n}") for n in ("labelled", "top1", "top5", "macro_f1")),
                *(baseline.get(f"{task}/{n}") for n in ("top1", "macro_f1")),
            ]
            yield f"| {task} | " + " | ".join(_cell(value) for value in values) + " |"
    else:
        yield "Not evaluated (`multitask evaluate` writes them)."
        yield from (f"- {task}: {NO_TEST_SET}" for task in table.without_test if task in tasks)
    yield ""


def _recipe(spec: DataSpec) -> Iterator[str]:
    yield from (
        "## Recipe",
        "",
        f"- Initial trunk weights: {spec.trunk.weights}; batch {spec.batch_size}; epochs "
        f"heads {spec.phases.heads.epochs}, finetune {spec.phases.finetune.epochs} (at most); "
        f"seed {spec.seed}",
    )
    if spec.co_occurrence != "off":
        yield "- A task's answers depend on those of the others, by how often labels occur together"
    for task in spec.tasks:
        yield (
            f"- {task.name}: head {_kind(task.head)}; loss {_kind(task.loss)}; "
            f"schedule {_kind(task.schedule)}; class-weight exponent "
            f"{task.class_weight_exponent:g}; freeze depth {task.freeze_depth}"
        )
    yield ""


def _confidence(
    calibrations: Mapping[str, Calibration], distance: FeatureDistance | None
) -> Iterator[str]:
    yield from ("## Confidence", "")
    for task, calibration in calibrations.items():
        if calibration.fitted_on and not calibration.reason:
            yield (
                f"- {task}: logits are divided by {calibration.temperature:.3f}, fitted on "
                f"{counted(calibration.fitted_on, 'image')} held out of training"
            )
        else:
            reason = f" ({calibration.reason})" if calibration.reason else ""
            yield f"- {task}: not calibrated{reason}"
        if rejection := calibration.rejection:
            how = (
                "as trained" if rejection.reason else f"fitted on {rejection.others:,} other images"
            )
            yield (
                f"- {task} answers `{OTHER_ANSWER}` for an image that has none of its classes; the "
                f"probability of this answer is {how}"
            )
    if distance is not None:
        yield (
            f"- An image whose distance to {distance.training_images:,} training images is above "
            f"{distance.limit():.3f} is {UNLIKE} (`{DISTANCE}`); of the images like the "
            f"{distance.validation.images:,} held out of training, at most "
            f"{distance.default_share:.1%}"
        )
    yield ""


def _checks(entries: Sequence[Mapping[str, Any]], checked_on: str) -> list[str]:
    lines = [
        "## Checks",
        "",
        f"Each artifact was compared with the Keras model on {entries[0]['images']} {checked_on}.",
        "",
        "| artifact | precision | run by | greatest difference of a probability (allowed) | "
        "same top-1 | top-1, of the model | macro-F1, of the model |",
        "|---|---|---|---|---|---|---|",
    ]
    model, *rest = entries
    for entry in rest:
        for task, values in entry["tasks"].items():
            expected = model["tasks"][task]
            cells = [
                f"{FORMATS[entry['format']].title}: {task}",
                entry["precision"],
                entry["runtime"],
                f"{values['difference']:.1g} ({BOUNDS[entry['precision']].difference:g})",
                _cell(values["same_top1"]),
                *(f"{_cell(values[n])}, {_cell(expected[n])}" for n in ("top1", "macro_f1")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if rounding := rounding_line(entries):
        lines += ["", rounding]
    return lines


def saved_metrics(trained: TrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and baselines of the model's own evaluation; empty if there is none."""
    results = trained.read_results("metrics.json", lambda read: (read["metrics"], read["baseline"]))
    return ({}, {}) if results is None else results


def _cell(value: float | int | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _kind(choice: Any) -> str:
    options = ", ".join(f"{name} {value}" for name, value in choice.options.items())
    return f"{choice.kind} ({options})" if options else choice.kind
