"""Decides when unanswered connectivity checks are repeated. Sans-IO.

RFC 8489 section 6.2.1 repeats a request after 0.5, 1.5, 3.5, 7.5 s. So the loss of one packet costs
half a second, and a path that works again may be noticed seconds later. Flows may wait for it, and
a check is only one small packet. So a check is repeated here after 0.2 s, and then in intervals
that grow to a second. The transaction stays the same, so an answer to any of its packets counts.
The original request continues in parallel, and decides when the check has failed.
"""

from typing import Final, Generic, TypeVar

from aioice import stun

REPEAT_AFTER: Final = 0.2
"""Seconds until a check is repeated for the first time. While a relayed path waits for direct ones,
all intervals are that short, because the first check of a side often only opens its own NAT."""

GROWTH: Final = 1.5
"""How many times longer each interval is than the one before."""

LONGEST: Final = 1.0
"""The longest interval in seconds."""

REPEATED_MAX: Final = 16
"""Number of checks that are repeated at a time: those of the best pairs."""

_T = TypeVar("_T")


class Repeats(Generic[_T]):
    """The checks of one connection that wait for an answer, by their pairs.

    `now` is in seconds of any clock that never goes back.
    """

    def __init__(self) -> None:
        self._asked: dict[_T, tuple[stun.Message, float, float]] = {}

    def asked(self, what: _T, request: stun.Message, now: float) -> None:
        """Takes a check that was just sent."""
        self._asked[what] = request, now + REPEAT_AFTER, REPEAT_AFTER

    def answered(self, what: _T) -> None:
        """Forgets a check that is over."""
        self._asked.pop(what, None)

    def take(self, order: list[_T], now: float, *, hurry: bool) -> list[tuple[_T, stun.Message]]:
        """Returns the checks to send again now, of the first ones in `order`.

        With `hurry`, their intervals do not grow.
        """
        due = []
        for what in [what for what in order if what in self._asked][:REPEATED_MAX]:
            request, at, interval = self._asked[what]
            if now < at and not (hurry and now >= at - interval + REPEAT_AFTER):
                continue
            following = REPEAT_AFTER if hurry else min(interval * GROWTH, LONGEST)
            self._asked[what] = request, now + following, following
            due.append((what, request))
        return due
