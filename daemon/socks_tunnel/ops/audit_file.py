"""The audit records of a process in a file, a JSON object in each line.

All processes of an instance append to one file, each line by a write of its own offset (O_APPEND,
open(2)). Before each write it is looked whether the file is still the one of that name: whoever
rotates it renames it, or removes it, and what comes after that belongs into a new file. If it was
removed in the moment of a write, the lines are written again.

Records are in the log too. A file that cannot be written, such as on a full disk, costs nothing but
that copy: it is tried again with the next records, and the log says how many are missing.
"""

import logging
import os
from typing import Final

from socks_tunnel.ops import audit
from socks_tunnel.ops.logging import JsonFormatter, QueueHandler, dropped_lines

_log = logging.getLogger(__name__)

MODE: Final = 0o640
"""Mode of a file that is made here: for the user and the group of the daemon."""

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY

_handler: "_AuditFile | None" = None


def use(path: str, component: str) -> None:
    """Writes the audit records of this process to a file from now on; "": to none.

    Raises :class:`OSError` if it cannot be opened for writing; nothing has changed then.
    """
    global _handler  # noqa: PLW0603 - where a process writes its records is a property of it
    if (_handler.path if _handler is not None else "") == path:
        return
    handler = _AuditFile(path, component) if path else None
    logger = logging.getLogger(audit.LOGGER_NAME)
    if _handler is not None:
        logger.removeHandler(_handler)
        _handler.close()
    if handler is not None:
        logger.addHandler(handler)
    _handler = handler


def close() -> None:
    """Writes what waits, for a moment at most, and closes the file; harmless if there is none."""
    use("", "")


class _AuditFile(QueueHandler):
    """Formats in the calling thread, and lets a thread of its own look after the file."""

    to = "audit-file"

    def __init__(self, path: str, component: str) -> None:
        self.path = path
        fd = os.open(path, _FLAGS, MODE)
        self._missing = 0
        super().__init__(fd)
        self.setFormatter(JsonFormatter(component))

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        super().close()
        if not self._thread.is_alive():  # else it hangs in a write, and the descriptor stays
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        lines = data.count(b"\n")
        try:
            self._reopen_if_moved()
            self._append(data)
            if os.fstat(self._fd).st_nlink == 0:
                self._reopen_if_moved()
                self._append(data)
        except OSError as error:
            if not self._missing:
                _log.error(
                    "audit records cannot be written to %s: %s; they are only in the log until it "
                    "works again",
                    self.path,
                    error.strerror,
                )
            self._missing += lines
            dropped_lines[self.to] += lines
        else:
            if self._missing:
                _log.warning(
                    "%d audit records are missing in %s; it works again", self._missing, self.path
                )
                self._missing = 0

    def _append(self, data: bytes) -> None:
        """Writes whole lines, behind what a full disk or a power cut has left of one."""
        size = os.fstat(self._fd).st_size
        left = data
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            left = b"\n" + data
        while left:
            left = left[os.write(self._fd, left) :]

    def _reopen_if_moved(self) -> None:
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self.path)  # noqa: PTH116 - beside fstat, which has no form in pathlib
        except FileNotFoundError:
            named = None
        if named is not None and (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
            return
        fd = os.open(self.path, _FLAGS, MODE)
        os.close(self._fd)
        self._fd = fd

    def _dropped_record(self, count: int) -> logging.LogRecord:
        record = logging.LogRecord(
            audit.LOGGER_NAME, logging.WARNING, __file__, 0, audit.DROPPED, None, None
        )
        record.fields = {"count": count}
        return record
