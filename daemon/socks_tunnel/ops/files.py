"""Reads files whose names come from a command line or a configuration."""

import errno
from pathlib import Path
from typing import Final

FILE_MAX: Final = 64 * 1_048_576
"""Longest file in bytes that is read as a whole. A device such as /dev/zero has no end at all."""


def read_whole(path: Path) -> bytes:
    """Returns what is in a file. Raises :class:`OSError`, also if it is longer than the limit."""
    with path.open("rb") as file:
        content = file.read(FILE_MAX + 1)
    if len(content) > FILE_MAX:
        raise OSError(errno.EFBIG, f"it is longer than {FILE_MAX} bytes", str(path))
    return content
