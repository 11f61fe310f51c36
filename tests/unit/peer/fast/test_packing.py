"""How messages become packets."""

import struct

import pytest
from aiortc.rtcsctptransport import parse_packet

from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.limits import MESSAGE_LIMIT_MAX
from socks_tunnel.peer.fast.packing import FRAGMENT_MIN, Packing
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream
from socks_tunnel.peer.fast.wire import PACKET_HEADER

SIZE = 1_432
FULL = SIZE - PACKET_HEADER
HEADER = 20  # of an I-DATA chunk


def packing(*sizes: int, interleaved: bool = True) -> Packing:
    """Returns the packing of an association in whose queue messages of the given sizes wait."""
    made = Packing(1_000, controller("cubic", SIZE), SIZE)
    made.set_addressing(struct.pack("!HHL", 5000, 5000, 7))
    made.interleaved = made.scheduler.interleaved = interleaved
    stream = OutboundStream(1, NORMAL)
    for size in sizes:
        made.scheduler.push(Message(stream, 53, bytes(size)))
    return made


def filled(made: Packing, allowance: int) -> tuple[list[int], int, int]:
    """Returns the sizes of complete packets, what is in the begun one, and the room in it."""
    packets: list[bytes] = []
    parts: list[bytes] = []
    burst = made.recovery.burst(1.0)
    room = made.fill(1.0, burst, allowance, packets, parts, FULL, made.scheduler.pick)
    return [len(packet) for packet in packets], sum(map(len, parts)), room


def test_a_packet_has_addressing_and_checksum() -> None:
    _, _, tag, chunks = parse_packet(packing().packet(struct.pack("!BBH4s", 4, 0, 8, b"ping")))
    assert tag == 7
    assert len(chunks) == 1


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_long_message_fills_packets_and_leaves_the_last_one_open(interleaved: bool) -> None:
    made = packing(4 * SIZE, interleaved=interleaved)
    complete, begun, room = filled(made, 1 << 20)
    assert complete == [SIZE] * 4
    assert 0 < begun == FULL - room
    assert (made.packets_sent, made.bytes_sent) == (4, 4 * SIZE)


def test_the_allowance_ends_it() -> None:
    made = packing(20 * SIZE)
    complete, begun, _ = filled(made, 2 * FULL)
    assert complete == [SIZE]
    assert begun == FULL
    assert made.scheduler.queued == 20 * SIZE - 2 * (FULL - HEADER)


def test_a_message_that_fits_a_packet_is_not_cut_for_the_rest_of_another() -> None:
    made = packing(1_000, 1_000)
    assert filled(made, 1 << 20) == ([PACKET_HEADER + HEADER + 1_000], 1_020, FULL - 1_020)


@pytest.mark.parametrize("waiting", [(1_000,), (1_400,), (20 * SIZE,), (40, 40, 1_000)])
def test_the_rest_of_a_packet_is_filled_and_no_other_one_begun(waiting: tuple[int, ...]) -> None:
    made = packing(*waiting)
    packets: list[bytes] = []
    parts = [bytes(500)]
    room = made.fill_rest(1.0, made.recovery.burst(1.0), packets, parts, FULL - 500)
    assert not packets
    assert sum(map(len, parts)) == FULL - room
    assert 0 <= room < HEADER + FRAGMENT_MIN


def test_the_longest_messages_leave_no_packet_short_between_them() -> None:
    made = packing(*[MESSAGE_LIMIT_MAX] * 4)
    complete, _, _ = filled(made, 1 << 20)
    assert len(complete) > 180
    assert set(complete) == {SIZE}


def test_a_small_rest_is_left_empty() -> None:
    made = packing(20 * SIZE)
    parts = [bytes(FULL - HEADER - FRAGMENT_MIN)]
    packets: list[bytes] = []
    room = HEADER + FRAGMENT_MIN
    assert made.fill_rest(1.0, made.recovery.burst(1.0), packets, parts, room) == room
    assert len(parts) == 1


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 4 * SIZE + 1])
def test_a_chunk_that_is_sent_again_has_the_same_bytes(size: int, interleaved: bool) -> None:
    made = packing(size, 2 * SIZE, interleaved=interleaved)
    sent: list[bytes] = []
    parts: list[bytes] = []
    burst = made.recovery.burst(1.0)
    made.fill(1.0, burst, 1 << 20, sent, parts, FULL, made.scheduler.pick)
    made.finish(parts, sent)
    made.recovery.timeout(2.0)
    again: list[bytes] = []
    made.retransmit(made.recovery.burst(2.0), 1 << 20, again, parts, FULL)
    made.finish(parts, again)
    assert [bytes(chunk) for packet in again for chunk in parse_packet(packet)[3]] == [
        bytes(chunk) for packet in sent for chunk in parse_packet(packet)[3]
    ]


def test_packets_without_checksums_are_the_same_but_for_that() -> None:
    made: list[list[bytes]] = []
    for checksums in (True, False):
        one = packing(4 * SIZE, 3)
        one.checksums = checksums
        packets: list[bytes] = []
        parts: list[bytes] = []
        burst = one.recovery.burst(1.0)
        one.fill(1.0, burst, 1 << 20, packets, parts, FULL, one.scheduler.pick)
        one.finish(parts, packets)
        assert not parts
        assert one.packet(packets[0][PACKET_HEADER:]) == packets[0]
        assert (one.packets_sent, one.bytes_sent) == (len(packets), sum(map(len, packets)))
        made.append(packets)
    assert made[1] == [packet[:8] + bytes(4) + packet[12:] for packet in made[0]]
    assert made[0] != made[1]
