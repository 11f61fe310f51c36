"""Tasks keep running, and their failures are told once."""

import asyncio
import gc
import logging
import time

import pytest

from socks_tunnel.ops import tasks
from socks_tunnel.ops.meters import Histogram
from socks_tunnel.ops.tasks import LAG_PERIOD, LagMeter, spawn


async def test_it_gives_the_named_task() -> None:
    async def answer() -> int:
        return 42

    task = spawn("answer", answer())
    assert task.get_name() == "answer"
    assert await task == 42


async def test_a_task_that_nobody_holds_is_not_collected() -> None:
    done = asyncio.Event()
    opened = asyncio.Event()

    async def wait() -> None:
        opened.set()
        await asyncio.get_running_loop().create_future()

    async def finish() -> None:
        await opened.wait()
        gc.collect()
        done.set()

    waiting = spawn("waiting", wait())
    identity = id(waiting)
    del waiting
    await spawn("finish", finish())
    assert done.is_set()
    [held] = [task for task in tasks._running if id(task) == identity]
    held.cancel()
    await asyncio.wait([held])
    assert held not in tasks._running


async def test_a_failure_is_logged_and_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[BaseException] = []

    async def fail() -> None:
        raise OSError("no such device")

    task = spawn("reader", fail(), on_failure=failures.append)
    with pytest.raises(OSError, match="no such device") as caught:
        await task

    assert failures == [caught.value]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "task reader failed: OSError('no such device')"
    assert record.exc_info is not None
    assert record.exc_info[1] is caught.value


async def test_being_cancelled_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[BaseException] = []
    task = spawn("sleeper", asyncio.Event().wait(), on_failure=failures.append)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not failures
    assert not caplog.records


async def test_the_lag_of_the_loop_is_what_holds_it() -> None:
    lag = Histogram("lag", "Lag", (0.05, 0.1))
    measuring = LagMeter(lag.observe)
    async with asyncio.timeout(60):
        while not lag.labels().counts[-1]:
            end = time.monotonic() + LAG_PERIOD + 0.15
            while time.monotonic() < end:  # holds the loop
                pass
            await asyncio.sleep(0)
    measuring.cancel()
    assert lag.labels().sum >= 0.1
