"""The last warnings and errors of this process, for its status page.

A log record whose sentence names a destination has a second sentence without it, for pages that
must not show destinations: `extra=without_destinations("route office: b is passed over")`.
"""

import logging
from collections import deque
from typing import Final

from socks_tunnel.protocol.bounded import clip

REMEMBERED: Final = 20
"""Warnings and errors that are remembered."""

SENTENCE_MAX: Final = 600
"""Characters of each that are kept."""


_ATTRIBUTE: Final = "without_destinations"


def without_destinations(sentence: str) -> dict[str, str]:
    """Returns the `extra` of a log record whose own sentence names a destination."""
    return {_ATTRIBUTE: sentence}


class RecentProblems(logging.Handler):
    """Remembers the last records of level warning and above, with the text that the log has."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: deque[tuple[float, str, str, str]] = deque(maxlen=REMEMBERED)

    def emit(self, record: logging.LogRecord) -> None:
        """Remembers a record."""
        try:
            sentence = record.getMessage()
        except (TypeError, ValueError):  # a bad logging call: the log itself reports it
            return
        without = str(getattr(record, _ATTRIBUTE, sentence))
        level = record.levelname.lower()
        self._records.append(
            (record.created, level, clip(sentence, SENTENCE_MAX), clip(without, SENTENCE_MAX))
        )

    def rows(self, *, destinations: bool = True) -> list[dict[str, object]]:
        """Returns the remembered records, the newest first, with or without destinations."""
        return [
            {
                "time": round(created, 3),
                "level": level,
                "message": sentence if destinations else without,
            }
            for created, level, sentence, without in reversed(self._records)
        ]
