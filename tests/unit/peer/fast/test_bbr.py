"""The paced controller on an ideal bottleneck."""

import pytest

from socks_tunnel.peer.fast.bbr import DRAIN, PROBE_BW, PROBE_RTT, STARTUP, Bbr
from unit.peer.fast.test_congestion import MSS, event

RATE = 2_500_000.0
RTT = 0.04
BDP = RATE * RTT


class Bottleneck:
    """Has a controller run for rounds of one RTT over a path of RATE, with an endless queue."""

    def __init__(self, made: Bbr) -> None:
        self.made = made
        self.now = 1.0
        self.base = RTT

    def round(self, *, lost: float = 0.0, limited: bool = False) -> None:
        made = self.made
        flight = min(made.window, int(BDP * 3))
        if limited:
            flight //= 8
        elif made.pacing_rate:
            flight = min(flight, int(made.pacing_rate * RTT * 1.1) + MSS)
        rate = min(RATE, flight / RTT)
        rtt = max(self.base, flight / RATE)
        for part in range(4):
            self.now += rtt / 4
            acked = int(rate * rtt / 4)
            made.acknowledged(
                event(
                    self.now,
                    acked,
                    flight=flight,
                    rtt=rtt,
                    rate=rate,
                    lost=int(acked * lost),
                    app_limited=limited,
                    round_start=part == 0,
                )
            )


@pytest.fixture
def path() -> Bottleneck:
    return Bottleneck(Bbr(MSS))


def steady(path: Bottleneck) -> None:
    for _ in range(40):
        path.round()
        if path.made._state == PROBE_BW:
            return
    raise AssertionError("the path was never found to be full")


def test_it_finds_the_rate_and_drains_its_queue(path: Bottleneck) -> None:
    assert path.made._state == STARTUP
    steady(path)
    assert path.made.rate == pytest.approx(RATE, rel=0.05)
    assert path.made.window <= 2 * BDP + 64 * MSS


def test_it_probes_around_the_rate(path: Bottleneck) -> None:
    steady(path)
    gains = set()
    for _ in range(30):
        path.round()
        gains.add(round(path.made.pacing_rate / path.made.rate / 0.99, 2))
    assert {1.25, 0.75, 1.0} <= gains


def test_losses_by_chance_change_nothing(path: Bottleneck) -> None:
    steady(path)
    for _ in range(40):
        path.round(lost=0.02)
    assert path.made.rate == pytest.approx(RATE, rel=0.05)
    assert path.made.window >= 1.5 * BDP


def test_an_overflowing_queue_bounds_what_is_in_flight(path: Bottleneck) -> None:
    steady(path)
    before = path.made.window
    path.round(lost=0.2)
    path.round(lost=0.2)
    assert path.made.window < 0.8 * before
    for _ in range(60):
        path.round()
    assert path.made.window >= 0.9 * before


def test_much_loss_ends_the_start(path: Bottleneck) -> None:
    while path.made.window < 60 * MSS:
        path.round()
    path.round(lost=0.3)
    path.round()
    assert path.made._state in {DRAIN, PROBE_BW}


def test_what_the_owner_did_not_fill_is_no_measurement(path: Bottleneck) -> None:
    steady(path)
    for _ in range(8):
        path.round(limited=True)
    assert path.made.rate == pytest.approx(RATE, rel=0.05)


def test_it_looks_for_a_smaller_round_trip_now_and_then(path: Bottleneck) -> None:
    steady(path)
    path.base = 0.05
    states = set()
    for _ in range(300):
        path.round()
        states.add(path.made._state)
    assert PROBE_RTT in states
    assert path.made._min_rtt == pytest.approx(0.05, rel=0.1)


def test_a_path_that_carried_little_for_long_is_still_found(path: Bottleneck) -> None:
    path.base = 0.041
    for _ in range(400):  # more than PROBE_RTT_INTERVAL
        path.round(limited=True)
    assert path.made._state == STARTUP
    steady(path)
    assert path.made.rate == pytest.approx(RATE, rel=0.1)


def test_single_losses_are_not_its_business(path: Bottleneck) -> None:
    before = path.made.window
    path.made.congestion(1.0, before)
    path.made.undo()
    assert path.made.window == before
    assert not path.made.conserves
