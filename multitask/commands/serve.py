"""Answer pictures in a browser, and over HTTP, with an exported model.

  multitask serve --model=runs/first/export
  multitask serve --model=runs/first/export --workdir=runs/first --port=8080
  curl -H 'Content-Type: image/jpeg' --data-binary @PICTURE http://127.0.0.1:8000/predict

The page takes a painting that is dropped, chosen or pasted. Pictures are answered in memory and
never written. /openapi.json describes POST /predict. Ctrl-C stops. Needs the extra `serve`."""

import dataclasses
import importlib.util
import ipaddress
import socket
import sys
from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.model_flags import confidence, define_model_flags, thresholds_of
from multitask.spec import InputError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD_MB = 2000  # held in memory, some at once
GRACE_S = 10  # for what is being answered when the server is stopped


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
    flags.DEFINE_string("host", LOOPBACK[1], "address to listen on; nobody has to log in", **to)
    flags.DEFINE_integer(
        "port", 8000, "port to listen on; 0: any", lower_bound=0, upper_bound=65535, **to
    )
    define_model_flags(values)
    flags.DEFINE_float("max_upload_mb", 20, "size of a picture's file, at most", **to)
    flags.DEFINE_float(
        "max_megapixels",
        100,
        "pixels of a picture, at most; a million take up to 11 MB while it is read",
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
            raise InputError("multitask serve: needs an extra: pip install 'multitask[serve]'")
    if not 1e-6 <= values.max_upload_mb <= MAX_UPLOAD_MB:
        raise InputError(
            f"--max_upload_mb: {values.max_upload_mb:g}: expected a number above 0 and up to "
            f"{MAX_UPLOAD_MB}"
        )

    # Before the minutes that a model may take.
    listening = _bound(values)
    with listening:
        import_tensorflow()
        import uvicorn

        from multitask.data.decode import MAX_PIXELS
        from multitask.serving import app, beside, predictor

        if not 1e-6 <= values.max_megapixels <= MAX_PIXELS / 1e6:
            raise InputError(
                f"--max_megapixels: {values.max_megapixels:g}: expected a number above 0 and up to "
                f"{MAX_PIXELS // 10**6}, which is what can be decoded"
            )
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
            ),
            limits=app.Limits(
                upload_bytes=int(values.max_upload_mb * 1e6),
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
            listening.listen()  # from here on requests wait and are not refused
        except OSError as error:  # another server was quicker
            raise _taken(values, error) from None
        host = f"[{values.host}]" if ":" in values.host else values.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        print(f"Serving {folder} with {model.runtime} at {address} (Ctrl-C stops)", flush=True)
        config = uvicorn.Config(
            built,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        uvicorn.Server(config).run(sockets=[listening])


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
