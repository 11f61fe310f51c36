"""Samples of the delivery rate."""

import pytest

from socks_tunnel.peer.fast.rate import DeliveryRate

RTT = 0.1


def test_a_steady_stream_is_measured() -> None:
    made, bursts, now = DeliveryRate(), [], 0.0
    for step in range(40):
        now = step * 0.01
        bursts.append(made.burst(now, idle=step == 0))
        if step >= 10:
            made.clear()
            made.arrived(1_000, now)
            made.measure(bursts[step - 10], now, RTT)
    assert made.rate == pytest.approx(100_000)
    assert made.delivered == 30_000


def test_sacks_in_a_burst_do_not_make_a_path_look_fast() -> None:
    made = DeliveryRate()
    bursts = [made.burst(step * 0.01, idle=step == 0) for step in range(10)]
    for burst in bursts:  # all SACKs at once, after they had been held up
        made.clear()
        made.arrived(1_000, 0.2)
        made.measure(burst, 0.2, RTT)
    assert made.rate <= 10_000 / 0.1 + 1


def test_a_sample_shorter_than_the_round_trip_is_none() -> None:
    made = DeliveryRate()
    burst = made.burst(0.0, idle=True)
    made.arrived(1_000, 0.01)
    made.measure(burst, 0.01, RTT)
    assert made.rate == 0


def test_samples_of_an_idle_sender_are_marked() -> None:
    made = DeliveryRate()
    made.limited_until = 500
    burst = made.burst(0.0, idle=True)
    made.arrived(1_000, RTT)
    made.measure(burst, RTT, RTT)
    assert made.limited
    later = made.burst(RTT, idle=True)
    made.arrived(1_000, 2 * RTT)
    made.measure(later, 2 * RTT, RTT)
    assert not made.limited


def test_a_round_begins_with_the_first_sack_for_what_it_sent() -> None:
    made, starts = DeliveryRate(), []
    first = [made.burst(0.0, idle=True) for _ in range(3)]
    for burst in first:
        made.clear()
        made.arrived(1_000, RTT)
        made.measure(burst, RTT, RTT)
        starts.append(made.round_start)
    assert starts == [True, False, False]
    second = made.burst(RTT, idle=False)
    made.clear()
    made.arrived(1_000, 2 * RTT)
    made.measure(second, 2 * RTT, RTT)
    assert made.round_start
