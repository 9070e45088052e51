"""Measure what the way of resizing the test images does to the accuracy of a run.

    python tools/measure_resizing.py --workdir=runs/demo

The model predicts the test set twice: images resized to its input in one step, and images reduced
to the size of the training's records first, which is what `multitask` does everywhere.
"""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from multitask.data.table import TEST
from multitask.run import open_run
from multitask.serving.predict import predict_files
from multitask.serving.predictor import load_best
from multitask.spec import is_labelled
from multitask.trained import open_trained


def main(argv: list[str]) -> None:
    run = open_run(Path(flags.FLAGS.workdir))
    table = open_trained(run).training_table
    rows = table.rows(TEST)
    files = [run.data_dir / run.spec.images / path for path in table.paths[rows]]
    model = load_best(run)
    one_step = dataclasses.replace(model, reduced_px=None)
    for name, predictor in {"in one step": one_step, "reduced first": model}.items():
        answers = [answer for _, answer in predict_files(predictor, files, batch_size=32)]
        line = []
        for column, task in enumerate(table.tasks):
            labels = table.labels[rows][:, column]
            known = [i for i, label in enumerate(labels) if is_labelled(label)]
            predicted = [int(answers[i][task].argmax()) for i in known]
            right = sum(p == labels[i] for p, i in zip(predicted, known, strict=True))
            line.append(f"{task} {right / len(known):.3f} of {len(known)}")
        print(f"{name:<13}  top-1: {', '.join(line)}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of an evaluated run", required=True)
    app.run(main)
