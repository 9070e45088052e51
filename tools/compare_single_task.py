"""Compares the one model with a single-task run for each task: scores on the exam, and time.

    python tools/compare_single_task.py --spec=wikiart --data_dir=DIR --out=OUT --seed=0

trains one model of all the spec's tasks and one of each task alone, each as `multitask train` in a
process of its own, and fits scikit-learn's logistic regression to the frozen trunk's features. One
seed an invocation; the same command goes on where it was stopped. It takes the flags with which
`multitask train` overrides a spec.

  OUT/seed-0/all-tasks/, artist/, …    the runs
  OUT/seed-0.json                what came of a seed
  OUT/comparison.csv, .png       means over all seeds in OUT, ± sample standard deviation
  OUT/records/seed-0/…           the records and features of each run

The combined and a single run have the same batch size; the same epochs, and so passes over the
task's labels (none stops early); the same training pictures and labels of the task, and those to
choose by, which the single runs take over from the combined one; the same exam. They differ in
this: the combined run makes more steps an epoch, and schedules count steps; a single run has its
task's own freeze depth and chooses its epoch by its task, the combined one by the mean of all.

Times are wall and CPU seconds, part by part, of all attempts (`start`: imports, the network). The
runs share the originals alone: each prepares its own records and computes its own features.
"Without records" leaves out the preparing, which is once a data set.

The regression: standardised features, fitted on train, C the best by macro-F1 on selection.
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

from multitask import figures
from multitask.__main__ import main as multitask
from multitask.commands import BACKENDS, import_tensorflow
from multitask.commands.spec_flags import define_records_dir, define_spec_flags, resolve_spec
from multitask.data import table as tables
from multitask.data.table import NOT_DRAWN, TRAIN, Table
from multitask.files import RunError, check_writable, locked, replacing, write_json
from multitask.run import open_run, refuse_other_settings
from multitask.spec import MISSING, DataSpec, InputError, field_of, parse_spec

CHILD, ALL, REGRESSION = "child", "all-tasks", "logistic-regression"  # a task's name has no hyphen
METRICS = {"top1": "top-1", "macro_f1": "macro-F1"}
MODELS = {
    "majority": "commonest class",
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
    """Wall and CPU seconds of a job's parts, added to those that a file has of earlier attempts."""

    def __init__(self, file: Path):
        self.file, self.part, self.lock = file, PARTS[0], threading.Lock()
        self.noted = {"done": False, "parts": {}, "steps_an_epoch": {}} | read_json(file)
        self.last = time.monotonic(), time.process_time()

    def switch(self, part: str) -> str:
        """Begin a part; returns the one before."""
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
        """Every few seconds; where the parent is no more, stop this process as SIGTERM does."""
        while os.getppid() == parent:
            self.note()
            time.sleep(NOTE_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    def time_training(self) -> None:
        """From here on it knows which part of a training is going on."""
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


def hold_out_as(combined: Table, task: str) -> Callable[..., Table]:
    """In place of `table.hold_out_selection`: what another table has of a task, and no more."""
    labelled = combined.labels[:, combined.tasks.index(task)] != MISSING
    split_of = pd.Series(combined.splits[labelled], combined.paths[labelled])

    def hold_out(table: Table, share: float, *, seed: int) -> Table:
        rows, splits = table.rows(TRAIN), table.splits.copy()
        wanted = split_of.reindex(table.paths[rows])
        splits[rows] = wanted.fillna(TRAIN)
        table = dataclasses.replace(table, splits=splits)
        return table.drop(rows[wanted.isna()], NOT_DRAWN)

    return hold_out


def child(folder: Path, name: str, parent: int, left: list[str]) -> None:
    """A training, whose flags are `left`, or the regression."""
    if name not in (ALL, REGRESSION):  # before its time begins
        run = open_run(folder / ALL)
        left_out = read_csv(run.workdir / "left_out.csv")
        combined = tables.load_table(run.spec, run.data_dir, left_out=left_out)
        tables.hold_out_selection = hold_out_as(combined, name)
    waiting = f"Another process is at {folder / name}; waiting for it …"
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
    """Each task's, on the features that the combined run has cached; kept task by task."""
    import keras

    from multitask.data.records import prepare
    from multitask.learning.features import cache_features, file_features
    from multitask.model.network import build_network

    run, file = open_run(folder / ALL), folder / f"{REGRESSION}.json"
    prepared, found = prepare(run.spec, run.data_dir, records_dir), read_json(file)
    table = prepared.table
    keras.utils.set_random_seed(run.spec.seed)  # the run's own trunk, where it is from nothing too
    network = build_network(run.spec, table.classes)
    features = cache_features(network, prepared, run.spec, tell=print)
    paths = read_csv(run.results / "predictions.csv")["path"]
    print(f"Computing the features of {len(paths):,} exam pictures", flush=True)
    names = [str(run.data_dir / run.spec.images / path) for path in paths]
    rows = len(features.train) // features.views  # the plain view
    splits = (
        (features.train[:rows], features.labels[:rows]),
        (features.selection, features.selection_labels),
        (file_features(network, names, run.spec), table.labels[table.find(paths)]),
    )
    for column, task in enumerate(table.tasks):
        if task not in found:
            known = [y[:, column] != MISSING for _, y in splits]
            parts = [(pooled(x[k]), y[k, column]) for (x, y), k in zip(splits, known, strict=True)]
            counts = [len(np.unique(y)) for _, y in parts]
            if counts[0] < 2 or not counts[1] or not counts[2]:
                raise InputError(f"{task}: too few labels for a logistic regression")
            found[task] = fit_regression(*parts)
            print(f"{task}: {found[task]}", flush=True)
            write_json(file, found)


def pooled(features: np.ndarray) -> np.ndarray:
    """float32 [n, channels]; of maps, their means."""
    return features.reshape(len(features), -1, features.shape[-1]).mean(axis=1, dtype=np.float32)


def fit_regression(train: tuple, selection: tuple, exam: tuple) -> dict[str, float]:
    """C, chosen by macro-F1 on the selection split, and the exam's METRICS.

    Args:
        train, selection, exam: float [n, channels] and int [n] each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def macro_f1(model, x: np.ndarray, y: np.ndarray) -> float:  # over the classes present
        said = model.predict(x)
        return float(f1_score(y, said, labels=np.unique(y), average="macro", zero_division=0))

    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=float(c), max_iter=1000)).fit(*train)
        for c in GRID
    ]
    best = max(models, key=lambda model: macro_f1(model, *selection))
    return {"C": best[-1].C, "top1": best.score(*exam), "macro_f1": macro_f1(best, *exam)}


# === The jobs of a seed ===


def job_spec(spec: DataSpec, task: str | None = None) -> DataSpec:
    """Of the combined run, or of a task's; it never stops early."""
    raw = spec.to_dict()
    raw["early_stopping"]["patience"] = 1 + spec.phases.heads.epochs + spec.phases.finetune.epochs
    if task:  # what the combined run has drawn and found is not drawn and judged again
        raw["task"] = [t | {"subset": 1.0} for t in raw["task"] if t["name"] == task]
        raw["max_missing"] = 0.999
    return parse_spec(raw, source=spec.source_file)


def run_seed(spec: DataSpec, data_dir: Path, folder: Path, records: Path, phase: str) -> int:
    """All jobs that are not done; the exit status."""
    for name in (ALL, *spec.task_names):
        its = job_spec(spec, None if name == ALL else name)
        with replacing(folder / f"{name}.toml") as temporary:
            temporary.write_text(its.to_toml(), encoding="utf-8")
        if (records / name).exists() and not (folder / f"{name}.time.json").is_file():
            raise InputError(
                f"--records_dir: {records / name}: is there already, and the time that it took "
                "is not known; name another folder"
            )
        flags_of_train = [
            f"--spec={folder / name}.toml",
            f"--data_dir={data_dir}",
            f"--workdir={folder / name}",
            f"--records_dir={records / name}",
            f"--phase={phase}",
            "--checkpoint_minutes=2",
            "--nosimilar",  # the gallery of similar pictures compares nothing
        ]
        if status := run_job(folder, name, *flags_of_train):
            return status
    return run_job(folder, REGRESSION, str(records / ALL))


def run_job(folder: Path, name: str, *left: str) -> int:
    """A job, where it is not done; the exit status."""
    if read_json(folder / f"{name}.time.json").get("done"):
        return 0
    print(f"\n=== {folder.name}: {name} ===", flush=True)
    process = subprocess.Popen(
        [sys.executable, __file__, CHILD, str(folder), name, str(os.getpid()), *left]
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:  # which the child has too; it saves where it is
        status = process.wait()
    return status if status >= 0 else 128 - status


# === What came of them ===


def seed_figures(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """What `seed-0.json` holds.

    Returns:
        rows: task, metric and the values of those of MODELS that have one; seconds have the task
        ALL, where `single` is the sum. labels: how many labels of each task were learnt from,
        in all epochs. regression, jobs: as they were noted.
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
        for left_out, suffix in ((None, ""), (RECORDS, "_without_records")):
            one, *alone = (
                sum(spent[place] for part, spent in jobs[n]["parts"].items() if part != left_out)
                for n in (ALL, *tasks)
            )
            seconds = {"single": sum(alone), "combined": one}
            rows.append({"task": ALL, "metric": metric + suffix} | seconds)
    labels = {task: labels_learnt(folder, task) for task in tasks}
    return {"rows": rows, "labels": labels, "regression": regression, "jobs": jobs}


def labels_learnt(folder: Path, task: str) -> int:
    """How many of a task's labels the combined and the single run each learnt from, all told.

    Raises:
        RunError: these, or those of the selection split, are not as many in each epoch, or the
            exams are not the same.
    """
    counts, exams = [], []
    for name in (ALL, task):
        history = pd.read_csv(folder / name / "logs" / "history.csv")
        own = [field_of(task, f) for f in ("labelled", "val_labelled", "true")]
        exam = read_csv(folder / name / "results" / "predictions.csv")
        if not {*own[:2]} <= {*history} or own[2] not in exam:
            raise RunError(f"{folder / name}: made by an earlier version; begin in another --out")
        counts.append(history[own[:2]].astype(int))
        exam = exam[["path", own[2]]]
        exams.append(exam[exam[own[2]] != ""].reset_index(drop=True))
    for what, (one, other) in (("labels", counts), ("exams", exams)):
        if not one.equals(other):
            raise RunError(f"{folder}: {task}: the {what} of the two runs are not the same")
    return int(counts[0].iloc[:, 0].sum())


def comparison(seeds: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row a task and metric.

    Args:
        seeds: from `seed_figures`.

    Returns:
        task, metric, seeds; the means of MODELS, of `difference` (combined - single of the same
        seed) and of `ratio` (combined / single); and of each the `_spread` (sample standard
        deviation; NaN where there is one seed).
    """
    frame = pd.DataFrame([row for seed in seeds for row in seed["rows"]])
    frame = frame.astype(dict.fromkeys(MODELS, float))
    frame["difference"] = frame["combined"] - frame["single"]
    frame["ratio"] = frame["combined"] / frame["single"]
    grouped = frame.groupby(["task", "metric"], sort=False)
    found = grouped.mean().join(grouped.std().add_suffix("_spread"))
    return found.assign(seeds=grouped.size()).reset_index()


def summary_lines(frame: pd.DataFrame) -> list[str]:
    """What `comparison` gives, for a console."""

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
    """The comparison over all seeds that are done: CSV, picture and lines."""
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
    figures.comparison(
        out / "comparison.png",
        rows.melt(["task", "metric"], var_name="model"),
        pd.DataFrame(wall).T.reindex(columns=PARTS).dropna(axis=1, how="all").fillna(0),
        title=title,
    )
    print(*summary_lines(frame), f"\nComparison: {out / 'comparison.csv'}, .png", sep="\n")


# === Command line ===


def compare(values: flags.FlagValues) -> int:
    """Do what is left of a seed, and compare; the exit status."""
    for name in ("spec", "data_dir", "out"):
        if not values[name].value:
            raise InputError(f"--{name} is needed; --help lists the flags")
    spec, data_dir, out = resolve_spec(values), Path(values.data_dir), Path(values.out).resolve()
    if not data_dir.is_dir():
        raise InputError(f"--data_dir: {data_dir}: is no folder")
    if len(spec.tasks) < 2:
        raise InputError("--tasks: one task is nothing to compare; expected two or more")
    if not spec.selection:
        raise InputError("--selection: 0: epochs and C are chosen on that split; expected more")
    if spec.sampler:
        place = spec.place(None, "sampler")
        raise InputError(f"{place}: with other tasks it draws other pictures; leave it out")
    check_writable(out, flag="--out")
    settings = {"phase": values.phase, "data_dir": str(data_dir.resolve()), "spec": spec.to_dict()}
    del settings["spec"]["seed"]
    if any(out.glob(f"seed-*/{ALL}/config.json")):
        there = read_json(out / "settings.json")
        refuse_other_settings(out, there, settings, what="comparison", flag="--out")
    folder = out / f"seed-{spec.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", settings)
    records = Path(values.records_dir or out / RECORDS).resolve() / folder.name
    status = run_seed(spec, data_dir.resolve(), folder, records, values.phase)
    if not status:
        write_json(out / f"{folder.name}.json", seed_figures(folder, spec.task_names))
        summarise(out, spec.name, spec.task_names)
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
        print(f"compare_single_task.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        print("compare_single_task.py: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
