"""Reads files that others name, and writes files that must survive a crash.

Only regular files are read. Opening a FIFO waits for a writer, perhaps for ever, and a device such
as /dev/zero has no end.

When a function that writes returns, both the content and the file's name are on the disk. A rename
alone does not ensure that: after a power failure the new name may lead to an empty file.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

FILE_MAX: Final = 64 * 1_048_576
"""Longest file in bytes that is read as a whole."""

REPLACEMENT: Final = ".new"
"""Suffix of the file into which the replacement of a file is written."""

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO or a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises :class:`OSError`, also if it is not a regular file."""
    # With O_NONBLOCK, opening a FIFO returns at once. It has no effect on a regular file.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(number, f"it is {kind}, and not a regular file", str(path))
    return os.fdopen(fd, "rb")


def read_whole(path: Path, limit: int = FILE_MAX) -> bytes:
    """Returns the content of a regular file.

    Raises :class:`OSError`, also if it is longer than `limit` bytes or not a regular file.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes", str(path))
    return content


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Writes a file that does not exist yet, and waits until it is on the disk.

    Raises :class:`FileExistsError` if something is there, also a symbolic link, and
    :class:`OSError` if it cannot be written; then no file is left.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def replace_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Writes a file in the place of the one that is there, if any, and waits for the disk.

    After a crash at any moment the file has either its old or its new content. Raises
    :class:`OSError`; the old file is still there then, unless only the last step failed, which
    waits for the new name to be on the disk.
    """
    fresh = path.with_name(path.name + REPLACEMENT)
    fresh.unlink(missing_ok=True)  # the rest of an attempt that was cut short
    write_new(fresh, content, mode)
    try:
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_directory(path.parent)


def rename(source: Path, target: Path) -> None:
    """Renames a file, over `target` if that exists, and waits until the disk has the new name.

    What is in the file must be on the disk already. Raises :class:`OSError`.
    """
    source.replace(target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Waits until the names in a directory are on the disk. Raises :class:`OSError`."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
