"""Static forwards: a TCP client has no handshake, a UDP client an association of its own."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
    UdpPacket,
)
from socks_tunnel.protocol.socks5 import udp_header
from socks_tunnel_workers.frontends import forward
from socks_tunnel_workers.frontends.forward import TcpForwardSession, UdpForward
from socks_tunnel_workers.relay.udp import OPENING_BYTES_MAX
from unit.workers.frontends.fakes import Gateway, Sock

TARGET = HostPort("10.0.0.1", 53)
BOUND = HostPort("192.0.2.9", 4000)
HEADER = udp_header(TARGET)


# --- TCP ------------------------------------------------------------------------------------------


def tcp_client(gateway: Gateway) -> Sock:
    sock = Sock(gateway.loop)
    TcpForwardSession(gateway.clients, cast("socket.socket", sock), ("127.0.0.1", 5), TARGET)
    return sock


def test_a_tcp_client_says_its_first_words_at_once() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = tcp_client(gateway)
    sock.arrives(b"hello")
    opening, data = gateway.sent(session)
    assert opening == OpenConnection(data.conn_id, "10.0.0.1", 53)  # type: ignore[union-attr]  # it has one
    assert isinstance(data, Data)
    assert gateway.clients.handshakes == 0, "it counts as a flow"

    gateway.answer(session, ConnectionOpened(data.conn_id, BOUND))

    assert sock.sent == b""
    assert gateway.clients.handshakes == 0
    sock.arrives(b"more")
    assert gateway.sent(session) == [Data(data.conn_id, b"more")]


def test_a_tcp_client_is_reset_if_nothing_comes_of_it() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = tcp_client(gateway)
    (opening,) = gateway.sent(session)
    gateway.answer(session, CloseConnection(opening.conn_id, 5))  # type: ignore[union-attr]  # it has one
    assert sock.reset
    assert sock.closed
    assert gateway.clients.handshakes == 0


@pytest.mark.parametrize("how", ["reset", "close", "timeout"])
def test_a_tcp_client_that_waits_for_a_link_holds_nothing_when_it_ends(how: str) -> None:
    gateway = Gateway()
    sock = tcp_client(gateway)
    match how:
        case "reset":
            sock.is_reset()
        case "close":
            gateway.clients.close()
        case _:
            gateway.loop.advance(31)
    assert sock.closed
    assert gateway.clients.handshakes == gateway.clients.waiting == 0
    assert gateway.sent(gateway.session()) == []


# --- UDP ------------------------------------------------------------------------------------------


class Datagrams(Sock):
    """The forward's socket: datagrams with who sent them, and to whom replies went."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway.loop)
        self.queue: list[tuple[bytes, Any]] = []
        self.replies: list[tuple[bytes, Any]] = []

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        if not self.queue:
            raise BlockingIOError
        return self.queue.pop(0)

    def sendto(self, data: Any, address: Any) -> int:
        self.replies.append((bytes(data), address))
        return len(data)

    def setsockopt(self, level: int, option: int, value: object) -> None:
        pass


class Forward:
    """A UDP forward, and its clients by number."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.sock = Datagrams(gateway)
        self.forward = UdpForward(gateway.clients, cast("socket.socket", self.sock), TARGET)
        self.forward.start()

    def sends(self, data: bytes, client: int = 1) -> None:
        self.sock.queue.append((data, ("127.0.0.1", client)))
        self.gateway.loop.readers[self.sock]()

    def dropped(self, reason: str) -> int:
        return self.gateway.counted("udp_dropped_total", reason)


def test_each_udp_client_has_an_association() -> None:
    gateway = Gateway()
    session = gateway.session()
    udp = Forward(gateway)
    udp.sends(b"one", 1)
    udp.sends(b"two", 2)
    first, second = gateway.sent(session)
    assert isinstance(first, UdpAssociate)
    assert isinstance(second, UdpAssociate)

    gateway.answer(session, UdpAssociateOpened(second.conn_id))
    udp.sends(b"again", 2)

    assert gateway.sent(session) == [
        UdpPacket(second.conn_id, HEADER + b"two"),
        UdpPacket(second.conn_id, HEADER + b"again"),
    ]
    gateway.answer(session, UdpPacket(second.conn_id, HEADER + b"reply"))
    assert udp.sock.replies == [(b"reply", ("127.0.0.1", 2))]


def test_a_reply_without_a_right_header_is_the_endpoint_s_error() -> None:
    gateway = Gateway()
    session = gateway.session()
    udp = Forward(gateway)
    udp.sends(b"one")
    (opening,) = gateway.sent(session)
    assert isinstance(opening, UdpAssociate)
    gateway.answer(session, UdpAssociateOpened(opening.conn_id))
    gateway.sent(session)

    gateway.answer(session, UdpPacket(opening.conn_id, b"\0\0\0\x09"))

    assert gateway.counted("protocol_errors_total", "malformed-udp_packet") == 1
    assert udp.sock.replies == []
    assert [type(message) for message in gateway.sent(session)] == [UdpAssociateClosed]


def test_what_waits_for_the_opening_is_bounded_and_accounted() -> None:
    gateway = Gateway()
    session = gateway.session()
    udp = Forward(gateway)
    for _ in range(OPENING_BYTES_MAX // 1000 + 2):
        udp.sends(bytes(1000))
    assert udp.dropped("opening") == 2
    assert gateway.memory.used == OPENING_BYTES_MAX // 1000 * 1000
    opening = gateway.sent(session)[0]
    assert isinstance(opening, UdpAssociate)
    gateway.answer(session, UdpAssociateClosed(opening.conn_id, 1))
    assert gateway.memory.used == 0
    assert gateway.clients.associations.held("127.0.0.1") == 0
    assert udp.forward.associations == {}


def test_nothing_waits_while_memory_is_short() -> None:
    gateway = Gateway()
    gateway.session()
    udp = Forward(gateway)
    gateway.memory.charge(gateway.memory.limit + 1)
    udp.sends(b"x")
    assert udp.dropped("opening") == 1


def test_without_a_session_datagrams_are_dropped() -> None:
    udp = Forward(Gateway())
    udp.sends(b"x")
    assert udp.dropped("no-link") == 1


@pytest.mark.parametrize("limit", ["full", "quota", "table"])
def test_no_more_associations_than_allowed(limit: str) -> None:
    gateway = Gateway(limits={"associations_per_client": 1})
    session = gateway.session()
    udp = Forward(gateway)
    udp.sends(b"x", 1)
    gateway.sent(session)
    if limit == "full":
        gateway.full = True
    if limit == "table":
        gateway.clients.associations.limit = 9
        session.flows.resize(1)
    udp.sends(b"x", 2)
    assert udp.dropped("too-many") == 1
    assert gateway.sent(session) == []
    assert gateway.clients.associations.held("127.0.0.1") == 1


def test_the_least_recent_client_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CLIENTS_MAX", 2)
    gateway = Gateway()
    session = gateway.session()
    udp = Forward(gateway)
    for client in (1, 2, 1, 3):
        udp.sends(b"x", client)
    assert [address[1] for address in udp.forward.associations] == [1, 3]
    closed = [m for m in gateway.sent(session) if isinstance(m, UdpAssociateClosed)]
    assert [message.reason for message in closed] == [CloseReason.RESOURCE_LIMIT]


def test_the_policy_is_that_of_the_moment() -> None:
    gateway = Gateway()
    session = gateway.session()
    udp = Forward(gateway)
    udp.sends(b"x")
    (opening,) = gateway.sent(session)
    gateway.answer(session, UdpAssociateOpened(opening.conn_id))  # type: ignore[union-attr]  # it has one
    gateway.sent(session)
    policy: dict[str, object] = {"allowed_hosts": ["10.9.0.0/16"], "allowed_ports": ["*"]}
    gateway.settings.apply(gateway.config(policy=policy))
    udp.sends(b"y", 1)
    udp.sends(b"z", 2)
    assert gateway.sent(session) == []
    assert udp.dropped("policy") == 2
    gateway.settings.apply(gateway.config())
    udp.sends(b"w", 1)
    assert len(gateway.sent(session)) == 1


def test_a_silent_client_is_forgotten() -> None:
    gateway = Gateway()
    session = gateway.session()
    udp = Forward(gateway)
    udp.sends(b"x")
    (opening,) = gateway.sent(session)
    gateway.answer(session, UdpAssociateOpened(opening.conn_id))  # type: ignore[union-attr]  # it has one
    (association,) = udp.forward.associations.values()
    gateway.loop.advance(301)
    association.sweep(gateway.loop.time())
    assert udp.forward.associations == {}
    assert gateway.sent(session)[-1] == UdpAssociateClosed(opening.conn_id, 0x11)  # type: ignore[union-attr]  # it has one
