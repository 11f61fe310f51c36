"""One TCP flow between a local socket and DATA messages of the tunnel, on both hosts.

Toward the tunnel, the socket is read only while the flow has window and the session has credit, so
bytes that cannot go on stay in the kernel. What was sent is kept in the flow until the peer has
consumed it, so that it can be sent again after a lost link. Toward the socket, a message is written
at once. What the socket does not take waits in the flow, within the window. The window opens again
when the socket has taken the bytes, not when they arrive.

This is the shell around :class:`socks_tunnel.protocol.flow.TcpFlow`, which decides. The socket, the
clock and the account of memory are here.

This file is long because both directions of a flow share one socket, one account and one end.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import ClassVar, Final, Protocol

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.flow import TcpFlow
from socks_tunnel.protocol.messages import (
    HEADER,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Message,
    MessageType,
    SendEof,
    WindowUpdate,
)
from socks_tunnel_workers.relay.session import Flow, WorkerSession
from socks_tunnel_workers.sockets import reset

CHUNK: Final = 16_384
"""Bytes read from a socket at a time, and so the longest DATA payload that we send.

Long enough that the cost of a message is small against its bytes, short enough that a message of
another flow never waits long behind one.
"""

_READS_PER_EVENT: Final = 4
"""Reads of one socket in a turn of the event loop, so that other flows get theirs."""

_IOV_MAX: Final = 64
"""Pieces that one sendmsg(2) writes to a socket."""

HALF_CLOSED_IDLE_MAX = 3600.0
"""Seconds without a byte after which a flow whose one direction has ended is closed."""

FINISHED_IDLE_MAX = 10.0
"""Seconds for which an endpoint waits for the gateway's CLOSE of a finished flow before it sends
its own, and a gateway for the last acknowledgement of a finished flow."""

LINGER_IDLE_MAX = 60.0
"""Seconds without progress after which the bytes of a closed flow that its socket has not taken are
dropped."""

TAIL_SECONDS: Final = 1.0
"""Seconds after which the last consumed bytes of a quiet stream are acknowledged, so that the peer
does not have to keep them."""

LAST_BYTES: Final = 16_384
"""Bytes before the peer's end of file, at most, that are acknowledged together with our own end of
file. That saves a message and a wake-up in all processes; the peer keeps them until then."""

HELD_WHEN_SHORT: Final = 65_536
"""Bytes in flight that a flow may have while three quarters of the worker's memory are in use. If
the peer does not support resuming, half of the window may be in flight if that is more: such a peer
sends WINDOW_UPDATE only after half a window."""

WINDOW_WHEN_SHORT: Final = 65_536
"""Bytes to which receive windows shrink while memory is short."""

QUIET_SECONDS: Final = 10.0
"""Seconds without a byte after which the window of a flow shrinks while half of the worker's memory
is in use. Windows of busy flows shrink only when the limit is reached."""

_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})
_DATA: Final = int(MessageType.DATA)


class Opener(Protocol):
    """The client's side of a flow that waits for its answer (gateway only)."""

    def opened(self, bound: HostPort) -> None:
        """Called when the endpoint has connected, to reply to the client."""

    def listening(self, bound: HostPort) -> None:
        """Called when the endpoint listens for a BIND, to send the first reply."""

    def failed(self, reason: int) -> None:
        """Called when the flow ends unopened. The opener has to close the client's socket."""


class TcpRelay(Flow):
    """A TCP flow. :meth:`attach` gives it the local socket when the far side is connected.

    `opening` is the whole message that asked for the flow. The opener's side sends it again if a
    resume shows that it was lost.

    This class has many methods because each event of socket, session and opener has its own.
    """

    __slots__ = (
        "answer",
        "charge",
        "core",
        "header",
        "opener",
        "opening",
        "reading",
        "repeated",
        "sock",
        "upstream",
        "writing",
    )

    kind: ClassVar[str] = "tcp"

    def __init__(
        self,
        session: WorkerSession,
        conn_id: int,
        *,
        command: str,
        client: str,
        destination: HostPort,
        opener: Opener | None = None,
        opening: bytes = b"",
    ) -> None:
        super().__init__(session, conn_id, command=command, client=client)
        self.destination = destination
        self.sock: socket.socket | None = None
        self.opener = opener
        self.opening = opening
        self.answer: list[bytes] = []
        """The answers to the peer's opening, which are repeated if it comes again."""
        self.repeated = False
        """Whether the opening was sent again, so that a second answer is no error."""
        self.upstream = opener is not None
        """Whether this is the gateway's side, which sends toward the target."""
        self.core = TcpFlow(
            conn_id, send_window=session.terms.window, receive_window=session.receive_window
        )
        self.header = HEADER.pack(_DATA, 0, conn_id)
        self.charge = session.memory.charge()
        self.reading = False
        self.writing = False

    # --- opening --------------------------------------------------------------------------------

    def ask(self) -> None:
        """Asks the peer to open the flow."""
        self.session.send(self.opening)

    def write_early(self, data: bytes) -> None:
        """Sends what the client wrote before it got an answer, as far as window and credit allow.

        The rest is kept in the flow and follows as the window opens. All of it is kept until the
        far side has consumed it. May be called any number of times.
        """
        self.core.send.write(data)
        self.session.counters.sent["tcp"] += len(data)
        self._moved()
        self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        """Transmits what is kept when the scheduler allows it, which may be at once."""
        session = self.session
        if session.open_to_send and not self.ended:
            session.scheduler.wait(self)
            session.core.transmit()

    def reply(self, answer: bytes) -> None:
        """Answers the peer's opening. The answer is repeated if the opening comes again."""
        self.answer.append(answer)
        self.session.send(answer)

    def attach(self, sock: socket.socket) -> None:
        """Takes the connected socket: writes the bytes that wait for it, and reads it."""
        self.sock = sock
        if self.core.opening:
            self.core.open()
        self.active = self.session.loop.time()
        self.resume_reading()
        if self.core.receive.pending:
            self._flush()
        else:
            self._after_write()

    def take_over(self, sock: socket.socket) -> None:
        """Goes on with the socket of a flow of the previous program.

        Writes the bytes that wait for the socket, which is read again once there is a link.
        """
        self.sock = sock
        if self.core.receive.pending:
            self._flush()
        else:
            self._after_write()

    def detach(self) -> None:
        """Forgets the socket without closing it, which its owner does."""
        self._stop_watching()
        self.sock = None

    # --- local socket -> tunnel -----------------------------------------------------------------

    def resume_reading(self) -> None:
        """Watches the local socket for reading, unless its end of file came."""
        if not self.reading and self.sock is not None and not self.core.send.eof:
            self.reading = True
            session = self.session
            session.loop.add_reader(self.sock, session.core.guard, self, self._readable)

    def _stop_reading(self) -> None:
        if self.reading:
            self.reading = False
            assert self.sock is not None
            self.session.loop.remove_reader(self.sock)

    def _readable(self) -> None:
        session = self.session
        scheduler = session.scheduler
        if (
            scheduler.credit > 0
            and scheduler.idle
            and self.core.send.next == self.core.send.end
            and session.core.open_to_send
        ):
            if self._read(_READS_PER_EVENT, session.chunk) and scheduler.credit <= 0:
                self._stop_reading()
                scheduler.wait(self)
            return
        self._stop_reading()
        self._wait_for_turn()
        # Without a link, on_resumed reads again. Until then only the sweep notices a reset.

    def on_turn(self) -> None:
        """Transmits kept bytes, or if there are none one chunk read from the socket."""
        if self.ended:
            return
        session, send = self.session, self.core.send
        sent = self._send_kept()
        more = send.next < send.end
        if more:
            more = send.next < send.limit  # else on_window goes on
        elif self.sock is not None and not send.eof:
            if sent:
                self.resume_reading()
            else:
                before = send.end
                more = self._read(1, min(session.chunk, session.scheduler.turn))
                sent = send.end - before
        if more and not self.ended:
            session.scheduler.requeue(self, sent)
        else:
            session.scheduler.rest(self, sent)

    def _send_kept(self) -> int:
        """Transmits kept bytes within the window and the turn; returns how many.

        EOF follows when all bytes were sent.
        """
        session, send = self.session, self.core.send
        if not session.open_to_send:
            return 0
        scheduler, core, header = session.scheduler, session.core, self.header
        longest = min(CHUNK, session.chunk)
        total = 0
        while total < scheduler.turn:
            data = send.take(min(longest, scheduler.turn - total))
            if not data:
                break
            core.send_data(header, data)
            total += len(data)
        self._send_eof_if_due()
        return total

    def _send_eof_if_due(self) -> None:
        send = self.core.send
        if send.eof and self.session.open_to_send and send.take_eof():
            receive, session = self.core.receive, self.session
            # The gateway closes when all that it sent is acknowledged: a later update would cost a
            # message, and the CLOSE would wait for it. The endpoint needs none, it gets the CLOSE.
            if receive.eof or not self.upstream:
                self._announce_last(session.loop.time())
            session.send(SendEof(self.conn_id).encode())
            self._finish_if_delivered()

    def _room(self) -> int:
        """Returns how many bytes the window and the memory allow to be read from the socket."""
        send, memory = self.core.send, self.session.memory
        room = send.limit - send.end
        if memory.used > memory.limit - (memory.limit >> 2):
            held = HELD_WHEN_SHORT
            if not self.session.resumes:
                held = max(held, (send.limit - send.acked + 1) >> 1)
            room = min(room, held - (send.end - send.acked))
        return room

    def _read(self, reads: int, longest: int) -> bool:
        """Reads up to `reads` times and sends what came. The first time needs no credit.

        Returns whether the socket may have more to read.
        """
        sock, send, session = self.sock, self.core.send, self.session
        assert sock is not None
        scheduler, core, header = session.scheduler, session.core, self.header
        longest = min(CHUNK, longest)
        for read in range(reads):
            room = min(longest, self._room())
            if room <= 0:
                self._stop_reading()  # on_window goes on
                return False
            if read and scheduler.credit <= 0:
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
            send.write_through(data)
            core.send_data(header, data)
            session.counters.sent["tcp"] += len(data)
            if len(data) < room:
                self._moved()
                self.resume_reading()
                return False
        self._moved()
        return True

    def _moved(self) -> None:
        """Notes the time at which bytes moved, and charges the memory that the flow holds."""
        self.active = self.session.loop.time()
        self.charge.set(self.core.cost)
        if self.session.memory.over:
            self.session.relieve()

    def _local_eof(self) -> None:
        self._stop_reading()
        self.core.send.finish()
        self._moved()
        self._send_eof_if_due()

    def _local_error(self, error: OSError) -> None:
        """Ends the flow with reason RESET, because the local socket has failed.

        Errors other than a lost connection are logged.
        """
        if error.errno not in _GONE and error.errno not in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
            self.session.notices.warn(
                "socket",
                "the local socket of flow %d to %s failed: %s; resetting the flow",
                self.conn_id,
                self.destination,
                error,
            )
        self.abort(CloseReason.RESET)

    def on_window(self, update: WindowUpdate) -> None:
        """Takes a WINDOW_UPDATE, and goes on transmitting if the window has opened.

        An update that only releases kept bytes also lets the flow go on if memory was short.
        """
        send = self.core.send
        opened = send.update(update.consumed, update.limit)
        self.charge.set(self.core.cost)
        if self.session.open_to_send:
            if send.next < send.end:
                if opened:
                    self._wait_for_turn()
            elif self._room() > 0:
                self.resume_reading()
        self._finish_if_delivered()

    # --- resume ---------------------------------------------------------------------------------

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME for this flow."""
        return self.core.row()

    def on_detached(self) -> None:
        """Stops reading: bytes stay in the kernel until there is a link again."""
        self._stop_reading()

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        """Goes on at the peer's position in the stream."""
        self.core.resume(received, limit, flags)
        self.charge.set(self.core.cost)
        self.active = self.session.loop.time()  # without a link, silence does not count
        if self.core.opening and self.opening:
            self._ask_again()
        self._go_on()

    def on_missing(self) -> bool:
        """Asks again if the flow was not opened yet, because the peer does not know it."""
        if not (self.core.opening and self.opening):
            return False
        self.core.send.resume(0, 0, eof_received=False)
        self._ask_again()
        self._go_on()
        return True

    def _ask_again(self) -> None:
        self.repeated = True
        self.session.send(self.opening)

    def _go_on(self) -> None:
        self.session.scheduler.wait(self)
        self._finish_if_delivered()

    def on_repeated(self, opening: Message) -> None:
        """Repeats the answers to the opening. There are none while the flow is being opened."""
        del opening
        for answer in self.answer:
            self.session.send(answer)

    # --- tunnel -> local socket -----------------------------------------------------------------

    def on_data(self, data: memoryview) -> None:
        """Writes stream bytes to the local socket; keeps what it does not take."""
        size = len(data)
        core = self.core
        receive = core.receive
        if receive.received == receive.edge:
            now = self.session.loop.time()
            receive.passed_edge(now, now - self.active)
        core.receive_data(size)
        self.session.counters.received["tcp"] += size
        sock = self.sock
        if sock is None or receive.pending.size or not core.opened:
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
        self.core.receive.pending.append(data)
        self.charge.set(self.core.cost)
        if self.session.memory.over:
            self.session.relieve()

    def _watch_writable(self) -> None:
        if not self.writing:
            self.writing = True
            assert self.sock is not None
            session = self.session
            session.loop.add_writer(self.sock, session.core.guard, self, self._flush)

    def _stop_writing(self) -> None:
        if self.writing:
            self.writing = False
            assert self.sock is not None
            self.session.loop.remove_writer(self.sock)

    def _flush(self) -> None:
        sock, pending = self.sock, self.core.receive.pending
        assert sock is not None
        total = 0
        failure: OSError | None = None
        try:
            while pending.size:
                sent = sock.sendmsg(pending.peek(_IOV_MAX))
                pending.drop(sent)
                total += sent
        except (BlockingIOError, InterruptedError):
            self._watch_writable()
        except OSError as error:
            failure = error
        if total:
            self.charge.set(self.core.cost)
            self._consumed(total)
        if failure is not None:
            self._local_error(failure)
        elif not pending.size:
            self._stop_writing()
            self._after_write()

    def _consumed(self, count: int) -> None:
        session, receive = self.session, self.core.receive
        now = self.active = session.loop.time()
        due = receive.consume(count)
        if self.ended:
            return
        if receive.eof:
            self._all_came(now)
        elif due:
            self._announce(now)

    def _all_came(self, now: float) -> None:
        """Acknowledges what came before the peer's end of file, if that is due already.

        After it the sender needs no more window, but it keeps what it sent until it knows that all
        of it was consumed. A few bytes are acknowledged with our own end of file if that is still
        to come, or by the next sweep.
        """
        core = self.core
        receive = core.receive
        if receive.all_written and (
            core.send.eof_sent or receive.consumed - receive.announced > LAST_BYTES
        ):
            self._announce_last(now)

    def _announce_last(self, now: float) -> None:
        """Acknowledges the last bytes of a stream, which need no window, if the peer keeps them."""
        receive = self.core.receive
        if receive.consumed > receive.announced and self.session.resumes:
            self._announce(now)

    def _announce(self, now: float) -> None:
        session = self.session
        consumed, limit = self.core.receive.announce(
            now, round_trip=session.round_trip, grow_to=session.window_max
        )
        session.send(WindowUpdate(self.conn_id, consumed, limit).encode())

    def _after_write(self) -> None:
        """Passes the peer's EOF or CLOSE on to the socket, which has taken all bytes."""
        core = self.core
        if core.closing:
            core.abandon()
            self._close_socket()
            return
        if core.shutdown_due:
            core.shut_down()
            assert self.sock is not None
            try:
                if not core.delivered:  # else the socket is closed at once, which sends FIN too
                    self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._local_error(error)
                return
        self._finish_if_delivered()

    def _finish_if_delivered(self) -> None:
        core = self.core
        if self.ended or not core.delivered:
            return
        self._close_socket(keep=True)
        if self.upstream and (core.send.acked == core.send.end or not self.session.resumes):
            # Until the peer has acknowledged everything, the kept bytes have to survive the loss of
            # the link.
            self._send_orderly_close()
        # The endpoint waits for the gateway's CLOSE, so that only one CLOSE is sent.

    def _send_orderly_close(self) -> None:
        self.session.core.close(self.conn_id, CloseReason.ORDERLY)
        self.core.close(CloseReason.ORDERLY)
        self.end(CloseReason.ORDERLY)
        self._release()

    # --- messages of the peer -------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Takes any message but DATA and WINDOW_UPDATE."""
        opener = self.opener
        match message:
            case SendEof():
                self._eof_from_peer()
            case CloseConnection(reason=reason):
                self._closed_by_peer(reason)
            case ConnectionOpened(bound=bound) if opener is not None and self.command == "connect":
                self._opened_by_peer(bound, opener)
            case BindListening(bound=bound) if opener is not None and self._awaits("opening"):
                self.core.listen()
                opener.listening(bound)
            case BindAccepted(caller=caller) if opener is not None and self._awaits("listening"):
                self.destination = caller
                self._opened_by_peer(caller, opener)
            case ConnectionOpened() | BindListening() | BindAccepted() if self.repeated:
                return  # the opening was sent again although its answer was under way
            case _:
                raise self.unexpected(type(message).__name__)

    def _eof_from_peer(self) -> None:
        core = self.core
        core.receive_eof()
        if core.opened and self.sock is not None and not core.receive.pending.size:
            self._after_write()
        # If the flow has ended, its CLOSE acknowledges everything.
        if not self.ended:
            self._all_came(self.session.loop.time())

    def _awaits(self, state: str) -> bool:
        """Returns whether this is a BIND in that state: "opening" or "listening"."""
        return self.command == "bind" and self.core.state.value == state

    def _opened_by_peer(self, bound: HostPort, opener: Opener) -> None:
        self.core.open()
        self.opener = None
        self.active = self.session.loop.time()
        opener.opened(bound)  # the opener calls `attach`, or ends the flow if the client is gone

    def _closed_by_peer(self, reason: int) -> None:
        opener, self.opener = self.opener, None
        if opener is not None:
            # The flow was not opened yet, so CLOSE is the answer. The opener keeps the socket.
            self.detach()
            self.core.close(reason)
            self.end(reason)
            self._release()
            opener.failed(reason)
            return
        self._stop_reading()
        self.core.close(reason)
        self.end(reason)
        if self.core.closing and self.sock is not None:
            # The flow is closed toward the peer, but its socket has not taken all bytes yet.
            self.charge.set(self.core.cost)
            self.session.linger(self)
        elif reason == CloseReason.ORDERLY and self.sock is not None:
            self._close_socket()
        else:
            self._drop_socket()

    # --- end ------------------------------------------------------------------------------------

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the flow at once. The local socket is reset, so that this is no clean end."""
        if self.core.closing:
            self.core.abandon()
            self._drop_socket()
            return
        if self.ended:
            return
        opener, self.opener = self.opener, None
        if tell_peer:
            self.session.core.close(self.conn_id, reason)
        self.core.abandon()
        self.end(reason)
        if opener is not None:
            self.detach()
            self._release()
            opener.failed(reason)
        else:
            self._drop_socket()

    def _drop_socket(self) -> None:
        self._stop_watching()
        if self.sock is not None:
            reset(self.sock)
            self.sock = None
        self._release()

    def _close_socket(self, *, keep: bool = False) -> None:
        """Closes the socket. With `keep` the flow still holds what the peer may need."""
        self._stop_watching()
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if not keep:
            self._release()

    def _stop_watching(self) -> None:
        self._stop_reading()
        self._stop_writing()

    def _release(self) -> None:
        """Gives back the memory that the flow held."""
        self.charge.end()
        self.session.lingered(self)

    def sweep(self, now: float) -> None:
        """Closes the flow if it has been silent for too long, or if its socket has failed."""
        core = self.core
        if self.ended and not core.closing:
            return  # it ended since the sweep began
        idle = now - self.active
        if core.closing:
            if idle > LINGER_IDLE_MAX:
                core.abandon()
                self._drop_socket()
            return
        receive = core.receive
        if idle > TAIL_SECONDS or receive.eof:
            self._announce_last(now)
        if not core.opened:
            return  # the connect timeout limits this
        memory = self.session.memory
        if idle > QUIET_SECONDS and memory.used > memory.limit >> 1:
            self.shrink(WINDOW_WHEN_SHORT)
        if self.sock is not None and not self.reading:
            # Nothing watches the socket without window or link, and after its end of file. So a
            # reset is noticed here.
            failure = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                self._local_error(OSError(failure, os.strerror(failure)))
                return
        if not self.session.core.attached:
            return  # without a link, the flow ends with its session
        if self.sock is None:
            owed = self.session.resumes and core.send.acked < core.send.end
            if idle > (HALF_CLOSED_IDLE_MAX if owed else FINISHED_IDLE_MAX):
                self._send_orderly_close()
            return
        limit = self.session.settings.config.socks.idle_tcp
        half_closed = core.send.eof or receive.eof
        if (limit and idle > limit) or (half_closed and idle > HALF_CLOSED_IDLE_MAX):
            self.abort(CloseReason.IDLE_TIMEOUT)

    def shrink(self, window: int) -> None:
        """Shrinks the receive window to `window` bytes, because memory is short."""
        self.core.receive.shrink(window)

    # --- for people -----------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Payload bytes toward the target."""
        return self.core.send.end if self.upstream else self.core.receive.received

    @property
    def down(self) -> int:
        """Payload bytes toward the client."""
        return self.core.receive.received if self.upstream else self.core.send.end

    @property
    def receive_window(self) -> int:
        """Bytes that the peer may send before any of it is consumed."""
        return self.core.receive.window

    @property
    def held(self) -> int:
        """Bytes that wait for the local socket, and bytes that the peer has not consumed."""
        return self.core.cost

    @property
    def state(self) -> str:
        """The state of :class:`~socks_tunnel.protocol.flow.TcpFlow`, such as "open"."""
        return self.core.state.value
