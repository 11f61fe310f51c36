"""Measures how long this process has really waited, even if it was itself stopped or starved.

A timer that fires late shows that this process did not run. It says nothing about the network,
because packets that arrived meanwhile still wait in the sockets. So a wait consists of short looks
at the clock. If more time than usual has passed between two looks, the excess does not count.
"""

from typing import Final

TICK: Final = 0.1
"""Longest time in seconds between two looks of a wait."""

COUNTED_MAX: Final = 0.15
"""Most seconds that count between two looks: a tick, and the usual lateness on a busy host."""


class Patience:
    """Counts the seconds that a wait has lasted. Sans-IO.

    `now` is in seconds of any clock that never goes back. Whoever waits calls :meth:`look` each
    :data:`TICK` seconds, and once more after each of them the event loop has read its sockets.
    """

    def __init__(self, now: float) -> None:
        self.spent = 0.0
        """Seconds that have counted so far."""
        self._seen = now

    def look(self, now: float) -> float:
        """Counts the time since the last look, or the start, and returns `spent`."""
        self.spent += min(max(0.0, now - self._seen), COUNTED_MAX)
        self._seen = now
        return self.spent
