"""The gateway's UDP relay: who is pinned, what goes on, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.messages import (
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
    UdpPacket,
)
from socks_tunnel.protocol.socks5 import udp_header
from socks_tunnel_workers.relay import client_socket
from socks_tunnel_workers.relay.client_socket import MAPPED_MAX
from socks_tunnel_workers.relay.udp import DESTINATIONS_MAX, GatewayAssociation, Relayed
from unit.workers.frontends.fakes import Gateway, Sock

CLIENT = ("127.0.0.1", 7000)
STRANGER = ("127.0.0.1", 7001)
TARGET = HostPort("10.0.0.1", 53)
HEADER = udp_header(TARGET)
MAPPED = b"\0\0\0\x04" + bytes(10) + b"\xff\xff\x0a\x00\x00\x01\x00\x35"


class Relay(Sock):
    """The relay's socket."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway.loop, local=("127.0.0.1", 5000))
        self.queue: list[tuple[bytes, Any]] = []
        self.replies: list[tuple[bytes, Any]] = []
        self.fails: OSError | None = None

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        if not self.queue:
            raise BlockingIOError
        return self.queue.pop(0)

    def sendto(self, data: Any, address: Any) -> int:
        if self.fails is not None:
            raise self.fails
        self.replies.append((bytes(data), address))
        return len(data)

    def sendmsg(self, pieces: list[Any], *arguments: Any) -> int:
        return self.sendto(b"".join(pieces), arguments[-1])


class Site:
    """An association that is open."""

    client = "127.0.0.1:5"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **tables: dict[str, object]) -> None:
        self.gateway = Gateway(**tables)
        self.session = self.gateway.session()
        self.sock = Relay(self.gateway)
        self.ended: list[tuple[int, bool]] = []
        monkeypatch.setattr(client_socket, "udp_socket", lambda family, address: self.sock)
        self.association = GatewayAssociation(self.session, self.session.allocate(), self)
        self.session.admit(self.association)
        self.association.client_socket.bind("127.0.0.1", client_ip="127.0.0.1")
        self.association.ask()
        (opening,) = self.gateway.sent(self.session)
        assert isinstance(opening, UdpAssociate)
        self.conn_id = opening.conn_id
        self.gateway.answer(self.session, UdpAssociateOpened(self.conn_id))

    @property
    def connection(self) -> Any:
        raise AssertionError("only a hand-over asks for it")

    @property
    def account(self) -> str:
        raise AssertionError("only a hand-over asks for it")

    def associated(self, association: Relayed) -> None:
        assert association.bound == HostPort("127.0.0.1", 5000)

    def association_ended(self, reason: int, *, opened: bool) -> None:
        self.ended.append((reason, opened))

    def sends(self, packet: bytes, sender: Any = CLIENT) -> list[Any]:
        self.sock.queue.append((packet, sender))
        self.gateway.loop.readers[self.sock]()
        return list(self.gateway.sent(self.session))

    def answer(self, packet: bytes) -> list[tuple[bytes, Any]]:
        self.gateway.answer(self.session, UdpPacket(self.conn_id, packet))
        replies, self.sock.replies = self.sock.replies, []
        return replies

    def dropped(self, reason: str) -> int:
        return self.gateway.counted("udp_dropped_total", reason)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_there_and_back(site: Site) -> None:
    assert site.sends(HEADER + b"ping") == [UdpPacket(site.conn_id, HEADER + b"ping")]
    assert site.answer(HEADER + b"pong") == [(HEADER + b"pong", CLIENT)]
    assert (site.association.up, site.association.down) == (4, 4)


POLICY: dict[str, object] = {"allowed_hosts": ["10.0.0.0/8"], "allowed_ports": ["*"]}


@pytest.mark.parametrize(
    ("junk", "reason"),
    [
        (b"", "udp-header"),
        (b"x", "udp-header"),
        (HEADER[:2] + b"\x01" + HEADER[3:] + b"x", "fragment"),
        (b"\0\0\0\x09", "address-type"),
        (b"\0\0\0\x03\x01 \0\x35x", "bad-name"),
        (udp_header(HostPort("192.0.2.1", 53)) + b"x", "policy"),
        (HEADER + bytes(65_530), "too-long"),
    ],
)
def test_only_a_datagram_that_goes_on_pins(
    monkeypatch: pytest.MonkeyPatch, junk: bytes, reason: str
) -> None:
    site = Site(monkeypatch, policy=POLICY)
    assert site.sends(junk, STRANGER) == []
    assert site.dropped(reason) == 1

    assert len(site.sends(HEADER + b"x", CLIENT)) == 1
    assert site.sends(HEADER + b"x", STRANGER) == []
    assert site.dropped("foreign-source") == 1


def test_another_address_is_never_heard(site: Site) -> None:
    assert site.sends(HEADER + b"x", ("127.0.0.2", 7000)) == []
    assert site.dropped("foreign-source") == 1
    assert site.association.client_socket.pinned is None


def test_a_reply_before_the_client_has_sent_goes_nowhere(site: Site) -> None:
    assert site.answer(HEADER + b"x") == []
    assert site.dropped("no-client") == 1


@pytest.mark.parametrize("head", [b"\0\0\x01", b"\x01\x02\x80", b"\xff\0\0"])
def test_a_reply_has_no_fragment_number_and_nothing_reserved(site: Site, head: bytes) -> None:
    site.sends(HEADER + b"x")
    assert site.answer(head + HEADER[3:] + b"pong") == [(HEADER + b"pong", CLIENT)]


def test_an_address_is_answered_in_the_form_that_was_asked(site: Site) -> None:
    site.sends(MAPPED + b"x")
    other = udp_header(HostPort("10.0.0.2", 53))
    assert site.answer(HEADER + b"pong") == [(MAPPED + b"pong", CLIENT)]
    assert site.answer(other + b"pong") == [(other + b"pong", CLIENT)]
    site.sends(HEADER + b"x")
    assert site.answer(HEADER + b"pong") == [(HEADER + b"pong", CLIENT)]


def test_how_many_mapped_addresses_are_remembered(site: Site) -> None:
    for number in range(MAPPED_MAX + 1):
        address = number.to_bytes(4)
        site.sends(b"\0\0\0\x04" + bytes(10) + b"\xff\xff" + address + b"\0\x35x")
    assert len(site.association.client_socket.mapped) == MAPPED_MAX
    assert bytes(4) not in site.association.client_socket.mapped


def test_the_policy_is_that_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, policy=POLICY)
    other = udp_header(HostPort("10.0.0.2", 53))
    assert len(site.sends(HEADER + b"x")) == 1
    assert len(site.sends(HEADER + b"x")) == 1
    assert site.gateway.counted("policy_decisions_total", "allowed") == 1, "asked once"

    narrower = POLICY | {"denied_hosts": ["10.0.0.0/24"]}
    site.gateway.settings.apply(site.gateway.config(policy=narrower))

    assert site.sends(HEADER + b"x") == []
    assert site.sends(other + b"x") == []
    assert site.dropped("policy") == 2
    assert site.gateway.counted("policy_decisions_total", "denied") == 2
    site.gateway.settings.apply(site.gateway.config())
    assert len(site.sends(other + b"x")) == 1


def test_how_many_decisions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, policy=POLICY)
    for number in range(DESTINATIONS_MAX + 1):
        site.sends(udp_header(HostPort(f"10.0.{number >> 8}.{number & 255}", 53)) + b"x")
    assert len(site.association.verdicts) == DESTINATIONS_MAX


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(BlockingIOError(), "socket-full"), (OSError(90, ""), "too-long"), (OSError(111, ""), "unreachable")],
)  # fmt: skip
def test_a_reply_that_cannot_be_passed_on_is_counted(
    site: Site, failure: OSError, reason: str
) -> None:
    site.sends(HEADER + b"x")
    site.sock.fails = failure
    assert site.answer(HEADER + b"x") == []
    assert site.dropped(reason) == 1


def test_a_reply_without_a_header_ends_the_association(site: Site) -> None:
    site.sends(HEADER + b"x")
    site.answer(b"\0\0\0\x09")
    assert site.ended == [(0x15, True)]
    assert site.sock.closed


def test_silence_ends_it(site: Site) -> None:
    site.association.sweep(site.gateway.loop.time() + 299)
    assert site.ended == []
    site.association.sweep(site.gateway.loop.time() + 301)
    assert site.ended == [(0x11, True)]
    assert site.gateway.sent(site.session) == [UdpAssociateClosed(site.conn_id, 0x11)]
    assert not list(site.session.flows)
