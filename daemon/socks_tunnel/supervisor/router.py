"""Which worker owns which flow, and how much each worker may send. No sockets, clocks or processes.

Ownership. A flow belongs to the worker that opened it (gateway) or that its opening message was
given to (endpoint); the entry lives from the opening message to the first CLOSE, in either
direction. One look-up by CONN_ID routes a message, and payload is never looked at::

    link --message--> owners[CONN_ID] --> that worker's channel        (down)
    worker --message--> link's data channels                           (up)

On the endpoint the worker is mix32(CONN_ID ^ mix32(LINK)) modulo their number, or the next one
that is up. When a worker dies its flows are closed at the peer at once (0x13), and nothing else.

Credit. A worker may have `grant` bytes on the way between itself and SCTP's queue. What it sent is
remembered per link in a FIFO; as the link reports that bytes left the data channels' queues, the
same number becomes due to the worker, and goes back to it a quarter of its grant at a time. Less
than that may stay due for ever: it never keeps the worker from sending.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    HEADER,
    LINK_TYPES,
    CloseConnection,
    MessageType,
    UdpAssociateClosed,
    mix32,
)

_log = logging.getLogger(__name__)

CREDIT_PER_LINK: Final = 131_072
"""Bytes that all workers together may have waiting in one link's data channels."""

CREDIT_MIN: Final = 32_768
"""Least credit of one worker in bytes: with many workers the sum is over CREDIT_PER_LINK."""

DATAGRAM_BACKLOG_MAX: Final = 1_048_576
"""Bytes that may wait for a worker to read before UDP_PACKETs for it are dropped."""

WORKER_BACKLOG_MAX: Final = 64 * 1_048_576
"""Bytes that may wait for a worker to read. A peer that keeps to its windows never gets there; the
link whose message would is closed."""

LINK_BACKLOG_MAX: Final = 16 * 1_048_576
"""Bytes that one worker may have waiting in one link. Credit bounds payload, but the answers that a
peer provokes are beyond it; a link whose peer provokes so much and reads nothing is closed."""

ANSWERS_MAX: Final = 65_536
"""Bytes of the supervisor's own answers (CLOSE 0x16) that may wait in a link; more are omitted."""

_unpack_header = HEADER.unpack_from
_HEADER_SIZE = HEADER.size

_UDP_ASSOCIATE = int(MessageType.UDP_ASSOCIATE)
_UDP_PACKET = int(MessageType.UDP_PACKET)
_OPENERS = frozenset({MessageType.OPEN_CONNECTION, MessageType.UDP_ASSOCIATE, MessageType.BIND})
_ENDERS = frozenset({MessageType.CLOSE_CONNECTION, MessageType.UDP_ASSOCIATE_CLOSED})
_TRACKED = frozenset(int(kind) for kind in _OPENERS | _ENDERS)
_STREAM = frozenset({MessageType.DATA, MessageType.SEND_EOF})
_MAY_COME_LATE = _ENDERS | {MessageType.WINDOW_UPDATE}
_KNOWN = frozenset(int(kind) for kind in MessageType)


class WorkerPort(Protocol):
    """What the router needs of a worker's IPC channel."""

    paused: bool
    """True while the operating system's buffer is full and bytes wait in this process."""

    @property
    def buffered(self) -> int:
        """Bytes that wait in this process for the worker to read."""

    def send_message(self, link: int, message: bytes) -> None:
        """Send a tunnel message."""

    def send_control(self, link: int, fields: dict[str, Any]) -> None:
        """Send a control frame."""


class LinkPort(Protocol):
    """What the router needs of a link."""

    def send(self, message: bytes) -> bool:
        """Send a flow message; False if it was dropped."""


class Share:
    """One worker's part in one link: how much of its credit is where, in bytes.

    `outstanding` waits in the link, `due` has left it and was not given back yet, and the worker
    holds the rest of `grant`. `worker` is None once the worker is gone: what it had sent still
    drains, but nobody is credited.
    """

    __slots__ = ("batch", "due", "grant", "outstanding", "worker")

    def __init__(self, worker: WorkerPort | None, grant: int) -> None:
        self.worker = worker
        self.grant = grant
        self.batch = max(grant // 4, 1)
        self.outstanding = 0
        self.due = 0


class RoutedLink:
    """A link that is up, as the router sees it. `id` is the LINK of IPC frames."""

    def __init__(
        self, router: "Router", link_id: int, port: LinkPort, peer: str, fields: dict[str, Any]
    ) -> None:
        self.id = link_id
        self.peer = peer
        self.port = port
        self._router = router
        self._fields = fields
        self._accepts = True
        self._owners: dict[int, Share] = {}
        self._associations: set[int] = set()
        self._shares: dict[int, Share] = {}
        self._fifo: deque[tuple[Share, int]] = deque()
        self._carry = 0
        self._own = Share(None, 0)
        self._reported: set[str] = set()
        self._abusive = False

    @property
    def flows(self) -> int:
        """How many flows are open."""
        return len(self._owners)

    @property
    def associations(self) -> int:
        """How many of the flows are UDP associations."""
        return len(self._associations)

    # --- messages of the peer -----------------------------------------------------------------

    def from_link(self, message: bytes) -> None:
        """Route one message that came from the peer; it is at least a header long."""
        kind, _, conn_id = _unpack_header(message)
        share = self._owners.get(conn_id)
        if share is None:
            share = self._unowned(kind, conn_id)
            if share is None:
                return
        elif kind in _ENDERS:
            del self._owners[conn_id]
            self._associations.discard(conn_id)
        worker = share.worker
        assert worker is not None, "flows of a lost worker are taken out of the table with it"
        if worker.paused and worker.buffered > DATAGRAM_BACKLOG_MAX:
            if kind == _UDP_PACKET:
                self._router.metrics.udp_dropped_total.labels("worker-busy").inc()
                return
            if worker.buffered > WORKER_BACKLOG_MAX:
                self._abuse(
                    f"{worker.buffered} bytes wait for one worker: the peer ignores its windows"
                )
                return
        worker.send_message(self.id, message)

    def _unowned(self, kind: int, conn_id: int) -> Share | None:
        """Take a new flow in, or deal with a message whose flow nobody here knows."""
        if kind in _OPENERS:
            if conn_id == 0:
                self._protocol_error("zero-conn-id", "opened a flow with CONN_ID 0")
                return None
            if self._router.opens:
                self._protocol_error("unexpected-open", "opened a flow, which only gateways do")
                self._refuse(kind, conn_id, CloseReason.PROTOCOL_ERROR)
                return None
            return self._assign(kind, conn_id)
        if kind in _STREAM:
            # Late bytes of a flow that was just closed, or a peer that is confused. Its sender has
            # to learn that nobody takes them; nothing else is ever answered.
            self._count_unknown_flow()
            self._answer(CloseConnection(conn_id, CloseReason.UNKNOWN_FLOW).encode())
        elif kind == _UDP_PACKET:
            self._router.metrics.udp_dropped_total.labels("unknown-flow").inc()
        elif kind in LINK_TYPES:
            self._protocol_error(
                "wrong-channel", f"sent a message of type {kind} outside `control`"
            )
        elif kind not in _KNOWN:
            self._router.metrics.messages_unknown_total.inc()
        elif kind not in _MAY_COME_LATE:
            self._count_unknown_flow()
        return None

    def _assign(self, kind: int, conn_id: int) -> Share | None:
        router = self._router
        if router.draining:
            self._refuse(kind, conn_id, CloseReason.SHUTTING_DOWN)
            return None
        if len(self._owners) >= router.flows_per_link:
            self._refuse(kind, conn_id, CloseReason.RESOURCE_LIMIT)
            return None
        first = mix32(conn_id ^ mix32(self.id))
        for step in range(router.worker_count):
            share = self._shares.get((first + step) % router.worker_count)
            if share is not None:
                self._add(kind, conn_id, share)
                return share
        self._refuse(kind, conn_id, CloseReason.WORKER_LOST)
        return None

    # --- messages of the workers --------------------------------------------------------------

    def from_worker(self, share: Share, message: bytes) -> None:
        """Send one message of the worker that holds `share`.

        Raises :class:`RemoteProtocolError` for what no worker may send.
        """
        size = len(message)
        if size < _HEADER_SIZE:
            raise RemoteProtocolError("a message without a whole header", kind="ipc-message")
        kind = message[0]
        if kind in _TRACKED:
            conn_id = int.from_bytes(message[3:7])
            if kind in _OPENERS:
                self._add(kind, conn_id, share)
            elif self._owners.get(conn_id) is share:
                del self._owners[conn_id]
                self._associations.discard(conn_id)
        share.outstanding += size
        self._fifo.append((share, size))
        try:
            sent = self.port.send(message)
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error), kind="ipc-message") from None
        if not sent:
            # Dropped: as far as credit goes, it has left.
            self._unsent()
            self._settle(share, size)
        elif share.outstanding > LINK_BACKLOG_MAX:
            self._abuse(f"{share.outstanding} bytes wait for the peer, which does not read")

    def drained(self, count: int) -> None:
        """Give credit back for `count` more bytes that left the data channels' queues."""
        count += self._carry
        fifo = self._fifo
        while fifo and fifo[0][1] <= count:
            share, size = fifo.popleft()
            count -= size
            self._settle(share, size)
        self._carry = count if fifo else 0

    def _settle(self, share: Share, size: int) -> None:
        share.outstanding -= size
        worker = share.worker
        if worker is not None:
            share.due += size
            if share.due >= share.batch:
                due, share.due = share.due, 0
                worker.send_control(self.id, {"op": "credit", "bytes": due})

    # --- workers and the link itself ----------------------------------------------------------

    def worker_up(self, index: int, worker: WorkerPort) -> Share:
        """Give a worker its share of the link, and tell it of the link."""
        grant = max(CREDIT_PER_LINK // self._router.worker_count, CREDIT_MIN)
        share = self._shares[index] = Share(worker, grant)
        worker.send_control(self.id, {"op": "link-up", **self._fields, "credit": grant})
        if not self._accepts:
            worker.send_control(self.id, {"op": "link-goaway"})
        return share

    def worker_down(self, index: int) -> int:
        """Close the flows of a worker that is gone, at the peer; give how many there were."""
        share = self._shares.pop(index, None)
        if share is None:
            return 0
        share.worker = None
        lost = [conn_id for conn_id, owner in self._owners.items() if owner is share]
        for conn_id in lost:
            del self._owners[conn_id]
            if conn_id in self._associations:
                self._associations.discard(conn_id)
                self._send(UdpAssociateClosed(conn_id, CloseReason.WORKER_LOST).encode())
            else:
                self._send(CloseConnection(conn_id, CloseReason.WORKER_LOST).encode())
        return len(lost)

    def goaway(self) -> None:
        """Tell the workers that the peer wants nothing new on this link."""
        self._accepts = False
        self._broadcast({"op": "link-goaway"})

    def down(self, reason: str) -> None:
        """Tell the workers that the link has ended, and forget its flows."""
        self._broadcast({"op": "link-down", "reason": reason})
        for share in self._shares.values():
            share.worker = None
        self._shares.clear()
        self._owners.clear()
        self._associations.clear()
        self._fifo.clear()

    def _broadcast(self, fields: dict[str, Any]) -> None:
        for share in self._shares.values():
            if share.worker is not None:
                share.worker.send_control(self.id, fields)

    # --- helpers ------------------------------------------------------------------------------

    def _add(self, kind: int, conn_id: int, share: Share) -> None:
        self._owners[conn_id] = share
        if kind == _UDP_ASSOCIATE:
            self._associations.add(conn_id)

    def _refuse(self, kind: int, conn_id: int, reason: CloseReason) -> None:
        if kind == _UDP_ASSOCIATE:
            self._answer(UdpAssociateClosed(conn_id, reason).encode())
        else:
            self._answer(CloseConnection(conn_id, reason).encode())

    def _answer(self, message: bytes) -> None:
        if self._own.outstanding < ANSWERS_MAX:
            self._send(message)

    def _send(self, message: bytes) -> None:
        """Send a message of the supervisor's own."""
        size = len(message)
        self._own.outstanding += size
        self._fifo.append((self._own, size))
        if not self.port.send(message):
            self._unsent()
            self._own.outstanding -= size

    def _unsent(self) -> None:
        """Forget the newest entry of the FIFO. It went in first, as `send` may drain at once."""
        if self._fifo:  # a link that ends within `send` has emptied it
            self._fifo.pop()

    def _count_unknown_flow(self) -> None:
        self._router.metrics.protocol_errors_total.labels("unknown-flow").inc()

    def _protocol_error(self, kind: str, what: str) -> None:
        self._router.metrics.protocol_errors_total.labels(kind).inc()
        if kind not in self._reported:
            self._reported.add(kind)
            _log.warning(
                "link %s: the peer %s; further errors of this kind are only counted",
                self.peer,
                what,
            )

    def _abuse(self, reason: str) -> None:
        if not self._abusive:  # closing takes a moment, and more may come in that time
            self._abusive = True
            self._router.on_abuse(self, reason)


class WorkerRoutes:
    """The way of one worker's messages to the links."""

    __slots__ = ("_links", "_shares")

    def __init__(self) -> None:
        self._links: dict[int, RoutedLink] = {}
        self._shares: dict[int, Share] = {}

    def from_worker(self, link: int, body: memoryview) -> None:
        """Send a tunnel message of the worker on `link`. Raises :class:`RemoteProtocolError`."""
        share = self._shares.get(link)
        if share is not None:  # else: the link went down while the message was under way
            self._links[link].from_worker(share, bytes(body))

    def add(self, link: RoutedLink, share: Share) -> None:
        """Open the way to a link."""
        self._links[link.id] = link
        self._shares[link.id] = share

    def remove(self, link_id: int) -> None:
        """Close the way to a link."""
        self._links.pop(link_id, None)
        self._shares.pop(link_id, None)


class Router:
    """All links and all workers that are up.

    `opens` says whether our workers open the flows (gateway) or the peers do (endpoint).
    `on_abuse` is called once for a link that has to be closed, with a sentence that says why.
    """

    def __init__(
        self,
        *,
        opens: bool,
        worker_count: int,
        flows_per_worker: int,
        metrics: Metrics,
        on_abuse: Callable[[RoutedLink, str], None],
    ) -> None:
        self.opens = opens
        self.worker_count = worker_count
        self.flows_per_link = flows_per_worker * worker_count
        self.metrics = metrics
        self.on_abuse = on_abuse
        self.draining = False
        self.links: dict[int, RoutedLink] = {}
        self._workers: dict[int, tuple[WorkerPort, WorkerRoutes]] = {}
        self._last_id = 0

    @property
    def flows(self) -> int:
        """How many flows are open over all links."""
        return sum(link.flows for link in self.links.values())

    @property
    def workers(self) -> int:
        """How many workers take flows."""
        return len(self._workers)

    def worker_up(self, index: int, worker: WorkerPort) -> WorkerRoutes:
        """Let a worker that is ready take part in all links."""
        routes = WorkerRoutes()
        self._workers[index] = worker, routes
        for link in self.links.values():
            routes.add(link, link.worker_up(index, worker))
        return routes

    def worker_down(self, index: int) -> int:
        """Take a worker out of all links; give how many flows were closed with it."""
        if self._workers.pop(index, None) is None:
            return 0
        return sum(link.worker_down(index) for link in self.links.values())

    def link_up(self, port: LinkPort, peer: str, fields: dict[str, Any]) -> RoutedLink:
        """Take in a link. `fields` is what `link-up` says to the workers, but for `credit`."""
        link = RoutedLink(self, self._free_id(), port, peer, fields)
        self.links[link.id] = link
        for index, (worker, routes) in self._workers.items():
            routes.add(link, link.worker_up(index, worker))
        return link

    def link_down(self, link: RoutedLink, reason: str) -> None:
        """Take a link out and tell the workers why."""
        if self.links.pop(link.id, None) is None:
            return
        link.down(reason)
        for _, routes in self._workers.values():
            routes.remove(link.id)

    def _free_id(self) -> int:
        """Give the next id that is free, 1 to 65535: one that ended is not taken again soon."""
        for _ in range(0xFFFF):
            self._last_id = self._last_id % 0xFFFF + 1
            if self._last_id not in self.links:
                return self._last_id
        raise LocalProtocolError("65535 links are up")
