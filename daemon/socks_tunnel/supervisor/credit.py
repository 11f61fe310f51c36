"""Decides how much each worker may transmit on a link. No sockets, clocks or processes.

A data channel queues everything that it is given, so without a limit a keystroke would wait behind
seconds of a download. So the supervisor grants workers bytes to transmit. The bytes that wait in
the link, together with those that active workers may still send, stay below a limit::

    worker --- held --->  supervisor --- outstanding --->  data channels  --->  network
                (granted, not used yet)      (in the link's queue)

    outstanding + held of the busy workers  <=  limit

An idle worker keeps credit up to the limit, so that it can begin at once. This takes nothing from
the others. If the limit shrinks, credit beyond it is taken back, because the worker would otherwise
fill a slow link for seconds when it begins. A worker that is alone has the whole link.

Workers that want more than there is share by flows: each reports how many of its flows have
something to transmit (:class:`socks_tunnel.protocol.ipc.Demand`). Credit is given by start-time
fair queueing, as within a worker; the more flows a worker has, the slower its virtual time passes.
An outdated number does little harm: others get what a worker does not use, the worker can report
again with each grant, and a number is ignored after :data:`TOLD_FOR`.

The limit follows the time that bytes wait in the link, as the queue limits of RFC 8290 do. It
shrinks while they wait longer than :data:`SOJOURN_HIGH`, and grows while the link empties quickly
and workers have used up their credit. So the wait is bounded in time as well.

Credit is not shared anew for every small message that leaves. If each worker may still send half of
the limit, it is shared once in :data:`REVIEW_EVERY`.
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
"""Least DATA payload in bytes that is advised: about one packet."""

CHUNK_MAX: Final = 16_384
"""Longest DATA payload in bytes that is advised."""

_CHUNKS_PER_LIMIT: Final = 8
"""Messages in one limit: one message takes at most an eighth of the time that the limit allows."""

_BATCHES_PER_LIMIT: Final = 8
"""Portions of credit in one limit, so that few control messages are needed."""


UNUSED_AFTER: Final = 0.050
"""Seconds after which a worker that holds credit and sends nothing gets no more, and its credit is
not reserved for it. A busy worker uses its credit within a turn of its event loop."""

REVIEW_EVERY: Final = 0.010
"""Seconds after which credit is shared anew although no worker lacks any. This also tells the round
trip to workers that only receive."""

TOLD_FOR: Final = 2.0
"""Seconds for which a reported number of flows counts. A worker reports it again each
:data:`socks_tunnel.protocol.scheduler.DEMAND_HOLD` as long as it gets credit."""


class Share:
    """One worker's part in a link, in bytes.

    `held` was granted and not used; `outstanding` waits in the link. `held` may be below zero,
    because control messages need no credit. `flows` is the reported number of flows that have
    something to transmit.
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
        """Bytes of the limit that the worker uses."""
        return self.outstanding + max(self.held, 0)

    @property
    def idle(self) -> bool:
        """Whether nothing of the worker waits in the link or, as far as is known, for credit."""
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
        """Advised DATA payload in bytes, so that no message takes the link for long."""
        return min(max(self.limit // _CHUNKS_PER_LIMIT, CHUNK_MIN), CHUNK_MAX)

    def first_grant(self, share: Share) -> int:
        """Returns what a worker may transmit when the link begins."""
        share.held = self.limit
        return share.held

    def told(self, share: Share, flows: int, now: float) -> None:
        """Notes how many flows of a worker have something to transmit."""
        share.flows = flows
        share.told_at = self._now = now

    def sent(self, share: Share | None, size: int, now: float) -> None:
        """Counts bytes that were given to the link. `share` is None for the supervisor's own."""
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
        """Returns whether :meth:`grants` should be called.

        That is so if a worker may lack credit, and :data:`REVIEW_EVERY` after the last call.
        """
        return self._lacking or now - self._shared_at >= REVIEW_EVERY

    def grants(self, shares: Iterable[Share], most: int = LIMIT_MAX) -> list[tuple[Share, int]]:
        """Returns the workers that get credit now and the bytes for each, and counts them as given.

        Busy workers get up to `most` bytes together. Idle workers do not count.

        A worker that holds more than the limit, which was larger before, loses the difference. Then
        the amount is below zero. The worker's credit may also be below zero for a moment, if it has
        sent these bytes already.
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
                # Bytes that it sent beyond its credit have left the link, so they do not count.
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
            # Nothing waits in the link, so no bytes that leave would lead to the next grant.
            for share in busy:
                if share.held <= 0:
                    self._give(share, portion - share.held, given)
        for share in busy:
            if share.held <= self.limit >> 1:
                self._lacking = True
        return list(given.items())

    def _wants(self, share: Share, portion: int) -> bool:
        """Returns whether a busy worker may get more."""
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
        """Forgets a worker that has died. The bytes that it has sent still drain."""
        share.held = 0


_UNSHARED: Final = Share()
"""Stands for the supervisor in the queue of every link. Its numbers are not used."""
