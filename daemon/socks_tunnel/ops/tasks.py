"""Background tasks that are never lost and never fail in silence."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

# The event loop holds tasks only by weak references. Without this set, a task that waits for an
# object without other references could be collected in the middle of its work.
_running: set[asyncio.Task[Any]] = set()


def spawn(
    name: str,
    coro: Coroutine[Any, Any, _T],
    *,
    on_failure: Callable[[BaseException], None] | None = None,
) -> asyncio.Task[_T]:
    """Starts `coro` as a task called `name` on the running event loop; returns the task.

    A reference is kept until it ends. If it ends with an exception, that is logged once with its
    traceback and then handed to `on_failure`, called on the event loop. Being cancelled is no
    failure. Whoever awaits the task gets the exception too.
    """
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _running.add(task)

    def ended(task: asyncio.Task[_T]) -> None:
        _running.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        _log.error("task %s failed: %r", name, error, exc_info=error)
        if on_failure is not None:
            on_failure(error)

    task.add_done_callback(ended)
    return task


LAG_PERIOD: Final = 0.2
"""Seconds between two measurements of how late the event loop is."""


class LagMeter:
    """Calls `observe` again and again with the seconds that the running event loop was late.

    That is how long a packet would have waited for whatever held the loop. It uses a timer, because
    the sleep of a task would be most of the work of an idle process.
    """

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._observe = observe
        self._begin()

    def _begin(self) -> None:
        self._due = self._loop.time() + LAG_PERIOD
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        late = max(0.0, self._loop.time() - self._due)
        self._begin()
        self._observe(late)

    def cancel(self) -> None:
        """Ends the measurements."""
        self._timer.cancel()


SHORT_TURN: Final = 0.0005
"""Seconds after which a thread must release the interpreter to another that wants it."""


@contextmanager
def short_turns() -> Iterator[None]:
    """Lets the event loop run sooner while another thread works.

    Otherwise a thread keeps the interpreter for 5 ms at a time, and packets wait each time.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
