"""One Unix stream between the supervisor and a child, cut into frames.

The asyncio shell around :mod:`socks_tunnel.protocol.ipc`: it reads into the frame reader's own
buffer (no copy on the way in) and hands out views, a batch for each session and turn; on the way
out everything that is sent within one turn of the event loop leaves with one write. A small message
that comes alone (:mod:`socks_tunnel.protocol.lone`) does not wait for the end of the turn: the
other process deals with it while this one does the rest of its work.

While the other side reads too slowly, what is sent waits here and not in the transport, since what
a transport has cannot be overtaken::

    urgent (datagrams)  --+
                          +-- PORTION at a time --> transport --> operating system --> other side
    all else, in order  --+

So a datagram waits behind what the transport and the operating system hold, some 300 KiB, and not
behind megabytes of a transfer.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.frames import FrameReader
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    FRAME_HEADER,
    Control,
    Credit,
    FrameKind,
    encode_control,
)
from socks_tunnel.protocol.lone import LONE_BYTES, Lone

_log = logging.getLogger(__name__)

_pack_header = FRAME_HEADER.pack
_OVERHEAD = FRAME_HEADER.size - 4
"""What LENGTH counts besides the body: KIND and SESSION."""

PORTION: Final = 65_536
"""Bytes that are given to the transport at a time while more waits: about what it takes before it
asks for a pause."""

_MESSAGE = int(FrameKind.MESSAGE)  # an enum member's look-up has no place in a call per message


class Channel(asyncio.BufferedProtocol):
    """One end of an IPC stream. Subclasses say what happens with what arrives.

    This class has many methods because it is an asyncio protocol too.

    :meth:`on_messages` and :meth:`on_control` are called on the event loop in the order of the
    stream. If one of them raises :class:`RemoteProtocolError`, or the stream itself breaks the
    framing, the channel is aborted and :meth:`on_closed` gets that error: after it nothing more is
    delivered. Any other exception of theirs is a bug of ours. It is logged, :meth:`on_bug` ends
    what the message was for, and the channel goes on with the next one. Sending on a closed channel
    does nothing, as the other process is gone.

    Writing is never awaited. What the other side does not read yet piles up; :attr:`buffered` says
    how much, and whoever sends keeps it bounded.
    """

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._bugs = BugLog()
        self._closing = False
        self._silent = False
        self._out: list[bytes | memoryview] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._urgent: list[bytes] = []
        self.urgent = 0
        """Bytes of urgent messages that wait in this process."""
        self._ordered = False  # whether something waits that nothing may overtake
        self._left: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self.paused = False
        """True while the other side reads too slowly and something waits in this process."""
        self._transport_full = False  # whether the transport has as much as it wants
        self._descriptor = -1
        self._lone = Lone()

    # --- for subclasses -----------------------------------------------------------------------

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        """Takes tunnel messages. They are valid only during the call: copy what is kept."""
        raise NotImplementedError

    def on_control(self, session: int, message: Control) -> None:
        """Takes one control message. `session` is 0 if it names no session."""
        raise NotImplementedError

    def on_bug(self, session: int, message: Control | None, error: Exception) -> None:
        """Ends what a message was for whose handler met a bug; None stands for tunnel messages.

        All that the handler was given counts as lost. If this raises, the channel is aborted with
        that error.
        """

    def on_closed(self, error: Exception | None) -> None:
        """Learns of the end, exactly once; `error` is None after EOF or :meth:`close`."""

    # --- sending ------------------------------------------------------------------------------

    def send_message(self, session: int, message: bytes | memoryview) -> None:
        """Sends one tunnel message, with everything else of this turn of the event loop.

        It is not copied before that: a view must stay unchanged until the turn is over.
        """
        self.send_pieces(session, b"", message)

    def send_messages(self, session: int, messages: Sequence[bytes | memoryview]) -> None:
        """Sends tunnel messages; otherwise as :meth:`send_message`."""
        if len(messages) == 1:
            self.send_pieces(session, b"", messages[0])
            return
        out = self._writable()
        if out is None:
            return
        for message in messages:
            size = len(message)
            if size > BODY_MAX:
                raise ValueError(f"a message of {size} bytes is over the IPC limit of {BODY_MAX}")
            out.append(_pack_header(size + _OVERHEAD, _MESSAGE, session))
            out.append(message)

    def send_urgent(self, session: int, messages: Sequence[bytes | memoryview]) -> None:
        """Sends tunnel messages that may overtake others, but no control message except CREDIT."""
        if self._ordered or not self.paused:
            self.send_messages(session, messages)
            return
        if self._silent:
            return
        for message in messages:
            size = len(message)
            if size > BODY_MAX:
                raise ValueError(f"a message of {size} bytes is over the IPC limit of {BODY_MAX}")
            self._urgent.append(_pack_header(size + _OVERHEAD, _MESSAGE, session))
            self._urgent.append(bytes(message))
            self.urgent += size + FRAME_HEADER.size

    def send_pieces(self, session: int, header: bytes, payload: bytes | memoryview) -> None:
        """Sends one tunnel message made of two pieces; otherwise as :meth:`send_message`."""
        transport = self._transport
        if transport is None or self._closing or self._silent:
            return
        size = len(header) + len(payload)
        if size > BODY_MAX:
            raise ValueError(f"a message of {size} bytes is over the IPC limit of {BODY_MAX}")
        head = _pack_header(size + _OVERHEAD, _MESSAGE, session) + header
        out = self._out
        if not out:
            if (
                size <= LONE_BYTES
                and not self.paused
                and self._write_alone(transport, head, payload)
            ):
                return
            self._loop.call_soon(self._flush)
        out.append(head)
        out.append(payload)

    def _write_alone(
        self, transport: asyncio.Transport, head: bytes, payload: bytes | memoryview
    ) -> bool:
        """Writes a frame at once if it is not one of many; returns whether it was taken.

        Nothing that was sent before may still be in this object.
        """
        # The descriptor may be somebody else's if the event loop has given the stream up.
        if (
            not self._lone.comes(time.monotonic())
            or self._descriptor < 0
            or transport.get_write_buffer_size()
            or transport.is_closing()
        ):
            return False
        try:
            written = os.writev(self._descriptor, (head, payload))
        except OSError:
            return False  # full, or broken: the transport waits for it, or reports it
        if written < len(head) + len(payload):
            transport.write((head + bytes(payload))[written:])
        return True

    def send_control(self, session: int, message: Control) -> None:
        """Sends one control message. Raises :class:`ValueError` if it is over the limit."""
        frame = encode_control(session, message)
        out = self._writable()
        if out is not None:
            out.append(frame)
            if self.paused and not isinstance(message, Credit):
                self._ordered = True

    def _writable(self) -> list[bytes | memoryview] | None:
        """Returns what leaves at the end of this turn, or None if the channel is closed."""
        if self._transport is None or self._closing or self._silent:
            return None
        if not self._out:
            self._loop.call_soon(self._flush)
        return self._out

    def _flush(self) -> None:
        """Gives the transport what it takes now; the rest waits until it takes more."""
        out, self._out = self._out, []
        transport = self._transport
        if transport is None:
            return
        if not self.paused:
            self._ordered = False
            if out:
                transport.writelines(out)
            return
        # Views are valid for this turn only; of bytes this makes no copy.
        self._waiting.extend(map(bytes, out))
        self._waiting_bytes += sum(map(len, out))
        while not self._transport_full and (self._urgent or self._waiting):
            pieces, self._urgent, self.urgent = self._urgent, [], 0
            transport.writelines(pieces or self._portion())
        if not self._waiting:
            self._ordered = False
            # Not before: what is urgent would be queued behind what waits, and be overtaken itself.
            self.paused = self._transport_full
        self._leave_if_empty()

    def _portion(self) -> list[bytes]:
        """Takes what is given to the transport next of what keeps its order."""
        pieces = []
        size = 0
        while size < PORTION and self._waiting:
            pieces.append(self._waiting.popleft())
            size += len(pieces[-1])
        self._waiting_bytes -= size
        return pieces

    @property
    def buffered(self) -> int:
        """Bytes that wait in this process for the other side to read."""
        if self._transport is None:
            return 0
        return self._transport.get_write_buffer_size() + self._waiting_bytes + self.urgent

    def fall_silent(self) -> None:
        """Sends nothing more: what was sent last is the last frame of this program."""
        self._flush()
        self._silent = True

    def leave(self, done: Callable[[], None]) -> None:
        """Reads and sends no more, and calls `done` once all that was sent has left this process.

        The stream stays open for the program that takes our place.
        """
        self.fall_silent()
        if self._transport is None or self._closing:
            return
        self._transport.pause_reading()
        self._transport.set_write_buffer_limits(0)
        self._left = done
        self._leave_if_empty()

    def _leave_if_empty(self) -> None:
        if self._left is not None and not self.buffered:
            done, self._left = self._left, None
            done()

    @property
    def descriptor(self) -> int:
        """The descriptor of this end of the stream. It must be open."""
        assert self._transport is not None
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    @property
    def closing(self) -> bool:
        """True once the channel was closed by either side, or was never connected."""
        return self._transport is None or self._closing

    @property
    def lost(self) -> bool:
        """Whether the stream was connected once, and is gone."""
        return self._transport is None and self._closing

    def close(self) -> None:
        """Closes after what was sent has left. Nothing more is delivered."""
        rest = [*self._urgent, *self._waiting, *self._out]
        self._clear()
        self._closing = True
        if self._transport is not None:
            if rest:
                self._transport.writelines(rest)
            self._transport.close()

    def abort(self) -> None:
        """Closes at once; what has not left is lost. Nothing more is delivered."""
        self._closing = True
        self._clear()
        if self._transport is not None:
            self._transport.abort()

    def _clear(self) -> None:
        """Drops what waits here."""
        self._out, self._urgent = [], []
        self._waiting.clear()
        self._waiting_bytes = self.urgent = 0

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # uvloop's transports have the interface of asyncio.Transport, but are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        sock = transport.get_extra_info("socket")
        self._descriptor = -1 if sock is None else sock.fileno()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the reader knows better
        """Lends the reader's free room to the event loop."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Delivers what became complete."""
        try:
            for session, item in self._reader.received(nbytes):
                if self._closing:
                    return
                try:
                    if isinstance(item, list):
                        self.on_messages(session, item)
                    else:
                        self.on_control(session, item)
                except RemoteProtocolError:
                    raise
                except Exception as error:  # noqa: BLE001 - one message must not end all flows
                    self._met_bug(session, item, error)
        except RemoteProtocolError as error:
            self._error = error
            self.abort()
        except Exception as error:  # noqa: BLE001 - else asyncio would close without a reason
            self._bugs.tell(_log, "an IPC stream is ended by a bug", error)
            self._error = RemoteProtocolError(f"a bug: {clip(error)}", kind="ipc-frame")
            self.abort()

    def _met_bug(self, session: int, item: list[memoryview] | Control, error: Exception) -> None:
        message = None if isinstance(item, list) else item
        what = "tunnel messages" if message is None else f"control '{message.OP}'"
        self._bugs.tell(_log, f"{what} of session {session} met a bug", error)
        self.on_bug(session, message, error)

    def pause_writing(self) -> None:
        """Notes that more waits than the transport's high-water mark."""
        self._transport_full = self.paused = True

    def resume_writing(self) -> None:
        """Notes that little waits, and gives the transport more in the next turn."""
        self._transport_full = False
        if self._waiting or self._urgent:
            self._loop.call_soon(self._flush)
        else:
            self.paused = False
        self._leave_if_empty()

    def eof_received(self) -> bool:
        """Closes: neither side ever half-closes an IPC stream."""
        self._closing = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports the end, with the error that caused it, after what the other side said last."""
        if exc is not None and not self._closing:
            self._read_rest()
        self._closing = True
        self._transport = None
        self._clear()
        self.on_closed(self._error or exc)

    def _read_rest(self) -> None:
        """Delivers what had come before a write failed.

        The event loop gives a stream up as soon as a write fails, although the other process may
        have said something before it closed: how its flows ended, or that it has drained. There is
        no more of it than the socket holds, for nobody is left to write.
        """
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        try:
            while not self._closing and (count := os.readv(sock.fileno(), [self.get_buffer(-1)])):
                self.buffer_updated(count)
        except OSError:  # it was read to its end, which may be the same error once more
            return


ChannelT = TypeVar("ChannelT", bound=Channel)


async def connect(sock: socket.socket, factory: Callable[[], ChannelT]) -> ChannelT:
    """Runs a channel over one end of a `socketpair`, on the running loop; it owns `sock` then."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _, channel = await loop.create_unix_connection(factory, sock=sock)
    if channel.lost:
        # uvloop ties a socket to its transport only here. If the connection has been lost already,
        # the transport has closed the descriptor, whose number may belong to somebody else by now.
        sock.detach()
    return channel
