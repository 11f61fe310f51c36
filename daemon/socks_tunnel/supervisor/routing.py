"""The flows with one peer, as a supervisor routes them. No I/O and no clock.

This file is long because link, workers and table of a session change together.

A flow belongs to the worker that opened it (gateway), or to the worker that got its opening message
(endpoint). Its entry exists from the opening message until the first CLOSE in either direction. One
look-up by CONN_ID routes a message. Payload is never looked at::

    link --messages--> owners[CONN_ID] --> that worker's channel        (down)
    worker --messages--> the session's link                            (up)

On the endpoint the worker is mix32(CONN_ID ^ mix32(SESSION)) modulo the number of workers, or the
next one that is up. When a worker dies, its flows are closed at the peer at once (0x13,
WORKER_LOST), and no others.

Messages that a worker sends between the loss of one link and its answer to the next attach were
meant for the old link. They are dropped here, because the rows of the answer tell the peer what it
needs. The same holds for messages from a link that a newer one has replaced. Datagrams are not
repeated, so dropped ones are counted.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, Self

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.flow import ROW_CLOSED, ROW_OPEN
from socks_tunnel.protocol.ipc import (
    Attach,
    Attached,
    Credit,
    Detach,
    PeerRows,
    SessionEnded,
    SessionOpened,
)
from socks_tunnel.protocol.messages import (
    FLOW_ENDERS,
    FLOW_OPENERS,
    HEADER,
    LINK_TYPES,
    RESUME_ROWS_MAX,
    CloseConnection,
    MessageType,
    Resume,
    UdpAssociateClosed,
    mix32,
)
from socks_tunnel.protocol.session import CLOSED_REMEMBERED_MAX, ending
from socks_tunnel.supervisor.credit import LinkCredit, Share
from socks_tunnel.supervisor.ports import LinkPort, LinkTerms, WorkerPort
from socks_tunnel.supervisor.round_trip import ShortestRoundTrip
from socks_tunnel.supervisor.turns import Turns

_log = logging.getLogger(__name__)

DATAGRAM_BACKLOG_MAX: Final = 1_048_576
"""Bytes of UDP_PACKETs that may wait for a worker to read. Further datagrams are dropped. Other
messages do not count, because datagrams overtake them."""

WORKER_BACKLOG_MAX: Final = 64 * 1_048_576
"""Bytes that may wait for a worker to read. A peer that respects its windows never reaches this. A
link whose messages exceed it is closed."""

LINK_BACKLOG_MAX: Final = 16 * 1_048_576
"""Bytes of one worker that may wait in one link. Credit limits payload, but not the answers that a
peer provokes. A link is closed if its peer provokes so many and does not read."""

PEER_ROWS_SPARE: Final = CLOSED_REMEMBERED_MAX
"""Rows of RESUME for closed flows that a peer may send on one link. In addition, it may send two
rows for each flow that it may have open here: one for an open flow, and one for an opening that is
not refused yet."""

ANSWERS_MAX: Final = 65_536
"""Bytes that may wait in a link while the supervisor still answers unknown flows (CLOSE 0x16)."""

_unpack_header = HEADER.unpack_from
_HEADER_SIZE: Final = HEADER.size

_UDP_ASSOCIATE: Final = int(MessageType.UDP_ASSOCIATE)
_UDP_PACKET: Final = int(MessageType.UDP_PACKET)
_TRACKED: Final = FLOW_OPENERS | FLOW_ENDERS
_STREAM: Final = frozenset({int(MessageType.DATA), int(MessageType.SEND_EOF)})
_MAY_COME_LATE: Final = FLOW_ENDERS | {int(MessageType.WINDOW_UPDATE)}
_KNOWN: Final = frozenset(int(kind) for kind in MessageType)


class RoutingOwner(Protocol):
    """The owner of all sessions: :class:`socks_tunnel.supervisor.router.Router`."""

    opens: bool
    """Whether the workers of this host open the flows (gateway) or the peer does (endpoint)."""
    worker_count: int
    flows_per_session: int
    metrics: Metrics
    draining: bool
    turns: Turns
    on_abuse: Callable[["AttachedLink", str], None]
    clock: Callable[[], float]
    """Returns monotonic seconds."""

    def choose_target(self) -> None:
        """Decides anew which session new flows go to."""


class AttachedLink:
    """A link that is up and carries a session."""

    def __init__(self, session: "RoutedSession", port: LinkPort, terms: LinkTerms) -> None:
        self.session = session
        self.port = port
        self.terms = terms
        self.credit = LinkCredit()
        self.round_trip = ShortestRoundTrip()
        self.weight = terms.weight
        self.finish = 0.0
        self.waiting = False
        self.accepts = True
        """False once the peer has asked for no new flows (GOAWAY)."""
        self.replaced: AttachedLink | None = None
        """The older link whose session this one has taken over. It has to be closed."""
        self.reported: set[str] = set()
        self.abusive = False
        self.doubted = False
        """Whether its peer may be gone, so that new flows go to another peer if there is one."""
        self.clock = session.router.clock
        self.since = self.clock()
        self.awaiting: set[int] = set()
        """Indices of the workers whose rows for our RESUME have not come yet."""
        self.flows_before = session.flows
        lost_at = session.detached_at
        self.gap = None if lost_at is None else self.since - lost_at
        """Seconds between the loss of the last link and this one; None if it was replaced."""
        self.rows_sent = False
        """Whether our RESUME was sent, or none is needed."""
        self.peer_done = not terms.resume or not self.flows_before
        """Whether the peer's RESUME is complete, or no flow depends on it."""
        self.resume_ended = not terms.resume
        """Whether the peer has sent the last of its RESUME, or must not send one."""
        self.peer_rows = 0
        """Rows of RESUME that have come."""

    @property
    def flows(self) -> int:
        """Flows that it carries: none once a newer link has taken over."""
        return self.session.flows if self.session.link is self else 0

    @property
    def resumed(self) -> bool:
        """Whether both RESUMEs are complete, so that flows go on."""
        return self.peer_done and not self.awaiting

    def messages(self, messages: list[bytes]) -> None:
        """Routes messages of the peer, each of which has a whole header."""
        if self.session.link is self:
            self.session.from_peer(messages)
        else:  # a newer link has taken over, and its RESUME has covered these messages
            self.session.count_lost(messages)

    def drained(self, count: int) -> None:
        """Gives credit back for `count` bytes that left the link's queues."""
        now = self.clock()
        self.credit.drained(count, now)
        if self.session.link is self and self.credit.due(now):
            self.session.router.turns.want(self)

    def serve(self, most: int) -> int:
        """Gives the workers up to `most` bytes of credit; returns how many."""
        return self.session.give_credit(most) if self.session.link is self else 0

    def resume(self, resume: Resume) -> None:
        """Takes a RESUME of the peer."""
        if self.session.link is self:
            self.session.from_peer_resume(self, resume)

    @property
    def rtt(self) -> float | None:
        """Last measured round trip in seconds."""
        return self.port.rtt

    def goaway(self) -> None:
        """Notes that the peer takes no new flows on this link."""
        self.accepts = False
        self.session.router.choose_target()

    def doubt(self, *, to: bool) -> None:
        """Notes whether the peer may be gone."""
        self.doubted = to
        self.session.router.choose_target()


class WorkerEntry:
    """One worker in one session: its channel, its share of the link, and its state."""

    __slots__ = ("before", "index", "port", "ready", "round_trip", "rows", "share")

    def __init__(self, index: int, port: WorkerPort) -> None:
        self.index = index
        self.port = port
        self.share = Share()
        self.round_trip = 0
        """The round trip of the present link in microseconds as last told to it; 0 for none."""
        self.ready = False
        """Whether it has answered the attach of the present link."""
        self.before: set[int] = set()
        """The flows that its answer to the attach covers: those that it had at the attach, and
        those that it opened before it answered. A flow that the peer has opened since the attach is
        not in the answer, but exists."""
        self.rows: list[tuple[int, int, int, int]] = []
        """Its rows for our RESUME so far."""


class RoutedSession:
    """The flows with one peer, as the supervisor sees them.

    `number` is the SESSION of IPC frames, and `key` the name of the session in HELLO (16 bytes).

    This class has many methods because peer, workers and links each have several messages.
    """

    def __init__(self, router: RoutingOwner, number: int, peer: str, key: bytes) -> None:
        self.router = router
        self.number = number
        self.peer = peer
        self.key = key
        self.link: AttachedLink | None = None
        self.detached_at: float | None = None
        """Monotonic time at which the last link was lost; None while there is one."""
        self.rank = 0
        self.workers: dict[int, WorkerEntry] = {}
        self._owners: dict[int, WorkerEntry] = {}
        self._associations: set[int] = set()
        self._left: dict[int, list[int]] = {}
        """Flows that the previous program has left, by the index of their worker."""

    @property
    def flows(self) -> int:
        """Open flows."""
        left = sum(map(len, self._left.values())) if self._left else 0
        return len(self._owners) + left

    @property
    def transmits(self) -> bool:
        """Whether its link takes new flows."""
        link = self.link
        return link is not None and link.accepts and link.resumed

    @property
    def associations(self) -> int:
        """Open flows that are UDP associations."""
        return len(self._associations)

    # --- messages of the peer -----------------------------------------------------------------

    def from_peer(self, messages: list[bytes]) -> None:
        """Routes messages of the peer, in one batch for each worker."""
        owners = self._owners
        batches: dict[WorkerEntry, list[bytes]] = {}
        for message in messages:
            kind, _, conn_id = _unpack_header(message)
            worker = owners.get(conn_id)
            if worker is None:
                worker = self._unowned(kind, conn_id)
                if worker is None:
                    continue
            elif kind in FLOW_ENDERS:
                del owners[conn_id]
                self._associations.discard(conn_id)
            batch = batches.get(worker)
            if batch is None:
                batches[worker] = [message]
            else:
                batch.append(message)
        for worker, batch in batches.items():
            self._to_worker(worker.port, batch)

    def _to_worker(self, port: WorkerPort, batch: list[bytes]) -> None:
        if port.paused:
            if port.buffered > WORKER_BACKLOG_MAX:
                self.abuse(
                    f"{port.buffered} bytes wait for one worker: the peer ignores its windows"
                )
                return
            datagrams = [message for message in batch if message[0] == _UDP_PACKET]
            if datagrams:
                batch = [message for message in batch if message[0] != _UDP_PACKET]
                if port.urgent > DATAGRAM_BACKLOG_MAX:
                    dropped = self.router.metrics.udp_dropped_total.labels("worker-busy")
                    dropped.inc(len(datagrams))
                else:
                    port.send_urgent(self.number, datagrams)
        if batch:
            port.send_messages(self.number, batch)

    def _unowned(self, kind: int, conn_id: int) -> WorkerEntry | None:
        """Takes a new flow in, or handles a message for an unknown flow.

        Returns the worker that gets the message, or None.
        """
        metrics = self.router.metrics
        if kind in FLOW_OPENERS:
            if conn_id == 0:
                self._protocol_error("zero-conn-id", "opened a flow with CONN_ID 0")
                return None
            if self.router.opens:
                self._protocol_error("unexpected-open", "opened a flow, which only gateways do")
                self._refuse(kind, conn_id, CloseReason.PROTOCOL_ERROR)
                return None
            return self._assign(kind, conn_id)
        if kind in _STREAM:
            # These are late bytes of a closed flow, or an error of the peer. The sender has to
            # learn that the flow is gone. No other message for an unknown flow is answered.
            metrics.messages_late_total.inc()
            self._answer(CloseConnection(conn_id, CloseReason.UNKNOWN_FLOW).encode())
        elif kind == _UDP_PACKET:
            metrics.udp_dropped_total.labels("unknown-flow").inc()
        elif kind in LINK_TYPES:
            self._protocol_error(
                "wrong-channel", f"sent a message of type {kind} outside `control`"
            )
        elif kind not in _KNOWN:
            metrics.messages_unknown_total.inc()
        elif kind not in _MAY_COME_LATE:
            metrics.messages_late_total.inc()
        return None

    def _assign(self, kind: int, conn_id: int) -> WorkerEntry | None:
        router = self.router
        if router.draining:
            self._refuse(kind, conn_id, CloseReason.SHUTTING_DOWN)
            return None
        if len(self._owners) >= router.flows_per_session:
            self._refuse(kind, conn_id, CloseReason.RESOURCE_LIMIT)
            return None
        first = mix32(conn_id ^ mix32(self.number))
        for step in range(router.worker_count):
            worker = self.workers.get((first + step) % router.worker_count)
            if worker is not None:
                self._add(kind, conn_id, worker)
                return worker
        self._refuse(kind, conn_id, CloseReason.WORKER_LOST)
        return None

    # --- messages of the workers --------------------------------------------------------------

    def from_worker(self, worker: WorkerEntry, bodies: list[memoryview]) -> None:
        """Sends messages of a worker on the session's link.

        Raises :class:`RemoteProtocolError` for a message that no worker may send.
        """
        messages = [bytes(body) for body in bodies]
        size = 0
        for message in messages:
            size += len(message)
            if len(message) < _HEADER_SIZE:
                raise RemoteProtocolError("a message without a whole header", kind="ipc-message")
            kind = message[0]
            if kind in _TRACKED:
                conn_id = int.from_bytes(message[3:7])
                if kind in FLOW_OPENERS:
                    self._add(kind, conn_id, worker)
                    if not worker.ready:  # its rows come later, and say whether the flow exists
                        worker.before.add(conn_id)
                elif self._owners.get(conn_id) is worker:
                    del self._owners[conn_id]
                    self._associations.discard(conn_id)
        link = self.link
        if link is None or not worker.ready:
            self.count_lost(messages)  # they were meant for the last link
            return
        link.credit.sent(worker.share, size, link.clock())
        try:
            link.port.send_many(messages)
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error), kind="ipc-message") from None
        if worker.share.outstanding > LINK_BACKLOG_MAX:
            self.abuse(f"{worker.share.outstanding} bytes wait for the peer, which does not read")

    def count_lost(self, messages: list[bytes]) -> None:
        """Counts the datagrams among messages that are dropped because their link is gone."""
        datagrams = sum(message[0] == _UDP_PACKET for message in messages)
        if datagrams:
            self.router.metrics.udp_dropped_total.labels("link-lost").inc(datagrams)

    def give_credit(self, most: int) -> int:
        """Gives the workers the credit that the link allows now, up to `most` bytes.

        Returns how many bytes were given.
        """
        link = self.link
        if link is None:
            return 0
        given = 0
        entries = {entry.share: entry for entry in self.workers.values() if entry.ready}
        round_trip = int(link.round_trip.of(link.port.rtt, link.clock()) * 1e6)
        for share, amount in link.credit.grants(entries, most):
            given += max(amount, 0)
            self._grant(link, entries[share], amount, round_trip)
        for entry in entries.values():
            # A worker that only receives rarely needs credit, but its windows depend on the round
            # trip. So it is told of a change by more than a quarter.
            if abs(entry.round_trip - round_trip) > round_trip >> 2:
                self._grant(link, entry, 0, round_trip)
        return given

    def _grant(self, link: AttachedLink, entry: WorkerEntry, amount: int, round_trip: int) -> None:
        entry.round_trip = round_trip
        entry.port.send_control(self.number, Credit(amount, link.credit.chunk, round_trip))

    def demanded(self, worker: WorkerEntry, flows: int) -> None:
        """Notes that `flows` flows of the worker have something to transmit, for its credit."""
        if self.link is not None and worker.ready:  # else the number is about the last link
            flows = min(max(flows, 0), self.router.flows_per_session)
            self.link.credit.told(worker.share, flows, self.link.clock())

    # --- links --------------------------------------------------------------------------------

    def attach(self, port: LinkPort, terms: LinkTerms) -> AttachedLink:
        """Lets a link carry the session from now on."""
        older = self.link
        link = self.link = AttachedLink(self, port, terms)
        link.replaced = older
        self.rank = terms.rank
        self.detached_at = None
        link.awaiting = set(self.workers) if terms.resume else set()
        for worker in self.workers.values():
            self._attach_worker(link, worker)
        self._send_rows_if_complete(link)
        return link

    def _attach_worker(self, link: AttachedLink, worker: WorkerEntry) -> None:
        terms = link.terms
        worker.ready = False
        worker.rows = []
        worker.before = {c for c, owner in self._owners.items() if owner is worker}
        worker.share = Share()
        worker.round_trip = 0
        worker.port.send_control(
            self.number,
            Attach(
                terms.window,
                terms.max_data,
                terms.idle_udp,
                list(terms.features),
                link.credit.first_grant(worker.share),
                terms.resume,
            ),
        )

    def attached(self, worker: WorkerEntry, answer: Attached) -> None:
        """Takes a worker's answer to the attach. Its later messages are for this link."""
        worker.rows += [(a, b, c, d) for a, b, c, d in answer.rows]
        if not answer.last:
            return
        worker.ready = True
        self._reconcile(worker)
        link = self.link
        if link is not None and worker.index in link.awaiting:
            link.awaiting.discard(worker.index)
            self._send_rows_if_complete(link)

    def _reconcile(self, worker: WorkerEntry) -> None:
        """Makes the table of flows agree with the worker's rows, which are right."""
        present = {row[0] for row in worker.rows if not row[3] & ROW_CLOSED}
        for conn_id in worker.before - present:
            if self._owners.get(conn_id) is worker:
                del self._owners[conn_id]
                self._associations.discard(conn_id)
        for conn_id in present:
            self._owners.setdefault(conn_id, worker)

    def _send_rows_if_complete(self, link: AttachedLink) -> None:
        if link.awaiting or link.rows_sent:
            return
        link.rows_sent = True
        if not link.terms.resume:
            self._resumed_if_complete(link)
            return
        rows: list[tuple[int, int, int, int]] = []
        closed: list[tuple[int, int, int, int]] = []
        for worker in self.workers.values():
            for row in worker.rows:
                (closed if row[3] & ROW_CLOSED else rows).append(row)
            worker.rows = []
        # Only the latest closed flows, as many as a peer has to accept. Of the others the peer
        # learns that they have ended, but not why.
        rows += closed[-PEER_ROWS_SPARE:]
        for start in range(0, max(len(rows), 1), RESUME_ROWS_MAX):
            last = start + RESUME_ROWS_MAX >= len(rows)
            link.port.send_resume(Resume(tuple(rows[start : start + RESUME_ROWS_MAX]), last))
        self._resumed_if_complete(link)

    def from_peer_resume(self, link: AttachedLink, resume: Resume) -> None:
        """Passes the rows of the peer to the workers that own their flows."""
        if link.resume_ended:
            self._protocol_error("second-resume", "sent RESUME after its last one")
            return
        link.peer_rows += len(resume.rows)
        # There may be more flows than are allowed now, if there were more workers before.
        flows_max = max(self.router.flows_per_session, len(self._owners))
        if link.peer_rows > 2 * flows_max + PEER_ROWS_SPARE:
            self._protocol_error("resume-rows", "sent more rows in RESUME than it can have flows")
            self.abuse(f"{link.peer_rows} rows came in RESUME, more than the peer can have flows")
            return
        rows: dict[WorkerEntry, list[list[int]]] = {}
        for row in resume.rows:
            owner = self._owners.get(row[0])
            if owner is not None:
                rows.setdefault(owner, []).append(list(row))
            elif row[3] & ROW_OPEN and not row[3] & ROW_CLOSED:
                self._answer(CloseConnection(row[0], CloseReason.RESUME_FAILED).encode())
        for worker in list(self.workers.values()):
            part = rows.get(worker, [])
            if part or resume.last:
                worker.port.send_control(self.number, PeerRows(part, resume.last))
        if resume.last:
            link.peer_done = link.resume_ended = True
            self._resumed_if_complete(link)

    def _resumed_if_complete(self, link: AttachedLink) -> None:
        if link.resumed and self.link is link:
            seconds = link.clock() - link.since
            if link.flows_before:
                self.router.metrics.resumes_total.labels("resumed").inc()
                self.router.metrics.resume_seconds.observe(seconds)
                if link.gap is None:
                    before = "whose link was replaced"
                else:
                    before = f"{link.gap + seconds:.1f} s after their link was lost"
                _log.info(
                    "session with %s: resumed %d flows %s, within %.3f s of the new one",
                    self.peer,
                    link.flows_before,
                    before,
                    seconds,
                )
            self.router.choose_target()

    def detach(self) -> None:
        """Lets the session wait for the next link, because this one is gone."""
        self.link = None
        self.detached_at = self.router.clock()
        for worker in self.workers.values():
            worker.ready = False
            worker.port.send_control(self.number, Detach(""))
        self.router.choose_target()

    # --- workers ------------------------------------------------------------------------------

    def worker_up(self, index: int, port: WorkerPort) -> WorkerEntry:
        """Lets a worker take part in the session."""
        worker = self.workers[index] = WorkerEntry(index, port)
        for conn_id in self._left.pop(index, ()):
            self._owners[conn_id] = worker
        port.send_control(self.number, SessionOpened(self.peer))
        if self.link is not None:
            self._attach_worker(self.link, worker)
        return worker

    def worker_down(self, index: int) -> int:
        """Closes the flows of a dead worker at the peer; returns how many there were."""
        worker = self.workers.pop(index, None)
        if worker is None:
            return 0
        lost = [conn_id for conn_id, owner in self._owners.items() if owner is worker]
        messages = []
        for conn_id in lost:
            del self._owners[conn_id]
            if conn_id in self._associations:
                self._associations.discard(conn_id)
                messages.append(UdpAssociateClosed(conn_id, CloseReason.WORKER_LOST).encode())
            else:
                messages.append(CloseConnection(conn_id, CloseReason.WORKER_LOST).encode())
        # Without a link, the peer learns of their end from our RESUME, which lacks these flows.
        self._send(messages)
        link = self.link
        if link is not None:
            link.credit.lost(worker.share)
            if index in link.awaiting:
                link.awaiting.discard(index)
                self._send_rows_if_complete(link)
        return len(lost)

    def end(self, reason: str) -> None:
        """Ends the session and its flows. The caller has to close its link, if there is one."""
        for worker in self.workers.values():
            worker.port.send_control(self.number, SessionEnded(reason))
        self.link = None
        self._owners.clear()
        self._associations.clear()
        self._left.clear()

    # --- hand-over ----------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Returns the session as plain values, for the next program."""
        flows: dict[int, list[int]] = {}
        for conn_id, worker in self._owners.items():
            flows.setdefault(worker.index, []).append(conn_id)
        return {
            "number": self.number,
            "peer": self.peer,
            "key": self.key,
            "detached_at": self.detached_at,
            "flows": [[index, *conn_ids] for index, conn_ids in flows.items()],
            "associations": list(self._associations),
        }

    @classmethod
    def restore(cls, router: RoutingOwner, fields: Mapping[str, Any]) -> Self:
        """Returns the session that :meth:`export` described, without its workers.

        Raises :class:`~socks_tunnel.protocol.bounded.Malformed`.
        """
        session = cls(
            router,
            bounded.integer(fields, "number", 1, 0xFFFF),
            bounded.text(fields, "peer"),
            bounded.binary(fields, "key", 16),
        )
        session.detached_at = bounded.number(fields, "detached_at")
        flows, associations = fields.get("flows"), fields.get("associations")
        rows = flows if isinstance(flows, list) else None
        if rows is None or not all(isinstance(row, list) and row for row in rows):
            raise bounded.unusable(fields, "flows")
        if not isinstance(associations, list):
            raise bounded.unusable(fields, "associations")
        if not all(type(number) is int for numbers in (*rows, associations) for number in numbers):
            raise bounded.unusable(fields, "flows")
        session._left = {index: conn_ids for index, *conn_ids in rows}
        session._associations = set(associations)
        return session

    # --- helpers ------------------------------------------------------------------------------

    def _add(self, kind: int, conn_id: int, worker: WorkerEntry) -> None:
        self._owners[conn_id] = worker
        if kind == _UDP_ASSOCIATE:
            self._associations.add(conn_id)

    def _refuse(self, kind: int, conn_id: int, reason: CloseReason) -> None:
        self._answer(ending(conn_id, reason, kind=kind))

    def _answer(self, message: bytes) -> None:
        if self.link is not None and self.link.credit.outstanding < ANSWERS_MAX + self._granted():
            self._send([message])

    def _granted(self) -> int:
        return sum(worker.share.outstanding for worker in self.workers.values())

    def _send(self, messages: list[bytes]) -> None:
        """Sends messages that the supervisor itself has made."""
        if self.link is not None and messages:
            self.link.credit.sent(None, sum(map(len, messages)), self.link.clock())
            self.link.port.send_many(messages)

    def _protocol_error(self, kind: str, what: str) -> None:
        self.router.metrics.protocol_errors_total.labels(kind).inc()
        link = self.link
        if link is not None and kind not in link.reported:
            link.reported.add(kind)
            _log.warning(
                "link %s: the peer %s; further errors of this kind are only counted",
                self.peer,
                what,
            )

    def abuse(self, reason: str) -> None:
        """Asks for the end of the link, once, because of what its peer does."""
        link = self.link
        if link is not None and not link.abusive:  # more may come before the link is closed
            link.abusive = True
            self.router.on_abuse(link, reason)
