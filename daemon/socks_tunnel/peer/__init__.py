"""The peer connection: the only package that imports aiortc."""

from socks_tunnel.peer import lazy_mdns, no_media

no_media.install()  # this comes before anything imports aiortc
lazy_mdns.install()

from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.link import Link, LinkObserver
from socks_tunnel.peer.quiet import quiet_loop_exceptions, set_library_log_level
from socks_tunnel.peer.transport import Transport, TransportError

__all__ = [
    "IceSettings",
    "Link",
    "LinkObserver",
    "Transport",
    "TransportError",
    "quiet_loop_exceptions",
    "set_library_log_level",
]
