"""Which worker owns which flow, and which link carries which session. No I/O and no clock.

Sessions. A session is the flows between this host and one peer. A link attaches to it and leaves it
again; a newer link of the peer takes over (make before break). While it has no link, a session
waits up to `resume_timeout` for the next one::

    attach ----> (workers answer with their rows) ----> our RESUME ---+
                                                                      +--> flows go on
                 the peer's RESUME ---> rows to the workers ----------+
    detach ----> waits ----> attach, or the end: its flows are reset

How messages find their worker: supervisor/routing.py.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.ipc import Attached, DialFailed, DialsDone, Probed
from socks_tunnel.protocol.routes import DEFAULT
from socks_tunnel.protocol.settings import RouteSettings
from socks_tunnel.supervisor.choosing import Chooser
from socks_tunnel.supervisor.ports import LinkPort, LinkTerms, WorkerPort
from socks_tunnel.supervisor.probing import Prober
from socks_tunnel.supervisor.routing import AttachedLink, RoutedSession, WorkerEntry
from socks_tunnel.supervisor.turns import Turns
from socks_tunnel.supervisor.worker_messages import WorkerMessages

_log = logging.getLogger(__name__)

RESUME_SECONDS: Final = 15.0
"""Seconds that the peer has to send its RESUME, and the workers their rows, on a new link."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session without a link: how many flows, for how many seconds, and how many are left."""

    flows: int
    seconds: float
    left: float


class WorkerRoutes:
    """The way of one worker's messages to the sessions."""

    __slots__ = ("_router", "from_worker", "index")

    def __init__(self, router: "Router | None" = None, index: int = 0) -> None:
        self._router = router
        self.index = index
        self.from_worker = WorkerMessages({} if router is None else router.sessions, index).take
        """Sends tunnel messages of the worker, of the session with this number."""

    def met_bug(self, session: int) -> None:
        """Closes the link of a session: something that the worker said of it was lost."""
        found = self._find(session)
        if found is not None:
            found[0].abuse(f"a bug in what worker {self.index} said; the log has it")

    def attached(self, session: int, answer: Attached) -> None:
        """Takes the worker's answer to an attach."""
        found = self._find(session)
        if found is not None:
            found[0].attached(found[1], answer)

    def demanded(self, session: int, flows: int) -> None:
        """Takes how many flows of the worker have something to transmit."""
        found = self._find(session)
        if found is not None:
            found[0].demanded(found[1], flows)

    def dial_failed(self, session: int, message: DialFailed) -> None:
        """Takes what the worker says of a dial that did not reach its target."""
        found = self._find(session)
        if found is not None and self._router is not None:
            self._router.dial_failed(found[0].peer, message)

    def probed(self, message: Probed) -> None:
        """Takes how a probe ended."""
        if self._router is not None:
            self._router.prober.answered(message.number, message.reason)

    def dials_done(self, message: DialsDone) -> None:
        """Takes what the worker says of dials that reached their targets."""
        for route, number in message.rows:
            found = self._find(number)
            if found is not None and self._router is not None:
                self._router.chooser.dial_succeeded(route, found[0].peer)

    def _find(self, number: int) -> tuple[RoutedSession, WorkerEntry] | None:
        if self._router is None:
            return None
        session = self._router.sessions.get(number)
        worker = None if session is None else session.workers.get(self.index)
        return None if session is None or worker is None else (session, worker)


class Router:
    """All sessions and all workers that are up.

    `opens` says whether our workers open the flows (gateway) or the peers do (endpoint).
    `on_abuse` is called once for a link that has to be closed, with a sentence that says why.
    `clock` returns monotonic seconds. `resume_timeout` is in seconds; 0 ends a session with its
    link. `defer` makes a call in the next turn of the event loop.
    """

    def __init__(
        self,
        *,
        opens: bool,
        worker_count: int,
        flows_per_worker: int,
        metrics: Metrics,
        on_abuse: Callable[[AttachedLink, str], None],
        clock: Callable[[], float],
        resume_timeout: float = 0.0,
        defer: Callable[[Callable[[], None]], object] = lambda call: call(),
    ) -> None:
        self.opens = opens
        self.worker_count = worker_count
        self.flows_per_session = flows_per_worker * worker_count
        self.metrics = metrics
        self.on_abuse = on_abuse
        self.clock = clock
        self.resume_timeout = resume_timeout
        self.draining = False
        self.turns = Turns(defer)
        self.sessions: dict[int, RoutedSession] = {}
        self.prober = Prober(self._probed)
        self.chooser = Chooser(metrics)
        self.chooser.configure([RouteSettings(DEFAULT)])
        self.chooser.choose((), 0.0)
        self._workers: dict[int, WorkerPort] = {}
        self._last_number = 0

    @property
    def flows(self) -> int:
        """How many flows are open over all sessions."""
        return sum(session.flows for session in self.sessions.values())

    @property
    def workers(self) -> int:
        """How many workers take flows."""
        return len(self._workers)

    @property
    def links(self) -> list[AttachedLink]:
        """The links that carry a session."""
        return [s.link for s in self.sessions.values() if s.link is not None]

    @property
    def detached(self) -> list[RoutedSession]:
        """The sessions that wait for a link, the one that has waited longest first."""
        waiting = [s for s in self.sessions.values() if s.detached_at is not None]
        return sorted(waiting, key=lambda session: session.detached_at or 0.0)

    def longest_wait(self) -> float | None:
        """Returns for how many seconds open flows have waited for a link; None if none do."""
        for session in self.detached:
            if session.flows and session.detached_at is not None:
                return self.clock() - session.detached_at
        return None

    def waiting(self, now: float) -> dict[str, Waiting]:
        """Returns what waits for a link, by the peer that it is with. `now` is monotonic."""
        return {
            session.peer: Waiting(
                flows=session.flows,
                seconds=(seconds := now - session.detached_at),
                left=max(0.0, self.resume_timeout - seconds),
            )
            for session in self.sessions.values()
            if session.detached_at is not None
        }

    # --- workers ------------------------------------------------------------------------------

    def worker_up(self, index: int, worker: WorkerPort) -> WorkerRoutes:
        """Lets a worker that is ready take part in all sessions."""
        self._workers[index] = worker
        for session in self.sessions.values():
            session.worker_up(index, worker)
        if self.opens:
            worker.send_control(0, self.chooser.table)
        return WorkerRoutes(self, index)

    def worker_down(self, index: int) -> int:
        """Takes a worker out of all sessions; returns how many flows were closed with it."""
        if self._workers.pop(index, None) is None:
            return 0
        return sum(session.worker_down(index) for session in self.sessions.values())

    # --- links --------------------------------------------------------------------------------

    def attach(self, port: LinkPort, peer: str, terms: LinkTerms) -> AttachedLink:
        """Lets a link that has come up carry the session that its HELLOs name.

        If the session had another link, that one carries nothing any more and is in the result's
        `replaced`: it is to be closed. Other sessions of the peer end, for a host has one.
        """
        link = self._session(peer, terms).attach(port, terms)
        self.metrics.sessions_detached.set(len(self.detached))
        return link

    def _session(self, peer: str, terms: LinkTerms) -> RoutedSession:
        for session in [s for s in self.sessions.values() if s.peer == peer]:
            if session.key == terms.session and (terms.resume or not session.flows):
                return session
            if session.key == terms.session:
                reason = "the peer takes no part in resuming"
            else:
                reason = "the peer has begun another session"
            self._end(session, reason)
        session = RoutedSession(self, self._free_number(), peer, terms.session)
        self.sessions[session.number] = session
        for index, worker in self._workers.items():
            session.worker_up(index, worker)
        return session

    def detach(self, link: AttachedLink, reason: str) -> int:
        """Takes out a link that has ended; returns how many flows ended with it.

        Its session stays if it can be resumed.
        """
        session = link.session
        if session.link is not link:
            return 0  # a newer link has taken over before
        flows = session.flows
        if link.terms.resume and self.resume_timeout and flows and not self.draining:
            session.detach()
            self.metrics.sessions_detached.set(len(self.detached))
            return 0
        self._end(session, reason)
        return flows

    def drain(self) -> None:
        """Takes no new flows. Sessions without a link end: no link will come for them any more."""
        self.draining = True
        for session in self.detached:
            self._end(session, "this host takes no new links, as it is shutting down")

    def forget_peer(self, peer: str, reason: str, key: bytes | None = None) -> None:
        """Ends the sessions of a peer, with a link or without; with `key`, only that one."""
        for session in [s for s in self.sessions.values() if s.peer == peer]:
            if key is None or session.key == key:
                self._end(session, reason)

    def _end(self, session: RoutedSession, reason: str) -> None:
        if self.sessions.pop(session.number, None) is None:
            return
        if session.detached_at is not None and session.flows:
            self.metrics.resumes_total.labels("given-up").inc()
            _log.warning(
                "session with %s is over: %s; %d flows ended, %.0f s after its link was lost",
                session.peer,
                reason,
                session.flows,
                self.clock() - session.detached_at,
            )
        session.end(reason)
        self.metrics.sessions_detached.set(len(self.detached))
        self.choose_target()

    def tick(self, now: float) -> None:
        """Looks at the times of all sessions; called once a second. `now` is monotonic."""
        if self.opens:
            self.chooser.tick(self.sessions.values(), self.worker_count)
            able = {s.peer: n for n, s in self.sessions.items() if s.transmits}
            self.prober.tick(self.chooser.settings, able, self._workers, now)
            self.choose_target()
        for session in list(self.sessions.values()):
            link = session.link
            if session.detached_at is not None:
                if now - session.detached_at > self.resume_timeout:
                    self._end(session, f"no link came back within {self.resume_timeout:g} s")
            elif link is not None and not link.resumed and now - link.since > RESUME_SECONDS:
                session.abuse(f"no complete RESUME came within {RESUME_SECONDS:g} s")

    def restore(self, sessions: Iterable[RoutedSession]) -> None:
        """Goes on with sessions of the program before us, which have no link at the moment."""
        for session in sessions:
            self.sessions[session.number] = session
            self._last_number = max(self._last_number, session.number)
        self.metrics.sessions_detached.set(len(self.detached))

    # --- new flows ----------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """The session that new flows of the first route go to; 0: none."""
        preferred, others = (
            self.chooser.table.targets[0] if self.chooser.table.targets else ([], [])
        )
        return next(iter((*preferred, *others)), 0)

    def route(self, routes: Sequence[RouteSettings]) -> None:
        """Puts other routes in force. The workers have been sent the same ones before."""
        self.chooser.configure(routes)
        if self.opens:
            self.chooser.choose(self.sessions.values(), self.clock())
            self._tell_workers()

    def dial_failed(self, peer: str, message: DialFailed) -> None:
        """A dial through a peer did not reach its target: the peer may be passed over."""
        self.chooser.dial_failed(message.route, peer, message.host, self.clock())
        self.choose_target()

    def _probed(self, route: str, peer: str, failure: str | None) -> None:
        self.chooser.probed(route, peer, failure, self.clock())
        self.choose_target()

    def choose_target(self) -> None:
        """Decides which sessions new flows of ours go to, and tells the workers if it changed.

        Called whenever a link, a session or what is known of a peer has changed.
        """
        if self.opens and self.chooser.choose(self.sessions.values(), self.clock()):
            self._tell_workers()

    def _tell_workers(self) -> None:
        for worker in self._workers.values():
            worker.send_control(0, self.chooser.table)

    def _free_number(self) -> int:
        """Returns the next number that is free, 1 to 65535: one that ended is not taken soon."""
        for _ in range(0xFFFF):
            self._last_number = self._last_number % 0xFFFF + 1
            if self._last_number not in self.sessions:
                return self._last_number
        raise LocalProtocolError("65535 sessions are open")
