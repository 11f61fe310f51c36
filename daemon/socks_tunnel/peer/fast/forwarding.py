"""How far the peer is told to move on over what was given up (RFC 3758 section 3.5). No clock."""

from typing import Final

from socks_tunnel.peer.fast.outstanding import ABANDONED, ACKED, Chunk
from socks_tunnel.peer.fast.rtt import RTO_MIN, RoundTrip

SKIPS_MAX: Final = 128
"""Streams named in one FORWARD-TSN, so that it fits the smallest packet."""

REPEAT_MIN: Final = 0.001
"""Seconds until a FORWARD-TSN is repeated at least, whatever the round trip is."""


class Forwarding:
    """The sender's side of partial reliability. TSNs are unwrapped."""

    __slots__ = ("_skips", "at", "point")

    def __init__(self, cumulative: int) -> None:
        self.point = cumulative
        """Advanced.Peer.Ack.Point: what is acknowledged, and beyond it what was given up."""
        self.at = 0.0
        """When a FORWARD-TSN is due; 0 if none is."""
        # (stream, whether unordered): number of the last message that is skipped, its last TSN
        self._skips: dict[tuple[int, bool], tuple[int, int]] = {}

    def acknowledged(self, cumulative: int) -> None:
        """Learns up to which TSN the peer has moved on by now."""
        self.point = max(self.point, cumulative)
        if self._skips:
            self._skips = {k: v for k, v in self._skips.items() if v[1] > cumulative}

    def may_skip(self, chunk: Chunk) -> bool:
        """Moves over the chunk after :attr:`point` if it was given up; returns whether it was."""
        message = chunk.message
        # What arrived of a message that was given up is skipped with the rest of it.
        if chunk.state != ABANDONED and not (chunk.state == ACKED and message.abandoned):
            return False
        key = (message.stream.stream_id, message.unordered)
        if key not in self._skips and len(self._skips) >= SKIPS_MAX:
            return False
        self.point = chunk.tsn
        self._skips[key] = (message.number, chunk.tsn)
        return True

    def settle(self, before: int, cumulative: int, now: float, trip: RoundTrip) -> None:
        """Sets the timer after :attr:`point` has moved from `before`, or not."""
        if self.point == cumulative:
            self.at = 0.0
        elif self.point != before:
            self.at = now
        elif not self.at:
            self.at = now + max(trip.smoothed, REPEAT_MIN)

    def sent(self, now: float, trip: RoundTrip) -> list[tuple[int, int, int]]:
        """Returns the entries for a FORWARD-TSN up to :attr:`point`, which is being sent now.

        Each is (stream, number of the last message, 1 if unordered). It is sent again if the peer
        does not move on (rule C5).
        """
        self.at = now + max(trip.rto, RTO_MIN)
        return [(sid, number, int(u)) for (sid, u), (number, _) in self._skips.items()]
