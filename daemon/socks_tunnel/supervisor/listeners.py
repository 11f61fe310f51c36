"""Listening sockets: bound here or inherited from systemd, then shared by all workers.

There is one socket for each address, and not one for each worker. So any worker can accept a queued
connection, and the queue survives the death of a worker.

A Unix socket is also a file, which survives a process that is killed. An existing file is removed
only if it is a socket that nobody listens on. At the end the file is removed only if it still is
the one that was made here.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, TypeAlias

from socks_tunnel.config.settings import listener_text
from socks_tunnel.protocol.addresses import HostPort, parse_ip

_log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that may wait for a worker. The kernel's net.core.somaxconn limits them too."""

UNIX_MODE: Final = 0o660
"""Mode of a Unix socket that is bound here: the user and the group of the daemon may connect."""

LOCK_TIMEOUT: Final = 2.0
"""Seconds to wait for another instance that is making a Unix socket in the same directory."""

_LOCK_POLL: Final = 0.02
"""Seconds between two attempts to get that lock."""

_FIRST_ACTIVATED_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})


Address: TypeAlias = HostPort | Path
"""Where a listener is: an address and port, or the path of a Unix socket."""


class ListenError(Exception):
    """It is not possible to listen on an address. The text is a sentence that says what to do."""


class RemoteListenerError(ListenError):
    """A listener can be reached by other hosts, which the configuration does not allow.

    The text says what to change.
    """


@dataclass(slots=True)
class Listener:
    """A listening TCP or Unix socket, or the bound UDP socket of a forward.

    `activated` means that systemd has passed the socket, and keeps it open itself. `target` is the
    target of a forward, None for a listener of the proxy. `file` is the device and inode of the
    file that was made here for a Unix socket.
    """

    socket: socket.socket
    activated: bool
    target: HostPort | None = None
    file: tuple[int, int] | None = None
    wanted: Address | None = None
    """The address in the configuration that it serves."""

    @property
    def kind(self) -> str:
        """The kind for workers: `socks`, `forward-tcp` or `forward-udp`."""
        if self.target is None:
            return "socks"
        return "forward-udp" if self.socket.type == socket.SOCK_DGRAM else "forward-tcp"

    @property
    def address(self) -> Address:
        """The address of the socket, with the port that the system chose if 0 was configured."""
        return _name_of(self.socket)

    def refuse(self) -> None:
        """Lets the kernel refuse new connections, for all processes that share the socket.

        Queued connections are ended. A socket of systemd is left as it is: connections wait there
        for the next start.
        """
        if self.activated or self.socket.type != socket.SOCK_STREAM:
            return
        try:
            self.socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # it does not listen any more
                raise
        if self.socket.family == socket.AF_UNIX:
            # The shutdown has emptied the queue of a TCP socket, but not that of a Unix socket.
            with contextlib.suppress(OSError):
                while True:
                    self.socket.accept()[0].close()

    def close(self) -> None:
        """Closes the socket in this process, and removes the file of a Unix socket made here."""
        if self.file is not None:
            path = Path(self.socket.getsockname())
            # Another instance may have made its own file there since this one stopped listening.
            with contextlib.suppress(OSError):
                if _file_of(path) == self.file:
                    path.unlink()
            self.file = None
        self.socket.close()


def activated_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """Returns the sockets that systemd passed to this process (sd_listen_fds(3)).

    Those that are neither listening TCP or Unix sockets nor UDP sockets are closed, with a warning.
    Children do not inherit them unless they are passed on.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    sockets = []
    for fd in range(_FIRST_ACTIVATED_FD, _FIRST_ACTIVATED_FD + int(count or 0)):
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
        is_udp = sock.type == socket.SOCK_DGRAM and sock.family in _INTERNET
        if (listens and sock.family in {*_INTERNET, socket.AF_UNIX}) or is_udp:
            sockets.append(sock)
        else:
            _log.warning(
                "systemd passed file descriptor %d, which no listener can use: closing it; "
                "check the .socket unit",
                fd,
            )
            sock.close()
    return sockets


def open_listeners(
    setting: str,
    wanted: Sequence[Address],
    activated: list[socket.socket],
    *,
    others: bool = False,
) -> list[Listener]:
    """Returns a listener for each address, in order.

    An address gets the `activated` socket that is bound to it, or else the next one of its kind
    that no other address matches. These are removed from the list. If none is left, a socket is
    bound. A missing IPv6 loopback address is left out if there are other listeners; `others` says
    that the caller has some. Raises :class:`ListenError`, which names the configuration key
    `setting`; then nothing stays bound.
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
            sock = next((s for s in activated if _may_stand_in(s, address)), None)
            if sock is not None:
                activated.remove(sock)
        if sock is not None and position not in chosen:
            _log.info(
                "%s: %s is served on systemd's socket %s",
                setting,
                listener_text(address),
                listener_text(_name_of(sock)),
            )
        if sock is not None:
            sock.setblocking(False)
            listeners.append(Listener(sock, activated=True, wanted=address))
            continue
        try:
            if isinstance(address, Path):
                listener = bind_unix(setting, address)
            else:
                listener = bind(setting, address)
            listener.wanted = address
            listeners.append(listener)
        except ListenError as error:
            if (len(wanted) > 1 or others) and has_no_ipv6(address, error):
                _log.warning("%s; the other listeners are used", error)
                continue
            for listener in listeners:
                listener.close()
            raise
    return listeners


def open_forwards(
    forwards: Sequence[tuple[str, HostPort, HostPort]], activated: list[socket.socket]
) -> list[Listener]:
    """Returns a listener for each forward: ("tcp" or "udp", the address, the target).

    An `activated` socket is used only if it has that address. Raises :class:`ListenError`; then
    nothing stays bound.
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
        listener.target, listener.wanted = target, address
        listeners.append(listener)
    return listeners


def bind(setting: str, address: HostPort, kind: socket.SocketKind = socket.SOCK_STREAM) -> Listener:
    """Binds one address and, for TCP, listens on it. Raises :class:`ListenError`."""
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


def bind_unix(setting: str, path: Path) -> Listener:
    """Binds a Unix socket with mode 0660 and listens on it. Raises :class:`ListenError`.

    A socket file that nobody listens on is replaced. No other file is touched.
    """
    where = f"{setting}: cannot listen on {listener_text(path)}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Two instances that find the same dead socket must not remove each other's new socket.
        with _locked(path.parent):
            _remove_dead(path)
            # The umask gives the file its mode when it is made, so that it never has another.
            umask = os.umask(0o777 & ~UNIX_MODE)
            try:
                sock.bind(str(path))
            finally:
                os.umask(umask)
            made = _file_of(path)
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except ListenError as error:
        sock.close()
        raise ListenError(f"{where}: {error}") from None
    except OSError as error:
        sock.close()
        raise ListenError(f"{where}: {_unix_advice(error, path)}") from error
    return Listener(sock, activated=False, file=made)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory (flock(2)), which leaves no file behind."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ListenError(f"another program has locked {directory}") from None
                time.sleep(_LOCK_POLL)  # blocking is harmless: children and links start later
        yield
    finally:
        os.close(fd)


def _remove_dead(path: Path) -> None:
    """Removes a socket that nobody listens on. Raises :class:`ListenError` for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError("that file is no socket, and is left alone; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue (EAGAIN) also shows that somebody listens
        result = probe.connect_ex(str(path))
    match result:
        case errno.ECONNREFUSED:
            _log.info("removing %s, which an earlier process has left", path)
            path.unlink(missing_ok=True)
        case errno.ENOENT:
            return
        case 0 | errno.EAGAIN:
            raise ListenError(
                "another program listens there; stop it, or choose another path "
                "(`ss -lxp` shows who it is)"
            )
        case number:
            raise ListenError(
                f"there is a socket, and it is not known whether it is in use "
                f"({os.strerror(number)}); remove it if it is not"
            )


def _file_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _unix_advice(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"there is no directory {path.parent}"
        case errno.ENOTDIR:
            return f"{path.parent} is not a directory"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return (
                f"no permission to make a socket in {path.parent}; the packaged unit may write to "
                "/run/socks-tunnel/INSTANCE"
            )
        case _:
            return error.strerror or str(error)


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


def has_no_ipv6(address: Address, error: ListenError) -> bool:
    """Returns whether an error only says that this host lacks the IPv6 loopback address."""
    # By default a gateway listens on both loopback addresses, and many hosts have no IPv6.
    cause = error.__cause__
    return (
        isinstance(address, HostPort)
        and address.host == "::1"
        and isinstance(cause, OSError)
        and cause.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    )


def reaches_beyond(address: Address) -> bool:
    """Returns whether clients of other hosts can reach a socket that is bound to `address`.

    `0.0.0.0` and `::` stand for all addresses of the host, `::` also for IPv4 if the socket is
    dual-stack. A Unix socket cannot be reached by other hosts.
    """
    if isinstance(address, Path):
        return False
    ip = parse_ip(address.host)
    assert ip is not None, "a bound socket has an address"
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return not (mapped or ip).is_loopback


def check_reach(
    listeners: Sequence[Listener], *, allow_remote_clients: bool, has_users: bool
) -> None:
    """Checks the addresses to which SOCKS listeners and forwards are really bound.

    The configuration was checked when it was read, but sockets of systemd may have other addresses.
    Raises :class:`RemoteListenerError`.
    """
    for listener in listeners:
        if not reaches_beyond(listener.address):
            continue
        where = listener_text(listener.address)
        whose = "systemd's socket" if listener.activated else "a listener"
        if not allow_remote_clients:
            raise RemoteListenerError(
                f"{whose} is bound to {where}, which is no loopback address: set "
                "allow_remote_clients in [socks] if remote clients may use it, and users_file"
            )
        if listener.target is None and not has_users:
            raise RemoteListenerError(
                f"{whose} is bound to {where}, which is no loopback address: set users_file in "
                "[socks]"
            )


def listens_at(
    sock: socket.socket, address: Address, kind: socket.SocketKind = socket.SOCK_STREAM
) -> bool:
    """Returns whether a socket is of this kind and bound to exactly this address or path."""
    name = _name_of(sock)
    if sock.type != kind:
        return False
    if isinstance(name, Path) or isinstance(address, Path):
        return name == address
    return parse_ip(name.host) == parse_ip(address.host) and name.port == address.port


def _may_stand_in(sock: socket.socket, address: Address) -> bool:
    """Returns whether a socket of systemd is of the same kind as the address: Unix or TCP."""
    is_unix = sock.family == socket.AF_UNIX
    return sock.type == socket.SOCK_STREAM and is_unix is isinstance(address, Path)


def _name_of(sock: socket.socket) -> Address:
    name = sock.getsockname()
    if isinstance(name, bytes):  # an abstract socket, which systemd writes with an @
        return Path(os.fsdecode(name.replace(b"\0", b"@", 1)))
    if isinstance(name, str):
        return Path(name)
    host, port = name[:2]
    return HostPort(host, port)
