"""ICE (RFC 8445): which addresses are offered to the peer, and how the path to it is chosen.

aioice speaks the protocol. This package has the parts that aioice leaves open or limits: the choice
and the order of local addresses (:mod:`.addresses`), several STUN and TURN servers asked side by
side (:mod:`.gathering`, :mod:`.relay`), the check list and the nomination (:mod:`.pairs`,
:mod:`.connection`), and the sentences for an operator (:mod:`.report`).
"""

from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.report import (
    SelectedPath,
    candidates,
    drops,
    path_lost,
    selected_path,
    why_no_candidates,
    why_no_path,
)
from socks_tunnel.peer.ice.settings import IceSettings, candidate_addresses, rtc_servers

__all__ = [
    "IceConnection",
    "IceSettings",
    "SelectedPath",
    "candidate_addresses",
    "candidates",
    "drops",
    "path_lost",
    "rtc_servers",
    "selected_path",
    "why_no_candidates",
    "why_no_path",
]

aiortc_private.install(IceConnection)
