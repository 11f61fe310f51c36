"""What a gateway does with a client's request: its route, the policy, the message to a peer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from socks_tunnel.protocol.addresses import HostPort, parse_ip
from socks_tunnel.protocol.messages import Bind, OpenConnection
from socks_tunnel.protocol.policy import Verdict
from socks_tunnel.protocol.routes import Match
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)
from socks_tunnel_workers.frontends.asking import COMMANDS
from socks_tunnel_workers.frontends.routing import Routing
from socks_tunnel_workers.relay.local_policy import allowed_here

if TYPE_CHECKING:
    from socks_tunnel_workers.services import Counters, Settings


def asks_for_literal(request: Request) -> bool:
    """Returns whether it asks for the address of an IP literal, which needs no endpoint."""
    return (
        isinstance(request, ResolveRequest)
        and not request.reverse
        and parse_ip(request.host) is not None
    )


def named_by(request: Request) -> HostPort | str:
    """Returns the destination that is asked for, or the host that is asked about."""
    if isinstance(request, ResolveRequest):
        return request.host
    assert not isinstance(request, UdpAssociateRequest), "its datagrams name destinations"
    return request.destination


def route_of(request: Request, routing: Routing) -> Match | None:
    """Returns the route for the request's destination or host; None if there is none."""
    if isinstance(request, ResolveRequest):
        return routing.match(request.host, None)
    assert not isinstance(request, UdpAssociateRequest), "its datagrams have routes of their own"
    return routing.match(*request.destination)


def opening_of(request: ConnectRequest | BindRequest, conn_id: int) -> bytes:
    """Returns the message that asks a peer for a TCP flow."""
    if isinstance(request, BindRequest):
        return Bind(conn_id, request.destination).encode()
    return OpenConnection(conn_id, request.destination.host, request.destination.port).encode()


def refused_here(
    settings: Settings, counters: Counters, request: Request, *, peer: str, conn_id: int
) -> HostPort | None:
    """Asks the gateway's own policy; returns the destination if it is refused, else None.

    The decision is counted and gets an audit record. Without a `peer`, only a refusal does: the
    policy is asked again when there is a session.
    """
    policy = settings.policies.default
    if policy is None or isinstance(request, UdpAssociateRequest):
        return None
    if isinstance(request, ResolveRequest):
        destination = HostPort(request.host, policy.some_port)
    else:
        destination = request.destination
    if not peer and policy.check(destination).verdict is not Verdict.DENIED:
        return None
    command = COMMANDS[type(request)]
    if allowed_here(counters, policy, destination, peer=peer, conn_id=conn_id, command=command):
        return None
    return destination
