"""Listening sockets: bound here or inherited from systemd, then shared by all workers.

One socket for each address, not one for each worker: what waits in its accept queue is lost with no
worker's death, and any worker can take it.
"""

import errno
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from socks_tunnel.protocol.addresses import HostPort, parse_ip

_log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that may wait for a worker; the kernel's net.core.somaxconn bounds it too."""

_FIRST_ACTIVATED_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


class ListenError(Exception):
    """A listener cannot be had; the text is a sentence that says what to do about it."""


@dataclass(slots=True)
class Listener:
    """A listening TCP socket, or the bound UDP socket of a forward.

    `activated`: it is systemd's, which goes on to hold it. `target` is where a forward leads to,
    None for a SOCKS listener.
    """

    socket: socket.socket
    activated: bool
    target: HostPort | None = None

    @property
    def kind(self) -> str:
        """What a worker is told of it."""
        if self.target is None:
            return "socks"
        return "forward-udp" if self.socket.type == socket.SOCK_DGRAM else "forward-tcp"

    @property
    def address(self) -> HostPort:
        """Where it listens; with the port that the system chose if 0 was asked for."""
        host, port = self.socket.getsockname()[:2]
        return HostPort(host, port)

    def refuse(self) -> None:
        """Let the kernel refuse new connections, also for the processes that share the socket.

        systemd's socket is left as it is: connections wait there for the next start.
        """
        if not self.activated and self.socket.type == socket.SOCK_STREAM:
            try:
                self.socket.shutdown(socket.SHUT_RD)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # it did not listen any more
                    raise

    def close(self) -> None:
        """Close this process's hold of it."""
        self.socket.close()


def activated_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """Give the sockets that systemd passed to this process (sd_listen_fds(3)).

    Those that are neither listening TCP sockets nor UDP sockets are closed, with a warning.
    Children do not inherit them unless they are passed on.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    sockets = []
    for fd in range(_FIRST_ACTIVATED_FD, _FIRST_ACTIVATED_FD + int(count or 0)):
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        if sock.family in {socket.AF_INET, socket.AF_INET6} and (
            sock.type == socket.SOCK_DGRAM
            or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            sockets.append(sock)
        else:
            _log.warning("systemd passed file descriptor %d, which no listener can use", fd)
            sock.close()
    return sockets


def open_listeners(
    setting: str, wanted: Sequence[HostPort], activated: list[socket.socket]
) -> list[Listener]:
    """Give a listener for each address, in order.

    Of the `activated` sockets the one of that address is taken, or else the next that no address
    asks for; those taken are removed from the list. Where none is left, a socket is bound. Raises
    :class:`ListenError`; nothing stays bound then. `setting` names the configuration key in it.
    """
    chosen: dict[int, socket.socket] = {}
    for position, address in enumerate(wanted):
        match = next((sock for sock in activated if listens_at(sock, address)), None)
        if match is not None:
            activated.remove(match)
            chosen[position] = match
    listeners: list[Listener] = []
    for position, address in enumerate(wanted):
        sock = chosen.get(position)
        if sock is None:
            sock = next((s for s in activated if s.type == socket.SOCK_STREAM), None)
            if sock is not None:
                activated.remove(sock)
        if sock is not None and position not in chosen:
            _log.info("%s: %s is served on systemd's socket %s", setting, address, _name_of(sock))
        if sock is not None:
            sock.setblocking(False)
            listeners.append(Listener(sock, activated=True))
            continue
        try:
            listeners.append(bind(setting, address))
        except ListenError as error:
            if len(wanted) > 1 and _has_no_ipv6(address, error):
                _log.warning("%s; the other listeners are used", error)
                continue
            for listener in listeners:
                listener.close()
            raise
    return listeners


def open_forwards(
    forwards: Sequence[tuple[str, HostPort, HostPort]], activated: list[socket.socket]
) -> list[Listener]:
    """Give a listener for each forward: ("tcp" or "udp", where it listens, its target).

    An `activated` socket is used only where it has that address. Raises :class:`ListenError`;
    nothing stays bound then.
    """
    listeners: list[Listener] = []
    for index, (protocol, address, target) in enumerate(forwards):
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        match = next((s for s in activated if listens_at(s, address, kind)), None)
        try:
            if match is not None:
                activated.remove(match)
                match.setblocking(False)
                listener = Listener(match, activated=True)
            else:
                listener = bind(f"forwards[{index}].listen", address, kind)
        except ListenError:
            for other in listeners:
                other.close()
            raise
        listener.target = target
        listeners.append(listener)
    return listeners


def bind(setting: str, address: HostPort, kind: socket.SocketKind = socket.SOCK_STREAM) -> Listener:
    """Bind one address and, for TCP, listen on it. Raises :class:`ListenError`."""
    ip = parse_ip(address.host)
    assert ip is not None, "the configuration takes no names as listeners"
    try:
        sock = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, kind)
    except OSError as error:
        raise ListenError(f"{setting}: cannot listen on {address}: {_advice(error)}") from error
    try:
        if kind == socket.SOCK_STREAM:  # on UDP it would let others take the port as well
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ip.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"{setting}: cannot listen on {address}: {_advice(error)}") from error
    return Listener(sock, activated=False)


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                "another program listens there; stop it, or choose another port "
                "(`ss -ltnp` shows who it is)"
            )
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return "this host has no such address"
        case errno.EACCES:
            return "no permission; ports below 1024 need CAP_NET_BIND_SERVICE"
        case _:
            return error.strerror or str(error)


def _has_no_ipv6(address: HostPort, error: ListenError) -> bool:
    # The default is to listen on both loopback addresses, and many hosts have IPv6 switched off.
    cause = error.__cause__
    return (
        address.host == "::1"
        and isinstance(cause, OSError)
        and cause.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    )


def listens_at(
    sock: socket.socket, address: HostPort, kind: socket.SocketKind = socket.SOCK_STREAM
) -> bool:
    """Tell whether a socket is of this kind and bound to exactly this address and port."""
    host, port = sock.getsockname()[:2]
    return sock.type == kind and parse_ip(host) == parse_ip(address.host) and port == address.port


def _name_of(sock: socket.socket) -> HostPort:
    host, port = sock.getsockname()[:2]
    return HostPort(host, port)
