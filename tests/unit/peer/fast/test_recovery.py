"""Loss detection, step by step and in virtual milliseconds."""

import pytest

from socks_tunnel.peer.fast.forwarding import SKIPS_MAX
from socks_tunnel.peer.fast.outstanding import ACKED, Chunk
from socks_tunnel.peer.fast.recovery import BLOCKS_MAX, TIMEOUTS_MAX, Recovery
from socks_tunnel.peer.fast.rtt import RTO_INITIAL, RTO_MAX, RTO_MIN
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream
from socks_tunnel.protocol.errors import RemoteProtocolError

FIRST = 0xFFFF_FFF0
SIZE = 100
RTT = 0.1


class Line:
    """A sender of chunks numbered from 0, and the time."""

    def __init__(self, retransmits: int = -1, *, streams: int = 1) -> None:
        self.recovery = Recovery(FIRST)
        self.now = 10.0
        self.streams = [OutboundStream(n, NORMAL) for n in range(streams)]
        self.retransmits = retransmits
        self.sent: list[Chunk] = []

    def send(self, count: int = 1) -> None:
        recovery = self.recovery
        burst = recovery.burst(self.now)
        for _ in range(count):
            number = len(self.sent)
            message = Message(
                self.streams[number % len(self.streams)], 53, b"x", retransmits=self.retransmits
            )
            message.number = number
            message.first_tsn = message.last_tsn = recovery.next_tsn
            chunk = Chunk(recovery.next_tsn, SIZE, message, recovery.next_order, burst)
            self.sent.append(chunk)
            recovery.sent(chunk)
        recovery.transmitted(self.now)

    def resend(self) -> list[int]:
        """Sends all that is lost again; returns its numbers."""
        burst, numbers = self.recovery.burst(self.now), []
        while (chunk := self.recovery.next_lost()) is not None:
            self.recovery.resent(chunk, burst)
            numbers.append(self.sent.index(chunk))
        if numbers:
            self.recovery.transmitted(self.now)
        return numbers

    def sack(self, upto: int, *blocks: tuple[int, int], duplicates: tuple[int, ...] = ()) -> bool:
        """Acknowledges numbers below `upto` and the blocks; returns whether losses begin."""
        offsets = [n - upto + 1 for block in blocks for n in block]
        wire = tuple((FIRST + n) & 0xFFFFFFFF for n in duplicates)
        assert self.recovery.sack((FIRST + upto - 1) & 0xFFFFFFFF, tuple(offsets), wire, self.now)
        return self.recovery.detect(self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def line() -> Line:
    made = Line()
    made.send(2)
    made.wait(RTT)
    made.sack(2)
    return made


def test_round_trip_and_time_out_follow_rfc_9260(line: Line) -> None:
    recovery = line.recovery
    assert recovery.trip.smoothed == pytest.approx(RTT)
    assert recovery.trip.rto == pytest.approx(RTT + 4 * RTT / 2)
    for _ in range(60):
        line.send()
        line.wait(RTT)
        line.sack(len(line.sent))
    assert recovery.trip.rto == pytest.approx(RTT + RTO_MIN)
    assert recovery.trip.minimum == pytest.approx(RTT)


def test_before_the_first_measurement_the_time_out_is_a_second() -> None:
    line = Line()
    line.send()
    assert line.recovery.rto_at == line.now + RTO_INITIAL


def test_flight_counts_what_is_neither_acknowledged_nor_lost(line: Line) -> None:
    line.send(10)
    assert line.recovery.flight == 10 * SIZE
    line.wait(RTT)
    line.sack(4, (6, 7))
    assert line.recovery.acked_bytes == 4 * SIZE
    assert line.recovery.flight == 6 * SIZE
    assert len(line.recovery) == 8


def test_three_beyond_a_gap_are_a_loss_on_a_path_that_never_reordered(line: Line) -> None:
    line.send(8)
    line.wait(RTT)
    assert not line.sack(2, (3, 4))
    assert line.recovery.reorder_at > line.now
    assert line.sack(2, (3, 5))
    assert line.resend() == [2]
    assert line.recovery.retransmissions == 1


def test_reordering_within_a_quarter_of_the_round_trip_is_no_loss(line: Line) -> None:
    line.send(3)
    line.wait(RTT)
    line.sack(2, (3, 4))
    line.wait(0.01)
    line.sack(5)  # 2 came late: from now on the path is known to reorder
    line.send(20)
    line.wait(RTT)
    assert not line.sack(5, (6, 15))
    line.wait(RTT / 8)
    assert not line.recovery.detect(line.now)
    line.wait(RTT / 8)
    assert line.now >= line.recovery.reorder_at - 1e-6
    line.wait(1e-5)
    assert line.recovery.detect(line.now)
    assert line.resend() == [5]


def test_a_lost_retransmission_is_noticed_without_a_time_out(line: Line) -> None:
    line.send(10)
    line.wait(RTT)
    assert line.sack(2, (3, 9))
    assert line.resend() == [2]
    line.send(5)
    line.wait(RTT)
    line.sack(2, (3, 14))
    assert line.resend() == [2]
    assert line.recovery.timeouts_total == 0


def test_one_episode_lasts_until_all_that_was_out_at_its_begin_is_acknowledged(line: Line) -> None:
    line.send(10)
    line.wait(RTT)
    assert line.sack(2, (3, 6))
    line.resend()
    assert not line.sack(2, (3, 6), (8, 9))
    line.wait(RTT)
    line.sack(12)
    assert not line.recovery.episode
    line.send(10)
    line.wait(RTT)
    line.sack(12, (13, 20))
    line.wait(RTT / 2)
    assert line.recovery.detect(line.now)


def test_retransmissions_that_were_not_needed_are_undone_by_duplicate_tsns(line: Line) -> None:
    line.send(8)
    line.wait(RTT)
    assert line.sack(2, (4, 9))
    assert line.resend() == [2, 3]
    line.wait(RTT)
    line.sack(10, duplicates=(2,))
    assert line.recovery.spurious == 1
    assert (line.recovery.undone, line.recovery.episode) == (False, False)
    line.sack(10, duplicates=(3,))
    assert [line.recovery.undone] == [True]
    assert line.recovery.spurious == 2
    # RFC 8985 section 6.2.4: more patience from now on.
    assert line.recovery.reordering.multiplier == 2


def test_an_invented_duplicate_undoes_nothing(line: Line) -> None:
    line.send(8)
    line.wait(RTT)
    line.sack(2, (3, 9))
    line.resend()
    line.sack(2, (3, 9), duplicates=(0, 1, 5, 9, 40, 70_000))
    assert not line.recovery.undone
    assert line.recovery.spurious == 0


def test_an_answer_too_soon_is_one_to_the_first_transmission(line: Line) -> None:
    line.send(8)
    line.wait(RTT)
    assert line.sack(2, (3, 9))
    line.resend()
    line.wait(RTT / 10)
    line.sack(10)
    assert line.recovery.undone
    assert line.recovery.trip.smoothed == pytest.approx(RTT)


def probe(line: Line) -> Chunk | None:
    """Waits for the probe timer, and sends what is due."""
    recovery = line.recovery
    line.now = recovery.probing.at
    chunk = recovery.probe()
    if chunk is not None:
        recovery.resent(chunk, recovery.burst(line.now))
    recovery.probed(line.now)
    return chunk


def test_silence_is_probed(line: Line) -> None:
    recovery = line.recovery
    line.send(5)
    assert recovery.probing.at == pytest.approx(line.now + 2 * recovery.trip.smoothed)
    assert probe(line) is line.sent[-1]
    assert recovery.rto_at >= line.now + 2 * recovery.trip.smoothed
    line.wait(RTT)
    line.sack(2, (6, 6))  # the answer to the probe shows that all before it were lost
    assert line.resend() == [2, 3, 4, 5]


def test_silence_is_probed_while_losses_are_repaired(line: Line) -> None:
    line.send(10)
    line.wait(RTT)
    assert line.sack(2, (3, 9))
    assert line.resend() == [2]
    assert line.recovery.episode
    assert line.recovery.probing.at == pytest.approx(line.now + 2 * line.recovery.trip.smoothed)


def test_what_is_known_to_be_lost_is_the_better_probe(line: Line) -> None:
    line.send(10)
    line.wait(RTT)
    assert line.sack(2, (3, 9))
    assert probe(line) is line.sent[2]
    assert line.recovery.next_lost() is None


def test_a_probe_that_was_not_needed_says_nothing_of_reordering(line: Line) -> None:
    recovery = line.recovery
    line.send(5)
    probe(line)
    line.sack(7)
    line.sack(7, duplicates=(6,))
    assert (recovery.spurious, recovery.reordering.seen, recovery.undone) == (0, False, False)


def test_a_time_out_sends_everything_again_and_doubles(line: Line) -> None:
    recovery = line.recovery
    line.send(4)
    rto = recovery.trip.rto
    line.wait(rto)
    recovery.timeout(line.now)
    assert recovery.flight == 0
    assert recovery.trip.rto == 2 * rto
    assert line.resend() == [2, 3, 4, 5]
    line.wait(2 * RTT)
    line.sack(6)
    assert recovery.timeouts == 0
    assert len(recovery) == 0
    assert (recovery.rto_at, recovery.probing.at, recovery.reorder_at) == (0, 0, 0)


def test_a_time_out_that_was_none_is_taken_back(line: Line) -> None:
    """The answer to the first transmissions comes right after the timer, as from a slow spot."""
    recovery = line.recovery
    line.send(6)
    line.wait(recovery.trip.rto)
    recovery.timeout(line.now)
    burst = recovery.burst(line.now)
    chunk = recovery.next_lost()
    assert chunk is not None
    recovery.resent(chunk, burst)
    line.wait(RTT / 20)
    line.sack(3)
    assert recovery.undone
    assert recovery.next_lost() is None
    assert recovery.flight == 5 * SIZE


def test_a_peer_that_is_gone_is_given_up() -> None:
    line = Line()
    line.send(3)
    for _ in range(TIMEOUTS_MAX):
        line.wait(line.recovery.trip.rto)
        line.recovery.timeout(line.now)
        line.resend()
        assert line.recovery.trip.rto <= RTO_MAX
    with pytest.raises(RemoteProtocolError, match="acknowledged nothing"):
        line.recovery.timeout(line.now)


def test_gap_blocks_are_not_believed_for_ever(line: Line) -> None:
    """RFC 9260 section 6.2.1: a receiver may drop what it had reported beyond a gap."""
    line.send(5)
    line.wait(RTT)
    line.sack(2, (3, 6))
    assert line.sent[4].state == ACKED
    for _ in range(2):
        line.wait(line.recovery.trip.rto)
        line.recovery.timeout(line.now)
    assert line.resend() == [2, 3, 4, 5, 6]


def test_a_datagram_is_not_sent_again_when_blocks_are_not_believed() -> None:
    line = Line(retransmits=0)
    line.send(5)
    line.wait(RTT)
    line.sack(0, (1, 4))
    for _ in range(2):
        line.wait(line.recovery.trip.rto)
        line.recovery.timeout(line.now)
        assert line.resend() == []
    assert line.recovery.forwarding.point == line.sent[-1].tsn


def test_what_may_not_be_sent_again_is_given_up_and_reported() -> None:
    line = Line(retransmits=0)
    line.send(2)
    line.wait(RTT)
    line.sack(2)
    line.send(8)
    line.wait(RTT)
    assert line.sack(2, (3, 9))
    assert line.resend() == []
    recovery = line.recovery
    assert recovery.forwarding.point == recovery.cumulative + 1
    assert recovery.forwarding.at == line.now
    assert recovery.forward(line.now) == [(0, 2, 0)]
    assert recovery.forwarding.at > line.now
    line.wait(RTT)
    line.sack(10)
    assert recovery.forwarding.at == 0
    assert recovery.forward(line.now) == []


def test_a_lost_forward_tsn_is_sent_again() -> None:
    line = Line(retransmits=0)
    line.send(4)
    line.wait(RTT)
    line.sack(0, (1, 3))
    recovery = line.recovery
    recovery.forward(line.now)
    again = recovery.forwarding.at
    assert 0 < again - line.now <= RTO_MAX
    assert recovery.rto_at > 0


def test_a_datagram_is_never_the_probe() -> None:
    line = Line(retransmits=0)
    line.send(3)
    assert line.recovery.probe() is None


def test_datagrams_that_nothing_follows_are_given_up_before_the_time_out() -> None:
    line = Line(retransmits=0)
    recovery = line.recovery
    line.send(3)
    line.wait(RTT)
    line.sack(1)
    assert probe(line) is None
    recovery.give_up(line.now)
    assert recovery.flight == 0
    assert recovery.forwarding.at == line.now < recovery.rto_at
    assert recovery.forward(line.now) == [(0, 2, 0)]
    # And again, if that FORWARD-TSN is lost, though nothing is in flight.
    assert probe(line) is None
    recovery.give_up(line.now)
    assert recovery.forwarding.at == line.now < recovery.rto_at


def test_one_forward_tsn_names_a_bounded_number_of_streams() -> None:
    line = Line(retransmits=0, streams=SKIPS_MAX + 50)
    line.send(SKIPS_MAX + 50)
    line.wait(5)
    line.recovery.timeout(line.now)
    assert len(line.recovery.forward(line.now)) == SKIPS_MAX
    assert line.recovery.forwarding.point == line.recovery.cumulative + SKIPS_MAX
    line.sack(SKIPS_MAX)
    assert len(line.recovery.forward(line.now)) == 50


def test_blocks_are_remembered_up_to_a_bound() -> None:
    line = Line()
    line.send(3 * BLOCKS_MAX)
    line.wait(RTT)
    for at in range(1, 3 * BLOCKS_MAX - 600, 500):
        line.sack(0, *[(n, n) for n in range(at, at + 500, 2)])
    assert len(line.recovery._sacked) <= BLOCKS_MAX


def test_the_rate_is_what_arrived_in_the_time_it_took(line: Line) -> None:
    line.send(50)
    for upto in range(12, 53, 10):
        line.wait(RTT)
        line.sack(upto)
    assert line.recovery.delivery.rate == pytest.approx(50 * SIZE / (5 * RTT), rel=0.3)


def test_a_new_path_starts_without_a_round_trip(line: Line) -> None:
    line.recovery.new_path()
    assert (line.recovery.trip.smoothed, line.recovery.trip.minimum) == (0, 0)
    assert line.recovery.trip.rto == RTO_INITIAL
