"""Decides in which order and portions this process gives credit to its links. No I/O, no clock.

Each link has its own congestion controller, so the network decides how much of a bottleneck each
link gets. Here they share this process. A link that has been alone in wanting credit for a while
gets it at once, because to wait for a turn of the event loop would cost its workers another
wake-up. If several links want credit, they take turns::

    link A (weight 3)  --wants--+
                                +--> start-time fair queueing --> TURN_BYTES a turn of the loop
    link B (weight 1)  --wants--+

A turn of the event loop gives at most :data:`TURN_BYTES`, and the rest waits for the next turn. So
a link with a thousand flows gets no more of a busy process than a link with one flow. A link of
weight 3 gets three times as much as one of weight 1 if both have more to send.
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
    """A link that takes turns. At first `finish` is 0.0 and `waiting` is False."""

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
        """How often in a row the last link was served."""

    def want(self, link: Served) -> None:
        """Gives a link credit, at once or in its turn. Harmless if it waits already."""
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
        finally:  # after a bug in one link, the others must still get credit
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
