"""Asks a running instance on its control socket; see :mod:`socks_tunnel.supervisor.control`."""

import errno
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from socks_tunnel.protocol import bounded

ANSWER_MAX: Final = 64 * 1_048_576
"""Longest answer in bytes: `connections` of 8 workers with 20,000 flows each."""

TIMEOUT: Final = 30.0
"""Seconds for a whole question and answer."""

_READ: Final = 262_144


def request(path: Path, fields: Mapping[str, Any], *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Asks the instance whose control socket is at `path`; returns its whole answer.

    `fields` has an `op`. The answer has `ok`, and `result` or `error`. Raises :class:`OSError` if
    no instance answers there, or not within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        until = time.monotonic() + timeout
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.sendall(json.dumps(dict(fields)).encode() + b"\n")
        line = _read_line(sock, until)
    try:
        return bounded.json_map(line, size=ANSWER_MAX)
    except bounded.Malformed as error:
        reason = (
            f"its answer cannot be read: {error}"
            if line
            else "it closed the connection without an answer"
        )
        raise OSError(errno.EPROTO, reason, str(path)) from None


def _read_line(sock: socket.socket, until: float) -> bytes:
    """Returns the bytes up to the end of the line or of the connection, :data:`ANSWER_MAX` at most.

    Raises :class:`TimeoutError` at the monotonic time `until`.
    """
    line = bytearray()
    while len(line) <= ANSWER_MAX:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        data = sock.recv(_READ)
        end = data.find(b"\n") + 1
        line += data[:end] if end else data
        if end or not data:
            break
    return bytes(line)
