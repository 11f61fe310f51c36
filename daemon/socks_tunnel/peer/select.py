"""Chooses the transport of a link."""

from typing import Literal

import aiortc

from socks_tunnel.ops.compiled import compiled_state
from socks_tunnel.peer.fast import guard
from socks_tunnel.peer.fast.transport import FastTransport
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.plain.transport import PlainTransport
from socks_tunnel.peer.transport import Role, Transport


def new_transport(
    role: Role,
    ice: IceSettings,
    *,
    name: str,
    fast_path: Literal["auto", "off"] = "auto",
    congestion: Literal["cubic", "bbr"] = "cubic",
) -> Transport:
    """Returns a new transport without an owner. `name` is for logs.

    It is the fast path, unless that is `off` or was not written for the installed libraries. In the
    latter case, :data:`socks_tunnel.peer.fast.guard.MISMATCH` is logged once. The peer may have
    either transport. `congestion` is the congestion control of the fast path.

    Raises :class:`ValueError` for ICE servers that cannot be used.
    """
    if fast_path_active(fast_path):
        return FastTransport(role, ice, name=name, congestion=congestion)
    return PlainTransport(role, ice, name=name)


def aiortc_version() -> str:
    """Returns the version of aiortc in use."""
    return aiortc.__version__


def fast_path_active(fast_path: Literal["auto", "off"]) -> bool:
    """Returns whether links with this setting get the fast path in this process."""
    return fast_path == "auto" and guard.MISMATCH is None


def fast_path_state(fast_path: Literal["auto", "off"] = "auto") -> str:
    """Returns which transport the links of this process use, for an operator."""
    if fast_path == "off":
        return "off (transport.fast_path)"
    if guard.MISMATCH is not None:
        return f"off: {guard.MISMATCH}"
    return compiled_state()
