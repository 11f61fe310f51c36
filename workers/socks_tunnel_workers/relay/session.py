"""One session as a worker sees it: the shell around :class:`socks_tunnel.protocol.session.Session`.

It gives the sans-IO session its way to the supervisor, its clock and its counters, and tells the
operator what the session reports.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from socks_tunnel.ipc.stream import Channel
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.flow import ConnIdAllocator
from socks_tunnel.protocol.ipc import Attach, Attached, Credit, Demand
from socks_tunnel.protocol.messages import (
    HEADER,
    INITIAL_WINDOW,
    MessageType,
)
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.scheduler import BusyFlows
from socks_tunnel.protocol.session import Opening, Row, Session, Terms
from socks_tunnel.protocol.streams import WINDOW_MAX
from socks_tunnel_workers.relay.flow import Flow
from socks_tunnel_workers.services import Account, Counters, Notices, Settings

logger = logging.getLogger(__name__)

ROWS_PER_FRAME: Final = 2000
"""Rows of RESUME in one control message to the supervisor."""

_UDP_PACKET: Final = int(MessageType.UDP_PACKET)
_pack = HEADER.pack

Opener = Callable[["WorkerSession", Opening], None]
"""Opens a flow that the peer asks for. Its CONN_ID is free."""


@dataclass(frozen=True, slots=True)
class RelayServices:
    """What the flows of a worker share."""

    channel: Channel
    loop: asyncio.AbstractEventLoop
    settings: Settings
    counters: Counters
    notices: Notices
    memory: Account
    metrics: Metrics
    flow_left: Callable[[], None]
    """Called when a flow has ended, or has written the last of what it owed."""
    relieve: Callable[[], None]
    """Called when the flows hold more memory than allowed: some of them have to give way."""


class WorkerSession:
    """A session with the peer of a name. `number` is the SESSION of IPC frames.

    This class has many methods because it is what flows, the core and the supervisor meet in.

    `open_from_peer` takes the opening messages of the peer (endpoint), and is None where our side
    opens the flows (gateway). `index` says which CONN_IDs are this worker's.
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
        """Round trip of the link in seconds, as the supervisor measures it; 0 before that."""
        self.detached_at = self.loop.time()
        """When it lost its last link; when it began, if it never had one."""
        self.draining = False
        self.lingering: set[Flow] = set()
        """Flows that are over on the wire, while their local sockets are still owed bytes."""
        self.core: Session[Flow] = Session(
            self,
            opens=open_from_peer is None,
            flows_max=services.settings.config.limits.flows_per_worker,
        )
        self.flows = self.core.flows
        self.scheduler = self.core.scheduler
        self._open_from_peer = open_from_peer
        # A restarted worker does not know what the one before it handed out: start anywhere.
        self._allocator = ConnIdAllocator(index, start=secrets.randbits(32))
        self._reported: set[str] = set()
        self._busy = BusyFlows()

    # --- what flows and their openers ask for ---------------------------------------------------

    @property
    def policy(self) -> Policy | None:
        """The policy in force for the peer's flows at this moment; None: all is allowed."""
        return self.settings.policies.for_peer(self.peer)

    @property
    def open_to_send(self) -> bool:
        """Whether flows may transmit: there is a link, and no resume is under way."""
        return self.core.open_to_send

    @property
    def terms(self) -> Terms:
        """What the peer's HELLO allows, on the link of the moment or the one before it."""
        terms = self.core.terms
        assert terms is not None, "flows are opened only once there was a link"
        return terms

    @property
    def resumes(self) -> bool:
        """Whether the peer takes part in resuming: flows outlive the link then."""
        return "resume" in self.terms.features

    @property
    def window_max(self) -> int:
        """Bytes to which the receive window of one flow may grow now."""
        memory = self.memory
        free = memory.limit - memory.used
        return min(WINDOW_MAX, free >> 3) if memory.used < memory.limit >> 1 else 0

    @property
    def chunk(self) -> int:
        """Longest DATA payload in bytes that suits the link."""
        return min(self.core.scheduler.chunk, self.terms.max_data)

    def allocate(self) -> int:
        """Returns a CONN_ID for a new flow of ours."""
        return self._allocator.allocate(self.core.in_use)

    def admit(self, flow: Flow) -> None:
        """Takes a flow into the table and counts it. Raises :class:`RemoteProtocolError`."""
        self.flows.add(flow.conn_id, flow)
        self.counters.active[flow.kind] += 1
        self.counters.count("flows_total", flow.kind)

    def readmit(self, flow: Flow) -> None:
        """Takes in a flow of the program before us. It was counted when it was opened.

        Raises :class:`RemoteProtocolError` if its CONN_ID is in use.
        """
        self.flows.add(flow.conn_id, flow)
        self.counters.active[flow.kind] += 1

    def relieve(self) -> None:
        """Makes room if the worker's flows hold more memory than allowed."""
        if self.memory.over:
            self.services.relieve()

    def leave(self, flow: Flow) -> None:
        """Takes a flow out of the table, and counts its end."""
        self.flows.remove(flow.conn_id)
        self.scheduler.cancel(flow)
        self.counters.active[flow.kind] -= 1
        self.services.flow_left()

    def linger(self, flow: Flow) -> None:
        """Keeps a flow that is over on the wire until its socket has taken everything."""
        self.lingering.add(flow)

    def lingered(self, flow: Flow) -> None:
        """Forgets a flow of :meth:`linger`; harmless if it is none."""
        if flow in self.lingering:
            self.lingering.discard(flow)
            self.services.flow_left()

    def send(self, message: bytes) -> None:
        """Transmits a control message of a flow."""
        self.core.send(message)

    def send_datagram(self, conn_id: int, header: bytes, data: bytes) -> None:
        """Transmits a UDP_PACKET (SOCKS5 UDP header, payload) within 50 ms, or not at all."""
        message = b"".join((_pack(_UDP_PACKET, 0, conn_id), header, data))
        self.core.send_datagram(message, self.loop.time())

    # --- the link beneath -----------------------------------------------------------------------

    def attach(self, fields: Attach) -> None:
        """Takes a link into use, and tells the supervisor our rows of RESUME."""
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
        """The link is gone; the flows wait for the next one."""
        if self.core.attached:
            self.detached_at = self.loop.time()
        self.core.detach()

    def end(self, reason: int, *, tell_peer: bool) -> None:
        """The session is over: so are its flows, also those that still owe bytes."""
        self.core.end(reason, tell_peer=tell_peer)
        for flow in list(self.lingering):
            flow.abort(reason, tell_peer=False)

    def receive(self, messages: list[memoryview]) -> None:
        """Hands messages of the peer to their flows."""
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
        """Counts an error of the peer's, and logs the first of its kind on this link."""
        self.counters.count("protocol_errors_total", error.kind)
        if error.kind not in self._reported:
            self._reported.add(error.kind)
            logger.warning(
                "peer %s broke the protocol in flow %d (%s): %s; further errors of this kind on "
                "this link are only counted",
                self.peer,
                conn_id,
                error.kind,
                error,
            )

    def bug(self, error: Exception, conn_id: int) -> None:
        """Logs a bug of ours that a message met, once a kind; the flow is closed."""
        kind = f"bug-{type(error).__name__}"
        self.counters.count("protocol_errors_total", "bug")
        if kind not in self._reported:
            self._reported.add(kind)
            logger.error("flow %d met a bug: closing it", conn_id, exc_info=error)

    def unknown_message(self) -> None:
        """Counts a message of an unknown type."""
        self.metrics.messages_unknown_total.inc()

    def unknown_flow(self, *, datagram: bool) -> None:
        """Counts bytes for a flow that is not here."""
        if datagram:
            self.counters.drop("unknown-flow")
        else:
            self.counters.count("messages_late_total")
