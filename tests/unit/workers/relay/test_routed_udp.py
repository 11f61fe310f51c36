"""An association whose datagrams go to several peers, each as its route says."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
    UdpPacket,
)
from socks_tunnel.protocol.socks5 import UdpAssociateRequest, udp_header
from socks_tunnel_workers.relay import client_socket, routed_udp
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.udp import DESTINATIONS_MAX, OPENING_BYTES_MAX
from unit.workers.frontends.fakes import Gateway
from unit.workers.frontends.test_opening import Asked
from unit.workers.relay.test_udp import CLIENT, STRANGER, Relay

TO_A = udp_header(HostPort("10.1.0.1", 53))
TO_EITHER = udp_header(HostPort("10.2.0.1", 53))
TO_B = udp_header(HostPort("ns.b.corp", 53))
TO_NOBODY = udp_header(HostPort("192.0.2.1", 53))

ROUTES = [
    {"name": "a", "hosts": ["10.1.0.0/16"], "peers": ["a"]},
    {"name": "either", "hosts": ["10.2.0.0/16"], "peers": ["a", "b"]},
    {"name": "b", "hosts": ["*.b.corp"], "peers": ["b"]},
]


class Site:
    """A client's association on a gateway with two peers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **tables: Any) -> None:
        self.gateway = Gateway(routes=ROUTES, **tables)
        self.a, self.b = self.gateway.session(peer="a"), self.gateway.session(peer="b")
        self.gateway.prefers([self.a], [self.a, self.b], [self.b])
        self.relay = Relay(self.gateway)
        monkeypatch.setattr(client_socket, "udp_socket", lambda family, address: self.relay)
        self.asked = Asked(self.gateway, UdpAssociateRequest(None))

    def sends(self, packet: bytes, sender: Any = CLIENT) -> None:
        self.relay.queue.append((packet, sender))
        self.gateway.loop.readers[self.relay]()

    def opens(self, session: WorkerSession) -> int:
        """The endpoint opens the leg that it was asked for; returns its CONN_ID."""
        (opening,) = self.gateway.sent(session)
        assert isinstance(opening, UdpAssociate)
        self.gateway.answer(session, UdpAssociateOpened(opening.conn_id))
        return opening.conn_id

    def replies(self, session: WorkerSession, conn_id: int, packet: bytes) -> list[Any]:
        self.gateway.answer(session, UdpPacket(conn_id, packet))
        replies, self.relay.replies = self.relay.replies, []
        return replies

    def dropped(self, reason: str) -> int:
        return self.gateway.counted("udp_dropped_total", reason)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_the_client_is_answered_before_any_peer_is_asked(site: Site) -> None:
    assert site.asked.answers == [("associated", HostPort("127.0.0.1", 5000))]
    assert site.gateway.sent(site.a) == site.gateway.sent(site.b) == []
    assert len(site.gateway.clients.relays) == 1


def test_each_datagram_goes_where_its_route_leads_and_replies_come_from_all(site: Site) -> None:
    for packet in (TO_A + b"1", TO_B + b"2", TO_A + b"3"):
        site.sends(packet)
    in_a, in_b = site.opens(site.a), site.opens(site.b)
    assert site.gateway.sent(site.a) == [UdpPacket(in_a, TO_A + b"1"), UdpPacket(in_a, TO_A + b"3")]
    assert site.gateway.sent(site.b) == [UdpPacket(in_b, TO_B + b"2")]
    site.sends(TO_EITHER + b"4")
    assert site.gateway.sent(site.a) == [UdpPacket(in_a, TO_EITHER + b"4")], "the leg is there"
    assert site.replies(site.b, in_b, TO_B + b"5") == [(TO_B + b"5", CLIENT)]
    assert site.replies(site.a, in_a, TO_A + b"6") == [(TO_A + b"6", CLIENT)]
    assert site.gateway.counters.sent["udp"] == 4
    assert site.gateway.counters.received["udp"] == 2
    assert site.gateway.counters.active["udp"] == 2


def test_what_no_route_has_is_dropped_and_said_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        site.sends(TO_NOBODY + b"x")
    assert site.dropped("no-route") == 3
    assert site.gateway.counted("unrouted_total", "udp-associate") == 1
    assert "no route leads to 192.0.2.1:53" in caplog.text
    site.sends(TO_A + b"x", STRANGER)
    assert site.gateway.sent(site.a) != [], "it has pinned nobody"


def test_the_policy_of_the_gateway_is_asked_once_for_each_destination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(monkeypatch, policy={"allowed_hosts": ["10.1.0.0/16"], "allowed_ports": ["*"]})
    for packet in (TO_A, TO_EITHER, TO_A, TO_EITHER):
        site.sends(packet + b"x")
    assert site.dropped("policy") == 2
    assert site.gateway.counted("policy_decisions_total", "denied") == 1
    assert site.gateway.counted("policy_decisions_total", "allowed") == 1
    assert len(site.gateway.sent(site.a)) == 1


def test_a_route_keeps_to_its_leg_until_another_peer_is_better(site: Site) -> None:
    site.sends(TO_EITHER + b"1")
    in_a = site.opens(site.a)
    site.gateway.sent(site.a)
    site.gateway.prefers([], [site.b], [site.b], others=(site.a,))
    site.sends(TO_EITHER + b"2")
    in_b = site.opens(site.b)
    assert site.gateway.sent(site.b) == [UdpPacket(in_b, TO_EITHER + b"2")]
    site.gateway.prefers([site.a], [site.a, site.b], [site.b])
    site.sends(TO_EITHER + b"3")
    assert site.gateway.sent(site.b) == [UdpPacket(in_b, TO_EITHER + b"3")], "no flapping"
    assert site.replies(site.a, in_a, TO_EITHER + b"late") == [(TO_EITHER + b"late", CLIENT)]


def test_a_leg_whose_link_is_lost_is_replaced(site: Site) -> None:
    site.sends(TO_EITHER + b"1")
    site.opens(site.a)
    site.a.detach()
    site.sends(TO_EITHER + b"2")
    in_b = site.opens(site.b)
    assert site.gateway.sent(site.b) == [UdpPacket(in_b, TO_EITHER + b"2")]
    site.sends(TO_A + b"3")
    assert site.dropped("no-link") == 1, "nobody else has its route"


def test_a_leg_that_its_peer_closes_is_opened_again_by_the_next_datagram(site: Site) -> None:
    site.sends(TO_A + b"1")
    conn_id = site.opens(site.a)
    site.gateway.sent(site.a)
    site.gateway.answer(site.a, UdpAssociateClosed(conn_id, CloseReason.IDLE_TIMEOUT))
    assert len(site.asked.answers) == 1, "the client's association goes on"
    site.sends(TO_A + b"2")
    assert site.opens(site.a) != conn_id


def test_a_refused_leg_drops_what_waited(site: Site) -> None:
    site.sends(TO_A + b"1")
    (opening,) = site.gateway.sent(site.a)
    assert isinstance(opening, UdpAssociate)
    site.gateway.answer(site.a, UdpAssociateClosed(opening.conn_id, CloseReason.RESOURCE_LIMIT))
    assert site.dropped("opening") == 1
    assert site.gateway.memory.used == 0


def test_nothing_to_send_on_drops(site: Site) -> None:
    site.gateway.prefers([], [], [])
    site.sends(TO_A + b"1")
    assert site.dropped("no-link") == 1


def test_all_ends_with_the_control_connection(site: Site) -> None:
    site.sends(TO_A + b"1")
    site.sends(TO_B + b"1")
    in_a, in_b = site.opens(site.a), site.opens(site.b)
    for session in (site.a, site.b):
        site.gateway.sent(session)
    assert site.gateway.clients.associations.held("127.0.0.1") == 1
    site.asked.sock.arrives(b"")
    assert site.gateway.sent(site.a) == [UdpAssociateClosed(in_a, CloseReason.ORDERLY)]
    assert site.gateway.sent(site.b) == [UdpAssociateClosed(in_b, CloseReason.ORDERLY)]
    assert site.gateway.clients.associations.held("127.0.0.1") == 0
    assert site.gateway.clients.relays == set()
    assert site.gateway.counters.active["udp"] == 0
    assert site.relay.closed
    assert site.asked.answers[1:] == [("close",)]


def test_a_client_that_resets_its_connection_ends_all(site: Site) -> None:
    site.sends(TO_A + b"1")
    site.opens(site.a)
    site.asked.sock.is_reset()
    assert site.relay.closed
    assert site.gateway.clients.relays == set()
    assert site.gateway.clients.associations.held("127.0.0.1") == 0


def test_silence_ends_the_legs_and_then_the_association(site: Site) -> None:
    site.sends(TO_A + b"1")
    site.opens(site.a)
    (leg,) = list(site.a.flows)
    (association,) = site.gateway.clients.relays
    site.gateway.loop.now += 301
    association.sweep(site.gateway.loop.now)
    assert not association.ended, "its leg decides"
    leg.sweep(site.gateway.loop.now)
    assert leg.ended
    association.sweep(site.gateway.loop.now)
    assert site.asked.answers[1:] == [("close",)]


def test_a_leg_that_is_never_answered_ends(site: Site) -> None:
    site.sends(TO_A + b"1")
    (leg,) = list(site.a.flows)
    leg.sweep(site.gateway.loop.now + 31)
    assert leg.ended
    assert site.dropped("opening") == 1


def test_a_drain_ends_it_with_its_last_leg(site: Site) -> None:
    site.sends(TO_A + b"1")
    conn_id = site.opens(site.a)
    site.gateway.clients.drain()
    site.sends(TO_B + b"2")
    assert site.dropped("draining") == 1
    assert not site.relay.closed
    site.gateway.answer(site.a, UdpAssociateClosed(conn_id, CloseReason.ORDERLY))
    assert site.relay.closed


def test_a_drain_ends_one_without_a_leg_at_once(site: Site) -> None:
    site.gateway.clients.drain()
    assert site.relay.closed


def test_the_end_of_the_worker_ends_it(site: Site) -> None:
    site.gateway.clients.close()
    assert site.relay.closed


# --- bounds -----------------------------------------------------------------------------------


def test_what_waits_for_a_leg_is_bounded(site: Site) -> None:
    packet = TO_A + bytes(60_000)
    for _ in range(OPENING_BYTES_MAX // len(packet) + 1):
        site.sends(packet)
    assert site.dropped("opening") == 1


def test_a_datagram_that_is_too_long_is_dropped(site: Site) -> None:
    site.sends(TO_A + bytes(65_530))
    assert site.dropped("too-long") == 1


def test_a_full_worker_opens_no_leg(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.gateway.full = True
    site.sends(TO_A + b"1")
    assert site.dropped("too-many") == 1
    assert "this worker holds as many flows" in caplog.text


def test_a_full_session_opens_no_leg(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.a.flows.resize(0)
    site.sends(TO_A + b"1")
    assert site.dropped("too-many") == 1
    assert "refusing a new flow to peer a" in caplog.text


def test_legs_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed_udp, "LEGS_MAX", 1)
    site.sends(TO_A + b"1")
    in_a = site.opens(site.a)
    site.gateway.sent(site.a)
    site.sends(TO_B + b"1")
    assert site.gateway.sent(site.a) == [UdpAssociateClosed(in_a, CloseReason.RESOURCE_LIMIT)]
    (association,) = site.gateway.clients.relays
    assert list(association.legs) == [site.b.number]


def test_remembered_destinations_are_bounded(site: Site) -> None:
    for number in range(DESTINATIONS_MAX + 5):
        site.sends(udp_header(HostPort(f"10.1.{number >> 8}.{number & 255}", 53)) + b"x")
    (association,) = site.gateway.clients.relays
    assert len(association._decided) == DESTINATIONS_MAX


def test_a_reload_forgets_what_was_decided(site: Site) -> None:
    site.sends(TO_NOBODY + b"x")
    routes: Any = [{"name": "all", "peers": ["b"]}]
    site.gateway.settings.apply(site.gateway.config(routes=routes))
    site.gateway.prefers([site.b])
    site.sends(TO_NOBODY + b"x")
    assert site.dropped("no-route") == 1
    site.opens(site.b)


def test_a_bug_costs_its_own_association(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(site.gateway.clients.routing, "match", broken)
    site.sends(TO_A + b"1")
    assert site.relay.closed
    assert site.gateway.counted("protocol_errors_total", "bug") == 1


def test_an_association_waits_for_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch)
    site.gateway.prefers([], [], [])
    waiting = Asked(site.gateway, UdpAssociateRequest(None))
    assert waiting.answers == []
    site.gateway.prefers([], [], [site.b])
    assert waiting.answers == [("associated", HostPort("127.0.0.1", 5000))]


def test_a_relay_that_cannot_be_bound_gives_its_slot_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(family: int, address: object) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(client_socket, "udp_socket", short)
    refused = Asked(site.gateway, UdpAssociateRequest(None))
    assert refused.answers == [("failed", CloseReason.GENERAL_FAILURE)]
    assert site.gateway.clients.associations.held("127.0.0.1") == 1


def test_a_client_has_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, limits={"associations_per_client": 1})
    refused = Asked(site.gateway, UdpAssociateRequest(None))
    assert refused.answers == [("failed", CloseReason.RESOURCE_LIMIT)]
