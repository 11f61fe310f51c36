"""How much each worker may transmit on a link. No sockets, clocks or processes.

A data channel takes whatever it is given and queues it, so without a bound a keystroke would wait
behind seconds of a download. The supervisor therefore grants workers bytes to transmit, and the
bytes that wait in the link, together with those that active workers may still send, stay below a
limit::

    worker --- held --->  supervisor --- outstanding --->  data channels  --->  network
                (granted, not used yet)      (in the link's queue)

    outstanding + held of the busy workers  <=  limit

An idle worker keeps credit up to the limit, so that it can begin at once; it costs the others
nothing. What it holds beyond a limit that has shrunk is taken back, or it would fill a slow link
for seconds when it begins. A worker that is alone has the whole link.

Workers that want more than there is share by flows: each tells how many of its flows have something
to transmit (:class:`socks_tunnel.protocol.ipc.Demand`). Credit goes by start-time fair queueing, as
within a worker, and a worker's virtual time passes the slower, the more flows it has. A number that
is out of date costs little: what a worker does not use, others get, each grant is an occasion to
tell another number, and one that was not told again for :data:`TOLD_FOR` counts no more.

The limit follows the time that bytes wait in the link, as the queue limits of RFC 8290 do: it
shrinks while they wait longer than :data:`SOJOURN_HIGH`, and grows while the link empties quickly
and workers have used up what they were granted. So what waits is bounded in time as well.

Small messages leave no worker short. Where each may still send half of the limit, credit is not
shared anew for every message that leaves, but once in :data:`REVIEW_EVERY`.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Final

LIMIT_START: Final = 32_768
"""Bytes that may wait in a link before its rate is known: 0.26 s at 1 Mbit/s. On a fast link the
limit has grown to its maximum within half a second."""

LIMIT_MIN: Final = 4_096
"""Bytes that may wait in the slowest link: 33 ms at 1 Mbit/s."""

LIMIT_MAX: Final = 2_097_152
"""Bytes that may wait in the fastest link: 17 ms at 1 Gbit/s."""

SOJOURN_HIGH: Final = 0.020
"""Seconds that bytes may wait in a link before the limit shrinks."""

SOJOURN_LOW: Final = 0.008
"""Seconds of waiting below which the limit may grow."""

CHUNK_MIN: Final = 1_100
"""Least DATA payload in bytes that is advised: a packet's worth."""

CHUNK_MAX: Final = 16_384
"""Longest DATA payload in bytes that is advised."""

_CHUNKS_PER_LIMIT: Final = 8
"""A message holds the wire for an eighth of the time that the limit allows to wait."""

_BATCHES_PER_LIMIT: Final = 8
"""Credit is given in portions of about an eighth of the limit, so that few messages carry it."""


UNUSED_AFTER: Final = 0.050
"""Seconds after which a worker that holds credit and sends nothing gets no more, and what it holds
is not reserved for it: a busy one uses what it is given within a turn of its event loop."""

REVIEW_EVERY: Final = 0.010
"""Seconds after which credit is shared anew although no worker lacks any: a worker that only
receives learns the round trip by it."""

TOLD_FOR: Final = 2.0
"""Seconds for which the number of flows counts that a worker has told. It tells it again each
:data:`socks_tunnel.protocol.scheduler.DEMAND_HOLD` as long as it gets credit."""


class Share:
    """One worker's part in a link, in bytes.

    `held` was granted and not used, `outstanding` waits in the link. `held` may be below zero:
    control messages are sent without asking. `flows` is how many of its flows have something to
    transmit, as far as it has told.
    """

    __slots__ = ("finish", "flows", "granted_at", "held", "outstanding", "sent_at", "told_at")

    def __init__(self) -> None:
        self.held = 0
        self.outstanding = 0
        self.flows = 0
        self.finish = 0.0
        """Virtual time, in bytes for each flow, up to which the worker was given credit."""
        self.granted_at = 0.0
        self.sent_at = 0.0
        self.told_at = 0.0

    @property
    def used(self) -> int:
        """What the worker takes of the limit."""
        return self.outstanding + max(self.held, 0)

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits, neither in the link nor, as far as is known, for credit."""
        return not self.outstanding and not self.flows


class LinkCredit:
    """The credit of one link. `now` is in seconds of any clock that never goes back."""

    def __init__(self, limit: int = LIMIT_START) -> None:
        self.limit = limit
        self.outstanding = 0
        self._fifo: deque[tuple[Share, int, float]] = deque()
        self._carry = 0
        self._adjusted_at = 0.0
        self._short = False
        self._lacking = False
        self._shared_at = float("-inf")
        self._virtual = 0.0
        self._now = 0.0

    @property
    def chunk(self) -> int:
        """The DATA payload in bytes that suits the link: none holds the wire for long."""
        return min(max(self.limit // _CHUNKS_PER_LIMIT, CHUNK_MIN), CHUNK_MAX)

    def first_grant(self, share: Share) -> int:
        """Returns what a worker may transmit when the link begins."""
        share.held = self.limit
        return share.held

    def told(self, share: Share, flows: int, now: float) -> None:
        """Learns how many flows of a worker have something to transmit."""
        share.flows = flows
        share.told_at = self._now = now

    def sent(self, share: Share | None, size: int, now: float) -> None:
        """Counts bytes that were given to the link; None: messages of the supervisor's own."""
        self._now = now
        if share is None:
            share = _UNSHARED
        elif share.held - size <= self.limit >> 1:
            self._lacking = True
        share.held -= size
        share.outstanding += size
        share.sent_at = now
        self.outstanding += size
        self._fifo.append((share, size, now))
        if share.held <= 0:
            self._short = True

    def drained(self, count: int, now: float) -> None:
        """Counts bytes that left the link's queue, and adjusts the limit."""
        self._now = now
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
        self._lacking = True

    def due(self, now: float) -> bool:
        """Returns whether there may be somebody whom :meth:`grants` would give or take something.

        Also if the last time is some while ago.
        """
        return self._lacking or now - self._shared_at >= REVIEW_EVERY

    def grants(self, shares: Iterable[Share], most: int = LIMIT_MAX) -> list[tuple[Share, int]]:
        """Returns whom to give how much now, and counts it as given.

        Workers that are busy get up to `most` bytes together; those that are idle cost nothing.

        A worker that holds more than the limit loses the difference: it was given on a link that
        looked faster. The amount is below zero then, and so may be the worker's credit for a
        moment, if the bytes for it are on their way here already.
        """
        given: dict[Share, int] = {}
        self._shared_at = self._now
        self._lacking = False
        portion = min(max(self.limit // _BATCHES_PER_LIMIT, CHUNK_MIN), most)
        free = self.limit - self.outstanding
        busy: list[Share] = []
        for share in shares:
            if share.flows and self._now - share.told_at > TOLD_FOR:
                share.flows = 0
            if share.held >= self.limit + portion:
                given[share] = self.limit - share.held
                share.held = self.limit
            elif share.idle:
                # What it spent beyond its credit has left: that is forgiven.
                if share.held <= self.limit >> 1:
                    self._give(share, self.limit - share.held, given)
            else:
                busy.append(share)
            if not share.idle and self._now - share.granted_at < UNUSED_AFTER:
                free -= max(share.held, 0)
        free = min(free, most)
        wanting = [(share.finish, i) for i, share in enumerate(busy) if self._wants(share, portion)]
        heapq.heapify(wanting)
        while wanting and free >= portion:
            _, i = heapq.heappop(wanting)
            share = busy[i]
            amount = min(self.limit - share.used, portion)
            self._virtual = max(self._virtual, share.finish)
            self._give(share, amount, given)
            free -= amount
            if self._wants(share, portion):
                heapq.heappush(wanting, (share.finish, i))
        if not self.outstanding:
            # Nothing may ever leave again to give credit for.
            for share in busy:
                if share.held <= 0:
                    self._give(share, portion - share.held, given)
        for share in busy:
            if share.held <= self.limit >> 1:
                self._lacking = True
        return list(given.items())

    def _wants(self, share: Share, portion: int) -> bool:
        """Whether a busy worker may be given more."""
        wanted = self.limit - share.used
        if share.held <= 0:
            return wanted > 0
        return wanted >= portion and self._now - share.sent_at < UNUSED_AFTER

    def _give(self, share: Share, amount: int, given: dict[Share, int]) -> None:
        share.held += amount
        share.granted_at = self._now
        finish = max(self._virtual, share.finish) + amount / max(share.flows, 1)
        share.finish = min(finish, self._virtual + self.limit)
        given[share] = given.get(share, 0) + amount

    def lost(self, share: Share) -> None:
        """Forgets a worker that is gone; what it had sent still drains."""
        share.held = 0


_UNSHARED: Final = Share()
"""Stands for the supervisor in the queue of every link; nobody looks at its numbers."""
