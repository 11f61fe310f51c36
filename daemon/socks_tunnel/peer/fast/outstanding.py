"""A chunk that was sent and is not settled, and what those of one turn have in common."""

from typing import Final

from socks_tunnel.peer.fast.streams import Message

IN_FLIGHT: Final = 0
LOST: Final = 1
ACKED: Final = 2
ABANDONED: Final = 3
"""States of a chunk; :mod:`socks_tunnel.peer.fast.recovery` has all their transitions."""


class Burst:
    """What was sent in one turn shares this: the time, and the state to measure the rate with."""

    __slots__ = ("app_limited", "at", "delivered", "delivered_at", "first_at")

    def __init__(
        self, at: float, delivered: int, delivered_at: float, first_at: float, app_limited: bool
    ) -> None:
        self.at = at
        self.delivered = delivered
        self.delivered_at = delivered_at
        self.first_at = first_at
        self.app_limited = app_limited


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
