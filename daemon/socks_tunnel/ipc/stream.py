"""One Unix stream between the supervisor and a child, cut into frames.

The asyncio shell around :mod:`socks_tunnel.protocol.ipc`: it reads into the frame reader's own
buffer (no copy on the way in) and hands out views, a batch for each session and turn. What is sent
is the matter of :mod:`socks_tunnel.ipc.outgoing`, what is received that of
:mod:`socks_tunnel.ipc.incoming`.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import TypeVar, cast

from socks_tunnel.ipc.incoming import Incoming, TakeMessages
from socks_tunnel.ipc.outgoing import Outgoing
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import Control, Credit, encode_control

_log = logging.getLogger(__name__)


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
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._bugs = BugLog()
        incoming = self._incoming = Incoming(
            self.on_messages, self.on_control, self._met_bug, self._failed
        )
        # Methods of a compiled object in place of those that asyncio's class has: likewise.
        self.get_buffer = incoming.get_buffer  # type: ignore[method-assign] # uvloop and asyncio ask the object
        self.buffer_updated = incoming.buffer_updated  # type: ignore[method-assign] # as above
        outgoing = self._outgoing = Outgoing()
        # Not methods of this class, which cannot be compiled: one call less for each message.
        self.send_message = outgoing.send_message
        self.send_messages = outgoing.send_messages
        self.send_urgent = outgoing.send_urgent
        self.send_pieces = outgoing.send_pieces

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

    def hand_messages_to(self, taker: TakeMessages) -> None:
        """Gives tunnel messages to `taker` from now on, in place of :meth:`on_messages`.

        A method of a compiled object costs each message less than one of a subclass.
        """
        self._incoming.take_messages = taker

    # --- sending ------------------------------------------------------------------------------

    def send_control(self, session: int, message: Control) -> None:
        """Sends one control message. Raises :class:`ValueError` if it is over the limit."""
        frame = encode_control(session, message)
        self._outgoing.send_frame(frame, ordered=not isinstance(message, Credit))

    @property
    def paused(self) -> bool:
        """True while the other side reads too slowly and something waits in this process."""
        return self._outgoing.paused

    @property
    def urgent(self) -> int:
        """Bytes of urgent messages that wait in this process."""
        return self._outgoing.urgent

    @property
    def buffered(self) -> int:
        """Bytes that wait in this process for the other side to read."""
        return self._outgoing.buffered()

    def fall_silent(self) -> None:
        """Sends nothing more: what was sent last is the last frame of this program."""
        self._outgoing.flush()
        self._outgoing.shut()

    def leave(self, done: Callable[[], None]) -> None:
        """Reads and sends no more, and calls `done` once all that was sent has left this process.

        The stream stays open for the program that takes our place.
        """
        self.fall_silent()
        if self._transport is None or self._incoming.shut:
            return
        self._transport.pause_reading()
        self._transport.set_write_buffer_limits(0)
        self._outgoing.leave(done)

    @property
    def descriptor(self) -> int:
        """The descriptor of this end of the stream. It must be open."""
        assert self._transport is not None
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    @property
    def closing(self) -> bool:
        """True once the channel was closed by either side, or was never connected."""
        return self._transport is None or self._incoming.shut

    @property
    def lost(self) -> bool:
        """Whether the stream was connected once, and is gone."""
        return self._transport is None and self._incoming.shut

    def close(self) -> None:
        """Closes after what was sent has left. Nothing more is delivered."""
        rest = self._outgoing.rest()
        self._incoming.shut = True
        if self._transport is not None:
            if rest:
                self._transport.writelines(rest)
            self._transport.close()

    def abort(self) -> None:
        """Closes at once; what has not left is lost. Nothing more is delivered."""
        self._incoming.shut = True
        self._outgoing.drop()
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # uvloop's transports have the interface of asyncio.Transport, but are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        descriptor = -1 if sock is None else sock.fileno()
        self._outgoing.connected(self._transport, asyncio.get_running_loop(), descriptor)

    def _failed(self, error: Exception) -> None:
        """Ends the stream: what came, or a bug of ours, leaves nothing to be trusted after it."""
        if not isinstance(error, RemoteProtocolError):
            self._bugs.tell(_log, "an IPC stream is ended by a bug", error)
            error = RemoteProtocolError(f"a bug: {clip(error)}", kind="ipc-frame")
        self._error = error
        self.abort()

    def _met_bug(self, session: int, message: Control | None, error: Exception) -> None:
        what = "tunnel messages" if message is None else f"control '{message.OP}'"
        self._bugs.tell(_log, f"{what} of session {session} met a bug", error)
        self.on_bug(session, message, error)

    def pause_writing(self) -> None:
        """Notes that more waits than the transport's high-water mark."""
        self._outgoing.pause()

    def resume_writing(self) -> None:
        """Notes that little waits, and gives the transport more in the next turn."""
        self._outgoing.resume()

    def eof_received(self) -> bool:
        """Closes: neither side ever half-closes an IPC stream."""
        self._incoming.shut = True
        self._outgoing.shut()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports the end, with the error that caused it, after what the other side said last."""
        if exc is not None and not self._incoming.shut:
            self._read_rest()
        self._incoming.shut = True
        self._transport = None
        self._outgoing.lost()
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
            while not self._incoming.shut and (
                count := os.readv(sock.fileno(), [self.get_buffer(-1)])
            ):
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
