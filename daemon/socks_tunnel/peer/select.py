"""Which transport a link gets."""

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
    """Returns a transport that nobody has attached to. `name` is for logs.

    It is the fast path unless that is `off`, or the installed libraries are not those that it was
    written for (:data:`socks_tunnel.peer.fast.guard.MISMATCH` says so, once, in the log). The peer
    may have either. `congestion` is the fast path's.

    Raises :class:`ValueError` for ICE servers that cannot be used.
    """
    if fast_path_active(fast_path):
        return FastTransport(role, ice, name=name, congestion=congestion)
    return PlainTransport(role, ice, name=name)


def aiortc_version() -> str:
    """Returns the version of aiortc that runs."""
    return aiortc.__version__


def fast_path_active(fast_path: Literal["auto", "off"]) -> bool:
    """Returns whether links with this setting get the fast path in this process."""
    return fast_path == "auto" and guard.MISMATCH is None


def fast_path_state(fast_path: Literal["auto", "off"] = "auto") -> str:
    """Returns what links of this process run on, for an operator."""
    if fast_path == "off":
        return "off (transport.fast_path)"
    if guard.MISMATCH is not None:
        return f"off: {guard.MISMATCH}"
    return compiled_state()
