"""The round trip on which the windows of flows depend. Neither clock nor I/O.

A round trip measured during a transfer includes the queues of that transfer. Windows that depend on
it would make the queues longer, and so on. So the shortest one of the last 15 to 30 s counts. When
ICE has moved to a longer path, the old round trip is forgotten within that time.
"""

from typing import Final

KEPT: Final = 15.0
"""Seconds of one period. The shortest round trip of a period also counts in the next one."""


class ShortestRoundTrip:
    """The shortest round trip of this period and the one before it, in seconds."""

    __slots__ = ("_before", "_began", "_now")

    def __init__(self) -> None:
        self._before: float | None = None
        self._now: float | None = None
        self._began: float | None = None

    def of(self, measured: float | None, now: float) -> float:
        """Takes the last measured round trip, which may be an old one; returns the shortest.

        Returns 0 if none was measured yet.
        """
        if measured is None:
            return 0.0
        if self._began is None or now - self._began >= KEPT:
            stale = self._began is not None and now - self._began >= 2 * KEPT
            self._before = None if stale else self._now
            self._now, self._began = measured, now
        elif self._now is None or measured < self._now:
            self._now = measured
        assert self._now is not None
        return self._now if self._before is None else min(self._now, self._before)
