"""Which connections the server keeps, for how long, and which requests it reads.

uvicorn has a timeout between two requests of a connection, and no other: not for a client that
connects and sends nothing, that sends its request a byte at a time, or that does not read its
response. It has no bound on the connections of one address, and accepts until the process has no
file descriptor left. This module adds both to uvicorn's own HTTP/1.1 protocol.

It also refuses what one HTTP parser reads differently from another, so that no request can be
smuggled past a proxy in front. No server offers that as a setting. Measured with uvicorn 0.54:
h11 0.16 accepts bare line feeds, folded headers, and Content-Length beside Transfer-Encoding;
httptools 0.9 accepts HTTP/0.9, two Hosts, codings other than chunked, and a head of any size.
hypercorn has h11's gaps; granian accepts bare line feeds, two Hosts, and both lengths.
Most is refused by h11, which uvicorn always installs; the rest is here.

Private names, each used in this file only, whose change tests/serving/test_connections.py shows:
uvicorn's H11Protocol (its attributes conn, cycle, transport, flow, and its methods), h11's
ReceiveBuffer and Connection._receive_buffer.
"""

import asyncio
import collections
import ipaddress
import itertools
import json
import select
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_BYTES, HEAD_LINES = 16_384, 100  # of a request; browsers send below 2,000 bytes, 20 lines
VERSIONS = (b"1.0", b"1.1")
# Connections that may wait to be accepted; asyncio accepts all of them at once.
BACKLOG = 256
# Connections that are considered for giving way; more would cost time at each new one.
LOOK_AT = 32


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and how long each may wait for its client.

    Attributes:
        total: connections at once.
        per_address: connections at once of one client: an IPv4 address, or a /64 of IPv6, which is
            what one customer has. Where a bound is reached, a connection that waits for its client
            gives way to the new one: first those without any request yet, and of these the one
            that has waited longest. Only where all have a request in progress is the new one
            refused (503). At most BACKLOG more stay until their first bytes are read.
        header_s: for a request's head, from the connection or from its first byte; and for what is
            left of a body whose request is already answered.
        keep_alive_s: between a response and the next request's first byte.
        response_s: for a client that does not read its response.
    """

    total: int = 1000
    per_address: int = 128
    header_s: float = 10.0
    keep_alive_s: float = 5.0
    response_s: float = 30.0


# === What is read as a request ===


class _StrictBuffer(ReceiveBuffer):
    """h11's buffer, which also takes a bare LF for the end of a line, and unfolds folded lines."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a request's head, or of the trailers of a chunked body."""
        before = bytes(self)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        head = before[: len(before) - len(self)]
        if len(head) > HEAD_BYTES or head.count(b"\n") > HEAD_LINES + 2:
            raise h11.LocalProtocolError("the request's head is too large", 431)
        if head.count(b"\n") != head.count(b"\r\n"):
            raise h11.LocalProtocolError("a line ends in a bare line feed")
        if any(line[:1] in (b" ", b"\t") for line in lines):
            raise h11.LocalProtocolError("a header is folded over two lines")
        lengths = [line for line in lines if line[:15].lower() == b"content-length:"]
        if len(lengths) > 1 or b"," in b"".join(lengths):  # h11 takes equal ones for one
            raise h11.LocalProtocolError("more than one Content-Length")
        return lines


class _StrictConnection(h11.Connection):
    """h11's parser without what proxies and servers are known to read in different ways.

    Attributes:
        refusal: why the last bytes were no request; None while all is well.
    """

    def __init__(self):
        super().__init__(h11.SERVER, HEAD_BYTES)
        self._receive_buffer = _StrictBuffer()
        self.refusal: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_request(event)
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event


def _check_request(request: h11.Request) -> None:
    """Raises h11.RemoteProtocolError for what h11 lets pass."""
    names = collections.Counter(name for name, _ in request.headers)
    if request.http_version not in VERSIONS:
        raise h11.RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
    if not request.target.startswith(b"/"):
        # An absolute target names a host beside the one that Host names.
        raise h11.RemoteProtocolError("the request's target is no path")
    if names[b"transfer-encoding"] and names[b"content-length"]:
        raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length")
    if names[b"transfer-encoding"] and request.http_version != b"1.1":
        raise h11.RemoteProtocolError("Transfer-Encoding needs HTTP/1.1")


# === Who is connected ===


def address_key(host: str) -> bytes:
    """What connections are counted by: an IPv4 address, or the /64 of an IPv6 one."""
    address = ipaddress.ip_address(host)
    if address.version == 6:
        if address.ipv4_mapped is None:
            return address.packed[:8]
        address = address.ipv4_mapped  # a client of a socket that has both
    return address.packed


class _Group:
    """Connections that a bound is for: those of one address, or all of them."""

    def __init__(self, most: int):
        self.most = most
        self.members: set[Connection] = set()
        # Those that wait for their clients, the one that has waited longest first; apart, those
        # that have had a response, which others give way for.
        self.strangers: dict[Connection, None] = {}
        self.served: dict[Connection, None] = {}

    def has_room(self) -> bool:
        """Whether one more may come; another gives way if it must.

        Those whose bytes are still to be read are let stay, as they may be requests: `trim` decides
        when they are read. The connections of a busy moment are accepted all at once.
        """
        if len(self.members) < self.most or self._give_way():
            return True
        return bool(self.strangers or self.served) and len(self.members) < self.most + BACKLOG

    def trim(self) -> None:
        while len(self.members) > self.most and self._give_way():
            pass

    def _give_way(self) -> bool:
        for connection in itertools.islice(itertools.chain(self.strangers, self.served), LOOK_AT):
            if not connection.has_input():
                connection.give_way()
                return True
        return False


class Connections:
    """All connections of a server; called it makes the next, as uvicorn's `http` is.

    Args:
        limits: of the connections.
        headers: of the responses to what is no request; the application sends all others.
    """

    def __init__(self, limits: ConnectionLimits, *, headers: Mapping[str, str] | None = None):
        self.limits, self.headers = limits, headers or {}
        self.all = _Group(limits.total)
        self._of: dict[bytes, _Group] = {}

    def __call__(self, **of_uvicorn) -> "Connection":
        return Connection(self, **of_uvicorn)

    def enter(self, connection: "Connection") -> bool:
        """Whether the connection may stay."""
        of_address = self._of.get(connection.key) or _Group(self.limits.per_address)
        if not (of_address.has_room() and self.all.has_room()):
            return False
        # The address's last connection may have given way.
        self._of[connection.key] = of_address
        for group in (of_address, self.all):
            group.members.add(connection)
        return True

    def leave(self, connection: "Connection") -> None:
        of_address = self._of.get(connection.key)
        for group in (of_address, self.all) if of_address else (self.all,):
            group.members.discard(connection)
            group.strangers.pop(connection, None)
            group.served.pop(connection, None)
        if of_address and not of_address.members:
            del self._of[connection.key]

    def trim(self, connection: "Connection") -> None:
        """Keep to the bounds, after bytes of a connection have been read."""
        if connection in self.all.members:
            self._of[connection.key].trim()
            self.all.trim()

    def set_waiting(self, connection: "Connection", waits: bool) -> None:
        """Whether the server waits for the client, and not the client for the server."""
        if connection not in self.all.members:
            return
        for group in (self._of[connection.key], self.all):
            if not waits:
                group.strangers.pop(connection, None)
                group.served.pop(connection, None)
            elif connection.cycle is None:
                group.strangers.setdefault(connection)
            else:
                group.served.setdefault(connection)


# === One connection ===

# What a connection is at. A request in progress has no deadline here: the application has its own.
HEAD, REQUEST, IDLE, REST, CLOSING = "head", "request", "idle", "rest", "closing"


class Connection(H11Protocol):
    """uvicorn's protocol with a deadline for each wait for the client."""

    def __init__(self, connections: Connections, **of_uvicorn):
        super().__init__(**of_uvicorn)
        limits = connections.limits
        self.conn = _StrictConnection()
        self.register = connections
        self.seconds = {
            HEAD: limits.header_s,
            IDLE: limits.keep_alive_s,
            REST: limits.header_s,
            CLOSING: limits.response_s,
        }
        self.key = b""
        self.state = ""
        self.refused = False
        self.deadline: asyncio.TimerHandle | None = None
        self.unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if self.client is None:  # gone already
            transport.abort()
            return
        self.key = address_key(self.client[0])
        if self.register.enter(self):
            self._watch()
        else:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.register.leave(self)
        for timer in (self.deadline, self.unread):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.refused:
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()
        self.register.trim(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        if self.state == REST:
            self.transport.close()
        elif not self.transport.is_closing():
            super().shutdown()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread = self.loop.call_later(self.seconds[CLOSING], self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread is not None:
            self.unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing: uvicorn's timer is not set again after the rest of a body; `_watch` does it."""

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no request; here with its reason, in JSON as all others."""
        why = self.conn.refusal
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = HTTPStatus(why.error_status_hint)
            self._refuse(status, f"the request is not valid HTTP: {status.phrase.lower()}")
        else:  # a response is under way; there is no place for another
            self.transport.abort()

    def has_input(self) -> bool:
        """Whether bytes of the client wait to be read: many may connect before the loop reads."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def give_way(self) -> None:
        """Another connection needs the place."""
        self.register.leave(self)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Set the deadline of what the connection is at; that of a state begins with the state."""
        if self.transport.is_closing():
            state = CLOSING
        elif self.cycle is not None and not self.cycle.response_complete:
            state = REQUEST
        elif self.refused or self.conn.their_state is h11.SEND_BODY:
            state = REST
        elif self.cycle is None or self.conn.trailing_data[0]:
            state = HEAD
        else:
            state = IDLE
        if state == self.state:
            return
        self.state = state
        self.register.set_waiting(self, state != REQUEST)
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if state in self.seconds:
            self.deadline = self.loop.call_later(self.seconds[state], self._cut)

    def _cut(self) -> None:
        """The client has had its time."""
        if self.state == HEAD and self.conn.trailing_data[0]:
            self._answer(HTTPStatus.REQUEST_TIMEOUT, "the request's head took too long")
        if self.state == CLOSING:
            self.transport.abort()
        else:
            self.transport.close()
            self._watch()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer, and read nothing more.

        What still comes is thrown away for a while: closing at once would reset the connection,
        and the client would not see the answer.
        """
        self.refused = True
        self._answer(status, detail)
        if self.cycle is not None:  # of a request whose body went wrong
            self.cycle.disconnected = self.cycle.response_complete = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._watch()

    def _answer(self, status: HTTPStatus, detail: str) -> None:
        body = json.dumps({"detail": detail}).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **({"Retry-After": "1"} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}),
            **self.register.headers,
        }
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *map(": ".join, headers.items())]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
