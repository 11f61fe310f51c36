"""One TCP flow: a local socket on this side, DATA messages on the other.

The same on both hosts. Toward the tunnel the socket is read only while the flow has window and
the link has credit, so bytes that cannot go on stay in the kernel. Toward the socket a message is
written at once; what the socket does not take waits here, within the window, and the window opens
again when the socket took it, not when it arrived.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Protocol

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.flow import TcpFlow
from socks_tunnel.protocol.messages import (
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Message,
    SendEof,
    WindowUpdate,
)
from socks_tunnel_workers.relay.flow import Flow
from socks_tunnel_workers.sockets import reset

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerLink

CHUNK = 16_384
"""Bytes read from a socket at a time, and so the longest DATA payload that we send.

Long enough that the cost of a message is small against its bytes, short enough that a message of
another flow never waits long behind one.
"""

_READS_PER_TURN = 4
_IOV_MAX = 64

HALF_CLOSED_IDLE_MAX = 3600.0
"""Seconds without a byte after which a flow whose one direction has ended is closed."""

FINISHED_IDLE_MAX = 10.0
"""Seconds that an endpoint waits for the gateway's CLOSE of a finished flow, to send it itself."""

LINGER_IDLE_MAX = 60.0
"""Seconds without progress after which what a closed flow still owes its socket is dropped."""

_GONE = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})


class Opener(Protocol):
    """The SOCKS side of a flow that waits for its answer (gateway only)."""

    def opened(self, bound: HostPort) -> None:
        """Pass the success reply on: the endpoint has really connected."""

    def listening(self, bound: HostPort) -> None:
        """Pass the first reply of a BIND on."""

    def failed(self, reason: int) -> None:
        """Pass the failure on: the flow is closed; the socket is the opener's to close."""


class TcpRelay(Flow):
    """A TCP flow. `sock` may come later (:meth:`attach`), while the endpoint still dials."""

    __slots__ = (
        "closing",
        "flow",
        "listened",
        "local_eof_done",
        "opener",
        "pending",
        "reading",
        "sock",
        "upstream",
        "writing",
    )

    kind: ClassVar[str] = "tcp"

    def __init__(
        self,
        link: WorkerLink,
        conn_id: int,
        *,
        command: str,
        client: str,
        destination: HostPort,
        sock: socket.socket | None,
        opener: Opener | None,
    ) -> None:
        super().__init__(link, conn_id, command=command, client=client)
        self.destination = destination
        self.sock = sock
        self.opener = opener
        self.upstream = opener is not None  # the gateway's side: what we send goes up
        self.flow = TcpFlow(
            conn_id, send_window=link.window, receive_window=link.worker.receive_window
        )
        self.pending: deque[bytes | memoryview] = deque()
        self.reading = False
        self.writing = False
        self.local_eof_done = False
        self.listened = False
        self.closing = False

    # --- opening --------------------------------------------------------------------------------

    def attach(self, sock: socket.socket) -> None:
        """Take the connected socket of the endpoint's side; what waited for it is written."""
        self.sock = sock
        self.flow.open()
        self.active = self.link.worker.loop.time()
        self.resume_reading()
        if self.pending:
            self._flush()
        else:
            self._after_write()

    def detach(self) -> None:
        """Let go of the socket without closing it: its owner does."""
        self._release()
        self.sock = None

    def send_early(self, data: bytes) -> None:
        """Send what the client had written before it got an answer, as far as the window goes.

        The rest of the window's worth stays in the socket, which is not read before; `data` is what
        came together with the request, bounded by one read.
        """
        limit = min(CHUNK, self.link.max_data)
        for start in range(0, len(data), limit):
            piece = data[start : start + limit]
            self.flow.send_data(len(piece))
            self.link.worker.sent["tcp"] += len(piece)
            self.link.send_data(self.conn_id, piece)

    # --- local socket -> tunnel -----------------------------------------------------------------

    def resume_reading(self) -> None:
        """Watch the local socket, if there is a reason to."""
        if not self.reading and not self.flow.sent_eof and self.sock is not None:
            self.reading = True
            self.link.worker.loop.add_reader(self.sock, self._readable)

    def _stop_reading(self) -> None:
        if self.reading:
            self.reading = False
            assert self.sock is not None
            self.link.worker.loop.remove_reader(self.sock)

    def _readable(self) -> None:
        link = self.link
        scheduler = link.scheduler
        if scheduler.credit <= 0 or not scheduler.idle:
            self._stop_reading()
            scheduler.wait(self)
            return
        self._read(_READS_PER_TURN)

    def pump(self) -> None:
        """Read one chunk: this flow's turn has come; then wait for the next turn or for input."""
        if not self.ended and self.sock is not None and self._read(1):
            self.link.scheduler.wait(self)

    def _read(self, turns: int) -> bool:
        """Read up to `turns` chunks and send them. True if the socket may have more at once."""
        sock, send, link = self.sock, self.flow.send, self.link
        assert sock is not None
        scheduler = link.scheduler
        longest = min(CHUNK, link.max_data)
        for _ in range(turns):
            room = min(longest, send.limit - send.sent)
            if room <= 0:
                self._stop_reading()  # on_window goes on
                return False
            if scheduler.credit <= 0:
                break
            try:
                data = sock.recv(room)
            except (BlockingIOError, InterruptedError):
                self.resume_reading()
                return False
            except OSError as error:
                self._local_error(error)
                return False
            if not data:
                self._local_eof()
                return False
            send.sent += len(data)
            link.worker.sent["tcp"] += len(data)
            link.send_data(self.conn_id, data)
            if len(data) < room:
                self.active = link.worker.loop.time()
                self.resume_reading()
                return False
        self.active = link.worker.loop.time()
        if scheduler.credit <= 0 and turns > 1:
            self._stop_reading()
            scheduler.wait(self)
        return True

    def _local_eof(self) -> None:
        self._stop_reading()
        self.flow.send_eof()
        self.active = self.link.worker.loop.time()
        self.link.send(SendEof(self.conn_id).encode())
        self._finish_if_delivered()

    def _local_error(self, error: OSError) -> None:
        """The local socket failed. A reset is carried as a reset; so is everything like it."""
        if error.errno not in _GONE and error.errno not in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
            self.link.worker.log_socket_error(self, error)
        self.abort(CloseReason.RESET)

    def on_window(self, update: WindowUpdate) -> None:
        """Take a WINDOW_UPDATE; reading goes on if it opened the window."""
        if self.flow.send.update(update.consumed, update.limit):
            self.resume_reading()

    # --- tunnel -> local socket -----------------------------------------------------------------

    def on_data(self, data: memoryview) -> None:
        """Write stream bytes to the local socket; keep what it does not take."""
        size = len(data)
        self.flow.receive_data(size)
        self.link.worker.received["tcp"] += size
        sock = self.sock
        if sock is None or self.pending or not self.flow.opened:
            self._keep(bytes(data))
            return
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._local_error(error)
            return
        if sent < size:
            self._keep(bytes(data[sent:]))
            if not self.ended:
                self._watch_writable()
        if sent:
            self._consumed(sent)

    def _keep(self, data: bytes) -> None:
        worker = self.link.worker
        self.pending.append(data)
        worker.pending_bytes += len(data)
        if worker.pending_bytes > worker.config.limits.memory_per_worker:
            worker.log_memory_limit(self)
            self.abort(CloseReason.RESOURCE_LIMIT)

    def _watch_writable(self) -> None:
        if not self.writing:
            self.writing = True
            assert self.sock is not None
            self.link.worker.loop.add_writer(self.sock, self._flush)

    def _stop_writing(self) -> None:
        if self.writing:
            self.writing = False
            assert self.sock is not None
            self.link.worker.loop.remove_writer(self.sock)

    def _flush(self) -> None:
        sock, pending = self.sock, self.pending
        assert sock is not None
        total = 0
        try:
            while pending:
                pieces = [pending[i] for i in range(min(len(pending), _IOV_MAX))]
                sent = sock.sendmsg(pieces)
                total += sent
                while sent:
                    first = pending.popleft()
                    if len(first) > sent:
                        pending.appendleft(memoryview(first)[sent:])
                        break
                    sent -= len(first)
        except (BlockingIOError, InterruptedError):
            self._watch_writable()
        except OSError as error:
            self._local_error(error)
            return
        if total:
            self.link.worker.pending_bytes -= total
            self._consumed(total)
        if not pending:
            self._stop_writing()
            self._after_write()

    def _consumed(self, count: int) -> None:
        self.active = self.link.worker.loop.time()
        flow = self.flow
        # After its EOF the sender needs no more window.
        if flow.receive.consume(count) and not flow.received_eof and not self.ended:
            consumed, limit = flow.receive.announce()
            self.link.send(WindowUpdate(self.conn_id, consumed, limit).encode())

    def _after_write(self) -> None:
        """Everything that came was written: pass the end on, if it came too."""
        if self.closing:
            self._close_socket()
            return
        if self.flow.received_eof and not self.local_eof_done:
            self.local_eof_done = True
            assert self.sock is not None
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._local_error(error)
                return
        self._finish_if_delivered()

    def _finish_if_delivered(self) -> None:
        if not (self.flow.delivered and self.local_eof_done) or self.ended:
            return
        self._close_socket()
        if self.upstream:
            self._send_orderly_close()
        # Else the gateway's CLOSE is on its way; if both sent one, one would be for nothing.

    def _send_orderly_close(self) -> None:
        self.link.send(CloseConnection(self.conn_id).encode())
        self.flow.close()
        self.end(CloseReason.ORDERLY)

    # --- messages of the peer -------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Take any message but DATA and WINDOW_UPDATE."""
        opener = self.opener
        match message:
            case SendEof():
                self.flow.receive_eof()
                if self.flow.opened and not self.pending:
                    self._after_write()
            case CloseConnection(reason=reason):
                self._closed_by_peer(reason)
            case ConnectionOpened(bound=bound) if opener is not None and self.command == "connect":
                self._opened_by_peer(bound, opener)
            case BindListening(bound=bound) if opener is not None and self._awaits(listened=False):
                self.listened = True
                opener.listening(bound)
            case BindAccepted(caller=caller) if opener is not None and self._awaits(listened=True):
                self.destination = caller
                self._opened_by_peer(caller, opener)
            case _:
                raise self.unexpected(type(message).__name__)

    def _awaits(self, *, listened: bool) -> bool:
        """Whether this is a BIND that waits for its first reply, or for its second one."""
        return self.command == "bind" and self.listened is listened

    def _opened_by_peer(self, bound: HostPort, opener: Opener) -> None:
        self.flow.open()
        self.opener = None
        self.active = self.link.worker.loop.time()
        opener.opened(bound)
        if self.ended:
            return
        self.resume_reading()
        if self.pending:
            self._flush()
        elif self.flow.received_eof:
            self._after_write()

    def _closed_by_peer(self, reason: int) -> None:
        opener, self.opener = self.opener, None
        if opener is not None:
            # Not opened yet: this is the answer. The socket stays with the SOCKS session.
            self.detach()
            self.flow.close()
            self.end(reason)
            opener.failed(reason)
            return
        self.flow.close()
        if reason != CloseReason.ORDERLY or self.sock is None:
            self.end(reason)
            self._drop_socket()
            return
        self._stop_reading()
        self.end(reason)
        if self.pending:
            # The flow is over on the wire; what came before is still owed to the local socket.
            self.closing = True
            self.link.worker.lingering.add(self)
        else:
            self._close_socket()

    # --- end ------------------------------------------------------------------------------------

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """End the flow at once; the local socket is reset: nobody takes it for a clean end."""
        if self.closing:
            self._drop_socket()
            return
        if self.ended:
            return
        opener, self.opener = self.opener, None
        if tell_peer:
            self.link.close_flow(self.conn_id, reason)
        self.flow.close()
        self.end(reason)
        if opener is not None:
            self.detach()
            opener.failed(reason)
        else:
            self._drop_socket()

    def _forget_pending(self) -> None:
        self.link.worker.pending_bytes -= sum(map(len, self.pending))
        self.pending.clear()

    def _drop_socket(self) -> None:
        self._release()
        if self.sock is not None:
            reset(self.sock)
            self.sock = None

    def _close_socket(self) -> None:
        self._release()
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _release(self) -> None:
        self._stop_reading()
        self._stop_writing()
        self._forget_pending()
        self.link.worker.lingering.discard(self)

    def sweep(self, now: float) -> None:
        """Close a flow that has been silent for too long, or whose socket is dead."""
        if self.ended and not self.closing:
            return  # it ended since the sweep began
        idle = now - self.active
        if self.closing:
            if idle > LINGER_IDLE_MAX:
                self._drop_socket()
            return
        if not self.flow.opened:
            return  # the connect timeout watches it
        if self.sock is not None and not self.reading:
            # Without window, or after the EOF, nothing watches the socket: a reset is found here.
            failure = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                self._local_error(OSError(failure, os.strerror(failure)))
                return
        if self.sock is None:
            if idle > FINISHED_IDLE_MAX:
                self._send_orderly_close()
            return
        limit = self.link.worker.config.socks.idle_tcp
        half_closed = self.flow.sent_eof or self.flow.received_eof
        if (limit and idle > limit) or (half_closed and idle > HALF_CLOSED_IDLE_MAX):
            self.abort(CloseReason.IDLE_TIMEOUT)

    # --- for people -----------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Payload bytes toward the target."""
        return self.flow.send.sent if self.upstream else self.flow.receive.received

    @property
    def down(self) -> int:
        """Payload bytes toward the client."""
        return self.flow.receive.received if self.upstream else self.flow.send.sent

    @property
    def state(self) -> str:
        """The half-close state."""
        return self.flow.state.value
