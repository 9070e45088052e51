"""The options of a prediction, checked before TensorFlow is imported and a model is loaded."""

from dataclasses import dataclass
from pathlib import Path

from multitask.errors import InputError
from multitask.runtimes.libraries import AUTO
from multitask.serving.prediction_files import check_out
from multitask.serving.rules import MinConfidence, check_coverage


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How images are predicted, and where the predictions go.

    Attributes:
        model: folder of an export; None: the best model of the run.
        workdir: folder of the run; None with an export.
        data_dir: with a run: the new folder of data that was moved.
        allow_outside: with a run: as in `open_run`.
        runtime: library that runs an export; `auto`: the fastest, measured for
            FEWEST_MEASURED images or more.
        min_confidence: a lower confidence makes an answer `uncertain`.
        max_unlike: share of the validation images that would be not like the training images; None:
            the usual one.
        calibrated: whether probabilities are scaled by the temperature.
        tta: kind of test-time augmentation; None: the plain image.
        coverage: of the sets of classes; None: no sets.
        joint: whether it is that of all tasks' sets together.
        batch_size: images in a batch.
        out: file of the predictions; None: the console.
        resume: continue an interrupted prediction to `out`.

    Raises:
        InputError: an option is wrong, or needs another one.
    """

    model: Path | None
    workdir: Path | None
    data_dir: Path | None
    allow_outside: bool
    runtime: str
    min_confidence: MinConfidence
    max_unlike: float | None
    calibrated: bool
    tta: str | None
    coverage: float | None
    joint: bool
    batch_size: int
    out: Path | None
    resume: bool

    def __post_init__(self):
        if self.workdir and self.runtime not in (AUTO, "tensorflow"):
            raise InputError(f"`runtime={self.runtime}`: needs `model`; a run needs TensorFlow")
        if self.out:
            check_out(self.out)
        elif self.resume:
            raise InputError("needs `out`; without it no predictions are stored", field="resume")
        check_coverage(self.coverage, joint=self.joint)
