"""The rate at which the peer receives (draft-cheng-iccrg-delivery-rate-estimation). No clock."""


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


class DeliveryRate:
    """What has arrived, and how fast.

    A sample compares the state of now with that when the packet was sent which has just been
    acknowledged. Of the time that it took to send, and the time that it took to arrive, the longer
    one counts, so that neither a burst of packets nor one of SACKs makes a path look fast.
    """

    __slots__ = (
        "_at",
        "_first_at",
        "_next_round",
        "delivered",
        "limited",
        "limited_until",
        "rate",
        "round_start",
    )

    def __init__(self) -> None:
        self.delivered = 0
        """Bytes that have arrived since the beginning."""
        self._at = 0.0
        self._first_at = 0.0
        self._next_round = 0
        self.limited_until = -1
        """Until `delivered` passes this, samples are of a sender that had too little to send."""
        self.rate = 0.0
        """The last sample in bytes a second; 0 if the last SACK gave none."""
        self.limited = False
        """Whether that sample is of a sender that had too little to send."""
        self.round_start = False
        """Whether the last SACK was the first one for what was sent after the last round began."""

    def burst(self, now: float, *, idle: bool) -> Burst:
        """Returns what the packets share that are sent now; `idle`: nothing was in flight."""
        if idle:
            self._first_at = self._at = now
        limited = self.limited_until >= self.delivered
        return Burst(now, self.delivered, self._at, self._first_at, app_limited=limited)

    def clear(self) -> None:
        """Forgets the last sample, since another SACK has come."""
        self.rate = 0.0
        self.round_start = False

    def arrived(self, count: int, now: float) -> None:
        """Counts what a SACK acknowledged."""
        self.delivered += count
        self._at = now

    def measure(self, burst: Burst, now: float, minimum: float) -> None:
        """Takes a sample from the packet that was sent last of those acknowledged.

        A sample over less than `minimum`, the smallest round trip, is none.
        """
        if burst.delivered >= self._next_round:
            self._next_round = self.delivered
            self.round_start = True
        interval = max(burst.at - burst.first_at, now - burst.delivered_at)
        if interval > 0 and interval >= minimum:
            self.rate = (self.delivered - burst.delivered) / interval
            self.limited = burst.app_limited
        self._first_at = burst.at
