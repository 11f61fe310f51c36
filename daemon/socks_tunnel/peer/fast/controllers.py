"""The congestion controllers by the names that the configuration knows."""

from socks_tunnel.peer.fast.bbr import Bbr
from socks_tunnel.peer.fast.congestion import CongestionName, Controller
from socks_tunnel.peer.fast.cubic import Cubic


def controller(name: CongestionName, packet_size: int) -> Controller:
    """Returns a new controller for packets of `packet_size` bytes."""
    return Bbr(packet_size) if name == "bbr" else Cubic(packet_size)
