"""Requests, responses and bounds of :mod:`socks_tunnel.ops.http_server`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Bounds:
    """What clients may spend. Times are in seconds.

    `read_timeout` bounds the whole request, counted from the connection's start; a TLS handshake is
    part of it. `handle_timeout` bounds the work on one request. `per_address` does not hold for
    Unix sockets.
    """

    connections: int
    per_address: int
    requests: int
    body: int
    read_timeout: float = 10.0
    handle_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `remote` is the IP address that it came from, or "" on a Unix socket.

    The names of `headers` are in lower case; if a header came twice, the last one counts.
    """

    method: str
    path: str
    body: bytes
    remote: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Stream(Protocol):
    """The body of a response without a fixed end, in pieces as they become available."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterates over the pieces, once."""

    def close(self) -> None:
        """Ends the stream.

        Called once for each stream that a handler has returned, in all cases.
        """


@dataclass(frozen=True, slots=True)
class Response:
    """A response. With a body, the headers must have a content type.

    If there is a `stream`, its pieces are the body, and `body` is not used.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None


Handler = Callable[[Request], Awaitable[Response]]
"""Answers a request, on the event loop. An exception that it raises costs that request alone."""
