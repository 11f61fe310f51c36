"""Which message goes next."""

import random

import pytest

from socks_tunnel.peer.fast.streams import (
    CONTROL,
    DATAGRAM,
    NORMAL,
    QUANTUM,
    SPARSE_BYTES,
    Message,
    OutboundStream,
    Scheduler,
    rank_of,
)

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
