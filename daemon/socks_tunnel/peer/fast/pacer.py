"""How packets are spread over time. No clock.

A little of the rate may go at once, since neither timers nor system calls are for free; what a
timer was late by is caught up.
"""

from typing import Final

PACE_QUANTUM: Final = 0.001
"""Seconds of the pacing rate that may be sent at a time, and at least PACE_PACKETS."""
PACE_PACKETS: Final = 10
PACE_LATE_MAX: Final = 0.025
"""Seconds by which a timer, or a SACK, may be late without a loss of rate: so much is caught up. A
process waits that long for its turn on a busy host, and the path's queue has emptied meanwhile."""
PACE_RESTED_MAX: Final = 0.004
"""The same after there was nothing to send: that is no lateness, only a timer that was not set."""


class Pacer:
    """When the next packets may go. Rates in bytes a second."""

    __slots__ = ("_at", "rested", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """When the next packets go; 0 if nothing is held back."""
        self.rested = True
        """Whether there was nothing to send since something was sent last."""
        self._at = 0.0

    def quantum(self, now: float, rate: float, packet: int, *, idle: bool) -> float:
        """Returns how many bytes may be sent now, for packets of `packet` bytes.

        0 if it is too early, and `until` says when it is not. With `idle` nothing is in flight;
        then it is never too early.
        """
        if now < self._at and not idle:
            self.until = self._at
            return 0.0
        late = now - self._begins(now)
        return self._at_once(rate, packet) + max(late, 0.0) * rate

    def ahead(self, now: float, rate: float, packet: int) -> float:
        """Returns how many bytes more were sent than may be sent at a time."""
        return (self._at - now) * rate - self._at_once(rate, packet)

    def _at_once(self, rate: float, packet: int) -> float:
        return max(rate * PACE_QUANTUM, PACE_PACKETS * packet)

    def sent(self, now: float, rate: float, count: int) -> None:
        """Counts what was sent."""
        self._at = self._begins(now) + count / rate
        self.rested = False

    def _begins(self, now: float) -> float:
        """Returns the time from which on what may be sent by now is counted."""
        return max(self._at, now - (PACE_RESTED_MAX if self.rested else PACE_LATE_MAX))
