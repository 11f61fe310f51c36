"""What a gateway asks for and is told, with time as a number."""

from collections.abc import Callable

import pytest

from socks_tunnel.protocol.keepalive import Keepalive, Timing

T0 = 100.0


@pytest.fixture
def alive() -> Keepalive:
    """An endpoint's, on a link whose round trip is known, and takes no time at all."""
    made = Keepalive(T0, Timing())
    made.answered(made.ping(T0), T0)
    return made


def due(alive: Keepalive) -> float:
    """Seconds from the start until something is due."""
    return alive.next_due() - T0


# --- one way only -------------------------------------------------------------------------------


@pytest.fixture
def gateway() -> Keepalive:
    """A gateway's, on a link with a round trip of 50 ms."""
    made = Keepalive(T0, Timing(), asks=True)
    made.heard(T0 + 0.05)
    assert made.answered(made.ping(T0), T0 + 0.05) == pytest.approx(0.05)
    return made


def busy(
    gateway: Keepalive,
    begin: float,
    end: float,
    *,
    answers: bool,
    round_trip: Callable[[float], float] = lambda _: 0.05,
) -> list[float]:
    """Sends and hears something each 10 ms; when its link was suspected, in seconds from the start.

    PINGs are answered after the round trip if `answers`; what is heard is the peer's own in any case.
    """
    suspected, pongs = [], []
    for hundredth in range(round(begin * 100), round(end * 100)):
        now = T0 + hundredth / 100
        gateway.sent(now)
        gateway.heard(now)
        if now >= gateway.next_due():
            verdict = gateway.check(now)
            assert verdict.dead is None
            if verdict.suspected is not None:
                suspected.append(now - T0)
            if verdict.ping is not None and answers:
                pongs.append((now + round_trip(now - T0), verdict.ping))
        while pongs and pongs[0][0] <= now:
            gateway.answered(pongs.pop(0)[1], now)
    return suspected


def test_a_busy_gateway_asks_and_is_content_with_the_answers(gateway: Keepalive) -> None:
    assert busy(gateway, 0.1, 60, answers=True) == []
    assert gateway.rtt == pytest.approx(0.05, abs=0.02)


def test_whoever_is_heard_but_does_not_answer_is_suspected_soon(gateway: Keepalive) -> None:
    """Only what we send is lost: all that the peer sends arrives, and proves nothing."""
    busy(gateway, 0.1, 10, answers=True)
    (moment,) = busy(gateway, 10, 20, answers=False)
    assert 11.1 <= moment <= 11.8
    assert gateway.suspected


def test_what_is_heard_does_not_end_a_suspicion_for_want_of_a_pong(gateway: Keepalive) -> None:
    opaque = gateway.ping(T0 + 1)
    gateway.next_due()
    assert gateway.check(T0 + 2.2).suspected == pytest.approx(1.2)
    assert not gateway.heard(T0 + 2.6)
    before = gateway.suspected
    assert gateway.answered(opaque, T0 + 2.7) == pytest.approx(1.7)
    assert (before, gateway.suspected) == (True, False)
    # And what was late has taught how long to wait.
    gateway.ping(T0 + 3)
    gateway.heard(T0 + 7)
    gateway.next_due()
    assert gateway.check(T0 + 3 + 3 * 1.7 - 0.01).suspected is None


def test_nor_does_it_after_a_pause_of_ours(gateway: Keepalive) -> None:
    """The PONG gets more time then, but that it was missed before remains true."""
    opaque = gateway.ping(T0 + 1)
    gateway.next_due()
    assert gateway.check(T0 + 2.2).suspected
    gateway.sent(T0 + 2.3)
    gateway.next_due()
    assert gateway.check(T0 + 60).dead is None
    assert not gateway.heard(T0 + 60.01)
    assert gateway.suspected
    gateway.answered(opaque, T0 + 60.02)
    assert not gateway.suspected


def test_pongs_behind_the_data_of_a_slow_link_are_no_reason_for_suspicion(
    gateway: Keepalive,
) -> None:

    def filling(second: float) -> float:
        return min(0.9 + second / 10, 2.4)

    assert busy(gateway, 0.1, 60, answers=True, round_trip=filling) == []


def test_one_question_at_a_time_is_asked_and_none_without_need(gateway: Keepalive) -> None:
    assert due(gateway) == pytest.approx(5.05)  # nothing was sent
    assert gateway.sent(T0 + 1)
    assert not gateway.sent(T0 + 1.1)
    assert due(gateway) == 1.5
    opaque = gateway.check(T0 + 1.5).ping
    assert opaque is not None
    gateway.heard(T0 + 1.6)
    assert gateway.sent(T0 + 1.7)  # the wait for a sign begins
    assert due(gateway) == pytest.approx(2.7)
    gateway.heard(T0 + 1.8)
    assert due(gateway) == pytest.approx(2.7)  # the wait for the PONG, alone
    gateway.answered(opaque, T0 + 1.9)
    assert due(gateway) == pytest.approx(2.2)


def test_an_endpoint_does_not_ask_for_it_can_do_nothing(alive: Keepalive) -> None:
    assert busy(alive, 0.1, 25, answers=False) == []


def test_a_pong_that_the_peer_refused_is_not_waited_for_when_a_later_one_has_come(
    gateway: Keepalive,
) -> None:
    gateway.ping(T0 + 1)
    later = gateway.ping(T0 + 1.2)
    gateway.heard(T0 + 1.3)
    gateway.answered(later, T0 + 1.3)
    gateway.next_due()
    assert gateway.check(T0 + 2.6).suspected is None
    assert not gateway.suspected


def test_the_pong_of_a_later_ping_is_waited_for_after_that_of_an_earlier_one(
    gateway: Keepalive,
) -> None:
    earlier = gateway.ping(T0 + 1)
    gateway.ping(T0 + 1.05)
    gateway.heard(T0 + 1.1)
    gateway.answered(earlier, T0 + 1.1)
    gateway.heard(T0 + 2.2)
    assert due(gateway) == pytest.approx(2.25)
    assert gateway.check(T0 + 2.26).suspected == pytest.approx(1.21)


def test_while_a_ping_waits_no_other_wait_begins(gateway: Keepalive) -> None:
    gateway.ping(T0 + 1)
    assert not gateway.sent(T0 + 1.1)
    assert due(gateway) == pytest.approx(2.2)


def test_what_is_heard_when_the_pong_is_due_does_not_end_a_suspicion() -> None:
    gateway = Keepalive(T0, Timing(pong_after=3), asks=True)
    gateway.ping(T0)
    gateway.next_due()
    assert gateway.check(T0 + 2).suspected == 2
    assert not gateway.heard(T0 + 3)
    assert gateway.suspected


def test_a_pong_that_came_during_a_pause_of_ours_is_still_taken(gateway: Keepalive) -> None:
    opaque = gateway.ping(T0 + 1)
    assert due(gateway) == pytest.approx(2.2)
    assert gateway.check(T0 + 60).suspected is None
    gateway.heard(T0 + 60.01)
    assert gateway.answered(opaque, T0 + 60.01) == pytest.approx(59.01)
    gateway.answered(gateway.ping(T0 + 60.02), T0 + 60.07)
    assert not gateway.suspected
    assert due(gateway) > 62


# --- what the transport tells -------------------------------------------------------------------


def test_a_transport_whose_packets_are_not_answered_is_suspected_at_once(
    gateway: Keepalive,
) -> None:
    assert gateway.stalled()
    assert not gateway.stalled(), "it is told once"
    # The peer's own packets arrive: that says nothing of ours.
    gateway.sent(T0 + 0.9)
    assert not gateway.heard(T0 + 1)
    assert gateway.path_answers(T0 + 1.1), "only this ends it"
    assert not gateway.suspected
    assert not gateway.path_answers(T0 + 1.2)


def test_packets_that_are_answered_give_a_late_pong_more_time(gateway: Keepalive) -> None:
    gateway.ping(T0 + 1)
    gateway.next_due()
    assert gateway.check(T0 + 2.2).suspected
    assert not gateway.stalled()
    assert gateway.path_answers(T0 + 2.3)
    gateway.heard(T0 + 2.3)
    assert due(gateway) == pytest.approx(3.5)
    assert gateway.check(T0 + 3.4).suspected is None
    assert gateway.check(T0 + 3.5).suspected == pytest.approx(2.5)


def test_once_packets_are_answered_again_what_is_heard_is_a_sign_again() -> None:
    gateway = Keepalive(T0, Timing(pong_after=9), asks=True)
    gateway.stalled()
    assert gateway.path_answers(T0 + 1)
    gateway.sent(T0 + 2)
    gateway.next_due()
    assert gateway.check(T0 + 3).ping is not None
    gateway.next_due()
    assert gateway.check(T0 + 4).suspected == 2
    assert gateway.heard(T0 + 4.1)
    assert not gateway.suspected


def test_a_pong_shows_that_the_packets_of_a_stalled_transport_arrive(gateway: Keepalive) -> None:
    opaque = gateway.ping(T0 + 1)
    gateway.stalled()
    gateway.answered(opaque, T0 + 2)
    assert not gateway.suspected
    assert not gateway.path_answers(T0 + 2.1), "that is known already"


def test_a_transport_that_is_stalled_is_nothing_to_an_endpoint(alive: Keepalive) -> None:
    assert not alive.stalled()
    assert not alive.suspected
