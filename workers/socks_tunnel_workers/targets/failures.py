"""The reasons why the look-up of a name fails, and the SOCKS replies for them."""

from __future__ import annotations

import socket
from enum import Enum
from typing import Final

from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import is_shortage


class Failure(Enum):
    """Why a look-up failed. The values are the labels of `dns_failures_total`."""

    ABSENT = "absent"
    """The sources say that there is no such name, or that it has no address."""
    TIMEOUT = "timeout"
    """No source answered in time."""
    SERVER = "server"
    """The name servers answered with an error, or could not be reached."""
    RESOURCES = "resources"
    """This host is short of descriptors, memory or threads."""
    TOO_MANY = "too-many"
    """The limit of look-ups under way is reached."""
    ABANDONED = "abandoned"
    """All askers have left, or ran out of time, before there was an answer."""
    BUG = "bug"
    """A bug of this program, with a traceback in the log."""


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
    """The look-up failed. `failure` says why, and `reply` is the SOCKS reply for the client."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure
        self.reply = _REPLIES[failure]

    @property
    def soft(self) -> bool:
        """Whether the same question may have another answer a moment later."""
        return self.failure is not Failure.ABSENT


def shortage() -> OSError | None:
    """Returns the error if this host has no descriptor or memory for a socket now, else None.

    c-ares does not tell: it reports a socket that it could not open as a refused connection.
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        if is_shortage(error):
            return error
    return None
