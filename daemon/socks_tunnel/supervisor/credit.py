"""How much each worker may transmit on a link. No sockets, clocks or processes.

A data channel takes whatever it is given and queues it, so without a bound a keystroke would wait
behind seconds of a download. The supervisor therefore grants workers bytes to transmit, and the
bytes that wait in the link, together with those that active workers may still send, stay below a
limit::

    worker --- held --->  supervisor --- outstanding --->  data channels  --->  network
                (granted, not used yet)      (in the link's queue)

    outstanding + held of the active workers  <=  limit

A worker is active while bytes of it wait in the link. An idle worker keeps credit up to the limit,
so that it can begin at once; it costs the others nothing. What it holds beyond a limit that has
shrunk is taken back, or it would fill a slow link for seconds when it begins. The worker that uses
least gets credit first, so workers share the link evenly, and one that is alone has all of it.

The limit follows the time that bytes wait in the link, as the queue limits of RFC 8290 do: it
shrinks while they wait longer than :data:`SOJOURN_HIGH`, and grows while the link empties quickly
and workers have used up what they were granted. So what waits is bounded in time as well.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

LIMIT_START: Final = 32_768
"""Bytes that may wait in a link before its rate is known: 0.26 s at 1 Mbit/s. On a fast link the
limit has grown to its maximum within half a second."""

LIMIT_MIN: Final = 8_192
"""Bytes that may wait in the slowest link: 65 ms at 1 Mbit/s."""

LIMIT_MAX: Final = 2_097_152
"""Bytes that may wait in the fastest link: 17 ms at 1 Gbit/s."""

SOJOURN_HIGH: Final = 0.050
"""Seconds that bytes may wait in a link before the limit shrinks."""

SOJOURN_LOW: Final = 0.015
"""Seconds of waiting below which the limit may grow."""

CHUNK_MIN: Final = 1_100
"""Least DATA payload in bytes that is advised: a packet's worth."""

CHUNK_MAX: Final = 16_384
"""Longest DATA payload in bytes that is advised."""

_CHUNKS_PER_LIMIT: Final = 8
"""A message holds the wire for an eighth of the time that the limit allows to wait."""

_BATCHES_PER_LIMIT: Final = 8
"""Credit is given in portions of about an eighth of the limit, so that few messages carry it."""


class Share:
    """One worker's part in a link, in bytes.

    `held` was granted and not used, `outstanding` waits in the link. `held` may be below zero:
    control messages are sent without asking.
    """

    __slots__ = ("held", "outstanding")

    def __init__(self) -> None:
        self.held = 0
        self.outstanding = 0

    @property
    def used(self) -> int:
        """What the worker takes of the limit."""
        return self.outstanding + max(self.held, 0)


class LinkCredit:
    """The credit of one link. `now` is in seconds of any clock that never goes back."""

    def __init__(self, limit: int = LIMIT_START) -> None:
        self.limit = limit
        self.outstanding = 0
        self._fifo: deque[tuple[Share, int, float]] = deque()
        self._carry = 0
        self._adjusted_at = 0.0
        self._short = False

    @property
    def chunk(self) -> int:
        """The DATA payload in bytes that suits the link: none holds the wire for long."""
        return min(max(self.limit // _CHUNKS_PER_LIMIT, CHUNK_MIN), CHUNK_MAX)

    def first_grant(self, share: Share) -> int:
        """Returns what a worker may transmit when the link begins."""
        share.held = self.limit
        return share.held

    def sent(self, share: Share | None, size: int, now: float) -> None:
        """Counts bytes that were given to the link; None: messages of the supervisor's own."""
        if share is None:
            share = _UNSHARED
        share.held -= size
        share.outstanding += size
        self.outstanding += size
        self._fifo.append((share, size, now))
        if share.held <= 0:
            self._short = True

    def drained(self, count: int, now: float) -> None:
        """Counts bytes that left the link's queue, and adjusts the limit."""
        count += self._carry
        fifo = self._fifo
        waited = 0.0
        while fifo and fifo[0][1] <= count:
            share, size, at = fifo.popleft()
            count -= size
            share.outstanding -= size
            self.outstanding -= size
            waited = now - at
        self._carry = count if fifo else 0
        if fifo:
            waited = max(waited, now - fifo[0][2])
        self._adjust(waited, now)

    def _adjust(self, waited: float, now: float) -> None:
        """Moves the limit; at most once in the time that bytes wait."""
        if now - self._adjusted_at < max(waited, SOJOURN_LOW):
            return
        if waited > SOJOURN_HIGH:
            self.limit = max(int(self.limit * max(SOJOURN_HIGH / waited, 0.5)), LIMIT_MIN)
        elif waited < SOJOURN_LOW and self._short:
            self.limit = min(self.limit + max(self.limit >> 2, CHUNK_MAX), LIMIT_MAX)
        else:
            return
        self._adjusted_at = now
        self._short = False

    def grants(self, shares: Iterable[Share]) -> list[tuple[Share, int]]:
        """Returns whom to give how much now, and counts it as given.

        A worker that holds more than the limit loses the difference: it was given on a link that
        looked faster. The amount is below zero then, and so may be the worker's credit for a
        moment, if the bytes for it are on their way here already.
        """
        candidates = sorted(shares, key=lambda share: share.used)
        free = self.limit - self.outstanding
        for share in candidates:
            if share.outstanding > 0:
                free -= max(share.held, 0)
        portion = max(self.limit // _BATCHES_PER_LIMIT, CHUNK_MIN)
        given = []
        for share in candidates:
            if share.held >= self.limit + portion:
                amount = self.limit - share.held
                share.held = self.limit
                if share.outstanding > 0:
                    free -= amount
                given.append((share, amount))
                continue
            idle = share.outstanding == 0
            # What an idle worker spent beyond its credit has left: it is forgiven. Nothing may
            # ever leave again to give the rest for.
            wanted = self.limit - (share.held if idle else share.used)
            if wanted <= 0 or (wanted < portion and share.held > 0):
                continue
            if idle and share.held > self.limit >> 1:
                continue  # it is able to begin at once
            amount = wanted if idle else min(wanted, free)
            if amount < min(portion, wanted):
                continue
            share.held += amount
            if not idle:
                free -= amount
            given.append((share, amount))
        return given

    def lost(self, share: Share) -> None:
        """Forgets a worker that is gone; what it had sent still drains."""
        share.held = 0


_UNSHARED: Final = Share()
"""Stands for the supervisor in the queue of every link; nobody looks at its numbers."""
