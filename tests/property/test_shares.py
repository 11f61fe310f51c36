"""Flows of several workers share one link: the credit of the supervisor and the workers' queues.

Time is virtual. Workers hear and are heard with a delay, as over IPC, in which they may be stopped
for a while, as on a busy host.
"""

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from socks_tunnel.protocol.scheduler import BusyFlows, Scheduler
from socks_tunnel.supervisor.credit import LinkCredit, Share

HEADER: Final = 7


class Clock:
    """Calls in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._calls, (self.now + seconds, next(self._number), call))

    def run(self, until: float) -> None:
        while self._calls and self._calls[0][0] <= until:
            self.now, _, call = heapq.heappop(self._calls)
            call()
        self.now = until


class Flow:
    """A flow whose socket always has more."""

    def __init__(self) -> None:
        self.served = 0
        self.queued = 0
        self.sent = 0


class Worker:
    """The queue of one worker, and its way to the supervisor."""

    def __init__(self, link: "Link", share: Share, flows: list[Flow], *, mute: bool) -> None:
        self.link = link
        self.share = share
        self.flows = flows
        self.scheduler: Scheduler[Flow] = Scheduler(link.credit.first_grant(share))
        self.busy = BusyFlows()
        self.mute = mute
        self.stopped_until = 0.0

    def begin(self) -> None:
        for flow in self.flows:
            self.scheduler.wait(flow)
        self.transmit()

    def granted(self, amount: int, chunk: int) -> None:
        if self.link.clock.now < self.stopped_until:
            rest = self.stopped_until - self.link.clock.now
            self.link.clock.after(rest, partial(self.granted, amount, chunk))
            return
        self.scheduler.chunk = chunk
        self.scheduler.credit += amount
        waiting = self.scheduler.waiting
        self.transmit()
        if self.busy.due(waiting, self.link.clock.now) and not self.mute:
            told = self.busy.told
            self.link.clock.after(self.link.delay, partial(self.link.told, self, told))

    def transmit(self) -> None:
        while (flow := self.scheduler.next_flow()) is not None:
            size = self.scheduler.turn
            flow.sent += size
            self.scheduler.credit -= size + HEADER
            self.link.clock.after(self.link.delay, partial(self.link.sent, self, size + HEADER))
            self.scheduler.requeue(flow, size)


class Link:
    """A link of so many bytes a second."""

    def __init__(self, rate: float, delay: float) -> None:
        self.clock = Clock()
        self.rate = rate
        self.delay = delay
        self.credit = LinkCredit()
        self.workers: list[Worker] = []
        self.queue = 0
        self.carried = 0
        self.busy = False

    def add(self, flows: list[Flow], *, mute: bool = False) -> Worker:
        worker = Worker(self, Share(), flows, mute=mute)
        self.workers.append(worker)
        return worker

    def told(self, worker: Worker, flows: int) -> None:
        self.credit.told(worker.share, flows, self.clock.now)

    def sent(self, worker: Worker, size: int) -> None:
        self.credit.sent(worker.share, size, self.clock.now)
        self.queue += size
        if not self.busy:
            self.busy = True
            self._next()

    def _next(self) -> None:
        size = min(self.queue, max(1_200, int(self.rate * 0.001)))
        if not size:
            self.busy = False
            return
        self.clock.after(size / self.rate, partial(self._left, size))

    def _left(self, size: int) -> None:
        self.queue -= size
        self.carried += size
        self.credit.drained(size, self.clock.now)
        workers = {worker.share: worker for worker in self.workers}
        for share, amount in self.credit.grants(workers):
            worker = workers[share]
            self.clock.after(self.delay, partial(worker.granted, amount, self.credit.chunk))
        self._next()


SPREAD: Final = 0.2
"""Part of their mean by which flows may differ after ten seconds."""


def spread(flows: list[Flow], before: list[int]) -> float:
    sent = [flow.sent - then for flow, then in zip(flows, before, strict=True)]
    mean = sum(sent) / len(sent)
    return max(abs(each - mean) for each in sent) / mean


rates = st.sampled_from([1e6, 1e7, 1e8])
delays = st.sampled_from([0.0001, 0.001, 0.004])
"""Seconds between a worker and the supervisor."""


def seconds_of(rate: float) -> float:
    """Returns for how long flows are compared: they take turns the faster, the faster the link."""
    return 1e7 / rate if rate > 1e6 else 10.0


@settings(max_examples=20)
@given(
    rate=rates,
    delay=delays,
    workers=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
)
def test_busy_flows_share_a_link_whatever_workers_they_belong_to(
    rate: float, delay: float, workers: list[int]
) -> None:
    link = Link(rate / 8, delay)
    for number in workers:
        link.add([Flow() for _ in range(number)])
    for worker in link.workers:
        worker.begin()
    link.clock.run(2.0)
    flows = [flow for worker in link.workers for flow in worker.flows]
    before, carried = [flow.sent for flow in flows], link.carried
    seconds = seconds_of(rate)
    link.clock.run(2.0 + seconds)
    assert link.carried - carried > 0.9 * seconds * rate / 8, "and the link is never idle"
    assert spread(flows, before) < SPREAD


@settings(max_examples=20)
@given(rate=rates, delay=delays, told=st.integers(0, 1_000), others=st.integers(1, 5))
def test_a_number_that_is_out_of_date_starves_nobody(
    rate: float, delay: float, told: int, others: int
) -> None:
    link = Link(rate / 8, delay)
    stale = link.add([Flow()], mute=True)
    link.told(stale, told)
    for _ in range(others):
        link.add([Flow()])
    for worker in link.workers:
        worker.begin()
    link.clock.run(2.0)
    before, carried = [worker.flows[0].sent for worker in link.workers], link.carried
    seconds = seconds_of(rate)
    link.clock.run(2.0 + seconds)
    assert link.carried - carried > 0.9 * seconds * rate / 8
    for worker, then in zip(link.workers, before, strict=True):
        assert worker.flows[0].sent > then


@settings(max_examples=20)
@given(rate=rates, delay=delays, told=st.integers(1, 1_000), pause=st.floats(0.05, 1.0))
def test_a_worker_that_does_not_use_its_credit_holds_nobody_up(
    rate: float, delay: float, told: int, pause: float
) -> None:
    link = Link(rate / 8, delay)
    stopped, goes_on = link.add([Flow()], mute=True), link.add([Flow()])
    for worker in link.workers:
        worker.begin()
    link.clock.run(1.0)
    link.told(stopped, told)
    stopped.stopped_until = 1.0 + pause + 2.0
    link.clock.run(1.0 + pause)
    sent = goes_on.flows[0].sent
    link.clock.run(1.0 + pause + 2.0)
    assert goes_on.flows[0].sent - sent > 0.85 * 2.0 * rate / 8
    then = stopped.flows[0].sent
    link.clock.run(1.0 + pause + 4.0)
    assert stopped.flows[0].sent > then
