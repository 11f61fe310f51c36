"""Hand-over of TCP flows: the values with which the next program goes on with their sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.flow import TcpFlow
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.sockets import adopt, lend

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerSession


def export_destination(destination: HostPort | None) -> list[Any] | None:
    """Returns a destination as plain values."""
    return None if destination is None else [destination.host, destination.port]


def restore_destination(fields: Mapping[str, Any], key: str = "destination") -> HostPort | None:
    """Returns the destination of a record. Raises Malformed."""
    match fields.get(key):
        case None:
            return None
        case [str(host), int(port)] if 0 <= port <= 0xFFFF:
            return HostPort(host, port)
        case _:
            raise bounded.unusable(fields, key)


def export_relay(relay: TcpRelay) -> dict[str, Any]:
    """Returns a TCP flow as plain values. Its socket stays open in the next program."""
    return {
        "command": relay.command,
        "client": relay.client,
        "destination": export_destination(relay.destination),
        "started": relay.started,
        "active": relay.active,
        "ended": relay.ended,
        "upstream": relay.upstream,
        "repeated": relay.repeated,
        "opening": relay.opening,
        "answer": list(relay.answer),
        "core": relay.core.export(),
        "fd": None if relay.sock is None else lend(relay.sock),
    }


def restore_client_relay(session: WorkerSession, fields: Mapping[str, Any]) -> TcpRelay:
    """Returns a gateway's flow, which goes on in its session. Raises as :func:`go_on`."""
    destination = restore_destination(fields)
    if destination is None:
        raise bounded.unusable(fields, "destination")
    relay = TcpRelay(
        session,
        TcpFlow.restore(bounded.table(fields, "core")).conn_id,
        command=bounded.text(fields, "command"),
        client=bounded.text(fields, "client"),
        destination=destination,
        opening=bounded.binary(fields, "opening"),
    )
    go_on(session, relay, fields)
    return relay


def go_on(session: WorkerSession, relay: TcpRelay, fields: Mapping[str, Any]) -> None:
    """Lets a new relay go on as the flow that :func:`export_relay` described.

    Raises Malformed, :class:`OSError` for a descriptor that is not open, and
    :class:`~socks_tunnel.protocol.errors.RemoteProtocolError` for a CONN_ID that is in use.
    """
    relay.core = TcpFlow.restore(bounded.table(fields, "core"))
    relay.destination = restore_destination(fields)
    relay.started = bounded.number(fields, "started")
    relay.active = bounded.number(fields, "active")
    relay.upstream = bounded.boolean(fields, "upstream")
    relay.repeated = bounded.boolean(fields, "repeated")
    relay.answer = bounded.binaries(fields, "answer")
    relay.ended = bounded.boolean(fields, "ended")
    sock = None if fields.get("fd") is None else adopt(bounded.integer(fields, "fd", 0, 1 << 31))
    try:
        if not relay.ended:
            session.readmit(relay)
        elif sock is not None:
            session.linger(relay)
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    relay.charge.set(relay.core.cost)
    if sock is not None:
        session.core.guard(relay, relay.take_over, sock)
