"""Limits and timeouts of connections, and strict parsing of requests.

uvicorn has one timeout, between two requests of a connection. It has none for a client that
connects and sends nothing, that sends its request a byte at a time, or that does not read its
response. It has no limit on the connections of one address, and accepts connections until the
process has no file descriptor left. This module adds both to uvicorn's HTTP/1.1 protocol.

It also rejects requests that HTTP parsers read in different ways, so that no request can be
smuggled past a proxy. No server offers that as a setting. Measured with uvicorn 0.54:
h11 0.16 accepts bare line feeds, folded headers, and Content-Length with Transfer-Encoding;
httptools 0.9 accepts HTTP/0.9, two Hosts, codings other than chunked, and a head of any size.
hypercorn has h11's gaps; granian accepts bare line feeds, two Hosts, and both lengths.
h11, which uvicorn always installs, rejects most of these; this module rejects the rest.

Private names are used in this file only; tests/annexes/serve/test_connections.py detects when they
change: uvicorn's H11Protocol (its attributes conn, cycle, transport, flow, and its methods), h11's
ReceiveBuffer and Connection._receive_buffer.
"""

import asyncio
import collections
import ipaddress
import itertools
import json
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_BYTES, HEAD_LINES = 16_384, 100  # of a request; browsers send up to 2,000 bytes, 20 lines
VERSIONS = (b"1.0", b"1.1")
# Connections that may wait to be accepted; asyncio accepts all of them at once.
BACKLOG = 256
# Connections that are considered for closing; more would slow down every new connection.
CANDIDATES = 32


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections and of the time that each waits for its client.

    Attributes:
        total: connections at once.
        per_address: connections at once of one client: an IPv4 address, or a /64 of IPv6, the
            usual network of one customer. When a limit is reached, a connection that waits for its
            client is closed in favour of the new one: connections without any request come first,
            and of these the one that has waited longest. The new one is rejected (503) only if all
            have a request in progress. At most BACKLOG more stay until their first bytes are read.
        header_s: for a request's head, from the connection or from its first byte; and for the
            rest of a body whose request is already answered.
        keep_alive_s: between a response and the next request's first byte.
        response_s: for a client that does not read its response.
    """

    total: int = 1000
    per_address: int = 128
    header_s: float = 10.0
    keep_alive_s: float = 5.0
    response_s: float = 30.0


# === Strict parsing ===


class _StrictBuffer(ReceiveBuffer):
    """h11's buffer without its tolerance for bare line feeds and folded header lines."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of a request's head, or of the trailers of a chunked body."""
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
        if len(lengths) > 1 or b"," in b"".join(lengths):  # h11 accepts equal ones
            raise h11.LocalProtocolError("more than one Content-Length")
        return lines


class _StrictConnection(h11.Connection):
    """h11's parser without input that proxies and servers are known to read in different ways.

    Attributes:
        refusal: why the last bytes were not a valid request; None if they were.
    """

    def __init__(self):
        super().__init__(h11.SERVER, HEAD_BYTES)
        self._receive_buffer = _StrictBuffer()
        self.refusal: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return h11's next event after further checks."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_request(event)
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event


def _check_request(request: h11.Request) -> None:
    """Raise h11.RemoteProtocolError for invalid requests that h11 accepts."""
    names = collections.Counter(name for name, _ in request.headers)
    if request.http_version not in VERSIONS:
        raise h11.RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are supported", 505)
    if not request.target.startswith(b"/"):
        # An absolute target names a second host in addition to the Host header.
        raise h11.RemoteProtocolError("the request's target is not a path")
    if names[b"transfer-encoding"] and names[b"content-length"]:
        raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length")
    if names[b"transfer-encoding"] and request.http_version != b"1.1":
        raise h11.RemoteProtocolError("Transfer-Encoding needs HTTP/1.1")


# === All connections ===


def address_key(host: str) -> bytes:
    """Return the key by which connections are counted: an IPv4 address or an IPv6 /64."""
    address = ipaddress.ip_address(host)
    if address.version == 6:
        if address.ipv4_mapped is None:
            return address.packed[:8]
        address = address.ipv4_mapped  # an IPv4 client of a dual-stack socket
    return address.packed


class _Group:
    """Connections that share a limit: those of one address, or all of them."""

    def __init__(self, most: int):
        self.most = most
        self.members: set[Connection] = set()
        # Connections that wait for their clients, longest wait first: those without any response
        # yet, which are closed first, and those that have had one.
        self.new: dict[Connection, None] = {}
        self.served: dict[Connection, None] = {}

    def has_room(self) -> bool:
        """Return whether one more connection may enter; close another one if necessary.

        Connections with unread bytes may stay, because these may be requests. `trim` decides after
        they are read. The event loop accepts all waiting connections at once.
        """
        if len(self.members) < self.most or self._close_one():
            return True
        return bool(self.new or self.served) and len(self.members) < self.most + BACKLOG

    def trim(self) -> None:
        """Close waiting connections until the limit holds."""
        while len(self.members) > self.most and self._close_one():
            pass

    def _close_one(self) -> bool:
        for connection in itertools.islice(itertools.chain(self.new, self.served), CANDIDATES):
            if not connection.has_input():
                connection.close_for_another()
                return True
        return False


class Connections:
    """All connections of a server, and the factory of new ones: uvicorn's `http`.

    Args:
        limits: of the connections.
        headers: of the responses to invalid requests; the application sends all other responses.
    """

    def __init__(self, limits: ConnectionLimits, *, headers: Mapping[str, str] | None = None):
        self.limits, self.headers = limits, headers or {}
        self.all = _Group(limits.total)
        self._by_address: dict[bytes, _Group] = {}

    def __call__(self, **arguments: Any) -> "Connection":
        """Create a connection; uvicorn passes the arguments."""
        return Connection(self, **arguments)

    def enter(self, connection: "Connection") -> bool:
        """Register a new connection; return False if there is no room for it."""
        group_of_address = self._by_address.get(connection.key) or _Group(self.limits.per_address)
        if not (group_of_address.has_room() and self.all.has_room()):
            return False
        # `has_room` may have closed the address's last connection, which removes the group.
        self._by_address[connection.key] = group_of_address
        for group in (group_of_address, self.all):
            group.members.add(connection)
        return True

    def leave(self, connection: "Connection") -> None:
        """Remove a connection."""
        group_of_address = self._by_address.get(connection.key)
        for group in (group_of_address, self.all) if group_of_address else (self.all,):
            group.members.discard(connection)
            group.new.pop(connection, None)
            group.served.pop(connection, None)
        if group_of_address and not group_of_address.members:
            del self._by_address[connection.key]

    def trim(self, connection: "Connection") -> None:
        """Enforce the limits after bytes of a connection have been read."""
        if connection in self.all.members:
            self._by_address[connection.key].trim()
            self.all.trim()

    def set_waiting(self, connection: "Connection", waits: bool) -> None:
        """Note whether the server waits for the client of this connection."""
        if connection not in self.all.members:
            return
        for group in (self._by_address[connection.key], self.all):
            if not waits:
                group.new.pop(connection, None)
                group.served.pop(connection, None)
            elif connection.cycle is None:
                group.new.setdefault(connection)
            else:
                group.served.setdefault(connection)


# === One connection ===


def _is_readable(sock: socket.socket) -> bool:
    """Return whether a socket has unread bytes or was closed by its peer."""
    if hasattr(select, "poll"):  # supports descriptors of any number
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])  # Windows


# States of a connection. A request in progress has no deadline here; the application has one.
HEAD, REQUEST, IDLE, REST, CLOSING = "head", "request", "idle", "rest", "closing"


class Connection(H11Protocol):
    """uvicorn's protocol with a deadline for every wait for the client."""

    def __init__(self, connections: Connections, **arguments: Any):
        super().__init__(**arguments)
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
        """Register the connection, or reject it if there are too many."""
        super().connection_made(transport)
        if self.client is None:  # disconnected already
            transport.abort()
            return
        self.key = address_key(self.client[0])
        if self.register.enter(self):
            self._watch()
        else:
            self._respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the place and the timers."""
        self.register.leave(self)
        for timer in (self.deadline, self.unread):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; discard them after an invalid request."""
        if not self.refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle parsed events, then update the state and enforce the limits."""
        super().handle_events()
        self._watch()
        self.register.trim(self)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        """Close the connection after the response in progress."""
        if self.state == REST:
            self.transport.close()
        elif not self.transport.is_closing():
            super().shutdown()
        self._watch()

    def pause_writing(self) -> None:
        """Start the deadline for a client that does not read its response."""
        super().pause_writing()
        self.unread = self.loop.call_later(self.seconds[CLOSING], self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the deadline of `pause_writing`."""
        super().resume_writing()
        if self.unread is not None:
            self.unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Do nothing: `_watch` restarts the timer, also after the rest of a body."""

    def send_400_response(self, msg: str) -> None:
        """Respond to an invalid request with the reason, in JSON like all other errors."""
        refusal = self.conn.refusal
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = HTTPStatus(refusal.error_status_hint if refusal else 400)
            self._refuse(status, f"the request is not valid HTTP: {status.phrase.lower()}")
        else:  # a response has started; a second one is impossible
            self.transport.abort()

    def has_input(self) -> bool:
        """Return whether unread bytes have arrived: many may connect before the loop reads."""
        return _is_readable(self.transport.get_extra_info("socket"))

    def close_for_another(self) -> None:
        """Close this connection because another one needs its place."""
        self.register.leave(self)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Update the state, and start its deadline if it changed."""
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
        """Close the connection because its deadline has passed."""
        if self.state == HEAD and self.conn.trailing_data[0]:
            self._respond(HTTPStatus.REQUEST_TIMEOUT, "the request's head took too long")
        if self.state == CLOSING:
            self.transport.abort()
        else:
            self.transport.close()
            self._watch()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Send an error response and read nothing more.

        Bytes that still arrive are discarded for a while: closing at once would reset the
        connection, and the client would not see the response.
        """
        self.refused = True
        self._respond(status, detail)
        if self.cycle is not None:  # of a request with an invalid body
            self.cycle.disconnected = self.cycle.response_complete = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._watch()

    def _respond(self, status: HTTPStatus, detail: str) -> None:
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
