"""Knows which link carries which session, and which workers take part. No I/O and no clock.

A session is the flows between this host and one peer. A link attaches to a session and detaches
from it again. A newer link of the peer takes over (make before break). A session without a link
waits up to `resume_timeout` for the next one::

    attach ----> (workers answer with their rows) ----> our RESUME ---+
                                                                      +--> flows go on
                 the peer's RESUME ---> rows to the workers ----------+
    detach ----> waits ----> attach, or the end: its flows are reset

supervisor/routing.py has the way of messages to their workers.
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
"""Seconds on a new link in which the peer must send its RESUME, and the workers their rows."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session without a link: its flows, the seconds since its last link, and those left."""

    flows: int
    seconds: float
    left: float


class WorkerRoutes:
    """Passes one worker's messages to the sessions. Without a router it drops them."""

    __slots__ = ("_router", "from_worker", "index")

    def __init__(self, router: "Router | None" = None, index: int = 0) -> None:
        self._router = router
        self.index = index
        self.from_worker = WorkerMessages({} if router is None else router.sessions, index).take
        """Sends tunnel messages of the worker for the session with a number.

        Raises :class:`RemoteProtocolError`.
        """

    def met_bug(self, session: int) -> None:
        """Closes the link of a session, because a message of the worker about it was lost."""
        found = self._find(session)
        if found is not None:
            found[0].abuse(
                f"a message of worker {self.index} met a bug, which is in the log; "
                "the flows resume on the next link"
            )

    def attached(self, session: int, answer: Attached) -> None:
        """Takes the worker's answer to an attach."""
        found = self._find(session)
        if found is not None:
            found[0].attached(found[1], answer)

    def demanded(self, session: int, flows: int) -> None:
        """Takes the number of the worker's flows that have something to transmit."""
        found = self._find(session)
        if found is not None:
            found[0].demanded(found[1], flows)

    def dial_failed(self, session: int, message: DialFailed) -> None:
        """Takes the worker's report of a dial that did not reach its target."""
        found = self._find(session)
        if found is not None and self._router is not None:
            self._router.dial_failed(found[0].peer, message)

    def probed(self, message: Probed) -> None:
        """Takes the outcome of a probe."""
        if self._router is not None:
            self._router.prober.answered(message.number, message.reason)

    def dials_done(self, message: DialsDone) -> None:
        """Takes the worker's report of dials that reached their targets."""
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

    `opens` says whether the workers of this host open the flows (gateway) or its peers
    (endpoint). `on_abuse` is called once for a link that has to be closed, with a sentence that
    says why. `clock` returns monotonic seconds. `resume_timeout` is in seconds; with 0, a session
    ends with its link. `defer` makes a call in the next turn of the event loop.
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
        """Open flows of all sessions."""
        return sum(session.flows for session in self.sessions.values())

    @property
    def workers(self) -> int:
        """Workers that are ready."""
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
        """Returns the longest time in seconds that open flows wait for a link; None if none do."""
        for session in self.detached:
            if session.flows and session.detached_at is not None:
                return self.clock() - session.detached_at
        return None

    def waiting(self, now: float) -> dict[str, Waiting]:
        """Returns the sessions that wait for a link, by their peer. `now` is monotonic."""
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
        """Takes a worker out of all sessions; returns how many flows ended with it."""
        if self._workers.pop(index, None) is None:
            return 0
        return sum(session.worker_down(index) for session in self.sessions.values())

    # --- links --------------------------------------------------------------------------------

    def attach(self, port: LinkPort, peer: str, terms: LinkTerms) -> AttachedLink:
        """Lets a link that has come up carry the session that its HELLOs name.

        If the session had another link, that one carries nothing any more. It is in the result's
        `replaced`, and the caller has to close it. Other sessions of the peer end, because a host
        has only one.
        """
        link = self._session(peer, terms).attach(port, terms)
        self.metrics.sessions_detached.set(len(self.detached))
        return link

    def _session(self, peer: str, terms: LinkTerms) -> RoutedSession:
        for session in [s for s in self.sessions.values() if s.peer == peer]:
            if session.key == terms.session and (terms.resume or not session.flows):
                return session
            if session.key == terms.session:
                reason = "the peer does not support resuming"
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
            return 0  # a newer link has taken over
        flows = session.flows
        if link.terms.resume and self.resume_timeout and flows and not self.draining:
            session.detach()
            self.metrics.sessions_detached.set(len(self.detached))
            return 0
        self._end(session, reason)
        return flows

    def drain(self) -> None:
        """Takes no new flows. Sessions without a link end, because no new link will come."""
        self.draining = True
        for session in self.detached:
            self._end(session, "this host is shutting down and takes no new links")

    def forget_peer(self, peer: str, reason: str, key: bytes | None = None) -> None:
        """Ends the sessions of a peer, with or without a link; with `key`, only that session."""
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
        """Ends sessions and links whose time is over. Called once a second; `now` is monotonic."""
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
        """Goes on with sessions of the previous program, which have no link at the moment."""
        for session in sessions:
            self.sessions[session.number] = session
            self._last_number = max(self._last_number, session.number)
        self.metrics.sessions_detached.set(len(self.detached))

    # --- new flows ----------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """The number of the session that new flows of the first route go to; 0 if there is none."""
        preferred, others = (
            self.chooser.table.targets[0] if self.chooser.table.targets else ([], [])
        )
        return next(iter((*preferred, *others)), 0)

    def route(self, routes: Sequence[RouteSettings]) -> None:
        """Puts other routes into force. The workers have got the same routes before."""
        self.chooser.configure(routes)
        if self.opens:
            self.chooser.choose(self.sessions.values(), self.clock())
            self._tell_workers()

    def dial_failed(self, peer: str, message: DialFailed) -> None:
        """Notes that a dial through a peer did not reach its target."""
        self.chooser.dial_failed(message.route, peer, message.host, self.clock())
        self.choose_target()

    def _probed(self, route: str, peer: str, failure: str | None) -> None:
        self.chooser.probed(route, peer, failure, self.clock())
        self.choose_target()

    def choose_target(self) -> None:
        """Decides which sessions new flows go to, and tells the workers if that has changed.

        Called whenever a link, a session or the health of a peer has changed. Only on a gateway it
        does anything.
        """
        if self.opens and self.chooser.choose(self.sessions.values(), self.clock()):
            self._tell_workers()

    def _tell_workers(self) -> None:
        for worker in self._workers.values():
            worker.send_control(0, self.chooser.table)

    def _free_number(self) -> int:
        """Returns the next free number, 1 to 65535. The number of an ended session comes last."""
        for _ in range(0xFFFF):
            self._last_number = self._last_number % 0xFFFF + 1
            if self._last_number not in self.sessions:
                return self._last_number
        raise LocalProtocolError("all 65535 numbers of sessions are in use")
