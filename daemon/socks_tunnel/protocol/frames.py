"""Frames of an IPC stream, cut out of what was read. They are those of socks_tunnel.protocol.ipc.

In a module of its own, because all bytes of all flows pass here, and it can be compiled.
docs/adr/0028 says why the control messages cannot.
"""

from typing import Final, TypeAlias

from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    BUFFER_SIZE,
    CONTROL_MAX,
    FRAME_HEADER,
    Control,
    FrameKind,
    decode_control,
)

_HEADER: Final = FRAME_HEADER.size
_OVERHEAD: Final = FRAME_HEADER.size - 4
"""What LENGTH counts besides the body: KIND and SESSION."""

# Plain integers: a comparison with an enum member has no place in a loop over messages.
_MESSAGE: Final = int(FrameKind.MESSAGE)
_PART: Final = int(FrameKind.PART)

Batch: TypeAlias = tuple[int, list[memoryview]]
"""Tunnel messages that follow each other in the stream and belong to one session."""


class FrameReader:
    """Cuts a byte stream into frames, without copying bodies.

    The shell asks for room with :meth:`get_buffer`, reads into it, and hands the number of bytes
    that came to :meth:`received`. Bodies are memoryviews into the reader's buffer: they are valid
    until the next :meth:`get_buffer`, so what must live longer is copied by whoever keeps it.
    """

    def __init__(self, capacity: int = BUFFER_SIZE) -> None:
        if capacity < BODY_MAX + _HEADER:
            raise LocalProtocolError("the buffer must hold the longest frame")
        self._buffer = bytearray(capacity)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._parts: list[bytes] = []
        self._parts_size = 0

    def get_buffer(self) -> memoryview:
        """Returns the free part of the buffer, never empty. Earlier bodies become invalid."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and len(self._buffer) - self._start < BODY_MAX + _HEADER:
            # Only a frame that is cut by the end of the buffer is moved, once per turn of it.
            rest = self._end - self._start
            self._view[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def received(self, count: int) -> list[Batch | tuple[int, Control]]:
        """Returns what `count` more bytes complete, in the order of the stream.

        Each item is a session's number and either a list of tunnel messages or one control message.
        Raises :class:`RemoteProtocolError` on a length out of bounds, an unknown kind or a control
        message that cannot be decoded: the stream cannot be trusted after that.
        """
        self._end += count
        items: list[Batch | tuple[int, Control]] = []
        batch: list[memoryview] = []
        batch_session = -1
        view, unpack, start, end = self._view, FRAME_HEADER.unpack_from, self._start, self._end
        while end - start >= _HEADER:
            length, kind, session = unpack(view, start)
            if not _OVERHEAD <= length <= BODY_MAX + _OVERHEAD or kind > _PART:
                raise RemoteProtocolError(
                    f"IPC frame out of bounds: length {length}, kind {kind}", kind="ipc-frame"
                )
            stop = start + 4 + length
            if stop > end:
                break
            body = view[start + _HEADER : stop]
            start = stop
            if kind == _MESSAGE:
                if session != batch_session:
                    batch = []
                    batch_session = session
                    items.append((session, batch))
                batch.append(body)
                continue
            batch_session = -1
            message = self._control(kind, body)
            if message is not None:
                items.append((session, message))
        self._start = start
        return items

    def _control(self, kind: int, body: memoryview) -> Control | None:
        if kind == _PART or self._parts:
            self._parts_size += len(body)
            if self._parts_size > CONTROL_MAX:
                raise RemoteProtocolError("a control message is too long", kind="ipc-control")
            self._parts.append(bytes(body))
            if kind == _PART:
                return None
            whole = b"".join(self._parts)
            self._parts.clear()
            self._parts_size = 0
            return decode_control(whole)
        return decode_control(body)
