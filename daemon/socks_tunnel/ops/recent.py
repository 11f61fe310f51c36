"""The last warnings and errors of this process, for who looks at its status page."""

import logging
from collections import deque
from typing import Final

from socks_tunnel.protocol.bounded import clip

REMEMBERED: Final = 20
"""Warnings and errors that are remembered."""

SENTENCE_MAX: Final = 600
"""Characters of each."""


class RecentProblems(logging.Handler):
    """Remembers the last records of level warning and above, as they are in the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: deque[tuple[float, str, str]] = deque(maxlen=REMEMBERED)

    def emit(self, record: logging.LogRecord) -> None:
        """Remembers a record."""
        try:
            sentence = record.getMessage()
        except (TypeError, ValueError):  # a bad logging call: the log itself reports it
            return
        level = record.levelname.lower()
        self._records.append((record.created, level, clip(sentence, SENTENCE_MAX)))

    def rows(self) -> list[dict[str, object]]:
        """Returns what is remembered, the newest first."""
        return [
            {"time": round(created, 3), "level": level, "message": sentence}
            for created, level, sentence in reversed(self._records)
        ]
