"""What round trips say of the sender's own queue, and what the window does then."""

from typing import Any

import pytest

from socks_tunnel.peer.fast.standing import (
    OWN_QUEUE_MAX,
    OWN_QUEUE_MIN,
    OWN_QUEUE_PACKETS,
    SETTLE_ROUNDS,
    TEST_CUT_MAX,
    TEST_INTERVAL,
    StandingQueue,
)
from unit.peer.fast.test_congestion import MSS, event

BASE = 0.040


class Bottleneck:
    """A path that carries `rate` bytes a second, in whose queue others have `others` seconds."""

    def __init__(self, rate: float = 1e6, others: float = 0.0, base: float = BASE) -> None:
        self.rate = rate
        self.base = base
        self.others = others
        self.window = int(rate * base)
        self.now = 1.0
        self.standing = StandingQueue()
        self.cuts = 0

    @property
    def rtt(self) -> float:
        return self.others + max(self.base, self.window / self.rate)

    def round(self, *, app_limited: bool = False) -> float:
        """A round trip of ten SACKs; returns the factor that came of it."""
        rtt, changed = self.rtt, 1.0
        for sample in range(10):
            self.now += rtt / 10
            sack = event(self.now, MSS, flight=self.window, rtt=rtt, round_start=not sample)
            sack.app_limited = app_limited
            sack.rate = self.window / rtt
            factor = self.standing.judge(
                sack, self.window, packet=MSS, slow_start=False, limited=False
            )
            self.cuts += factor < 1
            changed *= factor
            self.window = int(self.window * factor)
        return changed


ALLOWED = pytest.mark.parametrize(
    ("base", "allowed"), [(0.0005, OWN_QUEUE_MIN), (0.012, 0.012), (BASE, OWN_QUEUE_MAX)]
)
"""Seconds of the base, and of the queue that a sender may have there."""


@ALLOWED
def test_a_queue_that_is_short_is_left_alone(base: float, allowed: float) -> None:
    path = Bottleneck(base=base)
    path.window = int(path.rate * (base + 0.9 * allowed))
    path.standing.judge(
        event(path.now, MSS, rtt=base, round_start=True),
        path.window,
        packet=MSS,
        slow_start=False,
        limited=False,
    )
    while path.now < 0.9 * TEST_INTERVAL:
        assert path.round() == 1.0


@ALLOWED
def test_a_queue_of_our_own_is_cut_to_half_of_what_is_allowed(base: float, allowed: float) -> None:
    path = Bottleneck(base=base)
    path.round()
    path.round()
    path.window = int(path.rate * (base + 2 * allowed))
    factors = [path.round() for _ in range(3 + SETTLE_ROUNDS)]
    assert path.cuts == 1
    assert min(factors) < 1.0
    assert max(factors) == 1.0, "it was ours, so nothing is taken back"
    assert path.rtt == pytest.approx(base + allowed / 2, rel=0.01)
    assert not path.standing.holds


def test_the_queue_of_others_costs_nothing_for_long() -> None:
    path = Bottleneck()
    path.round()
    path.round()
    before = path.window
    path.others = 3 * OWN_QUEUE_MAX
    for _ in range(3 + SETTLE_ROUNDS):
        path.round()
    assert path.cuts == 1
    assert path.window == pytest.approx(before, rel=0.001)
    for _ in range(20):
        path.round()
    assert path.cuts == 1, "it belongs to the path now"


def test_a_path_that_became_longer_is_not_taken_for_a_queue() -> None:
    path = Bottleneck()
    path.round()
    path.round()
    path.base = 4 * BASE
    for _ in range(10):
        path.round()
    assert path.cuts == 1
    assert path.window == pytest.approx(path.rate * BASE, rel=0.001)


def test_a_base_that_was_a_queue_of_ours_is_found_out() -> None:
    path = Bottleneck()
    path.window = int(path.rate * 5 * BASE)  # its first round trip has the queue in it already
    while path.now < 6 * TEST_INTERVAL:
        path.round()
        path.window += MSS
    assert path.rtt < BASE + 1.2 * OWN_QUEUE_MAX


def test_whoever_fills_the_queue_again_gets_no_more_by_it() -> None:
    path = Bottleneck()
    path.round()
    path.round()
    before = path.window = int(path.rate * (BASE + 1.5 * OWN_QUEUE_MAX))
    while not path.cuts or path.standing.holds:
        path.round()
    path.others = 1.1 * OWN_QUEUE_MAX  # a rival takes the room that was made
    for _ in range(4 + SETTLE_ROUNDS):
        path.round()
    assert path.cuts == 1
    assert path.window == pytest.approx(before, rel=0.01)


def test_who_has_too_little_to_send_is_not_tested() -> None:
    path = Bottleneck()
    path.round()
    path.others = OWN_QUEUE_MAX / 2
    while path.now < 3 * TEST_INTERVAL:
        assert path.round(app_limited=True) == 1.0


def test_a_test_of_the_base_that_finds_nothing_is_taken_back() -> None:
    path = Bottleneck()
    path.round()
    path.others = OWN_QUEUE_MAX / 2
    before = path.window
    factors = []
    while path.now < 1.5 * TEST_INTERVAL:
        factors.append(path.round())
    assert min(factors) == TEST_CUT_MAX
    assert path.cuts == 1
    assert path.window == pytest.approx(before, rel=0.001)


def test_what_follows_a_time_out_may_be_another_path() -> None:
    path = Bottleneck()
    path.round()
    path.round()
    path.standing.forget()
    path.others = 3 * OWN_QUEUE_MAX
    for _ in range(5):
        assert path.round() == 1.0


SLOW = 125_000.0
"""1 Mbit/s in bytes a second: OWN_QUEUE_PACKETS take longer there than OWN_QUEUE_MAX."""


@pytest.mark.parametrize(("packets", "cut"), [(0.95, False), (1.5, True)])
def test_some_full_packets_may_wait_on_a_slow_path(packets: float, cut: bool) -> None:
    """`packets` is a part of OWN_QUEUE_PACKETS."""
    wait = packets * OWN_QUEUE_PACKETS * MSS / SLOW
    assert wait > OWN_QUEUE_MAX
    path = Bottleneck(rate=SLOW)
    path.round()
    path.round()
    path.window = int(SLOW * (BASE + wait))
    for _ in range(3):
        path.round()
    assert bool(path.cuts) is cut


@pytest.mark.parametrize("slow", [0.0, 0.5, 1.0])
def test_on_a_slow_path_the_window_is_held_at_half_of_the_queue(slow: float) -> None:
    """The path is slow in that part."""
    standing, window = StandingQueue(), 100 * MSS

    def holds(rtt: float) -> bool:
        sack = event(1.0, MSS, rtt=rtt, slow=slow)
        assert standing.judge(sack, window, packet=MSS, slow_start=False, limited=False) == 1.0
        return standing.holds

    first = event(1.0, MSS, rtt=BASE, round_start=True)
    standing.judge(first, window, packet=MSS, slow_start=False, limited=False)
    first.round_start = True
    standing.judge(first, window, packet=MSS, slow_start=False, limited=False)
    limit = BASE + (1 - slow / 2) * OWN_QUEUE_MAX
    assert not holds(limit - 0.001)
    assert holds(limit + 0.001) is bool(slow)
    assert not holds(BASE)


def judged(
    standing: StandingQueue, window: int, rtt: float, *, limited: bool = False, **fields: Any
) -> float:
    """A round of one SACK; returns what comes of the round before it."""
    sack = event(1.0, MSS, flight=window, rtt=rtt, round_start=True)
    for name, value in fields.items():
        setattr(sack, name, value)
    return standing.judge(sack, window, packet=MSS, slow_start=False, limited=limited)


def queued(window: int) -> StandingQueue:
    """Returns one that has the base of the path, and a round that is three times as long."""
    standing = StandingQueue()
    for rtt in (BASE, 3 * BASE):
        assert judged(standing, window, rtt) == 1.0
    return standing


def test_no_more_is_given_back_than_was_there() -> None:
    """A window has a floor, and a rate may be far too low, such as that of a lone keystroke."""
    before, floor = 10 * MSS, 4 * MSS
    standing = queued(before)
    assert judged(standing, before, 3 * BASE, rate=600.0) < 0.01
    factors = [judged(standing, floor, 3 * BASE) for _ in range(SETTLE_ROUNDS)]
    assert max(factors) * floor == pytest.approx(before), "it was 23 MB"


def test_a_loss_while_a_cut_is_tried_is_not_given_back() -> None:
    before = 100 * MSS
    standing = queued(before)
    window = int(before * judged(standing, before, 3 * BASE) * 0.7)
    factors = [judged(standing, window, 3 * BASE) for _ in range(SETTLE_ROUNDS)]
    assert max(factors) * window == pytest.approx(0.7 * before, rel=0.01)


def test_who_has_less_to_send_than_the_window_allows_keeps_no_queue() -> None:
    window = 100 * MSS
    standing = queued(window)
    assert judged(standing, window, 3 * BASE, limited=True) == 1.0
    assert judged(standing, window, 3 * BASE) < 1.0


def test_a_rate_without_enough_to_send_says_nothing_of_the_path() -> None:
    window = 100 * MSS
    factor = judged(queued(window), window, 3 * BASE, rate=600.0, app_limited=True)
    assert factor == pytest.approx((BASE + OWN_QUEUE_MAX / 2) / (3 * BASE))
