"""Which options a socket gets. Real ones: tests/integration/test_targets.py, test_dialer.py."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

import pytest

from socks_tunnel_workers.sockets import (
    KEEPALIVE_INTERVAL,
    KEEPALIVE_PROBES,
    Liveness,
    is_shortage,
    keep_alive,
    prepare_dialled,
    prepare_stream,
)


class Recorder:
    """Takes socket options and keeps them."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.options: dict[tuple[int, int], int] = {}
        self.blocking = True

    def setblocking(self, flag: bool) -> None:
        self.blocking = flag

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.options[level, option] = value


def options(liveness: Liveness, family: int = socket.AF_INET) -> dict[tuple[int, int], int]:
    sock = Recorder(family)
    prepare_stream(cast("socket.socket", sock), liveness)
    assert not sock.blocking
    return sock.options


ALWAYS = {
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    (socket.SOL_SOCKET, socket.SO_OOBINLINE): 1,
}


def test_tcp() -> None:
    assert options(Liveness(0, 0)) == ALWAYS
    assert options(Liveness(60, 120), socket.AF_INET6) == ALWAYS | {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): KEEPALIVE_INTERVAL,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): KEEPALIVE_PROBES,
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 120_000,
    }


def test_a_dialled_connection_is_kept_alive_only_when_that_is_asked_for() -> None:
    sock = Recorder(socket.AF_INET)
    prepare_dialled(cast("socket.socket", sock), Liveness(60, 120))
    assert not sock.blocking
    timeout = {(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 120_000}
    assert sock.options == ALWAYS | timeout
    keep_alive(cast("socket.socket", sock), Liveness(0, 120))
    assert sock.options == ALWAYS | timeout
    keep_alive(cast("socket.socket", sock), Liveness(60, 120))
    assert sock.options == options(Liveness(60, 120))


def test_the_silence_before_keepalive_is_asked_for_counts() -> None:
    """On Linux it does if the time to the first probe is set last: tcp_sock_set_keepidle()."""
    sock = Recorder(socket.AF_INET)
    keep_alive(cast("socket.socket", sock), Liveness(60, 120))
    order = list(sock.options)
    on = order.index((socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    assert on < order.index((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))


def test_unix_sockets_have_nothing_of_the_kind() -> None:
    assert options(Liveness(60, 120), socket.AF_UNIX) == {}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_what_passes_is_a_shortage(number: int) -> None:
    assert is_shortage(OSError(number, "x"))
    assert not is_shortage(OSError(errno.ECONNREFUSED, "x"))
    assert not is_shortage(TimeoutError())
