"""Example images of a report: attention maps of predictions, and similar images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from multitask.data.pipeline import readable_images
from multitask.evaluation.attention import activation_maps, overlay
from multitask.evaluation.examiner import Examiner
from multitask.evaluation.gallery import Gallery, normalised
from multitask.evaluation.neighbours import nearest
from multitask.evaluation.predictions import Predictions
from multitask.model.network import FEATURES, trunk_and_heads
from multitask.spec import SHARED, is_labelled
from multitask.trained import TrainedModel

WRONG, RIGHT = 12, 6  # shown predictions of a task
QUERIES, NEIGHBOURS = 8, 5


def attention_examples(
    trained: TrainedModel,
    examiner: Examiner,
    predictions: Predictions,
    load: Callable[[str], np.ndarray | None],
) -> list[dict[str, Any]]:
    """Compute Grad-CAM of each task's most confident mistakes and right predictions.

    Every right prediction has a different class.

    Args:
        trained: the model.
        examiner: its network.
        predictions: of the test set.
        load: path -> uint8 [height, width, 3], or None.

    Returns:
        Dicts of task, path, true, predicted, confidence, overlay (uint8 [height, width, 3]).
    """
    chosen = [
        (task, row) for task in predictions.classes for row in _attention_rows(predictions, task)
    ]
    spec, heads = trained.spec, trunk_and_heads(trained.network)[1]
    batches = readable_images(
        [str(trained.image_dir / predictions.paths[row]) for _, row in chosen],
        **spec.reading,
        batch_size=WRONG + RIGHT,
    )
    examples = []
    for places, images in batches:
        features = np.asarray(examiner(images)[FEATURES])
        batch = [chosen[place] for place in places]
        for task, names in predictions.classes.items():
            own = [place for place, (of_task, _) in enumerate(batch) if of_task == task]
            if not own:
                continue
            rows = [batch[place][1] for place in own]
            classes = predictions.predicted(task)[rows]
            maps = np.asarray(activation_maps(heads[task], features[own], classes))
            for row, predicted, cam in zip(rows, classes, maps, strict=True):
                image = load(predictions.paths[row])
                if image is not None:
                    examples.append(
                        {
                            "task": task,
                            "path": predictions.paths[row],
                            "true": names[predictions.labels_of(task)[row]],
                            "predicted": names[predicted],
                            "confidence": float(predictions.probabilities[task][row, predicted]),
                            "overlay": overlay(image, cam, how=spec.resize),
                        }
                    )
    return examples


def _attention_rows(predictions: Predictions, task: str) -> np.ndarray:
    """Rows of the most confident mistakes, then of right predictions of different classes."""
    confidence = predictions.probabilities[task].max(axis=1)
    rows = np.argsort(-confidence, kind="stable")
    rows = rows[predictions.labelled(task)[rows]]
    right = predictions.correct(task)[rows]
    _, first = np.unique(predictions.predicted(task)[rows[right]], return_index=True)
    return np.concatenate([rows[~right][:WRONG], rows[right][np.sort(first)[:RIGHT]]])


def similar_examples(gallery: Gallery, predictions: Predictions) -> list[dict[str, Any]]:
    """Choose evenly spaced test images, and their nearest training images.

    Returns:
        Dicts of path, labels (a text) and neighbours: dicts of path, distance and labels.
    """
    labelled = np.flatnonzero(is_labelled(predictions.labels).any(axis=1))
    if not len(labelled):
        return []
    rows = labelled[np.unique(np.linspace(0, len(labelled) - 1, QUERIES).astype(int))]
    queries = normalised(predictions.vectors[SHARED][rows])
    neighbours, distances = nearest(gallery.loaded(SHARED), queries, NEIGHBOURS)
    return [
        {
            "path": predictions.paths[row],
            "labels": _label_text(gallery, predictions.labels[row]),
            "neighbours": [
                {
                    "path": gallery.paths[neighbour],
                    "distance": float(distance),
                    "labels": _label_text(gallery, gallery.labels[neighbour]),
                }
                for neighbour, distance in zip(*matches, strict=True)
                if neighbour >= 0
            ],
        }
        for row, *matches in zip(rows, neighbours, distances, strict=True)
    ]


def _label_text(gallery: Gallery, labels: np.ndarray) -> str:
    pairs = zip(gallery.classes.values(), labels, strict=True)
    return ", ".join(names[label].replace("_", " ") for names, label in pairs if is_labelled(label))
