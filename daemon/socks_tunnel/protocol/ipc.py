"""IPC frames between the supervisor and its children.

One Unix stream per child carries frames back to back, all integers big-endian::

    +----------+--------+--------+----------------------+
    | LENGTH:4 | KIND:1 | LINK:2 |         BODY         |
    +----------+--------+--------+----------------------+
     LENGTH counts KIND, LINK and BODY (3 + the body's length).
     KIND 0: BODY is one tunnel message, untouched: TYPE at offset 7 of the frame, CONN_ID at 10.
     KIND 1: BODY is one msgpack map {"op": ...}.

LINK names the peer connection inside this daemon; 0 means "no link" (KIND 1 only).
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import Buffer
from socks_tunnel.protocol.errors import RemoteProtocolError

FRAME_HEADER = struct.Struct("!IBH")
"""LENGTH, KIND, LINK: 7 bytes."""

BODY_MAX = 65_536 + 65_536
"""Longest BODY in bytes: the tunnel message limit and 64 KiB."""

CONTROL_MAX = 16 * 1_048_576
"""Longest control map in bytes. One that a frame does not hold is cut into `part` frames, which
follow each other; their `data`, joined, is its body: {"op": "part", "data": bin, "more": bool}."""

_PART_SIZE = 65_536
_OVERHEAD = FRAME_HEADER.size - 4


class FrameKind(IntEnum):
    """KIND of an IPC frame."""

    MESSAGE = 0
    CONTROL = 1


def frame_header(kind: int, link: int, body_length: int) -> bytes:
    """Give the 7 bytes that go before a body of `body_length` bytes."""
    return FRAME_HEADER.pack(body_length + _OVERHEAD, kind, link)


def encode_control(link: int, fields: dict[str, Any]) -> bytes:
    """Give the KIND 1 frame for a map, or the frames if one does not hold it (a `config`).

    Raises :class:`ValueError` if it is over :data:`CONTROL_MAX`.
    """
    body: bytes = msgpack.packb(fields)
    if len(body) <= BODY_MAX:
        return frame_header(FrameKind.CONTROL, link, len(body)) + body
    if len(body) > CONTROL_MAX:
        raise ValueError(f"a control map of {len(body)} bytes is over the limit of {CONTROL_MAX}")
    frames = []
    for start in range(0, len(body), _PART_SIZE):
        more = start + _PART_SIZE < len(body)
        part = {"op": "part", "data": body[start : start + _PART_SIZE], "more": more}
        packed: bytes = msgpack.packb(part)
        frames += [frame_header(FrameKind.CONTROL, link, len(packed)), packed]
    return b"".join(frames)


def decode_control(body: Buffer) -> dict[str, Any]:
    """Decode the body of a KIND 1 frame. Raises :class:`RemoteProtocolError`."""
    try:
        fields = bounded.unpack_own(body)
    except bounded.Malformed as error:
        raise RemoteProtocolError(f"bad control frame: {error}", kind="ipc-control") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("op"), str):
        raise RemoteProtocolError("a control frame is not a map with an op", kind="ipc-control")
    return fields


class ControlReader:
    """Joins the parts of control maps that one frame does not hold."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def decode(self, body: Buffer) -> dict[str, Any] | None:
        """Give the map that a KIND 1 frame completes, or None: more parts are to come.

        Raises :class:`RemoteProtocolError`.
        """
        fields = decode_control(body)
        if fields["op"] != "part":
            if self._parts:
                raise RemoteProtocolError("a control map is cut short", kind="ipc-control")
            return fields
        data = fields.get("data")
        if not isinstance(data, bytes) or self._size + len(data) > CONTROL_MAX:
            raise RemoteProtocolError("a bad part of a control map", kind="ipc-control")
        self._parts.append(data)
        self._size += len(data)
        if fields.get("more"):
            return None
        whole = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return decode_control(whole)


class FrameReader:
    """Cuts a byte stream into frames, without copying bodies.

    The shell asks for room with :meth:`get_buffer`, reads into it, says how much came with
    :meth:`buffer_updated`, and then iterates over :meth:`frames`. Bodies are memoryviews into the
    reader's buffer: they are valid until the next :meth:`get_buffer`, so what must live longer is
    copied by whoever keeps it.
    """

    def __init__(self, capacity: int = 4 * BODY_MAX) -> None:
        if capacity < BODY_MAX + FRAME_HEADER.size:
            raise ValueError("the buffer must hold the longest frame")
        self._buffer = bytearray(capacity)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def get_buffer(self) -> memoryview:
        """Give the free part of the buffer, never empty. Earlier bodies become invalid."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and len(self._buffer) - self._start < BODY_MAX + FRAME_HEADER.size:
            # Only a frame that is cut by the end of the buffer is moved, once per turn of it.
            rest = self._end - self._start
            self._view[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def buffer_updated(self, count: int) -> None:
        """Take note of `count` bytes that were written at the start of the free part."""
        self._end += count

    def frames(self) -> Iterator[tuple[int, int, memoryview]]:
        """Yield (kind, link, body) for each whole frame.

        Raises :class:`RemoteProtocolError` on a length out of bounds or an unknown kind: the stream
        cannot be trusted after that.
        """
        view, unpack = self._view, FRAME_HEADER.unpack_from
        while self._end - self._start >= FRAME_HEADER.size:
            length, kind, link = unpack(view, self._start)
            if not _OVERHEAD <= length <= BODY_MAX + _OVERHEAD or kind > FrameKind.CONTROL:
                raise RemoteProtocolError(
                    f"IPC frame out of bounds: length {length}, kind {kind}", kind="ipc-frame"
                )
            stop = self._start + 4 + length
            if stop > self._end:
                return
            body = view[self._start + FRAME_HEADER.size : stop]
            self._start = stop
            yield kind, link, body
