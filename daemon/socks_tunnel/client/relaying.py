"""Relays standard input and output through the tunnel, for `socks-tunnel nc`.

It has two threads, one for each direction, with blocking calls. Standard input and output may be a
terminal, a file, a pipe or the socket pair of ssh. Other processes use them as well, so they must
not become non-blocking.
"""

import errno
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Final

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header

PIECE: Final = 262_144
"""Bytes that are read at a time. As many wait here for a slow reader, besides those in the kernel.
"""

DATAGRAM_MAX: Final = 16_384
"""Bytes of standard input that become one datagram."""

PACKET_MAX: Final = 65_535
"""Longest packet from the relay in bytes: a UDP datagram."""


class RelayError(Exception):
    """The connection did not end in order. The text is a sentence."""


class _Ended:
    """The end of the two directions. :meth:`wait` returns when both have ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._over = False
        self._open = 2
        self._error: str | None = None

    def finish(self, *, both: bool = False, error: str | None = None) -> None:
        """Notes the end of one direction. With `both` or an `error`, the other one ends as well."""
        with self._changed:
            self._open -= 1
            self._over = self._over or both or error is not None or self._open <= 0
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self) -> None:
        """Waits for the end. Raises :class:`RelayError` if a direction ended with an error."""
        with self._changed:
            self._changed.wait_for(lambda: self._over)
            if self._error is not None:
                raise RelayError(self._error)


def relay_stream(sock: socket.socket, early: bytes, source: int = 0, sink: int = 1) -> None:
    """Copies `source` to a connection, and the connection to `sink`, until both have ended.

    The end of one direction is passed on and leaves the other one open. If `source` is a terminal,
    the end of the connection ends both, because a user would not know to type ^D. The connection is
    closed in any case. Raises :class:`RelayError`.
    """
    ended = _Ended()
    interactive = os.isatty(source)
    _spawn(lambda: _up(sock, source, ended))
    _spawn(lambda: _down(sock, early, sink, ended, interactive=interactive))
    try:
        ended.wait()
    finally:
        sock.close()


def _up(sock: socket.socket, source: int, ended: _Ended) -> None:
    try:
        while data := os.read(source, PIECE):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        # Only one call gets the error of a reset. If it is this one, the other direction sees an
        # orderly end.
        if error.errno == errno.ECONNRESET:
            ended.finish(error=_lost(error))
            return
        # After these errors, the other direction finds out why the connection has ended.
        if error.errno not in {errno.EPIPE, errno.ENOTCONN, errno.EBADF}:
            ended.finish(error=f"standard input: {os.strerror(error.errno or 0)}")
            return
    ended.finish()


def _down(sock: socket.socket, data: bytes, sink: int, ended: _Ended, *, interactive: bool) -> None:
    while True:
        try:
            _write_all(sink, data)
        except OSError as error:
            ended.finish(error=f"standard output: {os.strerror(error.errno or 0)}")
            return
        try:
            data = sock.recv(PIECE)
        except OSError as error:
            ended.finish(error=_lost(error))
            return
        if not data:
            break
    _close(sink)
    ended.finish(both=interactive)


def _lost(error: OSError) -> str:
    return f"the connection was lost: {os.strerror(error.errno or 0)}"


def relay_datagrams(
    control: socket.socket,
    relay: socket.socket,
    destination: HostPort,
    idle: float,
    source: int = 0,
    sink: int = 1,
) -> None:
    """Sends a datagram for each read of `source`, and writes the answers to `sink`.

    After the end of `source` it goes on until nothing has come for `idle` seconds. Datagrams from
    another port than that of `destination` are dropped. Hosts are not compared, because a name
    answers from its address. Both sockets are closed in any case. Raises :class:`RelayError` if the
    association ends by itself.
    """
    ours, theirs = os.pipe()
    failures: list[str] = []
    _spawn(lambda: _send_datagrams(relay, source, destination, theirs, failures))
    poll = select.poll()
    for fd in (relay.fileno(), control.fileno(), ours):
        poll.register(fd, select.POLLIN)
    limit: float | None = None
    try:
        while ready := {fd for fd, _ in poll.poll(limit)}:
            if ours in ready:  # the sending thread has ended
                if failures:
                    raise RelayError(failures[0])
                poll.unregister(ours)
                limit = idle * 1000
            if control.fileno() in ready:
                # RFC 1928 section 6: an association lives as long as this connection.
                raise RelayError("the proxy has ended the association")
            if relay.fileno() in ready:
                _take_datagram(relay, destination.port, sink)
    finally:
        relay.close()
        control.close()
        os.close(ours)


def _send_datagrams(
    relay: socket.socket, source: int, destination: HostPort, done: int, failures: list[str]
) -> None:
    header = udp_header(destination)
    try:
        while data := os.read(source, DATAGRAM_MAX):
            relay.send(header + data)
    except OSError as error:
        failures.append(f"a datagram could not be sent: {os.strerror(error.errno or 0)}")
    os.close(done)  # the other end of the pipe becomes readable


def _take_datagram(relay: socket.socket, port: int, sink: int) -> None:
    try:
        packet = relay.recv(PACKET_MAX)
        header = parse_udp_packet(packet)
    except OSError as error:
        raise RelayError(f"the UDP relay failed: {os.strerror(error.errno or 0)}") from None
    except RemoteProtocolError as error:
        raise RelayError(f"the UDP relay sent a packet that cannot be read: {error}") from None
    if header.frag == 0 and header.destination.port == port:
        try:
            _write_all(sink, packet[header.offset :])
        except OSError as error:
            raise RelayError(f"standard output: {os.strerror(error.errno or 0)}") from None


def _write_all(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


def _close(sink: int) -> None:
    """Closes `sink`, so that its reader sees the end while the other direction goes on."""
    try:
        os.close(sink)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def _spawn(work: Callable[[], None]) -> None:
    # Daemon threads, because one may still wait for standard input at the end.
    threading.Thread(target=work, daemon=True).start()
