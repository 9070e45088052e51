"""Compare the combined model with one single-task run per task: test metrics and time.

    python tools/compare_single_task.py --spec=wikiart --data_dir=DIR --out=OUT --seed=0

It trains one model of all the spec's tasks and one model per task, each with `multitask train` in
its own process, and fits scikit-learn's logistic regression to the frozen trunk's features. One
invocation does one seed; the same command resumes an interrupted comparison. It takes the flags
with which `multitask train` overrides a spec.

  OUT/seed-0/all-tasks/, artist/, …    the runs
  OUT/seed-0.json                the results of a seed
  OUT/comparison.csv, .png       means over all seeds in OUT, ± sample standard deviation
  OUT/records/seed-0/…           the records and features of each run

The combined run and a single run have the same batch size, the same number of epochs (and so of
passes over the task's labels; early stopping is off), the same test set, the same auxiliary tasks,
and the same training and validation images and labels of the task: the single runs use the split of
the combined run. A single run cannot answer `other`: its images all have a label. The two kinds
differ in two respects: the combined run has more steps per epoch, and schedules count steps; a
single run has its task's freeze depth and chooses its epoch by its task, the combined run by the
mean of all tasks.

Times are wall and CPU seconds of each part, over all attempts (`start`: imports, the network). The
runs share the original images only: each prepares its own records and computes its own features.
"Without records" excludes the preparation, which a data set needs once.

The regression is fitted on standardised features of the training split, with the C of the best
macro-F1 on the validation split.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from multitask.__main__ import main as multitask
from multitask.commands.spec_flags import define_records_dir, define_spec_flags, resolve_data
from multitask.data import table as tables
from multitask.data.table import NOT_SAMPLED, TRAIN, Table
from multitask.errors import RunError
from multitask.files import check_writable, locked, replacing, write_json
from multitask.pages import curves
from multitask.run import open_run, refuse_other_settings
from multitask.spec import (
    DataSpec,
    InputError,
    field_of,
    is_labelled,
    parse_spec,
    select_tasks,
)
from multitask.startup import BACKENDS, import_tensorflow
from multitask.trained import TrainedModel

CHILD, ALL, REGRESSION = "child", "all-tasks", "logistic-regression"  # a task's name has no hyphen
METRICS = {"top1": "top-1", "macro_f1": "macro-F1"}
MODELS = {
    "majority": "majority class",
    "regression": "logistic regression",
    "single": "single-task runs",
    "combined": "one model",
}
RECORDS = "records"
PARTS = ("start", RECORDS, "features", "heads", "finetune", "evaluation")
NOTE_EVERY_S = 3.0
GRID = np.logspace(-4, 0, 9)  # of C


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


# === A job, in a process of its own ===


class Clock:
    """Wall and CPU seconds of a job's parts, added to those of earlier attempts in a file."""

    def __init__(self, file: Path):
        self.file, self.part, self.lock = file, PARTS[0], threading.Lock()
        self.noted = {"done": False, "parts": {}, "steps_an_epoch": {}} | read_json(file)
        self.last = time.monotonic(), time.process_time()

    def switch(self, part: str) -> str:
        """Start a part; returns the previous one."""
        with self.lock:
            now, before, self.part = (time.monotonic(), time.process_time()), self.part, part
            spent = self.noted["parts"].get(before, (0.0, 0.0))
            new = zip(spent, self.last, now, strict=True)
            self.noted["parts"][before] = [seconds + end - start for seconds, start, end in new]
            self.last = now
            return before

    def note(self, **facts: Any) -> None:
        self.switch(self.part)
        with self.lock:
            self.noted |= facts
            write_json(self.file, self.noted)

    def keep_noting(self, parent: int) -> None:
        """Save the times every few seconds; if the parent has ended, stop like on SIGTERM."""
        while os.getppid() == parent:
            self.note()
            time.sleep(NOTE_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    def time_training(self) -> None:
        """Patch the functions of a training, so that the clock switches to their part."""
        from multitask.evaluation import report
        from multitask.learning import training

        def timed(function: Callable, part: str) -> Callable:
            def call(*args, **kwargs):
                before = self.switch(part)
                try:
                    return function(*args, **kwargs)
                finally:
                    self.switch(before)

            return call

        def begin(network, spec, phase, **kwargs):
            self.switch(phase)
            with self.lock:
                self.noted["steps_an_epoch"][phase] = kwargs["steps_per_epoch"]
            return prepare_phase(network, spec, phase, **kwargs)

        prepare_phase, training.prepare_phase = training.prepare_phase, begin
        training.prepare = timed(training.prepare, RECORDS)
        training.cache_features = timed(training.cache_features, "features")
        report.evaluate = timed(report.evaluate, "evaluation")


def copied_hold_out(combined: Table, task: str) -> Callable[..., Table]:
    """A `table.hold_out_validation` that copies another table's images and split of a task."""
    labelled = is_labelled(combined.labels[:, combined.tasks.index(task)])
    split_of = pd.Series(combined.splits[labelled], combined.paths[labelled])

    def hold_out(table: Table, share: float, **options: Any) -> Table:
        rows, splits = table.rows(TRAIN), table.splits.copy()
        copied = split_of.reindex(table.paths[rows])
        splits[rows] = copied.fillna(TRAIN)
        table = dataclasses.replace(table, splits=splits)
        return table.drop(rows[copied.isna()], NOT_SAMPLED)

    return hold_out


def child(folder: Path, name: str, parent: int, left: list[str]) -> None:
    """Run a training with the flags `left`, or the regression."""
    if name not in (ALL, REGRESSION):  # before the clock starts
        run = open_run(folder / ALL)
        combined = TrainedModel(run, run.best_model).training_table
        tables.hold_out_validation = copied_hold_out(combined, name)
    waiting = f"Another process is working in {folder / name}; waiting for it …"
    with locked(folder / f".{name}.lock", lambda: print(waiting, flush=True)):
        clock = Clock(folder / f"{name}.time.json")
        if clock.noted["done"]:
            return
        threading.Thread(target=clock.keep_noting, args=(parent,), daemon=True).start()
        try:
            import_tensorflow(os.environ.get("KERAS_BACKEND") or BACKENDS[0])
            if name == REGRESSION:
                regress(folder, Path(left[0]))
            else:
                clock.time_training()
                multitask(["train", *left])
            clock.note(done=True)
        finally:
            clock.note()


# === Logistic regression ===


def regress(folder: Path, records_dir: Path) -> None:
    """Fit each task's regression on the combined run's cached features; saved task by task."""
    import keras

    from multitask.data.records import prepare
    from multitask.learning.features import cache_features, file_features
    from multitask.model.network import build_network

    run, file = open_run(folder / ALL), folder / f"{REGRESSION}.json"
    prepared, regressions = prepare(run.spec, run.data_dir, records_dir), read_json(file)
    table = prepared.table
    keras.utils.set_random_seed(run.spec.seed)  # the run's trunk, even without pretrained weights
    network = build_network(run.spec, table.classes)
    features = cache_features(network, prepared, run.spec)
    paths = read_csv(run.results / "predictions.csv")["path"]
    print(f"Computing the features of {len(paths):,} test images", flush=True)
    names = [str(run.data_dir / run.spec.images / path) for path in paths]
    rows = len(features.train) // features.views  # the plain view
    splits = (
        (features.train[:rows], features.labels[:rows]),
        (features.validation, features.validation_labels),
        (file_features(network, names, run.spec), table.labels[table.find(paths)]),
    )
    for task in run.spec.main_tasks:
        column = table.tasks.index(task)
        if task not in regressions:
            known = [is_labelled(y[:, column]) for _, y in splits]
            examples = [
                (pooled(x[k]), y[k, column]) for (x, y), k in zip(splits, known, strict=True)
            ]
            counts = [len(np.unique(y)) for _, y in examples]
            if counts[0] < 2 or not counts[1] or not counts[2]:
                raise InputError(f"{task}: too few labels for a logistic regression")
            regressions[task] = fit_regression(*examples)
            print(f"{task}: {regressions[task]}", flush=True)
            write_json(file, regressions)


def pooled(features: np.ndarray) -> np.ndarray:
    """Features or the means of feature maps, float32 [n, channels]."""
    return features.reshape(len(features), -1, features.shape[-1]).mean(axis=1, dtype=np.float32)


def fit_regression(train: tuple, validation: tuple, test_set: tuple) -> dict[str, float]:
    """Choose C by macro-F1 on the validation split, and compute METRICS on the test set.

    Args:
        train: features float [n, channels] and labels int [n].
        validation: the same.
        test_set: the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def macro_f1(model, x: np.ndarray, y: np.ndarray) -> float:  # over the classes present
        predicted = model.predict(x)
        return float(f1_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0))

    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=float(c), max_iter=1000)).fit(*train)
        for c in GRID
    ]
    best = max(models, key=lambda model: macro_f1(model, *validation))
    return {"C": best[-1].C, "top1": best.score(*test_set), "macro_f1": macro_f1(best, *test_set)}


# === The jobs of a seed ===


def job_spec(spec: DataSpec, task: str | None = None) -> DataSpec:
    """The spec of the combined run or of a task's run, without early stopping."""
    if task:
        spec = select_tasks(spec, [task, *(one.name for one in spec.tasks if one.auxiliary)])
    raw = spec.to_dict()
    raw["early_stopping"]["patience"] = 1 + spec.phases.heads.epochs + spec.phases.finetune.epochs
    if task:  # the combined run has already sampled the subset and checked the images
        raw["task"] = [one | {"subset": 1.0} for one in raw["task"]]
        raw["max_missing"] = 0.999
    return parse_spec(raw, source=spec.source_file)


def run_seed(spec: DataSpec, data_dir: Path, folder: Path, records: Path, phase: str) -> int:
    """Run all jobs that are not done; returns the exit status."""
    for name in (ALL, *spec.main_tasks):
        own_spec = job_spec(spec, None if name == ALL else name)
        with replacing(folder / f"{name}.toml") as temporary:
            temporary.write_text(own_spec.to_toml(), encoding="utf-8")
        if (records / name).exists() and not (folder / f"{name}.time.json").is_file():
            raise InputError(
                f"--records_dir: {records / name}: exists already, and its preparation time "
                "is unknown; name another folder"
            )
        train_flags = [
            f"--spec={folder / name}.toml",
            f"--data_dir={data_dir}",
            f"--workdir={folder / name}",
            f"--records_dir={records / name}",
            f"--phase={phase}",
            "--checkpoint_minutes=2",
            "--nosimilar",  # the comparison needs no similar images
        ]
        if status := run_job(folder, name, *train_flags):
            return status
    return run_job(folder, REGRESSION, str(records / ALL))


def run_job(folder: Path, name: str, *left: str) -> int:
    """Run a job that is not done; returns the exit status."""
    if read_json(folder / f"{name}.time.json").get("done"):
        return 0
    print(f"\n=== {folder.name}: {name} ===", flush=True)
    process = subprocess.Popen(
        [sys.executable, __file__, CHILD, str(folder), name, str(os.getpid()), *left]
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the child gets it too, and saves its state
        status = process.wait()
    return status if status >= 0 else 128 - status


# === Results ===


def seed_results(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """The content of `seed-0.json`.

    Returns:
        rows: task, metric and the values of MODELS, where they have one; seconds have the task
        ALL, where `single` is the sum. labels: number of labels of each task trained on, over all
        epochs. regression, jobs: as the jobs saved them.
    """
    jobs = {n: read_json(folder / f"{n}.time.json") for n in (ALL, *tasks, REGRESSION)}
    metrics = {n: read_json(folder / n / "results" / "metrics.json") for n in (ALL, *tasks)}
    regression, rows = read_json(folder / f"{REGRESSION}.json"), []
    for task in tasks:
        for metric in METRICS:
            key = f"{task}/{metric}"
            both = metrics[task]["metrics"][key], metrics[ALL]["metrics"][key]
            values = metrics[ALL]["baseline"][key], regression[task][metric], *both
            rows.append({"task": task, "metric": metric} | dict(zip(MODELS, values, strict=True)))
    for place, metric in enumerate(("wall_s", "cpu_s")):
        for excluded, suffix in ((None, ""), (RECORDS, "_without_records")):
            one, *alone = (
                sum(spent[place] for part, spent in jobs[n]["parts"].items() if part != excluded)
                for n in (ALL, *tasks)
            )
            seconds = {"single": sum(alone), "combined": one}
            rows.append({"task": ALL, "metric": metric + suffix} | seconds)
    labels = {task: labels_learnt(folder, task) for task in tasks}
    return {"rows": rows, "labels": labels, "regression": regression, "jobs": jobs}


def labels_learnt(folder: Path, task: str) -> int:
    """Count the labels of a task that the combined and the single run each trained on.

    Raises:
        RunError: the numbers of an epoch, those of the validation split or the test sets differ.
    """
    counts, test_sets = [], []
    for name in (ALL, task):
        history = pd.read_csv(folder / name / "logs" / "history.csv")
        own = [field_of(task, f) for f in ("labelled", "val_labelled", "true")]
        test_set = read_csv(folder / name / "results" / "predictions.csv")
        if not {*own[:2]} <= {*history} or own[2] not in test_set:
            raise RunError(f"{folder / name}: made by an earlier version; use another --out")
        counts.append(history[own[:2]].astype(int))
        test_set = test_set[["path", own[2]]]
        test_sets.append(test_set[test_set[own[2]] != ""].reset_index(drop=True))
    for what, (one, other) in (("labels", counts), ("test sets", test_sets)):
        if not one.equals(other):
            raise RunError(f"{folder}: {task}: the {what} of the two runs differ")
    return int(counts[0].iloc[:, 0].sum())


def comparison(seeds: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The means over all seeds, a row per task and metric.

    Args:
        seeds: from `seed_results`.

    Returns:
        task, metric, seeds; the means of MODELS, of `difference` (combined - single of the same
        seed) and of `ratio` (combined / single); and of each the `_spread` (sample standard
        deviation; NaN with a single seed).
    """
    frame = pd.DataFrame([row for seed in seeds for row in seed["rows"]])
    frame = frame.astype(dict.fromkeys(MODELS, float))
    frame["difference"] = frame["combined"] - frame["single"]
    frame["ratio"] = frame["combined"] / frame["single"]
    grouped = frame.groupby(["task", "metric"], sort=False)
    means = grouped.mean().join(grouped.std().add_suffix("_spread"))
    return means.assign(seeds=grouped.size()).reset_index()


def summary_lines(frame: pd.DataFrame) -> list[str]:
    """The result of `comparison` for the console."""

    def text(row: pd.Series, column: str) -> str:
        sign = "+" if column == "difference" else ""
        spread = row[f"{column}_spread"]
        return f"{row[column]:{sign}.3f}" + ("" if np.isnan(spread) else f" ± {spread:.3f}")

    of_time = frame["task"] == ALL
    shown = frame.loc[~of_time, ["task", "metric"]].replace({"metric": METRICS})
    for column, name in {**MODELS, "difference": "one - single"}.items():
        shown[name] = [text(row, column) for _, row in frame[~of_time].iterrows()]
    return [
        "",
        f"Seeds: {frame['seeds'].max()}",
        shown.to_string(index=False),
        *(
            f"{row['metric']}: one model {row['combined']:,.0f}, single-task runs together "
            f"{row['single']:,.0f}, ratio {text(row, 'ratio')}"
            for _, row in frame[of_time].iterrows()
        ),
    ]


def summarise(out: Path, title: str, tasks: Sequence[str]) -> None:
    """Write and print the comparison over all finished seeds."""
    seeds = [read_json(file) for file in sorted(out.glob("seed-*.json"))]
    frame = comparison(seeds)
    with replacing(out / "comparison.csv") as temporary:
        frame.to_csv(temporary, index=False)
    rows = pd.DataFrame([row for seed in seeds for row in seed["rows"] if row["task"] != ALL])
    rows = rows.rename(columns=MODELS).replace({"metric": METRICS})
    wall = {}
    for model, names in (("combined", [ALL]), ("single", tasks)):
        parts = [seed["jobs"][name]["parts"] for seed in seeds for name in names]
        seconds = pd.DataFrame([{part: spent[0] for part, spent in job.items()} for job in parts])
        wall[MODELS[model]] = seconds.sum() / len(seeds)
    curves.comparison(
        out / "comparison.png",
        rows.melt(["task", "metric"], var_name="model"),
        pd.DataFrame(wall).T.reindex(columns=PARTS).dropna(axis=1, how="all").fillna(0),
        title=title,
    )
    print(*summary_lines(frame), f"\nComparison: {out / 'comparison.csv'}, .png", sep="\n")


# === Command line ===


def compare(values: flags.FlagValues) -> int:
    """Run the remaining jobs of a seed, and compare; returns the exit status."""
    spec, data_dir = resolve_data(values, [], "compare_single_task", ("out",))
    out = Path(values.out).resolve()
    if not data_dir.is_dir():
        raise InputError(f"--data_dir: {data_dir}: is not a folder")
    if len(spec.main_tasks) < 2:
        raise InputError("--tasks: a comparison needs two tasks or more")
    if not spec.validation:
        raise InputError(
            "--validation_share: 0: epochs and C are chosen on that split; expected more"
        )
    if spec.sampler:
        place = spec.place(None, "sampler")
        raise InputError(f"{place}: with other tasks it samples other images; leave it out")
    check_writable(out, field="out")
    settings = {"phase": values.phase, "data_dir": str(data_dir.resolve()), "spec": spec.to_dict()}
    del settings["spec"]["seed"]
    if any(out.glob(f"seed-*/{ALL}/config.json")):
        there = read_json(out / "settings.json")
        refuse_other_settings(out, there, settings, kind="comparison", field="out")
    folder = out / f"seed-{spec.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", settings)
    records = Path(values.records_dir or out / RECORDS).resolve() / folder.name
    status = run_seed(spec, data_dir.resolve(), folder, records, values.phase)
    if not status:
        write_json(out / f"{folder.name}.json", seed_results(folder, spec.main_tasks))
        summarise(out, spec.name, spec.main_tasks)
    return status


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 a run failed, 2 wrong input, 130 or 143 stopped."""
    values = flags.FlagValues()
    to = {"flag_values": values}
    define_spec_flags(values)
    define_records_dir(values)
    values["records_dir"].help = "folder of the runs' records (default: records in --out)"
    flags.DEFINE_string("out", None, "folder of the comparison; new, or of the same settings", **to)
    flags.DEFINE_enum("phase", "all", ["heads", "all"], "which phases to train", **to)
    flags.DEFINE_boolean("help", False, "print this and stop", **to)
    try:
        if argv[1:2] == [CHILD]:
            child(Path(argv[2]), argv[3], int(argv[4]), argv[5:])
            return 0
        left = values(argv)[1:]
        if values.help:
            print(__doc__, values.get_help(), sep="\n")
            return 0
        if left:
            raise InputError(f"takes flags only, not {left[0]!r}")
        return compare(values)
    except (flags.Error, InputError, RunError) as error:
        flag = "--" if getattr(error, "field", None) in values else ""
        print(f"compare_single_task.py: {flag}{' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        print("compare_single_task.py: stopped; the same command resumes it", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
