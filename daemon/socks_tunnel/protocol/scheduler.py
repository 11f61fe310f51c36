"""What a worker transmits next in one session, within the credit that the supervisor grants.

Order: control messages at once (they are small, each answers something, and may take the credit
below zero), then datagrams, then flows that have been quiet, then bulk flows in turn.

Flows are served by deficit round robin over two lists, as the fair queues of RFC 8290 section 4.1
do it: a flow that begins to send stands in the list of new flows, and moves to the list of old ones
once it has used a quantum of bytes. New flows come first. So a keystroke goes before every
download, and a download that sends without pause never profits from it. Flows hold nothing here: a
flow that has to wait leaves its bytes in its socket and is asked for them when its turn comes.

The unit of credit is one byte of tunnel message.
"""

from collections import deque
from typing import Final, Generic, Protocol, TypeVar

DATAGRAM_AGE_MAX: Final = 0.050
"""Seconds after its arrival in which a datagram must leave, or it is dropped."""

DATAGRAM_BYTES_MAX: Final = 262_144
"""Bytes of datagrams that may wait in one session in one worker."""

DATAGRAM_OVERDRAFT: Final = 8_192
"""Bytes of datagrams that may be sent after bulk has used up the credit: it must not keep them
waiting until they are too old (RFC 8085 section 3.1: a fair share)."""

CHUNK_START: Final = 16_384
"""DATA payload in bytes that a link advises before its rate is known."""

QUANTUM: Final = 16_384
"""Bytes that a flow may transmit before others get their turn."""


class Schedulable(Protocol):
    """What the scheduler keeps at a flow: two attributes of its own."""

    deficit: int
    """Bytes that the flow may still transmit in this turn."""
    queued: bool
    """Whether the flow is in one of the lists."""


F = TypeVar("F", bound=Schedulable)


class Scheduler(Generic[F]):
    """The transmit queue of one session in one worker.

    `credit` is read and lowered on the data path: a sender may transmit while it is positive and
    nobody waits (:attr:`idle`). `chunk` is the DATA payload in bytes that the link advises.
    """

    __slots__ = ("_bytes", "_datagrams", "_new", "_old", "chunk", "credit", "expired", "overflowed")

    def __init__(self, credit: int = 0) -> None:
        self.credit = credit
        self.chunk = CHUNK_START
        self.expired = 0
        self.overflowed = 0
        self._datagrams: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._new: deque[F] = deque()
        self._old: deque[F] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._new and not self._old and not self._datagrams

    @property
    def floor(self) -> int:
        """The credit at which datagrams have to wait too.

        A flow that has one byte of credit sends a whole chunk, so bulk alone takes the credit that
        far below zero. The overdraft of datagrams lies below that, or they would have none.
        """
        return -(self.chunk + DATAGRAM_OVERDRAFT)

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
            flow.queued = True
            flow.deficit = QUANTUM
            self._new.append(flow)

    def requeue(self, flow: F, sent: int) -> None:
        """Queues a flow again that had its turn, transmitted `sent` bytes and has more."""
        flow.deficit -= sent
        flow.queued = True
        if flow.deficit > 0:
            self._old.appendleft(flow)
        else:
            flow.deficit += QUANTUM
            self._old.append(flow)

    def cancel(self, flow: F) -> None:
        """Takes a flow out of the lists; harmless if it is not there."""
        if flow.queued:
            flow.queued = False
            if flow in self._new:
                self._new.remove(flow)
            else:
                self._old.remove(flow)

    def next_flow(self) -> F | None:
        """Returns the flow whose turn it is, taken out of its list, or None without credit."""
        if self.credit <= 0:
            return None
        queue = self._new or self._old
        if not queue:
            return None
        flow = queue.popleft()
        flow.queued = False
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

    def clear(self) -> None:
        """Forgets everything that waits: the link is gone. Datagrams count as expired."""
        self.credit = 0
        self.expired += len(self._datagrams)
        self._datagrams.clear()
        self._bytes = 0
        for queue in (self._new, self._old):
            for flow in queue:
                flow.queued = False
            queue.clear()
