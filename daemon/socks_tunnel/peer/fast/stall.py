"""When a sender says that its packets are not answered any more. No clock.

The retransmission time-out of RFC 9260 section 6.3 has the queues of a slow path in it, so a path
that is only slow gives an answer within it, unless its queue has just grown. After the first
time-out everything is sent again, and the answer is waited for once more as long, or as long as
what is in flight takes at the rate of before. If none comes, the path is probably broken one way
or the other, and whoever has another one may try that meanwhile::

    answered --time-out--> waiting --as long again, no SACK--> stalled
       ^                      |                                  |
       +------- any SACK -----+----------------------------------+

A SACK that acknowledges nothing new counts as well: the peer answers a retransmission with it.
"""

from typing import Final

STALLED_MIN: Final = 0.4
"""Seconds without an answer until a sender is stalled, at least: radio links often pause for nearly
so long when they move to another cell or wake from saving power."""

DRAIN_MAX: Final = 1.0
"""Seconds for what is in flight at most: the rate is a guess while little is sent."""

LATE: Final = 0.1
"""Seconds by which the end of the wait may be noticed late. Later, this process was stopped or
starved; what came meanwhile still waits in its sockets, and has to be read first."""

LOOK_AGAIN: Final = 0.1
"""Seconds of another wait after one that was noticed late."""


class Stall:
    """The wait after a retransmission time-out. Times in seconds; 0 for never."""

    __slots__ = ("_from", "at", "silent")

    def __init__(self) -> None:
        self.at = 0.0
        """When :meth:`look` has to decide; 0 if no time-out has expired, or it has decided."""
        self.silent = 0.0
        """For how long nothing was answered when the sender was found stalled; 0: it is not."""
        self._from = 0.0

    def timed_out(self, now: float, rto: float, drain: float) -> None:
        """Begins the wait, unless it has begun: the time-out, which was `rto`, has expired.

        `drain` is how long the peer takes to acknowledge what is in flight, at the rate of before.
        """
        if not self.at and not self.silent:
            self.at = now + max(rto, STALLED_MIN - rto, min(drain, DRAIN_MAX))
            self._from = now - rto

    def look(self, now: float) -> None:
        """Decides, if it is time to."""
        if not self.at or now < self.at:
            return
        if now > self.at + LATE:
            self.at = now + LOOK_AGAIN
            return
        self.at = 0.0
        self.silent = now - self._from

    def answered(self) -> None:
        """Ends the wait and the stall: a SACK has come."""
        self.at = self.silent = 0.0
