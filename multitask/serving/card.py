"""The model card of an export (Mitchell et al. 2019), as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask.data.table import Table
from multitask.evaluation.calibration import Calibration
from multitask.evaluation.record import is_of_model
from multitask.files import read_json
from multitask.run import Run, name_in_run, package_versions
from multitask.serving.agreement import BOUNDS, rounding_line
from multitask.serving.formats import FORMATS
from multitask.spec import NO_TEST_SET, InputError


def model_card(
    run: Run,
    model_file: Path,
    table: Table,
    calibrations: Mapping[str, Calibration],
    entries: Sequence[Mapping[str, Any]],
    artifacts: Mapping[str, str],
    *,
    checked_on: str = "pictures",
) -> str:
    """Data, counts, metrics, recipe, artifacts and their checks.

    Args:
        run, model_file: what was exported.
        table: of the run.
        calibrations: task -> its temperature; the exported tasks.
        entries: as `agreement.compare` gives them.
        artifacts: format -> where it lies in the export.
        checked_on: what kind of pictures the entries are of.
    """
    spec, tasks = run.spec, tuple(calibrations)
    metrics, baseline = _results(run, model_file)
    lines = [
        f"# {spec.title or spec.name}: {', '.join(tasks)}",
        "",
        f"One {spec.trunk.name} at {spec.image_size} px with one head a task. For each task it "
        "gives `{task}_probabilities` (calibrated) and `{task}_logits`; names and their order "
        "stand in `classes.json`.",
        "",
    ]
    for name, where in artifacts.items():
        takes = FORMATS[name].takes.format(size=spec.image_size)
        lines.append(f"- {FORMATS[name].title}, `{where}`: {takes}.")
    lines += [
        "",
        "## Data",
        "",
        f"- Source: {spec.source}",
        f"- Licence of the data: {spec.licence}",
        "- A picture that is val for one task was trained on for none; "
        f"{spec.selection:.0%} of the training pictures were held out for choosing the model.",
        "",
        "| split | pictures | " + " | ".join(f"{task} labels" for task in table.tasks) + " |",
        "|---|---|" + "---|" * len(table.tasks),
    ]
    for split, counts in table.counts().iterrows():
        lines.append(f"| {split} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    lines += ["", "## Metrics on the official val rows", ""]
    if metrics:
        lines += [
            "| task | labelled | top-1 | top-5 | macro-F1 | commonest class: top-1 | macro-F1 |",
            "|---|---|---|---|---|---|---|",
        ]
        for task in tasks:
            if not metrics.get(f"{task}/labelled"):
                lines.append(f"| {task} | n/a ({NO_TEST_SET}) |" + " |" * 5)
                continue
            values = [
                *(metrics.get(f"{task}/{n}") for n in ("labelled", "top1", "top5", "macro_f1")),
                *(baseline.get(f"{task}/{n}") for n in ("top1", "macro_f1")),
            ]
            lines.append(f"| {task} | " + " | ".join(_cell(value) for value in values) + " |")
    else:
        lines.append("Not evaluated (`multitask evaluate` writes them).")
        lines += [f"- {task}: {NO_TEST_SET}" for task in table.without_test if task in tasks]
    lines += [
        "",
        "## Recipe",
        "",
        f"- Trunk weights to start from: {spec.trunk.weights}; batch {spec.batch_size}; epochs "
        f"heads {spec.phases.heads.epochs}, finetune {spec.phases.finetune.epochs} (at most); "
        f"seed {spec.seed}",
    ]
    for task in spec.tasks:
        lines.append(
            f"- {task.name}: head {_kind(task.head)}; loss {_kind(task.loss)}; "
            f"schedule {_kind(task.schedule)}; class-weight exponent "
            f"{task.class_weight_exponent:g}; freeze depth {task.freeze_depth}"
        )
    lines += ["", "## Confidence", ""]
    for task, found in calibrations.items():
        lines.append(
            f"- {task}: logits are divided by {found.temperature:.3f}, fitted on "
            f"{found.fitted_on:,} pictures held out of training"
            if found.fitted_on and not found.reason
            else f"- {task}: not calibrated" + (f" ({found.reason})" if found.reason else "")
        )
    lines += ["", "## Checks", "", *_checks(entries, checked_on)]
    if rounding := rounding_line(entries):
        lines += ["", rounding]
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    lines += ["", f"Made with {versions}."]
    return "\n".join(lines) + "\n"


def _checks(entries: Sequence[Mapping[str, Any]], checked_on: str) -> list[str]:
    """Each artifact against the Keras model."""
    lines = [
        f"Each was run on {entries[0]['pictures']} {checked_on} before it was kept.",
        "",
        "| artifact | precision | run by | greatest difference of a probability (allowed) | "
        "same top-1 | top-1, of the model | macro-F1, of the model |",
        "|---|---|---|---|---|---|---|",
    ]
    model, *rest = entries
    for entry in rest:
        for task, found in entry["tasks"].items():
            before = model["tasks"][task]
            cells = [
                f"{FORMATS[entry['format']].title}: {task}",
                entry["precision"],
                entry["runtime"],
                f"{found['difference']:.1g} ({BOUNDS[entry['precision']].difference:g})",
                _cell(found["same_top1"]),
                *(f"{_cell(found[n])}, {_cell(before[n])}" for n in ("top1", "macro_f1")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _results(run: Run, model_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics and baselines of the model's own evaluation; nothing where there is none."""
    path = run.results / "metrics.json"
    if not path.is_file():
        return {}, {}
    try:
        content = read_json(path)
        same = content["model"] == name_in_run(run, model_file)
        if not same or not is_of_model(run, path.name, model_file):
            return {}, {}
        return content["metrics"], content["baseline"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what `multitask evaluate` writes: {error}") from None


def _cell(value: float | int | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _kind(choice) -> str:
    options = ", ".join(f"{name} {value}" for name, value in choice.options.items())
    return f"{choice.kind} ({options})" if options else choice.kind
