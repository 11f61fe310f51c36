"""What one end of an IPC stream sends: its frames, and in which order they leave.

In a module and a class of its own, because all that is sent passes here, and it can be compiled
(docs/adr/0028): :class:`socks_tunnel.ipc.stream.Channel`, from which others inherit, cannot.

Everything that is sent within one turn of the event loop leaves with one write. A small message
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
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from socks_tunnel.protocol.ipc import BODY_MAX, FRAME_HEADER, FrameKind
from socks_tunnel.protocol.lone import LONE_BYTES, Lone

_pack_header = FRAME_HEADER.pack
_HEADER_SIZE: Final = FRAME_HEADER.size
_OVERHEAD: Final = FRAME_HEADER.size - 4
"""What LENGTH counts besides the body: KIND and SESSION."""

PORTION: Final = 65_536
"""Bytes that are given to the transport at a time while more waits: about what it takes before it
asks for a pause."""

# An enum member's look-up has no place in a call per message.
_MESSAGE: Final = int(FrameKind.MESSAGE)


class Outgoing:
    """The sending half of one stream. Sending before it is connected, or when it is shut, is void.

    Writing is never awaited. What the other side does not read yet piles up; :meth:`buffered` says
    how much, and whoever sends keeps it bounded.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._descriptor = -1
        self._open = False
        self._out: list[bytes | memoryview] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._urgent: list[bytes] = []
        self.urgent = 0
        """Bytes of urgent messages that wait in this process."""
        self._ordered = False  # whether something waits that nothing may overtake
        self._left: Callable[[], None] | None = None
        self.paused = False
        """True while the other side reads too slowly and something waits in this process."""
        self._transport_full = False  # whether the transport has as much as it wants
        self._lone = Lone()

    def connected(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, descriptor: int
    ) -> None:
        """Sends by this transport from now on; `descriptor` is its socket's, or -1."""
        self._transport = transport
        self._loop = loop
        self._descriptor = descriptor
        self._open = True

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
        if not self._open:
            return
        out = self._writable()
        for message in messages:
            out.append(_pack_header(_checked(len(message)) + _OVERHEAD, _MESSAGE, session))
            out.append(message)

    def send_urgent(self, session: int, messages: Sequence[bytes | memoryview]) -> None:
        """Sends tunnel messages that may overtake others, but no control message except CREDIT."""
        if self._ordered or not self.paused:
            self.send_messages(session, messages)
            return
        if not self._open:
            return
        for message in messages:
            size = _checked(len(message))
            self._urgent.append(_pack_header(size + _OVERHEAD, _MESSAGE, session))
            self._urgent.append(bytes(message))
            self.urgent += size + _HEADER_SIZE

    def send_pieces(self, session: int, header: bytes, payload: bytes | memoryview) -> None:
        """Sends one tunnel message made of two pieces; otherwise as :meth:`send_message`."""
        if not self._open:
            return
        size = _checked(len(header) + len(payload))
        head: bytes = _pack_header(size + _OVERHEAD, _MESSAGE, session) + header
        out = self._out
        if not out:
            if size <= LONE_BYTES and not self.paused and self._write_alone(head, payload):
                return
            out = self._writable()
        out.append(head)
        out.append(payload)

    def _write_alone(self, head: bytes, payload: bytes | memoryview) -> bool:
        """Writes a frame at once if it is not one of many; returns whether it was taken.

        Nothing that was sent before may still be in this object.
        """
        transport = self._transport
        # The descriptor may be somebody else's if the event loop has given the stream up.
        if (
            transport is None
            or not self._lone.comes(time.monotonic())
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

    def send_frame(self, frame: bytes, *, ordered: bool) -> None:
        """Sends a control message's frame. With `ordered`, nothing that follows may overtake it."""
        if not self._open:
            return
        self._writable().append(frame)
        if ordered and self.paused:
            self._ordered = True

    def _writable(self) -> list[bytes | memoryview]:
        """Returns what leaves at the end of this turn."""
        if not self._out:
            assert self._loop is not None
            self._loop.call_soon(self.flush)
        return self._out

    def flush(self) -> None:
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
        for piece in out:
            self._waiting.append(bytes(piece))
            self._waiting_bytes += len(piece)
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
        pieces: list[bytes] = []
        size = 0
        while size < PORTION and self._waiting:
            piece = self._waiting.popleft()
            pieces.append(piece)
            size += len(piece)
        self._waiting_bytes -= size
        return pieces

    def buffered(self) -> int:
        """Returns how many bytes wait in this process for the other side to read."""
        if self._transport is None:
            return 0
        return self._transport.get_write_buffer_size() + self._waiting_bytes + self.urgent

    # --- the transport's wishes ---------------------------------------------------------------

    def pause(self) -> None:
        """Notes that more waits than the transport's high-water mark."""
        self._transport_full = True
        self.paused = True

    def resume(self) -> None:
        """Notes that little waits, and gives the transport more in the next turn."""
        self._transport_full = False
        if self._waiting or self._urgent:
            assert self._loop is not None
            self._loop.call_soon(self.flush)
        else:
            self.paused = False
        self._leave_if_empty()

    # --- the end ------------------------------------------------------------------------------

    def shut(self) -> None:
        """Sends nothing more; what was sent before still leaves."""
        self._open = False

    def rest(self) -> list[bytes | memoryview]:
        """Sends nothing more, and returns what has not been given to the transport yet."""
        rest: list[bytes | memoryview] = [*self._urgent, *self._waiting, *self._out]
        self.drop()
        return rest

    def drop(self) -> None:
        """Sends nothing more, and drops what waits here."""
        self._open = False
        self._out = []
        self._urgent = []
        self._waiting.clear()
        self._waiting_bytes = 0
        self.urgent = 0

    def lost(self) -> None:
        """Drops what waits: the transport is gone."""
        self.drop()
        self._transport = None

    def leave(self, done: Callable[[], None]) -> None:
        """Calls `done` once all that was sent has left this process."""
        self._left = done
        self._leave_if_empty()

    def _leave_if_empty(self) -> None:
        done = self._left
        if done is not None and not self.buffered():
            self._left = None
            done()


def _checked(size: int) -> int:
    """Returns the size of a message. Raises :class:`ValueError` if a frame cannot hold it."""
    if size > BODY_MAX:
        raise ValueError(f"a message of {size} bytes is over the IPC limit of {BODY_MAX}")
    return size
