"""Whether a message comes alone, so that it is sent at once, or with others, which share a send.

A message at once is sooner at its receiver; messages together share a system call, a packet and a
wake-up of whoever receives them. No I/O and no clock: `now` is in seconds of any clock that never
goes back.
"""

from typing import Final

LONE_BYTES: Final = 2_048
"""Bytes of a message, at most, that may be sent at once. A larger one is part of a transfer."""

LONE_SECONDS: Final = 0.0003
"""Seconds within which messages count as sent together."""

TOGETHER_TURNS: Final = 64
"""Messages that wait for others after two that came together: where there was one burst, there will
be more."""


class Lone:
    """Judges one direction of one stream."""

    __slots__ = ("_at", "_together")

    def __init__(self) -> None:
        self._at = float("-inf")
        self._together = 0

    def comes(self, now: float) -> bool:
        """Returns whether a message that is to be sent now comes alone, as far as can be known."""
        before, self._at = self._at, now
        if now - before < LONE_SECONDS:
            self._together = TOGETHER_TURNS
            return False
        if self._together:
            self._together -= 1
            return False
        return True
