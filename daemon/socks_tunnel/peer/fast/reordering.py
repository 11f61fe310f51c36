"""How late a packet may be before it counts as lost (RFC 8985 section 6.2). No clock."""

from typing import Final

REORDER_CHUNKS: Final = 3
"""Chunks acknowledged beyond a gap that prove a loss on a path that never reordered."""
REORDER_PERSIST: Final = 16
"""Recoveries without a spurious retransmission until the patience for reordering shrinks again."""

MULTIPLIER_MAX: Final = 64
"""Quarters of the smallest round trip that are waited at most; the smoothed one is the bound."""


class Reordering:
    """What is known of a path's reordering."""

    __slots__ = ("_persist", "_round", "multiplier", "seen")

    def __init__(self) -> None:
        self.seen = False
        """Whether a packet has ever been overtaken, and arrived."""
        self.multiplier = 1
        self._persist = REORDER_PERSIST
        self._round = 0

    def patience(self, minimum: float, smoothed: float, *, certain: bool) -> float:
        """Returns how many seconds a packet may be late.

        `minimum` and `smoothed` are round trips. `certain` says that there is enough else to say
        that it is lost; that counts as long as the path has never reordered.
        """
        if certain and not self.seen:
            return 0.0
        return min(self.multiplier * minimum / 4, smoothed)

    def in_vain(self, acknowledged: int, next_order: int) -> None:
        """Learns that a retransmission was not needed: more patience, once a round trip.

        `acknowledged` and `next_order` count transmissions: the youngest one that has arrived, and
        the next one.
        """
        self.seen = True
        self._persist = REORDER_PERSIST
        if acknowledged >= self._round:
            self._round = next_order
            self.multiplier = min(self.multiplier + 1, MULTIPLIER_MAX)

    def recovered(self) -> None:
        """Learns that an episode of losses is over: in the end, patience comes down again."""
        if self.multiplier > 1:
            self._persist -= 1
            if self._persist <= 0:
                self.multiplier = 1
