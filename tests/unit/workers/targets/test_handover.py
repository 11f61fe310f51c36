"""An endpoint's flows that go on in another program: what they may reach, and who may answer."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.protocol.messages import OpenConnection
from socks_tunnel_workers.relay import handover as relay_handover
from socks_tunnel_workers.targets import handover
from socks_tunnel_workers.targets.access import Allowed
from socks_tunnel_workers.targets.handover import (
    export_endpoint_association,
    export_target_relay,
    restore_endpoint_association,
    restore_target_relay,
)
from socks_tunnel_workers.targets.routes import Route
from socks_tunnel_workers.targets.services import TargetServices
from socks_tunnel_workers.targets.tcp import TargetRelay
from socks_tunnel_workers.targets.udp import EndpointAssociation
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.handed import Kernel, again

NAME = HostPort("sip.example", 5060)
FIRST, SECOND = ip_address("192.0.2.1"), ip_address("192.0.2.2")


def services(gateway: Gateway) -> TargetServices:
    """Neither a policy nor a resolver is asked here."""
    settings = SimpleNamespace(config=SimpleNamespace(udp_filtering="address-and-port-dependent"))
    return TargetServices(cast("Any", settings), cast("Any", None), gateway.notices.warn)


def test_a_stream_goes_on_with_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, handover, relay_handover)
    old = Gateway()
    session, sock = old.session(), Sock(old.loop)
    relay = TargetRelay(services(old), session, OpenConnection(5, "target.example", 80))
    relay.allowed = Allowed((FIRST,), 60, "target.example.")
    session.admit(relay)
    relay.attach(cast("Any", sock))
    session.detach()
    fields = again(export_target_relay(relay))

    new = Gateway()
    sock.loop = new.loop
    session = new.session()
    session.detach()
    restored = restore_target_relay(services(new), session, fields)
    assert restored.allowed == relay.allowed
    assert (restored.command, restored.destination) == ("connect", HostPort("target.example", 80))
    assert cast("Any", restored.sock) is sock
    assert restored.task is None
    assert not restored.upstream


@pytest.mark.parametrize(
    "change",
    [
        {"allowed": {"addresses": ["x"], "ttl": None, "name": ""}},
        {"allowed": {"addresses": [], "ttl": None, "name": ""}},
        {"allowed": None, "listener": 3},
        {"core": {"conn_id": 0}},
        {"destination": None},
    ],
)
def test_a_stream_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    Kernel(monkeypatch, handover, relay_handover)
    gateway = Gateway()
    session = gateway.session()
    relay = TargetRelay(services(gateway), session, OpenConnection(5, "target.example", 80))
    relay.allowed = Allowed((FIRST,), None)
    relay.core.open()
    fields = again(export_target_relay(relay)) | change
    with pytest.raises(Malformed):
        restore_target_relay(services(gateway), session, fields)


def test_an_association_still_lets_in_whom_it_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, handover)
    old = Gateway()
    session, sock = old.session(), Sock(old.loop)
    association = EndpointAssociation(services(old), session, 6)
    session.admit(association)
    association.adopt(socket.AF_INET, cast("Any", sock))
    route = Route([FIRST, SECOND], now=1000.0, expires=1060.0, name="sip.example.")
    association.routes.put(NAME, route)
    association.routes.reached(route, FIRST, 5060)
    association.routes.reached(route, SECOND, 5060)
    route.answered(SECOND, 1000.1)
    association._up, association._down = 100, 200
    session.detach()
    fields = again(export_endpoint_association(association))

    new = Gateway()
    sock.loop = new.loop
    session = new.session()
    session.detach()
    restored = restore_endpoint_association(services(new), session, fields)
    assert (restored.up, restored.down, restored.opened) == (100, 200, True)
    assert cast("Any", restored.sockets) == {socket.AF_INET: sock}
    assert sock in new.loop.readers
    assert restored.routes.admits("192.0.2.1", 5060)
    assert restored.routes.admits("192.0.2.2", 5060)
    assert not restored.routes.admits("192.0.2.2", 5061)
    again_there = restored.routes.get(NAME, 1001.0)
    assert isinstance(again_there, Route)
    assert (again_there.current, again_there.racing) == (SECOND, False)
    assert (again_there.expires, again_there.name) == (1060.0, "sip.example.")


@pytest.mark.parametrize(
    "change",
    [
        {"conn_id": 0},
        {"routes": None},
        {"routes": [{"destination": None}]},
        {"routes": [{"destination": ["a.example", 1], "addresses": []}]},
        {"sockets": [[2]]},
    ],
)
def test_an_association_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    Kernel(monkeypatch, handover)
    gateway = Gateway()
    session = gateway.session()
    association = EndpointAssociation(services(gateway), session, 6)
    fields = again(export_endpoint_association(association)) | change
    with pytest.raises(Malformed):
        restore_endpoint_association(services(gateway), session, fields)
    assert not len(session.flows)
