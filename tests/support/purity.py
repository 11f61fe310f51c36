"""Holds unit tests to what they are: no socket, no process, no sleep, no clock.

The event loop that an asynchronous test runs on has a pair of sockets and looks at the clock for itself;
that is no business of the test.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{_ROOT / folder}/" for folder in ("daemon", "workers", "tests"))
_CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")

_watch: Callable[[str], None] | None = None
"""Called with what the running test does; None while nobody watches."""

_thread = 0
"""The thread of the test. What another one does is not the test's: an earlier test of the process may
have left it, such as one that waits for a name server."""


class ImpureError(AssertionError):
    """A unit test does what only other tests may do."""


def _report(what: str) -> None:
    if _watch is not None and threading.get_ident() == _thread:
        _watch(what)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    del arguments
    if _watch is None:
        return
    if event == "socket.__new__":
        if not any(frame.f_code.co_name == "_make_self_pipe" for frame in _frames()):
            _report("makes a socket")
    elif event in {"subprocess.Popen", "os.posix_spawn", "os.fork"}:
        _report("starts a process")


_real_monotonic = time.monotonic
_real_sleep = time.sleep


def _sleep(seconds: float) -> None:
    _report(f"sleeps {seconds} s")
    _real_sleep(seconds)


def _guarded(name: str, real: Callable[[], Any]) -> Callable[[], Any]:
    def clock() -> Any:
        if _watch is not None and sys._getframe(1).f_code.co_filename.startswith(_OURS):
            _report(f"asks time.{name}()")
        return real()

    return clock


def _loop_time(self: asyncio.BaseEventLoop) -> float:
    if _watch is not None and sys._getframe(1).f_code.co_name != "_run_once":
        _report("asks the event loop for its time, or for a call later")
    return _real_monotonic()


@contextlib.contextmanager
def watched(report: Callable[[str], None]) -> Iterator[None]:
    """Calls `report` with each thing that is done in this block and that a unit test must not do."""
    global _watch, _thread
    real = {name: getattr(time, name) for name in (*_CLOCKS, "sleep")}
    real_loop_time = asyncio.BaseEventLoop.time
    for name, function in real.items():
        setattr(time, name, _sleep if name == "sleep" else _guarded(name, function))
    asyncio.BaseEventLoop.time = _loop_time  # type: ignore[method-assign]
    _watch, _thread = report, threading.get_ident()
    try:
        yield
    finally:
        _watch = None
        asyncio.BaseEventLoop.time = real_loop_time  # type: ignore[method-assign]
        for name, function in real.items():
            setattr(time, name, function)


def refuse(what: str) -> None:
    """Ends what goes on."""
    raise ImpureError(f"a unit test {what}: such a test belongs to tests/integration")


sys.addaudithook(_audit)
