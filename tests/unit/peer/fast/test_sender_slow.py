"""What a sender does on a slow path: the wait on the way back, and keystrokes beside bulk."""

import pytest

from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.sender import (
    CREDIT_WINDOWS,
    SLOW_RATE,
    SLOW_RATE_MAX,
    UNKNOWN,
    WAIT_SHARE,
    Sender,
)
from socks_tunnel.peer.fast.streams import NORMAL, OutboundStream
from unit.peer.fast.test_sender import SIZE, queue, sender


def acknowledged(made: Sender, waited: float, *, rate: float, rtt: float = 0.1) -> None:
    """Sends a packet whose SACK comes after `rtt`, of which it has `waited` on the way back."""
    now = 10.0 if not made.recovery.trip.smoothed else 10.0 + 0.5 * made.sacks_received
    made.way_back.stamped(0, now)
    queue(made, 1_000)
    made.transmit(now)
    made.rate = rate
    last = (made.recovery.next_tsn - 1) & 0xFFFFFFFF
    made.receive_sack(last, made.peer_window, (), (), now + rtt, waited)


@pytest.mark.parametrize(
    ("rate", "share"),
    [
        (SLOW_RATE / 2, 1.0),
        (SLOW_RATE, 1.0),
        ((SLOW_RATE + SLOW_RATE_MAX) / 2, 0.5),
        (SLOW_RATE_MAX, 0.0),
        (10 * SLOW_RATE_MAX, 0.0),
    ],
)
def test_what_waits_on_the_way_back_of_a_slow_path_is_beyond_the_window(
    rate: float, share: float
) -> None:
    made = sender()
    acknowledged(made, 0.040, rate=rate)
    assert made.credit == pytest.approx(share * rate * 0.040, abs=1)
    queue(made, 1_000_000)
    made.controller.pacing_rate = 0.0
    made.transmit(20.0)
    beyond = made.recovery.flight - made.controller.window - made.credit
    assert 0 <= beyond < SIZE


def test_a_sack_without_a_stamp_changes_nothing_of_it() -> None:
    made = sender()
    acknowledged(made, 0.040, rate=SLOW_RATE)
    before = made.credit
    assert before
    acknowledged(made, UNKNOWN, rate=SLOW_RATE)
    assert made.credit == before


def test_a_clock_that_was_stopped_is_noticed() -> None:
    made = sender()
    acknowledged(made, 60.0, rate=SLOW_RATE)
    assert made.credit == 0
    acknowledged(made, 0.040, rate=SLOW_RATE)
    assert made.credit == pytest.approx(SLOW_RATE * 0.040, abs=1)


def test_stamps_that_lie_gain_a_part_of_the_window_at_most() -> None:
    made = sender()
    acknowledged(made, 9.9, rate=SLOW_RATE, rtt=10.0)
    assert made.credit == int(CREDIT_WINDOWS * made.controller.window)
    assert made.credit < SLOW_RATE * WAIT_SHARE * 10.0


@pytest.mark.parametrize("waited", [0.0, 0.039, 0.09])
def test_no_more_than_a_part_of_a_round_trip_counts_as_wait(waited: float) -> None:
    made = sender()
    acknowledged(made, waited, rate=SLOW_RATE / 4, rtt=0.1)
    believed = min(waited, WAIT_SHARE * 0.1)
    assert made._acked.there == pytest.approx(0.1 - believed)
    assert made.credit == pytest.approx(SLOW_RATE / 4 * believed, abs=2)


def test_another_path_and_a_time_out_begin_without_it() -> None:
    made = sender()
    acknowledged(made, 0.040, rate=SLOW_RATE)
    assert made.credit
    made.new_path(controller("cubic", SIZE))
    assert made.credit == 0
    assert not made.way_back.known
    acknowledged(made, 0.040, rate=SLOW_RATE)
    assert made.credit
    queue(made, 1_000)
    made.transmit(20.0)
    made.timer(made.recovery.rto_at)
    assert made.recovery.timeouts == 1
    assert made.credit == 0


def test_the_paced_controller_has_no_window_of_one_way() -> None:
    made = sender("bbr")
    acknowledged(made, 0.040, rate=SLOW_RATE)
    assert made.credit == 0


def test_a_keystroke_goes_beyond_the_window_but_no_more_than_a_packet() -> None:
    made = sender()
    queue(made, 1_000_000)
    now = 1.0
    made.transmit(now)
    made.controller.window = made.recovery.flight
    sent = 0
    for number in range(40):
        keys = OutboundStream(2 + number, NORMAL)
        queue(made, 100, stream=keys)
        sent += len(made.transmit(now)) > 0
        assert made.recovery.flight < made.controller.window + 2 * SIZE
    assert 5 <= sent < 40


def test_a_keystroke_does_not_wait_for_the_pacer() -> None:
    made = sender()
    made.controller.window = 100 * SIZE
    made.controller.pacing_rate = 10_000.0
    queue(made, 1_000_000)
    made.transmit(1.0)
    assert not made.transmit(1.001)
    queue(made, 100, stream=OutboundStream(2, NORMAL))
    (packet,) = made.transmit(1.001)
    assert len(packet) < 200
    assert made.pacer.until > 1.001


def test_a_keystroke_waits_for_the_window_of_the_peer() -> None:
    made = sender()
    made.peer_window = 10 * SIZE
    made.controller.window = 20 * SIZE
    queue(made, 1_000_000)
    made.transmit(1.0)
    queue(made, 100, stream=OutboundStream(2, NORMAL))
    assert not made.transmit(1.0)
