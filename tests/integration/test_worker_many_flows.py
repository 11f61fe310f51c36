"""A worker with as many flows as it may have: nothing holds its loop while bytes want to pass."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.loader import load
from socks_tunnel.ops.tasks import LagMeter
from socks_tunnel.protocol.ipc import Answer, Ask, Reload
from socks_tunnel_workers import upkeep
from socks_tunnel_workers.targets.udp import EndpointAssociation
from support.heap import set_heap_aside
from support.worker_pair import LINK, Pair, worker_pair

FLOWS = 20_000
LONGEST = 0.05
"""Seconds of processor time that one turn of the loop may take. On two busy cores, the longest one
takes 4 to 6 ms. That the work is done in pieces is shown by the unit tests of each part."""


class Turns:
    """Measures what each turn of the loop takes of its thread: other processes have no part in it."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.thread_time()
        self._over = False

    def look(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        if not self._over:
            asyncio.get_running_loop().call_later(0.001, self.look)

    def stop(self) -> None:
        self._over = True


@contextmanager
def many_associations(pair: Pair) -> Iterator[None]:
    """Gives the endpoint's worker associations that share one socket: there are not so many descriptors."""
    worker = pair.endpoint_worker
    session = worker.sessions[LINK]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as shared:
        shared.bind(("127.0.0.1", 0))
        for number in range(1, FLOWS + 1):
            flow = EndpointAssociation(worker.targets.services, session, number)
            flow.sockets[socket.AF_INET] = shared
            session.flows.add(number, flow)
        try:
            yield
        finally:
            for number in range(1, FLOWS + 1):
                session.flows.remove(number)


async def answered(pair: Pair, operation: str, limit: int, by: str) -> int:
    """Asks the worker as the supervisor does; returns how many rows came."""
    pair.endpoint.send_control(0, Ask(5, operation, limit, by))
    rows, more = 0, True
    while more:
        answer = await pair.endpoint.control(Answer)
        assert isinstance(answer, Answer)
        rows, more = rows + len(answer.rows), answer.more
    return rows


async def test_nothing_holds_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.05)  # in place of a few seconds
    async with worker_pair(tmp_path) as pair, asyncio.timeout(120):
        worker = pair.endpoint_worker
        lag = LagMeter(worker.metrics.observe_lag)
        measured = worker.metrics.loop_lag_seconds.labels(worker.metrics.process)
        with many_associations(pair):
            reload = Reload(dump(load(tmp_path / "endpoint.toml")))
            set_heap_aside()
            turns = Turns()
            turns.look()
            assert await answered(pair, "connections", -1, "") == FLOWS
            assert await answered(pair, "connections", 20, "total") == 20
            assert await answered(pair, "status", -1, "") == 1
            pair.endpoint.send_control(0, reload)
            before = sum(measured.counts)
            while sum(measured.counts) < before + 8:  # it is looked at five times a second
                await asyncio.sleep(0.01)
            turns.stop()
        lag.cancel()
    assert turns.longest < LONGEST
