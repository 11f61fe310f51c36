"""When silence is broken by a probe (RFC 8985 section 7, RFC 9002 section 6.2). No clock.

A probe is one packet beyond all windows. It makes the peer answer, so that losses can be found that
nothing later would show: those of the last packets, and those of a SACK. Unlike RFC 8985, and like
the probe time-out of QUIC, the timer runs while losses are repaired too, and goes on with twice the
time after each probe that is not answered: where one SACK stands for a whole window, the loss of
that SACK would otherwise stop everything until the retransmission time-out.
"""

from typing import Final

from socks_tunnel.peer.fast.rtt import RoundTrip

PROBE_DELAY_MIN: Final = 0.010
"""Seconds that a probe waits at least."""

PEER_SACK_DELAY: Final = 0.025
"""Seconds that a peer may hold the SACK of a lone packet back, beyond the round trip."""

TIME_OUT_SHARE: Final = 0.9
"""Share of the time-out that the first probe waits at most, so that it comes before (RFC 8985
section 7.2)."""

DOUBLINGS_MAX: Final = 10
"""How often the wait is doubled at most."""


class Probing:
    """The timer of the probes."""

    __slots__ = ("at", "count")

    def __init__(self) -> None:
        self.at = 0.0
        """When a probe is due; 0 if none is."""
        self.count = 0
        """Probes since the peer has last acknowledged something new."""

    def delay(self, trip: RoundTrip, *, alone: bool) -> float:
        """Returns after how many seconds of silence the first probe is sent.

        `alone` says that one chunk is outstanding, whose SACK the peer may hold back.
        """
        delay = max(2 * trip.smoothed, PROBE_DELAY_MIN) if trip.smoothed else trip.rto
        if alone:
            delay += PEER_SACK_DELAY
        return min(delay, TIME_OUT_SHARE * trip.rto)

    def arm(self, now: float, trip: RoundTrip, *, alone: bool) -> None:
        """Starts the wait, since something was sent."""
        self.at = now + self.delay(trip, alone=alone) * (1 << min(self.count, DOUBLINGS_MAX))

    def answered(self) -> None:
        """Learns that the peer has acknowledged something new."""
        self.count = 0
        self.at = 0.0

    def sent(self, now: float, trip: RoundTrip) -> None:
        """Notes that a probe was sent, and starts the wait for the next one."""
        self.count += 1
        self.arm(now, trip, alone=False)
