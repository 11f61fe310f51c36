"""How commands ask a running instance; see :mod:`socks_tunnel.supervisor.control`."""

import errno
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

TIMEOUT: Final = 30.0
"""Seconds for a whole question and answer."""


def request(path: Path, fields: Mapping[str, Any], *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Ask the instance whose control socket is at `path`; give its whole answer.

    `fields` has an `op`. The answer has `ok`, and `result` or `error`. Raises :class:`OSError` if
    no instance answers there, or not within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.sendall(json.dumps(dict(fields)).encode() + b"\n")
        with sock.makefile("rb") as stream:
            line = stream.readline()
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise OSError(errno.EPROTO, "it closed the connection without an answer", str(path))
    return answer
