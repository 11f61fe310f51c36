"""One Unix stream between the supervisor and a child, cut into frames.

The asyncio shell around :mod:`socks_tunnel.protocol.ipc`: it reads into the frame reader's own
buffer (no copy on the way in) and hands out views; on the way out header and message are given to
the transport as two pieces, so that a message is never joined to its header.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, TypeVar, cast

from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    FRAME_HEADER,
    ControlReader,
    FrameKind,
    FrameReader,
    encode_control,
)

_pack_header = FRAME_HEADER.pack
_OVERHEAD = FRAME_HEADER.size - 4
"""What LENGTH counts besides the body: KIND and LINK."""

_MESSAGE = int(FrameKind.MESSAGE)  # an enum member's look-up has no place in a call per message


class Channel(asyncio.BufferedProtocol):
    """One end of an IPC stream. Subclasses say what happens with what arrives.

    :meth:`on_message` and :meth:`on_control` are called on the event loop in the order of the
    stream. If one of them raises :class:`RemoteProtocolError`, or the stream itself breaks the
    framing, the channel is aborted and :meth:`on_closed` gets that error: after it nothing more is
    delivered. Sending on a closed channel does nothing, as the other process is gone.

    Writing is never awaited. What the other side does not read yet piles up in the transport;
    :attr:`buffered` says how much, and whoever sends keeps it bounded.
    """

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._control_reader = ControlReader()
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._closing = False
        self.paused = False
        """True while the other side reads too slowly and much waits in this process."""

    # --- for subclasses -----------------------------------------------------------------------

    def on_message(self, link: int, body: memoryview) -> None:
        """Take one tunnel message. `body` is valid only during the call: copy what is kept."""
        raise NotImplementedError

    def on_control(self, link: int, fields: dict[str, Any]) -> None:
        """Take one control frame; `fields["op"]` is text. `link` is 0 if it names no link."""
        raise NotImplementedError

    def on_closed(self, error: Exception | None) -> None:
        """Take note of the end, exactly once; `error` is None after EOF or :meth:`close`."""

    # --- sending ------------------------------------------------------------------------------

    def send_message(self, link: int, message: bytes | memoryview) -> None:
        """Send one tunnel message. It is not copied: a view must stay unchanged until it left."""
        transport = self._transport
        if transport is None or self._closing:
            return
        size = len(message)
        if size > BODY_MAX:
            raise ValueError(f"a message of {size} bytes is over the IPC limit of {BODY_MAX}")
        transport.writelines((_pack_header(size + _OVERHEAD, _MESSAGE, link), message))

    def send_pieces(self, link: int, header: bytes, payload: bytes | memoryview) -> None:
        """Send one tunnel message made of two pieces; otherwise as :meth:`send_message`."""
        transport = self._transport
        if transport is None or self._closing:
            return
        size = len(header) + len(payload)
        if size > BODY_MAX:
            raise ValueError(f"a message of {size} bytes is over the IPC limit of {BODY_MAX}")
        transport.writelines((_pack_header(size + _OVERHEAD, _MESSAGE, link) + header, payload))

    def send_control(self, link: int, fields: dict[str, Any]) -> None:
        """Send one control frame. Raises :class:`ValueError` if it is over the frame limit."""
        frame = encode_control(link, fields)
        if self._transport is not None and not self._closing:
            self._transport.write(frame)

    @property
    def buffered(self) -> int:
        """Bytes that wait in this process for the other side to read."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        """True once the channel was closed by either side, or was never connected."""
        return self._transport is None or self._closing

    def close(self) -> None:
        """Close after what was sent has left. Nothing more is delivered."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what has not left is lost. Nothing more is delivered."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports have the interface of asyncio.Transport, but are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the reader knows better
        """Lend the reader's free room to the event loop."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Deliver each whole frame."""
        reader = self._reader
        reader.buffer_updated(nbytes)
        on_message = self.on_message
        try:
            for kind, link, body in reader.frames():
                if self._closing:
                    return
                if kind == _MESSAGE:
                    on_message(link, body)
                else:
                    fields = self._control_reader.decode(body)
                    if fields is not None:
                        self.on_control(link, fields)
        except RemoteProtocolError as error:
            self._error = error
            self.abort()

    def pause_writing(self) -> None:
        """Note that more waits than the transport's high-water mark."""
        self.paused = True

    def resume_writing(self) -> None:
        """Note that little waits."""
        self.paused = False

    def eof_received(self) -> bool:
        """Close: neither side ever half-closes an IPC stream."""
        self._closing = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, with the error that caused it."""
        self._closing = True
        self._transport = None
        self.on_closed(self._error or exc)


ChannelT = TypeVar("ChannelT", bound=Channel)


async def connect(sock: socket.socket, factory: Callable[[], ChannelT]) -> ChannelT:
    """Run a channel over one end of a `socketpair`, on the running loop; it owns `sock` then."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _, channel = await loop.create_unix_connection(factory, sock=sock)
    return channel
