"""Signs of life and their absence, with time as a number."""

import pytest

from socks_tunnel.protocol.keepalive import (
    FAILOVER_TIMING,
    FAST_FAILOVER_TIMING,
    PINGS_REMEMBERED,
    PONGS_PER_SECOND,
    Keepalive,
    Timing,
    Verdict,
)

T0 = 100.0


@pytest.fixture
def alive() -> Keepalive:
    """As it is on a link whose round trip is known, and takes no time at all."""
    made = Keepalive(T0, Timing())
    made.answered(made.ping(T0), T0)
    return made


def due(alive: Keepalive) -> float:
    """Seconds from the start until something is due."""
    return alive.next_due() - T0


def pings(alive: Keepalive, *, until: float) -> list[float]:
    """When PINGs are sent if nothing happens, in seconds from the start."""
    sent = []
    while (now := alive.next_due()) <= T0 + until:
        verdict = alive.check(now)
        assert verdict.dead is None
        if verdict.ping is not None:
            sent.append(now - T0)
    return sent


# --- silence ------------------------------------------------------------------------------------


def test_silence_is_asked_about_and_then_is_the_end(alive: Keepalive) -> None:
    alive.ping(T0)  # as a link does when it is established
    alive.heard(T0)
    assert pings(alive, until=14.9) == [5, 10]
    assert due(alive) == 15
    assert alive.check(T0 + 15) == Verdict(dead=15)


def test_too_early_nothing_is_due(alive: Keepalive) -> None:
    assert alive.check(T0 + 4.999) == Verdict()
    assert due(alive) == 5


def test_whoever_is_heard_of_is_not_asked_but_for_the_round_trip(alive: Keepalive) -> None:
    sent = []
    for second in range(1, 100):
        verdict = alive.check(T0 + second)
        assert verdict.dead is verdict.suspected is None
        if verdict.ping is not None:
            sent.append(second)
        alive.heard(T0 + second)
        alive.next_due()
    assert sent == [30, 60, 90]


def test_other_times_are_kept_too() -> None:
    alive = Keepalive(T0, Timing(ping_interval=1, dead_after=2, probe_after=9, suspect_after=9))
    assert due(alive) == 1
    assert alive.check(T0 + 1).ping is not None
    assert due(alive) == 2
    assert alive.check(T0 + 2).dead == 2


# --- checks of consent ----------------------------------------------------------------------------


def test_a_link_that_carries_nothing_is_asked_for_the_round_trip_only(alive: Keepalive) -> None:
    """Checks are answered 4 to 6 s apart (RFC 7675 section 5.1)."""
    sent = []
    seen = 0.0
    for gap in [4, 6, 6, 5, 4, 6] * 10:
        while (now := alive.next_due()) < T0 + seen + gap:
            verdict = alive.check(now)
            assert verdict.dead is verdict.suspected is None
            if verdict.ping is not None:
                sent.append(now - T0)
                alive.answered(verdict.ping, now)
                alive.heard(now)
        seen += gap
        alive.seen(T0 + seen)
    assert sent == [30 * number for number in range(1, 11)]


def test_a_check_that_is_not_answered_is_followed_by_a_ping(alive: Keepalive) -> None:
    alive.heard(T0)
    alive.seen(T0 + 4)
    assert due(alive) == pytest.approx(10.5)
    assert alive.check(T0 + 10.5).ping is not None
    assert due(alive) == pytest.approx(12.5)
    assert alive.check(T0 + 12.51).suspected == pytest.approx(2.01)
    assert pings(alive, until=18.9) == [pytest.approx(15.5)]
    assert due(alive) == pytest.approx(19)
    assert alive.check(T0 + 19).dead == 15  # as long after the last sign as ever


def test_checks_do_not_speak_for_what_was_sent(alive: Keepalive) -> None:
    """A path that lets STUN through, and nothing else, is no path."""
    alive.heard(T0)
    alive.seen(T0 + 4)
    alive.sent(T0 + 5)
    for second in range(5, 20):
        alive.seen(T0 + second)
        alive.next_due()
        verdict = alive.check(T0 + second)
        assert verdict.dead is None
        assert (verdict.ping is not None) is (second in (5, 10, 15))
        assert (verdict.suspected is not None) is (second == 7)
    assert due(alive) == 20
    assert alive.check(T0 + 20).dead == 20 - 5


def test_checks_do_not_make_a_short_interval_long() -> None:
    alive = Keepalive(T0, FAILOVER_TIMING)
    alive.answered(alive.ping(T0), T0)
    alive.heard(T0 + 1)
    alive.seen(T0 + 1)
    assert due(alive) == pytest.approx(1.65)


# --- suspicion ----------------------------------------------------------------------------------


def test_what_is_sent_and_not_answered_is_probed_and_then_suspected(alive: Keepalive) -> None:
    assert alive.sent(T0 + 3)
    assert not alive.sent(T0 + 3.5)  # the wait has begun already
    assert due(alive) == 4
    assert alive.check(T0 + 3.9) == Verdict()
    assert alive.check(T0 + 4).ping is not None
    assert due(alive) == 5
    assert alive.check(T0 + 5) == Verdict(suspected=2)
    assert alive.suspected
    # Once: from here on it is a matter of life and death only.
    assert alive.check(T0 + 5.5) == Verdict()
    assert pings(alive, until=14.9) == [9, 14]
    assert alive.check(T0 + 15).dead == 15


def test_a_ping_into_silence_counts_as_something_sent(alive: Keepalive) -> None:
    assert alive.check(T0 + 5).ping is not None
    assert due(alive) == 7
    assert alive.check(T0 + 7) == Verdict(suspected=2)


def test_a_sign_ends_the_wait_and_the_suspicion(alive: Keepalive) -> None:
    alive.sent(T0)
    assert not alive.heard(T0 + 0.5)
    assert due(alive) == 5.5
    alive.sent(T0 + 1)
    alive.check(T0 + 2)
    alive.next_due()
    assert alive.check(T0 + 3).suspected == 2
    assert alive.heard(T0 + 3.1)
    assert not alive.suspected
    assert not alive.heard(T0 + 3.2)


def test_a_sign_from_before_is_no_answer_to_what_was_sent_since(alive: Keepalive) -> None:
    alive.sent(T0 + 2)
    alive.heard(T0 + 1.5)
    assert due(alive) == 3
    alive.heard(T0 + 1)  # nor does a look at an older sign take anything back
    alive.heard(T0 + 2)
    assert due(alive) == 3
    alive.heard(T0 + 2.001)
    assert due(alive) == pytest.approx(7.001)


@pytest.mark.parametrize("measured", [True, False])
def test_what_was_under_way_before_is_no_answer(measured: bool) -> None:
    alive = Keepalive(T0, Timing())
    if measured:
        assert alive.answered(alive.ping(T0), T0 + 0.2) == pytest.approx(0.2)
    alive.sent(T0 + 1)
    assert due(alive) == 2
    alive.heard(T0 + 1.1)  # the path broke at T0 + 1.05
    assert due(alive) == pytest.approx(2.1)
    assert alive.check(T0 + 2.11).ping is not None
    assert due(alive) == pytest.approx(3.1)
    assert alive.check(T0 + 3.11).suspected == pytest.approx(2.01)


def test_a_sign_after_a_whole_round_trip_is_an_answer() -> None:
    alive = Keepalive(T0, Timing())
    assert alive.answered(alive.ping(T0), T0 + 0.5) == 0.5
    alive.sent(T0 + 1)
    alive.heard(T0 + 1.5)
    assert due(alive) == 6.5  # nothing is waited for


def test_a_steady_exchange_needs_no_probe(alive: Keepalive) -> None:
    alive.answered(alive.ping(T0), T0 + 0.2)
    for tenth in range(10, 300):
        now = T0 + tenth / 10
        alive.sent(now)
        alive.heard(now + 0.05)
        verdict = alive.check(now + 0.06)
        assert (verdict.suspected, verdict.ping) == (None, None)
        alive.next_due()


def test_a_long_round_trip_is_no_reason_for_suspicion(alive: Keepalive) -> None:
    opaque = alive.ping(T0)
    alive.heard(T0 + 0.8)
    assert alive.answered(opaque, T0 + 0.8) == pytest.approx(0.8)
    alive.sent(T0 + 1)
    assert due(alive) == 2
    alive.check(T0 + 2)
    assert due(alive) == pytest.approx(1 + 1 + 3 * 0.8)
    assert alive.check(T0 + 4.3).suspected is None
    alive.next_due()
    assert alive.check(T0 + 4.41).suspected == pytest.approx(3.41)


# --- our own pauses -----------------------------------------------------------------------------


def test_a_pause_of_ours_is_no_silence_of_the_peer(alive: Keepalive) -> None:
    alive.answered(alive.ping(T0), T0)
    assert due(alive) == 5
    verdict = alive.check(T0 + 65)  # this process was stopped for a minute
    assert verdict.dead is verdict.suspected is None
    assert verdict.ping is not None
    # That PING decides: the peer has as long as after any other.
    assert pings(alive, until=69.9) == []
    assert alive.check(T0 + 70).dead == pytest.approx(15)


def test_on_time_the_same_silence_is_the_end(alive: Keepalive) -> None:
    for moment in (5, 7, 10):
        alive.next_due()
        alive.check(T0 + moment)
    assert due(alive) == 15
    assert alive.check(T0 + 15.5).dead is not None


def test_a_short_pause_is_no_reason_for_suspicion(alive: Keepalive) -> None:
    alive.sent(T0 + 1)
    assert due(alive) == 2
    verdict = alive.check(T0 + 3.4)
    assert verdict.suspected is None
    # The wait begins anew, with a PING of its own.
    assert due(alive) == pytest.approx(4.4)
    assert alive.check(T0 + 4.41).ping is not None
    assert due(alive) == pytest.approx(5.4)
    assert alive.check(T0 + 5.41).suspected is not None


# --- round trips, and answers -------------------------------------------------------------------


def test_only_an_echo_of_ours_is_a_round_trip() -> None:
    alive = Keepalive(T0, Timing())
    first, second = alive.ping(T0), alive.ping(T0 + 1)
    assert alive.rtt is None
    for strange in (bytes(7), b"\xff" * 8, b"whatever"):
        assert alive.answered(strange, T0 + 2) is None
    assert alive.answered(second, T0 + 1.25) == 0.25
    assert alive.answered(first, T0 + 1.5) == 1.5
    assert alive.answered(first, T0 + 1.5) is None
    assert alive.rtt == 1.5


def test_pings_that_are_remembered_are_few(alive: Keepalive) -> None:
    sent = [alive.ping(T0 + number) for number in range(PINGS_REMEMBERED + 1)]
    assert len(set(sent)) == len(sent)
    assert alive.answered(sent[0], T0 + 9) is None
    assert alive.answered(sent[1], T0 + 9) == 8


def test_answers_have_a_rate(alive: Keepalive) -> None:
    assert [alive.may_answer(T0) for _ in range(100)].count(True) == PONGS_PER_SECOND
    assert [alive.may_answer(T0 + 0.5) for _ in range(100)].count(True) == PONGS_PER_SECOND // 2
    assert [alive.may_answer(T0 + 3600) for _ in range(100)].count(True) == PONGS_PER_SECOND


@pytest.mark.parametrize(
    ("timing", "least", "most"), [(FAILOVER_TIMING, 1.2, 1.71), (FAST_FAILOVER_TIMING, 0.6, 0.86)]
)
def test_a_peer_that_shares_a_route_is_suspected_soon(
    timing: Timing, least: float, most: float
) -> None:
    keepalive = Keepalive(0.0, Timing(), asks=True)
    keepalive.answered(keepalive.ping(0.0), 0.001)
    keepalive.heard(0.001)
    keepalive.retime(timing)
    now = 0.001
    while not keepalive.suspected:
        now = keepalive.next_due()
        keepalive.check(now)
    assert least < now < most


@pytest.mark.parametrize("queue", [0.3, 0.7, 1.15])
def test_a_queue_that_a_slow_path_fills_raises_no_doubt(queue: float) -> None:
    """The data that is sent fills the path, from nothing to `queue` seconds within one round trip."""
    keepalive = Keepalive(0.0, Timing(), asks=True)
    keepalive.answered(keepalive.ping(0.0), 0.05)
    asked: dict[bytes, float] = {}
    now = 10.0
    while now < 60:
        keepalive.sent(now)
        keepalive.heard(now)
        verdict = keepalive.check(now)
        assert verdict.suspected is None, now
        if verdict.ping is not None:
            asked[verdict.ping] = now
        for opaque, sent in list(asked.items()):
            if now >= sent + queue:
                del asked[opaque]
                keepalive.answered(opaque, now)
        now += 0.01


def test_a_ping_that_was_lost_and_repeated_raises_no_doubt_on_a_long_path() -> None:
    keepalive = Keepalive(0.0, FAST_FAILOVER_TIMING, asks=True)
    keepalive.answered(keepalive.ping(0.0), 0.3)
    keepalive.heard(0.3)
    lost = keepalive.ping(1.0)
    # Repeated after 0.5 s, and answered a round trip later.
    for step in range(1, 80):
        keepalive.check(1.0 + step / 100)
    assert not keepalive.suspected
    keepalive.answered(lost, 1.8)
    keepalive.heard(1.8)
    assert not keepalive.check(1.81).suspected


# --- moments, to the last bit of a second ---------------------------------------------------------


def test_a_look_before_the_time_to_ask_asks_nothing() -> None:
    alive = Keepalive(T0, Timing(), asks=True)
    alive.answered(alive.ping(T0), T0)
    assert alive.sent(T0 + 1)
    assert alive.check(T0 + 1.25) == Verdict()
    assert alive.check(T0 + 1.5).ping is not None


def test_a_suspicion_and_a_question_may_be_due_together() -> None:
    alive = Keepalive(T0, Timing(ping_interval=1, probe_after=9, suspect_after=2))
    alive.sent(T0)
    assert alive.check(T0 + 1).ping is not None
    verdict = alive.check(T0 + 9)
    assert (verdict.ping is not None, verdict.suspected) == (True, 9)


@pytest.mark.parametrize(("rtt", "patience"), [(None, 1.2), (0.25, 1.2), (1, 3)])
def test_a_pong_has_three_round_trips_but_some_time_at_least(
    rtt: float | None, patience: float
) -> None:
    alive = Keepalive(T0, Timing(), asks=True)
    if rtt is not None:
        alive.answered(alive.ping(T0), T0 + rtt)
    alive.heard(T0 + 8)
    alive.ping(T0 + 8)
    assert due(alive) == pytest.approx(8 + patience)


def test_a_first_look_is_not_late() -> None:
    alive = Keepalive(T0, Timing())
    alive.sent(T0)
    assert alive.check(T0 + 2).suspected == 2


@pytest.mark.parametrize(("late", "dead_at"), [(2, 15), (2.5, 15), (2.75, 17.75), (4, 19)])
def test_who_looks_half_an_interval_late_gives_the_peer_time_for_one_more_answer(
    alive: Keepalive, late: float, dead_at: float
) -> None:
    for moment in (5, 7, 10 + late):
        alive.next_due()
        alive.check(T0 + moment)
    while (now := alive.next_due()) < T0 + dead_at:
        assert alive.check(now).dead is None
    assert now == T0 + dead_at


def test_who_looks_late_asks_although_an_interval_has_not_passed(alive: Keepalive) -> None:
    assert due(alive) == 5
    alive.check(T0 + 5)
    assert due(alive) == 7
    verdict = alive.check(T0 + 9.75)
    assert (verdict.ping is not None, verdict.suspected) == (True, None)
