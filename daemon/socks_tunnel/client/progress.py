"""A line in the terminal that shows progress, and is overwritten each time."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from socks_tunnel.client.instances import POLL, InstanceError, is_gone, summary

QUIET_SECONDS: Final = 5.0
"""Least seconds between two lines if the output is no terminal. Only changed lines are written."""

_CLEAR: Final = "\r\x1b[K"


class Progress:
    """Writes a line that changes. `clock` returns seconds of a monotonic clock."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._shown = ""
        self._at = float("-inf")

    def show(self, line: str) -> None:
        """Shows a line."""
        if line == self._shown:
            return
        if self._terminal:
            self._stream.write(f"{_CLEAR}{line}")
        elif self._clock() - self._at >= QUIET_SECONDS:
            self._stream.write(f"{line}\n")
        else:
            return
        self._stream.flush()
        self._shown, self._at = line, self._clock()

    def end(self, line: str) -> None:
        """Writes the last line."""
        self._stream.write(f"{_CLEAR}{line}\n" if self._terminal else f"{line}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Removes the line in a terminal."""
        if self._terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()


def follow(
    path: Path,
    progress: Progress,
    describe: Callable[[Mapping[str, Any]], str | None],
) -> Mapping[str, Any] | None:
    """Shows the line that `describe` makes of the instance's summary, until it returns None.

    Returns the last summary, or None if the instance has ended. Raises :class:`OSError` if it does
    not answer for another reason.
    """
    while True:
        try:
            found = summary(path)
        except OSError as error:
            if is_gone(error):
                return None
            raise
        except InstanceError:
            return None  # another version answers there, so the instance has ended
        line = describe(found)
        if line is None:
            return found
        progress.show(line)
        time.sleep(POLL)
