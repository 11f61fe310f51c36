"""How long others have really been waited for, by a process that may itself be stopped or starved.

A timer that fires late proves that this process did not run, and nothing about the network: what
came meanwhile still waits in the sockets. So a wait is a number of short looks at the clock, and
what passes between two looks beyond the usual does not count.
"""

from typing import Final

TICK: Final = 0.1
"""Seconds between two looks, at most, where a wait is counted."""

COUNTED_MAX: Final = 0.15
"""Seconds that count between two looks: a tick, and the lateness that is usual on a busy host."""


class Patience:
    """Counts the seconds that a wait has lasted. Sans-IO.

    `now` is in seconds of any clock that never goes back. Whoever waits calls :meth:`look` each
    :data:`TICK` seconds, and once more after each of them the event loop has read its sockets.
    """

    def __init__(self, now: float) -> None:
        self.spent = 0.0
        """Seconds that count so far."""
        self._seen = now

    def look(self, now: float) -> float:
        """Counts the time since the last look, or the start, and returns `spent`."""
        self.spent += min(max(0.0, now - self._seen), COUNTED_MAX)
        self._seen = now
        return self.spent
