"""An HTTP/1.1 server for small requests, each on a connection of its own: signalling, metrics.

Everything that a stranger can consume is bounded: connections, in all and from one address; bytes
of the head and of the body; seconds until a request is complete and until it is answered. Only a
body of a declared length is read (RFC 9112 section 6.3): a chunked body is refused with 411, and
one with a Content-Encoding with 415 (RFC 9110 section 15.5.16), because a few bytes of either can
cost much work. HTTP itself is parsed by h11. Every response closes its connection. A response may
be a stream without an end, such as server-sent events; one whose reader is too slow is cut off.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final, cast

import h11

from socks_tunnel.ops.http_messages import Bounds, Handler, Request, Response, Stream
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip

_log = logging.getLogger(__name__)

HEAD_MAX: Final = 8192
"""Longest request line with all header fields, in bytes."""

LINGER_MAX: Final = 1_048_576
"""Bytes of a refused body that are read and dropped, so that its sender sees the refusal and not
only a reset (RFC 9112 section 9.6)."""

LINGER_TIMEOUT: Final = 2.0
"""Seconds within which such a sender must end."""

STOP_TIMEOUT: Final = 1.0
"""Seconds to wait for aborted connections to end when the server stops."""

ACCEPTS_PER_TURN: Final = 16
"""Connections that are accepted in one turn of the event loop."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next attempt when no connection can be accepted, for want of descriptors."""

STREAM_BACKLOG_MAX: Final = 262_144
"""Bytes of a streamed response that may wait for its reader. With more, it is cut off."""

STREAM_SECONDS_MAX: Final = 3600.0
"""Seconds after which a streamed response ends. A client that still wants it asks again."""

FAILURE_KINDS_MAX: Final = 32
"""Number of kinds of handler exceptions that are logged, each once. All are counted."""


def _uncounted(reason: str) -> None:
    """Counts nothing."""
    del reason


class HttpServer:
    """Serves one listening socket, which it owns. `name` is for the log ("signalling").

    `failures` counts the exceptions that left the handler. `refused` is called with the reason, one
    of :data:`socks_tunnel.ops.labels.HTTP_REFUSALS`, for each connection or request that is
    refused here; a handler counts what it refuses itself.
    """

    def __init__(
        self,
        name: str,
        listening: socket.socket,
        handler: Handler,
        bounds: Bounds,
        *,
        methods: frozenset[str],
        tls: ssl.SSLContext | None = None,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.refused = _uncounted if refused is None else refused
        self.bounds = bounds
        self.methods = methods
        self.tls = tls
        """TLS context of new connections. It may be replaced while the server listens."""
        self.failures = 0
        self.connections: set[Connection] = set()
        self.per_address: Counter[str] = Counter()
        self._listening = listening
        self._handler = handler
        self._loop: asyncio.AbstractEventLoop
        self._accepting = False
        self._pause: asyncio.TimerHandle | None = None
        self._opening: dict[asyncio.Task[None], socket.socket] = {}
        self._all_gone = asyncio.Event()
        self._active = 0
        self._told: set[str] = set()

    def start(self) -> None:
        """Begins to accept connections."""
        self._loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        self._resume_accepting()

    async def stop(self) -> None:
        """Closes the listening socket and ends all connections, also those with work under way."""
        if not self._accepting:
            return
        self._accepting = False
        self.leave().close()
        opening = dict(self._opening)
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.wait(opening)
        for sock in opening.values():  # the connection of a task that had not begun
            sock.close()
        working = [c.work for c in self.connections if c.work is not None and not c.work.done()]
        for connection in list(self.connections):
            connection.abort()
        for work in working:
            work.cancel()
        if working:
            await asyncio.wait(working)
        self._all_gone.clear()
        if self.connections:  # the loop tells the connections of their end in its next turns
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self._all_gone.wait()

    def leave(self) -> socket.socket:
        """Accepts no more connections, and returns the listening socket.

        New clients wait in its queue.
        """
        self._loop.remove_reader(self._listening)
        if self._pause is not None:
            self._pause.cancel()
        return self._listening

    # --- connections --------------------------------------------------------------------------

    # The event loop's own servers announce a TLS connection only after its handshake. Until then,
    # it could not be counted, and a stranger could open as many as there are descriptors.

    # Not loop.sock_accept: a task that is cancelled just after it has accepted loses the socket.

    def _resume_accepting(self) -> None:
        self._accepting = True
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Accepts waiting connections, a bounded number in one turn of the event loop."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = self._listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:  # the client has gone already
                continue
            except OSError as error:
                _log.warning("cannot accept a %s connection: %s", self.name, error)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(ACCEPT_PAUSE, self._resume_accepting)
                return
            sock.setblocking(False)
            self._admit(sock, peer[0] if isinstance(peer, tuple) else "")

    def _admit(self, sock: socket.socket, address: str) -> None:
        """Counts a connection, or closes it if there are too many."""
        if len(self.connections) >= self.bounds.connections or (
            address and self.per_address[address] >= self.bounds.per_address
        ):
            _log.debug(
                "a %s connection of %s is refused: too many",
                self.name,
                address or "local",
            )
            self.refused("too-many")
            sock.close()
            return
        connection = Connection(self, address)
        self.connections.add(connection)
        self.per_address[address] += 1
        task = spawn(f"{self.name} connection", self._open(connection, sock))
        self._opening[task] = sock
        task.add_done_callback(self._opening.pop)

    async def _open(self, connection: "Connection", sock: socket.socket) -> None:
        """Makes a connection ready for requests, with a TLS handshake if TLS is on."""
        timeouts: dict[str, Any] = {}
        if self.tls is not None:
            timeout = self.bounds.read_timeout
            timeouts = {"ssl_handshake_timeout": timeout, "ssl_shutdown_timeout": timeout}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, sock, ssl=self.tls, **timeouts
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are OSErrors
            # Anybody can cause this by sending something other than a handshake.
            _log.debug("no TLS with %s: %s", connection.remote or "local", tls_reason(error))
            self.refused("tls")
        finally:
            if not connection.opened:
                self.release(connection)

    def release(self, connection: "Connection") -> None:
        """Forgets a connection."""
        if connection in self.connections:
            self.connections.discard(connection)
            self.per_address[connection.remote] -= 1
            if not self.per_address[connection.remote]:
                del self.per_address[connection.remote]
            if not self.connections:
                self._all_gone.set()

    # --- requests -----------------------------------------------------------------------------

    async def respond(self, request: Request) -> Response:
        """Returns the handler's answer, or 503 or 500 in its place."""
        if self._active >= self.bounds.requests:
            self.refused("busy")
            return Response(503)
        self._active += 1
        try:
            async with asyncio.timeout(self.bounds.handle_timeout):
                return await self._handler(request)
        except TimeoutError:
            _log.warning(
                "a %s request took more than %g s and was given up",
                self.name,
                self.bounds.handle_timeout,
            )
            self.refused("busy")
            return Response(503)
        except Exception as error:  # noqa: BLE001 - a bug in one request must not end the others
            self._failed(error)
            self.refused("bug")
            return Response(500)
        finally:
            self._active -= 1

    def _failed(self, error: Exception) -> None:
        """Counts an exception of the handler. Each kind is logged once, with its traceback."""
        self.failures += 1
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
        kind = f"{type(error).__name__} at {where}"
        if kind not in self._told and len(self._told) < FAILURE_KINDS_MAX:
            self._told.add(kind)
            _log.error(
                "a %s request failed (%s); this is a bug, and is logged once",
                self.name,
                clip(error),
                exc_info=error,
            )


class Connection(asyncio.Protocol):
    """One connection with its one request. The states are h11's.

    `opened`: the connection was made, and with TLS the handshake is done. `work` is the task that
    answers the request.
    """

    def __init__(self, server: HttpServer, remote: str) -> None:
        self.remote = remote
        self.opened = False
        self.work: asyncio.Task[None] | None = None
        self._server = server
        self._began = asyncio.get_running_loop().time()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._to_drop = 0
        self._streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self.opened = True
        # Uvloop's transports are not instances of it.
        self._transport = cast("asyncio.Transport", transport)
        elapsed = asyncio.get_running_loop().time() - self._began
        self._allow(self._server.bounds.read_timeout - elapsed, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, so the work for it is cancelled."""
        del exc
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._transport = None
        self._server.release(self)
        if self.work is not None and not self.work.done():
            self.work.cancel()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Takes bytes of the request."""
        if self._to_drop:
            self._to_drop -= len(data)
            if self._to_drop <= 0:
                self.abort()
            return
        if self.work is not None or self._transport is None:
            return  # the request is complete, and later bytes are not read
        try:
            self._http.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            _log.debug("no HTTP from %s: %s", self.remote or "local", clip(error))
            self._refuse(error.error_status_hint)

    def eof_received(self) -> bool:
        """The client sends no more.

        If its request was complete, it may still wait for the answer.
        """
        if self._transport is None:
            return False
        if self._to_drop:
            self._transport.close()  # the client has seen the refusal
        elif self.work is None or self._streaming:
            self.abort()
        return self._transport.get_extra_info("sslcontext") is None  # this TLS has no half-close

    def _allow(self, seconds: float, end: Callable[[], None] | None = None) -> None:
        """Calls `end` after so many seconds from now, unless the time is set again."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, end or self.abort)

    def _too_slow(self) -> None:
        """No request was complete in time."""
        self._server.refused("timeout")
        self.abort()

    def _advance(self) -> None:
        while True:
            match self._http.next_event():
                case h11.Request() as head:
                    self._head = head
                    refusal = self._judge(head)
                    if refusal is not None:
                        self._refuse(refusal)
                        return
                    if self._http.they_are_waiting_for_100_continue and self._transport is not None:
                        continue_ = h11.InformationalResponse(status_code=100, headers=[])
                        self._transport.write(self._http.send(continue_) or b"")
                case h11.Data(data=data):
                    self._body += data
                case h11.EndOfMessage():
                    self._complete()
                    return
                case _:  # NEED_DATA, PAUSED, ConnectionClosed
                    return

    def _judge(self, head: h11.Request) -> int | None:
        """Returns the status with which a request is refused for its head, or None."""
        fields = {name: value for name, value in head.headers}  # noqa: C416 - h11's are views
        if not head.http_version.startswith(b"1."):
            return 505
        if head.method.decode("ascii") not in self._server.methods:
            return 405
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            return 415
        if b"transfer-encoding" in fields:
            return 411
        if int(fields.get(b"content-length", b"0")) > self._server.bounds.body:
            return 413
        return None

    def _complete(self) -> None:
        assert self._head is not None
        request = Request(
            method=self._head.method.decode("ascii"),
            path=self._head.target.decode("ascii"),
            body=bytes(self._body),
            remote=self.remote,
            headers={
                name.decode("ascii"): value.decode("latin-1") for name, value in self._head.headers
            },
        )
        self._body.clear()
        # The handler's own time-out is shorter. This one is for a client that does not read.
        self._allow(self._server.bounds.handle_timeout + 1.0)
        self.work = spawn(f"{self._server.name} request", self._answer(request))

    async def _answer(self, request: Request) -> None:
        response = await self._server.respond(request)
        if response.stream is None:
            self._send(response)
        else:
            try:
                await self._send_stream(response, response.stream)
            finally:
                response.stream.close()
        if self._transport is not None:
            self._transport.close()

    async def _send_stream(self, response: Response, stream: Stream) -> None:
        if self._transport is None:
            return
        self._streaming = True
        self._allow(STREAM_SECONDS_MAX)
        headers = [*response.headers.items(), *_common_fields()]
        head = self._http.send(h11.Response(status_code=response.status, headers=headers))
        self._transport.write(head or b"")
        if self._is_head():
            return
        async for piece in stream:
            if not self._send_piece(piece):
                return
        self._transport.write(self._http.send(h11.EndOfMessage()) or b"")

    def _send_piece(self, piece: bytes) -> bool:
        """Sends a piece of a stream. Returns whether its reader can take more."""
        if self._transport is None:
            return False
        self._transport.write(self._http.send(h11.Data(data=piece)) or b"")
        if self._transport.get_write_buffer_size() <= STREAM_BACKLOG_MAX:
            return True
        _log.debug("%s reads a stream too slowly, and is cut off", self.remote or "local")
        self.abort()
        return False

    def _refuse(self, status: int) -> None:
        """Refuses a request that was not read to its end."""
        if self._transport is None or self._to_drop:
            return
        self._server.refused("malformed")
        self._to_drop = LINGER_MAX
        self._send(Response(status))
        self._allow(LINGER_TIMEOUT)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS
            self._transport.close()

    def _send(self, response: Response) -> None:
        if self._transport is None or self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        own = [("Content-Length", str(len(response.body))), *_common_fields()]
        headers = [*response.headers.items(), *own]
        parts = [
            self._http.send(h11.Response(status_code=response.status, headers=headers)),
            # h11 wants no body in the answer to HEAD, whatever the Content-Length says.
            None if self._is_head() else self._http.send(h11.Data(data=response.body)),
        ]
        self._transport.write(b"".join(part for part in parts if part))

    def _is_head(self) -> bool:
        return self._head is not None and self._head.method == b"HEAD"


def tls_reason(error: OSError) -> str:
    """Returns OpenSSL's reason for a failure, without the place in its source code."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or clip(error)


def _common_fields() -> list[tuple[str, str]]:
    return [("Date", formatdate(usegmt=True)), ("Connection", "close")]  # RFC 9110 section 6.6.1
