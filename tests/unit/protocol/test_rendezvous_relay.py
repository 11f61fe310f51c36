"""Frames with datagrams, and the queue in which they wait."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous_relay import (
    JOINED_MAX,
    QUEUE_TIME,
    SEGMENTS_MAX,
    Relayed,
    RelayQueue,
    count_relayed,
    decode_relayed,
    encode_relayed,
    join,
)

KEY, CHANNEL = bytes(range(32)), b"channel1"


@given(st.lists(st.binary(max_size=40) | st.just(b"x" * 20) | st.just(b"y" * JOINED_MAX)))
def test_what_is_joined_comes_apart_again(datagrams: list[bytes]) -> None:
    received: list[bytes] = []
    for joined, segment in join(datagrams):
        data = encode_relayed(Relayed(KEY, CHANNEL, joined, segment), "from")
        frame = wire.decode_from_service(data)
        assert isinstance(frame, Relayed)
        assert frame == Relayed(KEY, CHANNEL, joined, segment)
        assert frame.count == len(frame.datagrams()) <= SEGMENTS_MAX
        assert count_relayed(data, "from") == frame.count
        assert len(frame.joined) <= JOINED_MAX
        received += frame.datagrams()
    assert received == [datagram for datagram in datagrams if datagram]


def test_datagrams_of_one_size_share_a_frame_and_the_last_may_be_shorter() -> None:
    sizes = [1200, 1200, 700, 1200, 1200, 1300]
    joined = [(len(data), segment) for data, segment in join(map(bytes, sizes))]
    assert joined == [(3100, 1200), (2400, 1200), (1300, 1300)]


def test_a_datagram_that_no_frame_holds_is_left_out() -> None:
    assert list(join([b"", bytes(JOINED_MAX + 1), b"x"])) == [(b"x", 1)]


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"channel": b"short"}, "channel"),
        ({"datagram": b""}, "datagram"),
        ({"datagram": bytes(JOINED_MAX + 1)}, "datagram"),
        ({"datagram": None}, "datagram"),
        ({"segment": 0}, "segment"),
        ({"segment": -1}, "segment"),
        ({"segment": True}, "segment"),
        ({"datagram": bytes(SEGMENTS_MAX + 1), "segment": 1}, "segment"),
        ({"to": b"short"}, "to"),
    ],
)
def test_frames_out_of_bounds_are_refused(changes: dict[str, Any], about: str) -> None:
    fields: dict[str, Any] = {
        "kind": "relay",
        "to": KEY,
        "channel": CHANNEL,
        "datagram": b"abc",
        **changes,
    }
    with pytest.raises(RemoteProtocolError, match=about):
        wire.decode_from_client(msgpack.packb(fields))


def test_a_segment_longer_than_the_datagram_is_the_datagram() -> None:
    fields = {"kind": "relay", "to": KEY, "channel": CHANNEL, "datagram": b"abc", "segment": 9}
    frame = wire.decode_from_client(msgpack.packb(fields))
    assert frame == Relayed(KEY, CHANNEL, b"abc", 3)


def test_a_frame_holds_as_many_bytes_as_the_limit() -> None:
    half = JOINED_MAX // 2
    sizes = [half] * 5
    joined = [(len(data), segment) for data, segment in join(map(bytes, sizes))]
    assert joined == [(JOINED_MAX, half), (JOINED_MAX, half), (half, half)]
    assert [len(data) for data, _ in join([bytes(JOINED_MAX)])] == [JOINED_MAX]


def test_a_frame_holds_as_many_datagrams_as_the_limit() -> None:
    joined = list(join([b"x"] * (2 * SEGMENTS_MAX + 1)))
    assert [len(data) for data, _ in joined] == [SEGMENTS_MAX, SEGMENTS_MAX, 1]
    full = Relayed(KEY, CHANNEL, b"x" * SEGMENTS_MAX, 1)
    assert wire.decode_from_client(encode_relayed(full, "to")) == full


def test_one_datagram_needs_no_segment() -> None:
    for segment, written in ((2, True), (3, False)):
        fields = msgpack.unpackb(encode_relayed(Relayed(KEY, CHANNEL, b"abc", segment), "to"))
        assert ("segment" in fields) is written


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"datagram": b""}, "datagram"),
        ({"datagram": bytes(JOINED_MAX + 1)}, "datagram"),
        ({"datagram": bytes(SEGMENTS_MAX + 1), "segment": 1}, "segment"),
    ],
)
def test_the_field_out_of_bounds_is_named_and_shown(changes: dict[str, Any], about: str) -> None:
    fields = {"channel": CHANNEL, **changes}
    with pytest.raises(bounded.Malformed, match=f"^'{about}' is not usable: "):
        decode_relayed(KEY, fields)


# --- the queue ------------------------------------------------------------------------------------


def counting(counts: Counter[str]) -> Callable[[str, int], None]:
    def dropped(why: str, datagrams: int) -> None:
        counts[why] += datagrams

    return dropped


def drained(queue: RelayQueue) -> list[bytes]:
    frames = []
    while (frame := queue.pop()) is not None:
        frames.append(frame)
    assert (queue.size, queue.peek()) == (0, 0)
    return frames


def test_channels_have_their_turns() -> None:
    queue = RelayQueue(counting(Counter()))
    for number in range(3):
        queue.push("busy", b"b%d" % number, 1, 0)
    queue.push("quiet", b"q", 1, 0)
    assert queue.peek() == 2
    assert drained(queue) == [b"b0", b"q", b"b1", b"b2"]


def test_the_oldest_of_the_fullest_channel_gives_way() -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts), limit=100)
    queue.push("quiet", bytes(10), 1, 0)
    queue.push("busy", b"1" * 45, 3, 0)
    queue.push("busy", b"2" * 45, 4, 0)
    queue.push("quiet", b"late comer", 1, 0)
    assert queue.size == 65
    assert drained(queue) == [bytes(10), b"2" * 45, b"late comer"]
    assert counts == {"full": 3}


def test_the_fullest_channel_is_the_one_with_most_bytes_and_not_the_longest_frame() -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts), limit=100)
    for name in (b"1", b"2", b"3"):
        queue.push("many", name * 20, 1, 0)
    queue.push("one", b"o" * 30, 1, 0)
    queue.push("late", b"l" * 20, 1, 0)
    assert drained(queue) == [b"2" * 20, b"o" * 30, b"l" * 20, b"3" * 20]


def test_what_has_left_no_longer_counts_for_its_channel() -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts), limit=100)
    queue.push("was full", b"1" * 50, 1, 0)
    queue.push("was full", b"2" * 10, 1, 0)
    queue.push("is full", b"f" * 30, 1, 0)
    assert queue.pop() == b"1" * 50
    queue.push("late", b"l" * 70, 1, 0)
    assert drained(queue) == [b"2" * 10, b"l" * 70]


def test_a_queue_that_is_exactly_full_drops_nothing() -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts), limit=100)
    queue.push("a", bytes(60), 1, 0)
    queue.push("a", bytes(40), 1, 0)
    assert (queue.size, counts["full"]) == (100, 0)
    queue.push("a", b"x", 1, 0)
    assert (queue.size, counts["full"]) == (41, 1)


def test_what_was_held_up_for_too_long_is_dropped() -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts))
    queue.push("a", b"old", 2, 0)
    queue.push("b", b"older", 1, 0)
    queue.push("a", b"new", 1, QUEUE_TIME)
    queue.expire(QUEUE_TIME)
    assert not counts
    queue.expire(QUEUE_TIME + 0.01)
    assert counts == {"late": 3}
    assert drained(queue) == [b"new"]


def test_nothing_waits_without_a_connection() -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts))
    queue.push("a", b"frame", 3, 0)
    queue.push("a", b"frame", 1, 0)
    queue.push("b", b"frame", 1, 0)
    queue.clear()
    assert drained(queue) == []
    assert counts == {"gone": 5}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=60))
def test_the_queue_never_holds_more_than_its_limit(pushed: list[tuple[str, int]]) -> None:
    counts: Counter[str] = Counter()
    queue = RelayQueue(counting(counts), limit=100)
    for channel, size in pushed:
        queue.push(channel, bytes(size), 1, 0)
        assert queue.size <= 100
    assert len(drained(queue)) + counts["full"] == len(pushed)
