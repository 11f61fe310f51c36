"""A session: the flows between one gateway and one endpoint, which outlive the links beneath them.

Sans-IO, and the same object on both sides. Each worker has one for its slice of a session's flows;
the supervisors, which own the links, only route by CONN_ID. What happens to it::

    attach(terms, credit)      a link is there: transmit, once `resumed` has run if a resume is due
    receive(message)           one message of the peer, handed to the flow that it names
    grant(credit)              transmit what waits, in the scheduler's order
    resumed(rows, last)        the peer's RESUME: go on where it is, end what it lacks
    detach()                   the link is gone: flows stay, their bytes are kept, nothing is sent

What a session transmits, and what it has to tell its owner, goes to its :class:`Outlet` by plain
calls; what a flow has to do with its local socket goes to the :class:`SessionFlow`. Time comes in
as `now`, in seconds of any monotonic clock.

Reconciliation (docs/protocol.md section 6). After `attach` the flows that exist at that moment are
held: a DATA message has no offset, so nothing may be sent before the peer has said how much of the
stream it has. A flow of ours that the peer's rows do not name has ended there, unless it waits for
the answer to its opening: then the opening or the answer was lost, and it is asked again. Flows
that are opened after `attach` are on the new link only, and take no part in this.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.flow import ROW_CLOSED, ROW_OPEN, FlowTable, InUse, Questions
from socks_tunnel.protocol.messages import (
    FLOW_ENDERS,
    FLOW_OPENERS,
    HEADER,
    Bind,
    CloseConnection,
    Data,
    Message,
    MessageType,
    OpenConnection,
    Resolve,
    Resolved,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpPacket,
    UnknownMessage,
    WindowUpdate,
    decode,
)
from socks_tunnel.protocol.scheduler import Schedulable, Scheduler

CLOSED_REMEMBERED_MAX: Final = 4096
"""Closed flows that are remembered, so that a peer which missed the CLOSE is told after a resume.
Of an older one it learns that it has ended (0x14), though not why."""

Row = tuple[int, int, int, int]
"""A row of RESUME: (conn_id, received, limit, flags)."""

_HEADER_SIZE: Final = HEADER.size
_unpack: Final = HEADER.unpack_from
# Plain integers for the message path: a comparison with an enum member costs several of these.
_DATA: Final = int(MessageType.DATA)
_UDP_PACKET: Final = int(MessageType.UDP_PACKET)
_UDP: Final = frozenset(map(int, (MessageType.UDP_ASSOCIATE, MessageType.UDP_PACKET)))

Opening: TypeAlias = OpenConnection | Bind | UdpAssociate | Resolve
"""Messages that ask for a flow, or put a question (which is a flow of one answer)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the peer's HELLO allows on a link.

    `window` is how many bytes may be sent on a new flow at first, `max_data` the longest DATA
    payload in bytes, `idle_udp` the peer's idle time of associations in seconds.
    """

    window: int
    max_data: int
    idle_udp: int
    features: frozenset[str] = frozenset()


class SessionFlow(Schedulable, Protocol):
    """What a session needs of each of its flows.

    The handlers raise :class:`RemoteProtocolError` if the peer broke the protocol: the flow is then
    closed. Whatever else one of them raises costs this flow alone.
    """

    conn_id: int

    @property
    def udp(self) -> bool:
        """Whether it is a UDP association."""

    def on_data(self, data: memoryview) -> None:
        """Takes stream bytes. `data` is valid only during the call."""

    def on_window(self, update: WindowUpdate) -> None:
        """Takes a WINDOW_UPDATE."""

    def on_datagram(self, packet: memoryview) -> None:
        """Takes the SOCKS5 UDP packet of a UDP_PACKET. It is valid only during the call."""

    def on_message(self, message: Message) -> None:
        """Takes any other message of the flow."""

    def on_turn(self) -> None:
        """Transmits up to a quantum: the scheduler gives this flow its turn."""

    def on_detached(self) -> None:
        """Stops transmitting: the link is gone."""

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        """Goes on where the peer is, by its row of RESUME."""

    def on_missing(self) -> bool:
        """Asks again what the peer does not know of; False if the flow was open: it has ended."""

    def on_repeated(self, opening: Message) -> None:
        """Answers an opening that came again after a resume, as it was answered before."""

    def row(self) -> Row:
        """Returns the flow's row of RESUME."""

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the flow at once and takes it out of the session."""


F = TypeVar("F", bound=SessionFlow)


class Outlet(Protocol):
    """Where a session's messages and reports go: plain calls that must not raise."""

    def transmit(self, message: bytes) -> None:
        """Transmits a message."""

    def send_pieces(self, header: bytes, payload: bytes | memoryview) -> None:
        """Transmits a message that is made of two pieces."""

    def open(self, message: Opening) -> None:
        """Opens a flow that the peer asks for. Its CONN_ID is free and there is room for it."""

    def protocol_error(self, error: RemoteProtocolError, conn_id: int) -> None:
        """Learns that the peer broke the protocol; the flow is closed by the session."""

    def bug(self, error: Exception, conn_id: int) -> None:
        """Learns that a message met a bug of ours; the flow is closed by the session."""

    def unknown_message(self) -> None:
        """Learns that a message of an unknown type was ignored."""

    def unknown_flow(self, *, datagram: bool) -> None:
        """Learns that bytes came for a flow that is not here."""


class Session(Generic[F]):
    """One worker's slice of a session.

    This class has many methods because each event of link, peer, flows and supervisor has its own.

    `opens` says whether flows are opened on this side (gateway) or by the peer (endpoint),
    `flows_max` how many there may be.
    """

    def __init__(self, outlet: Outlet, *, opens: bool, flows_max: int) -> None:
        self.flows: FlowTable[F] = FlowTable(flows_max)
        self.scheduler: Scheduler[F] = Scheduler()
        self.terms: Terms | None = None
        self.attached = False
        self.resuming = False
        """Whether flows are held until the peer's RESUME has come."""
        self.questions = Questions()
        self.closed: OrderedDict[int, int] = OrderedDict()  # and why; the peer may not know it yet
        self._outlet = outlet
        self._opens = opens
        self._held: set[int] = set()  # flows that existed before the link of the moment
        self._reconcile: set[int] = set()
        self._repeatable: set[int] = set()
        self._named: set[int] = set()  # flows of which the peer's RESUME had a row
        self._closed_before: list[int] = []

    # --- the link -------------------------------------------------------------------------------

    def attach(self, terms: Terms, credit: int, *, resume: bool) -> list[Row]:
        """Takes a link into use; returns the rows of our RESUME.

        With `resume` the flows are held until :meth:`resumed` has got the peer's last row.
        Without it there must be no flows: the peer knows of none.
        """
        if self.attached:
            self.detach()
        if not resume and len(self.flows):
            raise LocalProtocolError("a link without resume cannot take flows over")
        self.terms = terms
        self.attached = True
        self.scheduler.credit = credit
        self._held = set(self.flows.ids())
        self._reconcile = set(self._held)
        self._repeatable = set(self._held)
        self.resuming = bool(self._reconcile)
        rows = [flow.row() for flow in self.flows]
        rows += [
            (conn_id, 0, 0, ROW_CLOSED | reason << 8) for conn_id, reason in self.closed.items()
        ]
        return rows

    def detach(self) -> None:
        """The link is gone. Nothing is transmitted until the next one is attached."""
        if not self.attached:
            return
        self.attached = self.resuming = False
        self._closed_before.clear()
        self._named.clear()
        self._reconcile.clear()
        self._repeatable.clear()
        self.scheduler.clear()
        self.questions.give_up_all()  # what was not answered is asked again after a resume
        for flow in self.flows:
            self._guarded(flow.conn_id, flow.on_detached)

    def resumed(self, rows: Sequence[Row], *, last: bool) -> None:
        """Applies rows of the peer's RESUME. With `last` there are no more: transmit again."""
        for conn_id, received, limit, flags in rows:
            self._reconcile.discard(conn_id)
            self._guarded(conn_id, self._apply_row, conn_id, received, limit, flags)
        if not last:
            return
        missing, self._reconcile = self._reconcile, set()
        self._named.clear()
        self.resuming = False
        for conn_id in missing:
            self._guarded(conn_id, self._missing, conn_id)
        self.transmit()

    def _missing(self, conn_id: int) -> None:
        flow = self.flows.get(conn_id)
        if flow is not None and not flow.on_missing():
            flow.abort(CloseReason.RESUME_FAILED, tell_peer=False)

    def _apply_row(self, conn_id: int, received: int, limit: int, flags: int) -> None:
        flow = self.flows.get(conn_id)
        if flow is None:
            if flags & ROW_OPEN and not flags & ROW_CLOSED:
                # Gone here: the peer has to be told, by the reason if it is remembered.
                reason = self.closed.get(conn_id, CloseReason.RESUME_FAILED)
                self._outlet.transmit(CloseConnection(conn_id, reason).encode())
        elif conn_id not in self._held:
            # Opened on this link: its opening has overtaken RESUME. The row is of an older flow, or
            # of this one before its opening was sent again; it must not set the stream back.
            return
        elif conn_id in self._named:
            raise RemoteProtocolError("RESUME names a flow twice", kind="resume-twice")
        elif flags & ROW_CLOSED:
            reason = flags >> 8 & 0xFF
            if flow.udp:
                flow.on_message(UdpAssociateClosed(conn_id, reason))
            else:
                flow.on_message(CloseConnection(conn_id, reason))
        else:
            self._named.add(conn_id)
            flow.on_resumed(received, limit, flags)

    # --- from the peer --------------------------------------------------------------------------

    def receive(self, message: memoryview) -> None:
        """Hands one message of the peer to its flow.

        It never raises: whatever is wrong with a message costs the flow that it names. `message` is
        valid only during the call.
        """
        kind, _, conn_id = _unpack(message)
        flow = self.flows.get(conn_id)
        try:
            if kind == _DATA:
                if flow is None:
                    self._unowned(kind, conn_id)
                elif len(message) == _HEADER_SIZE:
                    decode(message)  # raises: a DATA message has at least one byte
                else:
                    flow.on_data(message[_HEADER_SIZE:])
            elif kind == _UDP_PACKET:
                if flow is None:
                    self._unowned(kind, conn_id)
                else:
                    flow.on_datagram(message[_HEADER_SIZE:])
            else:
                self._receive_rarer(kind, conn_id, flow, message)
        except RemoteProtocolError as error:
            self._protocol_error(error, kind, conn_id)
        except Exception as error:  # noqa: BLE001 - the border: one message costs one flow
            known = conn_id in self.flows
            self._bug(error, conn_id)
            if not known and kind in FLOW_OPENERS:
                self.refuse(conn_id, CloseReason.GENERAL_FAILURE, kind=kind)  # nobody else answers

    def _receive_rarer(self, kind: int, conn_id: int, flow: F | None, raw: memoryview) -> None:
        message = decode(raw)
        if isinstance(message, UnknownMessage):
            self._outlet.unknown_message()
        elif isinstance(message, Opening):
            self._opening(message, flow)
        elif flow is None:
            self._unowned(kind, conn_id)
        elif isinstance(message, WindowUpdate):
            flow.on_window(message)
        else:
            flow.on_message(message)

    def _opening(self, message: Opening, flow: F | None) -> None:
        if self._opens:
            raise RemoteProtocolError(
                f"{type(message).__name__} came from an endpoint", kind="unexpected-message"
            )
        if self.questions.give_up(message.conn_id):
            raise RemoteProtocolError(
                f"CONN_ID {message.conn_id} cannot be opened: it names a question",
                kind="flow-exists",
                conn_id=message.conn_id,
            )
        if flow is not None and message.conn_id in self._repeatable:
            # "An OPEN_CONNECTION whose answer was lost is sent again; for a flow that already
            # exists in the session it is answered again, never dialled twice" (section 6).
            self._repeatable.discard(message.conn_id)
            flow.on_repeated(message)
            return
        self.flows.check(message.conn_id)
        self.closed.pop(message.conn_id, None)
        self._held.discard(message.conn_id)
        self._outlet.open(message)

    def _unowned(self, kind: int, conn_id: int) -> None:
        """A message for a flow that is not here: for a question, late, or the peer is confused."""
        # A CLOSE is never answered, nor is what may still be under way after one; the sender of
        # stream bytes has to learn that nobody takes them.
        if kind in (Data.TYPE, SendEof.TYPE):
            self._outlet.unknown_flow(datagram=False)
            self.refuse(conn_id, CloseReason.UNKNOWN_FLOW)
        elif kind == UdpPacket.TYPE:
            self._outlet.unknown_flow(datagram=True)
        elif kind == CloseConnection.TYPE:
            # "A gateway that no longer wants the answer sends CLOSE_CONNECTION" (section 4.7).
            self.questions.give_up(conn_id)

    def _protocol_error(self, error: RemoteProtocolError, kind: int, conn_id: int) -> None:
        self._outlet.protocol_error(error, conn_id)
        reason = CloseReason.PROTOCOL_ERROR
        if error.kind == "too-many-flows":
            reason = CloseReason.RESOURCE_LIMIT
        flow = self.flows.get(conn_id)
        if flow is not None:
            flow.abort(reason)
        elif kind not in FLOW_ENDERS:
            self.refuse(conn_id, reason, kind=kind)

    def _bug(self, error: Exception, conn_id: int, flow: F | None = None) -> None:
        self._outlet.bug(error, conn_id)
        flow = flow or self.flows.get(conn_id)
        if flow is None:
            return
        try:
            flow.abort(CloseReason.GENERAL_FAILURE)
        except Exception as second:  # noqa: BLE001 - it cannot even end itself
            self._outlet.bug(second, conn_id)
            self.scheduler.cancel(flow)
            if self.flows.get(conn_id) is flow:
                self.flows.remove(conn_id)
                self.close(conn_id, CloseReason.GENERAL_FAILURE)

    def _guarded(self, conn_id: int, handler: object, *arguments: object) -> None:
        """Calls a handler of something from the peer; what it raises costs the flow alone."""
        assert callable(handler)
        try:
            handler(*arguments)
        except RemoteProtocolError as error:
            self._protocol_error(error, MessageType.RESUME, conn_id)
        except Exception as error:  # noqa: BLE001 - as in `receive`
            self._bug(error, conn_id)

    # --- to the peer ----------------------------------------------------------------------------

    @property
    def open_to_send(self) -> bool:
        """Whether flows may transmit: there is a link, and no resume is under way."""
        return self.attached and not self.resuming

    def send(self, message: bytes) -> None:
        """Transmits a control message: it never waits, and spends credit.

        Without a link it is dropped: RESUME tells the peer the state that it would have told.
        """
        if self.attached:
            self.scheduler.credit -= len(message)
            self._outlet.transmit(message)

    def send_data(self, header: bytes, data: bytes | memoryview) -> None:
        """Transmits one DATA message; the caller has looked at the credit and the window."""
        self.scheduler.credit -= _HEADER_SIZE + len(data)
        self._outlet.send_pieces(header, data)

    def send_datagram(self, message: bytes, now: float) -> None:
        """Transmits one whole UDP_PACKET message, or lets it wait for credit for 50 ms."""
        scheduler = self.scheduler
        if not self.open_to_send:
            scheduler.expired += 1
        elif scheduler.takes_datagram:
            scheduler.credit -= len(message)
            self._outlet.transmit(message)
        else:
            scheduler.queue_datagram(message, now)

    def grant(self, credit: int, now: float) -> None:
        """Takes credit from the supervisor and transmits: datagrams, then flows in turn."""
        if not self.attached:
            return
        scheduler = self.scheduler
        scheduler.credit += credit
        while (message := scheduler.next_datagram(now)) is not None:
            self._outlet.transmit(message)
        if not self.resuming:
            self.transmit()

    def transmit(self) -> None:
        """Lets flows transmit in turn, while there is credit."""
        scheduler = self.scheduler
        while (flow := scheduler.next_flow()) is not None:
            try:
                flow.on_turn()
            except Exception as error:  # noqa: BLE001 - as in `receive`; not the flow that asked
                self._bug(error, flow.conn_id, flow)

    def guard(self, flow: F, handler: Callable[..., object], *arguments: object) -> None:
        """Calls what a socket or a timer has for a flow; an error costs this flow alone."""
        try:
            handler(*arguments)
        except Exception as error:  # noqa: BLE001 - as in `receive`
            self._bug(error, flow.conn_id, flow)

    def refuse(self, conn_id: int, reason: int, *, kind: int = MessageType.DATA) -> None:
        """Sends the end of a flow that is not here, as it suits a message of TYPE `kind`."""
        self.send(ending(conn_id, reason, kind=kind))

    def close(self, conn_id: int, reason: int, *, kind: int = MessageType.DATA) -> None:
        """Tells the peer that one of our flows has ended, now or after the next resume."""
        self.closed[conn_id] = reason
        self.closed.move_to_end(conn_id)
        if len(self.closed) > CLOSED_REMEMBERED_MAX:
            self.closed.popitem(last=False)
        if self.attached:
            self.refuse(conn_id, reason, kind=kind)
        else:  # goes no further than the supervisor, whose table is to know what still waits
            self._outlet.transmit(ending(conn_id, reason, kind=kind))

    def forget_closed(self) -> None:
        """Forgets the flows that were closed before the last call, if the link has lived since.

        To be called at times that are longer apart than it takes to notice that a link is dead:
        what was sent before that has then arrived, and needs to be told no more.
        """
        if self.open_to_send:
            for conn_id in self._closed_before:
                self.closed.pop(conn_id, None)
            self._closed_before = list(self.closed)

    @property
    def in_use(self) -> InUse:
        """The CONN_IDs that may not be chosen for a new flow: the peer may refer to them."""
        return InUse(self.flows, self.closed)

    def end(self, reason: int, *, tell_peer: bool) -> None:
        """Ends all flows and questions: the session is over."""
        self.questions.give_up_all()
        for flow in self.flows:
            self._guarded(flow.conn_id, partial(flow.abort, reason, tell_peer=tell_peer))
        self.closed.clear()


def ending(conn_id: int, reason: int, *, kind: int) -> bytes:
    """Returns the message that ends a flow to which a message of TYPE `kind` belongs."""
    if kind in _UDP:
        return UdpAssociateClosed(conn_id, reason).encode()
    if kind == MessageType.RESOLVE:
        return Resolved(conn_id, reason).encode()
    return CloseConnection(conn_id, reason).encode()
