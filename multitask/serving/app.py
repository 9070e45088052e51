"""The web application: a page on which a painting is dropped, and `POST /predict` behind it.

A picture is the very body of its request: nothing of it is ever on a disk, and a form on another
site, which can send no such Content-Type, cannot post one.
"""

import asyncio
import base64
import collections
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from typing import Annotated, Any, Literal

import numpy as np
import tensorflow as tf
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multitask import __version__
from multitask.data.decode import (
    MAX_PIXELS,
    OVER_LIMIT,
    decode_image,
    error_text,
    reduce_image,
    resize_image,
)
from multitask.evaluation.attention import overlay
from multitask.evaluation.pages import render
from multitask.figures import data_uri
from multitask.serving.batching import Batcher
from multitask.serving.beside import Attention, Similar
from multitask.serving.predict import UNCERTAIN, answer
from multitask.serving.predictor import Predictor
from multitask.serving.uploads import UploadLimits, Uploads, busy

MAX_BATCH, WAIT_S = 16, 0.004
READERS = min(4, cpu_count() or 1)  # threads; each holds one decoded picture
# A decoded image takes up to 11 bytes a pixel while it is read. Larger ones are read one at a time,
# and only so many may wait for it that they leave the places of `pending` to the others.
LARGE_PIXELS, LARGE_PENDING = 16_000_000, 8
# A progressive JPEG is decoded once for each of its scans, of which 30 bytes suffice: 20 MB of them
# would take hours. Encoders write 6 to 20.
MAX_SCANS = 100
MAX_SIMILAR = 10
SHOWN_PX, QUALITY = 360, 85  # shorter side of a picture with colours over it
KINDS = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
INLINE = re.compile(r"< (script | style) > (.*?) </ \1 >", re.DOTALL | re.VERBOSE)
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        upload: of a picture's file.
        pixels: of a picture, at most MAX_PIXELS.
        pending: requests that have come whole and are not answered; one more is told to come back.
    """

    upload: UploadLimits = UploadLimits()
    pixels: int = 100_000_000
    pending: int = 64

    def __post_init__(self):
        if not 1 <= self.pixels <= MAX_PIXELS:
            raise ValueError(f"pixels: {self.pixels}, expected 1 to {MAX_PIXELS}")


# === What is asked and answered ===


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attention: bool = Field(False, description="also show where the model looked, for each task")
    similar: int = Field(
        0, ge=0, le=MAX_SIMILAR, description="how many of the nearest training pictures to show"
    )


class Candidate(BaseModel):
    name: str
    probability: float


class TaskAnswer(BaseModel):
    answer: str = Field(description=f"the most probable class, or `{UNCERTAIN}`")
    uncertain: bool = Field(description="whether the confidence is too low for an answer")
    confidence: float = Field(description="the highest probability")
    top: list[Candidate] = Field(description="the most probable classes, three at most")
    attention: str | None = Field(
        description="data URL of a JPEG: the picture, coloured where the model looked"
    )


class SimilarPicture(BaseModel):
    path: str = Field(description="in the data set")
    distance: float = Field(description="1 - cosine of the embeddings, 0 to 2")
    labels: dict[str, str] = Field(description="task -> class; without the tasks it has none of")
    thumbnail: str | None = Field(description="data URL of a JPEG; null where the file is gone")


class Prediction(BaseModel):
    tasks: dict[str, TaskAnswer]
    similar: list[SimilarPicture] | None = Field(description="the nearest first")
    runtime: str = Field(description="what runs the model")
    milliseconds: float = Field(description="from the end of the upload to the answer")


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: str
    runtime: str


class Problem(BaseModel):
    detail: str = Field(description="one line")


PROBLEMS = {
    408: "the upload took too long, or was too slow",
    413: "too large: the file in bytes, or the picture in pixels, or one of its sides",
    415: "not a picture that is read: a still JPEG, PNG or WebP",
    422: "an option is wrong, or asks for what this server does not have",
    503: "busy; Retry-After says when to come back",
}


# === One picture ===


@dataclass(frozen=True)
class Picture:
    """A picture that waits for its answers.

    Attributes:
        image: float32 [size, size, 3], as the model takes it.
        shown: uint8 [height, width, 3], upright, for colours over it; None where none are asked.
    """

    image: np.ndarray
    shown: np.ndarray | None


@dataclass(frozen=True)
class Said:
    """A picture's answers: task -> float32 [classes]; float32 [width]; task -> float32 [h, w]."""

    probabilities: Mapping[str, np.ndarray]
    embedding: np.ndarray | None
    attention: Mapping[str, np.ndarray] | None


class Answerer:
    """All that is done for a picture, apart from HTTP."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        thresholds: Mapping[str, float],
        max_pixels: int,
        attention: Attention | str,
        similar: Similar | str,
    ):
        self.predictor, self.thresholds = predictor, thresholds
        self.attention, self.similar = attention, similar
        self._read = self._reader(min(max_pixels, LARGE_PIXELS))
        self._read_large = self._reader(max_pixels)

    def _reader(self, max_pixels: int) -> tf.types.experimental.ConcreteFunction:
        size_px, how = self.predictor.size_px, self.predictor.how

        @tf.function(
            input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool)],
            autograph=False,
        )
        def read(data: tf.Tensor, shown: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            upright = decode_image(data, target_px=size_px, max_pixels=max_pixels)
            reduced = tf.cond(shown, lambda: _small(upright), lambda: tf.zeros([0, 0, 3], tf.uint8))
            return resize_image(upright, size_px=size_px, how=how), reduced

        return read.get_concrete_function()

    def read(self, data: bytes, shown: bool) -> Picture:
        """A picture of at most LARGE_PIXELS.

        Args:
            data: its file.
            shown: whether it is wanted for colours over it.

        Raises:
            tf.errors.InvalidArgumentError: as `decode_image`.
        """
        return _read(self._read, data, shown)

    def read_large(self, data: bytes, shown: bool) -> Picture:
        """As `read`, with as many pixels as there may be."""
        return _read(self._read_large, data, shown)

    def warm_up(self) -> Said:
        """What is said of a black dot; later nobody waits for what is built or loaded once."""
        dot = tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy()
        picture = self.read(dot, not isinstance(self.attention, str))
        said = self.answer([picture])[0]
        searched = said.embedding is not None and not isinstance(self.similar, str)
        self.tell(picture, said, int(searched))
        return said

    def answer(self, pictures: Sequence[Picture]) -> list[Said]:
        images = np.stack([picture.image for picture in pictures])
        probabilities, embedding = self.predictor.answer(images)
        looked = [row for row, picture in enumerate(pictures) if picture.shown is not None]
        maps = self.attention(images[looked]) if looked else {}
        return [
            Said(
                {task: each[row] for task, each in probabilities.items()},
                None if embedding is None else embedding[row],
                {t: each[looked.index(row)] for t, each in maps.items()} if row in looked else None,
            )
            for row in range(len(pictures))
        ]

    def tell(self, picture: Picture, said: Said, similar: int) -> dict[str, Any]:
        """The fields of a Prediction that are about the picture."""
        tasks = {}
        for task, probabilities in said.probabilities.items():
            found = answer(
                probabilities,
                self.predictor.classes[task],
                min_confidence=self.thresholds[task],
            )
            colours = None
            if said.attention:
                colours = overlay(picture.shown, said.attention[task], how=self.predictor.how)
                colours = data_uri(colours, side_px=4 * SHOWN_PX, quality=QUALITY)
            confidence = found["top"][0][1]
            tasks[task] = TaskAnswer(
                answer=found["answer"],
                uncertain=confidence < self.thresholds[task],
                confidence=confidence,
                top=[Candidate(name=name, probability=p) for name, p in found["top"]],
                attention=colours,
            )
        nearest = None
        if similar:
            nearest = [SimilarPicture(**one) for one in self.similar(said.embedding, similar)]
        return {"tasks": tasks, "similar": nearest}


def _read(decode: Callable[..., tuple[tf.Tensor, tf.Tensor]], data: bytes, shown: bool) -> Picture:
    if data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") > MAX_SCANS:
        raise tf.errors.InvalidArgumentError(None, None, f"JPEG of more than {MAX_SCANS} scans")
    image, reduced = decode(tf.constant(data), tf.constant(shown))
    return Picture(image.numpy(), reduced.numpy() if shown else None)


def _small(image: tf.Tensor) -> tf.Tensor:
    """uint8 [height, width, 3] -> at most 4 SHOWN_PX long, however narrow."""
    image = reduce_image(image, shorter_px=SHOWN_PX)
    sides = tf.shape(image)[:2]
    steps = (sides - 1) // (4 * SHOWN_PX) + 1  # 1, but for what is hardly a picture
    return image[:: steps[0], :: steps[1]]


# === HTTP ===


def build_app(
    predictor: Predictor,
    *,
    name: str,
    thresholds: Mapping[str, float],
    attention: Attention | str,
    similar: Similar | str,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        predictor: answers the pictures; used by one thread.
        name: of the model, for people.
        thresholds: task -> the confidence below which the answer is `uncertain`.
        attention: where the model looks, or why that is not known; used by the same thread.
        similar: the search for similar pictures, or why there is none; used by some threads.
        limits: of a request; None: the defaults.
        hosts: under which the server is asked, so that no other site's name can be pointed at it
            (DNS rebinding); None: any.
    """
    limits = limits or Limits()
    answerer = Answerer(
        predictor,
        thresholds=thresholds,
        max_pixels=limits.pixels,
        attention=attention,
        similar=similar,
    )
    blank = answerer.warm_up()
    if blank.embedding is None and not isinstance(similar, str):
        similar = f"{predictor.runtime}'s artifact gives no embedding"
    readers, large_reader = ThreadPoolExecutor(READERS, "reader"), ThreadPoolExecutor(1, "large")
    uploads = Uploads(limits.upload)
    batcher = Batcher(answerer.answer, most=MAX_BATCH, wait_s=WAIT_S)
    pending = large_pending = 0
    page = render(
        "app.html.j2",
        name=name,
        runtime=predictor.runtime,
        tasks=list(predictor.classes),
        size_px=predictor.size_px,
        limits={"upload_bytes": limits.upload.bytes, "pixels": limits.pixels},
        attention=attention if isinstance(attention, str) else None,
        similar=similar if isinstance(similar, str) else None,
    )
    headers = {**HEADERS, "Content-Security-Policy": _policy(page)}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(batcher.work())
        yield
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        readers.shutdown()
        large_reader.shutdown()

    app = FastAPI(
        title=f"multitask: {name}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page asks another site for scripts
        redoc_url=None,
    )
    app.add_middleware(_Guard, headers=headers, hosts=hosts)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(lines)}, 422)

    @app.exception_handler(500)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # Outside of _Guard: FastAPI answers these before any middleware of ours.
        return JSONResponse({"detail": "the server failed; its console says more"}, 500, headers)

    async def beside(executor: ThreadPoolExecutor, *call) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, *call)

    async def read(data: bytes, shown: bool) -> Picture:
        """The picture, decoded beside others; a large one alone, to bound the memory."""
        nonlocal large_pending
        try:
            try:
                return await beside(readers, answerer.read, data, shown)
            except tf.errors.InvalidArgumentError as error:
                is_large = f"{OVER_LIMIT} {LARGE_PIXELS}" in error_text(error)
                if not is_large or limits.pixels <= LARGE_PIXELS:
                    raise
            if large_pending >= LARGE_PENDING:
                raise busy()
            large_pending += 1
            try:
                return await beside(large_reader, answerer.read_large, data, shown)
            finally:
                large_pending -= 1
        except tf.errors.InvalidArgumentError as error:
            text = error_text(error, data)
            raise HTTPException(413 if OVER_LIMIT in text else 415, text) from None

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/healthz")
    async def health() -> Health:
        """Whether it works, and with what."""
        return Health(model=name, runtime=predictor.runtime)

    @app.post(
        "/predict",
        responses={
            status: {"model": Problem, "description": text} for status, text in PROBLEMS.items()
        },
        openapi_extra={
            "requestBody": {
                "description": "the picture's file itself: a JPEG, PNG or WebP, by its content",
                "required": True,
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS
                },
            }
        },
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Prediction:
        """What a picture shows: each task's answer."""
        nonlocal pending
        for field, how in (("attention", attention), ("similar", similar)):
            if getattr(options, field) and isinstance(how, str):
                raise HTTPException(422, f"{field}: not known here: {how}")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not kind.startswith("image/") and kind != KINDS[-1]:
            raise HTTPException(
                415, f"Content-Type: {kind or 'none'}; send the picture itself as {KINDS[0]}"
            )
        if pending >= limits.pending:  # an upload would be in vain
            raise busy()
        async with contextlib.AsyncExitStack() as held:
            data = await held.enter_async_context(uploads.body(request))
            # Only now: a slow upload is no work, and takes nobody's place.
            if pending >= limits.pending:
                raise busy()
            pending += 1
            try:
                began = time.perf_counter()
                picture = await read(data, options.attention)
                del data  # others may come first, and it may be large
                await held.aclose()
                said = await batcher(picture)
                told = await beside(readers, answerer.tell, picture, said, options.similar)
            finally:
                pending -= 1
        milliseconds = round(1000 * (time.perf_counter() - began), 1)
        return Prediction(**told, runtime=predictor.runtime, milliseconds=milliseconds)

    return app


def _policy(page: str) -> str:
    """The Content-Security-Policy under which this page, and nothing more, works."""
    digests = collections.defaultdict(list)
    for tag, text in INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
        digests[tag].append(f"'sha256-{digest.decode()}'")
    inline = "; ".join(f"{tag}-src {' '.join(found)}" for tag, found in digests.items())
    return (
        f"default-src 'none'; {inline}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Guard:
    """Adds the headers to every response, and answers no one who asks for another host."""

    def __init__(self, app: ASGIApp, *, headers: Mapping[str, str], hosts: Sequence[str] | None):
        self.app, self.headers, self.hosts = app, headers, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        asked = Request(scope).headers.get("host", "")
        app = self.app
        if self.hosts is not None and re.sub(r":\d+$", "", asked).lower() not in self.hosts:
            app = JSONResponse({"detail": "Host: this server is not known by that name"}, 400)
        await app(scope, receive, send_guarded)
