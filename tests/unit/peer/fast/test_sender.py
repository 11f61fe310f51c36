"""What the sender puts into packets, and when."""

import struct
from typing import Any

import pytest
from aiortc.rtcsctptransport import parse_packet

from socks_tunnel.peer.fast.congestion import Acked, CongestionName
from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.cubic import Cubic
from socks_tunnel.peer.fast.limits import (
    MESSAGE_LIMIT_MAX,
    QUEUE_BYTES_MIN,
)
from socks_tunnel.peer.fast.sender import BURST_PACKETS, TOP_UP_PACKETS, Sender
from socks_tunnel.peer.fast.streams import CONTROL, DATAGRAM, NORMAL, Message, OutboundStream
from socks_tunnel.peer.fast.urgent import URGENT_PACKETS

SIZE = 1_432
FIRST = 1_000


def sender(name: CongestionName = "cubic", *, interleaved: bool = True) -> Sender:
    made = Sender(FIRST, controller(name, SIZE), SIZE)
    made.set_addressing(struct.pack("!HHL", 5000, 5000, 7))
    made.interleaved = made.scheduler.interleaved = interleaved
    made.peer_window = 1 << 24
    return made


def queue(made: Sender, *sizes: int, stream: OutboundStream | None = None, **options: Any) -> None:
    stream = stream or OutboundStream(1, NORMAL)
    for size in sizes:
        made.scheduler.push(Message(stream, 53, bytes(size), **options))


def sack(made: Sender, now: float, upto: int | None = None) -> None:
    last = made.recovery.next_tsn - 1 if upto is None else FIRST + upto - 1
    made.receive_sack(last & 0xFFFFFFFF, made.peer_window, (), (), now)


@pytest.mark.parametrize("interleaved", [False, True])
def test_packets_are_full_and_what_aiortc_can_read(interleaved: bool) -> None:
    made = sender(interleaved=interleaved)
    queue(made, 10_000, 3, 700, 1_400)
    packets = made.transmit(1.0)
    for packet in packets:
        _, _, tag, _ = parse_packet(packet)  # checks the checksum too
        assert tag == 7
        assert len(packet) <= SIZE
    # Equal sizes in a row, which one UDP GSO call can take; only what is left is shorter.
    assert [len(packet) for packet in packets[:7]] == [SIZE] * 7
    assert made.packets_sent == len(packets)
    assert made.bytes_sent == sum(map(len, packets))


def test_a_small_message_is_not_split_for_the_rest_of_a_packet() -> None:
    made = sender(interleaved=False)
    queue(made, 1_000, 1_000)
    assert [len(packet) for packet in made.transmit(1.0)] == [12 + 16 + 1_000] * 2


def test_small_messages_share_packets() -> None:
    made = sender()
    queue(made, *[50] * 40)
    assert len(made.transmit(1.0)) == 3


def test_the_window_and_the_burst_bound_what_is_sent() -> None:
    made = sender()
    queue(made, 1_000_000)
    packets = made.transmit(1.0)
    assert made.recovery.flight - made.controller.window < SIZE
    assert len(packets) in {10, 11}
    assert not made.more
    made.controller.window = 1 << 24
    assert len(made.transmit(1.0)) == BURST_PACKETS
    assert made.more


def test_a_sack_goes_first_in_the_first_packet() -> None:
    made = sender()
    first = struct.pack("!BBHLLHH", 3, 0, 16, 1, 2, 0, 0)
    queue(made, 10_000)
    packets = made.transmit(1.0, first)
    assert packets[0][12:28] == first
    assert [len(packet) for packet in packets[:7]] == [SIZE] * 7
    assert made.transmit(1.0, first)[0][12:] == first


def test_lost_chunks_go_before_new_ones() -> None:
    made = sender()
    queue(made, 12_000)
    made.transmit(1.0)
    offsets = (2, 8)
    made.receive_sack(FIRST - 1, 1 << 24, offsets, (), 1.1)
    queue(made, 12_000)
    packet = made.transmit(1.1)[0]
    assert struct.unpack_from("!L", packet, 16)[0] == FIRST
    assert made.recovery.retransmissions == 1


def test_recovery_sends_about_what_arrives() -> None:
    """RFC 6937: the reduction is spread over the round trip, no burst and no pause."""
    made = sender()
    assert isinstance(made.controller, Cubic)
    made.controller.window = made.controller.ssthresh = 100 * SIZE
    queue(made, 1_000_000)
    now = 1.0
    while made.recovery.flight < 99 * SIZE:
        made.transmit(now)
        now += 0.001
    flight = made.recovery.flight
    sent, lost = 0, 1
    for got in range(4, 100, 2):
        now += 0.001
        before = made.recovery.flight
        made.receive_sack(FIRST - 1, 1 << 24, (lost + 1, got), (), now)
        after_sack = made.recovery.flight
        made.transmit(now)
        assert made.recovery.flight - after_sack <= 2 * SIZE + (before - after_sack)
        sent += made.recovery.flight - after_sack
    assert made.controller.window == int(0.7 * 100 * SIZE)
    assert 0.6 * flight <= sent <= 0.8 * flight


def test_what_turned_out_to_be_no_loss_is_undone() -> None:
    made = sender()
    queue(made, 12_000)
    made.transmit(1.0)
    window = made.controller.window
    made.receive_sack(FIRST - 1, 1 << 24, (2, 8), (), 1.1)
    made.transmit(1.1)
    assert made.controller.window < window
    made.receive_sack(FIRST + 8, 1 << 24, (), (FIRST,), 1.2)
    assert made.controller.window >= window


def test_a_message_of_a_channel_with_a_lifetime_is_given_up_in_the_queue() -> None:
    made = sender()
    made.controller.window = 2 * SIZE
    stream = OutboundStream(1, NORMAL)
    queue(made, 5_000, stream=stream, expiry=1.5, counted=True)
    queue(made, 300, stream=stream, expiry=1.5, counted=True)
    queue(made, 100, stream=stream, counted=True)
    made.transmit(1.0)
    sack(made, 1.1)
    packets = made.transmit(2.0)
    assert stream.drained == 5_400
    # The message that was sent in part uses a TSN up, which a FORWARD-TSN then skips.
    packets += made.transmit(2.0)
    kinds = [packet[12] for packet in packets]
    assert kinds == [64, 194]
    skipped = struct.unpack_from("!LHHL", packets[1], 16)
    assert skipped[1:] == (1, 0, 0)


def test_the_pace_is_kept() -> None:
    made = sender("bbr")
    made.controller.pacing_rate = 1_250_000.0
    made.controller.window = 1 << 24
    queue(made, *[50_000] * 100)
    now, sent = 1.0, 0
    while now < 2.0:
        sent += sum(map(len, made.transmit(now)))
        while made.more:
            sent += sum(map(len, made.transmit(now)))
        assert made.pacer.until > now
        assert made.wake_at <= made.pacer.until
        now = made.pacer.until + 0.0015  # as a timer of the event loop is
    assert sent == pytest.approx(1_250_000, rel=0.05)


def test_the_limits_follow_what_is_measured() -> None:
    made = sender(interleaved=False)
    assert (made.queue_limit, made.message_limit) == (QUEUE_BYTES_MIN, MESSAGE_LIMIT_MAX)
    made.recovery.trip.measured(0.05, 1.0)
    made.controller.window = 1 << 30
    made.rate = 12_500_000.0
    assert made.queue_limit == 625_000
    assert made.message_limit == 62_500  # 5 ms
    made.interleaved = True
    assert made.message_limit == MESSAGE_LIMIT_MAX


def test_a_small_window_asks_for_sacks_at_once() -> None:
    made = sender()
    made.controller.window = 4 * SIZE
    queue(made, 100)
    assert not made.transmit(1.0)[0][13] & 8, "a lone message waits for nothing"
    queue(made, 3 * SIZE)
    assert made.transmit(1.0)[-1][13] & 8, "the window is used up"
    made.controller.window = 40 * SIZE
    queue(made, 100)
    assert not made.transmit(1.0)[0][13] & 8


def test_a_tail_is_probed_and_then_timed_out() -> None:
    made = sender()
    queue(made, 500, 500)
    made.transmit(1.0)
    sack(made, 1.05)
    queue(made, 500)
    made.transmit(1.1)
    assert made.timer(1.1) == []
    window = made.controller.window
    probes = 0
    while not made.recovery.timeouts_total:
        now = made.wake_at
        probes += len(made.timer(now))
    assert probes >= 1
    assert made.controller.window == SIZE < window
    assert made.transmit(now)
    assert made.recovery.timeouts_total == 1


def full_window(*, interleaved: bool = True, **options: Any) -> Sender:
    """Returns a sender whose window is full of bulk, of which more waits."""
    made = sender(interleaved=interleaved)
    queue(made, *[20_000] * 10, **options)
    while made.transmit(1.0):
        pass
    return made


def payloads(packets: list[bytes]) -> list[bytes]:
    """Returns the DATA and I-DATA chunks of packets, without their headers."""
    found = []
    for packet in packets:
        position = 12
        while position < len(packet):
            kind, _, length = struct.unpack_from("!BBH", packet, position)
            if kind in {0, 64}:
                header = 20 if kind == 64 else 16
                found.append(packet[position + header : position + length])
            position += length + (-length & 3)
    return found


@pytest.mark.parametrize("rank", [CONTROL, DATAGRAM])
def test_what_is_urgent_does_not_wait_for_the_congestion_window(rank: int) -> None:
    made = full_window()
    queue(made, 160, stream=OutboundStream(3, rank), retransmits=0)
    (packet,) = made.transmit(1.001)
    assert payloads([packet])[0] == bytes(160)
    assert made.transmit(1.001) == []


def test_bulk_fills_the_packet_of_a_datagram_within_bounds() -> None:
    """A queue that is full of our own full packets may drop smaller ones."""
    made = full_window()
    voice = OutboundStream(3, DATAGRAM)
    sizes = []
    for _ in range(6):
        queue(made, 160, stream=voice, retransmits=0)
        sizes += [len(packet) for packet in made.transmit(1.001)]
    alone = [size for size in sizes if size < SIZE]
    assert sizes == [SIZE] * TOP_UP_PACKETS + alone
    assert all(size < 200 for size in alone)
    assert made.recovery.flight < made.controller.window + (TOP_UP_PACKETS + 1) * SIZE + 6 * 180


def test_bulk_fills_the_packet_of_a_forward_tsn() -> None:
    """If the queue drops it for its size, the peer waits for what was given up until a time-out."""
    made = full_window()
    oldest = made.recovery.since(made.recovery.cumulative + 1)[0]
    made.recovery.abandon(oldest.message, 1.001)
    assert made.recovery.forwarding.at == 1.001
    packet = made.transmit(1.001)[0]
    assert packet[12] == 194  # I-FORWARD-TSN
    assert len(packet) == SIZE


def test_a_message_that_would_fit_a_packet_is_cut_to_fill_that_of_a_datagram() -> None:
    made = sender()
    queue(made, *[1_400] * 20)
    while made.transmit(1.0):
        pass
    queue(made, 160, stream=OutboundStream(3, DATAGRAM), retransmits=0)
    (packet,) = made.transmit(1.001)
    assert len(packet) == SIZE
    assert [len(one) for one in payloads([packet])] == [160, SIZE - 12 - 180 - 20]


def test_no_bulk_fills_the_packet_of_a_datagram_where_it_would_do_harm() -> None:
    plain = full_window(interleaved=False)
    plain.scheduler.drop(plain.scheduler.pick() or pytest.fail("the rest of a message"))
    losing = full_window()
    losing.receive_sack(FIRST - 1, 1 << 24, (2, 8), (), 1.1)
    closed = full_window()
    closed.peer_window = closed.recovery.flight + SIZE
    for made in (plain, losing, closed):
        queue(made, 160, stream=OutboundStream(3, DATAGRAM), retransmits=0)
        assert payloads(made.transmit(1.1)[:1]) == [bytes(160)]


def test_what_is_urgent_does_not_wait_for_the_pacer() -> None:
    made = sender("bbr")
    made.controller.pacing_rate = 125_000.0
    made.controller.window = 1 << 24
    queue(made, *[50_000] * 10)
    while made.transmit(1.0):
        pass
    assert made.pacer.until > 1.001
    queue(made, 160, stream=OutboundStream(3, DATAGRAM), retransmits=0)
    (packet,) = made.transmit(1.001)
    assert payloads([packet])[0] == bytes(160)


def test_bulk_with_datagrams_keeps_the_pace() -> None:
    made = sender("bbr")
    made.controller.pacing_rate = 125_000.0
    made.controller.window = 1 << 24
    queue(made, *[50_000] * 100)
    voice = OutboundStream(3, DATAGRAM)
    now = 1.0
    while now < 2.0:
        queue(made, 40, stream=voice, retransmits=0)
        while made.transmit(now):
            pass
        now += 0.005
    # A packet for each datagram would be 286,400.
    assert made.bytes_sent <= 1.25 * 125_000


def test_a_datagram_goes_before_what_is_sent_again() -> None:
    made = full_window()
    made.receive_sack(FIRST - 1, 1 << 24, (2, 8), (), 1.1)
    queue(made, 160, stream=OutboundStream(3, DATAGRAM), retransmits=0)
    first = payloads(made.transmit(1.1))[0]
    assert len(first) == 160
    assert made.recovery.retransmissions == 1


def test_datagrams_beyond_the_window_are_bounded() -> None:
    made = full_window()
    voice = OutboundStream(3, DATAGRAM)
    flight = made.recovery.flight
    for _ in range(10):
        queue(made, *[1_000] * 10, stream=voice, retransmits=0)
        made.transmit(1.001)
    assert 0 < made.recovery.flight - flight <= (URGENT_PACKETS + 1) * SIZE
    beyond = made.recovery.flight - flight
    # What has arrived makes room for as much, and not for more; the bulk waits.
    queue(made, *[20_000] * 10)
    sack(made, 1.05)
    made.controller.window = SIZE
    assert made.recovery.flight == 0
    made.transmit(1.05)
    assert made.recovery.flight <= beyond + SIZE


def test_a_datagram_does_not_go_where_the_peer_has_no_room() -> None:
    made = full_window()
    made.peer_window = made.recovery.flight
    queue(made, 160, stream=OutboundStream(3, DATAGRAM), retransmits=0)
    assert made.transmit(1.001) == []


def test_fragments_of_a_message_that_is_not_interleaved_stay_together() -> None:
    """RFC 9260 section 6.9: they need consecutive TSNs, so here a datagram has to wait."""
    made = full_window(interleaved=False)
    queue(made, 160, stream=OutboundStream(3, DATAGRAM), retransmits=0)
    assert made.transmit(1.001) == []


def test_a_lost_datagram_that_nothing_follows_is_no_time_out() -> None:
    made = sender()
    voice = OutboundStream(3, DATAGRAM)
    queue(made, 160, stream=voice, retransmits=0)
    made.transmit(1.0)
    sack(made, 1.05)
    window = made.controller.window
    queue(made, 160, stream=voice, retransmits=0)
    made.transmit(1.1)
    now = made.wake_at
    assert made.timer(now) == []
    (packet,) = made.transmit(now)
    assert packet[12] == 194  # I-FORWARD-TSN
    sack(made, now + 0.05)
    assert (made.controller.window, made.recovery.timeouts_total) == (window, 0)
    assert not made.wake_at


def test_many_lost_datagrams_reduce_the_window() -> None:
    made = sender()
    made.controller.window = 40 * SIZE
    queue(made, *[1_000] * 30, stream=OutboundStream(3, DATAGRAM), retransmits=0)
    made.transmit(1.0)
    while made.recovery.flight:
        now = made.wake_at
        made.timer(now)
    assert SIZE < made.controller.window < 40 * SIZE
    assert made.recovery.timeouts_total == 0


def test_a_lost_sack_in_recovery_stops_nothing_for_long() -> None:
    """All that was in flight has arrived, but its SACK was lost: the probe asks for another."""
    made = sender()
    queue(made, *[20_000] * 20)
    now = 1.0
    made.transmit(now)
    made.receive_sack(FIRST, 1 << 24, (), (), now := now + 0.001)
    made.transmit(now)
    made.receive_sack(FIRST, 1 << 24, (2, 8), (), now := now + 0.001)
    assert made.recovery.episode
    while made.transmit(now):
        pass
    silent = now
    now = made.wake_at
    assert now - silent <= 0.02
    assert made.timer(now)
    assert made.recovery.timeouts_total == 0


def test_losses_that_a_timer_finds_are_told_with_the_next_sack() -> None:
    made = sender()
    told: list[int] = []

    class Listening:
        """No subclass: a compiled class has none that is interpreted."""

        def __init__(self) -> None:
            self.cubic = Cubic(SIZE)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.cubic, name)

        def acknowledged(self, event: Acked) -> None:
            told.append(event.lost)

    listening: Any = Listening()
    made.controller = listening
    queue(made, *[1_000] * 6)
    sizes = [chunk.size for chunk in made.recovery.since(0)]
    made.transmit(1.0)
    sizes = [chunk.size for chunk in made.recovery.since(0)]
    # The first is missing, and one that was sent later is not: that may be mere reordering.
    made.receive_sack(FIRST - 1, made.peer_window, (2, 2), (), 1.05)
    assert told == [0]
    due = made.recovery.reorder_at
    assert due > 1.05
    made.timer(due)
    made.receive_sack(FIRST - 1, made.peer_window, (2, 3), (), due + 0.01)
    made.receive_sack(FIRST - 1, made.peer_window, (2, 4), (), due + 0.02)
    assert told == [0, sizes[0], 0]
