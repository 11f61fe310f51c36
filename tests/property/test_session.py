"""Two sessions over a wire that is cut at any moment: no byte is lost, repeated or reordered.

The two ends are :class:`socks_tunnel.protocol.session.Session` with flows whose local sockets are
byte strings. The wire keeps the messages of each direction in order, as one lane does; a cut loses
what is under way, and the next link begins with both RESUMEs, in any order with respect to what
else is sent. While there is no link, either side may be handed over: what it knows is written to a
file, and another session goes on with what is read from that. Checked after each step: windows are
never overstepped, and what came out is the beginning of what went in. At the end everything has
arrived, and nothing is kept.
"""

from __future__ import annotations

import io
from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.flow import TcpFlow
from socks_tunnel.protocol.handover import (
    STATE_VERSION,
    Head,
    StateReader,
    StateWriter,
    export_session,
    restore_session,
)
from socks_tunnel.protocol.messages import (
    HEADER,
    CloseConnection,
    ConnectionOpened,
    Message,
    MessageType,
    OpenConnection,
    SendEof,
    WindowUpdate,
)
from socks_tunnel.protocol.session import Opening, Row, Session, Terms

BOUND = HostPort("10.77.0.2", 40_000)

ROUNDS_WITHOUT_PROGRESS = 50
"""Rounds at the end in which no byte arrives, after which what has not arrived never will."""


class Socket:
    """The local end of a flow: what its application writes, and what it gets to read."""

    def __init__(self) -> None:
        self.to_read: bytearray = bytearray()
        self.written: bytearray = bytearray()
        self.got: bytearray = bytearray()
        self.eof_wanted = False
        self.got_eof = False
        self.room = 1 << 30


class Flow:
    """A flow of the model, with the same calls to the core as `relay/tcp.py`."""

    udp = False

    def __init__(self, side: Side, conn_id: int, *, opening: bytes) -> None:
        self.side = side
        self.conn_id = conn_id
        self.opening = opening
        self.repeated = False
        self.served = 0
        self.queued = 0
        self.answered = False
        self.ended: int | None = None
        self.local = Socket()
        terms = side.session.terms
        assert terms is not None
        self.core = TcpFlow(conn_id, send_window=terms.window, receive_window=side.window)

    # --- local --------------------------------------------------------------------------------

    def pump_local(self) -> None:
        """Reads the local socket and lets the scheduler decide."""
        if self.ended is None and self.side.session.open_to_send:
            self.side.session.scheduler.wait(self)
            self.side.session.transmit()

    def on_turn(self) -> None:
        if self.ended is not None:
            return
        session, send = self.side.session, self.core.send
        total = 0
        while total < session.scheduler.turn:
            if send.next == send.end:
                taken = bytes(self.local.to_read[: max(0, min(self.core.readable, 700))])
                del self.local.to_read[: len(taken)]
                if not taken:
                    break
                if send.unsent == 0 and len(taken) <= send.room:
                    send.write_through(taken)
                    session.send_data(HEADER.pack(MessageType.DATA, 0, self.conn_id), taken)
                    total += len(taken)
                    continue
                send.write(taken)
            data = send.take(300)
            if not data:
                break
            session.send_data(HEADER.pack(MessageType.DATA, 0, self.conn_id), data)
            total += len(data)
        self._eof()
        if self.side.known[self.conn_id].ended is None and total:
            if not (send.ready or self.local.to_read):
                return
            session.scheduler.requeue(self, total)

    def _eof(self) -> None:
        send = self.core.send
        if self.local.eof_wanted and not self.local.to_read and not send.eof:
            send.finish()
        if send.take_eof():
            self.side.session.send(SendEof(self.conn_id).encode())
        self.finish()

    def write_local(self) -> None:
        """Gives the local socket what came, as far as it has room."""
        receive, closing = self.core.receive, self.core.closing
        if not (self.core.opened or closing):
            return
        while receive.pending.size and self.local.room:
            piece = bytes(receive.pending.peek(1)[0])[: self.local.room]
            self.local.got += piece
            self.local.room -= len(piece)
            receive.pending.drop(len(piece))
            due = receive.consume(len(piece))
            if not closing and (due or (receive.eof and receive.all_written)):
                self.announce()
        if closing:  # it is over on the wire, and what came is still owed to the local socket
            if not receive.pending.size:
                self.core.abandon()
                self.local.got_eof = True
            return
        if self.core.shutdown_due:
            self.core.shut_down()
            self.local.got_eof = True
        self.finish()

    def announce(self) -> None:
        consumed, limit = self.core.receive.announce(self.side.now, grow_to=0)
        self.side.session.send(WindowUpdate(self.conn_id, consumed, limit).encode())

    def finish(self) -> None:
        core = self.core
        acknowledged = core.send.acked == core.send.end
        if self.ended is None and core.delivered and self.side.opens and acknowledged:
            self.side.session.close(self.conn_id, CloseReason.ORDERLY)
            core.close(CloseReason.ORDERLY)
            self._end(CloseReason.ORDERLY)

    def _end(self, reason: int) -> None:
        self.ended = reason
        self.side.session.flows.remove(self.conn_id)
        self.side.session.scheduler.cancel(self)

    # --- SessionFlow --------------------------------------------------------------------------

    def on_data(self, data: memoryview) -> None:
        self.core.receive_data(len(data))
        self.core.receive.pending.append(bytes(data))
        self.write_local()

    def on_window(self, update: WindowUpdate) -> None:
        self.core.send.update(update.consumed, update.limit)
        self.finish()
        self.pump_local()

    def on_datagram(self, packet: memoryview) -> None:
        raise AssertionError(packet)

    def on_message(self, message: Message) -> None:
        match message:
            case SendEof():
                self.core.receive_eof()
                if self.core.receive.all_written:
                    self.announce()
                self.write_local()
            case ConnectionOpened() if self.answered and self.repeated:
                return
            case ConnectionOpened():
                self.answered = True
                self.core.open()
                self.write_local()
                self.pump_local()
            case CloseConnection(reason=reason):
                self.core.close(reason)
                if reason == CloseReason.ORDERLY and not self.core.closing:
                    # The SEND_EOF before it went with a lost link: the socket is closed all the same.
                    self.local.got_eof = True
                self._end(reason)
            case _:
                raise RemoteProtocolError(str(message), kind="unexpected-message")

    def on_detached(self) -> None:
        return

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        self.core.resume(received, limit, flags)
        if self.core.opening and self.opening:
            self.repeated = True
            self.side.session.send(self.opening)
        self.side.session.scheduler.wait(self)
        self.finish()

    def on_missing(self) -> bool:
        if not (self.core.opening and self.opening):
            return False
        self.core.send.resume(0, 0, eof_received=False)
        self.repeated = True
        self.side.session.send(self.opening)
        self.side.session.scheduler.wait(self)
        return True

    def on_repeated(self, opening: Message) -> None:
        del opening
        if self.answered:
            self.side.session.send(ConnectionOpened(self.conn_id, BOUND).encode())

    def row(self) -> Row:
        return self.core.row()

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        if self.ended is not None:
            return
        if tell_peer:
            self.side.session.close(self.conn_id, reason)
        self.core.abandon()
        self._end(reason)

    def accept(self) -> None:
        """The endpoint has dialled."""
        if self.ended is None and not self.answered:
            self.answered = True
            self.side.session.send(ConnectionOpened(self.conn_id, BOUND).encode())
            self.core.open()
            self.write_local()
            self.pump_local()


class Side:
    """One host: its session, its flows, and what it has sent on the wire of the moment."""

    def __init__(self, *, opens: bool, window: int) -> None:
        self.opens = opens
        self.window = window
        self.now = 0.0
        self.wire: deque[bytes] = deque()
        self.resumes: deque[tuple[list[Row], bool]] = deque()
        self.errors: list[str] = []
        self.known: dict[int, Flow] = {}
        self.session: Session[Flow] = Session(self, opens=opens, flows_max=100)

    # --- Outlet -------------------------------------------------------------------------------

    def transmit(self, message: bytes) -> None:
        self.wire.append(message)

    def send_pieces(self, header: bytes, payload: bytes | memoryview) -> None:
        self.wire.append(header + bytes(payload))

    def open(self, message: Opening) -> None:
        assert isinstance(message, OpenConnection)
        assert message.conn_id not in self.known, "dialled twice"
        flow = Flow(self, message.conn_id, opening=b"")
        self.known[message.conn_id] = flow
        self.session.flows.add(message.conn_id, flow)

    def protocol_error(self, error: RemoteProtocolError, conn_id: int) -> None:
        self.errors.append(f"{conn_id}: {error}")

    def bug(self, error: Exception, conn_id: int) -> None:
        raise AssertionError(conn_id) from error

    def unknown_message(self) -> None:
        raise AssertionError

    def unknown_flow(self, *, datagram: bool) -> None:
        raise AssertionError(datagram)


class TwoSessions(RuleBasedStateMachine):
    """Any order of writing, reading, delivering, cutting and linking again."""

    sides_of = st.sampled_from((0, 1))

    @initialize(windows=st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    def begin(self, windows: tuple[int, int]) -> None:
        self.sides = (
            Side(opens=True, window=windows[0]),
            Side(opens=False, window=windows[1]),
        )
        self.next_id = 1
        self.sent: dict[tuple[int, int], bytearray] = {}
        self.linked = False
        self.link()

    # --- the link -----------------------------------------------------------------------------

    @precondition(lambda self: not self.linked)
    @rule()
    def link(self) -> None:
        """A link comes up, and both sides send RESUME."""
        for number, side in enumerate(self.sides):
            side.wire.clear()
            side.resumes.clear()
            peer = self.sides[1 - number]
            terms = Terms(peer.window, 65_529, 300, frozenset({"resume"}))
            rows = side.session.attach(terms, 2000, resume=True)
            half = len(rows) // 2
            side.resumes += [(rows[:half], False), (rows[half:], True)]
        self.linked = True

    @precondition(lambda self: self.linked)
    @rule(first=sides_of)
    def cut(self, first: int) -> None:
        """The link is lost with everything on it; one side notices first."""
        for number in (first, 1 - first):
            self.sides[number].session.detach()
        self.linked = False

    @precondition(lambda self: self.linked)
    @rule(first=sides_of)
    def move(self, first: int) -> None:
        """Make before break: another link takes over at once."""
        del first
        self.linked = False
        self.link()

    @rule(which=sides_of, linked=st.booleans())
    def hand_over(self, which: int, linked: bool) -> None:
        """One side's program is replaced; its link, if there is one, ends with the old program."""
        if self.linked:
            self.cut(which)
        side = self.sides[which]
        file = io.BytesIO()
        writer = StateWriter(file, Head(STATE_VERSION, "test"))
        writer.write(export_session(side.session))
        for flow in side.session.flows:
            writer.write(flow.core.export())
        writer.finish()
        file.seek(0)
        session, *flows = StateReader(file).records()
        side.session = Session(side, opens=side.opens, flows_max=100)
        restore_session(side.session, session)
        for fields in flows:
            core = TcpFlow.restore(fields)
            flow = side.known[core.conn_id]
            flow.core = core
            flow.served, flow.queued = 0, 0
            side.session.flows.add(core.conn_id, flow)
        if linked:
            self.link()

    @rule(to=sides_of, count=st.integers(1, 20))
    def deliver(self, to: int, count: int) -> None:
        """Some messages of the peer arrive."""
        sender, receiver = self.sides[1 - to], self.sides[to]
        if not receiver.session.attached:
            return
        for _ in range(count):
            if sender.wire:
                receiver.session.receive(memoryview(sender.wire.popleft()))
                self._accept()

    @rule(to=sides_of)
    def deliver_resume(self, to: int) -> None:
        """The peer's RESUME arrives; nothing orders it with respect to the lanes."""
        sender, receiver = self.sides[1 - to], self.sides[to]
        if receiver.session.attached and sender.resumes:
            rows, last = sender.resumes.popleft()
            receiver.session.resumed(rows, last=last)

    @rule(to=sides_of, count=st.integers(1, 3000))
    def grant(self, to: int, count: int) -> None:
        side = self.sides[to]
        side.session.grant(count, side.now)

    # --- applications ---------------------------------------------------------------------------

    @precondition(lambda self: len(self.sides[0].session.flows) < 4)
    @precondition(lambda self: self.sides[0].session.open_to_send)
    @rule(early=st.binary(max_size=4000))
    def open_flow(self, early: bytes) -> None:
        side = self.sides[0]
        conn_id, self.next_id = self.next_id, self.next_id + 1
        opening = OpenConnection(conn_id, "target.example", 80).encode()
        flow = Flow(side, conn_id, opening=opening)
        side.known[conn_id] = flow
        side.session.flows.add(conn_id, flow)
        side.session.send(opening)
        flow.core.send.write(early)
        self.sent[0, conn_id] = bytearray(early)
        self.sent[1, conn_id] = bytearray()
        flow.pump_local()

    @rule(at=sides_of, which=st.integers(0, 99), data=st.binary(min_size=1, max_size=5000))
    def write(self, at: int, which: int, data: bytes) -> None:
        flow = self._pick(at, which)
        if flow is not None and not flow.local.eof_wanted:
            flow.local.to_read += data
            self.sent[at, flow.conn_id] += data
            flow.pump_local()

    @rule(at=sides_of, which=st.integers(0, 99))
    def finish(self, at: int, which: int) -> None:
        flow = self._pick(at, which)
        if flow is not None:
            flow.local.eof_wanted = True
            flow.pump_local()

    @rule(at=sides_of, which=st.integers(0, 99), room=st.integers(0, 4000))
    def limit_reading(self, at: int, which: int, room: int) -> None:
        flow = self._pick(at, which)
        if flow is not None:
            flow.local.room = room
            flow.write_local()

    def _pick(self, at: int, which: int) -> Flow | None:
        flows = [f for f in self.sides[at].known.values() if f.ended is None]
        return flows[which % len(flows)] if flows else None

    def _accept(self) -> None:
        for flow in self.sides[1].known.values():
            flow.accept()

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def what_came_out_went_in(self) -> None:
        for at, side in enumerate(self.sides):
            assert not side.errors, side.errors
            for conn_id, flow in side.known.items():
                went_in = self.sent[1 - at, conn_id]
                assert went_in[: len(flow.local.got)] == flow.local.got

    @invariant()
    def windows_hold(self) -> None:
        for side in self.sides:
            for flow in side.known.values():
                receive, send = flow.core.receive, flow.core.send
                assert receive.consumed <= receive.received <= receive.limit
                assert send.acked <= send.next <= send.end
                assert send.high <= send.limit

    def teardown(self) -> None:
        """Lets everything arrive: whoever wrote has written, whoever reads reads."""
        if not hasattr(self, "sides"):
            return
        if not self.linked:
            self.link()
        idle_rounds = 0
        before = -1
        while idle_rounds < ROUNDS_WITHOUT_PROGRESS:  # a window of one byte takes a round for each
            for to in (0, 1):
                self.deliver_resume(to)
                self.deliver_resume(to)
                self.deliver(to, 50)
                self.grant(to, 3000)
                for flow in list(self.sides[to].known.values()):
                    flow.local.room = 1 << 30
                    flow.local.eof_wanted = True
                    flow.write_local()
                    flow.pump_local()
            if not any(len(side.session.flows) or side.wire for side in self.sides):
                break
            got = sum(len(flow.local.got) for side in self.sides for flow in side.known.values())
            idle_rounds = idle_rounds + 1 if got == before else 0
            before = got
        for at, side in enumerate(self.sides):
            for conn_id, flow in side.known.items():
                assert flow.ended == CloseReason.ORDERLY, (at, conn_id, flow.core.state)
                assert flow.local.got == self.sent[1 - at, conn_id]
                assert flow.local.got_eof
                assert flow.core.cost == 0
            assert side.session.scheduler.idle


TestTwoSessions = TwoSessions.TestCase
