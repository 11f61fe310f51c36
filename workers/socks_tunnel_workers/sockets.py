"""Small socket manners that every part of the worker shares."""

import asyncio
import contextlib
import socket
import struct

_LINGER_RESET = struct.pack("ii", 1, 0)
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_DRAIN_BYTES_MAX = 1 << 20
_DRAIN_SECONDS = 2.0


def unix_peer(sock: socket.socket) -> tuple[int, int]:
    """Give (pid, uid) of the process that connected a Unix socket (SO_PEERCRED, unix(7)).

    In a user namespace, users who are not mapped there are 65534.
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    return pid, uid


def prepare_stream(sock: socket.socket) -> None:
    """Make a connected socket ready for relaying: non-blocking; TCP without Nagle, kept alive."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        # A keystroke must not wait for the acknowledgement of the one before it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that vanished without a word is found after the system's keep-alive time.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset(sock: socket.socket) -> None:
    """Close with RST (RFC 9293 section 3.10.5 ABORT), so that the other side sees no clean end.

    Unix sockets have nothing of the kind: there, the other side sees end-of-file, unless something
    that it has sent was not read.
    """
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
