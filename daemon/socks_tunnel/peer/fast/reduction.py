"""Proportional rate reduction (RFC 9937): how much may be sent while losses are repaired. No clock.

The quota is computed anew for each SACK and used up by what is sent. As long as more is in flight
than the controller's window, it is the share of what arrives that leads down to the window within
one round trip. Below, it is what arrives, or a packet more if the repair makes good progress.
"""


class Reduction:
    """One episode of losses after the other; sizes in bytes."""

    __slots__ = ("_delivered", "_flight", "_out", "active", "quota")

    def __init__(self) -> None:
        self.active = False
        """Whether an episode is going on that reduces the rate."""
        self.quota = 0
        """What may be sent until the next SACK."""
        self._flight = 1  # RecoverFS
        self._delivered = 0  # prr_delivered
        self._out = 0  # prr_out

    def begin(self, flight: int) -> None:
        """Starts an episode; `flight` was in flight before the first loss was found."""
        self.active = True
        self.quota = 0
        self._flight = max(flight, 1)
        self._delivered = 0
        self._out = 0

    def end(self) -> None:
        """Ends the episode."""
        self.active = False

    def delivered(self, count: int, *, flight: int, window: int, packet: int, safe: bool) -> None:
        """Computes the quota for a SACK that acknowledged `count` bytes.

        `flight` is what is in flight now. `safe` says that the cumulative TSN has moved on and no
        further loss was found (SafeACK, RFC 9937 section 5.2).
        """
        self._delivered += count
        if flight > window:
            self.quota = -(-self._delivered * window // self._flight) - self._out
        else:
            quota = max(self._delivered - self._out, count) + (packet if safe else 0)
            self.quota = min(quota, window - flight)
        # The first retransmission is never held back. Nor is a packet if nothing is in flight: no
        # SACK would come that lets it go.
        if not self._out or not flight:
            self.quota = max(self.quota, packet)

    def sent(self, count: int) -> None:
        """Counts what was sent."""
        self._out += count
        self.quota -= count
