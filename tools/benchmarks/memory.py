"""The peak memory of one piece of work, measured in its own process."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.data import spec_of
from benchmarks.processes import last_numbers, module_command


def child(what: str, folder: Path) -> None:
    """Do one piece of work in this process, and print the process's peak memory in MB.

    The work: prepare a data set, read its records, or predict its images with a model that
    computes their mean.
    """
    if what == "predict":
        predict_all(folder)
    else:
        prepare_and_read(what, folder)
    # getrusage is not used: it reports the parent's peak if that was larger.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024)


def predictor_of(infer: Callable, classes: dict[str, tuple[str, ...]], runtime: str):
    """A predictor of 224 px that is not calibrated."""
    from multitask.calibration import Calibration
    from multitask.serving.predictor import Predictor

    calibrations = dict.fromkeys(classes, Calibration())
    return Predictor(classes, infer, runtime, calibrations, 224, "squash", 258, True, "")


def predict_all(folder: Path) -> None:
    from multitask.serving.answers import answer
    from multitask.serving.predict import find_images, predict_files
    from multitask.serving.prediction_files import PredictionFile

    classes = {"colour": ("red", "green", "blue")}
    predictor = predictor_of(
        lambda image: {"colour_logits": image.mean(axis=(1, 2))}, classes, "the mean"
    )
    files = find_images([str(folder / "wikiart")])
    (folder / "answers.parquet.partial").unlink(missing_ok=True)
    answers = PredictionFile(folder / "answers.parquet", {}, classes, resume=False)
    for file, message in predict_files(predictor, files, batch_size=16):
        answers.add(file, {t: answer(p, classes[t], min_confidence=0) for t, p in message.items()})
    answers.finish()


def prepare_and_read(what: str, folder: Path) -> None:
    from multitask.data.pipeline import training_dataset
    from multitask.data.records import prepare
    from multitask.data.table import TRAIN

    spec = spec_of()
    prepared = prepare(spec, folder)
    if what == "read":
        count = len(prepared.table.rows(TRAIN))
        for _ in training_dataset(prepared, spec).take(count // spec.batch_size):
            pass


def peak_mb(what: str, folder: Path) -> float:
    """The peak memory of `child` in a new process, in MB."""
    return last_numbers(module_command("memory", what, str(folder)))[0]


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
