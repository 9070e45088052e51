"""Models for predictions, from an export or from a run."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from multitask.console import log_shown, progress_bar
from multitask.data.conversion import conversions_logged
from multitask.data.decode_arrays import ImageInput, decode_array, name_of, resize_array
from multitask.errors import InputError
from multitask.library.html import grid_html, image_html
from multitask.prefetch import parallel_map
from multitask.run import Run
from multitask.run import open_run as open_workdir
from multitask.runtimes.libraries import AUTO
from multitask.serving import answers, predictor
from multitask.serving.predictor import Predictor
from multitask.spec import SHARED, field_of, is_labelled
from multitask.startup import import_tensorflow_once

if TYPE_CHECKING:
    from multitask.evaluation.gallery import Gallery

BATCH = 16
SHOWN_ROWS = 20  # of a table in a notebook
THUMBNAIL_PX = 192
Images = ImageInput | Iterable[ImageInput]


def load_model(
    path: str | os.PathLike,
    *,
    runtime: str = AUTO,
    calibrated: bool = True,
    data_dir: str | os.PathLike | None = None,
) -> "ImageModel":
    """Load a model for predictions.

    An export is run by ONNX Runtime, OpenVINO or LiteRT without importing TensorFlow, if one of
    them is installed and the export has an artifact for it.

    Args:
        path: the folder of an export, or the workdir of a run. TensorFlow runs the best model of a
            run.
        runtime: `litert`, `onnxruntime`, `openvino` or `tensorflow`; `auto`: the first of them
            that is installed and can read the export.
        calibrated: scale probabilities by the temperature that the evaluation fitted.
        data_dir: with a run: the new folder of data that was moved.

    Raises:
        InputError: no model, or no library can run it.

    Example:
        >>> import multitask as mt
        >>> model = mt.load_model("runs/first/export", runtime="onnxruntime")
        >>> model.predict(["a.png"])[["shade/predicted", "warmth/predicted"]]
          shade/predicted warmth/predicted
        0           ivory             cold
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        run = open_workdir(folder, None if data_dir is None else Path(data_dir))
        return model_of_run(run, None, calibrated=calibrated)
    with log_shown():
        loaded = predictor.load_export(folder, runtime=runtime)
    return ImageModel(replace(loaded, calibrated=calibrated), export=folder)


def model_of_run(run: Run, model_file: Path | None, *, calibrated: bool = True) -> "ImageModel":
    """Load a model of a run, in TensorFlow."""
    with log_shown():
        import_tensorflow_once()
        loaded = predictor.load_best(run, model_file=model_file)
    return ImageModel(replace(loaded, calibrated=calibrated), run=run, model_file=model_file)


class ImageModel:
    """A model that predicts and embeds images, from `load_model`.

    An image is a path; the bytes of an image file; a Pillow image; or a uint8 array
    [height, width, 3] (RGB), [height, width, 4] (RGBA) or [height, width] (grey). Every method
    takes one image or several.

    Args:
        model: the loaded model.
        export: folder of the export, if the model is from one.
        run: the run, if the model is from one.
        model_file: a model of the run other than the best one.

    Attributes:
        classes: task -> names of its classes.
        runtime: library that runs the model, with its version.
        size_px: side of the model's input.

    Example:
        >>> import multitask as mt
        >>> import numpy as np
        >>> model = mt.load_model("runs/first")
        >>> model.embed(["a.png", np.zeros((40, 30, 3), np.uint8)]).shape
        (2, 3)
        >>> model.similar("a.png", top_k=1)["rank"].tolist()
        [1]
    """

    def __init__(
        self,
        model: Predictor,
        *,
        export: Path | None = None,
        run: Run | None = None,
        model_file: Path | None = None,
    ):
        self._model, self._export, self._run, self._model_file = model, export, run, model_file
        self._gallery: Gallery | None = None
        self.classes: dict[str, tuple[str, ...]] = model.classes
        self.runtime, self.size_px = model.runtime, model.size_px

    def __repr__(self) -> str:
        counts = ", ".join(f"{task} {len(names)}" for task, names in self.classes.items())
        return f"ImageModel({counts} classes; {self.size_px} px; {self.runtime})"

    def predict(
        self,
        images: Images,
        *,
        min_confidence: float | Mapping[str, float] = 0.0,
        coverage: float | None = None,
        joint: bool = False,
        max_unlike: float | None = None,
    ) -> "PredictionTable":
        """Predict all tasks of images.

        Args:
            images: one image or several.
            min_confidence: an answer with a lower confidence is `uncertain`; one number, or
                task -> number, as from `thresholds`.
            coverage: also give a set of classes for each task that holds the right class with this
                probability, in (0, 1).
            joint: with a coverage: the sets of all tasks together hold all right classes with that
                probability.
            max_unlike: share of the images drawn like the validation images that may get the answer
                `not like the training data`; 0: none. None: 0.01, if the model can say it.

        Returns:
            One row per image, in order: `path`; `error`, the reason if the image cannot be read; if
            the model can say it, `distance` to the training images, and `unlike`, whether the image
            is not like them; and for each task, such as `style`: `style/predicted`, and the three
            most probable classes, `style/1` with `style/1_probability`, and so on. With a coverage
            also `style/set`, the list of the classes in the set, most probable first, and
            `style/set_size`.

        Raises:
            InputError: a confidence outside 0 to 1, an unknown task, or a coverage or share that
                the validation split of the model cannot promise.
        """
        least = self._least_confidences(min_confidence)
        sets = self._set_thresholds(coverage, joint)
        distance_limit = self._model.distance_limit(max_unlike)
        rows: list[dict[str, Any]] = []
        thumbnails: list[Image.Image | None] = []
        for name, original, outputs in self._outputs(images):
            if isinstance(outputs, str):
                rows.append(answers.row(name, outputs))
                thumbnails.append(None)
                continue
            rows.append(self._row(name, outputs, least, sets, distance_limit))
            thumbnails.append(original if len(thumbnails) < SHOWN_ROWS else None)
        columns = answers.columns(
            self.classes, sets=bool(sets), distances=distance_limit is not None
        )
        table = PredictionTable(rows, columns=list(columns))
        table.tasks, table.thumbnails = tuple(self.classes), tuple(thumbnails)
        return table

    def probabilities(self, images: Images) -> dict[str, np.ndarray]:
        """Predict the probabilities of all classes.

        Returns:
            Task -> float32 [images, classes].

        Raises:
            InputError: an image cannot be read.
        """
        outputs = [self._readable(*one)[0] for one in self._outputs(images)]
        return {
            task: np.stack([one[task] for one in outputs])
            if outputs
            else np.zeros((0, len(names)), np.float32)
            for task, names in self.classes.items()
        }

    def embed(self, images: Images) -> np.ndarray:
        """Compute the embeddings of images: the trunk's pooled features.

        Returns:
            float32 [images, width].

        Raises:
            InputError: an image cannot be read, or the export has no embedding.
        """
        vectors = []
        for name, original, outputs in self._outputs(images):
            vector = self._readable(name, original, outputs)[1]
            if vector is None:
                raise InputError("this export has no embedding; export it again", field="model")
            vectors.append(vector)
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    def similar(self, images: Images, *, top_k: int = 5) -> pd.DataFrame:
        """Find the training images that are most similar to images.

        The embeddings of the training images are computed once per model and kept in the workdir of
        the run. This imports TensorFlow.

        Args:
            images: one image or several.
            top_k: number of training images for each, at least 1.

        Returns:
            `image` (the query), `rank` from 1, `distance` (1 - cosine of the embeddings), `path`
            of the training image, and its class for each task, as `style/label`, which is None if
            it has no label.

        Raises:
            InputError: an image cannot be read, or the run is not there.
        """
        if top_k < 1:
            raise InputError(f"{top_k}: expected at least 1", field="top_k")
        images = list(_several(images))
        names = [name_of(image, place) for place, image in enumerate(images)]
        embeddings = self.embed(images)
        columns = ["image", "rank", "distance", "path"]
        columns += [field_of(task, "label") for task in self.classes]
        if not images:
            return pd.DataFrame(columns=columns)
        with log_shown():
            import_tensorflow_once()
            gallery = self._training_images()
            from multitask.evaluation.gallery import normalised
            from multitask.evaluation.neighbours import nearest

            places, distances = nearest(gallery.loaded(SHARED), normalised(embeddings), top_k)
        rows = [
            {"image": name, "rank": rank, "distance": distance, "path": gallery.paths[place]}
            | {
                field_of(task, "label"): names[label] if is_labelled(label) else None
                for (task, names), label in zip(
                    gallery.classes.items(), gallery.labels[place], strict=True
                )
            }
            for name, *matches in zip(names, places, distances, strict=True)
            for rank, (place, distance) in enumerate(zip(*matches, strict=True), start=1)
        ]
        return pd.DataFrame(rows, columns=columns)

    def thresholds(self, accuracy: float) -> dict[str, float]:
        """Look up the confidences that reach an accuracy on the validation split.

        Args:
            accuracy: share of correct predictions at or above the threshold, e.g. 0.9.

        Returns:
            Task -> the lowest such confidence, for `min_confidence`; infinite if there is none.

        Raises:
            InputError: no task has one, or the model was not evaluated.
        """
        return self._model.thresholds(accuracy)

    def _outputs(self, images: Images) -> Iterator[tuple[str, Any, Any]]:
        """Yield name, decoded image, and (task -> probabilities, embedding) or the error."""
        images = list(_several(images))
        names = [name_of(image, place) for place, image in enumerate(images)]
        with (
            log_shown(),
            conversions_logged(),
            progress_bar("predicting", len(images)) as bar,
        ):
            inputs = zip(names, parallel_map(self._input, images, prefetch=BATCH), strict=True)
            while batch := list(itertools.islice(inputs, BATCH)):
                readable = [pixels for _, (_, pixels) in batch if not isinstance(pixels, str)]
                outputs = self._run_batch(readable)
                for name, (original, pixels) in batch:
                    yield name, original, pixels if isinstance(pixels, str) else next(outputs)
                bar.update(len(batch))

    def _input(self, image: ImageInput) -> tuple[Any, Any]:
        """Return a small copy of an image and the model's input; or None and the error."""
        try:
            decoded = decode_array(
                image,
                target_px=self._model.reduced_px,
                convert_profiles=self._model.convert_profiles,
            )
        except InputError as error:
            return None, str(error)
        small = Image.fromarray(decoded)
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return small, resize_array(decoded, **self._model.resizing)

    def _run_batch(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[dict, np.ndarray | None]]:
        if not inputs:
            return iter(())
        probabilities, vectors = self._model.answer(np.stack(inputs))
        return iter(
            [
                (
                    {task: values[i] for task, values in probabilities.items()},
                    None if vectors is None else vectors[i],
                )
                for i in range(len(inputs))
            ]
        )

    def _readable(self, name: str, original: Any, outputs: Any) -> tuple[dict, np.ndarray | None]:
        if isinstance(outputs, str):
            raise InputError(f"{name}: {outputs}", field="images")
        return outputs

    def _least_confidences(self, given: float | Mapping[str, float]) -> dict[str, float]:
        least = dict(given) if isinstance(given, Mapping) else dict.fromkeys(self.classes, given)
        for task, value in least.items():
            if task not in self.classes:
                raise InputError(f"no task {task!r}", field="min_confidence")
            if not (0 <= value <= 1 or value == np.inf):
                raise InputError(f"{value}: expected a number from 0 to 1", field="min_confidence")
        return dict.fromkeys(self.classes, 0.0) | least

    def _set_thresholds(self, coverage: float | None, joint: bool) -> dict[str, float]:
        """Task -> threshold of its set of classes; empty without a coverage."""
        if coverage is not None:
            return self._model.set_thresholds(coverage, joint=joint)
        if joint:
            raise InputError("needs a coverage, such as 0.9", field="joint")
        return {}

    def _row(
        self,
        name: str,
        outputs: tuple[dict[str, np.ndarray], np.ndarray | None],
        least: Mapping[str, float],
        sets: Mapping[str, float],
        distance_limit: float | None,
    ) -> dict[str, Any]:
        """The row of a readable image in the table of `predict`."""
        probabilities, embedding = outputs
        distance = self._distance(embedding, distance_limit)
        predicted = {
            task: answers.answer(
                probabilities[task],
                names,
                min_confidence=least[task],
                set_threshold=sets.get(task),
                distance=distance,
            )
            for task, names in self.classes.items()
        }
        return answers.row(name, predicted, distance.fields if distance else None)

    def _distance(
        self, embedding: np.ndarray | None, limit: float | None
    ) -> answers.Distance | None:
        """The distance of an image to the training images; None if the model has none."""
        if embedding is None or limit is None:
            return None
        distances = self._model.distances(embedding[None])
        return None if distances is None else answers.Distance(float(distances[0]), limit)

    def _training_images(self) -> "Gallery":
        """The embedded training images of the model's run."""
        if self._gallery is None:
            from multitask.annexes.serve.neighbours import gallery_of_export
            from multitask.evaluation.gallery import load_or_build
            from multitask.trained import open_trained

            if self._run is not None:
                self._gallery = load_or_build(open_trained(self._run, self._model_file))
                return self._gallery
            assert self._export is not None  # the model is from a run or from an export
            workdir = self._export.resolve().parent
            if not (workdir / "config.json").is_file():
                raise InputError(
                    f"{self._export}: is not in the workdir of its run, which knows the training "
                    "images; load the export from there",
                    field="model",
                )
            loaded = gallery_of_export(self._export, workdir=workdir)
            assert not isinstance(loaded, str)  # with a workdir, it raises
            self._gallery = loaded[0]
        return self._gallery


class PredictionTable(pd.DataFrame):
    """A table of predictions, from `ImageModel.predict`; a notebook shows it with the images.

    Attributes:
        tasks: names of the tasks.
        thumbnails: small images of the first rows; None for the others.

    Example:
        >>> import multitask as mt
        >>> table = mt.load_model("runs/first/export").predict("a.png", min_confidence=0.99)
        >>> table["shade/predicted"].tolist()
        ['uncertain']
        >>> table.to_csv("answers.csv", index=False)
    """

    _metadata = ["tasks", "thumbnails"]  # noqa: RUF012  # pandas requires a list
    tasks: tuple[str, ...] = ()
    thumbnails: tuple[Image.Image | None, ...] = ()

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame  # a selection of rows has no images

    def _repr_html_(self) -> str:
        from multitask.pages.image_sheets import data_uri

        shown = []
        for (_, values), image in zip(
            self.head(SHOWN_ROWS).iterrows(), self.thumbnails, strict=False
        ):
            cell = ""
            if image is not None:
                source = data_uri(np.asarray(image), side_px=THUMBNAIL_PX, quality=80)
                cell = image_html(source)
            shown.append([cell, values["path"], *self._cells(values)])
        more = len(self) - len(shown)
        text = grid_html(["", "image", *self.tasks], shown)
        return text + (f"<p>and {more:,} more rows</p>" if more > 0 else "")

    def _cells(self, values: pd.Series) -> list[str]:
        """The three most probable classes of each task, or the error."""
        if values["error"]:
            return [values["error"], *[""] * (len(self.tasks) - 1)]
        cells = []
        for task in self.tasks:
            top = [
                f"{values[name]} {values[name + '_probability']:.2f}"
                for place in range(1, answers.TOP + 1)
                if (name := field_of(task, f"{place}")) in values
            ]
            mark = answers.MARKS.get(values[field_of(task, "predicted")], "")
            cells.append(mark + ", ".join(top))
        return cells


def _several(images: Images) -> Iterable[ImageInput]:
    """The images of an argument that may be a single one."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim < 4:
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(f"{type(images).__name__}: expected an image or several", field="images")
    return images
