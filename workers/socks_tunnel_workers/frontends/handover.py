"""Hand-over of a gateway's UDP associations: those of SOCKS clients, and those of UDP forwards.

Open TCP flows of clients need nothing of the front ends: see
:mod:`socks_tunnel_workers.relay.handover`. A client without an answer is not handed over: its
connection ends with the old program.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel_workers.frontends.associating import routed_association
from socks_tunnel_workers.frontends.forward import ForwardAssociation, UdpForward
from socks_tunnel_workers.frontends.watching import ClientWatch
from socks_tunnel_workers.relay.client_socket import ClientSocket
from socks_tunnel_workers.relay.routed_udp import Leg, RoutedAssociation
from socks_tunnel_workers.relay.udp import GatewayAssociation, Relayed
from socks_tunnel_workers.sockets import SockAddr, adopt, lend

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.relay.session import WorkerSession
    from socks_tunnel_workers.services import QuotaSlot


class HeldConnection:
    """The control connection of an association that the previous program has opened.

    The association lives as long as the connection, and the other way round (RFC 1928 section 7).
    """

    def __init__(
        self, clients: Clients, sock: socket.socket, client: str, account: str, slot: QuotaSlot
    ) -> None:
        self.client = client
        self.account = account
        self.connection = sock
        self._clients = clients
        self._slot = slot
        self._association: GatewayAssociation | RoutedAssociation | None = None
        self._watch = ClientWatch(clients.loop, clients.memory, sock, self, early=b"", keep=False)

    def hold(self, association: GatewayAssociation | RoutedAssociation) -> None:
        """Watches the connection for its association."""
        self._association = association
        self._watch.start()

    # --- Control --------------------------------------------------------------------------------

    def associated(self, association: Relayed) -> None:
        """Does nothing: the endpoint has answered again, and the client knows the address."""

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """Closes the connection, because the association is over."""
        del reason, opened
        if isinstance(self._association, RoutedAssociation):
            self._clients.relays.discard(self._association)
        self._association = None
        self._watch.stop()
        self._slot.end()
        self.connection.close()

    # --- Watcher --------------------------------------------------------------------------------

    def said(self, data: bytes) -> None:
        """Ignores data: nothing is expected on the connection."""

    def ended_its_side(self) -> None:
        """Ends the association, because the client's end of file came."""
        self._end()

    def left(self) -> None:
        """Ends the association, because the client has reset the connection."""
        self._end()

    def _end(self) -> None:
        if self._association is not None:
            self._association.abort(CloseReason.ORDERLY)


def export_gateway_association(association: GatewayAssociation) -> dict[str, Any]:
    """Returns an association as plain values. Its sockets stay open in the next program."""
    control = association.control
    return association.export() | {
        "client": association.client,
        "account": control.account,
        "control": lend(control.connection),
        **_export_client_socket(association.client_socket),
    }


def _export_client_socket(relay: ClientSocket) -> dict[str, Any]:
    assert relay.sock is not None, "it is bound"
    return {
        "fd": lend(relay.sock),
        "client_ip": relay.client_ip,
        "told": relay.told,
        "pinned": None if relay.pinned is None else list(relay.pinned),
        "mapped": list(relay.mapped),
    }


def _restore_client_socket(relay: ClientSocket, fields: Mapping[str, Any]) -> None:
    relay.client_ip = bounded.text(fields, "client_ip")
    relay.told = bounded.text(fields, "told")
    relay.pinned = _pinned(fields)
    relay.mapped.update(dict.fromkeys(bounded.binaries(fields, "mapped")))
    relay.sock = adopt(bounded.integer(fields, "fd", 0, 1 << 31))


def _restore_control(clients: Clients, fields: Mapping[str, Any]) -> HeldConnection:
    """Returns the control connection of an association, with a slot of the client's quota."""
    account = bounded.text(fields, "account")
    client = bounded.text(fields, "client")
    slot = clients.take_association(account)
    if slot is None:
        raise bounded.Malformed(
            f"the client {bounded.clip(account)} has as many associations as "
            "limits.associations_per_client allows"
        )
    try:
        sock = adopt(bounded.integer(fields, "control", 0, 1 << 31))
    except BaseException:
        slot.end()
        raise
    return HeldConnection(clients, sock, client, account, slot)


def restore_gateway_association(
    clients: Clients, session: WorkerSession, fields: Mapping[str, Any]
) -> GatewayAssociation:
    """Returns the association, which goes on in its session.

    Raises Malformed, and :class:`OSError` for a descriptor that is not open.
    """
    conn_id = bounded.integer(fields, "conn_id", 1, 0xFFFF_FFFF)
    control = _restore_control(clients, fields)
    association = GatewayAssociation(session, conn_id, control)
    try:
        association.restore(fields)
        _restore_client_socket(association.client_socket, fields)
        session.readmit(association)
    except BaseException:
        if association.client_socket.sock is not None:
            association.client_socket.sock.close()
        control.association_ended(CloseReason.RESUME_FAILED, opened=True)
        raise
    association.watch()
    control.hold(association)
    return association


# --- associations with several peers ------------------------------------------------------------


def export_routed_association(association: RoutedAssociation) -> dict[str, Any]:
    """Returns an association with several peers as plain values, with its legs.

    Its sockets stay open in the next program, which decides anew which leg a destination takes.
    """
    control = association.control
    return {
        "client": association.client,
        "account": control.account,
        "control": lend(control.connection),
        "active": association.active,
        **_export_client_socket(association.client_socket),
        "legs": [
            {"session": number, **leg.export()}
            for number, leg in association.legs.items()
            if leg.opened
        ],
    }


def restore_routed_association(
    clients: Clients, sessions: Mapping[int, WorkerSession], fields: Mapping[str, Any]
) -> RoutedAssociation:
    """Returns the association, which goes on; its legs are in their sessions.

    Raises as :func:`restore_gateway_association`.
    """
    control = _restore_control(clients, fields)
    association = routed_association(clients, control)
    try:
        association.active = bounded.number(fields, "active")
        for part in bounded.tables(fields, "legs"):
            session = _session_of(part, sessions)
            leg = Leg(session, bounded.integer(part, "conn_id", 1, 0xFFFF_FFFF), association)
            leg.restore(part)
            session.readmit(leg)
            association.adopt(leg)
        _restore_client_socket(association.client_socket, fields)
    except BaseException:
        association.abort(CloseReason.RESUME_FAILED, tell_peer=True)
        raise
    clients.relays.add(association)
    association.watch()
    control.hold(association)
    return association


def _session_of(fields: Mapping[str, Any], sessions: Mapping[int, WorkerSession]) -> WorkerSession:
    session = sessions.get(bounded.integer(fields, "session", 1, 0xFFFF))
    if session is None:
        raise bounded.Malformed("there is no session with the number that a leg names")
    return session


# --- forwards -----------------------------------------------------------------------------------


def export_forward_association(association: ForwardAssociation) -> dict[str, Any]:
    """Returns the association of a forward's client as plain values.

    The forward's socket is not part of it: it is handed over as a listening socket.
    """
    return association.export() | {
        "client": association.client,
        "address": list(association.address),
        "forward": list(association.forward.sock.getsockname()),
    }


def restore_forward_association(
    forward: UdpForward, session: WorkerSession, fields: Mapping[str, Any]
) -> ForwardAssociation:
    """Returns the association, which goes on in its session and its forward. Raises Malformed."""
    address = _address(fields, "address")
    return forward.take_over(
        session,
        bounded.integer(fields, "conn_id", 1, 0xFFFF_FFFF),
        address,
        bounded.text(fields, "client"),
        fields,
    )


def _pinned(fields: Mapping[str, Any]) -> SockAddr | None:
    return None if fields.get("pinned") is None else _address(fields, "pinned")


def _address(fields: Mapping[str, Any], key: str) -> SockAddr:
    match fields.get(key):
        case [str(host), int(port)]:
            return host, port
        case [str(host), int(port), int(flow), int(scope)]:
            return host, port, flow, scope
        case _:
            raise bounded.unusable(fields, key)
