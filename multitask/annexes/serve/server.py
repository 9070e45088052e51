"""Serves an export: from the options to a server that runs until it is stopped."""

import dataclasses
import gc
import ipaddress
import os
import socket
import sys
from typing import TYPE_CHECKING

from multitask.annexes.serve.options import LOOPBACK, ServeOptions
from multitask.errors import InputError
from multitask.startup import import_tensorflow

if TYPE_CHECKING:  # TensorFlow and FastAPI are imported after the socket is bound
    from fastapi import FastAPI

    from multitask.annexes.serve.app import Limits

HELD_BYTES = 512_000_000  # of all uploads together
GRACE_S = 10  # for requests in progress when the server is stopped
OTHER_FILES = 128  # open in addition to connections; about 15 were measured


def serve(options: ServeOptions) -> None:
    """Serve an export until stopped.

    Raises:
        InputError: the port is busy, the host is unknown, no model, or an option that the model
            does not support.
    """
    # Binding first reports a busy port before the model is loaded, which may take minutes.
    with _bound_socket(options) as bound:
        # TensorFlow on x86 keeps all memory that it ever allocated: after a few large images
        # several GB. With this setting it returns memory to the system.
        os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
        import_tensorflow()
        loopback = ipaddress.ip_address(bound.getsockname()[0]).is_loopback
        app, runtime = _build_app(options, loopback=loopback)
        if not loopback:
            print(
                f"--host={options.host}: everyone who can reach this machine can use the server; "
                "there is no login",
                file=sys.stderr,
            )
        _run(options, app, bound, f"{options.model} with {runtime}")


def _build_app(options: ServeOptions, *, loopback: bool) -> tuple["FastAPI", str]:
    """Return the application, and the library that runs its model."""
    from multitask.annexes.serve import neighbours
    from multitask.annexes.serve.app import MAX_BATCH, build_app
    from multitask.serving.predictor import load_export, read_export

    limits, folder = _limits(options), options.model
    model = load_export(folder, runtime=options.runtime, batch=MAX_BATCH)
    model = dataclasses.replace(model, calibrated=options.calibrated)
    app = build_app(
        model,
        name=read_export(folder)["spec"],
        thresholds=options.min_confidence.thresholds(model),
        attention=neighbours.load_attention(folder),
        similar=neighbours.similar_images(
            folder,
            workdir=options.workdir,
            data_dir=options.data_dir,
            allow_outside=options.allow_outside,
        ),
        distance_limit=model.distance_limit(options.max_unlike),
        limits=limits,
        hosts=(*LOOPBACK, options.host.lower()) if loopback else None,
    )
    return app, model.runtime


def _limits(options: ServeOptions) -> "Limits":
    from multitask.annexes.serve.app import Limits
    from multitask.annexes.serve.uploads import UploadLimits

    upload_bytes = int(options.max_upload_mb * 1e6)
    return Limits(
        upload=UploadLimits(
            bytes=upload_bytes,
            seconds=options.upload_timeout_s,
            bytes_per_s=1000 * options.min_upload_kb_s,
            held_bytes=max(HELD_BYTES, 2 * upload_bytes),
        ),
        pixels=int(options.max_megapixels * 1e6),
    )


def _run(options: ServeOptions, app: "FastAPI", bound: socket.socket, described: str) -> None:
    import uvicorn

    from multitask.annexes.serve import connections
    from multitask.annexes.serve.guard import HEADERS

    try:
        # From now on, requests wait and are not refused.
        bound.listen(connections.BACKLOG)
    except OSError as error:  # another server has taken the port in the meantime
        raise _taken(options, error) from None
    address = f"http://{options.address}:{bound.getsockname()[1]}"
    print(f"Serving {described} at {address} (Ctrl-C stops)", flush=True)
    limits = connections.ConnectionLimits(
        total=_max_connections(options.max_connections, connections.BACKLOG),
        per_address=options.max_connections_per_address,
        header_s=options.header_timeout_s,
        keep_alive_s=options.keep_alive_timeout_s,
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


def _bound_socket(options: ServeOptions) -> socket.socket:
    """Bind a socket that does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise InputError(f"{options.host!r}: {reason}", field="host") from None
    bound = socket.socket(family, kind, protocol)
    # Otherwise the port of a server that has just stopped stays busy for a minute.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _taken(options, error) from None
    return bound


def _taken(options: ServeOptions, error: OSError) -> InputError:
    reason = (error.strerror or str(error)).lower()
    return InputError(f"{options.host}:{options.port}: {reason}", field="port")
