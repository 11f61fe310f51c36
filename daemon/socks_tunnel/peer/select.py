"""Which transport a link gets."""

from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.plain.transport import PlainTransport
from socks_tunnel.peer.transport import Role, Transport


def new_transport(role: Role, ice: IceSettings, *, name: str) -> Transport:
    """Returns a transport that nobody has attached to. `name` is for logs.

    Raises :class:`ValueError` for ICE servers that cannot be used.
    """
    return PlainTransport(role, ice, name=name)
