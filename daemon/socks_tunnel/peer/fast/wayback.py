"""How long SACKs wait in the queue of the way back. No clock.

Where both ways of a path are full, a round trip is longer for two reasons: what we send waits on
its way there, and its SACK waits behind what the peer sends to us::

    round trip  =  path  +  queue of the way there  +  queue of the way back
                            what we fill               what the peer fills

To a sender, only the first queue says something of its own window. If it took both for its own, it
would make room for a queue that it cannot shorten, and when that queue is short for a moment, all
that was in flight for it would wait on the way there.

So a peer of ours stamps its SACKs with its clock. The two clocks have nothing in common but their
speed. What arrived fastest of late has not waited, and whatever took longer has waited for as long
as that. Clocks drift, by up to 500 millionths while they are being corrected, so the fastest is
that of the last :data:`FASTEST_PERIOD` to twice as many seconds.
"""

from typing import Final

from socks_tunnel.peer.fast.wire import STAMP, STAMP_CHUNK, STAMP_HEADER, WORD_MASK

FASTEST_PERIOD: Final = 10.0
"""Seconds after which a period begins; the fastest of this and of the last period counts."""

_TICKS: Final = 1_000_000
_HALF: Final = (WORD_MASK + 1) // 2


def stamp(now: float, offset: int) -> bytes:
    """Returns a STAMP chunk; `offset` in microseconds hides for how long the host has been up."""
    return STAMP_CHUNK.pack(STAMP, 0, STAMP_HEADER, (int(now * _TICKS) + offset) & WORD_MASK)


class WayBack:
    """The queue of the way back, by the stamps of the peer's SACKs."""

    __slots__ = ("_before", "_delay", "_fastest", "_last", "_period_at", "known")

    def __init__(self) -> None:
        self.known = False
        """Whether there was a stamp."""
        # All in microseconds of our clock less the peer's, since the first stamp.
        self._last = 0
        self._delay = 0
        self._fastest = 0
        self._before = 0
        self._period_at = 0.0

    def stamped(self, word: int, now: float) -> float:
        """Takes a stamp; returns for how many seconds its packet has waited on its way."""
        delay = (int(now * _TICKS) - word) & WORD_MASK
        if not self.known:
            self.known = True
            self._last = delay
            self.restart(now)
            return 0.0
        self._delay += ((delay - self._last + _HALF) & WORD_MASK) - _HALF
        self._last = delay
        if now - self._period_at > FASTEST_PERIOD:
            self._before, self._fastest, self._period_at = self._fastest, self._delay, now
        self._fastest = min(self._fastest, self._delay)
        return (self._delay - min(self._fastest, self._before)) / _TICKS

    def restart(self, now: float) -> None:
        """Begins with the last stamp: a clock was stopped, or the packets take another path."""
        self._delay = self._fastest = self._before = 0
        self._period_at = now
