"""Descriptors for a process that runs already: its listening sockets, by SCM_RIGHTS (unix(7)).

A child inherits its listeners when it is started. A worker whose program was replaced gets them
from the new supervisor, as the first thing on its IPC stream, before any frame; so they may be
others than before. All integers are big-endian::

    +---------+--------+------------------+
    | COUNT:2 | MORE:1 | COUNT x NUMBER:4 |
    +---------+--------+------------------+

The descriptors come with the first byte of each such message, in the order of the numbers; NUMBER
is what the sender calls each of them. MORE is 1 if another message follows.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from socks_tunnel.protocol.errors import RemoteProtocolError

PER_MESSAGE: Final = 253
"""Descriptors that the kernel passes with one message (SCM_MAX_FD in unix(7))."""

_HEADER: Final = struct.Struct("!HB")
_NUMBER: Final = struct.Struct("!I")


def send_descriptors(sock: socket.socket, numbers: Sequence[int]) -> None:
    """Sends descriptors of this process. Raises :class:`OSError` if the stream has no room."""
    for start in range(0, max(len(numbers), 1), PER_MESSAGE):
        part = numbers[start : start + PER_MESSAGE]
        more = start + PER_MESSAGE < len(numbers)
        data = _HEADER.pack(len(part), more) + b"".join(map(_NUMBER.pack, part))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", part))] if part else []
        sent = sock.sendmsg([data], rights)
        if sent != len(data):
            raise BlockingIOError(f"the stream took {sent} of {len(data)} bytes")


def receive_descriptors(sock: socket.socket) -> dict[int, int]:
    """Returns this process's descriptors by the numbers of the sender's.

    The socket blocks, and may have a time-out. Raises :class:`OSError`, of which
    :class:`ConnectionResetError` stands for the end of the stream, and
    :class:`RemoteProtocolError`; what has come is closed then.
    """
    found: dict[int, int] = {}
    try:
        more = 1
        while more:
            descriptors: list[int] = []
            header = _receive(sock, _HEADER.size, descriptors)
            count, more = _HEADER.unpack(header)
            numbers = _receive(sock, count * _NUMBER.size, descriptors)
            names = (number for (number,) in _NUMBER.iter_unpack(numbers))
            found.update(zip(names, descriptors, strict=False))
            _check_count(len(descriptors), count)
    except BaseException:
        for fd in found.values():
            os.close(fd)
        raise
    return found


def _check_count(came: int, announced: int) -> None:
    if came != announced:
        raise RemoteProtocolError(
            f"{came} descriptors came where {announced} were announced", kind="ipc-descriptors"
        )


def _receive(sock: socket.socket, size: int, descriptors: list[int]) -> bytes:
    """Returns exactly `size` bytes; descriptors that come with them are added."""
    data = b""
    while len(data) < size:
        part, rights, _, _ = sock.recvmsg(
            size - len(data), socket.CMSG_SPACE(PER_MESSAGE * 4), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                descriptors += numbers
        if not part:
            raise ConnectionResetError("the stream ended before the descriptors had come")
        data += part
    return data
