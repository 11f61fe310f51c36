"""What a worker transmits next on one link, within the credit that the supervisor grants.

Order: control messages at once (they are small, each answers something, and may take the credit
below zero), then datagrams, then flows in turn, a chunk each. Flows hold nothing here: a flow that
has to wait leaves its bytes in its socket and is asked for them when its turn comes, so nothing
piles up between the sockets and the data channels.

The unit of credit is one byte of tunnel message.
"""

from collections import deque
from typing import Generic, TypeVar

DATAGRAM_AGE_MAX = 0.050
"""Seconds after its arrival in which a datagram must leave, or it is dropped."""

DATAGRAM_BYTES_MAX = 262_144
"""Bytes of datagrams that may wait on one link in one worker."""

F = TypeVar("F")


class Scheduler(Generic[F]):
    """The transmit queue of one link in one worker.

    `credit` is read on the data path: a sender may transmit while it is positive and nobody
    waits (:attr:`idle`), and calls :meth:`spend` for what it sent.
    """

    __slots__ = ("_bytes", "_datagrams", "_flows", "_queued", "credit", "expired", "overflowed")

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.expired = 0
        self.overflowed = 0
        self._datagrams: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._flows: deque[F] = deque()
        self._queued: set[F] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._datagrams and not self._flows

    def grant(self, count: int) -> None:
        """Take `count` bytes of credit from the supervisor."""
        self.credit += count

    def spend(self, count: int) -> None:
        """Use `count` bytes of credit; control messages may take it below zero."""
        self.credit -= count

    def wait(self, flow: F) -> None:
        """Put a flow that has something to send at the end of the turn; harmless if it is there."""
        if flow not in self._queued:
            self._queued.add(flow)
            self._flows.append(flow)

    def cancel(self, flow: F) -> None:
        """Take a flow out of the turn; harmless if it is not there."""
        if flow in self._queued:
            self._queued.discard(flow)
            self._flows.remove(flow)

    def queue_datagram(self, message: bytes, now: float) -> None:
        """Keep a whole UDP_PACKET message until there is credit, for at most 50 ms.

        The oldest ones are dropped (and counted in `overflowed`) beyond 256 KiB: of datagrams that
        wait, the youngest is worth most.
        """
        self._datagrams.append((now, message))
        self._bytes += len(message)
        while self._bytes > DATAGRAM_BYTES_MAX:
            self._bytes -= len(self._datagrams.popleft()[1])
            self.overflowed += 1

    def next_datagram(self, now: float) -> bytes | None:
        """Give the next datagram to transmit and spend its credit, or None.

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
            if self.credit <= 0:
                return None
            queue.popleft()
            self._bytes -= len(message)
            self.credit -= len(message)
            return message
        return None

    def next_flow(self) -> F | None:
        """Give the flow whose turn it is, taken out of the turn, or None without credit."""
        if self.credit <= 0 or not self._flows:
            return None
        flow = self._flows.popleft()
        self._queued.discard(flow)
        return flow
