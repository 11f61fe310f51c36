"""In which order, and how much at a time, one process gives credit to its links. No I/O, no clock.

Each link has a congestion controller of its own, so the network decides how much of a bottleneck
each of them gets. What they share here is this process. A link that has been the only one to want
credit for a while gets what it wants at once, for a turn of the event loop would cost its workers
another wake-up. When several want some, they have turns::

    link A (weight 3)  --wants--+
                                +--> start-time fair queueing --> TURN_BYTES a turn of the loop
    link B (weight 1)  --wants--+

A turn of the event loop gives away no more than :data:`TURN_BYTES`, and the rest waits for the next
one. So a link with a thousand flows takes no more of a busy process than one with a single flow,
and one of weight 3 takes three times as much as one of weight 1 if both have more to send.
"""

import heapq
from collections.abc import Callable
from typing import Final, Protocol

TURN_BYTES: Final = 131_072
"""Bytes of credit that are given in one turn of the event loop while several links want some: about
two milliseconds of work."""

SERVICE_BYTES: Final = 32_768
"""Bytes of credit that one link is given at a time while others wait."""

ALONE_BYTES: Final = 1 << 30
"""Bytes of credit that a link may be given while no other waits: its own limit decides."""


ALONE_AFTER: Final = 4
"""Services in a row after which a link counts as alone, until another one wants credit."""


class Served(Protocol):
    """A link, as far as turns are concerned: `finish` is 0.0 and `waiting` False at first."""

    finish: float
    """Virtual time, in bytes for each unit of weight, at which its last service ended."""
    waiting: bool
    """Whether it waits for its turn."""
    weight: int

    def serve(self, most: int) -> int:
        """Gives its workers up to `most` bytes of credit, roughly; returns how many it gave."""


class Turns:
    """The links that want credit. `defer` makes a call in the next turn of the event loop."""

    def __init__(self, defer: Callable[[Callable[[], None]], object]) -> None:
        self._defer = defer
        self._queue: list[tuple[float, int, Served]] = []
        self._number = 0
        self._virtual = 0.0
        self._scheduled = False
        self._last: Served | None = None
        self._in_a_row = 0
        """How often the link that was served last was served, and no other."""

    def want(self, link: Served) -> None:
        """Gives a link credit, at once or when its turn comes; harmless if it waits already."""
        if link.waiting:
            return
        if link is self._last and self._in_a_row >= ALONE_AFTER and not self._scheduled:
            self._virtual = max(link.finish, self._virtual)
            link.finish = self._virtual + link.serve(ALONE_BYTES) / link.weight
            return
        self._push(link)
        if not self._scheduled:
            self._scheduled = True
            self._defer(self.run)

    def _push(self, link: Served) -> None:
        link.waiting = True
        self._number += 1
        start = max(link.finish, self._virtual)
        heapq.heappush(self._queue, (start, self._number, link))

    def run(self) -> None:
        """Serves the links that wait, for one turn of the event loop."""
        try:
            self._serve()
        finally:  # a bug that one link meets must not leave all of them without credit
            self._scheduled = bool(self._queue)
            if self._scheduled:
                self._defer(self.run)

    def _serve(self) -> None:
        left = TURN_BYTES
        queue = self._queue
        while queue and left > 0:
            self._virtual, _, link = heapq.heappop(queue)
            link.waiting = False
            self._in_a_row = self._in_a_row + 1 if link is self._last else 1
            self._last = link
            most = SERVICE_BYTES if queue else ALONE_BYTES
            given = link.serve(most)
            link.finish = self._virtual + given / link.weight
            left -= given
            if given >= most:
                self._push(link)
