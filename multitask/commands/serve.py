"""Serve an exported model: a web page, and predictions over HTTP.

  multitask serve --model=runs/first/export
  multitask serve --model=runs/first/export --workdir=runs/first --port=8080
  curl -H 'Content-Type: image/jpeg' --data-binary @IMAGE http://127.0.0.1:8000/predict

On the page, a painting can be dropped, chosen or pasted. Images stay in memory and are never
written to disk. /openapi.json describes POST /predict. Ctrl-C stops. Needs the extra `serve`.
"""

import dataclasses
import gc
import importlib.util
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from multitask.commands.model_flags import (
    confidence,
    define_model_flags,
    max_distance_of,
    thresholds_of,
)
from multitask.commands.spec_flags import define_allow_outside
from multitask.spec import InputError, install
from multitask.startup import import_tensorflow

if TYPE_CHECKING:  # flags do not wait for TensorFlow
    from fastapi import FastAPI

    from multitask.annexes.serve.app import Limits
    from multitask.serving.predictor import Predictor

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD_MB = 2000  # uploads are held in memory
HELD_BYTES = 512_000_000  # of all uploads together
GRACE_S = 10  # for requests in progress when the server is stopped
MINIMA = {
    "upload_timeout_s": 0.1,
    "min_upload_kb_s": 0,
    "header_timeout_s": 0.1,
    "keep_alive_timeout_s": 0.1,
}
OTHER_FILES = 128  # open in addition to connections; about 15 were measured


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    to = {"flag_values": values}
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", **to)
    flags.DEFINE_string(
        "workdir",
        None,
        "the run that was exported, for similar images; its images are embedded once, which takes "
        "minutes. Not needed if the export lies in its run and the embeddings exist",
        **to,
    )
    flags.DEFINE_string("data_dir", None, "new folder of training images that were moved", **to)
    define_allow_outside(values)
    flags.DEFINE_string("host", LOOPBACK[1], "address to listen on; there is no login", **to)
    flags.DEFINE_integer(
        "port", 8000, "port to listen on; 0: any", lower_bound=0, upper_bound=65535, **to
    )
    define_model_flags(values)
    _define_limits(values)


def _define_limits(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_float("max_upload_mb", 20, "largest image file, in MB", **to)
    flags.DEFINE_float(
        "max_megapixels",
        100,
        "largest image, in megapixels; decoding takes up to 11 MB for each. A side is limited to "
        "65,535 pixels, and to 200 times the other side",
        **to,
    )
    flags.DEFINE_float("upload_timeout_s", 60, "longest upload of an image, in seconds", **to)
    flags.DEFINE_float(
        "min_upload_kb_s",
        4,
        "lowest upload rate in kB/s, over 10 seconds; slower uploads are aborted",
        **to,
    )
    flags.DEFINE_float(
        "header_timeout_s",
        10,
        "longest time for a request's head, in seconds, from the connection or its first byte",
        **to,
    )
    flags.DEFINE_float(
        "keep_alive_timeout_s",
        5,
        "an idle connection is closed after this many seconds",
        **to,
    )
    flags.DEFINE_integer(
        "max_connections",
        1000,
        "most connections at once; for a further one, the connection that has been idle longest is "
        "closed. The system's limit of open files may lower it",
        lower_bound=1,
        **to,
    )
    flags.DEFINE_integer(
        "max_connections_per_address",
        128,
        "most connections of one IPv4 address or IPv6 /64: a browser opens up to 6, a reverse "
        "proxy one for each concurrent request",
        lower_bound=1,
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Serve until stopped."""
    min_confidence = _check(values, left)
    # Binding first reports a busy port before the model is loaded, which may take minutes.
    bound = _bound_socket(values)
    with bound:
        # TensorFlow on x86 keeps all memory that it ever allocated: after a few large images
        # several GB. With this setting it returns memory to the system.
        os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
        import_tensorflow()
        from multitask.annexes.serve.app import MAX_BATCH
        from multitask.serving import predictor

        limits = _limits(values)
        folder = Path(values.model)
        model = predictor.load_export(folder, runtime=values.runtime, batch=MAX_BATCH)
        model = dataclasses.replace(model, calibrated=values.calibrated)
        thresholds = thresholds_of(model, min_confidence)
        loopback = ipaddress.ip_address(bound.getsockname()[0]).is_loopback
        app = _build_app(values, folder, model, thresholds, limits, loopback=loopback)
        if not loopback:
            print(
                f"--host={values.host}: everyone who can reach this machine can use the server; "
                "there is no login",
                file=sys.stderr,
            )
        _run(values, app, bound, f"{folder} with {model.runtime}")


def _check(values: flags.FlagValues, left: list[str]) -> tuple[bool, float]:
    """Check the flags that need no TensorFlow, and return the parsed --min_confidence."""
    if left:
        raise InputError(f"multitask serve: takes flags only, not {left[0]!r}")
    if not values.model:
        raise InputError("multitask serve: --model is needed; --help lists the flags")
    min_confidence = confidence(values.min_confidence)
    for module in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"multitask serve: needs an extra: {install('serve')}")
    if not 1e-6 <= values.max_upload_mb <= MAX_UPLOAD_MB:
        raise InputError(
            f"--max_upload_mb: {values.max_upload_mb:g}: expected a number above 0 and up to "
            f"{MAX_UPLOAD_MB}"
        )
    for flag, bound in MINIMA.items():
        if not bound <= values[flag].value <= 3600:
            raise InputError(f"--{flag}: {values[flag].value:g}: expected {bound:g} to 3600")
    return min_confidence


def _limits(values: flags.FlagValues) -> "Limits":
    from multitask.annexes.serve.app import Limits
    from multitask.annexes.serve.uploads import UploadLimits
    from multitask.data.image_limits import MAX_PIXELS

    if not 1e-6 <= values.max_megapixels <= MAX_PIXELS / 1e6:
        raise InputError(
            f"--max_megapixels: {values.max_megapixels:g}: expected a number above 0 and up to "
            f"{MAX_PIXELS // 10**6}, the limit of the decoder"
        )
    upload_bytes = int(values.max_upload_mb * 1e6)
    return Limits(
        upload=UploadLimits(
            bytes=upload_bytes,
            seconds=values.upload_timeout_s,
            bytes_per_s=1000 * values.min_upload_kb_s,
            held_bytes=max(HELD_BYTES, 2 * upload_bytes),
        ),
        pixels=int(values.max_megapixels * 1e6),
    )


def _build_app(
    values: flags.FlagValues,
    folder: Path,
    model: "Predictor",
    thresholds: dict[str, float],
    limits: "Limits",
    *,
    loopback: bool,
) -> "FastAPI":
    from multitask.annexes.serve import neighbours
    from multitask.annexes.serve.app import build_app
    from multitask.serving.predictor import read_export

    return build_app(
        model,
        name=read_export(folder)["spec"],
        thresholds=thresholds,
        attention=neighbours.load_attention(folder),
        similar=neighbours.similar_images(
            folder,
            workdir=Path(values.workdir) if values.workdir else None,
            data_dir=Path(values.data_dir) if values.data_dir else None,
            allow_outside=values.allow_outside,
        ),
        max_distance=max_distance_of(values, model),
        limits=limits,
        hosts=(*LOOPBACK, values.host.lower()) if loopback else None,
    )


def _run(values: flags.FlagValues, app: "FastAPI", bound: socket.socket, described: str) -> None:
    import uvicorn

    from multitask.annexes.serve import connections
    from multitask.annexes.serve.guard import HEADERS

    try:
        # From now on, requests wait and are not refused.
        bound.listen(connections.BACKLOG)
    except OSError as error:  # another server has taken the port in the meantime
        raise _taken(values, error) from None
    host = f"[{values.host}]" if ":" in values.host else values.host
    address = f"http://{host}:{bound.getsockname()[1]}"
    print(f"Serving {described} at {address} (Ctrl-C stops)", flush=True)
    limits = connections.ConnectionLimits(
        total=_max_connections(values.max_connections, connections.BACKLOG),
        per_address=values.max_connections_per_address,
        header_s=values.header_timeout_s,
        keep_alive_s=values.keep_alive_timeout_s,
    )
    config = uvicorn.Config(
        app,
        http=connections.Connections(limits, headers=HEADERS),
        ws="none",
        backlog=connections.BACKLOG,
        log_level="error",  # every malformed request causes a warning, and anyone can send them
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    # Otherwise garbage collections walk all objects that TensorFlow has built, and the server
    # pauses for seconds.
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run(sockets=[bound])


def _max_connections(wanted: int, backlog: int) -> int:
    """Return how many connections the process can have, at most `wanted`; raise its limit for them.

    A server without free file descriptors cannot answer anyone.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return wanted
    # asyncio accepts a whole backlog before any limit is checked; another one may be unread.
    others = OTHER_FILES + 2 * backlog
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + others:
        soft = wanted + others if hard == resource.RLIM_INFINITY else min(wanted + others, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - others)
    if room < 1:
        raise InputError(
            f"multitask serve: the system limits a process to {soft} open files; at least "
            f"{others + 1} are needed (ulimit -n)"
        )
    if room < wanted:
        print(
            f"--max_connections={wanted}: {room} are used, as the system limits a process to "
            f"{soft} open files (ulimit -n)",
            file=sys.stderr,
        )
    return room


def _bound_socket(values: flags.FlagValues) -> socket.socket:
    """Bind a socket that does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            values.host, values.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise InputError(f"--host: {values.host!r}: {reason}") from None
    bound = socket.socket(family, kind, protocol)
    # Otherwise the port of a server that has just stopped stays busy for a minute.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _taken(values, error) from None
    return bound


def _taken(values: flags.FlagValues, error: OSError) -> InputError:
    return InputError(
        f"--port: {values.host}:{values.port}: {(error.strerror or str(error)).lower()}"
    )
