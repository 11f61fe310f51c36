"""Flows that begin one after the other share a path whose way back is full: their windows.

Time is virtual. Each flow has a window that begins at 256 KiB, as in the product, and what its receiver
allows is on its way for as long as the queues of the way back take. The round trip that the windows know
of has no queues.
"""

from collections import deque
from functools import partial
from typing import Final

import pytest

from property.test_shares import SPREAD, Clock, Flow, Link, Worker
from socks_tunnel.protocol.messages import INITIAL_WINDOW
from socks_tunnel.protocol.streams import WINDOW_MAX, ReceiveStream
from socks_tunnel.supervisor.credit import Share

ONE_WAY: Final = 0.020
"""Seconds each way without queues."""

LEAD: Final = 4.0
SECONDS: Final = 10.0


class WindowedFlow(Flow):
    """A flow that transmits what its receiver allows; its socket always has more."""

    def __init__(self, clock: Clock, back: float) -> None:
        super().__init__()
        self.clock = clock
        self.back = back
        self.receive = ReceiveStream(INITIAL_WINDOW)
        self.limit = INITIAL_WINDOW
        self.worker: WindowedWorker | None = None
        self._last = 0.0

    @property
    def room(self) -> int:
        return self.limit - self.sent

    def arrived(self, size: int) -> None:
        """The receiver gets bytes, and its client takes them at once."""
        receive, now = self.receive, self.clock.now
        if receive.received == receive.edge:
            receive.passed_edge(now, now - self._last)
        receive.receive(size)
        self._last = now
        if receive.consume(size):
            update = receive.announce(now, round_trip=2 * ONE_WAY, grow_to=WINDOW_MAX)
            self.clock.after(self.back, partial(self.allowed, update[1]))

    def allowed(self, limit: int) -> None:
        """An update reaches the sender."""
        assert self.worker is not None
        self.limit = max(self.limit, limit)
        self.worker.scheduler.wait(self)
        self.worker.transmit()


class WindowedWorker(Worker):
    """A worker whose flows wait for windows too."""

    link: "WindowedLink"

    def start(self, flow: WindowedFlow) -> None:
        flow.worker = self
        self.scheduler.wait(flow)
        self.transmit()

    def transmit(self) -> None:
        while (flow := self.scheduler.next_flow()) is not None:
            assert isinstance(flow, WindowedFlow)
            size = min(self.scheduler.turn, flow.room)
            if size <= 0:
                self.scheduler.rest(flow, 0)
                continue
            self.transmit_of(flow, size)
            if flow.room > 0:
                self.scheduler.requeue(flow, size)
            else:
                self.scheduler.rest(flow, size)

    def transmit_of(self, flow: WindowedFlow, size: int) -> None:
        flow.sent += size
        self.scheduler.credit -= size
        self.link.clock.after(self.link.delay, partial(self.link.enqueue, self, flow, size))


class WindowedLink(Link):
    """A link that knows whose bytes leave it, and when they arrive."""

    def __init__(self, rate: float, delay: float) -> None:
        super().__init__(rate, delay)
        self.waiting: deque[tuple[WindowedFlow, int]] = deque()
        self._left_over = 0

    def add_worker(self) -> WindowedWorker:
        worker = WindowedWorker(self, Share(), [], mute=False)
        self.workers.append(worker)
        return worker

    def enqueue(self, worker: WindowedWorker, flow: WindowedFlow, size: int) -> None:
        self.waiting.append((flow, size))
        self.sent(worker, size)

    def _left(self, size: int) -> None:
        self._left_over += size
        while self.waiting and self.waiting[0][1] <= self._left_over:
            flow, count = self.waiting.popleft()
            self._left_over -= count
            self.clock.after(ONE_WAY, partial(flow.arrived, count))
        super()._left(size)


def shares(
    rate: float, back: float, starts: list[float], workers: int
) -> tuple[list[float], list[int]]:
    """Returns what each flow moves in Mbit/s, and its window in the end."""
    link = WindowedLink(rate / 8, 0.001)
    made = [link.add_worker() for _ in range(workers)]
    flows = []
    for number, start in enumerate(starts):
        flow = WindowedFlow(link.clock, back)
        flows.append(flow)
        link.clock.after(start, partial(made[number % workers].start, flow))
    link.clock.run(LEAD)
    before = [flow.receive.received for flow in flows]
    link.clock.run(LEAD + SECONDS)
    moved = [flow.receive.received - then for flow, then in zip(flows, before, strict=True)]
    return [each * 8 / SECONDS / 1e6 for each in moved], [flow.receive.window for flow in flows]


@pytest.mark.parametrize(
    ("rate", "queue", "flows", "gap"),
    [
        (1e7, 0.08, 8, 0.3),
        (1e8, 0.0, 2, 0.5),
        (1e8, 0.08, 8, 0.08),  # `make bench-scheduling`: 37 % without a look at who waits
        (1e8, 0.12, 16, 0.05),
        (3e8, 0.04, 8, 0.08),
        (3e8, 0.12, 2, 0.5),  # 59 %, and a ninth of the path
    ],
)
def test_flows_that_begin_one_after_the_other_share_a_path_whose_way_back_is_full(
    rate: float, queue: float, flows: int, gap: float
) -> None:
    """What begins first has the path for itself for a moment, and a longer window by that."""
    moved, windows = shares(rate, ONE_WAY + queue, [number * gap for number in range(flows)], 2)
    mean = sum(moved) / flows
    assert max(abs(each - mean) for each in moved) < SPREAD * mean, (moved, windows)
    assert sum(moved) > 0.9 * rate / 1e6, "and windows do not hold all of them up either"


def test_a_short_path_of_a_busy_host_does_not_get_the_longest_window() -> None:
    """Waits of the processes themselves do not count: 16 round trips of a LAN are none."""
    receive = ReceiveStream(INITIAL_WINDOW)
    now, limit = 1.0, receive.limit
    for _ in range(200):  # the sender has always used up its window, and was stopped for 50 ms then
        if receive.received == receive.edge:
            receive.passed_edge(now, 0.05)
        receive.receive(limit - receive.received)
        if receive.consume(limit - receive.consumed):
            limit = receive.announce(now, round_trip=0.0005, grow_to=WINDOW_MAX)[1]
        now += 0.05
    assert receive.window == INITIAL_WINDOW
