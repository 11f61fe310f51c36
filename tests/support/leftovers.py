"""What an integration test leaves behind is charged to that test, and not to whichever runs next.

A socket, a transport or a task that nobody holds any more complains when it is collected: as a
warning, which is an error here, or in the log. Left alone, that happens at some moment of a later test,
which fails for it if it looks at its log or counts its descriptors.

tests/conftest.py loads this file as a plugin.
"""

import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from support.heap import set_heap_aside

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Collects what the test and its fixtures have left, and fails the test for what complains."""
    yield
    if FOLDER not in item.path.parents:
        return
    complaints = _Complaints()
    unraisable: list[str] = []

    def note(event: Any) -> None:
        unraisable.append(f"{event.err_msg or 'ignored in'} {event.object!r}: {event.exc_value!r}")

    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    logger.addHandler(complaints)
    sys.unraisablehook = note
    try:
        set_heap_aside()
    finally:
        sys.unraisablehook = hook
        logger.removeHandler(complaints)
    left = [*unraisable, *complaints.sentences]
    assert not left, "the test has left behind:\n" + "\n".join(left)
