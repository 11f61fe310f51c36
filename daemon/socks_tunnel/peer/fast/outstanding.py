"""A chunk that was sent, until it is settled."""

from typing import Final

from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.streams import Message

IN_FLIGHT: Final = 0
LOST: Final = 1
ACKED: Final = 2
ABANDONED: Final = 3
"""States of a chunk; :mod:`socks_tunnel.peer.fast.recovery` has all their transitions."""


class Chunk:
    """A DATA or I-DATA chunk that has a TSN. `body` is what goes on the wire, padding included."""

    __slots__ = ("body", "burst", "message", "order", "sends", "size", "state", "tsn")

    def __init__(self, tsn: int, body: bytes, message: Message, order: int, burst: Burst) -> None:
        self.tsn = tsn
        self.body = body
        self.size = len(body)
        self.message = message
        self.order = order
        self.burst = burst
        self.sends = 1
        self.state = IN_FLIGHT
