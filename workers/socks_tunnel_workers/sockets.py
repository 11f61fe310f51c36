"""What every part of the worker does to sockets in the same way."""

import asyncio
import contextlib
import errno
import socket
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from socks_tunnel.protocol.addresses import IPAddress

KEEPALIVE_PROBES: Final = 3
"""Keepalive probes without an answer after which a connection is given up."""

KEEPALIVE_INTERVAL: Final = 15
"""Seconds between two of these probes."""

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_LINGER_RESET = struct.pack("ii", 1, 0)
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_DRAIN_BYTES_MAX = 1 << 20
_DRAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Liveness:
    """When a TCP connection is given up because the other host does not answer.

    `keepalive`: seconds of silence before the first probe (RFC 1122 section 4.2.3.6); 0: none are
    sent. `user_timeout`: seconds for which bytes may stay unacknowledged (RFC 5482); 0: as long as
    the system retransmits, which is about 15 minutes on Linux.
    """

    keepalive: int = 60
    user_timeout: int = 0


DEFAULT_LIVENESS: Final = Liveness()


def is_shortage(error: OSError) -> bool:
    """Returns whether this host lacks descriptors or memory, which passes and is nobody's fault."""
    return error.errno in _SHORTAGES


def unix_peer(sock: socket.socket) -> tuple[int, int]:
    """Returns (pid, uid) of the process that connected a Unix socket (SO_PEERCRED, unix(7)).

    In a user namespace, users who are not mapped there are 65534.
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    return pid, uid


def prepare_stream(sock: socket.socket, liveness: Liveness) -> None:
    """Makes a connected socket ready for relaying, and non-blocking.

    On TCP, Nagle's algorithm is off, a peer that vanished is noticed, and the urgent byte stays in
    the stream.
    """
    sock.setblocking(False)
    _set_options(sock, liveness)


def prepare_listening(sock: socket.socket) -> None:
    """Makes a listening socket non-blocking, and what it accepts ready for relaying but for that.

    On Linux an accepted connection has the options of its listening socket, so that they cost no
    system call for each.
    """
    sock.setblocking(False)
    _set_options(sock, DEFAULT_LIVENESS)


def listen_toward(address: IPAddress) -> socket.socket:
    """Listens on the local address from which `address` is reached, on any free port."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # Connecting a UDP socket sends nothing; it asks the routing table.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        local = probe.getsockname()[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind((local, 0))
        listener.listen(4)
    except OSError:
        listener.close()
        raise
    return listener


def _set_options(sock: socket.socket, liveness: Liveness) -> None:
    if sock.family == socket.AF_UNIX:
        return
    # A keystroke must not wait for the acknowledgement of the one before it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # RFC 6093 section 6: urgent data is in line, or the byte that the pointer names is lost on us.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if liveness.keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, liveness.keepalive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    if liveness.user_timeout:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, liveness.user_timeout * 1000)


def reset(sock: socket.socket) -> None:
    """Closes with RST (RFC 9293 section 3.10.5 ABORT), so that the other side sees no clean end.

    Unix sockets have nothing of the kind: there, the other side sees end-of-file, unless something
    that it has sent was not read.
    """
    # The socket may be dead already; closing it is all that is left then.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def linger_close(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Closes so that what was sent last still arrives.

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


def lend(sock: socket.socket) -> int:
    """Returns the descriptor of a socket that stays open in the program that takes our place."""
    sock.set_inheritable(True)
    return sock.fileno()


def adopt(fd: int) -> socket.socket:
    """Returns the non-blocking socket that the program before us has left open.

    It is inherited no further. Raises :class:`OSError` if there is none.
    """
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


# --- UDP ------------------------------------------------------------------------------------------

DATAGRAMS_PER_TURN = 64
"""Datagrams read from one socket before others get their turn."""

SOCKET_BUFFER = 1 << 20
"""Asked for as SO_RCVBUF and SO_SNDBUF in bytes, so that a burst is not lost to a busy loop."""

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def make_room(sock: socket.socket) -> None:
    """Makes a UDP socket non-blocking, with room for bursts."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def udp_socket(family: int, address: SockAddr) -> socket.socket:
    """Returns a bound, non-blocking UDP socket with room for bursts. Raises :class:`OSError`."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        make_room(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def send_failure(error: OSError) -> str:
    """Returns why a datagram was dropped that a socket did not take."""
    if isinstance(error, BlockingIOError):
        return "socket-full"
    if error.errno == errno.EMSGSIZE:
        return "too-long"
    # ICMP said so of an earlier datagram, or there is no route: UDP has nobody to tell.
    return "unreachable"
