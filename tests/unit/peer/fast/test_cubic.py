"""CUBIC with HyStart++, step by step."""

import pytest

from socks_tunnel.peer.fast.congestion import WINDOW_BYTES_MAX
from socks_tunnel.peer.fast.cubic import CSS_ROUNDS, CUBIC_BETA, CUBIC_C, Cubic
from unit.peer.fast.test_congestion import MSS, event


def grown(rounds: int) -> tuple[Cubic, float]:
    """Returns a controller after some round trips of slow start, and the time."""
    made, now = Cubic(MSS), 1.0
    for _ in range(rounds):
        now += 0.04
        made.acknowledged(event(now, made.window, flight=made.window, round_start=True))
    return made, now


def avoiding(rounds: int) -> tuple[Cubic, float]:
    """Returns a controller that has just left slow start, without a loss."""
    made, now = grown(rounds)
    made.ssthresh = made.window
    return made, now


def test_slow_start_doubles_each_round_trip() -> None:
    made, _ = grown(3)
    assert made.window == 80 * MSS
    assert made.slow_start


def test_what_is_not_used_does_not_grow() -> None:
    made, now = grown(3)
    before = made.window
    made.acknowledged(event(now + 0.04, 5 * MSS, flight=before // 3))
    assert made.window == before


def test_what_the_pacer_holds_back_is_used() -> None:
    made, now = grown(3)
    before = made.window
    made.acknowledged(event(now + 0.04, 5 * MSS, flight=before // 3, paced=True))
    assert made.window == before + 5 * MSS


def test_who_sends_little_takes_no_queue_for_its_own() -> None:
    """A download fills the way there; what acknowledges and updates windows goes the other way."""
    made, now = Cubic(MSS), 1.0
    before = made.window
    for number in range(200):
        rtt = 0.08 if number < 20 else 0.16
        for sample in range(10):
            now += rtt / 10
            made.acknowledged(event(now, 60, flight=120, rtt=rtt, round_start=not sample))
    assert made.window == before
    assert made.slow_start, "an upload that begins then doubles each round trip"


def test_a_loss_takes_three_tenths() -> None:
    made, now = avoiding(4)
    before = made.window
    made.congestion(now, before)
    assert made.window == made.ssthresh == int(before * CUBIC_BETA)


def test_a_loss_in_slow_start_takes_half() -> None:
    """The window has doubled within the round trip that the loss took to show."""
    made, now = grown(5)
    before = made.window
    made.congestion(now, before)
    assert made.window == made.ssthresh == before // 2
    assert made._w_max == pytest.approx(before / MSS * CUBIC_BETA)


def test_the_window_comes_back_to_its_maximum_after_k_seconds() -> None:
    """RFC 9438 section 4.2: K is when the cubic function reaches W_max again."""
    made, now = avoiding(5)
    w_max = made.window / MSS
    made.congestion(now, made.window)
    k = (w_max * (1 - CUBIC_BETA) / CUBIC_C) ** (1 / 3)
    begin = now
    while now < begin + k:
        now += 0.04
        made.acknowledged(event(now, made.window, flight=made.window, round_start=True))
    assert made.window / MSS == pytest.approx(w_max, rel=0.05)


def test_short_round_trips_grow_like_reno() -> None:
    """RFC 9438 section 4.3: where CUBIC would be slower than Reno, it grows like it.

    That is 0.53 packets a round trip up to the last maximum, and one packet beyond it.
    """
    made, now = avoiding(3)
    made.congestion(now, made.window)
    before = made.window / MSS
    for _ in range(100):
        now += 0.001
        made.acknowledged(event(now, made.window, flight=made.window, rtt=0.001, round_start=True))
    to_maximum = 80 - before
    expected = to_maximum + (100 - to_maximum / 0.53)
    assert (made.window / MSS - before) == pytest.approx(expected, rel=0.05)


def test_a_smaller_maximum_makes_room_for_others() -> None:
    made, now = avoiding(5)
    made.congestion(now, made.window)
    first = made._w_max
    made.congestion(now + 1, made.window)
    assert made._w_max < first * CUBIC_BETA


def test_what_was_no_loss_is_undone() -> None:
    made, now = avoiding(4)
    before, threshold = made.window, made.ssthresh
    made.congestion(now, before)
    made.undo()
    assert (made.window, made.ssthresh) == (before, threshold)
    made.undo()
    assert made.window == before


def test_a_cut_for_a_standing_queue_does_not_raise_a_window_after_a_time_out() -> None:
    made, now = grown(3)
    made.timeout(now, made.window)
    made._correct(0.5)
    assert made.window == MSS


def test_what_is_given_back_is_within_the_bound() -> None:
    made, _ = grown(3)
    made._correct(0.5)
    made._correct(1e9)
    assert made.window == WINDOW_BYTES_MAX


def test_growing_round_trips_end_slow_start_before_a_loss() -> None:
    made, now, rtt = Cubic(MSS), 1.0, 0.040
    for round_ in range(30):
        for sample in range(10):
            now += 0.004
            made.acknowledged(
                event(now, made.window // 10, flight=made.window, rtt=rtt, round_start=sample == 0)
            )
        if round_ >= 4:
            rtt += 0.008
        if not made.slow_start:
            break
    assert not made.slow_start
    assert 4 + CSS_ROUNDS <= round_ <= 7 + CSS_ROUNDS


@pytest.mark.parametrize(("batches", "leaves"), [(3, False), (5, True)])
def test_a_sack_for_a_batch_counts_for_more_but_not_for_all(batches: int, leaves: bool) -> None:
    made, now, rtt = Cubic(MSS), 1.0, 0.040
    for round_ in range(12):
        for sample in range(batches):
            now += 0.04 / batches
            made.acknowledged(
                event(now, 40 * MSS, flight=made.window, rtt=rtt, round_start=not sample)
            )
        if round_ < 4:  # more would be a queue that the window is cut for
            rtt += 0.006
    assert made.slow_start is not leaves


def test_one_round_trip_that_was_long_by_chance_does_not() -> None:
    made, now = Cubic(MSS), 1.0
    for round_ in range(9):
        for sample in range(10):
            now += 0.004
            rtt = 0.060 if round_ == 3 else 0.040
            made.acknowledged(event(now, MSS, flight=made.window, rtt=rtt, round_start=sample == 0))
    assert made.slow_start
    assert made._css_rounds == 0


def test_only_long_paths_are_paced() -> None:
    made, now = grown(3)
    assert made.pacing_rate == pytest.approx(2 * made.window / 0.04)
    made.congestion(now, made.window)
    made.acknowledged(event(now + 0.04, MSS, flight=made.window))
    assert made.pacing_rate == pytest.approx(1.25 * made.window / 0.04)
    made.acknowledged(event(now + 0.08, MSS, rtt=0.001))
    assert made.pacing_rate == 0


def test_the_window_does_not_grow_in_recovery() -> None:
    made, now = avoiding(3)
    made.congestion(now, made.window)
    before = made.window
    made.acknowledged(event(now + 0.04, before, flight=before, in_recovery=True))
    assert made.window == before
