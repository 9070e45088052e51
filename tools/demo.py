"""The demo: paint a data set, train on it, evaluate, export, predict, and show the results.

    python tools/demo.py [--data=demo] [--workdir=runs/demo]

It prints the commands and runs them in one process, because each process would import TensorFlow
anew. An interrupted demo resumes where it stopped; a finished one prints its results again.
Exit status 1 where a task's macro-F1 is below what the demo promises.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from multitask.__main__ import main as multitask
from multitask.startup import import_tensorflow_once

PROMISED_MACRO_F1 = 0.65


def run_demo(data: Path, workdir: Path) -> None:
    """Paint and run the commands whose last file is missing."""
    if not (data / "demo.json").is_file():
        command = ["paint", f"--out={data}"]
        print(f"$ multitask {shlex.join(command)}", flush=True)
        with subprocess.Popen([sys.executable, "-m", "multitask", *command]) as painter:
            import_tensorflow_once()  # takes seconds too
        if painter.returncode:
            sys.exit(painter.returncode)
    image = min((data / "wikiart").rglob("*.jpg"))
    predict = ["predict", f"--model={workdir}/export", "--resume"]
    commands = {
        "results/evaluation.json": [
            *("train", "--spec=demo", f"--data_dir={data}", f"--workdir={workdir}")
        ],
        "export/classes.json": ["export", f"--workdir={workdir}"],
        "prediction.csv": [*predict, f"--out={workdir}/prediction.csv", str(image)],
    }
    for last_file, command in commands.items():
        if not (workdir / last_file).is_file():
            print(f"\n$ multitask {shlex.join(command)}", flush=True)
            multitask(command)


def show_results(workdir: Path) -> int:
    """Print the metrics and three paths; the exit status."""
    results = json.loads((workdir / "results" / "metrics.json").read_text(encoding="utf-8"))
    metrics, baseline = results["metrics"], results["baseline"]
    tasks = [key.removesuffix("/macro_f1") for key in metrics if key.endswith("/macro_f1")]
    width = max(map(len, tasks))
    print(f"\n{'task':<{width}}  top-1  macro-F1   majority class: top-1  macro-F1")
    for task in tasks:
        print(
            f"{task:<{width}}  {metrics[f'{task}/top1']:.3f}     {metrics[f'{task}/macro_f1']:.3f}"
            f"   {'':<16} {baseline[f'{task}/top1']:.3f}     {baseline[f'{task}/macro_f1']:.3f}"
        )
    print(f"\nReport:     {workdir / 'results' / 'report.html'}")
    print(f"Model:      {workdir / 'export'}")
    print(f"Prediction: {workdir / 'prediction.csv'}")
    low = [task for task in tasks if metrics[f"{task}/macro_f1"] < PROMISED_MACRO_F1]
    if low:
        print(f"Below the promised macro-F1 of {PROMISED_MACRO_F1}: {', '.join(low)}")
    return bool(low)


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    data, workdir = Path(flags.FLAGS.data), Path(flags.FLAGS.workdir)
    run_demo(data, workdir)
    sys.exit(show_results(workdir))


if __name__ == "__main__":
    flags.DEFINE_string("data", "demo", "folder for the painted data set")
    flags.DEFINE_string("workdir", "runs/demo", "folder for the run, its export and prediction")
    app.run(main)
