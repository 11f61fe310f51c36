"""The peer connection: the only package that imports aiortc."""

from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.link import Link, LinkError, LinkObserver
from socks_tunnel.peer.quiet import quiet_loop_exceptions, set_library_log_level

__all__ = [
    "IceSettings",
    "Link",
    "LinkError",
    "LinkObserver",
    "quiet_loop_exceptions",
    "set_library_log_level",
]
