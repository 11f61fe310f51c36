"""Round trips and the retransmission time-out (RFC 9260 section 6.3). No clock."""

from typing import Final

RTO_INITIAL: Final = 1.0
RTO_MAX: Final = 60.0
"""Seconds, as in RFC 9260 section 16."""

RTO_MIN: Final = 0.2
"""Seconds beyond the round trip that are waited at least, as common TCPs do: on a steady path of
0.3 s the variation is next to nothing, and any queue would make a time-out of a late SACK."""

MIN_RTT_WINDOW: Final = 10.0
"""Seconds for which the smallest round trip is remembered."""


class RoundTrip:
    """What was measured of the round trip. Times in seconds; 0 before the first measurement."""

    __slots__ = ("_minimum_at", "minimum", "rto", "smoothed", "variation")

    def __init__(self) -> None:
        self.smoothed = 0.0
        """SRTT."""
        self.variation = 0.0
        """RTTVAR."""
        self.rto = RTO_INITIAL
        self.minimum = 0.0
        """The smallest of the last MIN_RTT_WINDOW seconds: the path without its queues."""
        self._minimum_at = 0.0

    def measured(self, rtt: float, now: float) -> None:
        """Takes a measurement (rules C2 and C3)."""
        if not self.smoothed:
            self.smoothed = rtt
            self.variation = rtt / 2
        else:
            self.variation += (abs(self.smoothed - rtt) - self.variation) / 4
            self.smoothed += (rtt - self.smoothed) / 8
        self.rto = min(self.smoothed + max(4 * self.variation, RTO_MIN), RTO_MAX)
        if not self.minimum or rtt <= self.minimum or now - self._minimum_at > MIN_RTT_WINDOW:
            self.minimum = rtt
            self._minimum_at = now

    def back_off(self) -> None:
        """Doubles the time-out, because it has expired (rule E2)."""
        self.rto = min(self.rto * 2, RTO_MAX)
