"""The direct carrier: envelopes over HTTP, in the shape of WHIP (RFC 9725), also on a Unix socket.

::

    POST /            body: offer envelope     201, Location: /ID, body: answer envelope
    DELETE /ID        body: bye envelope       200

What is refused gets 403 and nothing else, so that a stranger learns nothing. HTTP is only the
carrier: what counts is the signature on each envelope, so plain HTTP is fine where confidentiality
of the addresses in the SDP does not matter. HTTPS hides them, and passes where plain HTTP may not.
"""

import asyncio
import errno
import logging
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
from aiohttp import web
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from socks_tunnel.config.tls import client_context
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.envelope import ENVELOPE_MAX

_log = logging.getLogger(__name__)

# aiohttp reports each piece of malformed HTTP as an error with a traceback, and anyone can send
# that. Bugs of ours do not come there: the handler catches and logs them.
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.setLevel(logging.CRITICAL)

CONNECTIONS_MAX: Final = 128
"""Connections that the server holds open; further ones are dropped at once."""

CONNECTIONS_PER_ADDRESS_MAX: Final = 16
"""Of those, how many may come from one IP address (no limit on a Unix socket)."""

REQUESTS_MAX: Final = 32
"""Envelopes that are worked on at the same time; further ones get 503."""

READ_TIMEOUT: Final = 10.0
"""Seconds in which a whole request must have come, counted from the connection's start. With TLS
the handshake is part of that; and so long the client may take to end the session in order."""

HANDLE_TIMEOUT: Final = 30.0
"""Seconds that the work on one envelope may take."""

BACKLOG: Final = 100
"""Connections that may wait to be accepted."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next attempt when a connection cannot be accepted: descriptors ran out."""

CONTENT_TYPE: Final = "application/vnd.msgpack"

remote_address: ContextVar[str] = ContextVar("remote_address", default="")
"""Where the request that is being handled came from, for log lines: an IP address, or `local`."""


class SignalingError(Exception):
    """The peer cannot be reached, or refused; the text is a sentence for the log."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An offer was accepted: the answer's envelope, and the name that the session gets in Location.

    `session_id` must consist of characters that need no escape in a URL, such as hex digits.
    """

    envelope: bytes
    session_id: str


OfferHandler = Callable[[bytes], Awaitable[Answered | None]]
"""Gets the envelope of a POST; gives the answer, or None if it is rejected."""

ByeHandler = Callable[[str, bytes], Awaitable[bool]]
"""Gets the session's name and the envelope of a DELETE; tells whether it was accepted."""


class DirectServer:
    """Listens for envelopes on TCP (optionally with TLS) or on a Unix socket.

    `handler` and `bye` run on the event loop, at most :data:`REQUESTS_MAX` at a time, each for at
    most :data:`HANDLE_TIMEOUT` seconds; they log why they reject something, with
    :data:`remote_address`. Without `bye`, every DELETE is refused.
    """

    def __init__(
        self,
        listen: HostPort | Path,
        handler: OfferHandler,
        *,
        bye: ByeHandler | None = None,
        tls: ssl.SSLContext | None = None,
        read_timeout: float = READ_TIMEOUT,
        handle_timeout: float = HANDLE_TIMEOUT,
    ) -> None:
        self.tls = tls
        """What new connections are encrypted with; may be replaced while it listens."""
        self.read_timeout = read_timeout
        self.handle_timeout = handle_timeout
        self._listen = listen
        self._handler = handler
        self._bye = bye
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._http: web.Server | None = None
        self._guards: dict[asyncio.BaseProtocol, _Guard] = {}  # by aiohttp's protocol behind each
        self._per_address: Counter[str] = Counter()
        self._opening: dict[asyncio.Task[None], socket.socket] = {}
        self._active = 0
        self._inode: int | None = None

    @property
    def address(self) -> HostPort | Path:
        """Where it listens; with the port that the system chose if 0 was asked for."""
        if isinstance(self._listen, Path) or self._socket is None:
            return self._listen
        host, port = self._socket.getsockname()[:2]
        return HostPort(host, port)

    async def start(self) -> None:
        """Bind and listen. Raises :class:`OSError`."""
        self._http = web.Server(self._handle, access_log=None, logger=_http_log)
        if isinstance(self._listen, Path):
            self._socket = _listen_unix(self._listen)
            self._inode = _inode(self._listen)
        else:
            self._socket = _listen_tcp(self._listen)
        self._accepting = spawn("accept signalling", self._accept(self._socket))

    async def stop(self) -> None:
        """Stop listening, end all connections, and remove the Unix socket."""
        if self._socket is None or self._http is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._socket.close()
        opening = dict(self._opening)
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.wait(opening)
        for sock in opening.values():  # of a task that had not begun
            sock.close()
        await self._http.shutdown(timeout=1.0)
        for guard in list(self._guards.values()):
            guard.abort()
        if isinstance(self._listen, Path) and _inode(self._listen) == self._inode:
            self._listen.unlink(missing_ok=True)
        self._socket = None

    # --- connections --------------------------------------------------------------------------

    # The event loop's own servers tell of a TLS connection only once its handshake is done. Until
    # then nobody could count it, and anybody could have as many as there are descriptors.

    async def _accept(self, listening: socket.socket) -> None:
        """Accept for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listening)
            except ConnectionAbortedError:  # the client has gone already
                continue
            except OSError as error:
                _log.warning("cannot accept a signalling connection: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            guard = self._admit(peer[0] if isinstance(peer, tuple) else "")
            if guard is None:
                sock.close()
                continue
            task = spawn("signalling connection", self._open(guard, sock))
            self._opening[task] = sock
            task.add_done_callback(self._opening.pop)

    def _admit(self, address: str) -> "_Guard | None":
        """Take a new connection into account; None if there are too many."""
        if len(self._guards) >= CONNECTIONS_MAX or (
            address and self._per_address[address] >= CONNECTIONS_PER_ADDRESS_MAX
        ):
            _log.debug("a signalling connection from %s is one too many", address or "local")
            return None
        assert self._http is not None, "start() made it before it listened"
        inner = self._http()
        guard = _Guard(self, inner, address)
        self._guards[inner] = guard
        self._per_address[address] += 1
        return guard

    async def _open(self, guard: "_Guard", sock: socket.socket) -> None:
        """Bring a connection to where requests can come, by a TLS handshake if there is one."""
        timeouts: dict[str, Any] = {}
        if self.tls is not None:
            timeouts["ssl_handshake_timeout"] = timeouts["ssl_shutdown_timeout"] = self.read_timeout
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: guard, sock, ssl=self.tls, **timeouts
            )
        except OSError as error:  # ssl.SSLError is one, and so is a timeout
            # Anybody can cause this, with anything that is no handshake.
            _log.debug("no TLS with %s: %s", guard.address or "local", _short(error))
        finally:
            if not guard.opened:
                self.release(guard)

    def release(self, guard: "_Guard") -> None:
        """Forget a connection that was taken into account."""
        if self._guards.pop(guard.inner, None) is not None:
            self._per_address[guard.address] -= 1
            if not self._per_address[guard.address]:
                del self._per_address[guard.address]

    # --- requests -----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        guard = self._guards.get(request.protocol)
        if guard is None:  # it was dropped meanwhile
            return _response(503)
        if request.method not in {"POST", "DELETE"}:
            return _response(405)
        try:
            envelope = await _read_limited(request.content)
        except Exception as error:  # noqa: BLE001 - whatever aiohttp makes of a body that is cut
            _log.debug("a signalling request from %s cannot be read: %r", guard.address, error)
            return _response(400)
        if envelope is None:
            return _response(413)
        if self._active >= REQUESTS_MAX:
            return _response(503)
        guard.allow(self.handle_timeout + 1.0)
        remote_address.set(guard.address or "local")
        self._active += 1
        try:
            async with asyncio.timeout(self.handle_timeout):
                return await self._dispatch(request.method, request.path, envelope)
        except TimeoutError:
            _log.warning("a signalling request took over %g s; given up", self.handle_timeout)
            return _response(503)
        except Exception:  # noqa: BLE001 - a bug in one request must not end the others
            _log.exception("a signalling request failed")
            return _response(500)
        finally:
            self._active -= 1

    async def _dispatch(self, method: str, path: str, envelope: bytes) -> web.StreamResponse:
        if method == "POST":
            answered = await self._handler(envelope) if path == "/" else None
            if answered is None:
                return _response(403)
            return _response(201, answered.envelope, {"Location": f"/{answered.session_id}"})
        if self._bye is not None and await self._bye(path.removeprefix("/"), envelope):
            return _response(200)
        return _response(403)


class _Guard(asyncio.Protocol):
    """Stands before aiohttp's protocol, which has no deadline for a request that never comes.

    `opened`: the connection was made, and with TLS the handshake is done.
    """

    def __init__(self, server: DirectServer, inner: asyncio.Protocol, address: str) -> None:
        self.inner = inner
        self.address = address
        self.opened = False
        self._server = server
        self._began = asyncio.get_running_loop().time()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.opened = True
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no instances of it
        elapsed = asyncio.get_running_loop().time() - self._began
        self.allow(self._server.read_timeout - elapsed)
        self.inner.connection_made(transport)

    def allow(self, seconds: float) -> None:
        """Let the connection live for so long from now."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.abort)

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._server.release(self)
        self._transport = None
        self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()


class DirectClient:
    """Brings envelopes to one endpoint.

    `url` is `http://host:port/`, `https://…`, or for a Unix socket `unix:/path` or
    `http+unix:///path`. Raises :class:`ValueError` for anything else. `ca` is a PEM file of the
    authorities that an https server's certificate may be from; None: those that the system trusts.
    Both are read for each request, so that a change of them needs no restart.
    """

    def __init__(self, url: str, *, ca: Path | None = None) -> None:
        self._url, self._socket = parse_url(url)
        self._name = url
        self._ca = ca

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """Bring an offer; give the envelope of the answer and what :meth:`bye` needs.

        Raises :class:`SignalingError` if nothing usable comes within `timeout` seconds.
        """
        status, headers, body = await self._request("POST", self._url, envelope, timeout)
        if status != 201:
            raise SignalingError(self._refusal("the offer", status))
        location = headers.get("Location")
        if not location or not body:
            raise SignalingError(f"{self._name} accepted the offer but gave no answer")
        return body, location

    async def bye(self, location: str, envelope: bytes, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """End the session that an offer began. Raises :class:`SignalingError`."""
        try:
            target = self._url.join(URL(location))
        except ValueError:
            raise SignalingError(f"{self._name} gave a location that is no URL") from None
        if target.origin() != self._url.origin():
            raise SignalingError(f"{self._name} gave a location on another host")
        status, _, _ = await self._request("DELETE", target, envelope, timeout)
        if status != 200:
            raise SignalingError(self._refusal("the end of the session", status))

    def _refusal(self, what: str, status: int) -> str:
        if status == 403:
            return f"{self._name} refused {what}; its log says why"
        if status == 503:
            return f"{self._name} is too busy for {what}"
        if status >= 500:
            return f"{self._name} failed on {what} (HTTP status {status})"
        return f"{self._name} answered {what} with HTTP status {status}: is it an endpoint?"

    async def _request(
        self,
        method: str,
        url: URL,
        envelope: bytes,
        seconds: float,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Make one request on a connection of its own."""
        connector = await self._connector()
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=aiohttp.ClientTimeout(total=seconds),
                    auto_decompress=False,
                ) as session,
                session.request(
                    method,
                    url,
                    data=envelope,
                    headers={"Content-Type": CONTENT_TYPE, "User-Agent": "socks-tunnel"},
                    allow_redirects=False,
                ) as response,
            ):
                body = await _read_limited(response.content)
                if body is None:
                    raise SignalingError(f"the answer of {self._name} is over {ENVELOPE_MAX} bytes")
                return response.status, response.headers, body
        except TimeoutError:
            raise SignalingError(f"{self._name} did not answer within {seconds:g} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            reason = _certificate_advice(error.certificate_error)
            raise SignalingError(f"the certificate of {self._name} {reason}") from None
        except aiohttp.ClientConnectorSSLError as error:
            reason = _short(error.os_error)
            if reason in {"wrong version number", "record layer failure"}:
                reason += " (if it listens for plain HTTP, the url must begin with http://)"
            raise SignalingError(f"no TLS with {self._name}: {reason}") from None
        except aiohttp.ClientConnectorError as error:
            reason = os.strerror(error.errno) if error.errno else str(error.os_error)
            raise SignalingError(f"{self._name} cannot be reached: {reason}") from None
        except (aiohttp.ClientError, OSError) as error:
            what = str(error) or type(error).__name__
            if url.scheme == "http" and isinstance(error, _CUT_SHORT) and not self._socket:
                what += " (if it has a tls_certificate, the url must begin with https://)"
            raise SignalingError(f"the request to {self._name} failed: {what}") from None

    async def _connector(self) -> aiohttp.BaseConnector:
        if self._socket:
            return aiohttp.UnixConnector(self._socket, force_close=True)
        context: ssl.SSLContext | bool = True
        if self._url.scheme == "https":
            try:
                # Off the event loop: the system's authorities are many.
                context = await asyncio.to_thread(client_context, self._ca)
            except OSError as error:
                raise SignalingError(f"tls_ca {self._ca} cannot be used: {error}") from None
        return aiohttp.TCPConnector(
            # The system's resolver, also where aiodns is installed and aiohttp would prefer it.
            resolver=ThreadedResolver(),
            ssl=context,
            force_close=True,
        )


def parse_url(url: str) -> tuple[URL, str]:
    """Give the URL to request and the path of the Unix socket to do it on ("" for TCP).

    Raises :class:`ValueError` with a sentence about what is wrong with it.
    """
    for prefix in ("http+unix://", "unix://", "unix:"):
        if url.startswith(prefix):
            path = url.removeprefix(prefix)
            if not path.startswith("/"):
                raise ValueError(f"{url!r}: the path of a Unix socket must be absolute")
            return URL("http://localhost/"), path
    shown = re.sub(r"//[^/]*@", "//***@", url)  # what should not be in it must not be in a log
    try:
        parsed = URL(url)
    except ValueError as error:
        raise ValueError(f"{shown!r} is no URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"{shown!r} is none of http://…, https://… and unix:/path")
    if parsed.user is not None or parsed.query_string or parsed.fragment:
        raise ValueError(f"{shown!r}: only a host, a port and a path may be given")
    return parsed, ""


_CUT_SHORT: Final = (aiohttp.ServerDisconnectedError, ConnectionResetError)

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
    """Say what is wrong with a certificate that does not verify, and what to do about it."""
    code = getattr(error, "verify_code", None)
    message = getattr(error, "verify_message", None) or str(error)
    return f"does not verify: it {_CERTIFICATE_ADVICE.get(code, f'has a fault ({message})')}"


def _short(error: OSError) -> str:
    """Give what OpenSSL calls the reason of a failure, without the place in its source."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error) or type(error).__name__


async def _read_limited(stream: aiohttp.StreamReader) -> bytes | None:
    """Read all of a body; None if it is longer than an envelope can be."""
    body = bytearray()
    async for chunk in stream.iter_any():
        body += chunk
        if len(body) > ENVELOPE_MAX:
            return None
    return bytes(body)


def _response(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None
) -> web.StreamResponse:
    """Make a response that ends its connection and does not name what serves it."""
    # Empty, because aiohttp would put its own name and version where there is none.
    fields: dict[str, Any] = {"Server": "", **(headers or {})}
    if body:
        fields["Content-Type"] = CONTENT_TYPE
    response = web.Response(status=status, body=body or None, headers=fields)
    response.force_close()
    return response


def _listen_tcp(address: HostPort) -> socket.socket:
    """Listen on one address. Raises :class:`OSError`."""
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


def _listen_unix(path: Path) -> socket.socket:
    """Listen on a Unix socket for our user and group only; replace one that nobody serves."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if path.is_socket():
            try:
                sock.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except BlockingIOError:  # its backlog is full
                raise OSError(errno.EADDRINUSE, "another process listens there", path) from None
            else:
                raise OSError(errno.EADDRINUSE, "another process listens there", path)
        sock.bind(str(path))
        path.chmod(0o660)  # before it listens: nobody can have connected
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
