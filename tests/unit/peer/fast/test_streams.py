"""Which message goes next."""

import random

import pytest

from socks_tunnel.peer.fast.streams import (
    CONTROL,
    DATAGRAM,
    NORMAL,
    OVERTAKEN_MAX,
    QUANTUM,
    SPARSE_BYTES,
    Message,
    OutboundStream,
    Scheduler,
    rank_of,
)
from socks_tunnel.protocol.messages import HEADER, Data

PACKET = 1_100


def queue(scheduler: Scheduler, stream: OutboundStream, *sizes: int) -> list[Message]:
    messages = [Message(stream, 53, bytes(size), counted=True) for size in sizes]
    for message in messages:
        scheduler.push(message)
    return messages


def send(scheduler: Scheduler) -> tuple[OutboundStream, int] | None:
    """Sends a packet's worth of what the scheduler picks."""
    message = scheduler.pick()
    if message is None:
        return None
    size = min(PACKET, message.size - message.position)
    scheduler.sent(message, size)
    return message.stream, size


def drain(scheduler: Scheduler) -> list[tuple[OutboundStream, int]]:
    sent = []
    while (one := send(scheduler)) is not None:
        sent.append(one)
    return sent


@pytest.fixture
def scheduler() -> Scheduler:
    made = Scheduler()
    made.interleaved = True
    return made


def test_the_rank_of_a_channel() -> None:
    assert rank_of("control", True, None) == CONTROL
    assert rank_of("datagram", False, 0) == DATAGRAM
    assert {rank_of("lane-0", True, None), rank_of("other", False, 3)} == {NORMAL}


def test_control_and_datagrams_go_before_all_others(scheduler: Scheduler) -> None:
    bulk, datagram, control = (
        OutboundStream(n, r) for n, r in enumerate((NORMAL, DATAGRAM, CONTROL))
    )
    queue(scheduler, bulk, 100_000)
    send(scheduler)
    queue(scheduler, datagram, 200, 200)
    queue(scheduler, control, 50)
    assert [stream for stream, _ in drain(scheduler)[:4]] == [control, datagram, datagram, bulk]


def test_a_sparse_stream_overtakes_bulk_within_a_message(scheduler: Scheduler) -> None:
    bulk = [OutboundStream(n, NORMAL) for n in range(8)]
    for stream in bulk:
        queue(scheduler, stream, 60_000, 60_000)
    for _ in range(50):
        send(scheduler)
    keys = OutboundStream(9, NORMAL)
    for _ in range(5):
        queue(scheduler, keys, 64)
        assert send(scheduler) == (keys, 64)
        for _ in range(15):  # a round of the old list
            send(scheduler)


def busy(scheduler: Scheduler, count: int) -> list[OutboundStream]:
    """Returns streams that have sent for a while and have more."""
    bulk = [OutboundStream(n, NORMAL) for n in range(count)]
    for stream in bulk:
        queue(scheduler, stream, *[60_000] * 20)
    for _ in range(4 * count):
        send(scheduler)
    return bulk


def test_a_sparse_stream_goes_before_bulk_again_within_the_same_round(scheduler: Scheduler) -> None:
    busy(scheduler, 8)
    keys = OutboundStream(9, NORMAL)
    for _ in range(QUANTUM // 64 + 1):
        (message,) = queue(scheduler, keys, 64)
        assert scheduler.pick_sparse() is message
        assert send(scheduler) == (keys, 64)
    assert keys.deficit <= 0
    (message,) = queue(scheduler, keys, 64)
    assert scheduler.pick_sparse() is None, "its quantum is used up"
    taken = [send(scheduler) for _ in range(16)]
    assert (keys, 64) in taken, "but its turn comes in the next round"


@pytest.mark.parametrize("size", [64, 700, 1_100])
def test_a_stream_that_empties_all_the_time_gets_no_more_than_others(
    scheduler: Scheduler, size: int
) -> None:
    bulk = busy(scheduler, 4)
    total = dict.fromkeys(bulk, 0)
    often = OutboundStream(9, NORMAL)
    total[often] = 0
    for _ in range(600):
        if not often.queue:
            queue(scheduler, often, size)
        one = send(scheduler)
        assert one is not None
        total[one[0]] += one[1]
    assert total[often] <= min(total[stream] for stream in bulk) + 2 * (QUANTUM + PACKET)


def test_a_stream_that_sends_much_does_not_stay_among_the_new_ones(scheduler: Scheduler) -> None:
    one, other = OutboundStream(1, NORMAL), OutboundStream(2, NORMAL)
    queue(scheduler, one, 60_000)
    for _ in range(5):
        send(scheduler)
    queue(scheduler, other, 60_000)
    turns = [send(scheduler) for _ in range(20)]
    shares = [
        sum(size for turn in turns if turn for stream, size in (turn,) if stream is s)
        for s in (one, other)
    ]
    assert abs(shares[0] - shares[1]) <= 2 * QUANTUM + PACKET


def test_streams_share_by_bytes_whatever_their_messages_are(scheduler: Scheduler) -> None:
    rng = random.Random(5)
    streams = [OutboundStream(n, NORMAL) for n in range(5)]
    for stream, size in zip(streams, (60, 700, 1_100, 5_000, 60_000), strict=True):
        queue(scheduler, stream, *[size] * (1_000_000 // size))
    total = dict.fromkeys(streams, 0)
    for _ in range(2_000):
        one = send(scheduler)
        assert one is not None
        total[one[0]] += one[1]
        if rng.random() < 0.01:
            assert max(total.values()) - min(total.values()) <= 2 * (QUANTUM + PACKET)


def test_a_stream_that_comes_and_goes_does_not_starve_the_others(scheduler: Scheduler) -> None:
    """RFC 8290 section 4.2: an emptied new stream passes through the old list once."""
    bulk = OutboundStream(0, NORMAL)
    queue(scheduler, bulk, *[60_000] * 20)
    busy = [OutboundStream(n, NORMAL) for n in (1, 2)]
    got = 0
    for turn in range(300):
        queue(scheduler, busy[turn % 2], 1_100)
        one = send(scheduler)
        assert one is not None
        got += one[0] is bulk
    assert got >= 60


def test_without_interleaving_a_message_is_finished_before_another() -> None:
    scheduler = Scheduler()
    bulk, control = OutboundStream(0, NORMAL), OutboundStream(1, CONTROL)
    queue(scheduler, bulk, 5_000)
    send(scheduler)
    queue(scheduler, control, 10)
    order = [stream for stream, _ in drain(scheduler)]
    assert order == [bulk] * 4 + [control]


def test_what_has_left_is_reported_once(scheduler: Scheduler) -> None:
    stream, other = OutboundStream(0, NORMAL), OutboundStream(1, NORMAL)
    queue(scheduler, stream, 3_000, 10)
    queue(scheduler, other, 20)
    scheduler.push(Message(other, 50, b"not counted"))
    assert scheduler.queued == 3_041
    drain(scheduler)
    assert scheduler.queued == 0
    assert {one: one.drained for one in scheduler.drained} == {stream: 3_010, other: 20}
    assert len(scheduler.drained) == 2


def test_a_message_that_is_given_up_leaves_the_queue(scheduler: Scheduler) -> None:
    stream = OutboundStream(0, NORMAL)
    first, second = queue(scheduler, stream, 5_000, 700)
    send(scheduler)
    assert stream.drained == PACKET  # what has left is known before the message is over
    scheduler.drop(first)
    assert scheduler.queued == 700
    assert stream.drained == 5_000
    assert scheduler.pick() is second
    scheduler.discard(stream)
    assert (scheduler.queued, scheduler.pick()) == (0, None)


def test_only_a_small_message_of_a_quiet_stream_may_go_beyond_the_window(
    scheduler: Scheduler,
) -> None:
    bulk, quiet = OutboundStream(1, NORMAL), OutboundStream(2, NORMAL)
    queue(scheduler, bulk, 50_000)
    assert scheduler.pick_sparse() is None, "it is too large"
    (message,) = queue(scheduler, quiet, SPARSE_BYTES)
    assert scheduler.pick_sparse() is message, "though another new stream is first"
    scheduler.sent(message, message.size)
    assert scheduler.pick_sparse() is None
    queue(scheduler, quiet, SPARSE_BYTES)
    more = scheduler.pick_sparse()
    assert more is not None, "within its quantum"
    scheduler.sent(more, more.size)
    queue(scheduler, quiet, 10)
    assert scheduler.pick_sparse() is None, "it has used its quantum up"


def test_nothing_goes_between_the_fragments_of_a_message_without_interleaving() -> None:
    plain = Scheduler()
    bulk, quiet = OutboundStream(1, NORMAL), OutboundStream(2, NORMAL)
    (large,) = queue(plain, bulk, 5_000)
    plain.sent(large, 1_000)
    queue(plain, quiet, 10)
    assert plain.pick_sparse() is None


def test_a_stream_that_is_discarded_lets_nothing_between_the_fragments_of_another() -> None:
    plain = Scheduler()
    bulk, control, other = (OutboundStream(n, r) for n, r in enumerate((NORMAL, CONTROL, NORMAL)))
    (large,) = queue(plain, bulk, 5_000)
    plain.sent(large, 1_000)
    queue(plain, other, 700)
    queue(plain, control, 10)
    plain.discard(other)
    assert plain.pick() is large


def flow_message(stream: OutboundStream, flow: int, size: int) -> Message:
    """Returns a message of a lane: its header names the flow."""
    return Message(stream, 53, Data(flow, bytes(size - HEADER.size)).encode(), counted=True)


def lane_with_bulk(scheduler: Scheduler) -> tuple[OutboundStream, Message, Message]:
    """Returns a lane that is in debt among seven others, one of its messages begun, and another."""
    bulk = [OutboundStream(n, NORMAL, shared=True) for n in range(8)]
    for stream in bulk:
        for _ in range(20):
            scheduler.push(flow_message(stream, 100 + stream.stream_id, 3 * PACKET))
    for _ in range(4 * len(bulk)):  # they are no new streams any more
        send(scheduler)
    while bulk[0].deficit > 0 or not bulk[0].queue[0].position or scheduler.pick() in bulk[0].queue:
        send(scheduler)
    return bulk[0], bulk[0].queue[0], bulk[0].queue[1]


def messages_until(scheduler: Scheduler, last: Message) -> list[Message]:
    """Sends until `last` has left; returns what was sent, once each, in order."""
    sent: list[Message] = []
    while last.position < last.size:
        message = scheduler.pick()
        assert message is not None
        if message not in sent:
            sent.append(message)
        send(scheduler)
    return sent


def test_a_small_message_goes_before_what_other_flows_have_in_its_lane(
    scheduler: Scheduler,
) -> None:
    """After what is begun: the peer delivers nothing of the stream before that."""
    lane, begun, _ = lane_with_bulk(scheduler)
    keys = flow_message(lane, 1, 71)
    scheduler.push(keys)
    assert scheduler.pick_sparse() is begun, "beyond the window too"
    assert messages_until(scheduler, keys) == [begun, keys]
    again = flow_message(lane, 1, 71)
    scheduler.push(again)
    assert scheduler.pick_sparse() is again
    assert messages_until(scheduler, again) == [again]


def test_what_overtakes_counts_as_sent_by_its_lane(scheduler: Scheduler) -> None:
    lane, begun, _ = lane_with_bulk(scheduler)
    before, rest = lane.deficit, begun.size - begun.position
    keys = flow_message(lane, 1, 71)
    scheduler.push(keys)
    messages_until(scheduler, keys)
    assert lane.deficit == before - rest - 71


def test_a_flow_never_overtakes_itself(scheduler: Scheduler) -> None:
    lane, begun, other = lane_with_bulk(scheduler)
    own = flow_message(lane, 100, 71)
    scheduler.push(own)
    sent = messages_until(scheduler, own)
    assert [message for message in sent if message.stream is lane][:2] == [begun, other]
    assert not lane.queue, "it came last"
    small, large = flow_message(lane, 7, 60), flow_message(lane, 7, 5_000)
    for message in (flow_message(lane, 6, 5_000), small, large):
        scheduler.push(message)
    sent = messages_until(scheduler, large)
    assert sent.index(small) < sent.index(large)


def test_a_message_is_overtaken_by_a_quantum_at_most(scheduler: Scheduler) -> None:
    """Else a flow of small messages would stop the transfers of its lane."""
    lane, begun, other = lane_with_bulk(scheduler)
    many = [flow_message(lane, flow, 500) for flow in range(1, 9)]
    for message in many:
        scheduler.push(message)
    fits = QUANTUM // 500
    assert messages_until(scheduler, many[fits - 1]) == [begun, *many[:fits]]
    assert lane.queue[0] is other
    assert list(lane.queue)[-5:] == many[fits:]
    scheduler.push(late := flow_message(lane, 20, 500))
    messages_until(scheduler, other)
    assert late.position == 0, "the message that is begun next counts from when it could have been"
    scheduler.push(flow_message(lane, 21, 500))
    assert len(lane.small) == 1, "and the one behind it begins at none"


@pytest.mark.parametrize("size", [SPARSE_BYTES + 1, 50_000])
def test_a_large_message_waits_for_its_turn_in_its_lane(scheduler: Scheduler, size: int) -> None:
    lane, _, other = lane_with_bulk(scheduler)
    large = flow_message(lane, 1, size)
    scheduler.push(large)
    assert other in messages_until(scheduler, large)


def test_small_messages_of_several_flows_keep_their_order(scheduler: Scheduler) -> None:
    lane = OutboundStream(1, NORMAL, shared=True)
    messages = [flow_message(lane, flow, 100) for flow in range(5)]
    for message in messages:
        scheduler.push(message)
    assert messages_until(scheduler, messages[-1]) == messages


def test_nothing_overtakes_the_opening_of_its_channel(scheduler: Scheduler) -> None:
    lane = OutboundStream(1, NORMAL, shared=True)
    opening = Message(lane, 50, bytes(20))
    large, keys = flow_message(lane, 2, 5_000), flow_message(lane, 1, 71)
    for message in (opening, large, keys):
        scheduler.push(message)
    assert messages_until(scheduler, keys) == [opening, large, keys]


def test_only_so_many_messages_are_looked_at(scheduler: Scheduler) -> None:
    lane = OutboundStream(1, NORMAL, shared=True)
    for _ in range(OVERTAKEN_MAX + 1):
        scheduler.push(flow_message(lane, 2, 1_200))
    scheduler.push(flow_message(lane, 1, 71))
    assert not lane.small
    while len(lane.queue) > OVERTAKEN_MAX:
        send(scheduler)
    scheduler.push(flow_message(lane, 1, 71))
    assert not lane.small, "it would overtake the first one of its flow"
    while len(lane.queue) > OVERTAKEN_MAX:
        send(scheduler)
    scheduler.push(flow_message(lane, 3, 71))
    assert len(lane.small) == 1


def test_a_stream_of_one_owner_keeps_its_order(scheduler: Scheduler) -> None:
    stream = OutboundStream(1, NORMAL)
    first, second = flow_message(stream, 2, 5_000), flow_message(stream, 1, 71)
    scheduler.push(first)
    scheduler.push(second)
    assert messages_until(scheduler, second) == [first, second]


def test_what_overtakes_waits_for_a_message_that_cannot_be_interleaved() -> None:
    plain = Scheduler()
    lane = OutboundStream(1, NORMAL, shared=True)
    first, second, keys = (flow_message(lane, *one) for one in ((2, 5_000), (2, 5_000), (1, 71)))
    plain.push(first)
    plain.push(second)
    send(plain)
    plain.push(keys)
    assert plain.pick_sparse() is None
    assert messages_until(plain, second) == [first, keys, second]


def test_a_lane_that_is_discarded_leaves_nothing(scheduler: Scheduler) -> None:
    lane, _, _ = lane_with_bulk(scheduler)
    scheduler.push(flow_message(lane, 1, 71))
    before = scheduler.queued
    waiting = sum(m.size - m.position for m in lane.queue) + 71
    scheduler.discard(lane)
    assert lane.first is None
    assert scheduler.queued == before - waiting
    drain(scheduler)
    assert scheduler.queued == 0
