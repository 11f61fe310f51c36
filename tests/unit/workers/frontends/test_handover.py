"""A gateway's UDP associations that go on in another program."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import UdpAssociateClosed
from socks_tunnel_workers.frontends import forward, handover
from socks_tunnel_workers.frontends.associating import admit_leg
from socks_tunnel_workers.frontends.forward import ForwardAssociation, UdpForward
from socks_tunnel_workers.frontends.handover import (
    HeldConnection,
    export_forward_association,
    export_gateway_association,
    export_routed_association,
    restore_forward_association,
    restore_gateway_association,
    restore_routed_association,
)
from socks_tunnel_workers.relay.routed_udp import Leg, RoutedAssociation
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.udp import GatewayAssociation
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.handed import Kernel, again

CLIENT = ("127.0.0.1", 7000)


class Site:
    """An association that is open, with its client's connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = Kernel(monkeypatch, handover)
        self.gateway = Gateway()
        self.session = self.gateway.session()
        self.relay = Sock(self.gateway.loop)
        self.control = Sock(self.gateway.loop)
        slot = self.gateway.clients.take_association("127.0.0.1")
        assert slot is not None
        held = HeldConnection(
            self.gateway.clients, cast("Any", self.control), "127.0.0.1:5", "127.0.0.1", slot
        )
        self.association = GatewayAssociation(self.session, 42, held)
        self.association.client_socket.client_ip = "127.0.0.1"
        self.association.client_socket.told = "192.0.2.9"
        self.association.client_socket.pinned = CLIENT
        self.association.client_socket.mapped[b"\x0a\0\0\1"] = None
        self.association.client_socket.sock = cast("Any", self.relay)
        self.association.opened = True
        self.session.admit(self.association)

    def next(self) -> tuple[dict[str, Any], WorkerSession]:
        """What the program leaves, and the session of the next one."""
        self.session.detach()
        fields = again(export_gateway_association(self.association))
        self.gateway = Gateway()
        self.relay.loop = self.control.loop = self.gateway.loop
        session = self.gateway.session()
        session.detach()
        return fields, session

    def restored(self) -> tuple[GatewayAssociation, WorkerSession]:
        fields, session = self.next()
        return restore_gateway_association(self.gateway.clients, session, fields), session


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_an_association_goes_on_with_what_it_knows_of_its_client(site: Site) -> None:
    association, session = site.restored()
    assert session.flows.get(42) is association
    assert (
        association.client_socket.pinned,
        association.client_socket.client_ip,
        association.client_socket.told,
    ) == (
        CLIENT,
        "127.0.0.1",
        "192.0.2.9",
    )
    assert list(association.client_socket.mapped) == [b"\x0a\0\0\1"]
    assert association.opened
    assert site.gateway.clients.associations.clients == {"127.0.0.1": 1}
    assert site.relay in site.gateway.loop.readers
    assert site.control in site.gateway.loop.readers


@pytest.mark.parametrize("how", ["end of file", "reset"])
def test_it_ends_with_the_client_s_connection(site: Site, how: str) -> None:
    association, session = site.restored()
    if how == "reset":
        site.control.is_reset()
    else:
        site.control.arrives(b"")
    assert association.ended
    assert site.relay.closed
    assert site.control.closed
    assert not site.gateway.clients.associations.clients
    assert session.core.closed == {42: CloseReason.ORDERLY}


def test_the_client_s_connection_ends_with_it(site: Site) -> None:
    _, session = site.restored()
    site.gateway.answer(session, UdpAssociateClosed(42, CloseReason.IDLE_TIMEOUT))
    assert site.control.closed
    assert not site.gateway.clients.associations.clients


def test_what_the_client_says_on_its_connection_is_nothing(site: Site) -> None:
    association, _ = site.restored()
    site.control.arrives(b"noise")
    assert not association.ended


def test_it_is_handed_over_a_second_time(site: Site) -> None:
    site.association, site.session = site.restored()
    association, _ = site.restored()
    assert (association.client, association.control.account) == ("127.0.0.1:5", "127.0.0.1")


@pytest.mark.parametrize(
    "change", [{"conn_id": 0}, {"pinned": [1, 2]}, {"mapped": ["x"]}, {"up": -1}, {"client": 5}]
)
def test_a_record_that_is_none_gives_everything_back(site: Site, change: dict[str, Any]) -> None:
    fields, session = site.next()
    with pytest.raises(Malformed):
        restore_gateway_association(site.gateway.clients, session, fields | change)
    assert not site.gateway.clients.associations.clients
    assert not len(session.flows)


def test_a_relay_that_is_not_there_gives_everything_back(site: Site) -> None:
    fields, session = site.next()
    with pytest.raises(OSError, match="Bad file descriptor"):
        restore_gateway_association(site.gateway.clients, session, fields | {"fd": 999})
    assert site.control.closed
    assert not site.gateway.clients.associations.clients


def test_a_client_keeps_to_its_limit(site: Site) -> None:
    fields, session = site.next()
    site.gateway.clients.associations.limit = 0
    with pytest.raises(Malformed, match=r"as many associations as limits\.associations_per_client"):
        restore_gateway_association(site.gateway.clients, session, fields)


# --- several peers --------------------------------------------------------------------------------


class Routed:
    """An association with one leg, whose client waits for nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = Kernel(monkeypatch, handover)
        self.gateway = Gateway()
        self.session = self.gateway.session()
        self.relay, self.control = Sock(self.gateway.loop), Sock(self.gateway.loop)
        clients = self.gateway.clients
        slot = clients.take_association("127.0.0.1")
        assert slot is not None
        held = HeldConnection(clients, cast("Any", self.control), "127.0.0.1:5", "127.0.0.1", slot)
        self.association = RoutedAssociation(
            clients.loop,
            clients.settings,
            clients.counters,
            clients.routing,
            held,
            partial(admit_leg, clients),
        )
        self.association.client_socket.sock = cast("Any", self.relay)
        self.association.client_socket.pinned = CLIENT
        for conn_id, opened in ((8, False), (9, True)):
            leg = Leg(self.session, conn_id, self.association)
            leg.opened = opened
            leg._up = 100
            self.session.admit(leg)
            self.association.adopt(leg)

    def next(self) -> tuple[dict[str, Any], dict[int, WorkerSession]]:
        self.session.detach()
        fields = again(export_routed_association(self.association))
        self.gateway = Gateway()
        self.relay.loop = self.control.loop = self.gateway.loop
        session = self.gateway.session()
        session.detach()
        return fields, {session.number: session}


def test_an_association_with_several_peers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = Routed(monkeypatch)
    fields, sessions = routed.next()
    clients = routed.gateway.clients
    association = restore_routed_association(clients, sessions, fields)
    assert clients.relays == {association}
    (session,) = sessions.values()
    assert [(number, leg.conn_id, leg.up) for number, leg in association.legs.items()] == [
        (session.number, 9, 100)
    ]
    assert session.flows.ids() == [9]
    assert association.client_socket.pinned == CLIENT
    assert routed.relay in routed.gateway.loop.readers
    routed.control.arrives(b"")  # the end of its client's connection ends it
    assert association.ended
    assert routed.relay.closed
    assert routed.control.closed
    assert not clients.relays
    assert not clients.associations.clients
    assert not len(session.flows)


@pytest.mark.parametrize("change", [{"legs": [{"session": 99}]}, {"fd": 999}, {"active": "x"}])
def test_one_that_cannot_go_on_gives_everything_back(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    routed = Routed(monkeypatch)
    fields, sessions = routed.next()
    clients = routed.gateway.clients
    with pytest.raises((Malformed, OSError)):
        restore_routed_association(clients, sessions, fields | change)
    assert routed.control.closed
    assert not clients.relays
    assert not clients.associations.clients
    assert not any(len(session.flows) for session in sessions.values())


# --- forwards -----------------------------------------------------------------------------------


def test_a_forward_goes_on_with_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "prepare_datagrams", lambda sock: None)
    target = HostPort("10.0.0.1", 53)

    def listening(gateway: Gateway) -> UdpForward:
        sock = Sock(gateway.loop, local=("127.0.0.1", 5353))
        return UdpForward(gateway.clients, cast("Any", sock), target)

    old = Gateway()
    session, served = old.session(), listening(old)
    slot = old.clients.take_association("127.0.0.1")
    assert slot is not None
    association = ForwardAssociation(session, 9, served, CLIENT, "127.0.0.1:7000", slot)
    association.opened = True
    association._up, association._down = 10, 20
    session.detach()
    fields = again(export_forward_association(association))
    assert fields["forward"] == ["127.0.0.1", 5353]

    new = Gateway()
    session, served = new.session(), listening(new)
    session.detach()
    restored = restore_forward_association(served, session, fields)
    assert served.associations == {CLIENT: restored}
    assert (restored.up, restored.down, restored.opened) == (10, 20, True)
    assert session.flows.get(9) is restored
    assert new.clients.associations.clients == {"127.0.0.1": 1}
    restored.abort(CloseReason.IDLE_TIMEOUT)
    assert not served.associations
    assert not new.clients.associations.clients
    new.clients.associations.limit = 0
    with pytest.raises(Malformed, match=r"as many associations as limits\.associations_per_client"):
        restore_forward_association(served, session, fields)
