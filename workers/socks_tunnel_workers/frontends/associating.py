"""What a UDP association needs besides its flows: a slot in the client's quota, and a relay."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from socks_tunnel.protocol.addresses import UNSPECIFIED
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ice_urls import parse_udp_ports
from socks_tunnel.protocol.socks5 import Request, UdpAssociateRequest
from socks_tunnel_workers.frontends.identity import Client, plain_ip
from socks_tunnel_workers.relay.client_socket import ClientSocket
from socks_tunnel_workers.relay.routed_udp import Leg, RoutedAssociation
from socks_tunnel_workers.relay.udp import Control

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.services import QuotaSlot

LOOPBACK: Final = "127.0.0.1"
"""The address of the UDP relays of clients on Unix sockets."""


class Associating:
    """The slot and the relay for one request, which came on `sock`."""

    __slots__ = ("_clients", "_request", "_slot", "_sock", "_who")

    def __init__(
        self, clients: Clients, request: Request, who: Client, sock: socket.socket
    ) -> None:
        self._clients = clients
        self._request = request
        self._who = who
        self._sock = sock
        self._slot: QuotaSlot | None = None

    def take_slot(self) -> bool:
        """Takes one slot of the client's quota; returns False if all are in use."""
        self._slot = self._clients.take_association(self._who.account)
        return self._slot is not None

    def free_slot(self) -> None:
        """Gives the slot back; harmless if that was done before."""
        if self._slot is not None:
            self._slot.end()
            self._slot = None

    def routed(self, control: Control) -> RoutedAssociation:
        """Returns an association whose datagrams go to several peers, with its relay bound.

        Raises :class:`OSError` if the relay cannot be bound; then the slot is free again.
        """
        association = routed_association(self._clients, control)
        try:
            self.bind(association.client_socket)
        except OSError:
            self.free_slot()
            raise
        self._clients.relays.add(association)
        return association

    def bind(self, association: ClientSocket) -> None:
        """Binds the relay of an association. Raises :class:`OSError`."""
        socks = self._clients.settings.config.socks
        ports = parse_udp_ports(socks.udp_ports)
        if self._sock.family != socket.AF_UNIX:
            local = self._sock.getsockname()
            host = plain_ip(str(local[0]))
            scope = int(local[3]) if len(local) > 3 and ":" in host else 0
            association.bind(
                host, scope, client_ip=self._who.account, ports=ports,
                told=socks.udp_address,
            )  # fmt: skip
            return
        # A client on a Unix socket is on this machine, and so is its relay. The permissions of the
        # socket decide who may use it, but every user can send to loopback. So if the client names
        # the port that it will send from (RFC 1928 section 4), only that port may use the relay.
        association.bind(LOOPBACK, 0, client_ip=LOOPBACK, ports=ports)
        assert isinstance(self._request, UdpAssociateRequest)
        hint = self._request.hint
        if hint is not None and hint.port and hint.host in {LOOPBACK, UNSPECIFIED.host}:
            association.pinned = LOOPBACK, hint.port


def routed_association(clients: Clients, control: Control) -> RoutedAssociation:
    """Returns an association whose datagrams go to several peers. Its relay is not bound yet."""
    return RoutedAssociation(
        clients.loop,
        clients.settings,
        clients.counters,
        clients.routing,
        control,
        partial(admit_leg, clients),
    )


def admit_leg(clients: Clients, leg: Leg) -> None:
    """Takes a leg into its session. Raises :class:`RemoteProtocolError` if a limit is reached."""
    if clients.full:
        clients.report_full()
        raise RemoteProtocolError("this worker has all flows that it may", kind="too-many-flows")
    try:
        leg.session.admit(leg)
    except RemoteProtocolError as error:
        clients.report_flow_limit(leg.session, error)
        raise
