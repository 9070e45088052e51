"""Simulate how good temperatures and thresholds from few validation images are.

    python tools/measure_calibration.py [--samples=200]

Labels are sampled from softmax(logits) and the model gives softmax(T · logits + biases), so the
optimal temperature without biases is T. The cost of a temperature is its negative log-likelihood on
many other images minus that of temperature 1 (in nats; negative is a gain). Prints three tables:

  1. by the number of images: mean cost, and share of the samples with a cost above 0.02, of the
     temperature that is best on these images and of the one that `calibrate` uses;
  2. the same for 50 images, by the number of classes among their labels, for a model that favours
     some classes;
  3. by the minimum number of images for a threshold: how often 100 images give a threshold for 0.9
     of a model that is right in 0.7 of the cases, independent of its confidence.

The minimums of `multitask/calibration.py` come from these tables.
"""

import numpy as np
from absl import app, flags
from scipy.special import softmax

from multitask import calibration
from multitask.calibration import (
    fit_temperature,
    mean_nll,
    scale_probabilities,
    usable_temperature,
)
from multitask.metrics import threshold_curve

SHARPNESS = 2.0  # standard deviation of the logits
TEST_IMAGES = 4000
COST = 0.02  # nats
IMAGES, CLASSES, TRUE = (10, 20, 30, 50, 100), (2, 3, 10), (0.6, 1.0, 2.0)
PRESENT, BIASES, FITTED_ON = (1, 2, 3, 10), (0.5, 1.0), 50
LEAST, TARGET = (5, 10, 15, 20, 30), 0.9


def sample(rng: np.random.Generator, images: int, classes: int, true: float, biases=0.0):
    """Labels int [images], and the model's probabilities float64 [images, classes]."""
    logits = rng.normal(0, SHARPNESS, (images, classes))
    chances = softmax(logits, axis=1)
    labels = (chances.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    return labels, softmax(true * logits + biases, axis=1)


def cost(test_set: tuple[np.ndarray, np.ndarray], temperature: float) -> float:
    """Negative log-likelihood at a temperature, minus that at 1; nats."""
    labels, probabilities = test_set
    return mean_nll(labels, scale_probabilities(probabilities, temperature)) - mean_nll(
        labels, probabilities
    )


def cells(costs: list[float]) -> str:
    return f"{np.mean(costs):+.3f} {np.mean(np.array(costs) > COST):6.1%}"


def print_by_images(rng: np.random.Generator, samples: int) -> None:
    print("classes  optimal T  images   best on them   used (mean cost, above 0.02)")
    for classes in CLASSES:
        for true in TRUE:
            test_set = sample(rng, TEST_IMAGES, classes, true)
            for images in IMAGES:
                best, used = [], []
                for _ in range(samples):
                    few = sample(rng, images, classes, true)
                    best.append(cost(test_set, fit_temperature(*few)))
                    used.append(cost(test_set, usable_temperature(*few)[0]))
                print(
                    f"{classes:>7}  {true:>7}  {images:>6}   {cells(best)}  {cells(used)}",
                    flush=True,
                )


def print_by_classes(rng: np.random.Generator, samples: int) -> None:
    print("\nclasses  favour  present   used (mean cost, above 0.02)")
    for classes in CLASSES[1:]:
        for size in BIASES:
            for present in (p for p in PRESENT if p <= classes):
                used = []
                for _ in range(samples):
                    biases = rng.normal(0, size, classes)
                    test_set = sample(rng, TEST_IMAGES, classes, 1.0, biases)
                    labels, probabilities = sample(rng, TEST_IMAGES, classes, 1.0, biases)
                    few = np.flatnonzero(labels < present)[:FITTED_ON]
                    temperature, _ = usable_temperature(labels[few], probabilities[few])
                    used.append(cost(test_set, temperature))
                print(f"{classes:>7}  {size:>6}  {present:>7}   {cells(used)}", flush=True)


def print_by_answered(rng: np.random.Generator, samples: int) -> None:
    print(f"\nleast  a threshold for {TARGET} is given")
    given = dict.fromkeys(LEAST, 0)
    for _ in range(samples):
        # Right in 0.7 of the cases, independent of the confidence.
        curve = threshold_curve(rng.random(100), rng.random(100) < 0.7)
        for least in LEAST:
            enough = curve[curve["answered"] >= least]
            given[least] += bool((enough["accuracy"] >= TARGET).any())
    for least, count in given.items():
        print(f"{least:>5}  {count / samples:.1%}")


def main(argv: list[str]) -> None:
    samples, rng = flags.FLAGS.samples, np.random.default_rng(0)
    # Without the minimums, which are measured here.
    calibration.MIN_IMAGES, calibration.MIN_CLASSES = 1, 1
    print_by_answered(rng, samples)
    print_by_classes(rng, samples)
    print_by_images(rng, samples)


if __name__ == "__main__":
    flags.DEFINE_integer("samples", 200, "number of samples per setting")
    app.run(main)
