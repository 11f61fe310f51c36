"""The socket of a SOCKS5 client's datagrams: where it is bound, and that reading is bounded.

Who is pinned, and in which form replies come: test_udp.py.
"""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.socks5 import udp_header
from socks_tunnel_workers.relay import client_socket
from socks_tunnel_workers.relay.client_socket import ClientSocket
from socks_tunnel_workers.sockets import DATAGRAMS_PER_TURN, send_failure
from unit.workers.frontends.fakes import Loop, Sock

CLIENT = ("127.0.0.1", 7000)
PACKET = udp_header(HostPort("10.0.0.1", 53)) + b"x"


class Endless(Sock):
    """A socket that always has another datagram."""

    read = 0

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        self.read += 1
        return PACKET, CLIENT


def made(monkeypatch: pytest.MonkeyPatch, sock: Any = None) -> tuple[ClientSocket, list[Any]]:
    bound: list[Any] = []
    loop = Loop()

    def udp_socket(family: int, address: tuple[Any, ...]) -> Any:
        bound.append(address)
        return sock or Sock(loop, local=(address[0], 5000, *address[2:]))

    monkeypatch.setattr(client_socket, "udp_socket", udp_socket)
    return ClientSocket(lambda _: None), bound


def test_the_client_is_told_the_concrete_address_or_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, bound = made(monkeypatch)
    client.bind("fe80::1", 3, client_ip="fe80::2")
    assert (client.bound, bound) == (HostPort("fe80::1", 5000), [("fe80::1", 0, 0, 3)])
    client, _ = made(monkeypatch)
    client.bind("10.0.0.1", client_ip="10.0.0.2", told="192.0.2.1")
    assert client.bound == HostPort("192.0.2.1", 5000)


def test_a_range_without_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def in_use(family: int, address: tuple[Any, ...]) -> Any:
        tried.append(address[1])
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(client_socket, "udp_socket", in_use)
    with pytest.raises(OSError, match=r"all UDP ports of .* are in use: 40000-40002"):
        ClientSocket(lambda _: None).bind("127.0.0.1", client_ip="127.0.0.1", ports=(40000, 40002))
    assert sorted(tried) == [40000, 40001, 40002]


def test_a_flood_is_read_in_turns_and_the_reader_may_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = Endless(Loop())
    client, _ = made(monkeypatch, sock)
    client.bind("127.0.0.1", client_ip="127.0.0.1")
    client.receive(lambda packet, sender: True)
    assert sock.read == DATAGRAMS_PER_TURN
    client.receive(lambda packet, sender: False)
    assert sock.read == DATAGRAMS_PER_TURN + 1


def test_closing_twice_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = made(monkeypatch)
    client.bind("127.0.0.1", client_ip="127.0.0.1")
    sock = cast("Sock", client.sock)
    client.close(cast("Any", sock.loop))
    client.close(cast("Any", sock.loop))
    assert sock.closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BlockingIOError(), "socket-full"),
        (OSError(errno.EMSGSIZE, "too long"), "too-long"),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
    ],
)
def test_why_a_socket_did_not_take_a_datagram(error: OSError, reason: str) -> None:
    assert send_failure(error) == reason
