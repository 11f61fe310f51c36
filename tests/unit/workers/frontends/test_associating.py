"""The slot and the relay of a client's association. What becomes of them: test_opening_datagrams.py."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.socks5 import UdpAssociateRequest
from socks_tunnel_workers.frontends.associating import LOOPBACK, Associating
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.relay import client_socket
from socks_tunnel_workers.relay.client_socket import ClientSocket
from unit.workers.frontends.fakes import Gateway, Sock

WHO = Client("uid 1000", "uid 1000")


def associating(gateway: Gateway, hint: HostPort | None, *, unix: bool = True) -> Associating:
    sock = Sock(gateway.loop)
    if unix:
        sock.family = socket.AF_UNIX
    return Associating(gateway.clients, UdpAssociateRequest(hint), WHO, cast("socket.socket", sock))


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    addresses: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        client_socket, "udp_socket", lambda family, address: addresses.append(address)
    )
    return addresses


def test_a_slot_is_taken_and_given_back_once() -> None:
    gateway = Gateway(limits={"associations_per_client": 1})
    one, other = associating(gateway, None), associating(gateway, None)
    assert one.take_slot()
    assert not other.take_slot()
    other.free_slot()
    assert gateway.clients.associations.held("uid 1000") == 1
    one.free_slot()
    one.free_slot()
    assert other.take_slot()


@pytest.mark.parametrize(
    ("hint", "pinned"),
    [
        (None, None),
        (HostPort(LOOPBACK, 0), None),
        (HostPort(LOOPBACK, 5353), (LOOPBACK, 5353)),
        (HostPort("0.0.0.0", 5353), (LOOPBACK, 5353)),
        (HostPort("192.0.2.1", 5353), None),
    ],
)
def test_a_client_on_a_unix_socket_is_believed_its_port(
    bound: list[tuple[Any, ...]], hint: HostPort | None, pinned: tuple[str, int] | None
) -> None:
    relay = ClientSocket(lambda _: None)
    associating(Gateway(), hint).bind(relay)
    assert (relay.pinned, relay.client_ip, bound) == (pinned, LOOPBACK, [(LOOPBACK, 0)])


def test_a_client_on_tcp_is_not(bound: list[tuple[Any, ...]]) -> None:
    relay = ClientSocket(lambda _: None)
    associating(Gateway(), HostPort(LOOPBACK, 5353), unix=False).bind(relay)
    assert (relay.pinned, relay.client_ip) == (None, "uid 1000")
