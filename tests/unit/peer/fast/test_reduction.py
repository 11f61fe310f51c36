"""What may be sent while losses are repaired (RFC 9937)."""

import pytest

from socks_tunnel.peer.fast.reduction import Reduction

PACKET = 1_000
FLIGHT = 100 * PACKET
WINDOW = 70 * PACKET


def begun() -> Reduction:
    reduction = Reduction()
    reduction.begin(FLIGHT)
    return reduction


def deliver(
    reduction: Reduction, count: int, flight: int, *, window: int = WINDOW, safe: bool = False
) -> int:
    reduction.delivered(count, flight=flight, window=window, packet=PACKET, safe=safe)
    return reduction.quota


def test_the_rate_goes_down_in_proportion_within_one_round_trip() -> None:
    reduction = begun()
    flight, sent = FLIGHT - PACKET, 0
    for _ in range(98):
        flight -= PACKET
        quota = deliver(reduction, PACKET, flight)
        count = quota // PACKET * PACKET
        if count > 0:
            reduction.sent(count)
            flight += count
            sent += count
    assert flight == pytest.approx(WINDOW, abs=2 * PACKET)
    assert sent == pytest.approx(0.7 * FLIGHT, rel=0.05)


def test_the_first_retransmission_is_never_held_back() -> None:
    assert deliver(begun(), 0, FLIGHT - PACKET) == PACKET


def test_below_the_window_what_arrives_may_be_sent() -> None:
    reduction = begun()
    reduction.sent(90 * PACKET)  # far more than has arrived
    assert deliver(reduction, 3 * PACKET, 20 * PACKET) == 3 * PACKET
    reduction.sent(3 * PACKET)
    assert deliver(reduction, 3 * PACKET, 20 * PACKET, safe=True) == 4 * PACKET


def test_the_window_is_not_passed() -> None:
    reduction = begun()
    reduction.sent(PACKET)
    assert deliver(reduction, 50 * PACKET, WINDOW - 2 * PACKET) == 2 * PACKET


def test_an_empty_path_is_never_left_without_a_packet() -> None:
    """No SACK would come that lets it go: all retransmissions were lost."""
    reduction = begun()
    reduction.sent(90 * PACKET)
    assert deliver(reduction, 0, 5 * PACKET) == 0
    assert deliver(reduction, 0, 0) == PACKET


def test_it_ends() -> None:
    reduction = begun()
    assert reduction.active
    reduction.end()
    assert not reduction.active
