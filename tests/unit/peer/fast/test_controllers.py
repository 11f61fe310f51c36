"""Controllers by name."""

from socks_tunnel.peer.fast.bbr import Bbr
from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.cubic import Cubic


def test_the_names_of_the_configuration() -> None:
    assert isinstance(controller("cubic", 1_132), Cubic)
    assert isinstance(controller("bbr", 1_132), Bbr)
