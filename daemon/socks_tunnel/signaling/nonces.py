"""Nonces of envelopes on disk, so that an envelope is not accepted again after a restart.

A file of records of 56 bytes, all integers big-endian, appended one by one::

    +-----------+----------+------------+
    | SENDER:32 | NONCE:16 | EXPIRES:8  |
    +-----------+----------+------------+
     SENDER is a public key, EXPIRES Unix time in seconds.

An incomplete record at the end, from a write that was cut short, is ignored. When the file is
opened, it is rewritten without expired records, and again when it has grown to twice that size.
"""

import errno
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from socks_tunnel.ops.files import open_regular, replace_whole

_log = logging.getLogger(__name__)

_RECORD: Final = struct.Struct("!32s16sQ")

REWRITE_MIN: Final = 65_536
"""Bytes up to which a file is never rewritten."""

EXPIRY_MAX: Final = 3600
"""Latest valid expiry in seconds from now. No envelope with a later one is accepted."""

FILE_MAX: Final = 64 * 1_048_576
"""Bytes of a file that are read. 5,000 peers that use up all their nonces do not reach that."""


class NonceFile:
    """The file at `path`. Its directory must exist.

    If the file cannot be read or written, only the protection over a restart is lost. That is
    logged when it begins.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._limit = REWRITE_MIN
        self._failed = False
        self.forgotten = 0
        """Latest expiry of the records that :meth:`load` has dropped as expired."""

    def load(self, now: float | None) -> Iterator[tuple[bytes, bytes, int]]:
        """Yields (sender, nonce, expires) of unexpired records, and drops the others.

        `now` is None if the time is not known yet. Then nothing is dropped.
        """
        try:
            with open_regular(self._path) as file:
                content = file.read(FILE_MAX)
        except FileNotFoundError:
            content = b""
        except OSError as error:
            self._complain(error)
            content = b""
        whole = len(content) - len(content) % _RECORD.size
        records = list(_RECORD.iter_unpack(content[:whole]))
        live = [r for r in records if now is None or now < r[2] <= now + EXPIRY_MAX]
        if now is not None:
            self.forgotten = max((r[2] for r in records if r[2] <= now), default=0)
        self._rewrite(live)
        yield from live

    def add(
        self, sender: bytes, nonce: bytes, expires: int, live: list[tuple[bytes, bytes, int]]
    ) -> None:
        """Appends a record.

        If the file is :attr:`full`, it is rewritten with the unexpired ones, `live`.
        """
        if self._size >= self._limit:
            self._rewrite(live)
        try:
            self._append(_RECORD.pack(sender, nonce, expires))
        except OSError as error:
            self._complain(error)
        else:
            self._size += _RECORD.size
            self._failed = False

    @property
    def full(self) -> bool:
        """Whether :meth:`add` will rewrite the file."""
        return self._size >= self._limit

    def _append(self, record: bytes) -> None:
        """Appends a whole record or nothing. Raises :class:`OSError`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            before = os.fstat(fd).st_size
            if os.write(fd, record) != len(record):
                os.ftruncate(fd, before)  # a part of a record would shift all later ones
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)

    def _rewrite(self, live: list[tuple[bytes, bytes, int]]) -> None:
        content = b"".join(_RECORD.pack(*record) for record in live)
        try:
            replace_whole(self._path, content)
        except OSError as error:
            self._complain(error)
        self._size = len(content)
        self._limit = max(REWRITE_MIN, 2 * len(content))

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            _log.warning(
                "%s cannot be used: %s; an offer could be repeated once after a restart",
                self._path,
                error.strerror or error,
            )
