"""Keeps the queue of a TCP connection short, so that a queue above it decides what goes first.

Datagrams in a socket's buffer can no longer be dropped when they are late, and more urgent ones
cannot overtake them. By default Linux takes megabytes, and the event loop 64 KiB.
"""

import socket
from typing import Any, Final

WRITE_BUFFER: Final = 16_384
"""Bytes that the event loop holds before its writer has to wait."""

UNSENT_MAX: Final = 32_768
"""Bytes that the kernel takes beyond those that TCP has sent. The congestion window, and with it
the speed, does not depend on it."""

TCP_NOTSENT_LOWAT: Final = 25
"""linux/tcp.h, described in tcp(7): Python's socket module has no name for it."""


def keep_queue_short(transport: Any) -> None:
    """Bounds the bytes that wait for this connection in the event loop and in the kernel.

    `transport` is one of the event loop's. It is None for a connection that has gone, and then
    nothing is done. Without TCP, as on a Unix socket, the kernel's part is left out.
    """
    if transport is None or transport.is_closing():
        return
    transport.set_write_buffer_limits(high=WRITE_BUFFER)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_MAX)
