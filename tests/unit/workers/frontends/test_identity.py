"""Who a client is."""

from __future__ import annotations

import socket
import struct
from typing import cast

import pytest

from socks_tunnel_workers.frontends.identity import (
    Client,
    SockAddr,
    identify,
    identify_address,
    plain_ip,
)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (("192.0.2.1", 5), Client("192.0.2.1:5", "192.0.2.1")),
        (("2001:db8::1", 5, 0, 0), Client("[2001:db8::1]:5", "2001:db8::1")),
        (("::ffff:192.0.2.1", 5, 0, 0), Client("192.0.2.1:5", "192.0.2.1")),
        (("fe80::1%eth0", 5, 0, 2), Client("[fe80::1%eth0]:5", "fe80::1%eth0")),
    ],
)
def test_by_address(address: SockAddr, client: Client) -> None:
    assert identify_address(address) == client


class UnixSock:
    """A Unix socket that process 12 of user 34 has connected."""

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("iII", 12, 34, 56)


def test_on_a_unix_socket_it_is_the_process_and_the_user() -> None:
    client = identify(cast("socket.socket", UnixSock()), "")
    assert client == Client("unix:pid=12,uid=34", "unix:uid=34")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("::ffff:10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("10.0.0.1", "10.0.0.1"), ("x", "x")],
)
def test_mapped_addresses_are_ipv4(text: str, plain: str) -> None:
    assert plain_ip(text) == plain
