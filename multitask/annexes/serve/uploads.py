"""Reads request bodies within limits of size, time, rate and memory."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect


@dataclass(frozen=True)
class UploadLimits:
    """Limits of an upload.

    Attributes:
        bytes: the largest body.
        seconds: the longest time for a body.
        bytes_per_s: the lowest rate, in every window of `window_s`, including the first.
        window_s: the time over which the rate is measured.
        held_bytes: the memory of all bodies together, at least `bytes`. When it is reached, the
            oldest upload in progress is aborted: its client is the slowest.
    """

    bytes: int = 20_000_000
    seconds: float = 60.0
    bytes_per_s: float = 4_000.0
    window_s: float = 10.0
    held_bytes: int = 512_000_000

    def __post_init__(self):
        if not 1 <= self.bytes <= self.held_bytes:
            raise ValueError(f"bytes: {self.bytes}, expected 1 to {self.held_bytes}")


class _Rate:
    """The latest chunks of an upload, only as many as the rate of one window needs.

    Attributes:
        until_s: when the rate falls below its limit, unless more bytes arrive.
    """

    def __init__(self, limits: UploadLimits, began_s: float):
        self._needed, self._window_s = limits.bytes_per_s * limits.window_s, limits.window_s
        self._chunks: collections.deque[tuple[float, int]] = collections.deque()
        self._bytes, self.until_s = 0, began_s + limits.window_s

    def add(self, now_s: float, size: int) -> None:
        """Count a chunk, which moves `until_s`."""
        self._chunks.append((now_s, size))
        self._bytes += size
        while len(self._chunks) > 1 and self._bytes - self._chunks[0][1] >= self._needed:
            self._bytes -= self._chunks.popleft()[1]
        if self._bytes >= self._needed:
            self.until_s = self._chunks[0][0] + self._window_s


@dataclass(eq=False)
class _Upload:
    deadline: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    size: int = 0
    aborted: bool = False


class Uploads:
    """Reads request bodies; for the coroutines of one event loop."""

    def __init__(self, limits: UploadLimits):
        self.limits = limits
        self._held_bytes = 0
        self._arriving: dict[_Upload, None] = {}  # oldest first

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read a request's body; its memory counts until the context is left.

        Raises:
            HTTPException: 408 for an upload that is too slow, stops, or is aborted by its client;
                413 for a body over the limit, which is not read further; 503 if the memory for
                bodies is used up.
        """
        upload = _Upload()
        try:
            yield await self._read(request, upload)
        finally:
            self._held_bytes -= upload.size

    async def _read(self, request: Request, upload: _Upload) -> bytes:
        limits, loop = self.limits, asyncio.get_running_loop()
        too_large = HTTPException(413, f"the file is larger than {limits.bytes / 1e6:g} MB")
        if int(request.headers.get("content-length", 0)) > limits.bytes:
            raise too_large
        until_s, chunks = loop.time() + limits.seconds, []
        rate = _Rate(limits, loop.time())
        self._arriving[upload] = None
        try:
            async with upload.deadline:
                upload.deadline.reschedule(min(until_s, rate.until_s))
                async for chunk in request.stream():
                    if upload.size + len(chunk) > limits.bytes:
                        raise too_large
                    self._hold(upload, len(chunk))
                    chunks.append(chunk)
                    rate.add(loop.time(), len(chunk))
                    if not upload.aborted:
                        upload.deadline.reschedule(min(until_s, rate.until_s))
        except TimeoutError:
            if upload.aborted:
                raise busy() from None
            if loop.time() >= until_s:
                raise HTTPException(
                    408, f"the upload took over {limits.seconds:g} seconds"
                ) from None
            line = f"the upload was slower than {limits.bytes_per_s / 1e3:g} kB/s"
            raise HTTPException(408, line) from None
        except ClientDisconnect:  # the client cannot read this
            raise HTTPException(408, "the client aborted the upload") from None
        finally:
            self._arriving.pop(upload, None)
        return b"".join(chunks)

    def _hold(self, upload: _Upload, size: int) -> None:
        """Count received bytes of an upload; abort older uploads if memory runs out."""
        while self._held_bytes + size > self.limits.held_bytes:
            slowest = next((other for other in self._arriving if other is not upload), None)
            if slowest is None:
                raise busy()
            del self._arriving[slowest]
            self._held_bytes -= slowest.size
            slowest.size, slowest.aborted = 0, True
            if not slowest.deadline.expired():
                slowest.deadline.reschedule(0)
        self._held_bytes += size
        upload.size += size


def busy() -> HTTPException:
    """Return the response to a request that exceeds the capacity."""
    return HTTPException(503, "busy; try again in a second", {"Retry-After": "1"})
