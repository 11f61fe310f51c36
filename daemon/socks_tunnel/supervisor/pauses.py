"""Notices that this host or this process has not run for a while: a closed lid, a stopped program.

The clock goes on while the host sleeps (CLOCK_BOOTTIME, clock_gettime(2)). After a long time
without a tick, the peers may have given the links up.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

TICK: Final = 1.0
"""Seconds between two looks at the clock."""

PAUSE_MIN: Final = 5.0
"""Seconds without a tick that count as a pause. A peer gives a link up after 15 s."""


class Pauses:
    """Compares the moments of ticks; sans-IO. `now` is in seconds of a clock that never stops."""

    def __init__(self, now: float) -> None:
        self._last = now

    def tick(self, now: float) -> float | None:
        """Returns the seconds of a pause that has just ended, or None."""
        passed = now - self._last
        self._last = now
        return passed if passed >= PAUSE_MIN else None


class PauseWatcher:
    """Calls `on_pause` with a sentence's end after each pause."""

    def __init__(self, on_pause: Callable[[str], None]) -> None:
        self._on_pause = on_pause
        self._pauses = Pauses(0.0)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to look at the clock."""
        self._pauses = Pauses(_boot_time())
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def stop(self) -> None:
        """Stops looking at the clock."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        pause = self._pauses.tick(_boot_time())
        if pause is not None:
            self._on_pause(f"its host, or this program, has not run for {pause:.0f} s")


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
