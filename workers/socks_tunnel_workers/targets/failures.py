"""Why a name has no addresses, and what follows from it."""

from __future__ import annotations

import socket
from enum import Enum
from typing import Final

from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import is_shortage


class Failure(Enum):
    """Why a name has no addresses. The values are the labels of `dns_failures_total`."""

    ABSENT = "absent"
    """The sources say that there is no such name, or that it has no address."""
    TIMEOUT = "timeout"
    """Nobody answered in time."""
    SERVER = "server"
    """The name servers answered with an error, or could not be reached."""
    RESOURCES = "resources"
    """This host lacks descriptors, memory or threads."""
    TOO_MANY = "too-many"
    """As many look-ups are under way as there may be."""
    ABANDONED = "abandoned"
    """Whoever asked has left, or ran out of time, before there was an answer."""
    BUG = "bug"
    """A fault of this program, with a traceback in the log."""


_REPLIES: Final = {
    Failure.ABSENT: Reply.HOST_UNREACHABLE,
    Failure.TIMEOUT: Reply.TTL_EXPIRED,
    Failure.SERVER: Reply.HOST_UNREACHABLE,
    Failure.RESOURCES: Reply.GENERAL_FAILURE,
    Failure.TOO_MANY: Reply.GENERAL_FAILURE,
    Failure.ABANDONED: Reply.GENERAL_FAILURE,
    Failure.BUG: Reply.GENERAL_FAILURE,
}


class ResolveError(Exception):
    """The name could not be resolved; `failure` says why, `reply` is what the client is told."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure
        self.reply = _REPLIES[failure]

    @property
    def soft(self) -> bool:
        """Whether the same question may have another answer in a moment."""
        return self.failure is not Failure.ABSENT


def shortage() -> OSError | None:
    """Returns why no socket can be had at this moment, or None if one can.

    c-ares reports a socket that it could not open as a refused connection.
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        if is_shortage(error):
            return error
    return None
