"""Sentences about paths for an operator: which path is used, and why none was found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import aioice
from aiortc import RTCPeerConnection

from socks_tunnel.ops.labels import PATH_KINDS
from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.datagram_relay import is_channel_address
from socks_tunnel.peer.ice.settings import IceSettings
from socks_tunnel.protocol.addresses import parse_ip

LISTED_MAX: Final = 6
"""Candidates and problems that one sentence names. For the others, it has their number."""


@dataclass(frozen=True, slots=True)
class SelectedPath:
    """The candidate pair in use.

    `kind`, one of :data:`PATH_KINDS`, says what is between the hosts. `host`: nothing that changes
    addresses; `srflx`: a NAT, through addresses that a STUN server told; `prflx`: a NAT with
    addresses that only the checks showed; `relay`: a TURN server, or the rendezvous service that is
    named by `server`.
    """

    kind: str
    family: Literal["ipv4", "ipv6"]
    local: tuple[str, int]
    remote: tuple[str, int]
    server: str | None = None

    def __str__(self) -> str:
        if self.server is not None:
            return f"through {self.server}, relayed"
        (local, local_port), (remote, remote_port) = self.local, self.remote
        relayed = ", relayed" if self.kind == "relay" else ""
        return f"{local} port {local_port} -> {remote} port {remote_port}{relayed}"


def selected_path(pc: RTCPeerConnection) -> SelectedPath | None:
    """Returns the path in use, or None while there is none."""
    connection = aiortc_private.ice_connection(pc)
    pair = None if connection is None else aiortc_private.selected_pair(connection)
    if pair is None:
        return None
    if is_channel_address(parse_ip(pair.local_addr[0])):
        relay = pair.protocol.transport.get_extra_info("relay")
        return SelectedPath("relay", relay.family, pair.local_addr, pair.remote_addr, relay.server)
    own = pair.local_candidate.type
    if isinstance(connection, IceConnection) and own == "host":
        mapped = connection.mapped.get(pair)
        if mapped is not None and mapped != pair.local_addr:
            told = {(c.host, c.port) for c in connection.local_candidates if c.type == "srflx"}
            own = "srflx" if mapped in told else "prflx"
    kind = max(own, pair.remote_candidate.type, key=PATH_KINDS.index)
    family: Literal["ipv4", "ipv6"] = "ipv6" if ":" in pair.remote_addr[0] else "ipv4"
    return SelectedPath(kind, family, pair.local_addr, pair.remote_addr)


def candidates(pc: RTCPeerConnection) -> tuple[list[str], list[str]]:
    """Returns our candidates and the peer's, each as text for an operator."""
    connection = aiortc_private.ice_connection(pc)
    if connection is None:
        return [], []
    ours, theirs = connection.local_candidates, connection.remote_candidates
    return list(map(_candidate, ours)), list(map(_candidate, theirs))


def path_lost(pc: RTCPeerConnection) -> str | None:
    """Returns why the path was lost, if that is known."""
    connection = aiortc_private.ice_connection(pc)
    return connection.lost if isinstance(connection, IceConnection) else None


def drops(pc: RTCPeerConnection | None) -> Mapping[str, int]:
    """Returns the drops of the sockets and allocations of a connection, by reason."""
    connection = None if pc is None else aiortc_private.ice_connection(pc)
    return connection.drops() if isinstance(connection, IceConnection) else {}


def why_no_candidates(pc: RTCPeerConnection, settings: IceSettings) -> str:
    """Returns why there are no candidates to offer, as a sentence."""
    connection = aiortc_private.ice_connection(pc)
    problems = connection.problems if isinstance(connection, IceConnection) else []
    if problems:
        return f"no ICE candidate can be made: {_listed(problems)}"
    if settings.policy == "relay":
        return (
            "there is no relay: ice.servers names no TURN server, and no rendezvous service in use "
            "offers one or relays itself"
        )
    if settings.addresses:
        which = ", ".join(settings.addresses)
        return f"there is no local address that ice.addresses allows ({which})"
    return "there is no local address but loopback; name it in ice.addresses"


def why_no_path(pc: RTCPeerConnection) -> str:
    """Returns a clause about a failed attempt: the candidates of both sides, and problems."""
    connection = aiortc_private.ice_connection(pc)
    if connection is None:
        return "no candidates"
    ours, theirs = connection.local_candidates, connection.remote_candidates
    text = f"ours: {_candidates(ours)}; the peer's: {_candidates(theirs)}"
    families = [{":" in c.host for c in side} for side in (ours, theirs)]
    if ours and theirs and families[0].isdisjoint(families[1]):
        text += "; one side has only IPv4 addresses, the other only IPv6"
    if isinstance(connection, IceConnection) and connection.problems:
        text += f"; {_listed(connection.problems)}"
    return text


def _candidates(some: list[aioice.Candidate]) -> str:
    return _listed(list(map(_candidate, some))) or "none"


def _candidate(candidate: aioice.Candidate) -> str:
    if is_channel_address(parse_ip(candidate.host)):
        return "relay of the rendezvous service"
    return f"{candidate.type} {candidate.host} port {candidate.port}"


def _listed(texts: list[str]) -> str:
    more = len(texts) - LISTED_MAX
    return ", ".join(texts[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
