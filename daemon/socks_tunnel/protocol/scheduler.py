"""What a worker transmits next in one session, within the credit that the supervisor grants.

Order: control messages at once (they are small, each answers something, and may take the credit
below zero), then datagrams, then flows.

Flows are served by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Virtual time is
counted in bytes that each busy flow was allowed to transmit::

    start(flow)  = max(virtual, served(flow))       when the flow begins to wait
    served(flow) = start(flow) + bytes sent         after its turn
    virtual      = start of the flow that was served last; the smallest start is served next

So flows that always have something share by bytes, with a difference of at most one message, and a
flow that used less than its share goes before all of them, however many they are: a keystroke
overtakes every download. A flow that comes and goes gains nothing by it, since what it has used
stays in `served`. Flows hold nothing here: one that has to wait leaves its bytes in its socket and
is asked for them when its turn comes.

Virtual time stands still while flows that start at the same time have their turns one after the
other, which is 0.1 to 0.3 s where eight downloads share 1 Mbit/s. What a flow sent in that time
does not make it busy, as long as it is no more than :data:`QUIET_LEAD`: the second of two
keystrokes would wait for the end of that round. It counts all the same, so nobody gets more by it
than once.

A flow that used less than its share need not wait for credit either. It may transmit a little
beyond it (:data:`QUIET_OVERDRAFT`), for the credit is used up by those that always have more.

The unit of credit is one byte of tunnel message.
"""

import heapq
from collections import deque
from typing import Final, Generic, Protocol, TypeVar

DATAGRAM_AGE_MAX: Final = 0.050
"""Seconds after its arrival in which a datagram must leave, or it is dropped."""

DATAGRAM_BYTES_MAX: Final = 262_144
"""Bytes of datagrams that may wait in one session in one worker."""

DATAGRAM_OVERDRAFT: Final = 8_192
"""Bytes of datagrams that may be sent after bulk has used up the credit: it must not keep them
waiting until they are too old (RFC 8085 section 3.1: a fair share)."""

QUIET_OVERDRAFT: Final = 4_096
"""Bytes that quiet flows may transmit after bulk has used up the credit."""

QUIET_TURN: Final = 1_100
"""Bytes of payload that a quiet flow may transmit in a turn without credit: a packet's worth."""

QUIET_LEAD: Final = 512
"""Bytes that a flow may have sent ahead of virtual time and still go before busy ones. Less than
the shortest chunk of a busy flow, which is therefore never taken for a quiet one."""

CHUNK_START: Final = 16_384
"""DATA payload in bytes that a link advises before its rate is known."""

DEMAND_HOLD: Final = 0.5
"""Seconds for which a number of flows counts after so many had something to transmit."""


class Schedulable(Protocol):
    """What the scheduler keeps at a flow: two attributes of its own, both 0 at first."""

    served: int
    """Virtual time at which its last turn ended."""
    queued: int
    """The number of its entry in the queue while the flow waits for its turn; 0 otherwise."""


F = TypeVar("F", bound=Schedulable)


class Scheduler(Generic[F]):
    """The transmit queue of one session in one worker.

    `credit` is read and lowered on the data path: a sender may transmit while it is positive and
    nobody waits (:attr:`idle`). `chunk` is the DATA payload in bytes that the link advises, `turn`
    what the flow that was served last may transmit in its turn. `waiting` is how many flows have
    something to transmit.
    """

    __slots__ = (
        "_bytes",
        "_datagrams",
        "_number",
        "_queue",
        "_virtual",
        "chunk",
        "credit",
        "expired",
        "overflowed",
        "turn",
        "waiting",
    )

    def __init__(self, credit: int = 0) -> None:
        self.credit = credit
        self.chunk = CHUNK_START
        self.turn = CHUNK_START
        self.expired = 0
        self.overflowed = 0
        self._datagrams: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        # A heap of (start, bulk, number, flow). Of those that start at the same time, quiet ones go
        # first, and then the one that came first.
        #
        # The entry of a flow that was cancelled stays until it comes to the front, or until such
        # entries are the larger half. Many flows may end in one turn of the event loop, and to look
        # for the entry of each would take their square.
        self._queue: list[tuple[int, bool, int, F]] = []
        self.waiting = 0
        self._number = 0
        self._virtual = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self.waiting and not self._datagrams

    @property
    def quiet_floor(self) -> int:
        """The credit at which quiet flows have to wait too.

        A flow that has one byte of credit sends a whole chunk, so bulk alone takes the credit that
        far below zero. The overdraft of quiet flows lies below that, or they would have none.
        """
        return -(self.chunk + QUIET_OVERDRAFT)

    @property
    def floor(self) -> int:
        """The credit at which datagrams have to wait too: their overdraft lies below the other."""
        return -(self.chunk + QUIET_OVERDRAFT + DATAGRAM_OVERDRAFT)

    @property
    def takes_datagram(self) -> bool:
        """Whether a datagram may be transmitted at once."""
        return not self._datagrams and self.credit > self.floor

    @property
    def wanted(self) -> bool:
        """Whether something waits that only credit holds up."""
        return not self.idle and self.credit <= 0

    def wait(self, flow: F) -> None:
        """Queues a flow that has something to transmit; harmless if it is queued already."""
        if not flow.queued:
            self.waiting += 1
            self._number += 1
            flow.queued = self._number
            virtual = self._virtual
            bulk = flow.served - virtual > QUIET_LEAD
            start = flow.served if bulk else virtual
            heapq.heappush(self._queue, (start, bulk, self._number, flow))

    def requeue(self, flow: F, sent: int) -> None:
        """Queues a flow again that had its turn, transmitted `sent` bytes and has more."""
        self.rest(flow, sent)
        self.wait(flow)

    def rest(self, flow: F, sent: int) -> None:
        """Counts what a flow transmitted in its turn that has nothing more for now."""
        flow.served += sent

    def cancel(self, flow: F) -> None:
        """Takes a flow out of the queue; harmless if it is not there."""
        if flow.queued:
            flow.queued = 0
            self.waiting -= 1
            if not self.waiting:
                self._queue.clear()
            elif 2 * self.waiting < len(self._queue):
                self._queue = [entry for entry in self._queue if entry[3].queued == entry[2]]
                heapq.heapify(self._queue)

    def next_flow(self) -> F | None:
        """Returns the flow whose turn it is, taken out of the queue, or None without credit.

        It may transmit `turn` bytes of payload, and is then given to :meth:`requeue` or
        :meth:`rest`.
        """
        if not self.waiting:
            return None
        while (first := self._queue[0])[3].queued != first[2]:  # it was cancelled
            heapq.heappop(self._queue)
        if self.credit > 0:
            self.turn = self.chunk
        elif not first[1] and self.credit > self.quiet_floor:
            self.turn = min(self.chunk, QUIET_TURN)
        else:
            return None
        start, _, _, flow = heapq.heappop(self._queue)
        flow.queued = 0
        self.waiting -= 1
        self._virtual = start
        flow.served = max(flow.served, start)
        return flow

    def queue_datagram(self, message: bytes, now: float) -> None:
        """Keeps a whole UDP_PACKET message until there is credit, for at most 50 ms.

        The oldest ones are dropped (and counted in `overflowed`) beyond 256 KiB: of datagrams that
        wait, the youngest is worth most.
        """
        self._datagrams.append((now, message))
        self._bytes += len(message)
        while self._bytes > DATAGRAM_BYTES_MAX:
            self._bytes -= len(self._datagrams.popleft()[1])
            self.overflowed += 1

    def next_datagram(self, now: float) -> bytes | None:
        """Returns the next datagram to transmit and spends its credit, or None.

        Those that waited too long are dropped and counted in `expired`.
        """
        queue = self._datagrams
        while queue:
            arrived, message = queue[0]
            if now - arrived > DATAGRAM_AGE_MAX:
                queue.popleft()
                self._bytes -= len(message)
                self.expired += 1
                continue
            if self.credit <= self.floor:
                return None
            queue.popleft()
            self._bytes -= len(message)
            self.credit -= len(message)
            return message
        return None

    def advise(self, chunk: int) -> None:
        """Takes the DATA payload in bytes that the link advises from now on."""
        self.chunk = chunk

    def take_dropped(self) -> tuple[int, int]:
        """Returns how many datagrams were dropped since the last call: too old ones, too many."""
        dropped = self.expired, self.overflowed
        self.expired = self.overflowed = 0
        return dropped

    def clear(self) -> None:
        """Forgets everything that waits: the link is gone. Datagrams count as expired."""
        self.credit = 0
        self.expired += len(self._datagrams)
        self._datagrams.clear()
        self._bytes = 0
        for *_, flow in self._queue:
            flow.queued = 0
        self._queue.clear()
        self.waiting = 0


class BusyFlows:
    """How many flows of a worker have something to transmit, as the supervisor is told.

    The number at a moment says little: a flow is between two reads of its socket, or between two
    updates of its window. So the largest of :data:`DEMAND_HOLD` counts.
    """

    __slots__ = ("_largest", "_since", "told")

    def __init__(self) -> None:
        self.told = 0
        self._largest = 0
        self._since = 0.0

    def due(self, waiting: int, now: float) -> bool:
        """Counts `waiting` flows; returns whether `told` is to be told, again or anew."""
        self._largest = max(self._largest, waiting)
        over = now - self._since >= DEMAND_HOLD
        if waiting <= self.told and not (over and (self.told or self._largest)):
            return False
        self.told = self._largest
        self._largest, self._since = 0, now
        return True
