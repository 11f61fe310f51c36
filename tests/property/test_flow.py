"""Two flow tables, and between them what a network does to WINDOW_UPDATEs: they keep their credit.

DATA and SEND_EOF travel as a lane carries them, reliably and in order. WINDOW_UPDATEs are lost,
repeated and overtaken at will; a resume after a lost link does no more to them than this.
"""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.flow import FlowState, FlowTable, TcpFlow
from socks_tunnel.protocol.messages import Data, SendEof, WindowUpdate, decode

FLOWS = (1, 0xFFFFFFFF)

Update = tuple[int, bytes]
"""Which side it is for, and the message."""


@dataclass
class Side:
    """One host: its flow table, and the lane on which it sends."""

    table: FlowTable[TcpFlow]
    lane: deque[bytes] = field(default_factory=deque)
    told: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The highest CONSUMED and LIMIT of each flow that an update has brought so far."""

    def flow(self, conn_id: int) -> TcpFlow:
        found = self.table.get(conn_id)
        assert found is not None
        return found


class FlowTables(RuleBasedStateMachine):
    """Any order of sending, delivering and consuming, with a hostile network for updates."""

    updates = Bundle("updates")

    sides = st.sampled_from((0, 1))
    ids = st.sampled_from(FLOWS)

    @initialize(windows=st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    def connect(self, windows: tuple[int, int]) -> None:
        """Open every flow; each side's window is its own choice, as in HELLO."""
        self.windows = windows
        self.sides_ = (Side(FlowTable(len(FLOWS))), Side(FlowTable(len(FLOWS))))
        for index, side in enumerate(self.sides_):
            for conn_id in FLOWS:
                flow = TcpFlow(
                    conn_id, send_window=windows[1 - index], receive_window=windows[index]
                )
                flow.open()
                side.table.add(conn_id, flow)
                side.told[conn_id] = (0, flow.send.limit)

    @rule(index=sides, conn_id=ids, share=st.floats(0, 1))
    def send(self, index: int, conn_id: int, share: float) -> None:
        """Send some or all of what the window has room for."""
        side = self.sides_[index]
        flow = side.flow(conn_id)
        count = round(flow.send.available * share)
        if count and not flow.sent_eof:
            flow.send_data(count)
            side.lane.append(Data(conn_id, bytes(count)).encode())

    @rule(index=sides, conn_id=ids)
    def send_too_much(self, index: int, conn_id: int) -> None:
        """Not a byte more than the window is let out."""
        flow = self.sides_[index].flow(conn_id)
        sent = flow.send.sent
        try:
            flow.send_data(flow.send.available + 1)
        except LocalProtocolError:
            assert flow.send.sent == sent
        else:
            raise AssertionError("the window let a byte too much out")

    @rule(index=sides, conn_id=ids)
    def send_eof(self, index: int, conn_id: int) -> None:
        """End one direction."""
        side = self.sides_[index]
        flow = side.flow(conn_id)
        if not flow.sent_eof:
            flow.send_eof()
            side.lane.append(SendEof(conn_id).encode())

    @rule(index=sides, count=st.integers(1, 5))
    def deliver(self, index: int, count: int) -> None:
        """Let some messages of a lane arrive at the other side."""
        lane = self.sides_[index].lane
        for _ in range(min(count, len(lane))):
            self.receive(1 - index, lane.popleft())

    @rule(target=updates, index=sides, conn_id=ids, share=st.floats(0, 1))
    def consume(self, index: int, conn_id: int, share: float) -> Update | MultipleResults[Update]:
        """Let a local socket take some of what came; an update that is then due goes out."""
        window = self.sides_[index].flow(conn_id).receive
        if window.consume(round(window.buffered * share)):
            return 1 - index, WindowUpdate(conn_id, *window.announce()).encode()
        return multiple()

    @rule(target=updates, index=sides, conn_id=ids)
    def announce(self, index: int, conn_id: int) -> Update:
        """Send an update that nobody asked for, as a resume does."""
        window = self.sides_[index].flow(conn_id).receive
        return 1 - index, WindowUpdate(conn_id, *window.announce()).encode()

    @rule(target=updates, index=sides, conn_id=ids, share=st.floats(0.1, 1))
    def transfer(self, index: int, conn_id: int, share: float) -> Update:
        """Do all of it at once: send, deliver, consume, announce."""
        self.send(index, conn_id, share)
        self.deliver(index, len(self.sides_[index].lane))
        window = self.sides_[1 - index].flow(conn_id).receive
        window.consume(window.buffered)
        return index, WindowUpdate(conn_id, *window.announce()).encode()

    @rule(update=updates)
    def deliver_update(self, update: Update) -> None:
        """Deliver any update that was ever sent and is not lost: late, early, again."""
        self.receive(*update)

    @rule(update=consumes(updates))
    def lose_update(self, update: Update) -> None:
        """Lose an update for good."""

    @precondition(lambda self: hasattr(self, "sides_"))
    @invariant()
    def nobody_oversteps(self) -> None:
        """Each sender is within what its receiver has room for, and knows no more than is true."""
        for index, side in enumerate(self.sides_):
            for conn_id in FLOWS:
                sender = side.flow(conn_id).send
                receiver = self.sides_[1 - index].flow(conn_id).receive
                window = self.windows[1 - index]
                assert sender.consumed <= receiver.consumed <= receiver.received <= sender.sent
                assert sender.sent <= sender.limit <= receiver.limit
                assert receiver.limit <= receiver.consumed + window
                assert receiver.buffered <= window
                # What an update has once allowed no later one takes back.
                assert (sender.consumed, sender.limit) == side.told[conn_id]

    def receive(self, index: int, raw: bytes) -> None:
        """Give a message to a side, as its shell would. A RemoteProtocolError fails the test."""
        message = decode(raw)
        assert isinstance(message, Data | SendEof | WindowUpdate)
        side = self.sides_[index]
        flow = side.flow(message.conn_id)
        match message:
            case Data():
                flow.receive_data(len(message.data))
            case SendEof():
                flow.receive_eof()
            case WindowUpdate():
                consumed, limit = side.told[message.conn_id]
                grown = flow.send.update(message.consumed, message.limit)
                assert grown == (message.limit > limit)
                side.told[message.conn_id] = (
                    max(consumed, message.consumed),
                    max(limit, message.limit),
                )

    def teardown(self) -> None:
        """In the end one update that arrives is enough: the whole window is there again."""
        if not hasattr(self, "sides_"):
            return
        for index, side in enumerate(self.sides_):
            while side.lane:
                self.receive(1 - index, side.lane.popleft())
        for index, side in enumerate(self.sides_):
            for conn_id in FLOWS:
                receiver = self.sides_[1 - index].flow(conn_id)
                receiver.receive.consume(receiver.receive.buffered)
                self.receive(index, WindowUpdate(conn_id, *receiver.receive.announce()).encode())
                sender = side.flow(conn_id)
                assert sender.send.available == self.windows[1 - index]
                assert sender.send.consumed == sender.send.sent == receiver.receive.received
                assert receiver.received_eof == sender.sent_eof
        for side in self.sides_:
            for flow in side.table:
                assert flow.delivered == (flow.state is FlowState.FINISHED)


TestFlowTables = FlowTables.TestCase
