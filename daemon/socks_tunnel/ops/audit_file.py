"""The audit records of a process in a file, a JSON object in each line.

All processes of an instance append to one file, each line by a write of its own offset (O_APPEND,
open(2)). Before each write, the process checks whether the open file still has that name. A log
rotation renames or removes the file, and later lines belong into a new one. If the file was removed
during a write, the lines are written again.

The log has all records too. If the file cannot be written, for example because the disk is full,
only this copy is lost. The next records are tried again, and the log says how many are missing.
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
    """Writes the audit records of this process to a file from now on; with "", to no file.

    Raises :class:`OSError`, and changes nothing, if the file cannot be opened for writing.
    """
    global _handler  # noqa: PLW0603 - each process has one place for its records
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
    """Writes waiting records, for a bounded time, and closes the file.

    Does nothing if none is open.
    """
    use("", "")


class _AuditFile(QueueHandler):
    """Formats records in the calling thread, and writes them in a thread of its own."""

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
        # Otherwise it hangs in a write, and the descriptor stays open.
        if not self._thread.is_alive():
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
                    "audit records cannot be written to %s: %s; until that works again, only the "
                    "log has them",
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
        """Writes whole lines.

        If a full disk or a power failure left part of a line, they begin after it.
        """
        size = os.fstat(self._fd).st_size
        left = data
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            left = b"\n" + data
        while left:
            left = left[os.write(self._fd, left) :]

    def _reopen_if_moved(self) -> None:
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self.path)  # noqa: PTH116 - pathlib has nothing like fstat, which stands beside it
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
