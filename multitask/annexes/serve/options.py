"""The options of the server, checked before TensorFlow is imported and the model is loaded."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from multitask.data.image_limits import MAX_PIXELS
from multitask.errors import InputError, install
from multitask.serving.rules import MinConfidence

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD_MB = 2000  # uploads are held in memory
MINIMA = {
    "upload_timeout_s": 0.1,
    "min_upload_kb_s": 0,
    "header_timeout_s": 0.1,
    "keep_alive_timeout_s": 0.1,
}
LARGEST = 3600  # of these


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The model to serve, the address, and the limits.

    Attributes:
        model: folder of an export.
        workdir: the run that was exported; None: the parent folder of the export, if it is a run.
        data_dir: the new folder of training images that were moved.
        allow_outside: as in `open_run`.
        host: address to listen on.
        port: port to listen on; 0: any.
        runtime: library that runs the export; `auto`: the fastest.
        min_confidence: a lower confidence makes an answer `uncertain`.
        max_unlike: share of the validation images that would be not like the training images; None:
            the usual one.
        calibrated: whether probabilities are scaled by the temperature.
        max_upload_mb: the largest image file.
        max_megapixels: the largest image.
        upload_timeout_s: the longest upload of an image.
        min_upload_kb_s: the lowest upload rate.
        header_timeout_s: the longest time for a request's head.
        keep_alive_timeout_s: time after which an idle connection is closed.
        max_connections: connections at once.
        max_connections_per_address: connections at once of one client.

    Raises:
        InputError: an option is wrong, or the extra `serve` is not installed.
    """

    model: Path
    workdir: Path | None
    data_dir: Path | None
    allow_outside: bool
    host: str
    port: int
    runtime: str
    min_confidence: MinConfidence
    max_unlike: float | None
    calibrated: bool
    max_upload_mb: float
    max_megapixels: float
    upload_timeout_s: float
    min_upload_kb_s: float
    header_timeout_s: float
    keep_alive_timeout_s: float
    max_connections: int
    max_connections_per_address: int

    def __post_init__(self):
        for module in ("fastapi", "uvicorn"):
            if importlib.util.find_spec(module) is None:
                raise InputError(f"multitask serve: needs an extra: {install('serve')}")
        if not 1e-6 <= self.max_upload_mb <= MAX_UPLOAD_MB:
            raise InputError(
                f"{self.max_upload_mb:g}: expected a number above 0 and up to {MAX_UPLOAD_MB}",
                field="max_upload_mb",
            )
        for name, least in MINIMA.items():
            value = getattr(self, name)
            if not least <= value <= LARGEST:
                raise InputError(f"{value:g}: expected {least:g} to {LARGEST}", field=name)
        if not 1e-6 <= self.max_megapixels <= MAX_PIXELS / 1e6:
            raise InputError(
                f"{self.max_megapixels:g}: expected a number above 0 and up to "
                f"{MAX_PIXELS // 10**6}, the limit of the decoder",
                field="max_megapixels",
            )

    @property
    def address(self) -> str:
        """The host as in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host
