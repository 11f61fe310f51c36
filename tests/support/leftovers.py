"""What a test leaves behind is charged to that test, or taken away, and does not change later ones.

A socket, a transport or a task that nobody holds any more complains when it is collected: as a
warning, which is an error here, or in the log. Left alone, that happens at some moment of a later test,
which fails for it if it looks at its log or counts its descriptors.

tests/conftest.py loads this file as a plugin.
"""

import gc
import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.ops import audit
from socks_tunnel.ops import logging as ops_logging
from support.heap import set_heap_aside

LOGGERS = ("", audit.LOGGER_NAME, *ops_logging._QUIET_LIBRARIES)
"""The loggers, the root among them, whose levels an instance or a worker sets for its process: for
the test's, where it runs in that. Later tests would find more in their logs, or less."""

_levels: dict[str, int] = {}
"""What their levels were before the first test."""

FOLDER = Path(__file__).parent.parent / "integration"

_COMPLAINTS = ("never retrieved", "was destroyed but it is pending")
"""What asyncio says of a task or a future that is collected too early."""


class _Complaints(logging.Handler):
    """Keeps what asyncio complains of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if any(words in sentence for words in _COMPLAINTS):
            self.sentences.append(sentence)


def pytest_collection_finish() -> None:
    """Keeps what exists before the first test out of the collection after each."""
    set_heap_aside()
    for name in LOGGERS:
        _levels[name] = logging.getLogger(name).level


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Collects what the test and its fixtures have left, and fails the test for what complains."""
    yield
    for name, level in _levels.items():
        logging.getLogger(name).setLevel(level)
    if FOLDER not in item.path.parents:
        return
    complaints = _Complaints()
    unraisable: list[str] = []

    def note(event: Any) -> None:
        unraisable.append(f"{event.err_msg or 'ignored in'} {event.object!r}: {event.exc_value!r}")

    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    logger.addHandler(complaints)
    sys.unraisablehook = note
    getattr(item, "funcargs", {}).clear()  # what fixtures gave, which nobody needs any more
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
        logger.removeHandler(complaints)
    left = [*unraisable, *complaints.sentences]
    assert not left, "the test has left behind:\n" + "\n".join(left)
