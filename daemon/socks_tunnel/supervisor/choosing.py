"""Chooses the sessions for new flows of each route. No sockets; time comes in as `now`.

It makes the table of candidates, and each worker gets a copy (:class:`NewFlows`). A worker finds
the route of a destination, and takes the best candidate that can transmit::

    links (up, in doubt, GOAWAY, round trip) ---+
    workers (dials that failed or did not) -----+--> candidates of each route --> workers
    probes (supervisor/probing.py) -------------+

:mod:`socks_tunnel.protocol.failover` decides what speaks against a peer, and for how long.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from socks_tunnel.ops import audit
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.recent import without_destinations
from socks_tunnel.protocol.failover import Against, RouteHealth
from socks_tunnel.protocol.ipc import NewFlows
from socks_tunnel.protocol.settings import RouteSettings

_log = logging.getLogger(__name__)

NEARER: Final = 0.8
"""A peer replaces the nearest one if its round trip is less than this share of that one's."""

NEARER_SECONDS: Final = 0.002
"""Smaller differences of round trips are ignored."""

RTT_SHARE: Final = 0.25
"""The weight of a new round trip in the average of a peer, once a second."""

_PEERS_NAMED: Final = 3


class LinkView(Protocol):
    """A session's link, as far as the choice needs it."""

    accepts: bool
    doubted: bool

    @property
    def resumed(self) -> bool:
        """Whether its flows go on."""

    @property
    def rtt(self) -> float | None:
        """Last measured round trip in seconds."""


class SessionView(Protocol):
    """A session, as far as the choice needs it."""

    number: int
    peer: str
    rank: int

    @property
    def flows(self) -> int:
        """How many flows it has."""

    @property
    def link(self) -> LinkView | None:
        """Its link."""

    @property
    def transmits(self) -> bool:
        """Whether its link takes new flows."""


class _Choice:
    """The health of one route's peers, and the last decision about it."""

    def __init__(self, settings: RouteSettings) -> None:
        self.settings = settings
        self.health = RouteHealth(
            settings.peers,
            failures=settings.failures if len(settings.peers) > 1 else 0,
            recover_after=settings.recover_after,
            probed=settings.probe is not None,
        )
        self.preferred: tuple[str, ...] = ()
        self.against: dict[str, Against] = {}
        self.nearest = ""
        self.passed_over: set[str] = set()
        """Peers that were logged as passed over."""


class Chooser:
    """The candidates of all routes."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.table = NewFlows([], [])
        """The table that the workers have."""
        self._choices: list[_Choice] = []
        self._seen: set[str] = set()
        """Peers that have had a link. A peer that never had one is not logged as passed over."""
        self._rtt: dict[str, float] = {}
        self.reported: Callable[[], Mapping[str, int]] = dict
        """Returns the flows that peers have in all, for the peers that have reported them."""
        self._reported: Mapping[str, int] = {}
        self._own: dict[str, int] = {}
        """How many of these flows were from this host when the peers reported them."""
        self._workers = 1

    @property
    def settings(self) -> list[RouteSettings]:
        """The routes in force."""
        return [choice.settings for choice in self._choices]

    def configure(self, routes: Sequence[RouteSettings]) -> None:
        """Puts other routes into force. The health of unchanged routes is kept."""
        before = {choice.settings.name: choice for choice in self._choices}
        self._choices = []
        for settings in routes:
            known = before.pop(settings.name, None)
            same = known is not None and known.settings == settings
            self._choices.append(known if known is not None and same else _Choice(settings))
            if known is not None and not same:
                self._forget(known.settings)
        for gone in before.values():
            self._forget(gone.settings)
        self._seen &= {peer for settings in routes for peer in settings.peers}

    def _forget(self, settings: RouteSettings) -> None:
        for peer in settings.peers:
            self.metrics.route_peer_preferred.labels(settings.name, peer).set(0)

    def tick(self, sessions: Iterable[SessionView], workers: int = 1) -> None:
        """Takes round trips and loads. Called once a second; `workers` is their number."""
        reported = self.reported()
        if reported != self._reported:
            self._reported = reported
            self._own = {session.peer: session.flows for session in sessions}
        self._workers = max(1, workers)
        averages: dict[str, float] = {}
        for session in sessions:
            rtt = None if session.link is None else session.link.rtt
            if rtt is not None:
                average = self._rtt.get(session.peer, rtt)
                averages[session.peer] = average + RTT_SHARE * (rtt - average)
        self._rtt = averages

    # --- what workers and probes tell -----------------------------------------------------------

    def dial_failed(self, route: str, peer: str, host: str, now: float) -> None:
        """Notes that a dial through a peer did not reach its target."""
        for choice in self._choices:
            if choice.settings.name == route:
                choice.health.dial_failed(peer, host, now)

    def dial_succeeded(self, route: str, peer: str) -> None:
        """Notes that a dial through a peer has reached its target."""
        for choice in self._choices:
            if choice.settings.name == route:
                choice.health.dial_succeeded(peer)

    def probed(self, route: str, peer: str, failure: str | None, now: float) -> None:
        """Notes the outcome of a probe. `failure` is None if it has reached its target."""
        for choice in self._choices:
            if choice.settings.name == route:
                if failure is None:
                    choice.health.probe_succeeded(peer, now)
                else:
                    choice.health.probe_failed(peer, failure, now)

    # --- the decision -------------------------------------------------------------------------

    def choose(self, sessions: Iterable[SessionView], now: float) -> bool:
        """Makes the table of candidates anew; returns whether it has changed."""
        by_peer = {session.peer: session for session in sessions}
        targets = [self._of_route(choice, by_peer, now) for choice in self._choices]
        beside = [
            [[by_peer[peer].number, flows] for peer, flows in self._beside(choice).items()]
            for choice in self._choices
        ]
        table = NewFlows(targets, beside)
        if table == self.table:
            return False
        self.table = table
        return True

    def _beside(self, choice: _Choice) -> dict[str, float]:
        """Returns what a worker adds to its own number of flows of each peer, for `least-loaded`.

        The sum stands for the worker's share of the load that the peers have reported, and for the
        flows that it has opened since then. So each worker of each gateway evens out its share of a
        difference between peers, and all together the whole. If each of them evened out the whole
        difference, the peer that had less would have too much next.
        """
        peers = [peer for peer in choice.preferred if peer not in choice.against]
        told = self._reported
        if choice.settings.policy != "least-loaded" or not told.keys() >= set(peers):
            return {}
        own = {peer: self._own.get(peer, 0) for peer in peers}
        share = max(1, sum(own.values())) / max(1, sum(told[peer] for peer in peers))
        return {p: round((share * told[p] - own[p]) / self._workers, 3) for p in peers}

    def _of_route(
        self, choice: _Choice, by_peer: dict[str, SessionView], now: float
    ) -> list[list[int]]:
        named = bool(choice.settings.peers)
        if named:
            peers = list(choice.settings.peers)
        else:  # all peers, in the order of the configuration
            peers = sorted(by_peer, key=lambda peer: (by_peer[peer].rank, -by_peer[peer].number))
        preferred: list[str] = []
        others: list[tuple[int, str]] = []
        against: dict[str, Against] = {}
        for peer in peers:
            session = by_peer.get(peer)
            trouble = self._trouble(session)
            if named and trouble is None and session is not None:
                self._seen.add(peer)
            found = self._judge(choice, peer, trouble, now) if named else trouble
            if found is not None:
                against[peer] = found
            if session is None or not session.transmits:
                continue
            if found is None:
                preferred.append(peer)
            else:
                others.append((2 if trouble else found.cause != "link", peer))
        if choice.settings.policy == "nearest":
            preferred = self._by_distance(choice, preferred)
        others.sort(key=lambda entry: entry[0])
        rest = [peer for _, peer in others]
        self._tell(choice, preferred, rest, against)
        return [[by_peer[peer].number for peer in part] for part in (preferred, rest)]

    def _judge(
        self, choice: _Choice, peer: str, trouble: Against | None, now: float
    ) -> Against | None:
        """Returns what speaks against a peer of a route; `trouble` is a problem of its link."""
        health = choice.health
        if trouble is None:
            health.link_well(peer, now)
        elif peer in self._seen and trouble.cause == "link":
            health.link_lost(peer, now, trouble.sentence)
        return trouble or health.against(peer, now)

    @staticmethod
    def _trouble(session: SessionView | None) -> Against | None:
        """Returns what is wrong with the link of a peer at this moment."""
        link = None if session is None else session.link
        if link is None:
            return Against("link", "its link is down", None)
        if not link.accepts:
            return Against("link", "it takes no new flows", None)
        if not link.resumed:
            return Against("resume", "its flows are being resumed", None)
        if link.doubted:
            return Against("link", "its link is in doubt", None)
        return None

    def _by_distance(self, choice: _Choice, peers: list[str]) -> list[str]:
        """Returns the peers, the nearest first. Only a clearly nearer one takes the first place."""
        far = float("inf")
        ordered = sorted(peers, key=lambda peer: self._rtt.get(peer, far))
        current = choice.nearest
        if current in peers:
            best = ordered[0]
            mine, its = self._rtt.get(current, far), self._rtt.get(best, far)
            if not (its < NEARER * mine and mine - its > NEARER_SECONDS):
                ordered.remove(current)
                ordered.insert(0, current)
        choice.nearest = ordered[0] if ordered else ""
        return ordered

    # --- what is told -------------------------------------------------------------------------

    def _tell(
        self, choice: _Choice, preferred: list[str], rest: list[str], against: dict[str, Against]
    ) -> None:
        """Logs, counts and audits that a peer is passed over, or is not any more."""
        route = choice.settings.name
        before = choice.preferred
        resuming = [p for p in before if p in against and against[p].cause == "resume"]
        choice.preferred = (*preferred, *resuming)
        choice.against = against
        for peer in choice.settings.peers:
            good = self.metrics.route_peer_preferred.labels(route, peer)
            good.set(1 if peer in preferred else 0)
        for peer in before:
            found = against.get(peer)
            if found is None or peer in resuming:
                continue
            instead = next((other for other in (*preferred, *rest) if other != peer), None)
            if instead is None:
                continue  # no peer takes over, and the loss of the link is logged elsewhere
            choice.passed_over.add(peer)
            self.metrics.failovers_total.labels(found.cause).inc()
            _log.warning(
                "route %s: %s is passed over: %s; new flows go to %s, and the flows that %s has "
                "stay there",
                route,
                peer,
                found.sentence,
                ", ".join((preferred or rest)[:_PEERS_NAMED]),
                peer,
                extra=without_destinations(f"route {route}: {peer} is passed over ({found.cause})"),
            )
            audit.failover(route=route, peer=peer, instead=instead, cause=found.cause)
        for peer in choice.passed_over.intersection(preferred):
            choice.passed_over.discard(peer)
            _log.info("route %s: %s takes new flows again", route, peer)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each peer of each route, for `status`."""
        return [
            {
                "route": choice.settings.name,
                "peer": peer,
                "policy": choice.settings.policy,
                "state": "preferred" if peer in choice.preferred else "passed over",
                "cause": found.cause if (found := choice.against.get(peer)) else None,
                "why": None if found is None else found.sentence,
                "flows": self._reported.get(peer),
                "seconds_left": None
                if found is None or found.left is None
                else round(found.left, 1),
            }
            for choice in self._choices
            for peer in choice.settings.peers
        ]
