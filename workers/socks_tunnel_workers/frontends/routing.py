"""Chooses the session of a new flow in one worker of a gateway.

The supervisor decides which peers of a route may be used (:class:`NewFlows`). The worker finds the
route of a destination, and takes the best of its peers that can transmit. Only the worker knows
which dials did not reach their targets, so it tells the supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from socks_tunnel.ops import audit
from socks_tunnel.protocol.failover import UNREACHED
from socks_tunnel.protocol.ipc import Control, DialFailed, DialsDone
from socks_tunnel.protocol.routes import Candidates, Match, pick
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.services import Counters, Notices, Settings


class Closable(Protocol):
    """A client's connection that is no flow."""

    def close(self) -> None:
        """Closes it without an answer."""


class Unanswered(Protocol):
    """A request that an endpoint has not answered yet."""

    @property
    def asker(self) -> Closable:
        """The connection of the client whose request it is."""

    def reconsider(self) -> None:
        """Asks another endpoint, if that is better now."""


class Routing:
    """The worker's copy of the supervisor's table of candidates.

    `tell` sends the supervisor a control message about a session (0: about none).
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Mapping[int, WorkerSession],
        counters: Counters,
        notices: Notices,
        tell: Callable[[int, Control], None],
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._counters = counters
        self._notices = notices
        self._tell = tell
        self._candidates: list[Candidates] = []
        self._beside: list[dict[int, float]] = []
        self.unanswered: dict[Unanswered, None] = {}
        """Requests for which another endpoint may still be asked."""
        self._blamed: set[tuple[str, int]] = set()
        self._reached: set[tuple[str, int]] = set()

    # --- what the supervisor says -------------------------------------------------------------

    def set_targets(self, targets: list[list[list[int]]], beside: list[list[list[float]]]) -> None:
        """Takes the table of candidates.

        `targets` has for each route the numbers of the preferred sessions and of the others.
        `beside` has for each route pairs of a session and the flows that are added to its count.
        """
        self._beside = [{int(number): flows for number, flows in rows} for rows in beside]
        self._candidates = [
            Candidates(tuple(preferred), tuple(others)) for preferred, others in targets
        ]

    def reset(self) -> None:
        """Forgets the table, because other routes are in force. Their table is still to come."""
        self._candidates = []
        self._beside = []

    # --- which session ------------------------------------------------------------------------

    @property
    def implicit(self) -> bool:
        """Whether no route is configured, so that all destinations have the same peers."""
        return self._settings.routes.implicit

    def match(self, host: str, port: int | None) -> Match | None:
        """Returns the route of a destination, or None if there is none."""
        return self._settings.routes.match(host, port)

    def choose(self, route: int, avoid: Collection[int] = ()) -> WorkerSession | None:
        """Returns the session for a new flow of a route, or None if none can transmit.

        `avoid` has the numbers of sessions that are not taken.
        """
        if route >= len(self._candidates):
            return None

        candidates = self._candidates[route]
        if len(candidates.preferred) == 1:  # every policy would choose it
            session = self._sessions.get(candidates.preferred[0])
            if session is not None and self._open(session, avoid):
                return session

        def usable(number: int) -> WorkerSession | None:
            session = self._sessions.get(number)
            return session if session is not None and self._open(session, avoid) else None

        policy = self._settings.routes.routes[route].policy
        beside = self._beside[route] if self._beside else {}
        return pick(policy, candidates, usable, lambda s: len(s.flows) + beside.get(s.number, 0.0))

    @staticmethod
    def _open(session: WorkerSession, avoid: Collection[int]) -> bool:
        return session.open_to_send and session.number not in avoid

    @property
    def some(self) -> bool:
        """Whether any route has a session that can transmit."""
        return any(self.choose(route) is not None for route in range(len(self._candidates)))

    def better(self, route: int, session: WorkerSession) -> WorkerSession | None:
        """Returns a preferred session that should take the place of `session`.

        None if `session` is preferred itself and can transmit, or if there is no other.
        """
        if route >= len(self._candidates):
            return None
        preferred = self._candidates[route].preferred
        if session.number in preferred and session.open_to_send:
            return None
        other = self.choose(route, (session.number,))
        return other if other is not None and other.number in preferred else None

    def another(self, route: int, tried: Collection[int]) -> WorkerSession | None:
        """Returns a preferred session that is not in `tried`, or None."""
        session = self.choose(route, tried)
        if session is None or session.number not in self._candidates[route].preferred:
            return None
        return session

    def several(self, route: int) -> bool:
        """Returns whether the route names several peers, so that another one can be tried."""
        routes = self._settings.routes.routes
        return route < len(routes) and len(routes[route].peers) > 1

    # --- what is told -------------------------------------------------------------------------

    def count(self, route: int, session: WorkerSession) -> None:
        """Counts a new flow of a route."""
        name = self._settings.routes.routes[route].name
        self._counters.count("route_flows_total", name, session.peer)

    def failed(self, route: int, session: WorkerSession, host: str, reason: int) -> bool:
        """Tells the supervisor of a dial that failed, if the peer may be the cause.

        Returns whether it may be.
        """
        if reason not in UNREACHED or not self.several(route):
            return False
        name = self._settings.routes.routes[route].name
        self._blamed.add((name, session.number))
        self._tell(session.number, DialFailed(name, host, reason))
        return True

    def opened(self, route: int, session: WorkerSession) -> None:
        """Notes that a dial has reached its target.

        If the peer was blamed for an earlier dial, the supervisor is told at once.
        """
        if not self.several(route):
            return
        key = self._settings.routes.routes[route].name, session.number
        self._reached.add(key)
        if key in self._blamed:
            self._blamed.discard(key)
            self.flush()

    def flush(self) -> None:
        """Tells the supervisor which peers reached targets since the last call."""
        if self._reached:
            self._tell(0, DialsDone([list(key) for key in sorted(self._reached)]))
            self._reached.clear()

    def forget(self, session: WorkerSession) -> None:
        """Forgets a session that is over."""
        self._blamed = {key for key in self._blamed if key[1] != session.number}
        self._reached = {key for key in self._reached if key[1] != session.number}

    def report_unrouted(self, destination: str, client: str, command: str) -> None:
        """Counts, logs and audits a request whose destination is in no route."""
        self._counters.count("unrouted_total", command)
        self._notices.warn(
            "no-route", "no route leads to %s (asked by %s): refusing it", destination, client
        )
        audit.unrouted(command=command, destination=destination)
