"""Answer pictures in a browser, and over HTTP, with an exported model.

  multitask serve --model=runs/first/export
  multitask serve --model=runs/first/export --workdir=runs/first --port=8080
  curl -H 'Content-Type: image/jpeg' --data-binary @PICTURE http://127.0.0.1:8000/predict

The page takes a painting that is dropped, chosen or pasted. Pictures are answered in memory and
never written. /openapi.json describes POST /predict. Ctrl-C stops. Needs the extra `serve`."""

import dataclasses
import gc
import importlib.util
import ipaddress
import os
import socket
import sys
from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.model_flags import confidence, define_model_flags, thresholds_of
from multitask.commands.spec_flags import define_allow_outside
from multitask.spec import InputError, install

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD_MB = 2000  # held in memory, some at once
HELD_BYTES = 512_000_000  # of all uploads at once
GRACE_S = 10  # for what is being answered when the server is stopped
LEAST = {
    "upload_timeout_s": 0.1,
    "min_upload_kb_s": 0,
    "header_timeout_s": 0.1,
    "keep_alive_timeout_s": 0.1,
}
OTHER_FILES = 128  # that the process has open beside its connections; about 15 were seen


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", **to)
    flags.DEFINE_string(
        "workdir",
        None,
        "the run that the export was made of, for similar pictures; they are embedded once, which "
        "takes minutes. Not needed where the export lies in its run and that is done",
        **to,
    )
    flags.DEFINE_string("data_dir", None, "where the training pictures have moved to", **to)
    define_allow_outside(values)
    flags.DEFINE_string("host", LOOPBACK[1], "address to listen on; nobody has to log in", **to)
    flags.DEFINE_integer(
        "port", 8000, "port to listen on; 0: any", lower_bound=0, upper_bound=65535, **to
    )
    define_model_flags(values)
    flags.DEFINE_float("max_upload_mb", 20, "size of a picture's file, at most", **to)
    flags.DEFINE_float(
        "max_megapixels",
        100,
        "pixels of a picture, at most; a million take up to 11 MB while it is read. One side may "
        "have 65,535, and 200 times as many as the other",
        **to,
    )
    flags.DEFINE_float("upload_timeout_s", 60, "for a picture's upload, in seconds", **to)
    flags.DEFINE_float(
        "min_upload_kb_s",
        4,
        "an upload that brings less in 10 seconds is cut off: kB a second",
        **to,
    )
    flags.DEFINE_float(
        "header_timeout_s",
        10,
        "for the head of a request, in seconds: from the connection, or from its first byte",
        **to,
    )
    flags.DEFINE_float(
        "keep_alive_timeout_s",
        5,
        "a connection without a request is closed after this time, in seconds",
        **to,
    )
    flags.DEFINE_integer(
        "max_connections",
        1000,
        "connections at once; for one more, the one that has been idle longest is closed. At most "
        "what the system lets a process open",
        lower_bound=1,
        **to,
    )
    flags.DEFINE_integer(
        "max_connections_per_address",
        128,
        "of these, connections of one IPv4 address or IPv6 /64: a browser opens up to 6, a "
        "reverse proxy one for each request at once",
        lower_bound=1,
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    if left:
        raise InputError(f"multitask serve: takes flags only, not {left[0]!r}")
    if not values.model:
        raise InputError("multitask serve: --model is needed; --help lists the flags")
    least = confidence(values.min_confidence)
    for module in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"multitask serve: needs an extra: {install('serve')}")
    if not 1e-6 <= values.max_upload_mb <= MAX_UPLOAD_MB:
        raise InputError(
            f"--max_upload_mb: {values.max_upload_mb:g}: expected a number above 0 and up to "
            f"{MAX_UPLOAD_MB}"
        )
    for flag, bound in LEAST.items():
        if not bound <= values[flag].value <= 3600:
            raise InputError(f"--{flag}: {values[flag].value:g}: expected {bound:g} to 3600")

    # Before the minutes that a model may take.
    listening = _bound(values)
    with listening:
        # TensorFlow on x86 keeps all memory that it ever had, for itself: after a few large images
        # some GB. With this setting it comes from the system, and goes back.
        os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
        import_tensorflow()
        import uvicorn

        from multitask.data.decode import MAX_PIXELS
        from multitask.serving import app, beside, connections, predictor, uploads

        if not 1e-6 <= values.max_megapixels <= MAX_PIXELS / 1e6:
            raise InputError(
                f"--max_megapixels: {values.max_megapixels:g}: expected a number above 0 and up to "
                f"{MAX_PIXELS // 10**6}, which is what can be decoded"
            )
        upload_bytes = int(values.max_upload_mb * 1e6)
        folder = Path(values.model)
        model = predictor.load_export(folder, runtime=values.runtime, batch=app.MAX_BATCH)
        model = dataclasses.replace(model, calibrated=values.calibrated)
        loopback = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
        built = app.build_app(
            model,
            name=predictor.read_export(folder)["spec"],
            thresholds=thresholds_of(model, least),
            attention=beside.load_attention(folder),
            similar=beside.similar_pictures(
                folder,
                workdir=Path(values.workdir) if values.workdir else None,
                data_dir=Path(values.data_dir) if values.data_dir else None,
                allow_outside=values.allow_outside,
            ),
            limits=app.Limits(
                upload=uploads.UploadLimits(
                    bytes=upload_bytes,
                    seconds=values.upload_timeout_s,
                    bytes_per_s=1000 * values.min_upload_kb_s,
                    held_bytes=max(HELD_BYTES, 2 * upload_bytes),
                ),
                pixels=int(values.max_megapixels * 1e6),
            ),
            hosts=(*LOOPBACK, values.host.lower()) if loopback else None,
        )
        if not loopback:
            print(
                f"--host={values.host}: whoever reaches this machine can ask; there is no log-in",
                file=sys.stderr,
            )
        try:
            # From here on requests wait and are not refused.
            listening.listen(connections.BACKLOG)
        except OSError as error:  # another server was quicker
            raise _taken(values, error) from None
        host = f"[{values.host}]" if ":" in values.host else values.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        print(f"Serving {folder} with {model.runtime} at {address} (Ctrl-C stops)", flush=True)
        config = uvicorn.Config(
            built,
            http=connections.Connections(
                connections.ConnectionLimits(
                    total=_room_for(values.max_connections, connections.BACKLOG),
                    per_address=values.max_connections_per_address,
                    header_s=values.header_timeout_s,
                    keep_alive_s=values.keep_alive_timeout_s,
                ),
                headers=app.HEADERS,
            ),
            ws="none",
            backlog=connections.BACKLOG,
            log_level="error",  # a warning is for each malformed request, and anyone can send them
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        # Else a garbage collection now and then walks all that TensorFlow has built, and for the
        # seconds that takes nobody is answered.
        gc.collect()
        gc.freeze()
        uvicorn.Server(config).run(sockets=[listening])


def _room_for(wanted: int, backlog: int) -> int:
    """How many connections the process may have, at most `wanted`; raises its limit for them.

    A server that runs out of file descriptors answers nobody.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return wanted
    # asyncio accepts a backlog at once, before any bound is looked at; another may be unread.
    others = OTHER_FILES + 2 * backlog
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + others:
        soft = wanted + others if hard == resource.RLIM_INFINITY else min(wanted + others, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - others)
    if room < 1:
        raise InputError(
            f"multitask serve: the system lets a process open {soft} files; at least {others + 1} "
            "are needed (ulimit -n)"
        )
    if room < wanted:
        print(
            f"--max_connections={wanted}: {room} are used, as the system lets a process open "
            f"{soft} files (ulimit -n)",
            file=sys.stderr,
        )
    return room


def _bound(values: flags.FlagValues) -> socket.socket:
    """A socket that has the address, and does not answer yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            values.host, values.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise InputError(f"--host: {values.host!r}: {reason}") from None
    bound = socket.socket(family, kind, protocol)
    # Else the port of a server that has just stopped is taken for a minute.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _taken(values, error) from None
    return bound


def _taken(values: flags.FlagValues, error: OSError) -> InputError:
    return InputError(f"--port: {values.host}:{values.port}: {error.strerror.lower()}")
