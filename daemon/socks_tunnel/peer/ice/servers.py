"""The state of queries to STUN and TURN servers, and the memory of earlier ones."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final, TypeVar

from socks_tunnel.peer.ice.settings import IceServer

_log = logging.getLogger(__name__)

DEAD_AFTER: Final = 0.5
"""Seconds for the first answer of a server, if there are host candidates without it."""

ALIVE_PATIENCE: Final = 3.0
"""Seconds for a server to finish after its first answer. TLS through a proxy takes six round
trips."""

LONGEST: Final = 5.0
"""Seconds for servers if there are no candidates without them. After that, a query is given up with
a warning."""

STRAGGLERS: Final = 0.1
"""Least seconds for further answers of a server after its first one."""

_T = TypeVar("_T")


class ServerMemory:
    """What earlier links have learned about each server: whether it answers, and how fast.

    There is one for the process. It has an entry for each configured server, at most
    :data:`ENTRIES_MAX`.
    """

    ENTRIES_MAX: Final = 64

    def __init__(self) -> None:
        self._failures: dict[str, str] = {}
        self._late: dict[str, float] = {}

    def answered(self, server: str, seconds: float, *, in_time: bool = True) -> None:
        """Notes that a server has answered after so many seconds.

        This is logged if it ends a failure, or if the answer was not `in_time` for its link.
        """
        if not in_time:
            _log.info("%s answers after %.2f s, too late for this link", server, seconds)
        elif server in self._failures:
            _log.info("%s answers (after %.2f s)", server, seconds)
        self._failures.pop(server, None)
        self._late.pop(server, None)
        if seconds > DEAD_AFTER:
            self._note(self._late, server, seconds)

    def failed(self, server: str, why: str) -> None:
        """Notes that a server has failed. This is logged once, until the server answers again."""
        if self._failures.get(server) != why:
            _log.warning("%s: %s; links are made without it", server, why)
        self._note(self._failures, server, why)

    def patience(self, server: str) -> float:
        """Returns the seconds to wait for the first answer of a server."""
        return min(max(DEAD_AFTER, 1.5 * self._late.get(server, 0.0)), ALIVE_PATIENCE)

    def _note(self, table: dict[str, _T], server: str, value: _T) -> None:
        table.pop(server, None)
        table[server] = value
        if len(table) > self.ENTRIES_MAX:
            del table[next(iter(table))]


MEMORY: Final = ServerMemory()


@dataclass(slots=True)
class Inquiry:
    """The query to one server. Times are seconds of one :class:`Patience`."""

    server: IceServer
    patience: float
    """Seconds for the first answer."""
    begun: float
    answered: float | None = None
    """When the first useful answer came."""
    alive: bool = False
    ended: bool = False
    error: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def until(self) -> float:
        """Returns the time until which the answer is awaited."""
        if self.ended:
            return self.begun
        if self.answered is not None:
            return self.answered + max(STRAGGLERS, 2 * (self.answered - self.begun))
        return self.begun + (max(ALIVE_PATIENCE, self.patience) if self.alive else self.patience)
