"""Measure how much each setting of a recipe contributes, on the validation split.

    python tools/ablate.py --variants=tools/ablations/wikiart_lite.toml --spec=wikiart_lite \
      --data_dir=DIR --out=OUT

The file has one table for each variant. Its entries replace fields of the spec:

    [recipe]                            # no changes

    ["4 epochs of finetune"]
    "phases.finetune.epochs" = 4
    "trunk.schedule.epochs" = 4         # options of a `kind` can be set as well

    ["without the painters"]
    tasks = ["artist", "style", "genre"]

Each variant is trained once with each seed, by `multitask train` in its own process. The best epoch
of each run is then measured on its validation split. The test set is read only with --test, for the
final metrics; choose by the validation split. Repeat the command to resume.

  OUT/{variant}/seed-{n}/     the runs
  OUT/ablation.csv            a row for each run
  OUT/ablation.md             mean over the seeds of each variant ± sample standard deviation
"""

import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from multitask.commands.spec_flags import define_records_dir, define_spec_flags, resolve_data
from multitask.data.table import TEST, VALIDATION
from multitask.errors import InputError
from multitask.files import replacing, write_json
from multitask.open_set import auroc
from multitask.reading import read_text
from multitask.spec import DataSpec, field_of, is_labelled, override, select_tasks

VARIANT, SEED, SECONDS = "variant", "seed", "seconds"
ALL_RIGHT = "all right"


def read_variants(path: Path) -> dict[str, dict[str, Any]]:
    """The variants of a file: name -> fields and their values."""
    try:
        variants = tomllib.loads(read_text(path, "utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for name, changes in variants.items():
        if not isinstance(changes, dict):
            raise InputError(f"{path}: {name}: expected a table of fields, [{name}]")
    if not variants:
        raise InputError(f"{path}: no variant")
    if len({slug(name) for name in variants}) < len(variants):
        raise InputError(f"{path}: two variants have similar names, and would share a folder")
    return variants


def slug(name: str) -> str:
    """A variant's name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "variant"


def spec_of(spec: DataSpec, changes: Mapping[str, Any], seed: int) -> DataSpec:
    """The spec of a variant with a seed."""
    fields = dict(changes)
    tasks = fields.pop("tasks", None)
    spec = spec if tasks is None else select_tasks(spec, tasks)
    return override(spec, {**fields, "seed": seed})


def measure(workdir: Path, split: str) -> dict[str, float]:
    """The metrics of a run's best model on a split.

    Returns:
        top-1 and macro-F1 of each task, the share of images whose answers are right for all tasks,
        and the AUROC of each open task; only those that the labels of the split allow.
    """
    from multitask.evaluation.examiner import examiner_of
    from multitask.evaluation.predictions import predict_split
    from multitask.evaluation.task_metrics import evaluate_tasks
    from multitask.evaluation.task_pairs import exact_match
    from multitask.run import open_run
    from multitask.spec import OTHER_LABEL
    from multitask.trained import open_trained

    trained = open_trained(open_run(workdir))
    spec, table = trained.spec, trained.training_table
    predictions, _ = predict_split(
        examiner_of(trained), table, spec=spec, split=split, image_dir=trained.image_dir,
        batch_size=spec.batch_size, max_missing=1.0,
    )  # fmt: skip
    measured: dict[str, float] = {}
    for task, values in evaluate_tasks(predictions, table).items():
        if values["labelled"]:
            measured |= {field_of(task, name): values[name] for name in ("top1", "macro_f1")}
    if together := exact_match(predictions):
        measured[ALL_RIGHT] = together["share"]
    for task in spec.open_tasks:
        labels, scores = predictions.labels_of(task), predictions.scores[task]
        known, others = is_labelled(labels), labels == OTHER_LABEL
        if known.any() and others.any():
            measured[field_of(task, "auroc")] = auroc(scores[known], scores[others])
    return measured


def train(spec: DataSpec, data_dir: Path, workdir: Path, arguments: list[str]) -> float:
    """Train a run in its own process; return the seconds of this attempt.

    Raises:
        SystemExit: the training failed, with its exit status.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    file = workdir.parent / f"{workdir.name}.toml"
    with replacing(file) as temporary:
        temporary.write_text(spec.to_toml(), encoding="utf-8")
    start = time.monotonic()
    # An evaluation would read the test set.
    command = [sys.executable, "-m", "multitask", "train", "--noevaluate", f"--spec={file}"]
    status = subprocess.run(
        [*command, f"--data_dir={data_dir}", f"--workdir={workdir}", *arguments], check=False
    ).returncode
    if status:
        raise SystemExit(status)
    return time.monotonic() - start


def run_all(
    spec: DataSpec,
    data_dir: Path,
    variants: Mapping[str, Mapping[str, Any]],
    out: Path,
    *,
    seeds: list[int],
    test: bool,
    arguments: list[str],
) -> pd.DataFrame:
    """Train and measure every variant with every seed; return `results_of` the variants."""
    specs = {
        (name, seed): spec_of(spec, changes, seed)
        for seed in seeds
        for name, changes in variants.items()
    }  # wrong fields are reported before the first training
    for (name, seed), one in specs.items():
        workdir = out / slug(name) / f"seed-{seed}"
        file = result_file(out, name, seed)
        done = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if SECONDS not in done:
            print(f"\n=== {name}, seed {seed}", flush=True)
            done[SECONDS] = train(one, data_dir, workdir, arguments)
        for split in (VALIDATION, TEST) if test else (VALIDATION,):
            if split not in done:
                done[split] = measure(workdir, split)
        write_json(file, done)
        frame = results_of(variants, out)
        with replacing(out / "ablation.csv") as temporary:
            frame.to_csv(temporary, index=False)
        with replacing(out / "ablation.md") as temporary:
            temporary.write_text("\n".join(table_lines(frame)) + "\n", encoding="utf-8")
    return results_of(variants, out)


def result_file(out: Path, name: str, seed: int | str) -> Path:
    """The file with the metrics and the seconds of a run."""
    return out / slug(name) / f"seed-{seed}.json"


def results_of(variants: Iterable[str], out: Path) -> pd.DataFrame:
    """A row for each measured run of the variants, of every invocation."""
    rows = []
    for name in variants:
        pattern = result_file(out, name, "*")
        for file in sorted(pattern.parent.glob(pattern.name), key=lambda f: (len(f.name), f.name)):
            done = json.loads(file.read_text(encoding="utf-8"))
            measured = {
                f"{key}{' (test)' if split == TEST else ''}": value
                for split in (VALIDATION, TEST)
                for key, value in done.get(split, {}).items()
            }
            seed = int(file.stem.removeprefix("seed-"))
            rows.append({VARIANT: name, SEED: seed, **measured, SECONDS: done[SECONDS]})
    return pd.DataFrame(rows)


def table_lines(frame: pd.DataFrame) -> list[str]:
    """A Markdown table: for each variant the mean ± the sample standard deviation over seeds."""
    columns = [name for name in frame.columns if name not in (VARIANT, SEED)]
    lines = [
        f"| {VARIANT} | seeds | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for name, runs in frame.groupby(VARIANT, sort=False):
        cells = [_cell(runs[column], column) for column in columns]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def _cell(values: pd.Series, column: str) -> str:
    mean, deviation = values.mean(), values.std(ddof=1)
    digits = 0 if column == SECONDS else 3
    if pd.isna(mean):
        return "n/a"
    spread = "" if pd.isna(deviation) else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def main(argv: list[str]) -> None:
    """Run the tool with the arguments of the command line."""
    values = flags.FlagValues()
    define_spec_flags(values)
    define_records_dir(values)
    flags.DEFINE_string("variants", None, "TOML file of the variants", flag_values=values)
    flags.DEFINE_string("out", None, "folder of the runs and the tables", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the runs", flag_values=values)
    flags.DEFINE_boolean("test", False, "also measure on the test set", flag_values=values)
    try:
        left = values(argv)[1:]
        spec, data_dir = resolve_data(values, left, "ablate", ("variants", "out"))
        records = [] if values.records_dir is None else [f"--records_dir={values.records_dir}"]
        seeds, out = [int(seed) for seed in values.seeds], Path(values.out)
        variants = read_variants(Path(values.variants))
        frame = run_all(
            spec, data_dir, variants, out, seeds=seeds, test=values.test, arguments=records
        )
    except (flags.Error, InputError, ValueError) as error:
        flag = "--" if getattr(error, "field", None) in values else ""
        print(f"ablate.py: {flag}{error}", file=sys.stderr)
        sys.exit(2)
    print("", *table_lines(frame), "", f"Written: {out / 'ablation.md'}", sep="\n")


if __name__ == "__main__":
    main(sys.argv)
