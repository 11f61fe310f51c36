"""The direct carrier: envelopes over HTTP, in the shape of WHIP (RFC 9725), also on a Unix socket.

::

    POST /            body: offer envelope     201, Location: /ID, body: answer envelope
    DELETE /ID        body: bye envelope       200
    POST /join        body: request to join    200, body: answer

A refusal is status 403 and nothing else, so that a stranger learns nothing. HTTP is only the
carrier, and only the signature on each envelope counts. So plain HTTP is enough if the addresses in
the SDP need not be confidential. HTTPS hides them, and also passes networks that block plain HTTP.
"""

import asyncio
import errno
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

from socks_tunnel.ops.http_messages import Bounds, Request, Response
from socks_tunnel.ops.http_server import HttpServer
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.protocol.urls import Url
from socks_tunnel.signaling.carrier import (
    ByeHandler,
    IceServers,
    JoinHandler,
    OfferHandler,
    SignalingError,
    SignalingRefused,
    remote_address,
)
from socks_tunnel.signaling.envelope import ENVELOPE_MAX
from socks_tunnel.signaling.http_client import Answer, HttpFailure, request
from socks_tunnel.signaling.portal import PORTAL_WORDS, is_portal
from socks_tunnel.signaling.tls import client_context

_log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 128
"""Connections that the server keeps open. Further ones are closed at once."""

CONNECTIONS_PER_ADDRESS_MAX: Final = 16
"""Of those, how many may come from one IP address (no limit on a Unix socket)."""

REQUESTS_MAX: Final = 32
"""Envelopes that are handled at the same time. Further ones get 503."""

JOINS_MAX: Final = 32
"""Requests to join that are handled at the same time, besides envelopes. They may come from
strangers, and may wait for a disk or an identity provider. They must not keep a peer's offer
out."""

READ_TIMEOUT: Final = 10.0
"""Seconds within which a whole request must arrive, counted from the start of the connection. A TLS
handshake is part of that. The client has the same time to end its TLS session in order."""

HANDLE_TIMEOUT: Final = 30.0
"""Seconds within which one envelope must be handled."""

BACKLOG: Final = 100
"""Connections that may wait to be accepted."""

CONTENT_TYPE: Final = "application/vnd.msgpack"

_MSGPACK: Final = {"Content-Type": CONTENT_TYPE}

JOIN_PATH: Final = "/join"
"""Path of requests to join, below the path of the endpoint's URL."""

LOCATION_MAX: Final = 1024
"""Longest Location in an answer, in bytes."""


class DirectServer:
    """Listens for envelopes on TCP (optionally with TLS) or on a Unix socket.

    `handler` and `bye` run on the event loop, at most :data:`REQUESTS_MAX` at a time. `join` runs
    at most :data:`JOINS_MAX` times at a time. Each call has :data:`HANDLE_TIMEOUT` seconds, and is
    cancelled if the client leaves. The handlers log why they reject something, with
    :data:`remote_address`. `refused` is called for requests that reach no handler, as in
    :class:`HttpServer`. Without `bye`, every DELETE is refused.
    """

    def __init__(
        self,
        listen: HostPort | Path,
        handler: OfferHandler,
        *,
        bye: ByeHandler | None = None,
        join: JoinHandler | None = None,
        tls: ssl.SSLContext | None = None,
        read_timeout: float = READ_TIMEOUT,
        handle_timeout: float = HANDLE_TIMEOUT,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        self._refused = refused
        self._tls = tls
        self._listen = listen
        self._bounds = Bounds(
            connections=CONNECTIONS_MAX,
            per_address=CONNECTIONS_PER_ADDRESS_MAX,
            requests=REQUESTS_MAX + JOINS_MAX,
            body=ENVELOPE_MAX,
            read_timeout=read_timeout,
            handle_timeout=handle_timeout,
        )
        self._handler = handler
        self._bye = bye
        self._join = join
        self._at_work: Counter[str] = Counter()
        self._inode: int | None = None
        self._address: HostPort | None = None
        self.http: HttpServer | None = None
        """The HTTP server, while it listens."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """TLS context of new connections. It may be replaced while the server listens."""
        return self._tls

    @tls.setter
    def tls(self, context: ssl.SSLContext | None) -> None:
        self._tls = context
        if self.http is not None:
            self.http.tls = context

    @property
    def address(self) -> HostPort | Path:
        """The address of the listener.

        If port 0 was asked for, it has the port that the system chose.
        """
        return self._listen if self._address is None else self._address

    async def start(self, listening: socket.socket | None = None) -> None:
        """Binds and listens, unless `listening` already does. Raises :class:`OSError`."""
        if isinstance(self._listen, Path):
            sock = listening or listen_unix(self._listen)
            self._inode = inode_of(self._listen)
        else:
            sock = listening or listen_tcp(self._listen)
            self._address = HostPort(*sock.getsockname()[:2])
        self.http = HttpServer(
            "signalling",
            sock,
            self._handle,
            self._bounds,
            methods=frozenset({"POST", "DELETE"}),
            tls=self._tls,
            refused=self._refused,
        )
        self.http.start()

    def release(self) -> socket.socket | None:
        """Gives up the listening socket and returns it, still listening; None if there is none."""
        return None if self.http is None else self.http.leave()

    async def stop(self) -> None:
        """Stops listening, ends all connections, and removes the Unix socket."""
        if self.http is None:
            return
        http, self.http = self.http, None
        await http.stop()
        if isinstance(self._listen, Path) and inode_of(self._listen) == self._inode:
            self._listen.unlink(missing_ok=True)

    async def _handle(self, asked: Request) -> Response:
        remote_address.set(asked.remote or "local")
        joins = asked.method == "POST" and asked.path == JOIN_PATH
        what, most = ("join", JOINS_MAX) if joins else ("envelope", REQUESTS_MAX)
        if self._at_work[what] >= most:
            if self._refused is not None:
                self._refused("busy")
            return Response(503)
        self._at_work[what] += 1
        try:
            return await self._answer(asked, joins=joins)
        finally:
            self._at_work[what] -= 1

    async def _answer(self, asked: Request, *, joins: bool) -> Response:
        if joins:
            joined = await self._join(asked.body) if self._join is not None else None
            return Response(403) if joined is None else Response(200, joined, _MSGPACK)
        if asked.method == "POST":
            answered = await self._handler(asked.body) if asked.path == "/" else None
            if answered is None:
                return Response(403)
            fields = {"Location": f"/{answered.session_id}", "Content-Type": CONTENT_TYPE}
            return Response(201, answered.envelope, fields)
        if self._bye is not None and await self._bye(asked.path.removeprefix("/"), asked.body):
            return Response(200)
        return Response(403)


class DirectClient:
    """Delivers envelopes to one endpoint.

    `url` is `http://host:port/`, `https://…`, or for a Unix socket `unix:/path` or
    `http+unix:///path`. Raises :class:`ValueError` for anything else. `ca` is a PEM file
    of CA certificates for an https server. None: those that the system trusts. The certificates
    are read for each request, so that a change of them needs no restart. `proxy` is as in
    :func:`socks_tunnel.protocol.urls.proxy_for`.
    """

    def __init__(self, url: str, *, ca: Path | None = None, proxy: str | None = None) -> None:
        self._url, self._socket = parse_url(url)
        self._name = url
        self._ca = ca
        self._proxy = proxy

    @property
    def name(self) -> str:
        """Where it leads, for log lines."""
        return self._name

    async def ice_servers(self, timeout: float) -> IceServers:  # noqa: ARG002, ASYNC109
        """Returns no servers: the configurations of the two hosts name them."""
        return ()

    def relay(self) -> DatagramRelay | None:
        """Returns None: there is no service between this host and the endpoint."""
        return None

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """Delivers an offer. Returns the envelope of the answer, and the handle for :meth:`bye`.

        Raises :class:`SignalingError` if nothing usable comes within `timeout` seconds.
        """
        answer, body = await self._request("POST", self._url, envelope, timeout)
        if answer.status != 201:
            raise SignalingError(self._refusal("the offer", answer.status))
        location = answer.headers.get("location")
        if not location or not body or len(location) > LOCATION_MAX:
            raise SignalingError(f"{self._name} accepted the offer but gave no answer")
        return body, location

    async def join(self, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Delivers a request to join. Returns the answer. Raises :class:`SignalingError`."""
        target = Url.parse(urljoin(str(self._url), JOIN_PATH.removeprefix("/")))
        answer, body = await self._request("POST", target, request, timeout)
        if answer.status != 200:
            kind = SignalingRefused if answer.status in {403, 404} else SignalingError
            raise kind(self._refusal("the request to join", answer.status))
        return body

    async def bye(self, location: str, envelope: bytes, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Ends the session that an offer began. Raises :class:`SignalingError`."""
        try:
            target = Url.parse(urljoin(str(self._url), location))
        except ValueError:
            raise SignalingError(f"{self._name} gave a location that is no URL") from None
        if target.origin != self._url.origin:
            raise SignalingError(f"{self._name} gave a location on another host")
        answer, _ = await self._request("DELETE", target, envelope, timeout)
        if answer.status != 200:
            raise SignalingError(self._refusal("the end of the session", answer.status))

    async def appeared(self) -> None:
        """Never returns: without a request, this host cannot know whether the endpoint is there."""
        await asyncio.get_running_loop().create_future()

    def _refusal(self, what: str, status: int) -> str:
        if status == 403:
            return f"{self._name} refused {what}; its log says why"
        if status == 503:
            return f"{self._name} is too busy for {what}"
        if status >= 500 and not is_portal(status):
            return f"{self._name} failed on {what} (HTTP status {status})"
        if is_portal(status):
            return f"{self._name}: {PORTAL_WORDS} (HTTP status {status} to {what})"
        return f"{self._name} answered {what} with HTTP status {status}: is it an endpoint?"

    async def _request(
        self, method: str, url: Url, envelope: bytes, seconds: float
    ) -> tuple[Answer, bytes]:
        """Makes one request on a connection of its own. Returns the answer and its body."""
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": "socks-tunnel"}
        stalls: list[str] = []
        try:
            async with asyncio.timeout(seconds):
                answer = await request(
                    method,
                    url,
                    envelope,
                    headers,
                    unix=self._socket,
                    tls=await self._context(),
                    configured_proxy=self._proxy,
                    answer_max=ENVELOPE_MAX,
                    on_stall=stalls.append,
                )
        except TimeoutError:
            text = f"{self._name} did not answer within {seconds:g} s"
            raise SignalingError(": ".join([text, *stalls])) from None
        except HttpFailure as failure:
            if stalls and failure.certificate is None:
                text = f"the request to {self._name} failed: {stalls[0]}"
                raise SignalingError(text) from None
            raise SignalingError(self._sentence(failure)) from None
        if answer.body is None:
            raise SignalingError(f"the answer of {self._name} is over {ENVELOPE_MAX} bytes")
        return answer, answer.body

    def _sentence(self, failure: HttpFailure) -> str:
        if failure.certificate is not None:
            return f"the certificate of {self._name} {_certificate_advice(failure.certificate)}"
        if failure.tls is not None:
            reason = failure.tls
            if reason in {"wrong version number", "record layer failure"}:
                reason += " (if it listens for plain HTTP, the url must begin with http://)"
            return f"no TLS with {self._name}: {reason}"
        text = str(failure)
        if text.startswith("cannot be reached"):
            return f"{self._name} {text}"
        if failure.cut_short and self._url.scheme == "http" and not self._socket:
            text += " (if it has a tls_certificate, the url must begin with https://)"
        return f"the request to {self._name} failed: {text}"

    async def _context(self) -> ssl.SSLContext | None:
        if self._socket or self._url.scheme != "https":
            return None
        try:
            # In a thread, because reading the system's many CA certificates takes time.
            return await asyncio.to_thread(client_context, self._ca)
        except OSError as error:
            raise SignalingError(f"tls_ca {self._ca} cannot be used: {error}") from None


def parse_url(url: str) -> tuple[Url, str]:
    """Returns the URL to request, and the path of the Unix socket for that ("" for TCP).

    Raises :class:`ValueError` with a sentence about what is wrong with it.
    """
    for prefix in ("http+unix://", "unix://", "unix:"):
        if url.startswith(prefix):
            path = url.removeprefix(prefix)
            if not path.startswith("/"):
                raise ValueError(f"'{clip(url)}': the path of a Unix socket must be absolute")
            return Url("http", "localhost", 80, "/"), path
    # No part that does not belong into the URL gets into a log.
    shown = clip(re.sub(r"//[^/]*@", "//***@", url))
    try:
        return Url.parse(url), ""
    except ValueError as error:
        raise ValueError(f"'{shown}': {error}") from None


_UNKNOWN_ISSUER: Final = (
    "is from an authority that is not trusted here; name that as tls_ca, or put the certificates "
    "between them into the endpoint's tls_certificate"
)
_CERTIFICATE_ADVICE: Final[dict[int | None, str]] = {
    7: "is from an authority that is named like one trusted here, and has another key; see tls_ca",
    9: "is not valid yet; is this host's clock right?",
    10: "has expired; renew it at the endpoint (or is this host's clock wrong?)",
    18: "signs itself; name it, or the authority that the endpoint's is from, as tls_ca",
    19: "is from an authority that is not trusted here; name that as tls_ca",
    20: _UNKNOWN_ISSUER,
    21: _UNKNOWN_ISSUER,
    62: "is for another name; the url must have one of those that it is for",
    64: "is for another address; the url must have a name or address that it is for",
}
"""What to do, by OpenSSL's code of the verdict (X509_verify_cert_error_string(3))."""


def _certificate_advice(error: Exception) -> str:
    """Returns what is wrong with a certificate that does not verify, and what to do about it."""
    code = getattr(error, "verify_code", None)
    message = getattr(error, "verify_message", None) or str(error)
    return f"does not verify: it {_CERTIFICATE_ADVICE.get(code, f'has a fault ({message})')}"


def listen_tcp(address: HostPort) -> socket.socket:
    """Listens on one address. Raises :class:`OSError`."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def listen_unix(path: Path) -> socket.socket:
    """Listens on a Unix socket for our user and group only. Replaces a socket without a server."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if path.is_socket():
            try:
                sock.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except BlockingIOError:  # the socket's backlog is full
                raise OSError(errno.EADDRINUSE, "another process listens there", path) from None
            else:
                raise OSError(errno.EADDRINUSE, "another process listens there", path)
        sock.bind(str(path))
        path.chmod(0o660)  # it does not listen yet, so nobody can have connected
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def inode_of(path: Path) -> int | None:
    """Returns which file is at a path; None if there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
