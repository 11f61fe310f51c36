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
    """A DATA or I-DATA chunk that has a TSN.

    It has no bytes of its own: whoever sends it, for the first time or again, takes `length` bytes
    from `position` on out of its message, and a header of the other fields.
    """

    __slots__ = (
        "burst",
        "flags",
        "fragment",
        "length",
        "message",
        "order",
        "position",
        "sends",
        "size",
        "state",
        "tsn",
    )

    def __init__(
        self,
        tsn: int,
        size: int,
        message: Message,
        order: int,
        burst: Burst,
        flags: int = 0,
        fragment: int = 0,
        position: int = 0,
        length: int = 0,
    ) -> None:
        self.tsn = tsn
        self.size = size
        """Bytes on the wire, with header and padding."""
        self.message = message
        self.order = order
        self.burst = burst
        self.flags = flags
        self.fragment = fragment
        """Its number among the fragments of the message."""
        self.position = position
        self.length = length
        self.sends = 1
        self.state = IN_FLIGHT
