"""Logs bugs that somebody outside can trigger repeatedly: once in full for each kind."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

KINDS_MAX: Final = 64
"""Number of kinds that are remembered. Bugs of further kinds are logged without a traceback."""


class BugLog:
    """Remembers which kinds of exceptions were logged. Each part of a process has one.

    The kind of an exception is its type and the line of the source that raised it. The first of
    a kind is logged as an error with its traceback, later ones only at debug level: a sender
    whose messages trigger a bug must not be able to fill the log with it. The caller counts all
    of them.
    """

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def tell(self, log: logging.Logger, sentence: str, error: BaseException) -> None:
        """Logs `sentence`, which says what ended because of `error`."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
        kind = f"{type(error).__name__} at {where}"
        if kind in self._kinds:
            log.debug("%s (%s, once more)", sentence, kind)
        elif len(self._kinds) < KINDS_MAX:
            self._kinds.add(kind)
            log.error("%s; this is logged once for its kind", sentence, exc_info=error)
        else:
            log.error("%s (%s); there are too many kinds for tracebacks", sentence, kind)

    @contextmanager
    def going_on(self, log: logging.Logger, sentence: str) -> Iterator[None]:
        """Logs an exception in its block, as :meth:`tell` does, and continues after the block.

        It is for work that is repeated: one exception must not end the repetition.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - this is the purpose of the method
            self.tell(log, sentence, error)
