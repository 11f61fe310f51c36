"""One HTTP/1.1 request on a connection of its own: on a Unix socket, directly, or through a proxy.

A proxy gets CONNECT for https, and the absolute form for http (RFC 9110 section 9.3.6, RFC 9112
section 3.2.2). Which proxy it is, :mod:`socks_tunnel.protocol.urls` decides.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import h11

from socks_tunnel.ops import lookup
from socks_tunnel.ops.http_server import tls_reason
from socks_tunnel.ops.tcp_path import why_stalled
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.urls import DEFAULT_PORTS, Proxy, Url, proxy_for

HEAD_MAX: Final = 16_384
"""Longest status line with all header fields of an answer, in bytes."""

_READ_SIZE: Final = 65_536

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class HttpFailure(Exception):  # noqa: N818 - it describes the other side, not a fault of ours
    """No usable answer came. The text ends a sentence that begins with the server's name.

    `certificate`: OpenSSL's error where the certificate did not verify, else None. `cut_short`: the
    other side ended the connection without an answer. `tls`: OpenSSL's reason where TLS failed.
    """

    def __init__(
        self,
        text: str,
        *,
        certificate: ssl.SSLCertVerificationError | None = None,
        cut_short: bool = False,
        tls: str | None = None,
    ) -> None:
        super().__init__(text)
        self.certificate = certificate
        self.cut_short = cut_short
        self.tls = tls


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `headers` by lower-case name. `body` is None if it is longer than the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


async def request(
    method: str,
    url: Url,
    body: bytes,
    headers: Mapping[str, str],
    *,
    unix: str = "",
    tls: ssl.SSLContext | None = None,
    configured_proxy: str | None = None,
    answer_max: int,
    on_stall: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Makes one request. The caller bounds its time.

    `unix` is the path of the Unix socket to make it on, `tls` what https needs. `on_stall` is
    called with the reason for the missing answer, if the kernel knows it, before the error is
    raised (also when the caller has cancelled). Raises :class:`HttpFailure`.
    """
    try:
        proxy = None if unix else proxy_for(url, configured_proxy, os.environ)
    except ValueError as error:
        raise HttpFailure(f"cannot be reached: {error}") from None
    sock = await _connect(url, unix, proxy)
    stream = _Stream(sock)
    answered = given_up = False
    probe = sock.dup()  # a transport that fails closes its descriptor first
    try:
        if url.scheme == "https" and proxy is not None:
            assert tls is not None, "https comes with a context"
            await stream.open()
            await _tunnel(stream, url, proxy)
            await stream.start_tls(tls, url.host)
        elif url.scheme == "https":
            await stream.open(tls, url.host)
        else:
            await stream.open()
        target = url.path
        fields = [("Host", _host_field(url)), *headers.items(), ("Connection", "close")]
        if proxy is not None and url.scheme == "http":
            target = str(url)
            if proxy.credentials:
                fields.append(("Proxy-Authorization", proxy.credentials))
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
        answer = await _exchange(http, stream, method, target, fields, body, answer_max)
        answered = True
        return answer  # noqa: TRY300 - the handlers below are for errors of the whole
    except asyncio.CancelledError:
        given_up = True
        raise
    except ssl.SSLCertVerificationError as error:
        raise HttpFailure("has a certificate that does not verify", certificate=error) from None
    except ssl.SSLError as error:
        raise HttpFailure(f"speaks no TLS: {tls_reason(error)}", tls=tls_reason(error)) from None
    except h11.RemoteProtocolError as error:
        raise HttpFailure(f"gave no HTTP answer ({clip(error)})") from None
    except OSError as error:
        cut = isinstance(error, ConnectionResetError)
        raise HttpFailure(error.strerror or clip(error), cut_short=cut) from None
    finally:
        stall = None if answered else why_stalled(probe, waited=given_up)
        probe.close()
        stream.abort(reset=given_up)
        if stall is not None:
            on_stall(stall)


async def _connect(url: Url, unix: str, proxy: Proxy | None) -> socket.socket:
    loop = asyncio.get_running_loop()
    if unix:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, unix)
        except OSError as error:
            sock.close()
            raise HttpFailure(f"cannot be reached: {_words(error)}") from None
        except BaseException:
            sock.close()
            raise
        return sock
    host, port = (url.host, url.port) if proxy is None else (proxy.host, proxy.port)
    try:
        return await lookup.connect(host, port)
    except OSError as error:
        through = "" if proxy is None else f" through the proxy {proxy}"
        raise HttpFailure(f"cannot be reached{through}: {_words(error)}") from None


async def _tunnel(stream: "_Stream", url: Url, proxy: Proxy) -> None:
    """Asks the proxy to connect to the server. Raises :class:`HttpFailure`."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
    fields = [("Host", url.authority)]
    if proxy.credentials:
        fields.append(("Proxy-Authorization", proxy.credentials))
    try:
        answer = await _exchange(http, stream, "CONNECT", url.authority, fields, b"", 0)
    except h11.RemoteProtocolError as error:
        raise HttpFailure(
            f"cannot be reached: the proxy {proxy} gave no HTTP answer ({clip(error)})"
        ) from None
    except OSError as error:
        raise HttpFailure(
            f"cannot be reached: the proxy {proxy} ended the connection ({_words(error)})"
        ) from None
    if not 200 <= answer.status < 300:
        hint = "; it wants a user and a password" if answer.status == 407 else ""
        raise HttpFailure(
            f"cannot be reached: the proxy {proxy} answered with HTTP status {answer.status}{hint}"
        )


async def _exchange(
    http: h11.Connection,
    stream: "_Stream",
    method: str,
    target: str,
    fields: list[tuple[str, str]],
    body: bytes,
    answer_max: int,
) -> Answer:
    if method != "CONNECT":
        fields = [*fields, ("Content-Length", str(len(body)))]
    head = http.send(h11.Request(method=method, target=target, headers=fields)) or b""
    stream.write(head + (http.send(h11.Data(data=body)) or b""))
    http.send(h11.EndOfMessage())
    status, headers, received, came = 0, {}, bytearray(), False
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                data = await stream.read()
                if not data and not came:
                    raise ConnectionResetError(None, "it closed the connection")
                came = True
                http.receive_data(data)
            case h11.Response(status_code=status, headers=raw):
                headers = {
                    name.decode("ascii"): value.decode("latin-1") for name, value in list(raw)
                }
                if method == "CONNECT":
                    return Answer(status, headers, b"")
            case h11.Data(data=data):
                received += data
                if len(received) > answer_max:
                    return Answer(status, headers, None)
            case h11.EndOfMessage():
                return Answer(status, headers, bytes(received))
            case h11.InformationalResponse():
                continue
            case _:
                raise ConnectionResetError(None, "it closed the connection")


class _Stream(asyncio.Protocol):
    """A connection that reads bytes only when asked to. It can begin TLS later."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def open(self, tls: ssl.SSLContext | None = None, host: str | None = None) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, sock=self._sock, ssl=tls, server_hostname=host)

    async def start_tls(self, tls: ssl.SSLContext, host: str) -> None:
        """Begins TLS. Bytes that came before it are an error: a proxy has nothing more to send."""
        assert self._transport is not None
        if self._received:
            raise ConnectionResetError(None, "the proxy sent more than its answer")
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, tls, server_hostname=host)
        if self._transport is None:
            raise ConnectionResetError(None, "the connection ended in the TLS handshake")

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def read(self) -> bytes:
        """Returns received bytes, or no bytes at the end. Raises :class:`OSError`."""
        while not self._received:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._received)
        self._received.clear()
        if self._transport is not None and not self._ended:
            self._transport.resume_reading()
        return data

    def abort(self, *, reset: bool) -> None:
        """Ends the connection. With `reset`, the server learns that nobody waits for its answer.

        A FIN only says that the request is complete. The server would continue its work.
        """
        if reset:
            with contextlib.suppress(OSError):  # it has ended already
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        if self._transport is None:
            self._sock.close()
        else:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # It is kept here, and not when `open` returns: if `open` is cancelled just after the
        # handshake, the event loop only begins a TLS shutdown, which may take 30 s, and keeps the
        # socket.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) >= _READ_SIZE and self._transport is not None:
            self._transport.pause_reading()
        self._changed.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._changed.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = self._error or exc
        self._changed.set()


def _host_field(url: Url) -> str:
    """Returns Host without the scheme's default port (RFC 9110 section 7.2)."""
    authority = url.authority
    return authority.rpartition(":")[0] if DEFAULT_PORTS[url.scheme] == url.port else authority


def _words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno) if error.errno else clip(error.strerror or error)
