"""One TCP flow of a session: its life, its two streams, and what each event leads to.

All transitions of a flow are in this file. `opener` is the side that asked for the flow (always the
gateway), `answerer` the other one:

    state          may transmit          peer may transmit     how it is left
    -------------  --------------------  --------------------  -------------------------------------
    OPENING        DATA (early), EOF     DATA, EOF             listening() -> LISTENING (BIND)
                                                               opened() -> by the flags below
    LISTENING      DATA (early), EOF     DATA, EOF             opened() -> by the flags below
    OPEN           DATA, EOF             DATA, EOF             EOF sent -> HALF_LOCAL
                                                               EOF came -> HALF_REMOTE
    HALF_LOCAL     WINDOW_UPDATE         DATA, EOF             EOF came -> FINISHED
    HALF_REMOTE    DATA, EOF             WINDOW_UPDATE         EOF sent -> FINISHED
    FINISHED       CLOSE, by the opener  nothing               close() -> CLOSING or CLOSED
    CLOSING        nothing               (ignored)             all was written to the local socket
    CLOSED         nothing               (ignored)             final

CLOSE_CONNECTION leads from every state to CLOSED, or to CLOSING if it is orderly and the local
socket is still owed bytes: the flow is over on the wire, and what came before is still delivered.
DATA after SEND_EOF, and bytes beyond LIMIT, are protocol errors of the peer: the flow is closed
with 0x15.

A lost link changes no state. What was transmitted and not acknowledged is kept in the send stream;
the peer's row in RESUME says from where to go on (docs/protocol.md section 6).
"""

from collections.abc import Callable, Container, Iterator, Mapping
from enum import Enum
from typing import Any, Final, Generic, Self, TypeVar

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.streams import ReceiveStream, SendStream

ROW_OPEN: Final = 1
"""Flag of a RESUME row: the flow is open here (an opening whose answer is awaited is not)."""
ROW_EOF: Final = 2
"""Flag of a RESUME row: the peer's end of file was received."""
ROW_CLOSED: Final = 4
"""Flag of a RESUME row: this side has closed the flow, for the reason in bits 8 to 15."""

CONN_ID_MAX: Final = (1 << 32) - 1
"""Highest name of a flow."""

WORKERS_MAX: Final = 64
"""Workers that an instance may have."""


class FlowState(Enum):
    """State of a TCP flow; see the table at the top of this file."""

    OPENING = "opening"
    LISTENING = "listening"
    OPEN = "open"
    HALF_LOCAL = "half-closed (local)"
    HALF_REMOTE = "half-closed (remote)"
    FINISHED = "finished"
    CLOSING = "closing"
    CLOSED = "closed"


_BEFORE_OPEN: Final = frozenset({FlowState.OPENING, FlowState.LISTENING})
_AT_THE_END: Final = frozenset({FlowState.CLOSING, FlowState.CLOSED})


class TcpFlow:
    """Streams and life of one TCP flow, the same on both sides.

    `send_window` is what the peer's HELLO allows at first, `receive_window` what ours does.
    """

    __slots__ = ("_phase", "conn_id", "receive", "send")

    def __init__(self, conn_id: int, *, send_window: int, receive_window: int) -> None:
        self.conn_id = conn_id
        self.send = SendStream(send_window)
        self.receive = ReceiveStream(receive_window)
        self._phase = FlowState.OPENING

    @property
    def state(self) -> FlowState:
        """The state by the table at the top of this file."""
        phase = self._phase
        if phase is not FlowState.OPEN:
            return phase
        match (self.send.eof_sent, self.receive.eof):
            case (False, False):
                return FlowState.OPEN
            case (True, False):
                return FlowState.HALF_LOCAL
            case (False, True):
                return FlowState.HALF_REMOTE
            case _:
                return FlowState.FINISHED

    @property
    def opened(self) -> bool:
        """Whether the far side is connected, and the flow is not closed."""
        return self._phase is FlowState.OPEN

    @property
    def opening(self) -> bool:
        """Whether the far side has not answered yet, or listens for a caller."""
        return self._phase in _BEFORE_OPEN

    @property
    def closed(self) -> bool:
        """Whether the flow is over on the wire."""
        return self._phase in _AT_THE_END

    @property
    def closing(self) -> bool:
        """Whether it is over on the wire while the local socket is still owed bytes."""
        return self._phase is FlowState.CLOSING

    @property
    def cost(self) -> int:
        """Bytes of memory that the kept bytes of both streams take."""
        return self.send.cost + self.receive.pending.cost

    @property
    def owes(self) -> bool:
        """Whether bytes that came are still to be written to the local socket."""
        return not self.receive.all_written

    @property
    def shutdown_due(self) -> bool:
        """Whether the peer's end of file has to be passed on to the local socket now."""
        receive = self.receive
        return receive.eof and not receive.eof_delivered and receive.received == receive.consumed

    @property
    def delivered(self) -> bool:
        """Whether both streams have ended and everything was delivered here: CLOSE is due."""
        return self.send.eof_sent and self.receive.eof_delivered and self._phase is FlowState.OPEN

    @property
    def readable(self) -> int:
        """How many bytes may be read from the local socket now."""
        send = self.send
        return 0 if send.eof or self.closed else send.limit - send.end

    # --- opening --------------------------------------------------------------------------------

    def open(self) -> None:
        """Notes that the far side is connected.

        Raises :class:`RemoteProtocolError` if that was said before, or after the end.
        """
        if self._phase not in _BEFORE_OPEN:
            raise RemoteProtocolError(
                "an answer to an open came twice", kind="opened-twice", conn_id=self.conn_id
            )
        self._phase = FlowState.OPEN

    def listen(self) -> None:
        """Notes that the far side listens for the caller of a BIND.

        Raises :class:`RemoteProtocolError` if that was said before.
        """
        if self._phase is not FlowState.OPENING:
            raise RemoteProtocolError(
                "BIND_LISTENING came twice", kind="opened-twice", conn_id=self.conn_id
            )
        self._phase = FlowState.LISTENING

    # --- the peer's stream ----------------------------------------------------------------------

    def receive_data(self, count: int) -> None:
        """Accounts for `count` bytes of DATA that came. Raises :class:`RemoteProtocolError`."""
        try:
            self.receive.receive(count)
        except RemoteProtocolError as error:
            error.conn_id = self.conn_id
            raise

    def receive_eof(self) -> None:
        """Accounts for SEND_EOF that came. Raises :class:`RemoteProtocolError` if it came twice."""
        try:
            self.receive.finish()
        except RemoteProtocolError as error:
            error.conn_id = self.conn_id
            raise

    def shut_down(self) -> None:
        """Notes that the peer's end of file was passed on to the local socket."""
        if not self.shutdown_due:
            raise LocalProtocolError("the local socket was shut down before its time")
        self.receive.eof_delivered = True

    # --- resume ---------------------------------------------------------------------------------

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME for this flow: (conn_id, received, limit, flags)."""
        receive = self.receive
        flags = (0 if self.opening else ROW_OPEN) | (ROW_EOF if receive.eof else 0)
        return self.conn_id, receive.received, receive.limit, flags

    def resume(self, received: int, limit: int, flags: int) -> None:
        """Goes on from where the peer is. Raises :class:`RemoteProtocolError` if it lies."""
        try:
            self.send.resume(received, limit, eof_received=bool(flags & ROW_EOF))
        except RemoteProtocolError as error:
            error.conn_id = self.conn_id
            raise

    # --- the end --------------------------------------------------------------------------------

    def close(self, reason: int) -> None:
        """Notes that the flow is over on the wire, for whatever reason and from either side."""
        if self._phase is FlowState.CLOSED:
            return
        self.send.forget()
        if reason == CloseReason.ORDERLY and self._phase is FlowState.OPEN and self.owes:
            self._phase = FlowState.CLOSING
        else:
            self._phase = FlowState.CLOSED
            self.receive.pending.clear()

    def abandon(self) -> None:
        """Ends also what is still owed to the local socket."""
        self.send.forget()
        self.receive.pending.clear()
        self._phase = FlowState.CLOSED

    # --- hand-over ------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Returns the flow as plain values, for a hand-over to another process."""
        return {
            "conn_id": self.conn_id,
            "phase": self._phase.value,
            "send": self.send.export(),
            "receive": self.receive.export(),
        }

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the flow that :meth:`export` described.

        Raises :class:`~socks_tunnel.protocol.bounded.Malformed` for what no flow can be.
        """
        conn_id = bounded.integer(fields, "conn_id", 1, CONN_ID_MAX)
        flow = cls(conn_id, send_window=0, receive_window=0)
        phases = {phase.value: phase for phase in _BEFORE_OPEN | _AT_THE_END | {FlowState.OPEN}}
        name = bounded.text(fields, "phase")
        if name not in phases:
            raise bounded.unusable(fields, "phase")
        flow._phase = phases[name]
        flow.send = SendStream.restore(bounded.table(fields, "send"))
        flow.receive = ReceiveStream.restore(bounded.table(fields, "receive"))
        return flow


class ConnIdAllocator:
    """CONN_IDs of one gateway worker: `index` modulo `count`, never 0, upwards and around.

    No two workers of a gateway have an id in common. `count` is :data:`WORKERS_MAX` and not how
    many there are: that may change while flows are open.
    """

    __slots__ = ("_count", "_index", "_next")

    def __init__(self, index: int, count: int = WORKERS_MAX, *, start: int = 0) -> None:
        if not 0 <= index < count:
            raise ValueError(f"worker {index} of {count} cannot be")
        self._index = index
        self._count = count
        turns = (1 << 32) // count
        self._next = start % turns

    def allocate(self, in_use: Container[object]) -> int:
        """Returns the next id that no flow in `in_use` has."""
        turns = (1 << 32) // self._count
        for _ in range(turns):
            conn_id = self._next * self._count + self._index
            self._next = (self._next + 1) % turns
            if conn_id and conn_id not in in_use:
                return conn_id
        raise LocalProtocolError("no CONN_ID is free")


class InUse:
    """The ids of open flows and of those whose end the peer may not know yet."""

    __slots__ = ("_closed", "_flows")

    def __init__(self, flows: Container[object], closed: Container[object]) -> None:
        self._flows = flows
        self._closed = closed

    def __contains__(self, conn_id: object) -> bool:
        return conn_id in self._flows or conn_id in self._closed


F = TypeVar("F")


class FlowTable(Generic[F]):
    """The flows of one session in one worker, by CONN_ID; at most `limit` of them."""

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

    def ids(self) -> list[int]:
        """Returns the CONN_IDs in use."""
        return list(self._flows)

    def check(self, conn_id: int) -> None:
        """Raises :class:`RemoteProtocolError` if a flow of this id cannot be opened.

        It is of kind `flow-exists` for an id that is in use (ids are the gateway's to choose,
        never 0, never reused while either side may refer to them), and of kind `too-many-flows`
        beyond the limit.
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

    def add(self, conn_id: int, flow: F) -> None:
        """Adds a flow. Raises :class:`RemoteProtocolError` as :meth:`check` does."""
        self.check(conn_id)
        self._flows[conn_id] = flow

    def resize(self, limit: int) -> None:
        """Lets there be at most `limit` flows from now on; more that are there already stay."""
        self.limit = limit

    def remove(self, conn_id: int) -> F | None:
        """Takes a flow out and returns it, or None if it is not there."""
        return self._flows.pop(conn_id, None)


class Questions:
    """The RESOLVEs of the peer that are being answered, by CONN_ID.

    A question is no flow, but its CONN_ID is in use.
    """

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked: dict[int, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def ids(self) -> list[int]:
        """Returns the CONN_IDs in use."""
        return list(self._asked)

    def add(self, conn_id: int, give_up: Callable[[], object]) -> None:
        """Adds a question; `give_up` is called if nobody waits for its answer any more."""
        self._asked[conn_id] = give_up

    def remove(self, conn_id: int) -> None:
        """Takes out a question that is answered; harmless if it is not there."""
        self._asked.pop(conn_id, None)

    def give_up(self, conn_id: int) -> bool:
        """Gives up the question of that id, and says whether there was one."""
        found = self._asked.pop(conn_id, None)
        if found is None:
            return False
        found()
        return True

    def give_up_all(self) -> None:
        """Gives up every question."""
        for conn_id in list(self._asked):
            self.give_up(conn_id)
