"""A rival on a shared path: TCP with CUBIC as Linux has it, reduced to what decides its share.

Written apart from the project's own controller, in packets and not in bytes: selective
acknowledgement of each packet, loss after three later ones, one reduction a round trip, HyStart's
delay test, no pacing.
"""

import asyncio

from support.sctp_network import Path

PACKET = 1_435
"""Bytes to which the path adds its overhead: 1,500 on the wire."""


class TcpCubic:
    """One flow that always has something to send, once started."""

    def __init__(self, there: Path, back: Path) -> None:
        self._there = there
        self._back = back
        self._loop = asyncio.get_running_loop()
        self._next = 0
        self._outstanding: dict[int, float] = {}
        self._cwnd = 10.0
        self._ssthresh = float("inf")
        self._w_max = 0.0
        self._epoch = 0.0
        self._reno = 0.0
        self._min_rtt = float("inf")
        self._recover = -1
        self._rto: asyncio.TimerHandle | None = None
        self.delivered = 0
        """Packets that were acknowledged."""

    def start(self) -> None:
        self._send()

    def _send(self) -> None:
        while len(self._outstanding) < int(self._cwnd):
            number = self._next
            self._next += 1
            self._outstanding[number] = self._loop.time()
            self._there.carry([number.to_bytes(8, "big") + bytes(PACKET - 8)], self._arrived)
        if self._rto is not None:
            self._rto.cancel()
        self._rto = self._loop.call_later(1.0, self._timeout)

    def _arrived(self, packets: list[bytes]) -> None:
        for packet in packets:
            self._back.carry([packet[:8]], self._acknowledged)

    def _timeout(self) -> None:
        self._outstanding.clear()
        self._reduce()
        self._cwnd = 1.0
        self._send()

    def _reduce(self) -> None:
        self._w_max = self._cwnd * 0.85 if self._cwnd < self._w_max else self._cwnd
        self._cwnd = max(self._cwnd * 0.7, 2.0)
        self._ssthresh = self._cwnd
        self._epoch = 0.0

    def _acknowledged(self, packets: list[bytes]) -> None:
        now = self._loop.time()
        for packet in packets:
            number = int.from_bytes(packet, "big")
            sent = self._outstanding.pop(number, None)
            if sent is None:
                continue
            self.delivered += 1
            rtt = now - sent
            self._min_rtt = min(self._min_rtt, rtt)
            while self._outstanding and (oldest := next(iter(self._outstanding))) + 3 <= number:
                del self._outstanding[oldest]
                if oldest > self._recover:
                    self._recover = self._next
                    self._reduce()
            if number > self._recover:
                self._grow(now, rtt)
        self._send()

    def _grow(self, now: float, rtt: float) -> None:
        if self._cwnd < self._ssthresh:
            self._cwnd += 1
            if rtt > self._min_rtt + max(0.004, min(self._min_rtt / 8, 0.016)) and self._cwnd > 16:
                self._ssthresh = self._cwnd
            return
        if not self._epoch:
            self._epoch = now
            self._w_max = max(self._w_max, self._cwnd)
            self._reno = self._cwnd
            self._k = ((self._w_max - self._cwnd) / 0.4) ** (1 / 3)
        self._reno += 0.53 / self._cwnd
        target = self._w_max + 0.4 * (now - self._epoch + rtt - self._k) ** 3
        target = max(min(target, 1.5 * self._cwnd), self._reno)
        if target > self._cwnd:
            self._cwnd += (target - self._cwnd) / self._cwnd
