"""Compare ways to reject images that have none of the classes of an open task.

    python tools/compare_rejection.py --spec=wikiart_lite --data_dir=DIR --out=OUT --seeds=0,1,2

Each method trains the head of the open task on cached features of the frozen trunk:

  none          trains on the labels alone; the score is the highest probability
  free energy   trains log Σ exp(logit) as the logit of "has a class", as `multitask train` does
  extra class   the same, but the score is log Σ exp(logit) minus the logit of a further class
  exposure      trains other images towards the uniform distribution (Hendrycks et al. 2019, eq. 1);
                the score is the highest probability
  one-vs-rest   trains a sigmoid for each class in addition to the softmax; the score is the highest
                logit of these sigmoids

The test set is not read. Instead, the share HELD_OUT of the training images is held out for the
measurement. The other images of a fifth of the groups (`other.group` of the spec) are never trained
on: these groups are new to every method. The table has top-1 and macro-F1 on the labelled images,
AUROC against the other images of known and of new groups, and FPR at 95 % TPR. OUT/rejection.csv
has a row for each run; the same command resumes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from sklearn.metrics import accuracy_score, f1_score

from multitask.commands.spec_flags import define_records_dir, define_spec_flags, resolve_data
from multitask.errors import InputError
from multitask.files import replacing
from multitask.open_set import auroc, fpr_at_tpr
from multitask.startup import import_tensorflow

HELD_OUT = 0.3
RATE = 7e-4  # learning rate of the head, at the start of a cosine schedule
WAYS = {
    "none": (0.0,),
    "free energy": (0.3, 1.0, 3.0),
    "extra class": (0.3, 1.0, 3.0),
    "exposure": (0.5,),
    "one-vs-rest": (1.0,),
}
COLUMNS = ("top1", "macro_f1", "auroc", "auroc_new", "fpr95")


class Data:
    """Features of the labelled images and of the other images of one task.

    Attributes:
        x: float32 [n, channels], the features.
        y: int [n], a class, or OTHER_LABEL.
        groups: object [n], the group of each image; "" without a group.
    """

    def __init__(self, spec: Any, prepared: Any, task: Any, x: np.ndarray):
        import re

        from multitask.data.table import TRAIN
        from multitask.spec import MISSING

        rows = prepared.table.rows(TRAIN)
        labels = prepared.table.labels[rows, spec.task_names.index(task.name)]
        kept = labels != MISSING
        self.x, self.y = x[kept].astype(np.float32), labels[kept]
        search = re.compile(task.other.group or "$^").search
        matches = [search(path) for path in prepared.table.paths[rows[kept]]]
        self.groups = np.array([match[1] if match else "" for match in matches], object)


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    define_spec_flags(values)
    define_records_dir(values)
    flags.DEFINE_string("out", None, "folder of the results", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the runs", flag_values=values)
    try:
        left = values(argv)[1:]
        spec, data_dir = resolve_data(values, left, "compare_rejection", ("out",))
        records = Path(values.records_dir) if values.records_dir else None
        run(spec, data_dir, records, Path(values.out), [int(seed) for seed in values.seeds])
    except (flags.Error, InputError, ValueError) as error:
        flag = "--" if getattr(error, "field", None) in values else ""
        print(f"compare_rejection.py: {flag}{error}", file=sys.stderr)
        sys.exit(2)


def run(spec: Any, data_dir: Path, records: Path | None, out: Path, seeds: list[int]) -> None:
    if not spec.open_tasks:
        raise InputError(f'{spec.source_file}: no task has unlabelled = "other"')
    import_tensorflow()
    from multitask.data.records import prepare
    from multitask.learning.features import cache_features
    from multitask.model.network import build_network

    task = next(task for task in spec.tasks if task.is_open)
    # This tool holds out groups itself, so the spec's `held_out` is switched off.
    task = task.model_copy(update={"other": task.other.model_copy(update={"held_out": 0.0})})
    tasks = tuple(task if one.name == task.name else one for one in spec.tasks)
    spec = spec.model_copy(update={"tasks": tasks})
    prepared = prepare(spec, data_dir, records_dir=records)
    features = cache_features(build_network(spec, prepared.table.classes), prepared, spec)
    data = Data(spec, prepared, task, features.train[: len(features.labels)])
    classes = len(prepared.table.classes[task.name])
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rejection.csv"
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    for seed in seeds:
        for way, weights in WAYS.items():
            for weight in weights:
                key = {"way": way, "weight": weight, "seed": seed}
                if any(all(row[k] == v for k, v in key.items()) for row in rows):
                    continue
                rows.append(key | measure(spec, task, data, classes, **key))
                print(json.dumps(rows[-1]), flush=True)
                with replacing(file) as temporary:
                    pd.DataFrame(rows).to_csv(temporary, index=False)
    groups = pd.DataFrame(rows).groupby(["way", "weight"], sort=False)[list(COLUMNS)]
    print(groups.agg(["mean", "std"]).round(3).to_string())


def measure(
    spec: Any,
    task: Any,
    data: Data,
    classes: int,
    *,
    way: str,
    weight: float,
    seed: int,
    rate: float = RATE,
) -> dict[str, float]:
    """Train one head, and measure it on the held-out images."""
    rng = np.random.default_rng(seed)
    held_out = rng.random(len(data.y)) < HELD_OUT
    names = np.unique(data.groups[data.y < 0])
    new = np.isin(data.groups, rng.permutation(names)[: len(names) // 5]) & (data.y < 0)
    taught = ~held_out & ~new & ((data.y >= 0) | (way != "none"))
    logits = trained_logits(spec, task, data, classes, taught, held_out, way, weight, seed, rate)
    own = logits[:, :classes]
    energy = np.logaddexp.reduce(own, axis=1)
    highest = (own - energy[:, None]).max(axis=1)
    scores = {
        "free energy": lambda: energy,
        "extra class": lambda: energy - logits[:, classes],
        "one-vs-rest": lambda: logits[:, classes:].max(axis=1),
    }.get(way, lambda: highest)()
    labels, new = data.y[held_out], new[held_out]
    known = labels >= 0
    predicted = own[known].argmax(axis=1)
    return {
        "top1": accuracy_score(labels[known], predicted),
        "macro_f1": f1_score(labels[known], predicted, average="macro"),
        "auroc": auroc(scores[known], scores[~known & ~new]),
        "auroc_new": auroc(scores[known], scores[new]),
        "fpr95": fpr_at_tpr(scores[known], scores[~known & ~new]),
    }


def trained_logits(
    spec: Any,
    task: Any,
    data: Data,
    classes: int,
    taught: np.ndarray,
    held_out: np.ndarray,
    way: str,
    weight: float,
    seed: int,
    rate: float,
) -> np.ndarray:
    """Train the task's head with its own settings; return the logits of the held-out images."""
    import keras
    import tensorflow as tf

    from multitask.data.splitting import class_weights
    from multitask.learning.losses import LOSSES, MaskedLoss
    from multitask.model.network import build_network, connect_features, trunk_and_heads

    keras.utils.set_random_seed(seed)
    outputs = classes + {"extra class": 1, "one-vs-rest": classes}.get(way, 0)
    names = {task.name: tuple(map(str, range(outputs)))}
    alone = spec.model_copy(update={"tasks": (task,)})
    model = connect_features(trunk_and_heads(build_network(alone, names))[1])
    labels = data.y[taught]
    options = {k: v for k, v in task.loss.model_dump().items() if k != "kind"}
    weights = class_weights(labels[labels >= 0], classes, exponent=task.class_weight_exponent)
    loss = MaskedLoss(LOSSES[task.loss.kind], weights, options)
    places, size = np.flatnonzero(taught), spec.batch_size
    if way != "none":  # as many labelled images per step as without other images
        size = round(size * len(labels) / (labels >= 0).sum())
    steps = len(places) // size * spec.phases.heads.epochs
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=task.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])

    @tf.function
    def step(images: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)[task.name]
            total = loss(y, logits[:, :classes], tf.cast(y >= 0, tf.float32))
            total += weight * penalty(tf, way, y, logits, classes)
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    rng = np.random.default_rng(seed)
    for _ in range(spec.phases.heads.epochs):
        order = rng.permutation(places)
        for chosen in np.array_split(order, len(order) // size):
            step(data.x[chosen], data.y[chosen].astype(np.int32))
    logits = model.predict(data.x[held_out], batch_size=512, verbose=0)[task.name]
    return logits.astype(np.float64)


def penalty(tf: Any, way: str, y: Any, logits: Any, classes: int) -> Any:
    """The rejection loss of a batch: the mean of the mean losses of both kinds of images."""
    from multitask.learning.losses import rejection_mean, rejection_sums

    own, more = logits[:, :classes], logits[:, classes:]
    known = tf.cast(y >= 0, tf.float32)
    others = tf.maximum(tf.reduce_sum(1 - known), 1.0)
    if way == "none":
        return 0.0
    if way == "free energy":
        return rejection_mean(rejection_sums(y, own))
    if way == "extra class":  # the logits are relative to that of the further class
        return rejection_mean(rejection_sums(y, own - more))
    if way == "exposure":
        uniform = -tf.reduce_mean(tf.nn.log_softmax(own), axis=-1) - np.log(classes)
        return tf.reduce_sum(uniform * (1 - known)) / others
    target = tf.one_hot(tf.maximum(y, 0), classes) * known[:, None]
    each = tf.nn.sigmoid_cross_entropy_with_logits(target, more)
    right = tf.reduce_sum(each * target, axis=-1)
    hardest = tf.reduce_max(each * (1 - target), axis=-1)
    labelled = tf.reduce_sum((right + hardest) * known) / tf.maximum(tf.reduce_sum(known), 1.0)
    return (labelled + tf.reduce_sum(hardest * (1 - known)) / others) / 2


if __name__ == "__main__":
    main(sys.argv)
