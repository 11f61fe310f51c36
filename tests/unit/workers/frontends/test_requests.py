"""What requests mean: by themselves, without a client and without a session."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.messages import Bind, OpenConnection, decode
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)
from socks_tunnel_workers.frontends.requests import (
    asks_for_literal,
    named_by,
    opening_of,
    refused_here,
    route_of,
)
from unit.workers.frontends.fakes import Gateway

WEB = HostPort("www.example", 80)


@pytest.mark.parametrize(
    ("request_", "literal"),
    [
        (ResolveRequest("192.0.2.1", reverse=False), True),
        (ResolveRequest("192.0.2.1", reverse=True), False),
        (ResolveRequest("www.example", reverse=False), False),
        (ConnectRequest(HostPort("192.0.2.1", 80)), False),
    ],
)
def test_the_address_of_an_address_needs_no_tunnel(request_: Request, *, literal: bool) -> None:
    assert asks_for_literal(request_) is literal


def test_what_is_named_has_a_route() -> None:
    gateway = Gateway(
        peers=[{"name": "office", "public_key": "A" * 43 + "=", "url": "http://192.0.2.9/"}],
        routes=[{"name": "web", "hosts": ["*.example"], "ports": [80], "peers": ["office"]}],
    )
    routing = gateway.clients.routing
    for request in (ConnectRequest(WEB), ResolveRequest("www.example", reverse=False)):
        found = route_of(request, routing)
        assert found is not None
        assert found.number == 0
        assert str(named_by(request)).startswith("www.example")
    assert route_of(ConnectRequest(HostPort("www.example", 81)), routing) is None


def test_each_kind_of_flow_has_its_message() -> None:
    assert decode(opening_of(ConnectRequest(WEB), 7)) == OpenConnection(7, *WEB)
    assert decode(opening_of(BindRequest(WEB), 8)) == Bind(8, WEB)


def refused(gateway: Gateway, request: Request, *, peer: str = "office") -> HostPort | None:
    return refused_here(gateway.settings, gateway.counters, request, peer=peer, conn_id=7)


def decisions(gateway: Gateway) -> list[int]:
    verdicts = ("allowed", "denied", "resolve")
    return [gateway.counted("policy_decisions_total", each) for each in verdicts]


def test_a_gateway_without_a_policy_refuses_nothing() -> None:
    gateway = Gateway()
    assert refused(gateway, ConnectRequest(WEB)) is None
    assert decisions(gateway) == [0, 0, 0]


def test_each_decision_for_a_peer_is_recorded_and_before_that_a_refusal_alone() -> None:
    gateway = Gateway(policy={"allowed_hosts": ["*.example"], "allowed_ports": [80]})
    other = HostPort("www.example", 81)
    assert refused(gateway, ConnectRequest(WEB), peer="") is None
    assert decisions(gateway) == [0, 0, 0]
    assert refused(gateway, ConnectRequest(WEB)) is None
    assert decisions(gateway) == [1, 0, 0]
    assert refused(gateway, ConnectRequest(other), peer="") == other
    assert refused(gateway, BindRequest(other)) == other
    assert decisions(gateway) == [1, 2, 0]


def test_of_a_name_and_of_an_association_the_port_does_not_matter() -> None:
    gateway = Gateway(policy={"allowed_hosts": ["*.example"], "allowed_ports": [80]})
    assert refused(gateway, ResolveRequest("www.example", reverse=False)) is None
    assert refused(gateway, ResolveRequest("www.other", reverse=False)) == HostPort("www.other", 80)
    assert refused(gateway, UdpAssociateRequest(None)) is None
