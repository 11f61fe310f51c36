"""One flow's windows and half-close state, and the table of flows of a link.

Theory. A TCP flow is two independent byte streams, one each way. For each, the receiver says how
far the sender may go, because neither a WebRTC data channel nor aiortc's SCTP sender ever holds a
fast sender back from a slow reader (docs/protocol.md section 4). Both ends count bytes from 0:

    sender:    CONSUMED <= sent <= LIMIT          retained for a resume: [CONSUMED, sent)
    receiver:  consumed <= received <= limit      limit = consumed + window, when last announced

CONSUMED and LIMIT only grow, so an update that comes late, twice or out of order changes nothing.

A stream ends with SEND_EOF, which says nothing about the other one. The flow as a whole ends with
CLOSE_CONNECTION. All transitions, and what each side may still do:

    state          we may send          peer may send        how it is left
    -------------  -------------------  -------------------  ---------------------------------------
    OPENING        DATA (early), EOF    DATA, EOF            opened() -> by the flags below
    OPEN           DATA, EOF            DATA, EOF            send_eof() -> HALF_LOCAL
                                                             receive_eof() -> HALF_REMOTE
    HALF_LOCAL     WINDOW_UPDATE        DATA, EOF            receive_eof() -> FINISHED
    HALF_REMOTE    DATA, EOF            WINDOW_UPDATE        send_eof() -> FINISHED
    FINISHED       CLOSE                CLOSE                CLOSE, by the gateway: all is delivered
    CLOSED         nothing              (ignored)            final

CLOSE_CONNECTION leads from every state to CLOSED. DATA after SEND_EOF, and bytes beyond LIMIT, are
protocol errors of the peer: the flow is closed with 0x15.
"""

from collections.abc import Container, Iterator
from enum import Enum
from typing import Generic, TypeVar

from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError


class FlowState(Enum):
    """State of a TCP flow; see the table at the top of this file."""

    OPENING = "opening"
    OPEN = "open"
    HALF_LOCAL = "half-closed (local)"
    HALF_REMOTE = "half-closed (remote)"
    FINISHED = "finished"
    CLOSED = "closed"


class SendWindow:
    """The sender's view of one stream. All counts are bytes from the stream's start.

    The attributes are read on the data path; they change only through the methods.
    """

    __slots__ = ("consumed", "limit", "sent")

    def __init__(self, window: int) -> None:
        self.sent = 0
        self.consumed = 0
        self.limit = window

    @property
    def available(self) -> int:
        """How many bytes may be sent now."""
        return self.limit - self.sent

    def send(self, count: int) -> None:
        """Take note of `count` bytes sent. Raises :class:`LocalProtocolError` beyond LIMIT."""
        if count > self.limit - self.sent:
            raise LocalProtocolError(
                f"sending {count} bytes with only {self.limit - self.sent} in the window"
            )
        self.sent += count

    def update(self, consumed: int, limit: int) -> bool:
        """Apply a WINDOW_UPDATE; say whether more may be sent than before.

        Raises :class:`RemoteProtocolError` if the peer says it consumed what was never sent.
        """
        if consumed > self.sent:
            raise RemoteProtocolError(
                f"WINDOW_UPDATE has CONSUMED {consumed}, but only {self.sent} bytes were sent",
                kind="window-consumed",
            )
        self.consumed = max(self.consumed, consumed)
        if limit > self.limit:
            self.limit = limit
            return True
        return False


class ReceiveWindow:
    """The receiver's view of one stream. All counts are bytes from the stream's start."""

    __slots__ = ("consumed", "limit", "received", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.received = 0
        self.consumed = 0
        self.limit = window

    @property
    def buffered(self) -> int:
        """Bytes that came and that the local socket has not taken yet."""
        return self.received - self.consumed

    def receive(self, count: int) -> None:
        """Take note of `count` bytes of DATA. Raises :class:`RemoteProtocolError` beyond LIMIT."""
        if self.received + count > self.limit:
            raise RemoteProtocolError(
                f"the peer sent {self.received + count} bytes with a limit of {self.limit}",
                kind="window-exceeded",
            )
        self.received += count

    def consume(self, count: int) -> bool:
        """Take note that the local socket took `count` bytes; say whether an update is due.

        An update is due when half of the window has been consumed since the last one: fewer
        messages than one per read, and the sender never runs dry on a path shorter than half a
        window.
        """
        if count > self.received - self.consumed:
            raise LocalProtocolError(
                f"consuming {count} bytes with only {self.received - self.consumed} received"
            )
        self.consumed += count
        return self.consumed + self.window - self.limit >= self.window >> 1

    def announce(self) -> tuple[int, int]:
        """Open the window as far as it may be now; give (CONSUMED, LIMIT) for a WINDOW_UPDATE."""
        self.limit = max(self.limit, self.consumed + self.window)
        return self.consumed, self.limit


class TcpFlow:
    """Windows and half-close state of one TCP flow, the same on both sides.

    `send_window` is what the peer's HELLO allows at first, `receive_window` what ours does.
    """

    __slots__ = ("closed", "conn_id", "opened", "receive", "received_eof", "send", "sent_eof")

    def __init__(self, conn_id: int, *, send_window: int, receive_window: int) -> None:
        self.conn_id = conn_id
        self.send = SendWindow(send_window)
        self.receive = ReceiveWindow(receive_window)
        self.opened = False
        self.sent_eof = False
        self.received_eof = False
        self.closed = False

    @property
    def state(self) -> FlowState:
        """The state by the table at the top of this file."""
        if self.closed:
            return FlowState.CLOSED
        if not self.opened:
            return FlowState.OPENING
        match (self.sent_eof, self.received_eof):
            case (False, False):
                return FlowState.OPEN
            case (True, False):
                return FlowState.HALF_LOCAL
            case (False, True):
                return FlowState.HALF_REMOTE
            case _:
                return FlowState.FINISHED

    @property
    def delivered(self) -> bool:
        """Whether both streams have ended and the local socket took everything: CLOSE is due."""
        return (
            self.sent_eof
            and self.received_eof
            and self.opened
            and self.receive.received == self.receive.consumed
        )

    def open(self) -> None:
        """Take note that the far side is connected.

        Raises :class:`RemoteProtocolError` if it says so twice.
        """
        if self.opened or self.closed:
            raise RemoteProtocolError(
                "an answer to an open came twice", kind="opened-twice", conn_id=self.conn_id
            )
        self.opened = True

    def send_data(self, count: int) -> None:
        """Account for `count` bytes of DATA to be sent now."""
        if self.sent_eof or self.closed:
            raise LocalProtocolError(f"DATA after the end, in state {self.state.value}")
        self.send.send(count)

    def send_eof(self) -> None:
        """Account for SEND_EOF to be sent now."""
        if self.sent_eof or self.closed:
            raise LocalProtocolError(f"SEND_EOF after the end, in state {self.state.value}")
        self.sent_eof = True

    def receive_data(self, count: int) -> None:
        """Account for `count` bytes of DATA that came. Raises :class:`RemoteProtocolError`."""
        if self.received_eof:
            raise RemoteProtocolError(
                "DATA after SEND_EOF", kind="data-after-eof", conn_id=self.conn_id
            )
        self.receive.receive(count)

    def receive_eof(self) -> None:
        """Account for SEND_EOF that came. Raises :class:`RemoteProtocolError` if it came before."""
        if self.received_eof:
            raise RemoteProtocolError("SEND_EOF came twice", kind="eof-twice", conn_id=self.conn_id)
        self.received_eof = True

    def close(self) -> None:
        """CLOSE_CONNECTION was sent or came, or the link is gone."""
        self.closed = True


class ConnIdAllocator:
    """CONN_IDs of one gateway worker: `index` modulo `count`, never 0, upwards and around.

    So that the supervisor finds the worker of a flow from the id alone.
    """

    __slots__ = ("_count", "_index", "_next")

    def __init__(self, index: int, count: int, *, start: int = 0) -> None:
        if not 0 <= index < count:
            raise ValueError(f"worker {index} of {count} cannot be")
        self._index = index
        self._count = count
        turns = (1 << 32) // count
        self._next = start % turns

    def allocate(self, in_use: Container[object]) -> int:
        """Give the next id that no flow in `in_use` has."""
        turns = (1 << 32) // self._count
        for _ in range(turns):
            conn_id = self._next * self._count + self._index
            self._next = (self._next + 1) % turns
            if conn_id and conn_id not in in_use:
                return conn_id
        raise LocalProtocolError("no CONN_ID is free")


F = TypeVar("F")


class FlowTable(Generic[F]):
    """The flows of one link in one worker, by CONN_ID; at most `limit` of them."""

    __slots__ = ("_flows", "get", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._flows: dict[int, F] = {}
        # The data path asks for a flow with every message: bind the dictionary's own method.
        self.get = self._flows.get

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._flows

    def __iter__(self) -> Iterator[F]:
        return iter(list(self._flows.values()))

    def add(self, conn_id: int, flow: F) -> None:
        """Add a flow.

        Raises :class:`RemoteProtocolError` of kind `flow-exists` for an id that is in use (ids are
        the gateway's to choose, never 0, never reused while either side may refer to them), and of
        kind `too-many-flows` beyond the limit.
        """
        if conn_id == 0 or conn_id in self._flows:
            raise RemoteProtocolError(
                f"CONN_ID {conn_id} cannot be opened: it is in use or 0",
                kind="flow-exists",
                conn_id=conn_id,
            )
        if len(self._flows) >= self.limit:
            raise RemoteProtocolError(
                f"the limit of {self.limit} flows is reached",
                kind="too-many-flows",
                conn_id=conn_id,
            )
        self._flows[conn_id] = flow

    def remove(self, conn_id: int) -> F | None:
        """Take a flow out; give it, or None if it is not there."""
        return self._flows.pop(conn_id, None)
