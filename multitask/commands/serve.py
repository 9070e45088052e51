"""Serve an exported model: a web page, and predictions over HTTP.

  multitask serve --model=runs/first/export
  multitask serve --model=runs/first/export --workdir=runs/first --port=8080
  curl -H 'Content-Type: image/jpeg' --data-binary @IMAGE http://127.0.0.1:8000/predict

On the page, a painting can be dropped, chosen or pasted. Images stay in memory and are never
written to disk. /openapi.json describes POST /predict. Ctrl-C stops. Needs the extra `serve`.
"""

from pathlib import Path

from absl import flags

from multitask.commands.model_flags import define_model_flags, model_options
from multitask.commands.spec_flags import check_needed, define_allow_outside


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
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on; there is no login", **to)
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
    check_needed(values, left, "serve", ("model",))
    from multitask.annexes.serve.options import ServeOptions
    from multitask.annexes.serve.server import serve

    options = ServeOptions(
        model=Path(values.model),
        **model_options(values),
        host=values.host,
        port=values.port,
        max_upload_mb=values.max_upload_mb,
        max_megapixels=values.max_megapixels,
        upload_timeout_s=values.upload_timeout_s,
        min_upload_kb_s=values.min_upload_kb_s,
        header_timeout_s=values.header_timeout_s,
        keep_alive_timeout_s=values.keep_alive_timeout_s,
        max_connections=values.max_connections,
        max_connections_per_address=values.max_connections_per_address,
    )
    serve(options)
