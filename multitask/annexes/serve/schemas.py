"""The options, responses and error responses of the HTTP interface; OpenAPI is built from them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from multitask.feature_distance import UNLIKE
from multitask.serving.answers import UNCERTAIN

MAX_SIMILAR = 10
CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")


class Options(BaseModel):
    """The query parameters of a prediction."""

    model_config = ConfigDict(extra="forbid")

    attention: bool = Field(False, description="also show where the model looked, for each task")
    similar: int = Field(
        0, ge=0, le=MAX_SIMILAR, description="number of nearest training images to show"
    )
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="also give a set of classes for each task that holds the right class with this "
        "probability",
    )
    joint: bool = Field(
        False,
        description="with coverage: the sets of all tasks together hold all right classes with "
        "this probability",
    )


class Candidate(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class TaskAnswer(BaseModel):
    """The prediction of one task."""

    answer: str = Field(description=f"the most probable class, `{UNCERTAIN}` or `{UNLIKE}`")
    uncertain: bool = Field(description="whether the confidence is below the threshold")
    confidence: float = Field(description="the highest probability")
    top: list[Candidate] = Field(description="the most probable classes, at most three")
    set: list[str] | None = Field(
        description="the classes of the set, most probable first; null without coverage"
    )
    attention: str | None = Field(
        description="data URL of a JPEG: the image, coloured where the model looked"
    )


class SimilarImage(BaseModel):
    """A training image near the uploaded image."""

    path: str = Field(description="path in the data set")
    distance: float = Field(description="1 - cosine similarity of the embeddings, 0 to 2")
    labels: dict[str, str] = Field(description="task -> class; unlabelled tasks are absent")
    thumbnail: str | None = Field(
        description="data URL of a JPEG; null if the image file is missing"
    )


class Prediction(BaseModel):
    """The response to `POST /predict`."""

    unlike: bool | None = Field(
        description="whether the image is not like the training images, so that no task has "
        "another answer; null if the model cannot say it"
    )
    distance: float | None = Field(
        description="distance to the training images, about 1 for one of them; null as `unlike`"
    )
    tasks: dict[str, TaskAnswer]
    similar: list[SimilarImage] | None = Field(description="nearest first; null if not requested")
    runtime: str = Field(description="the library that runs the model")
    milliseconds: float = Field(description="time from the end of the upload to the response")


class Health(BaseModel):
    """The response to `GET /healthz`."""

    status: Literal["ok"] = "ok"
    model: str
    runtime: str


class Problem(BaseModel):
    """The body of every error response."""

    detail: str = Field(description="one line")


PROBLEMS = {
    408: "the upload took too long or was too slow",
    413: "the file, the image or one of its sides is too large",
    415: "not a supported image: send a JPEG, PNG, WebP, TIFF, GIF, BMP, JPEG 2000, AVIF or HEIC",
    422: "an option is invalid or not available on this server",
    503: "busy; Retry-After holds the seconds to wait",
}
