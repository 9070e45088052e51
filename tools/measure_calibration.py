"""What temperatures and thresholds from few validation images are worth, by simulation.

    python tools/measure_calibration.py [--draws=200]

Labels are drawn from softmax(logits) and the model gives softmax(T · logits + biases), so that
without biases the right temperature is T. The cost of a temperature is the negative log-likelihood
on many other images, less that at temperature 1 (nats; below 0 is a gain). Prints three tables:

  1. by the number of images: of the temperature that is best on them, and of the one that
     `calibrate` uses, the mean cost and the share of the draws in which it is above 0.02;
  2. the same of 50 images, by the number of classes among their labels, for a model that favours
     some classes;
  3. by the least number of images that a threshold rests on, how often 100 images give one for 0.9
     of a model that is right in 0.7 of the cases, whatever its confidence.

It is where the least numbers of `multitask/evaluation/calibration.py` come from.
"""

import numpy as np
from absl import app, flags
from scipy.special import softmax

from multitask.evaluation import calibration
from multitask.evaluation.calibration import (
    fit_temperature,
    mean_nll,
    scaled,
    usable_temperature,
)
from multitask.metrics import coverage_curve

SHARPNESS = 2.0  # standard deviation of the logits
JUDGED_ON = 4000  # images
COST = 0.02  # nats
IMAGES, CLASSES, TRUE = (10, 20, 30, 50, 100), (2, 3, 10), (0.6, 1.0, 2.0)
PRESENT, BIASES, FITTED_ON = (1, 2, 3, 10), (0.5, 1.0), 50
LEAST, WISHED = (5, 10, 15, 20, 30), 0.9


def draw(rng: np.random.Generator, images: int, classes: int, true: float, biases=0.0):
    """Labels int [images], and the model's probabilities float64 [images, classes]."""
    logits = rng.normal(0, SHARPNESS, (images, classes))
    chances = softmax(logits, axis=1)
    labels = (chances.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    return labels, softmax(true * logits + biases, axis=1)


def cost(judged: tuple[np.ndarray, np.ndarray], temperature: float) -> float:
    labels, probabilities = judged
    return mean_nll(labels, scaled(probabilities, temperature)) - mean_nll(labels, probabilities)


def cells(costs: list[float]) -> str:
    return f"{np.mean(costs):+.3f} {np.mean(np.array(costs) > COST):6.1%}"


def by_images(rng: np.random.Generator, draws: int) -> None:
    print("classes  right T  images   best on them   used (mean cost, above 0.02)")
    for classes in CLASSES:
        for true in TRUE:
            judged = draw(rng, JUDGED_ON, classes, true)
            for images in IMAGES:
                best, used = [], []
                for _ in range(draws):
                    few = draw(rng, images, classes, true)
                    best.append(cost(judged, fit_temperature(*few)))
                    used.append(cost(judged, usable_temperature(*few)[0]))
                print(
                    f"{classes:>7}  {true:>7}  {images:>6}   {cells(best)}  {cells(used)}",
                    flush=True,
                )


def by_classes(rng: np.random.Generator, draws: int) -> None:
    print("\nclasses  favour  present   used (mean cost, above 0.02)")
    for classes in CLASSES[1:]:
        for size in BIASES:
            for present in (p for p in PRESENT if p <= classes):
                used = []
                for _ in range(draws):
                    biases = rng.normal(0, size, classes)
                    judged = draw(rng, JUDGED_ON, classes, 1.0, biases)
                    labels, probabilities = draw(rng, JUDGED_ON, classes, 1.0, biases)
                    few = np.flatnonzero(labels < present)[:FITTED_ON]
                    temperature, _ = usable_temperature(labels[few], probabilities[few])
                    used.append(cost(judged, temperature))
                print(f"{classes:>7}  {size:>6}  {present:>7}   {cells(used)}", flush=True)


def by_answered(rng: np.random.Generator, draws: int) -> None:
    print(f"\nleast  a threshold for {WISHED} is given")
    given = dict.fromkeys(LEAST, 0)
    for _ in range(draws):
        # Its answers are right in 0.7 of the cases, and its confidence does not tell which.
        curve = coverage_curve(rng.random(100), rng.random(100) < 0.7)
        for least in LEAST:
            enough = curve[curve["answered"] >= least]
            given[least] += bool((enough["accuracy"] >= WISHED).any())
    for least, count in given.items():
        print(f"{least:>5}  {count / draws:.1%}")


def main(argv: list[str]) -> None:
    draws, rng = flags.FLAGS.draws, np.random.default_rng(0)
    # The least numbers are what is measured.
    calibration.FEWEST_FITTED, calibration.FEWEST_CLASSES = 1, 1
    by_answered(rng, draws)
    by_classes(rng, draws)
    by_images(rng, draws)


if __name__ == "__main__":
    flags.DEFINE_integer("draws", 200, "of each setting")
    app.run(main)
