"""Pictures that a report shows: where the model looks, and what it finds alike."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from multitask.data.pipeline import readable_pictures
from multitask.evaluation.attention import activation_maps, overlay
from multitask.evaluation.predictions import Predictions
from multitask.evaluation.similar import Gallery, nearest, normalised
from multitask.model.network import FEATURES, parts
from multitask.run import Run
from multitask.spec import MISSING, SHARED

WRONG, RIGHT = 12, 6  # pictures of a task whose attention is shown
QUERIES, NEIGHBOURS = 8, 5


def attention_examples(
    run: Run,
    model: keras.Model,
    infer: Callable,
    predictions: Predictions,
    load: Callable[[str], np.ndarray | None],
) -> list[dict[str, Any]]:
    """Grad-CAM of each task's answer: its surest mistakes, and its surest right answers, each of
    another class.

    Args:
        run: its spec and where the pictures are.
        model: from load_network.
        infer: `compiled(examined_model(model))`.
        predictions: of the exam.
        load: path -> uint8 [height, width, 3], or None.

    Returns:
        Dicts of task, path, true, predicted, confidence, overlay (uint8 [height, width, 3]).
    """
    chosen = [(task, row) for task in predictions.classes for row in _to_look_at(predictions, task)]
    image_dir, heads = run.data_dir / run.spec.images, parts(model)[1]
    batches = readable_pictures(
        [str(image_dir / predictions.paths[row]) for _, row in chosen],
        size_px=run.spec.image_size,
        how=run.spec.resize,
        batch_size=WRONG + RIGHT,
    )
    found = []
    for places, images in batches:
        features = np.asarray(infer(images)[FEATURES])
        seen = [chosen[place] for place in places.numpy()]
        for task, names in predictions.classes.items():
            among = [place for place, (of, _) in enumerate(seen) if of == task]
            if not among:
                continue
            rows = [seen[place][1] for place in among]
            answers = predictions.answers(task)[rows]
            maps = np.asarray(activation_maps(heads[task], features[among], answers))
            for row, answer, cam in zip(rows, answers, maps, strict=True):
                picture = load(predictions.paths[row])
                if picture is not None:
                    found.append(
                        {
                            "task": task,
                            "path": predictions.paths[row],
                            "true": names[predictions.labels_of(task)[row]],
                            "predicted": names[answer],
                            "confidence": float(predictions.probabilities[task][row, answer]),
                            "overlay": overlay(picture, cam, how=run.spec.resize),
                        }
                    )
    return found


def _to_look_at(predictions: Predictions, task: str) -> np.ndarray:
    """int [n], rows: the surest mistakes, then the surest right answers of different classes."""
    confidence = predictions.probabilities[task].max(axis=1)
    surest = np.argsort(-confidence, kind="stable")
    surest = surest[predictions.labelled(task)[surest]]
    right = predictions.right(task)[surest]
    _, first = np.unique(predictions.answers(task)[surest[right]], return_index=True)
    return np.concatenate([surest[~right][:WRONG], surest[right][np.sort(first)[:RIGHT]]])


def similar_examples(gallery: Gallery, predictions: Predictions) -> list[dict[str, Any]]:
    """Some exam pictures, from all over the exam, and their nearest training pictures.

    Returns:
        Dicts of path, labels (a text) and neighbours: dicts of path, distance and labels.
    """
    among = np.flatnonzero((predictions.labels != MISSING).any(axis=1))
    if not len(among):
        return []
    rows = among[np.unique(np.linspace(0, len(among) - 1, QUERIES).astype(int))]
    queries = normalised(predictions.vectors[SHARED][rows])
    found, distances = nearest(gallery.loaded(SHARED), queries, NEIGHBOURS)
    return [
        {
            "path": predictions.paths[row],
            "labels": _names(gallery, predictions.labels[row]),
            "neighbours": [
                {
                    "path": gallery.paths[neighbour],
                    "distance": float(distance),
                    "labels": _names(gallery, gallery.labels[neighbour]),
                }
                for neighbour, distance in zip(*near, strict=True)
                if neighbour >= 0
            ],
        }
        for row, *near in zip(rows, found, distances, strict=True)
    ]


def _names(gallery: Gallery, labels: np.ndarray) -> str:
    every = zip(gallery.classes.values(), labels, strict=True)
    return ", ".join(names[label].replace("_", " ") for names, label in every if label != MISSING)
