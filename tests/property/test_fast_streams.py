"""The sender's scheduler, whatever is queued and whenever: order, ranks and shares (RFC 8260)."""

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast.streams import (
    CONTROL,
    DATAGRAM,
    NORMAL,
    QUANTUM,
    SPARSE_BYTES,
    Message,
    OutboundStream,
    Scheduler,
)
from socks_tunnel.protocol.messages import Data

PACKET = 1_100
RANKS = (CONTROL, DATAGRAM, DATAGRAM, NORMAL, NORMAL, NORMAL)


class Sending:
    """A scheduler with some streams, and what is expected of it."""

    def __init__(self, interleaved: bool) -> None:
        self.scheduler = Scheduler()
        self.scheduler.interleaved = interleaved
        self.streams = [OutboundStream(number, rank) for number, rank in enumerate(RANKS)]
        self.waiting: list[list[Message]] = [[] for _ in self.streams]
        self.partly: Message | None = None

    def push(self, number: int, size: int) -> None:
        message = Message(self.streams[number], 53, bytes(size), counted=True)
        self.waiting[number].append(message)
        self.scheduler.push(message)

    def send(self) -> int | None:
        """Sends a packet's worth; returns the stream's number, or None if nothing waited."""
        message = self.scheduler.pick()
        if message is None:
            assert not any(self.waiting)
            return None
        number = message.stream.stream_id
        assert message is self.waiting[number][0], "the messages of a stream keep their order"
        if self.partly is not None and not self.scheduler.interleaved:
            assert message is self.partly, "the fragments of a message need consecutive TSNs"
        else:
            better = [n for n, rank in enumerate(RANKS) if rank < RANKS[number] and self.waiting[n]]
            assert not better, "control goes first, then datagrams, then all others"
        size = min(PACKET, message.size - message.position)
        self.scheduler.sent(message, size)
        self.partly = message if message.position < message.size else None
        if self.partly is None:
            self.waiting[number].pop(0)
        return number

    def balance(self) -> None:
        rest = sum(m.size - m.position for messages in self.waiting for m in messages)
        assert self.scheduler.queued == rest


STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, len(RANKS) - 1), st.sampled_from((1, 60, PACKET, 5_000, 70_000))),
        st.sampled_from((1, 1, 2, 20)),
    ),
    max_size=60,
)


@given(interleaved=st.booleans(), steps=STEPS)
def test_order_and_ranks_hold_and_nothing_is_left(
    interleaved: bool, steps: list[tuple[int, int] | int]
) -> None:
    sending = Sending(interleaved)
    pushed = 0
    for step in steps:
        if isinstance(step, tuple):
            sending.push(*step)
            pushed += step[1]
        else:
            for _ in range(step):
                sending.send()
        sending.balance()
    while sending.send() is not None:
        pass
    assert sending.scheduler.queued == 0
    assert sum(stream.drained for stream in sending.streams) == pushed


@given(
    sizes=st.lists(st.sampled_from((200, PACKET, 5_000, 65_536)), min_size=2, max_size=6),
    packets=st.integers(100, 400),
)
def test_streams_that_always_have_something_share_by_bytes(sizes: list[int], packets: int) -> None:
    """Whatever the size of their messages: they never differ by more than two turns."""
    scheduler = Scheduler()
    scheduler.interleaved = True
    streams = [OutboundStream(number, NORMAL) for number in range(len(sizes))]
    sent = [0] * len(sizes)
    for _ in range(packets):
        for stream, size in zip(streams, sizes, strict=True):
            while len(stream.queue) < 2:
                scheduler.push(Message(stream, 53, bytes(size)))
        message = scheduler.pick()
        assert message is not None
        size = min(PACKET, message.size - message.position)
        scheduler.sent(message, size)
        sent[message.stream.stream_id] += size
    assert max(sent) - min(sent) <= 2 * (QUANTUM + PACKET)


@given(
    sizes=st.lists(st.sampled_from((64, 700, PACKET, 3_000)), min_size=1, max_size=3),
    pushes=st.lists(st.integers(0, 7), min_size=200, max_size=400),
)
def test_streams_that_come_and_go_get_no_more_than_those_that_stay(
    sizes: list[int], pushes: list[int]
) -> None:
    """Whenever they have something: a stream goes ahead with what is left of a quantum, once."""
    scheduler = Scheduler()
    scheduler.interleaved = True
    stay = [OutboundStream(number, NORMAL) for number in range(2)]
    come = [OutboundStream(2 + number, NORMAL) for number in range(len(sizes))]
    sent = [0] * (len(stay) + len(come))
    for which in pushes:
        for stream in stay:
            if len(stream.queue) < 2:
                scheduler.push(Message(stream, 53, bytes(60_000)))
        for bit, (stream, size) in enumerate(zip(come, sizes, strict=True)):
            if which >> bit & 1 and len(stream.queue) < 3:
                scheduler.push(Message(stream, 53, bytes(size)))
        message = scheduler.pick()
        assert message is not None
        size = min(PACKET, message.size - message.position)
        scheduler.sent(message, size)
        sent[message.stream.stream_id] += size
    assert max(sent) - min(sent[: len(stay)]) <= 2 * (QUANTUM + PACKET)


@given(
    interleaved=st.booleans(),
    steps=st.lists(
        st.one_of(
            st.tuples(  # stream, flow, size
                st.integers(0, 1),
                st.integers(0, 3),
                st.sampled_from((7, 71, 700, SPARSE_BYTES, SPARSE_BYTES + 7, 5_000, 40_000)),
            ),
            st.sampled_from((1, 1, 2, 20)),
        ),
        max_size=80,
    ),
)
def test_a_lane_keeps_the_order_of_each_flow_and_finishes_what_it_has_begun(
    interleaved: bool, steps: list[tuple[int, int, int] | int]
) -> None:
    scheduler = Scheduler()
    scheduler.interleaved = interleaved
    lanes = [OutboundStream(number, NORMAL, shared=True) for number in range(2)]
    waiting: dict[tuple[int, int], list[Message]] = {}
    begun: dict[OutboundStream, Message] = {}
    passed: dict[Message, int] = {}

    def send() -> bool:
        message = scheduler.pick()
        if message is None:
            return False
        lane, flow = message.stream, message.data[6]
        queue = waiting[lane.stream_id, flow]
        assert message is queue[0], "the messages of a flow keep their order"
        assert begun.get(lane, message) is message, "nothing goes between the parts of a message"
        if not message.position and message in lane.small and lane.queue:
            other = lane.queue[0]
            passed[other] = passed.get(other, 0) + message.size
            assert passed[other] <= QUANTUM, "the transfers of a lane are not stopped either"
        size = min(PACKET, message.size - message.position)
        scheduler.sent(message, size)
        begun[lane] = message
        if message.position == message.size:
            queue.pop(0)
            del begun[lane]
        return True

    total = 0
    for step in steps:
        if isinstance(step, tuple):
            number, flow, size = step
            data = Data(flow + 1, bytes(size - 7)).encode() if size > 7 else bytes(6) + bytes([9])
            message = Message(lanes[number], 53, data, counted=True)
            waiting.setdefault((number, message.data[6]), []).append(message)
            scheduler.push(message)
            total += size
        else:
            for _ in range(step):
                send()
        assert scheduler.queued == sum(
            m.size - m.position for queue in waiting.values() for m in queue
        )
    while send():
        pass
    assert not any(waiting.values())
    assert sum(lane.drained for lane in lanes) == total
