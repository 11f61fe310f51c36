"""A worker's part of one session, and the base class of its flows.

:class:`WorkerSession` is the shell around :class:`socks_tunnel.protocol.session.Session`. It
connects the sans-IO session to the supervisor, the clock and the counters, and logs what the
session reports. :class:`Flow` is the base of TCP relays, UDP associations, probes and questions.
Both are in one module because each refers to the other.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from socks_tunnel.ipc.stream import Channel
from socks_tunnel.ops import audit
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.flow import ConnIdAllocator
from socks_tunnel.protocol.ipc import Attach, Attached, Credit, Demand
from socks_tunnel.protocol.messages import (
    HEADER,
    INITIAL_WINDOW,
    Message,
    MessageType,
    WindowUpdate,
)
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.scheduler import BusyFlows
from socks_tunnel.protocol.session import Opening, Row, Session, Terms
from socks_tunnel.protocol.streams import WINDOW_MAX
from socks_tunnel_workers.services import Account, Counters, Notices, Settings

logger = logging.getLogger(__name__)

ROWS_PER_FRAME: Final = 2000
"""Rows of RESUME in one control message to the supervisor."""

_REASONS: Final = {int(each): each.name.lower().replace("_", "-") for each in CloseReason}
_UDP_PACKET: Final = int(MessageType.UDP_PACKET)
_pack = HEADER.pack

Opener = Callable[["WorkerSession", Opening], None]
"""Opens a flow that the peer asks for. Its CONN_ID is free."""


def reason_name(reason: int) -> str:
    """Returns the name of a close reason for logs; for an unknown one, its number as `0x2a`."""
    return _REASONS.get(reason) or f"0x{reason:02x}"


@dataclass(frozen=True, slots=True)
class RelayServices:
    """The services that all flows of a worker share."""

    channel: Channel
    loop: asyncio.AbstractEventLoop
    settings: Settings
    counters: Counters
    notices: Notices
    memory: Account
    metrics: Metrics
    flow_left: Callable[[], None]
    """Called when a flow has ended, and when the socket of a closed flow has taken all bytes."""
    relieve: Callable[[], None]
    """Called when the flows hold more memory than allowed, to free some."""


class WorkerSession:
    """A session with the peer named `peer`. `number` is the SESSION of IPC frames.

    `open_from_peer` takes the opening messages of the peer on an endpoint; it is None on a gateway,
    which opens the flows itself. `index` says which CONN_IDs are this worker's.

    This class has many methods because it connects flows, the core and the supervisor.
    """

    def __init__(
        self,
        services: RelayServices,
        number: int,
        peer: str,
        *,
        open_from_peer: Opener | None,
        index: int,
    ) -> None:
        self.number = number
        self.peer = peer
        self.services = services
        self.loop = services.loop
        self.settings = services.settings
        self.counters = services.counters
        self.notices = services.notices
        self.memory = services.memory
        self.metrics = services.metrics
        self.receive_window = INITIAL_WINDOW
        self.round_trip = 0.0
        """Round trip of the link in seconds, as the supervisor measures it; 0 if unknown."""
        self.detached_at = self.loop.time()
        """Time of the loop at which it lost its last link, or began if it never had one."""
        self.draining = False
        self.lingering: set[Flow] = set()
        """Flows that are closed toward the peer, but whose sockets have not taken all bytes."""
        self.core: Session[Flow] = Session(
            self,
            opens=open_from_peer is None,
            flows_max=services.settings.config.limits.flows_per_worker,
        )
        self.flows = self.core.flows
        self.scheduler = self.core.scheduler
        self._open_from_peer = open_from_peer
        # A restarted worker does not know the CONN_IDs of the one before it, so it starts anywhere.
        self._allocator = ConnIdAllocator(index, start=secrets.randbits(32))
        self._reported: set[str] = set()
        self._busy = BusyFlows()

    # --- what flows and their openers ask for ---------------------------------------------------

    @property
    def policy(self) -> Policy | None:
        """The policy in force for the peer's flows; None if everything is allowed."""
        return self.settings.policies.for_peer(self.peer)

    @property
    def open_to_send(self) -> bool:
        """Whether flows may transmit: there is a link, and no resume is under way."""
        return self.core.open_to_send

    @property
    def terms(self) -> Terms:
        """What the peer's HELLO allows, on the present link or else on the last one."""
        terms = self.core.terms
        assert terms is not None, "flows are opened only once there was a link"
        return terms

    @property
    def resumes(self) -> bool:
        """Whether the peer supports resuming, so that flows survive the loss of a link."""
        return "resume" in self.terms.features

    @property
    def window_max(self) -> int:
        """Bytes to which the receive window of one flow may grow now; 0 if memory is short."""
        memory = self.memory
        free = memory.limit - memory.used
        return min(WINDOW_MAX, free >> 3) if memory.used < memory.limit >> 1 else 0

    @property
    def chunk(self) -> int:
        """Longest DATA payload in bytes to send on the link."""
        return min(self.core.scheduler.chunk, self.terms.max_data)

    def allocate(self) -> int:
        """Returns a CONN_ID for a new flow of ours."""
        return self._allocator.allocate(self.core.in_use)

    def admit(self, flow: Flow) -> None:
        """Takes a flow into the table and counts it.

        Raises :class:`RemoteProtocolError` if the table is full or the CONN_ID is in use.
        """
        self.flows.add(flow.conn_id, flow)
        self.counters.active[flow.kind] += 1
        self.counters.count("flows_total", flow.kind)

    def readmit(self, flow: Flow) -> None:
        """Takes in a flow of the previous program. It was counted when it was opened.

        Raises :class:`RemoteProtocolError` if its CONN_ID is in use.
        """
        self.flows.add(flow.conn_id, flow)
        self.counters.active[flow.kind] += 1

    def relieve(self) -> None:
        """Frees memory if the worker's flows hold more than allowed."""
        if self.memory.over:
            self.services.relieve()

    def leave(self, flow: Flow) -> None:
        """Takes a flow out of the table and out of the count of open flows."""
        self.flows.remove(flow.conn_id)
        self.scheduler.cancel(flow)
        self.counters.active[flow.kind] -= 1
        self.services.flow_left()

    def linger(self, flow: Flow) -> None:
        """Keeps a flow that is closed toward the peer until its socket has taken all bytes."""
        self.lingering.add(flow)

    def lingered(self, flow: Flow) -> None:
        """Forgets a flow of :meth:`linger`. Harmless for any other flow."""
        if flow in self.lingering:
            self.lingering.discard(flow)
            self.services.flow_left()

    def send(self, message: bytes) -> None:
        """Transmits a whole message of a flow, such as an answer or WINDOW_UPDATE."""
        self.core.send(message)

    def send_datagram(self, conn_id: int, header: bytes, data: bytes) -> None:
        """Transmits a UDP_PACKET, or drops it if it has to wait for credit for more than 50 ms.

        `header` followed by `data` is a SOCKS5 UDP header and its payload.
        """
        message = b"".join((_pack(_UDP_PACKET, 0, conn_id), header, data))
        self.core.send_datagram(message, self.loop.time())

    # --- the link beneath -----------------------------------------------------------------------

    def attach(self, fields: Attach) -> None:
        """Takes a link into use, and sends the supervisor this worker's rows of RESUME."""
        terms = Terms(fields.window, fields.max_data, fields.idle_udp, frozenset(fields.features))
        rows = self.core.attach(terms, fields.credit, resume=fields.resume)
        self._reported.clear()
        self._busy = BusyFlows()
        channel = self.services.channel
        for start in range(0, max(len(rows), 1), ROWS_PER_FRAME):
            part = [list(row) for row in rows[start : start + ROWS_PER_FRAME]]
            last = start + ROWS_PER_FRAME >= len(rows)
            channel.send_control(self.number, Attached(part, last))

    def resumed(self, rows: Sequence[Row], *, last: bool) -> None:
        """Takes rows of the peer's RESUME."""
        self.core.resumed(rows, last=last)

    def detach(self) -> None:
        """Lets the flows wait for the next link, because this one is gone."""
        if self.core.attached:
            self.detached_at = self.loop.time()
        self.core.detach()

    def end(self, reason: int, *, tell_peer: bool) -> None:
        """Ends all flows, because the session is over; also those of :meth:`linger`."""
        self.core.end(reason, tell_peer=tell_peer)
        for flow in list(self.lingering):
            flow.abort(reason, tell_peer=False)

    def receive(self, messages: list[memoryview]) -> None:
        """Passes messages of the peer to their flows."""
        receive = self.core.receive
        for message in messages:
            receive(message)

    def grant(self, credit: Credit) -> None:
        """Takes credit from the supervisor, transmits what waits, and says how many flows wait."""
        now = self.loop.time()
        self.scheduler.advise(credit.chunk)
        self.round_trip = credit.round_trip / 1e6
        waiting = self.scheduler.waiting
        self.core.grant(credit.count, now)
        if self._busy.due(waiting, now):
            self.services.channel.send_control(self.number, Demand(self._busy.told))

    # --- Outlet ---------------------------------------------------------------------------------

    def send_pieces(self, header: bytes, payload: bytes | memoryview) -> None:
        """Transmits a DATA message for the session's core."""
        self.services.channel.send_pieces(self.number, header, payload)

    def transmit(self, message: bytes) -> None:
        """Transmits a whole message for the session's core."""
        channel = self.services.channel
        if channel.paused and message[0] == _UDP_PACKET:
            channel.send_urgent(self.number, (message,))
        else:
            channel.send_pieces(self.number, b"", message)

    def open(self, message: Opening) -> None:
        """Opens a flow for the peer."""
        assert self._open_from_peer is not None, "the core refuses openings on a gateway"
        self._open_from_peer(self, message)

    def protocol_error(self, error: RemoteProtocolError, conn_id: int) -> None:
        """Counts an error of the peer, and logs the first of its kind on this link."""
        self.counters.count("protocol_errors_total", error.kind)
        if error.kind not in self._reported:
            self._reported.add(error.kind)
            logger.warning(
                "peer %s broke the protocol in flow %d (%s): %s; closing the flow; further errors "
                "of this kind on this link are only counted",
                self.peer,
                conn_id,
                error.kind,
                error,
            )

    def bug(self, error: Exception, conn_id: int) -> None:
        """Counts a bug of this program that closes a flow, and logs the first of its kind."""
        kind = f"bug-{type(error).__name__}"
        self.counters.count("protocol_errors_total", "bug")
        if kind not in self._reported:
            self._reported.add(kind)
            logger.error(
                "flow %d with peer %s met a bug: closing the flow; further bugs of this kind on "
                "this link are only counted",
                conn_id,
                self.peer,
                exc_info=error,
            )

    def unknown_message(self) -> None:
        """Counts a message of an unknown type."""
        self.metrics.messages_unknown_total.inc()

    def unknown_flow(self, *, datagram: bool) -> None:
        """Counts a message for a flow that does not exist, or not any more."""
        if datagram:
            self.counters.drop("unknown-flow")
        else:
            self.counters.count("messages_late_total")


class SessionMessages:
    """The way of the peers' messages from the IPC stream to their sessions, by number."""

    def __init__(self, sessions: dict[int, WorkerSession]) -> None:
        self._sessions = sessions

    def take(self, number: int, messages: list[memoryview]) -> None:
        """Hands messages to their session."""
        session = self._sessions.get(number)
        if session is not None:  # else: the session ended while they were under way
            session.receive(messages)


class Flow:
    """One flow of a session, which belongs to this worker alone.

    Handlers raise :class:`RemoteProtocolError` when the peer breaks the protocol; the session then
    closes the flow with reason 0x15 (PROTOCOL_ERROR). A message that a subclass has no handler for
    is such an error.
    """

    __slots__ = (
        "active",
        "client",
        "command",
        "conn_id",
        "destination",
        "ended",
        "queued",
        "ranked",
        "served",
        "session",
        "started",
    )

    kind: ClassVar[str]
    """The label in metrics: `tcp`, `udp`, `resolve` or `probe`."""

    def __init__(self, session: WorkerSession, conn_id: int, *, command: str, client: str) -> None:
        self.session = session
        self.conn_id = conn_id
        self.command = command
        self.client = client
        self.destination: HostPort | None = None
        self.started: float = session.loop.time()
        self.active = self.started
        self.ended = False
        self.served = 0
        self.queued = 0
        self.ranked = 0
        """Bytes that it had carried when flows were last ranked by rate."""

    @property
    def udp(self) -> bool:
        """Whether it is a UDP association."""
        return self.kind == "udp"

    # --- from the peer --------------------------------------------------------------------------

    def on_data(self, data: memoryview) -> None:  # noqa: ARG002 - subclasses use it
        """Takes the payload of DATA. `data` is valid only during the call."""
        raise self.unexpected("DATA")

    def on_window(self, update: WindowUpdate) -> None:  # noqa: ARG002 - subclasses use it
        """Takes a WINDOW_UPDATE."""
        raise self.unexpected("WINDOW_UPDATE")

    def on_datagram(self, packet: memoryview) -> None:  # noqa: ARG002 - subclasses use it
        """Takes the SOCKS5 UDP packet of UDP_PACKET. `packet` is valid only during the call."""
        raise self.unexpected("UDP_PACKET")

    def on_message(self, message: Message) -> None:
        """Takes any other message of this flow."""
        raise self.unexpected(type(message).__name__)

    def unexpected(self, name: str) -> RemoteProtocolError:
        """Returns the error for a message that is not allowed in this flow's state."""
        return RemoteProtocolError(
            f"{name} is not allowed in a {self.command} flow in the state '{self.state}'",
            kind="unexpected-message",
            conn_id=self.conn_id,
        )

    # --- from the session -----------------------------------------------------------------------

    def on_turn(self) -> None:
        """Called when the scheduler gives this flow its turn to transmit."""

    def on_detached(self) -> None:
        """Called when the link is gone."""

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        """Called with the peer's row of RESUME for this flow (docs/protocol.md)."""

    def on_missing(self) -> bool:
        """Called if the peer does not know this flow. Returns whether it was asked for again."""
        return False

    def on_repeated(self, opening: Message) -> None:
        """Called if the opening message comes again after a resume, as its answer may be lost."""
        raise self.unexpected(type(opening).__name__)

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME for this flow."""
        raise NotImplementedError

    def sweep(self, now: float) -> None:
        """Looks at the timers. Called every few seconds; `now` is the time of the loop."""

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the flow at once. With `tell_peer`, the peer gets a CLOSE with `reason`."""
        raise NotImplementedError

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Payload bytes from the client to the target so far."""
        raise NotImplementedError

    @property
    def down(self) -> int:
        """Payload bytes from the target to the client so far."""
        raise NotImplementedError

    @property
    def receive_window(self) -> int:
        """Bytes that the peer may send before any is consumed; 0 if the flow has no window."""
        return 0

    @property
    def held(self) -> int:
        """Bytes of the flow in this process: those that wait, and those kept for the peer."""
        return 0

    @property
    def state(self) -> str:
        """The state in a word or two, for `socks-tunnel connections`."""
        raise NotImplementedError

    def as_row(self, now: float) -> dict[str, object]:
        """Returns this flow's line for `socks-tunnel connections`."""
        return {
            "peer": self.session.peer,
            "conn_id": self.conn_id,
            "kind": self.kind,
            "command": self.command,
            "client": self.client,
            "destination": str(self.destination) if self.destination else "",
            "state": self.state,
            "seconds": round(now - self.started, 3),
            "up": self.up,
            "down": self.down,
            "held": self.held,
        }

    def end(self, reason: int) -> bool:
        """Leaves the table and writes the audit record; returns False if that was done before."""
        if self.ended:
            return False
        self.ended = True
        session = self.session
        session.leave(self)
        audit.flow_end(
            peer=session.peer,
            conn_id=self.conn_id,
            command=self.command,
            destination=str(self.destination) if self.destination else "",
            up=self.up,
            down=self.down,
            seconds=session.loop.time() - self.started,
            reason=reason_name(reason),
        )
        return True
