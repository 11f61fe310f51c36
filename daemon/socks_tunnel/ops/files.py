"""Reads files whose names come from a command line or a configuration.

Only regular files are read. Whoever opens a FIFO waits until somebody writes to it, which may be
for ever, and a device such as /dev/zero has no end.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

FILE_MAX: Final = 64 * 1_048_576
"""Longest file in bytes that is read as a whole."""

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO or a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises :class:`OSError`, also if it is not a regular file."""
    # O_NONBLOCK: to open a FIFO returns at once. It has no effect on a regular file.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(number, f"it is {kind}, and not a regular file", str(path))
    return os.fdopen(fd, "rb")


def read_whole(path: Path, limit: int = FILE_MAX) -> bytes:
    """Returns what is in a regular file.

    Raises :class:`OSError`, also if it is longer than `limit` bytes or not a regular file.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes", str(path))
    return content
