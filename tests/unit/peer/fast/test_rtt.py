"""The round trip and its time-out, by the rules of RFC 9260 section 6.3.1."""

import pytest

from socks_tunnel.peer.fast.rtt import MIN_RTT_WINDOW, RTO_INITIAL, RTO_MAX, RTO_MIN, RoundTrip


def test_rules_c1_to_c3() -> None:
    trip = RoundTrip()
    assert trip.rto == RTO_INITIAL
    trip.measured(0.2, 1.0)
    assert trip.smoothed == 0.2
    assert trip.rto == pytest.approx(0.2 + 4 * 0.1)
    trip.measured(0.4, 2.0)
    variation = 0.75 * 0.1 + 0.25 * 0.2
    assert trip.smoothed == pytest.approx(0.225)
    assert trip.rto == pytest.approx(0.225 + 4 * variation)


def test_the_time_out_has_a_floor_and_a_ceiling() -> None:
    trip = RoundTrip()
    for now in range(50):
        trip.measured(0.001, float(now))
    assert trip.rto == pytest.approx(0.001 + RTO_MIN)
    for _ in range(20):
        trip.back_off()
    assert trip.rto == RTO_MAX


def test_a_steady_long_path_leaves_room_for_a_queue() -> None:
    trip = RoundTrip()
    for now in range(50):
        trip.measured(0.3, float(now))
    assert trip.rto == pytest.approx(0.3 + RTO_MIN)


def test_the_minimum_is_forgotten() -> None:
    trip = RoundTrip()
    trip.measured(0.05, 1.0)
    trip.measured(0.08, 2.0)
    assert trip.minimum == 0.05
    trip.measured(0.08, 1.0 + MIN_RTT_WINDOW + 1)
    assert trip.minimum == 0.08
