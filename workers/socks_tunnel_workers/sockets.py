"""Socket options, and ways to close, lend and adopt sockets, for all parts of the worker."""

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

DISCARD_PORT: Final = 9
"""The port (RFC 863) in a connect(2) of a UDP socket that only asks the routing table. Nothing is
sent."""

LINGER_BYTES_MAX: Final = 1 << 20
"""Bytes that are still read from a socket whose last bytes have to arrive."""

LINGER_SECONDS: Final = 2.0
"""Seconds for which such a socket is still read."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """When a TCP connection is given up because the other host does not answer.

    `keepalive` is in seconds of silence before the first probe (RFC 1122 section 4.2.3.6); 0 means
    no probes. `user_timeout` is in seconds for which bytes may stay unacknowledged (RFC 5482); 0
    means as long as the system retransmits, which is about 15 minutes on Linux.
    """

    keepalive: int = 60
    user_timeout: int = 0


DEFAULT_LIVENESS: Final = Liveness()


class PlainSocket(socket.socket):
    """A socket whose family and type are plain integers.

    The base class makes a member of an enumeration of them each time. :meth:`socket.socket.accept`
    asks for both, which takes some 5 µs of each connection.
    """

    __slots__ = ()  # a dictionary for each connection would cost memory

    family = socket.SocketType.family  # type: ignore[assignment] # an int, as IntEnum members are
    type = socket.SocketType.type  # type: ignore[assignment] # as above


def is_shortage(error: OSError) -> bool:
    """Returns whether this host is short of descriptors or memory, which is a passing state."""
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

    On TCP, this turns Nagle's algorithm off and keepalive on, and keeps the urgent byte in the
    stream.
    """
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        _set_options(sock, liveness)
        keep_alive(sock, liveness)


def prepare_dialled(sock: socket.socket, liveness: Liveness) -> None:
    """Makes a new TCP socket ready for relaying, and non-blocking, but leaves keepalive off.

    :func:`keep_alive` turns it on, by four system calls that a short connection does not need.
    """
    sock.setblocking(False)
    _set_options(sock, liveness)


def keep_alive(sock: socket.socket, liveness: Liveness) -> None:
    """Turns keepalive on for a TCP connection, if it is wanted.

    The silence before the first probe counts from the last byte that came, also if that was before
    this call: Linux takes the silence so far into account when TCP_KEEPIDLE is set while keepalive
    is on already, and begins a whole new period when keepalive is turned on last.
    """
    if liveness.keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, liveness.keepalive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def prepare_listening(sock: socket.socket) -> None:
    """Makes a listening socket non-blocking, and sets the options of the sockets that it accepts.

    On Linux an accepted socket inherits these options, so it takes no system calls to set them. It
    does not inherit being non-blocking.
    """
    prepare_stream(sock, DEFAULT_LIVENESS)


def listen_toward(address: IPAddress) -> socket.socket:
    """Listens on the local address from which `address` is reached, on any free port.

    Raises :class:`OSError`, also if no route leads to `address`.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), DISCARD_PORT))
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
    # A keystroke must not wait for the acknowledgement of the previous one.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # RFC 6093 section 6: urgent data stays in line. Otherwise recv() would skip the urgent byte.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if liveness.user_timeout:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, liveness.user_timeout * 1000)


def reset(sock: socket.socket) -> None:
    """Closes with RST (RFC 9293 section 3.10.5 ABORT), so that the other side sees no clean end.

    Unix sockets have no RST: there, the other side sees an end of file, or ECONNRESET if something
    that it has sent was not read.
    """
    # The connection may be gone already. Then the socket only has to be closed.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def linger_close(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Closes a socket so that what was sent last still arrives. Takes the socket over.

    To close a socket with unread input sends RST, and a RST makes the other side throw away what it
    has not read yet, such as an error reply. So this sends FIN, reads what still comes, up to
    :data:`LINGER_BYTES_MAX` and :data:`LINGER_SECONDS`, and then closes.
    """
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # the connection is gone: nothing can arrive any more
        sock.close()
        return
    left = LINGER_BYTES_MAX

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

    timer = loop.call_later(LINGER_SECONDS, close)
    loop.add_reader(sock, readable)


def lend(sock: socket.socket) -> int:
    """Returns the descriptor of a socket, which will stay open when the program is replaced."""
    sock.set_inheritable(True)
    return sock.fileno()


def adopt(fd: int) -> socket.socket:
    """Returns the socket that the previous program has left open, non-blocking.

    It is not inherited further. Raises :class:`OSError` if the descriptor is not open.
    """
    sock = PlainSocket(fileno=fd)
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


# --- UDP ------------------------------------------------------------------------------------------

DATAGRAMS_PER_TURN = 64
"""Datagrams read from one socket before others get their turn."""

SOCKET_BUFFER = 1 << 20
"""SO_RCVBUF and SO_SNDBUF in bytes, so that no burst is lost while the event loop is busy. The
system gives less if net.core.rmem_max or wmem_max is lower."""

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def prepare_datagrams(sock: socket.socket) -> None:
    """Makes a UDP socket non-blocking, and its buffers large enough for bursts."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def udp_socket(family: int, address: SockAddr) -> socket.socket:
    """Returns a UDP socket bound to `address`, prepared by :func:`prepare_datagrams`.

    An IPv6 socket takes no IPv4. Raises :class:`OSError`.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        prepare_datagrams(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def send_failure(error: OSError) -> str:
    """Returns the reason label for a datagram that a socket did not take."""
    if isinstance(error, BlockingIOError):
        return "socket-full"
    if error.errno == errno.EMSGSIZE:
        return "too-long"
    # No route leads there, or an ICMP message answered an earlier datagram. UDP has no way to tell
    # the client.
    return "unreachable"
