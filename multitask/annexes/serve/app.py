"""The web application: a page for uploading a painting, and `POST /predict`, which it uses.

The body of a request is the image file itself. It is never written to a disk. Because a form on
another site cannot send such a Content-Type, it cannot post an image.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import cpu_count
from typing import Annotated, Any

import tensorflow as tf
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from multitask import __version__
from multitask.annexes.serve.batching import Batcher
from multitask.annexes.serve.guard import HEADERS, Guard, content_security_policy
from multitask.annexes.serve.inference import DecodedImage, Inference, ModelOutput
from multitask.annexes.serve.neighbours import Attention, Similar
from multitask.annexes.serve.schemas import (
    CONTENT_TYPES,
    PROBLEMS,
    Health,
    Options,
    Prediction,
    Problem,
)
from multitask.annexes.serve.uploads import UploadLimits, Uploads, busy
from multitask.conformal import HEADLINE
from multitask.data.decode import error_text
from multitask.data.image_limits import MAX_PIXELS, OVER_LIMIT
from multitask.errors import InputError
from multitask.pages.render import render
from multitask.serving.predictor import Predictor

MAX_BATCH, WAIT_S = 16, 0.004
READERS = min(4, cpu_count() or 1)  # threads; each holds one decoded image
# Large images that wait for the one thread that decodes them. The bound leaves most of the places
# of `Limits.pending` to other requests.
LARGE_PENDING = 8


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        upload: of the image file.
        pixels: of the image, at most MAX_PIXELS.
        pending: requests that are uploaded and not yet answered; further ones get a 503.
    """

    upload: UploadLimits = field(default_factory=UploadLimits)
    pixels: int = 100_000_000
    pending: int = 64

    def __post_init__(self):
        if not 1 <= self.pixels <= MAX_PIXELS:
            raise ValueError(f"pixels: {self.pixels}, expected 1 to {MAX_PIXELS}")


class _PredictionService:
    """Answers prediction requests within the limits; for the coroutines of one event loop."""

    def __init__(self, inference: Inference, limits: Limits, unavailable: Mapping[str, str]):
        self.inference, self.limits, self.unavailable = inference, limits, unavailable
        self.uploads = Uploads(limits.upload)
        self.batcher: Batcher[DecodedImage, ModelOutput] = Batcher(
            inference.run, most=MAX_BATCH, wait_s=WAIT_S
        )
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._large_reader = ThreadPoolExecutor(1, "large")
        self._pending = self._large_pending = 0

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run the batcher while the application runs."""
        batching = asyncio.create_task(self.batcher.work())
        yield
        batching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await batching
        self._readers.shutdown()
        self._large_reader.shutdown()

    async def predict(self, request: Request, options: Options) -> Prediction:
        """Read, decode and answer the image of a request."""
        self._check(request, options)
        sets = self._set_thresholds(options)
        async with contextlib.AsyncExitStack() as held:
            data = await held.enter_async_context(self.uploads.body(request))
            # Counted only after the upload, so that slow uploads do not block other requests.
            self._refuse_if_busy()
            self._pending += 1
            try:
                start_s = time.perf_counter()
                image = await self._read(data, options.attention)
                # Release the upload: it may be large, and the image may wait for its batch.
                del data
                await held.aclose()
                output = await self.batcher(image)
                fields = await _in_thread(
                    self._readers, self.inference.describe, image, output, options.similar, sets
                )
            finally:
                self._pending -= 1
        return Prediction(
            **fields,
            runtime=self.inference.predictor.runtime,
            milliseconds=round(1000 * (time.perf_counter() - start_s), 1),
        )

    def _check(self, request: Request, options: Options) -> None:
        """Check everything that can be checked before the upload."""
        for option, reason in self.unavailable.items():
            if getattr(options, option):
                raise HTTPException(422, f"{option}: not available: {reason}")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not kind.startswith("image/") and kind != CONTENT_TYPES[-1]:
            raise HTTPException(
                415, f"Content-Type: {kind or 'none'}; send the image itself as {CONTENT_TYPES[0]}"
            )
        self._refuse_if_busy()

    def _set_thresholds(self, options: Options) -> dict[str, float] | None:
        """Task -> threshold of its set of classes; None if no sets are requested."""
        if options.coverage is None:
            if options.joint:
                raise HTTPException(422, "joint: needs coverage, such as coverage=0.9")
            return None
        try:
            return self.inference.predictor.set_thresholds(options.coverage, joint=options.joint)
        except InputError as error:
            raise HTTPException(422, str(error)) from None

    def _refuse_if_busy(self) -> None:
        if self._pending >= self.limits.pending:
            raise busy()

    async def _read(self, data: bytes, with_preview: bool) -> DecodedImage:
        """Decode an image in parallel with others; large ones one at a time, to bound memory."""
        small_pixels = self.inference.small_pixels
        try:
            try:
                return await _in_thread(self._readers, self.inference.read, data, with_preview)
            except tf.errors.InvalidArgumentError as error:
                is_large = f"{OVER_LIMIT} {small_pixels}" in error_text(error)
                if not is_large or self.limits.pixels <= small_pixels:
                    raise
            if self._large_pending >= LARGE_PENDING:
                raise busy()
            self._large_pending += 1
            try:
                return await _in_thread(
                    self._large_reader, self.inference.read_large, data, with_preview
                )
            finally:
                self._large_pending -= 1
        except tf.errors.InvalidArgumentError as error:
            text = error_text(error, data)
            raise HTTPException(413 if OVER_LIMIT in text else 415, text) from None


async def _in_thread(executor: ThreadPoolExecutor, function: Callable, *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *args)


def _page(predictor: Predictor, name: str, limits: Limits, unavailable: Mapping[str, str]) -> str:
    return render(
        "app.html.j2",
        name=name,
        runtime=predictor.runtime,
        tasks=list(predictor.classes),
        size_px=predictor.size_px,
        limits={"upload_bytes": limits.upload.bytes, "pixels": limits.pixels},
        attention=unavailable.get("attention"),
        similar=unavailable.get("similar"),
        coverage=_shown_coverage(predictor),
    )


def build_app(
    predictor: Predictor,
    *,
    name: str,
    thresholds: Mapping[str, float],
    attention: Attention | str,
    similar: Similar | str,
    distance_limit: float | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        predictor: runs the model; used by one thread.
        name: name of the model, for display.
        thresholds: task -> the confidence below which a prediction is `uncertain`.
        attention: computes attention maps, or the reason why there are none; used by the same
            thread.
        similar: searches the training images, or the reason why there is no search; used by
            several threads.
        distance_limit: from `Predictor.distance_limit`.
        limits: of a request; None: the defaults.
        hosts: accepted values of the Host header, so that no other site's name can be pointed at
            the server (DNS rebinding); None: any.
    """
    limits = limits or Limits()
    inference = Inference(
        predictor,
        thresholds=thresholds,
        max_pixels=limits.pixels,
        attention=attention,
        similar=similar,
        distance_limit=distance_limit,
    )
    output = inference.warm_up()
    if output.embedding is None and not isinstance(similar, str):
        similar = f"{predictor.runtime}'s artifact has no embedding"
    features = {"attention": attention, "similar": similar}
    unavailable = {feature: why for feature, why in features.items() if isinstance(why, str)}
    service = _PredictionService(inference, limits, unavailable)
    page = _page(predictor, name, limits, unavailable)
    headers = {**HEADERS, "Content-Security-Policy": content_security_policy(page)}
    app = FastAPI(
        title=f"multitask: {name}",
        version=__version__,
        lifespan=service.lifespan,
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
    )
    app.add_middleware(Guard, headers=headers, hosts=hosts)
    _add_error_handlers(app, headers)
    _add_routes(app, service, page, Health(model=name, runtime=predictor.runtime))
    return app


def _shown_coverage(predictor: Predictor) -> float | None:
    """The coverage of the sets of classes that the page shows; None if the model promises none."""
    try:
        predictor.set_thresholds(HEADLINE)
    except InputError:
        return None
    return HEADLINE


def _add_error_handlers(app: FastAPI, headers: Mapping[str, str]) -> None:
    """Describe every error in one line of JSON."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(lines)}, 422)

    @app.exception_handler(500)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # FastAPI sends this response outside of the middleware that adds the headers.
        return JSONResponse(
            {"detail": "the server failed; its console shows the error"}, 500, dict(headers)
        )


def _add_routes(app: FastAPI, service: _PredictionService, page: str, status: Health) -> None:
    image_schema = {"schema": {"type": "string", "format": "binary"}}

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/healthz")
    async def health() -> Health:
        """Report that the server is running, with its model and its runtime."""
        return status

    @app.post(
        "/predict",
        responses={
            code: {"model": Problem, "description": text} for code, text in PROBLEMS.items()
        },
        openapi_extra={
            "requestBody": {
                "description": "the image file itself, detected by content: a JPEG, PNG, WebP, "
                "TIFF, GIF, BMP, JPEG 2000, AVIF or HEIC",
                "required": True,
                "content": dict.fromkeys(CONTENT_TYPES, image_schema),
            }
        },
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Prediction:
        """Predict every task for one image."""
        return await service.predict(request, options)
