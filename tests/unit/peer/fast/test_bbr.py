"""The paced controller on an ideal bottleneck."""

import math

import pytest

from socks_tunnel.peer.fast.bbr import DRAIN, PROBE_BW, PROBE_RTT, RATE_ROUNDS, STARTUP, Bbr
from socks_tunnel.peer.fast.congestion import WINDOW_BYTES_MAX
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


def probing(path: Bottleneck) -> None:
    """Brings the controller to PROBE_RTT, by a queue of somebody else on the way."""
    steady(path)
    path.base = 0.08
    for _ in range(300):
        path.round()
        if path.made._state == PROBE_RTT:
            return
    raise AssertionError("the round trip was never probed")


def test_the_round_trip_is_probed_only_once_the_queue_is_gone(path: Bottleneck) -> None:
    """Else the queue is taken for the path, and half of the product keeps it there for good."""
    probing(path)
    made = path.made
    queued = int(4 * BDP)
    for _ in range(2):
        path.now += 0.03
        made.acknowledged(event(path.now, 4 * MSS, flight=queued, rtt=0.3, rate=RATE))
        assert made._state == PROBE_RTT
        assert made._min_rtt == pytest.approx(RTT, rel=0.05)
    for _ in range(6):
        path.now += 0.1
        made.acknowledged(event(path.now, 4 * MSS, flight=made.window, rtt=0.05, rate=RATE / 2))
    assert made._state == PROBE_BW
    assert made._min_rtt == pytest.approx(0.05)
    assert made.rate == pytest.approx(RATE, rel=0.05)  # what was sent meanwhile says nothing of it


def test_a_probe_of_the_round_trip_ends_although_urgent_messages_fill_the_path(
    path: Bottleneck,
) -> None:
    probing(path)
    for _ in range(20):
        path.now += 0.05
        path.made.acknowledged(event(path.now, MSS, flight=int(4 * BDP), rtt=0.08, rate=RATE))
    assert path.made._state == PROBE_BW


def test_a_path_of_less_than_four_packets_is_drained_too() -> None:
    """The window is never below four packets, so less than a packet is never in flight."""
    made = Bbr(MSS)
    now = 1.0
    for _ in range(40):
        now += 0.1
        made.acknowledged(
            event(now, MSS, flight=4 * MSS, rtt=0.03, rate=MSS / 0.1, round_start=True)
        )
    assert made.rate * made._min_rtt < MSS
    assert made._state == PROBE_BW


def test_on_a_slow_path_batches_add_little_to_what_is_in_flight(path: Bottleneck) -> None:
    made, rate, now = path.made, 125_000.0, 1.0
    for _ in range(40):
        now += 0.04
        made.acknowledged(event(now, 5_000, flight=5_000, rate=rate, round_start=True))
    assert made._state == PROBE_BW
    assert made.window <= 2 * rate * 0.04 + 3 * MSS


def test_rates_that_fall_within_a_round_are_not_all_kept() -> None:
    """As a receiver that acknowledges every packet alone, and later and later, has it."""
    made = Bbr(MSS)
    for number in range(1, 5_000):
        made.acknowledged(event(1 + number / 1e4, MSS, rate=1e9 / number, round_start=False))
    assert len(made._rates) == 1
    for number in range(5_000, 9_000):
        made.acknowledged(event(1 + number / 1e4, MSS, rate=1e9 / number, round_start=True))
    assert len(made._rates) <= RATE_ROUNDS + 1


def test_losses_that_were_none_are_taken_back(path: Bottleneck) -> None:
    steady(path)
    before = path.made._ceiling
    path.made.congestion(path.now, path.made.window)
    path.round(lost=0.2)
    path.round(lost=0.2)
    assert path.made._ceiling < before
    path.made.undo()
    assert path.made._ceiling == before
    path.round()
    assert path.made._ceiling == before  # nor do those count that were found since


def test_a_start_that_such_losses_have_ended_goes_on(path: Bottleneck) -> None:
    while path.made.window < 60 * MSS:
        path.round()
    path.made.congestion(path.now, path.made.window)
    path.round(lost=0.3)
    path.round()
    assert path.made._state != STARTUP
    path.made.undo()
    assert path.made._state == STARTUP
    steady(path)
    assert path.made.rate == pytest.approx(RATE, rel=0.05)


def test_losses_of_another_episode_are_not_taken_back(path: Bottleneck) -> None:
    steady(path)
    path.round(lost=0.2)
    path.round(lost=0.2)
    ceiling = path.made._ceiling
    path.made.congestion(path.now, path.made.window)
    path.made.undo()
    assert path.made._ceiling == ceiling


def test_without_a_measured_rate_the_ceiling_holds_too() -> None:
    made = Bbr(MSS)
    now = 1.0
    for number in range(40):
        now += 0.04
        made.acknowledged(
            event(now, 20 * MSS, flight=40 * MSS, rate=0.0, lost=10 * MSS, round_start=number > 0)
        )
        if made._state != STARTUP:
            assert made.window <= 40 * MSS
    assert made._state != STARTUP


@pytest.mark.parametrize("rtt", [0.0, 1e-9, 1e-3, 1e6])
@pytest.mark.parametrize("rate", [0.0, 1e-9, 1e18])
@pytest.mark.parametrize("step", [0.0, 1e-9, 1.0, 1e6])
def test_no_answer_of_a_peer_breaks_the_arithmetic(rtt: float, rate: float, step: float) -> None:
    """Also while the clock stands still."""
    made = Bbr(MSS)
    now = 1.0
    for number in range(100):
        now += step
        made.acknowledged(
            event(
                now,
                MSS * (number % 3),
                flight=MSS * number,
                rtt=rtt or 1.0,
                rate=rate,
                lost=MSS * 20 * (number % 2),
                round_start=number % 4 == 0,
            )
        )
        if number % 7 == 0:
            made.congestion(now, made.window)
        if number % 21 == 0:
            made.undo()
        assert MSS <= made.window <= WINDOW_BYTES_MAX
        assert 0 <= made.pacing_rate < math.inf
