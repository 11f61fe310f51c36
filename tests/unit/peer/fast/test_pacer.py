"""How packets are spread over time."""

import pytest

from socks_tunnel.peer.fast.pacer import (
    PACE_LATE_MAX,
    PACE_PACKETS,
    PACE_QUANTUM,
    PACE_RESTED_MAX,
    Pacer,
)

RATE = 1e8
PACKET = 1_000


def test_a_quantum_goes_and_the_next_one_waits_its_time() -> None:
    pacer = Pacer()
    pacer.sent(1.0, RATE, 0)  # the pace begins
    count = pacer.quantum(1.0, RATE, PACKET, idle=False)
    assert count >= RATE * PACE_QUANTUM
    pacer.sent(1.0, RATE, 10 * int(count))
    assert pacer.quantum(1.001, RATE, PACKET, idle=False) == 0
    assert pacer.until > 1.001
    assert pacer.quantum(pacer.until, RATE, PACKET, idle=False) == RATE * PACE_QUANTUM


def test_a_slow_path_gets_some_packets_at_a_time() -> None:
    pacer = Pacer()
    pacer.sent(1.0, 1_000.0, 0)
    pacer.sent(1.0, 1_000.0, 4)
    assert pacer.quantum(1.0, 1_000.0, PACKET, idle=False) == PACE_PACKETS * PACKET


def test_an_empty_path_is_never_paced() -> None:
    pacer = Pacer()
    pacer.sent(1.0, RATE, 10_000_000)
    assert not pacer.quantum(1.0, RATE, PACKET, idle=False)
    assert pacer.quantum(1.0, RATE, PACKET, idle=True)


@pytest.mark.parametrize("late", [0.0, PACE_LATE_MAX / 2, PACE_LATE_MAX, 1.0])
def test_what_a_timer_was_late_by_is_caught_up_within_a_bound(late: float) -> None:
    pacer = Pacer()
    pacer.sent(1.0, RATE, 1_000_000)
    assert not pacer.quantum(1.0, RATE, PACKET, idle=False)
    count = pacer.quantum(pacer.until + late, RATE, PACKET, idle=False)
    assert count == pytest.approx(RATE * (PACE_QUANTUM + min(late, PACE_LATE_MAX)))


def test_what_was_sent_too_early_is_known() -> None:
    pacer = Pacer()
    pacer.sent(1.0, RATE, 0)
    at_once = int(pacer.quantum(1.0, RATE, PACKET, idle=False))
    pacer.sent(1.0, RATE, at_once)
    before = pacer.ahead(1.0, RATE, PACKET)
    pacer.sent(1.0, RATE, 5_000)
    assert pacer.ahead(1.0, RATE, PACKET) == pytest.approx(before + 5_000)
    assert pacer.ahead(1.01, RATE, PACKET) < 0


def test_after_a_rest_nothing_is_caught_up() -> None:
    pacer = Pacer()
    pacer.sent(1.0, RATE, 1_000_000)
    pacer.rested = True
    count = pacer.quantum(9.0, RATE, PACKET, idle=True)
    assert count == pytest.approx(RATE * (PACE_QUANTUM + PACE_RESTED_MAX))
    pacer.sent(9.0, RATE, int(count))
    assert not pacer.rested
    assert pacer.quantum(9.0, RATE, PACKET, idle=False) == 0
