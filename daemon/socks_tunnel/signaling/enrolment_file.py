"""Enrolments on disk: a line of JSON for each entry, appended as it happens (mode 0600).

A line that is cut short at the end, by a full disk or a power failure, is dropped: nobody was told
that it had happened. Any other line that cannot be used is an error, because it may have revoked a
key, or replaced one that was stolen. Nobody is admitted by what is left of such a file. The file is
rewritten when most of its lines are superseded by later ones: when it is opened, and again after
many more lines.
"""

import json
import logging
import os
from pathlib import Path
from typing import Final

from socks_tunnel.ops.files import open_regular, replace_whole, sync_directory
from socks_tunnel.protocol.bounded import Malformed, json_map
from socks_tunnel.signaling.enrolments import Enrolments
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.member_list import Entry

_log = logging.getLogger(__name__)

LINE_MAX: Final = 4096
"""Longest line in bytes."""

FILE_MAX: Final = 256 * 1_048_576
"""Longest file in bytes that is read."""

REWRITE_MIN: Final = 1000
"""Lines up to which a file is never rewritten."""

REWRITE_OPEN_MIN: Final = 65_536
"""Lines up to which a file is not rewritten while it is in use (about 5 MiB), because rewriting
holds the event loop. Without any rewriting, a fleet that comes and goes for months would make the
file longer than :data:`FILE_MAX`, and the next start would fail."""


class DamagedFileError(OSError):
    """A line of the file cannot be used, so its meaning is not known."""


class EnrolmentFile:
    """The file at `path` and its entries. Its directory must exist.

    Raises :class:`OSError` if it cannot be read or written, and :class:`DamagedFileError` if it
    cannot be understood: an endpoint that does not know its members must not start as if it had
    none, and one that does not know its revocations must not start as if there were none.
    """

    def __init__(self, path: Path, identity: PrivateIdentity) -> None:
        self._path = path
        self._identity = identity
        self._named = False
        self.enrolments = Enrolments(identity, self._append)
        lines = self._read()
        live = list(self.enrolments.entries())
        self._lines = len(lines)
        if self._lines > max(REWRITE_MIN, 2 * len(live)):
            self._rewrite(live)
        self._lines_max = max(REWRITE_OPEN_MIN, 2 * len(live))

    def replace(self, entries: list[Entry]) -> None:
        """Replaces the whole content of the file.

        Entries that cannot be used are left out with a warning. Raises OSError. Then the file stays
        as it is, and the entries are still in force until a restart.
        """
        fresh = Enrolments(self._identity, self._append)
        good = []
        for entry in entries:
            try:
                fresh.replay(entry)
            except ValueError as error:
                _log.warning("an entry of %s is left out: %s", self._path, error)
            else:
                good.append(entry)
        self.enrolments = fresh
        self._rewrite(good)
        self._lines_max = max(REWRITE_OPEN_MIN, 2 * len(good))

    def sync(self) -> None:
        """Waits until what was appended is on the disk, and the file's name with the first of it.

        Runs in a thread. Raises OSError.
        """
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # nothing has been appended yet
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if not self._named:
            sync_directory(self._path.parent)
            self._named = True

    def _read(self) -> list[bytes]:
        try:
            with open_regular(self._path) as file:
                content = file.read(FILE_MAX + 1)
        except FileNotFoundError:
            return []
        if len(content) > FILE_MAX:
            raise OSError(f"{self._path} is longer than {FILE_MAX} bytes")
        whole, _, rest = content.rpartition(b"\n")
        if rest:
            _log.warning("%s: the last line is cut short, and is dropped", self._path)
            os.truncate(self._path, len(content) - len(rest))
        lines = whole.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                self.enrolments.replay(json_map(line, size=LINE_MAX))
            except (Malformed, ValueError) as error:
                raise DamagedFileError(
                    f"{self._path}:{number}: this line cannot be used: {error}. It may have revoked"
                    " a key. Restore the file from a backup, or delete the line and revoke once"
                    " more whom you had revoked"
                ) from None
        return lines

    def _append(self, entry: Entry) -> None:
        if self._lines >= self._lines_max:
            self._shorten()
        line = json.dumps(entry).encode() + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            before = os.fstat(fd).st_size
            if os.write(fd, line) != len(line):
                # The disk is full, and half a line would spoil the next one.
                os.ftruncate(fd, before)
                raise OSError(f"{self._path}: there is no room for another line")
        finally:
            os.close(fd)
        self._lines += 1

    def _shorten(self) -> None:
        """Rewrites the file while it is in use. If that fails, it stays as it is."""
        live = list(self.enrolments.entries())
        try:
            self._rewrite(live)
        except OSError as error:
            _log.warning(
                "%s cannot be rewritten without its superseded lines: %s; the file keeps growing",
                self._path,
                error,
            )
            self._lines_max *= 2
        else:
            self._lines_max = max(REWRITE_OPEN_MIN, 2 * len(live))

    def _rewrite(self, entries: list[Entry]) -> None:
        replace_whole(self._path, b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self._lines = len(entries)
