"""Hand-over of an endpoint's flows: streams to targets, listeners of BIND, UDP associations."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.messages import Bind, OpenConnection
from socks_tunnel_workers.relay.handover import (
    export_destination,
    export_relay,
    go_on,
    restore_destination,
)
from socks_tunnel_workers.sockets import adopt, lend
from socks_tunnel_workers.targets.access import Allowed
from socks_tunnel_workers.targets.routes import Route
from socks_tunnel_workers.targets.tcp import TargetRelay
from socks_tunnel_workers.targets.udp import EndpointAssociation

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerSession
    from socks_tunnel_workers.targets.services import TargetServices


def _addresses(fields: Mapping[str, Any], key: str) -> tuple[IPAddress, ...]:
    found = tuple(map(parse_ip, bounded.texts(fields, key)))
    if not found or None in found:
        raise bounded.unusable(fields, key)
    return tuple(address for address in found if address is not None)


# --- streams ----------------------------------------------------------------------------------


def export_target_relay(relay: TargetRelay) -> dict[str, Any]:
    """Returns a flow to a target as plain values. Its sockets stay open in the next program."""
    allowed = relay.allowed
    return export_relay(relay) | {
        "allowed": None
        if allowed is None
        else {
            "addresses": [str(address) for address in allowed.addresses],
            "ttl": allowed.ttl,
            "name": allowed.name,
        },
        "listener": None if relay.listener is None else lend(relay.listener),
    }


def restore_target_relay(
    targets: TargetServices, session: WorkerSession, fields: Mapping[str, Any]
) -> TargetRelay:
    """Returns the flow, which goes on in its session; one that was being dialled is dialled again.

    Raises as :func:`~socks_tunnel_workers.relay.handover.go_on`.
    """
    destination = restore_destination(fields)
    if destination is None:
        raise bounded.unusable(fields, "destination")
    conn_id = bounded.integer(bounded.table(fields, "core"), "conn_id", 1, 0xFFFF_FFFF)
    request: OpenConnection | Bind
    if bounded.text(fields, "command") == "bind":
        request = Bind(conn_id, destination)
    else:
        request = OpenConnection(conn_id, destination.host, destination.port)
    relay = TargetRelay(targets, session, request)
    if fields.get("allowed") is not None:
        allowed = bounded.table(fields, "allowed")
        relay.allowed = Allowed(
            _addresses(allowed, "addresses"),
            None if allowed.get("ttl") is None else bounded.integer(allowed, "ttl", 0, 1 << 32),
            bounded.text(allowed, "name"),
        )
    if fields.get("listener") is not None:
        if relay.allowed is None:
            raise bounded.unusable(fields, "allowed")
        relay.listener = adopt(bounded.integer(fields, "listener", 0, 1 << 31))
    try:
        go_on(session, relay, fields)
    except BaseException:
        if relay.listener is not None:
            relay.listener.close()
        raise
    if relay.core.opening:
        if relay.listener is None:
            relay.allowed = None  # the new dial decides anew
        relay.start()
    return relay


# --- associations -----------------------------------------------------------------------------


def export_endpoint_association(association: EndpointAssociation) -> dict[str, Any]:
    """Returns an association as plain values. Its sockets stay open in the next program.

    That program decides anew about destinations that were refused or are being looked up.
    """
    return association.export() | {
        "sockets": [[int(family), lend(sock)] for family, sock in association.sockets.items()],
        "routes": [
            {
                "destination": export_destination(destination),
                "addresses": [
                    str(address)
                    for address in sorted(route.addresses, key=lambda a: a != route.current)
                ],
                "reached": [str(address) for address in route.reached],
                "expires": route.expires,
                "name": route.name,
                "mapped": route.mapped,
            }
            for destination, route in association.routes.allowed()
        ],
    }


def restore_endpoint_association(
    targets: TargetServices, session: WorkerSession, fields: Mapping[str, Any]
) -> EndpointAssociation:
    """Returns the association, which goes on in its session.

    Raises as :func:`restore_target_relay`.
    """
    conn_id = bounded.integer(fields, "conn_id", 1, 0xFFFF_FFFF)
    association = EndpointAssociation(targets, session, conn_id)
    association.restore(fields)
    now = session.loop.time()
    for route in bounded.tables(fields, "routes"):
        _restore_route(association, route, now)
    sockets: list[tuple[int, socket.socket]] = []
    try:
        for family, fd in bounded.rows(fields, "sockets", 2):
            sockets.append((family, adopt(fd)))
        session.readmit(association)
    except BaseException:
        for _, sock in sockets:
            sock.close()
        raise
    for family, sock in sockets:
        association.adopt(family, sock)
    return association


def _restore_route(association: EndpointAssociation, fields: Mapping[str, Any], now: float) -> None:
    destination = restore_destination(fields)
    if destination is None:
        raise bounded.unusable(fields, "destination")
    addresses = _addresses(fields, "addresses")
    route = Route(
        addresses,
        now=now,
        expires=None if fields.get("expires") is None else bounded.number(fields, "expires"),
        name=bounded.text(fields, "name"),
        mapped=bounded.boolean(fields, "mapped"),
    )
    route.answered(addresses[0], now)  # ends the race: the first address is the one in use
    association.routes.put(HostPort(destination.host, destination.port), route)
    for host in bounded.texts(fields, "reached"):
        address = parse_ip(host)
        if address is not None:
            association.routes.reached(route, address, destination.port)
