"""Security headers of all responses, and the check of the Host header."""

import base64
import collections
import hashlib
import re
from collections.abc import Mapping, Sequence

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

INLINE = re.compile(r"< (script | style) > (.*?) </ \1 >", re.DOTALL | re.VERBOSE)
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def content_security_policy(page: str) -> str:
    """Return the strictest Content-Security-Policy under which a page works.

    Args:
        page: HTML with inline scripts and styles, which are allowed by their SHA-256.
    """
    digests = collections.defaultdict(list)
    for tag, text in INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
        digests[tag].append(f"'sha256-{digest.decode()}'")
    inline = "; ".join(f"{tag}-src {' '.join(sources)}" for tag, sources in digests.items())
    return (
        f"default-src 'none'; {inline}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """Middleware: adds headers to every response and rejects requests for unknown hosts.

    Args:
        app: the application behind it.
        headers: of every response.
        hosts: accepted values of the Host header, without the port; None: any.
    """

    def __init__(self, app: ASGIApp, *, headers: Mapping[str, str], hosts: Sequence[str] | None):
        self.app, self.headers, self.hosts = app, headers, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        host = re.sub(r":\d+$", "", Request(scope).headers.get("host", "")).lower()
        app = self.app
        if self.hosts is not None and host not in self.hosts:
            app = JSONResponse({"detail": "Host: this server is not known by that name"}, 400)
        await app(scope, receive, send_guarded)
