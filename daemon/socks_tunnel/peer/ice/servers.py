"""What is known of STUN and TURN servers: how each inquiry goes, and what earlier ones told."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final, TypeVar

from socks_tunnel.peer.ice.settings import IceServer

_log = logging.getLogger(__name__)

DEAD_AFTER: Final = 0.5
"""Seconds that a server has to show life, if there are host candidates without it."""

ALIVE_PATIENCE: Final = 3.0
"""Seconds that a server has to finish once it has shown life: TLS through a proxy takes six round
trips."""

LONGEST: Final = 5.0
"""Seconds that servers have if nothing is there without them; after that a query is given up, and a
warning says so."""

STRAGGLERS: Final = 0.1
"""Seconds that further answers of a server may come later than its first, at least."""

_T = TypeVar("_T")


class ServerMemory:
    """What earlier links learned of each server: whether it answers, and how quickly.

    One for the process. It holds an entry for each server of the configuration, at most
    :data:`ENTRIES_MAX`.
    """

    ENTRIES_MAX: Final = 64

    def __init__(self) -> None:
        self._failures: dict[str, str] = {}
        self._late: dict[str, float] = {}

    def answered(self, server: str, seconds: float, *, in_time: bool = True) -> None:
        """Notes that a server has answered after so many seconds.

        The log says so if that ends a failure, or if its link was `in_time` no more.
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
        """Notes that a server gave nothing; the log says so once, until it answers again."""
        if self._failures.get(server) != why:
            _log.warning("%s: %s; links are made without it", server, why)
        self._note(self._failures, server, why)

    def patience(self, server: str) -> float:
        """Returns for how many seconds to wait for a sign of life of a server."""
        return min(max(DEAD_AFTER, 1.5 * self._late.get(server, 0.0)), ALIVE_PATIENCE)

    def _note(self, table: dict[str, _T], server: str, value: _T) -> None:
        table.pop(server, None)
        table[server] = value
        if len(table) > self.ENTRIES_MAX:
            del table[next(iter(table))]


MEMORY: Final = ServerMemory()


@dataclass(slots=True)
class Inquiry:
    """One server that is asked, and how that goes. Times are seconds of one :class:`Patience`."""

    server: IceServer
    patience: float
    """Seconds for a sign of life."""
    begun: float
    answered: float | None = None
    """When the first answer came that was of use."""
    alive: bool = False
    ended: bool = False
    error: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def until(self) -> float:
        """Returns the time until which it is waited for."""
        if self.ended:
            return self.begun
        if self.answered is not None:
            return self.answered + max(STRAGGLERS, 2 * (self.answered - self.begun))
        return self.begun + (max(ALIVE_PATIENCE, self.patience) if self.alive else self.patience)
