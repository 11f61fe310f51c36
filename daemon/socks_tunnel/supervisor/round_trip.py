"""The round trip that the windows of flows go by. Neither clock nor I/O.

A round trip that is measured beside a transfer has the queues of that transfer in it. Windows that
grow by it make the queues longer, and so on. So the shortest one of the last half minute counts.
After ICE has moved to a longer path, the old one is forgotten within that time.
"""

from typing import Final

KEPT: Final = 15.0
"""Seconds for which a period's shortest round trip is collected; it counts for as long again."""


class ShortestRoundTrip:
    """The shortest round trip of this period and the one before it, in seconds."""

    __slots__ = ("_before", "_began", "_now")

    def __init__(self) -> None:
        self._before: float | None = None
        self._now: float | None = None
        self._began: float | None = None

    def of(self, measured: float | None, now: float) -> float:
        """Takes the last measured one, which may be the same as before; returns the shortest.

        0 as long as none was measured.
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
