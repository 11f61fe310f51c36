"""A peer that lies: what a packet of it costs, what it makes us hold, and how it ends.

Cost is counted in lines of Python, not in time. A packet of 1,400 bytes may run through
:data:`LINES_MAX` of them, which is about a millisecond.
"""

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from google_crc32c import value as crc32c

from socks_tunnel.peer.fast import receiver as receiver_module
from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.datapath import RARE_CHUNKS_MAX, WAITING_SACKS_MAX, DataPath
from socks_tunnel.peer.fast.reassembly import FRAGMENTS_MAX, MESSAGE_BYTES_MAX, STREAMS_MAX
from socks_tunnel.peer.fast.recovery import LIES_MAX, OUTSTANDING_MAX
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream
from socks_tunnel.protocol.errors import RemoteProtocolError
from support.effort import lines_executed

LINES_MAX = 10_000
LINES_A_CHUNK = 25
PACKET = 1_400
INBOUND = struct.pack("!HHL", 5000, 5000, 0xAAAA)
OUTBOUND = struct.pack("!HHL", 5000, 5000, 0xBBBB)
FIRST_TSN = 0xFFFF_FF00
OURS = 1_000


def path(*, interleaved: bool = False, batch_sacks: bool = True, stamps: bool = False) -> DataPath:
    made = DataPath(
        local_tag=0xAAAA,
        initial_tsn=OURS,
        overhead=65,
        congestion="cubic",
        budget=WindowBudget(),
        secret=bytes(8),
        rare=lambda kind, flags, body: None,
    )
    made.set_addressing(INBOUND, OUTBOUND)
    made.set_extensions(
        interleaved=interleaved,
        partial_reliability=True,
        batch_sacks=batch_sacks,
        stamps=stamps,
        zero_checksums=False,
    )
    made.receiver.start(FIRST_TSN)
    made.sender.peer_window = 1 << 24
    made.established = True
    return made


def packet(*chunks: bytes) -> bytes:
    body = b"".join(chunks)
    return INBOUND + struct.pack("<L", crc32c(INBOUND + bytes(4) + body)) + body


def chunk(kind: int, value: bytes, flags: int = 0) -> bytes:
    return struct.pack("!BBH", kind, flags, 4 + len(value)) + value + bytes(-len(value) % 4)


def data(tsn: int, piece: bytes = b"x", *, stream: int = 0, ssn: int = 0, flags: int = 3) -> bytes:
    return chunk(0, struct.pack("!LHHL", tsn & 0xFFFFFFFF, stream, ssn, 53) + piece, flags)


def idata(
    tsn: int, piece: bytes = b"x", *, stream: int = 0, mid: int = 0, word: int = 53, flags: int = 3
) -> bytes:
    head = struct.pack("!LHHLL", tsn & 0xFFFFFFFF, stream, 0, mid & 0xFFFFFFFF, word)
    return chunk(64, head + piece, flags)


def sack(cumulative: int, blocks: list[tuple[int, int]] = [], window: int = 1 << 24) -> bytes:  # noqa: B006
    body = struct.pack("!LLHH", cumulative & 0xFFFFFFFF, window, len(blocks), 0)
    return chunk(3, body + b"".join(struct.pack("!HH", *block) for block in blocks))


def forward(cumulative: int, entries: list[tuple[int, int]]) -> bytes:
    body = struct.pack("!L", cumulative & 0xFFFFFFFF)
    return chunk(192, body + b"".join(struct.pack("!HH", *entry) for entry in entries))


def iforward(cumulative: int, entries: list[tuple[int, int, int]]) -> bytes:
    body = struct.pack("!L", cumulative & 0xFFFFFFFF)
    return chunk(194, body + b"".join(struct.pack("!HHL", *entry) for entry in entries))


def bundled(make: Callable[[int], bytes], start: int, room: int = PACKET) -> tuple[bytes, int]:
    """Returns a packet full of chunks, and the number of the next."""
    chunks = []
    while room >= 0:
        made = make(start)
        room -= len(made)
        if room < 0:
            break
        chunks.append(made)
        start += 1
    return packet(*chunks), start


def feed(victim: DataPath, packets: list[bytes], budget: int = LINES_MAX) -> None:
    """Has the path take packets, one by one, and checks what each of them costs."""
    now = 1.0
    recovery = victim.sender.recovery
    for number, one in enumerate(packets):
        now += 0.0001
        delivered = recovery.delivery.delivered

        def take(one: bytes = one, now: float = now) -> None:
            due = victim.receive([one], now)
            victim.receiver.reassembly.ready.clear()
            victim.flush(now, due=due, blocked=False)

        if number % 7 == 0:
            cost = lines_executed(take)
            # What is acknowledged costs its share, once: it was we who sent it.
            assert cost < budget + LINES_A_CHUNK * (recovery.delivery.delivered - delivered) / 24
        else:
            take()


def loaded(*, chunks: int) -> DataPath:
    """Returns a path that has so many small chunks in flight."""
    sender = path(interleaved=True)
    sender.sender.controller.window = 1 << 25
    stream = OutboundStream(1, NORMAL)
    for _ in range(chunks):
        sender.sender.scheduler.push(Message(stream, 53, b"x"))
    now = 1.0
    while sender.sender.scheduler.queued:
        now += 0.001
        sender.sender.transmit(now)
    assert len(sender.sender.recovery) == chunks
    return sender


# --- SACKs ---------------------------------------------------------------------------------------


def test_gap_blocks_beyond_what_was_sent_are_not_walked_through() -> None:
    victim = loaded(chunks=1_000)
    bomb = packet(sack(OURS - 1, [(2, 65_535)] * 290))
    feed(victim, [bomb] * 20)
    # What was sent is acknowledged; what was not does not exist.
    assert victim.sender.recovery.flight <= 2 * victim.sender.packet_size


def test_ever_new_gap_blocks_cost_what_they_acknowledge() -> None:
    victim = loaded(chunks=OUTSTANDING_MAX - 1)
    rng = random.Random(1)
    packets = []
    for _ in range(300):
        starts = sorted(rng.sample(range(2, OUTSTANDING_MAX - 3), 290))
        packets.append(packet(sack(OURS - 1, [(at, at) for at in starts])))
    feed(victim, packets, budget=LINES_MAX + 15 * 290)


def test_a_sack_for_what_was_never_sent_changes_nothing_and_ends_it_when_repeated() -> None:
    victim = loaded(chunks=10)
    lie = packet(sack(OURS + 500))
    feed(victim, [lie] * LIES_MAX)
    assert len(victim.sender.recovery) == 10
    with pytest.raises(RemoteProtocolError, match="acknowledges data that was never sent"):
        feed(victim, [lie])


def test_what_sacks_say_waits_for_the_flush_and_no_more_of_them_wait_than_allowed() -> None:
    victim = loaded(chunks=100)
    victim.receive([packet(sack(OURS))], 2.0)
    assert len(victim.sender.recovery) == 100
    victim.flush(2.0, due=False, blocked=False)
    assert len(victim.sender.recovery) == 99
    acks = [packet(sack(OURS + 1 + n)) for n in range(WAITING_SACKS_MAX + 1)]
    victim.receive(acks, 3.0)
    assert len(victim.sender.recovery) == 99 - WAITING_SACKS_MAX
    victim.flush(3.0, due=False, blocked=False)
    assert len(victim.sender.recovery) == 99 - WAITING_SACKS_MAX - 1


def test_an_old_sack_is_ignored() -> None:
    victim = loaded(chunks=10)
    feed(victim, [packet(sack(OURS + 4)), packet(sack(OURS, window=0))])
    assert len(victim.sender.recovery) == 5
    assert victim.sender.peer_window == 1 << 24


def test_a_window_that_shrinks_stops_the_sender_and_no_more() -> None:
    victim = loaded(chunks=100)
    stream = OutboundStream(2, NORMAL)
    for _ in range(200):
        victim.sender.scheduler.push(Message(stream, 53, bytes(1_000)))
    feed(victim, [packet(sack(OURS + 99, window=size)) for size in (70_000, 10, 0, 0, 5)])
    sender = victim.sender
    assert sender.recovery.flight <= 70_000
    while len(sender.recovery):
        sender.receive_sack(sender.recovery.next_tsn - 1 & 0xFFFFFFFF, 0, (), (), 1.5)
    # RFC 9260 section 6.1 A: with a closed window, one chunk goes out as a probe.
    assert sender.transmit(1.6)
    assert len(sender.recovery) == 1
    assert not sender.transmit(1.7)


# --- DATA ----------------------------------------------------------------------------------------


def test_bundled_tiny_chunks_cost_no_millisecond() -> None:
    victim = path()
    packets, tsn = [], FIRST_TSN
    for _ in range(50):
        made, tsn = bundled(lambda n: data(n, ssn=n - FIRST_TSN & 0xFFFF), tsn)
        packets.append(made)
    feed(victim, packets)


def test_a_message_without_end_in_fragments_of_a_byte_ends_the_association() -> None:
    victim = path()
    packets, tsn = [packet(data(FIRST_TSN, flags=2))], FIRST_TSN + 1
    while tsn < FIRST_TSN + FRAGMENTS_MAX + 100:
        made, tsn = bundled(lambda n: data(n, flags=0), tsn)
        packets.append(made)
    with pytest.raises(RemoteProtocolError, match="fragments unfinished"):
        feed(victim, packets)
    assert victim.receiver.reassembly.fragments <= FRAGMENTS_MAX + 1


def test_a_message_longer_than_announced_ends_the_association() -> None:
    victim = path()
    packets = [packet(data(FIRST_TSN, flags=2))]
    packets += [packet(data(FIRST_TSN + n, bytes(1_000), flags=0)) for n in range(1, 300)]
    with pytest.raises(RemoteProtocolError, match=f"more than {MESSAGE_BYTES_MAX} bytes"):
        feed(victim, packets)


@pytest.mark.parametrize("interleaved", [False, True])
def test_unfinished_messages_on_many_streams_are_bounded(interleaved: bool) -> None:
    victim = path(interleaved=interleaved)
    if interleaved:
        packets = [
            packet(idata(FIRST_TSN + n, bytes(1_300), stream=n, flags=2)) for n in range(3_000)
        ]
    else:
        packets = [packet(data(FIRST_TSN + 2 * n, bytes(1_300), flags=2)) for n in range(3_000)]
    if interleaved:
        with pytest.raises(RemoteProtocolError, match=f"more than {STREAMS_MAX} streams|window"):
            feed(victim, packets)
    else:
        feed(victim, packets)  # out of order: dropped as if lost, and never acknowledged
        assert victim.receiver.chunks_dropped > 0
    held = victim.receiver.reassembly.held
    assert held <= victim.receiver.window + receiver_module.OVERRUN_MAX + PACKET


def test_every_second_tsn_is_bounded() -> None:
    victim = path()
    packets, tsn = [], FIRST_TSN
    for _ in range(300):
        made, tsn = bundled(lambda n: data(FIRST_TSN + 2 * (n - FIRST_TSN) + 1, flags=0), tsn)
        packets.append(made)
    feed(victim, packets)
    assert len(victim.receiver.gaps) <= receiver_module.GAPS_MAX
    assert victim.receiver.chunks_dropped > 0


def test_tsns_that_jump_are_dropped() -> None:
    victim = path()
    jumps = [packet(data(FIRST_TSN + 40_000 + 7_919 * n)) for n in range(100)]
    feed(victim, jumps)
    assert victim.receiver.chunks_dropped >= 90
    assert len(victim.receiver.gaps) == 0


def test_fragments_in_falling_order_cost_the_same() -> None:
    victim = path()
    count = 12_000
    tsns = list(range(FIRST_TSN + count, FIRST_TSN, -1))
    packets = [
        packet(*[data(tsn, flags=0) for tsn in tsns[at : at + 60]]) for at in range(0, count, 60)
    ]
    feed(victim, packets)


def test_fragments_that_fill_holes_cost_the_same() -> None:
    victim = path()
    count = 4_000
    first = list(range(FIRST_TSN + 1, FIRST_TSN + count, 2))
    rest = list(range(FIRST_TSN + 2, FIRST_TSN + count, 2))
    random.Random(3).shuffle(rest)
    packets = [
        packet(*[data(tsn, flags=0) for tsn in tsns[at : at + 60]])
        for tsns in (first, rest)
        for at in range(0, len(tsns), 60)
    ]
    feed(victim, packets)


def test_many_duplicates_are_reported_in_part() -> None:
    victim = path(batch_sacks=False)
    feed(victim, [packet(data(FIRST_TSN))])
    made, _ = bundled(lambda n: data(FIRST_TSN), 0)
    feed(victim, [made] * 50)
    assert victim.receiver.duplicates > 1_000


def test_thousands_of_streams_end_the_association() -> None:
    victim = path()
    packets, n = [], 0
    while n < STREAMS_MAX + 100:
        made, n = bundled(lambda k: data(FIRST_TSN + k, stream=k, ssn=9), n)
        packets.append(made)
    with pytest.raises(RemoteProtocolError, match=f"more than {STREAMS_MAX} streams"):
        feed(victim, packets)


@pytest.mark.parametrize("skip", [forward, iforward])
def test_a_forward_tsn_to_thousands_of_streams_ends_the_association(skip: Any) -> None:
    victim = path(interleaved=skip is iforward)
    packets = []
    for n in range(40):
        streams = range(n * 150, n * 150 + 150)
        entries = [(s, 5) if skip is forward else (s, 0, 5) for s in streams]
        packets.append(packet(skip(FIRST_TSN + n, entries)))
    with pytest.raises(RemoteProtocolError, match=f"more than {STREAMS_MAX} streams"):
        feed(victim, packets)


def test_forward_tsns_over_much_that_is_held_cost_no_millisecond() -> None:
    """Each names 300 streams, and moves on by one TSN, over thousands of unfinished fragments."""
    victim = path()
    packets, tsn = [], FIRST_TSN
    for _ in range(100):
        made, tsn = bundled(lambda n: data(n + 200, flags=0), tsn)
        packets.append(made)
    feed(victim, packets)
    held = victim.receiver.reassembly.fragments
    assert held > 4_000
    feed(
        victim,
        [packet(forward(FIRST_TSN + n, [(s, n) for s in range(300)])) for n in range(100)],
    )


def test_forward_tsns_over_many_partial_messages_cost_no_millisecond() -> None:
    victim = path(interleaved=True)
    packets, n = [], 0
    while n < 6_000:
        made, n = bundled(lambda k: idata(FIRST_TSN + k, mid=k + 1, flags=2), n)
        packets.append(made)
    feed(victim, packets)
    feed(
        victim,
        [packet(iforward(FIRST_TSN + n + k, [(0, 0, k)] * 150)) for k in range(60)],
    )


def test_a_forward_tsn_that_jumps_ends_the_association() -> None:
    victim = path()
    with pytest.raises(RemoteProtocolError, match="skips 100001 TSNs at once"):
        feed(victim, [packet(forward(FIRST_TSN + 100_000, []))])


def test_a_forward_tsn_over_the_widest_window_costs_no_millisecond() -> None:
    victim = path()
    high = receiver_module.TSN_AHEAD_MAX - 10
    feed(
        victim, [packet(data(FIRST_TSN + high, flags=0)), packet(forward(FIRST_TSN + high - 1, []))]
    )


def test_messages_far_ahead_of_their_order_end_the_association() -> None:
    victim = path(interleaved=True)
    with pytest.raises(RemoteProtocolError, match="ahead of the next in order"):
        feed(victim, [packet(idata(FIRST_TSN, mid=50_000))])


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([idata(FIRST_TSN, flags=2), idata(FIRST_TSN + 1, flags=2)], "two fragments for one place"),
        (
            [idata(FIRST_TSN, word=2, flags=1), idata(FIRST_TSN + 1, word=3, flags=1)],
            "two ends of one message",
        ),
        (
            [
                idata(FIRST_TSN, word=5, flags=0),
                idata(FIRST_TSN + 1, word=1, flags=1),
                idata(FIRST_TSN + 2, flags=2),
            ],
            "beyond the end of a message",
        ),
        (
            [data(FIRST_TSN, stream=1, flags=2), data(FIRST_TSN + 1, stream=2, flags=1)],
            "belong to different messages",
        ),
        ([chunk(0, bytes(12), 3)], "DATA without user data"),
        ([chunk(64, bytes(16), 3)], "I-DATA without user data"),
    ],
)
def test_fragments_that_contradict_each_other_end_the_association(
    chunks: list[bytes], reason: str
) -> None:
    victim = path(interleaved=True)
    with pytest.raises(RemoteProtocolError, match=reason):
        victim.receive([packet(one) for one in chunks], 1.0)


def test_rare_chunks_of_one_packet_are_bounded() -> None:
    seen: list[int] = []
    victim = path()
    victim._rare = lambda kind, flags, body: seen.append(kind)
    victim.receive([packet(*[chunk(4, b"")] * 300)], 1.0)
    assert seen == [4] * RARE_CHUNKS_MAX
    assert victim.malformed == 1


# --- what an honest peer gets ----------------------------------------------------------------------


def test_an_unknown_peer_gets_a_sack_for_every_second_packet() -> None:
    victim = path(batch_sacks=False)
    due = victim.receive([packet(data(FIRST_TSN + n, ssn=n)) for n in range(10)], 1.0)
    assert not due
    assert len(victim.flush(1.0, due=due, blocked=False)) == 5


def test_a_batch_gets_one_sack_if_both_announced_it() -> None:
    victim = path()
    due = victim.receive([packet(data(FIRST_TSN + n, ssn=n)) for n in range(10)], 1.0)
    assert due
    assert len(victim.flush(1.0, due=due, blocked=False)) == 1


@pytest.mark.parametrize("batch_sacks", [False, True])
def test_a_gap_is_reported_at_once_and_a_lone_packet_soon(batch_sacks: bool) -> None:
    victim = path(batch_sacks=batch_sacks)
    assert victim.receive([packet(data(FIRST_TSN + 1, ssn=1))], 1.0)
    (answer,) = victim.flush(1.0, due=True, blocked=False)
    cumulative, _, blocks, _ = struct.unpack_from("!LLHH", answer, 16)
    assert (cumulative, blocks) == (FIRST_TSN - 1, 1)
    assert struct.unpack_from("!HH", answer, 28) == (2, 2)
    assert victim.receive([packet(data(FIRST_TSN))], 1.1)
    victim.flush(1.1, due=True, blocked=False)
    assert not victim.receive([packet(data(FIRST_TSN + 2, ssn=2))], 1.2)
    assert victim.flush(1.2, due=False, blocked=False) == []
    assert 1.2 < victim.wake_at <= 1.2 + 0.2
    assert victim.timer(victim.wake_at) == ([], True)


def test_the_i_bit_is_answered_at_once() -> None:
    victim = path()
    assert victim.receive([packet(data(FIRST_TSN, flags=3 | 8))], 1.0)


def test_a_sack_travels_with_data() -> None:
    victim = path()
    victim.receive([packet(data(FIRST_TSN))], 1.0)
    victim.sender.scheduler.push(Message(OutboundStream(1, NORMAL), 53, b"reply"))
    (both,) = victim.flush(1.0, due=False, blocked=False)
    assert (both[12], both[28]) == (3, 0)
    assert not victim.receiver.owes_sack


@pytest.mark.parametrize("announced", [False, True])
def test_a_zero_checksum_is_taken_by_whoever_has_announced_that(announced: bool) -> None:
    """RFC 9653 section 5.3. One that is neither zero nor right is never taken."""
    victim = path(interleaved=True)
    victim.takes_zero_checksums = announced
    right = packet(idata(FIRST_TSN))
    victim.receive([right[:8] + bytes(4) + right[12:]], 1.0)
    assert len(victim.receiver.reassembly.ready) == announced
    assert victim.malformed == (not announced)
    wrong_tag = struct.pack("!HHL", 5000, 5000, 0xAAAB)
    victim.receive([wrong_tag + bytes(4) + packet(idata(FIRST_TSN + 1))[12:]], 1.0)
    victim.receive([right[:8] + b"\0\0\0\1" + packet(idata(FIRST_TSN + 1))[12:]], 1.0)
    assert victim.malformed == 2 + (not announced)
    victim.receive([packet(idata(FIRST_TSN + announced, mid=announced))], 1.0)
    assert len(victim.receiver.reassembly.ready) == 1 + announced
