"""Small socket manners that every part of the worker shares."""

import asyncio
import contextlib
import socket
import struct

_LINGER_RESET = struct.pack("ii", 1, 0)
_DRAIN_BYTES_MAX = 1 << 20
_DRAIN_SECONDS = 2.0


def prepare_stream(sock: socket.socket) -> None:
    """Make a connected TCP socket ready for relaying: non-blocking, no Nagle, keep-alive."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        # A keystroke must not wait for the acknowledgement of the one before it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that vanished without a word is found after the system's keep-alive time.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset(sock: socket.socket) -> None:
    """Close with RST (RFC 9293 section 3.10.5 ABORT), so that the other side sees no clean end."""
    # The socket may be dead already; closing it is all that is left then.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def linger_close(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Close so that what was sent last still arrives.

    Closing a socket with unread input sends RST, and a RST makes the other side throw away what it
    has not read yet: an error reply, for instance. So: send FIN, read what still comes (bounded in
    bytes and time), then close.
    """
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        sock.close()
        return
    left = _DRAIN_BYTES_MAX

    def close() -> None:
        timer.cancel()
        loop.remove_reader(sock)
        sock.close()

    def readable() -> None:
        nonlocal left
        try:
            count = len(sock.recv(65536))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        left -= count
        if count == 0 or left <= 0:
            close()

    timer = loop.call_later(_DRAIN_SECONDS, close)
    loop.add_reader(sock, readable)
