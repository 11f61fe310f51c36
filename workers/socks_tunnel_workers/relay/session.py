"""One link as a worker sees it: its flows, its transmit credit, its policy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.flow import FlowTable
from socks_tunnel.protocol.messages import (
    HEADER,
    CloseConnection,
    Data,
    MessageType,
    SendEof,
    UdpAssociateClosed,
    UdpPacket,
    UnknownMessage,
    WindowUpdate,
    decode,
)
from socks_tunnel.protocol.scheduler import Scheduler
from socks_tunnel_workers.relay.flow import Flow

if TYPE_CHECKING:
    from socks_tunnel.protocol.policy import Policy
    from socks_tunnel_workers.worker import Worker

logger = logging.getLogger(__name__)

_HEADER_SIZE = HEADER.size
_pack = HEADER.pack
_unpack = HEADER.unpack_from
_DATA = int(MessageType.DATA)
_UDP_PACKET = int(MessageType.UDP_PACKET)
_OPENERS = (MessageType.OPEN_CONNECTION, MessageType.UDP_ASSOCIATE, MessageType.BIND)


class WorkerLink:
    """A link that is up. `id` is the LINK of IPC frames.

    `window` is how many bytes the peer lets us send on a new flow, `max_data` its longest DATA
    payload, `idle_udp` the idle time in seconds that it named in its HELLO.
    """

    __slots__ = (
        "accepts",
        "channel",
        "features",
        "flows",
        "id",
        "idle_udp",
        "max_data",
        "peer",
        "policy",
        "rank",
        "reported",
        "scheduler",
        "window",
        "worker",
    )

    def __init__(self, worker: Worker, link_id: int, fields: dict[str, Any]) -> None:
        self.worker = worker
        self.channel = worker.channel
        self.id = link_id
        self.peer: str = fields["peer"]
        self.rank: int = fields["rank"]
        self.window: int = fields["window"]
        self.max_data: int = fields["max_data"]
        self.idle_udp: int = fields["idle_udp"]
        self.features = frozenset(fields["features"])
        self.policy: Policy | None = worker.policies.for_peer(self.peer)
        self.accepts = True
        self.flows: FlowTable[Flow] = FlowTable(worker.config.limits.flows_per_worker)
        self.scheduler: Scheduler[Flow] = Scheduler(fields["credit"])
        self.reported: set[str] = set()

    # --- sending --------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a control message: never waits, spends credit."""
        self.scheduler.credit -= len(message)
        self.channel.send_message(self.id, message)

    def send_data(self, conn_id: int, data: bytes) -> None:
        """Send one DATA message; the caller has looked at the credit and the window."""
        self.scheduler.credit -= _HEADER_SIZE + len(data)
        self.channel.send_pieces(self.id, _pack(_DATA, 0, conn_id), data)

    def send_datagram(self, conn_id: int, header: bytes, data: bytes) -> None:
        """Send one UDP_PACKET of a SOCKS5 UDP header and a payload, or let it wait for credit."""
        scheduler = self.scheduler
        message = b"".join((_pack(_UDP_PACKET, 0, conn_id), header, data))
        if scheduler.credit > 0 and scheduler.idle:
            scheduler.credit -= len(message)
            self.channel.send_message(self.id, message)
        else:
            scheduler.queue_datagram(message, self.worker.loop.time())

    def grant(self, count: int) -> None:
        """Take credit from the supervisor; transmit what waits: datagrams, then flows in turn."""
        scheduler = self.scheduler
        scheduler.credit += count
        now = self.worker.loop.time()
        while (message := scheduler.next_datagram(now)) is not None:
            self.channel.send_message(self.id, message)
        while (flow := scheduler.next_flow()) is not None:
            flow.pump()

    def close_flow(self, conn_id: int, reason: int, *, udp: bool = False) -> None:
        """Tell the peer that a flow is closed."""
        message: CloseConnection | UdpAssociateClosed
        message = UdpAssociateClosed(conn_id, reason) if udp else CloseConnection(conn_id, reason)
        self.send(message.encode())

    # --- receiving ------------------------------------------------------------------------------

    def on_message(self, body: memoryview) -> None:
        """Take one tunnel message from the supervisor; `body` is valid only during the call."""
        flow: Flow | None
        kind, _, conn_id = _unpack(body)
        try:
            # The two types that carry payload go past the general decoder.
            if kind == _DATA:
                flow = self.flows.get(conn_id)
                if flow is None:
                    self._unowned(kind, conn_id)
                elif len(body) == _HEADER_SIZE:
                    decode(body)  # raises: a DATA message has at least one byte
                else:
                    flow.on_data(body[_HEADER_SIZE:])
                return
            if kind == _UDP_PACKET:
                flow = self.flows.get(conn_id)
                if flow is None:
                    self._unowned(kind, conn_id)
                else:
                    flow.on_datagram(body[_HEADER_SIZE:])
                return
            message = decode(body)
            if isinstance(message, UnknownMessage):
                self.worker.metrics.messages_unknown_total.inc()
                return
            flow = self.flows.get(conn_id)
            if kind in _OPENERS:
                self.worker.open_from_peer(self, message)
            elif flow is None:
                self._unowned(kind, conn_id)
            elif isinstance(message, WindowUpdate):
                flow.on_window(message)
            else:
                flow.on_message(message)
        except RemoteProtocolError as error:
            self.protocol_error(error, kind, conn_id)
        except LocalProtocolError:
            # A bug of ours costs the flow that met it, not the flows of everybody in this worker.
            logger.exception("flow %d met a bug: closing it", conn_id)
            flow = self.flows.get(conn_id)
            if flow is not None:
                flow.abort(CloseReason.GENERAL_FAILURE)

    def _unowned(self, kind: int, conn_id: int) -> None:
        """A message for a flow that is not here: late, or the peer is confused."""
        # A CLOSE is never answered, nor is what may still be under way after one; the sender of
        # stream bytes has to learn that nobody takes them.
        if kind in (Data.TYPE, SendEof.TYPE):
            self.worker.count("protocol_errors_total", "unknown-flow")
            self.close_flow(conn_id, CloseReason.UNKNOWN_FLOW)
        elif kind == UdpPacket.TYPE:
            self.worker.count_drop("unknown-flow")

    def protocol_error(self, error: RemoteProtocolError, kind: int, conn_id: int) -> None:
        """The peer broke the protocol: count it, log it once per kind, close the flow."""
        self.worker.metrics.protocol_errors_total.labels(error.kind).inc()
        if error.kind not in self.reported:
            self.reported.add(error.kind)
            logger.warning(
                "peer %s broke the protocol in flow %d (%s): %s; further errors of this kind on "
                "this link are only counted",
                self.peer,
                conn_id,
                error.kind,
                error,
            )
        flow = self.flows.get(conn_id)
        reason = CloseReason.PROTOCOL_ERROR
        if error.kind == "too-many-flows":
            reason = CloseReason.RESOURCE_LIMIT
        if flow is not None:
            flow.abort(reason)
        elif kind not in (MessageType.CLOSE_CONNECTION, MessageType.UDP_ASSOCIATE_CLOSED):
            udp = kind in (MessageType.UDP_ASSOCIATE, MessageType.UDP_PACKET)
            self.close_flow(conn_id, reason, udp=udp)

    # --- end ------------------------------------------------------------------------------------

    def down(self, reason: str) -> None:
        """The link is gone: so are its flows, for there is nobody to resume them with."""
        flows = list(self.flows)
        if flows:
            logger.info(
                "link to %s is down (%s): closing its %d flows in this worker",
                self.peer,
                reason,
                len(flows),
            )
        for flow in flows:
            flow.abort(CloseReason.GENERAL_FAILURE, tell_peer=False)
