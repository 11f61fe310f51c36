"""When a peer of a route is passed over, and when it comes back; the clock is the test's."""

import pytest

from socks_tunnel.protocol.failover import (
    DEAD_HOSTS_MAX,
    DEAD_SECONDS,
    FAILURE_WINDOW,
    FAILURES_REMEMBERED,
    HOLD_MAX,
    RouteHealth,
    Standing,
)


def causes(health: RouteHealth, now: float) -> dict[str, str]:
    found = {peer: health.against(peer, now) for peer in health.peers}
    return {peer: against.cause for peer, against in found.items() if against is not None}


def route(*, failures: int = 3, recover_after: float = 10, probed: bool = False) -> RouteHealth:
    return RouteHealth(("a", "b"), failures=failures, recover_after=recover_after, probed=probed)


# --- a standing -------------------------------------------------------------------------------


def test_it_falls_at_once_and_is_good_after_it_was_well_for_long() -> None:
    standing = Standing(10)
    assert standing.good(0)
    standing.fall(100)
    assert not standing.good(1000), "it is not well yet"
    standing.well(1000)
    assert standing.due() == 1010
    standing.well(1005)  # it still is: the wait began before
    assert not standing.good(1009.9)
    assert standing.good(1010)
    assert standing.due() is None


def test_a_fall_while_it_waits_begins_the_wait_anew_and_is_no_relapse() -> None:
    standing = Standing(10)
    standing.fall(0)
    standing.well(1)
    standing.fall(9)
    standing.well(9)
    assert (standing.good(18.9), standing.good(19), standing.wait) == (False, True, 10)


def test_relapses_wait_longer_up_to_a_limit_and_a_steady_time_is_a_new_beginning() -> None:
    standing, now = Standing(10), 0.0
    waits = []
    for _ in range(8):
        standing.fall(now)
        standing.well(now)
        waits.append(standing.wait)
        now += standing.wait
        assert standing.good(now)
        now += 1
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    for _ in range(2000):  # a week of it: a float ends at 2 to the power of 1024
        standing.fall(now)
        standing.well(now)
        now += standing.wait
        assert standing.good(now)
        now += 1
    assert standing.wait == 300
    assert HOLD_MAX == 300
    now += 6 * 300
    standing.fall(now)
    assert standing.wait == 10


def test_without_a_hold_it_is_good_as_soon_as_it_is_well() -> None:
    standing = Standing(0)
    standing.fall(5)
    assert not standing.good(6)
    standing.well(6)
    assert standing.good(6)


def test_what_never_fell_would_wait_for_one_hold() -> None:
    assert Standing(10).wait == 10


def test_a_hold_beyond_the_limit_is_kept() -> None:
    standing = Standing(1000)
    standing.fall(0)
    assert standing.wait == 1000


def test_who_is_acquitted_is_good_at_once_and_has_no_relapse() -> None:
    standing = Standing(10)
    standing.fall(0)
    standing.acquit()
    assert standing.good(0)
    standing.fall(1)
    assert standing.wait == 10
    standing.acquit()
    standing.acquit()
    standing.fall(2)
    assert standing.wait == 10


# --- links ------------------------------------------------------------------------------------


def test_a_link_that_was_lost_is_on_trial_when_it_is_back() -> None:
    health = route()
    health.link_lost("a", 0, "its link is down")
    assert causes(health, 100) == {"a": "link"}
    health.link_well("a", 100)
    against = health.against("a", 104)
    assert against is not None
    assert (against.sentence, against.left) == ("its link is down", 6)
    assert causes(health, 110) == {}


# --- dials ------------------------------------------------------------------------------------


def test_dials_that_fail_pass_a_peer_over_for_a_while() -> None:
    health = route()
    for now in (0, 1):
        health.dial_failed("a", "10.0.0.1", now)
    assert causes(health, 1) == {}
    health.dial_failed("a", "10.0.0.2", 2)
    against = health.against("a", 2)
    assert against is not None
    assert against.sentence == "3 dials did not reach 10.0.0.1, 10.0.0.2"
    assert causes(health, 11.9) == {"a": "dials"}
    assert causes(health, 12) == {}


def test_a_dial_that_succeeds_in_between_begins_the_count_anew() -> None:
    health = route()
    for now in range(10):
        health.dial_failed("a", "h", now)
        if now % 2:
            health.dial_succeeded("a")
    assert causes(health, 10) == {}


def test_failures_of_long_ago_do_not_count() -> None:
    health = route()
    for number in range(10):
        health.dial_failed("a", "h", number * (FAILURE_WINDOW / 2 + 0.1))
    assert causes(health, 1000) == {}


def test_after_its_time_one_failure_is_enough_and_one_success_clears_it() -> None:
    health = route()
    for _ in range(3):
        health.dial_failed("a", "h", 0)
    assert causes(health, 10) == {}
    health.dial_failed("a", "h", 11)
    assert causes(health, 11) == {"a": "dials"}
    assert causes(health, 30.9) == {"a": "dials"}, "twice as long"
    assert causes(health, 31) == {}
    health.dial_succeeded("a")
    health.dial_failed("a", "h", 32)
    health.dial_failed("a", "h", 32)
    assert causes(health, 32) == {}


def test_a_host_that_nobody_reaches_counts_against_nobody() -> None:
    health = route()
    for now in (0, 1, 2):
        health.dial_failed("a", "dead", now)
    assert causes(health, 2) == {"a": "dials"}
    health.dial_failed("b", "dead", 3)
    assert causes(health, 3) == {}, "a is acquitted, and b is not blamed"
    for now in range(4, 20):
        health.dial_failed("a", "dead", now)
        health.dial_failed("b", "dead", now)
    assert causes(health, 20) == {}
    for now in (100, 101, 102):
        health.dial_failed("b", "dead", 3 + DEAD_SECONDS + now)
    assert causes(health, 3 + DEAD_SECONDS + 102) == {"b": "dials"}, "it is forgotten after a while"


def test_what_another_peer_did_not_reach_elsewhere_forgives_nothing() -> None:
    health = route(failures=2)
    health.dial_failed("b", "x", 0)
    health.dial_failed("a", "y", 1)
    health.dial_failed("a", "y", 2)
    assert causes(health, 2) == {"a": "dials"}
    assert health.peers["b"].recent(2) == 1


def test_what_is_left_against_a_peer_stays_when_one_host_is_dead() -> None:
    health = route()
    for host in ("x", "y", "z", "dead"):
        health.dial_failed("a", host, 0)
    health.dial_failed("b", "dead", 1)
    assert causes(health, 1) == {"a": "dials"}


def test_it_can_be_switched_off() -> None:
    health = route(failures=0)
    for _ in range(100):
        health.dial_failed("a", "h", 0)
        health.probe_failed("a", "no", 0)
    assert causes(health, 0) == {}


def test_what_is_remembered_is_bounded() -> None:
    health = route()
    for number in range(FAILURES_REMEMBERED + 5):
        health.dial_failed("a", str(number), 0)
    assert len(health.peers["a"].failures) == FAILURES_REMEMBERED
    health = route(failures=10_000)
    for number in range(DEAD_HOSTS_MAX + 5):
        health.dial_failed("a", str(number), 0)
        health.dial_failed("b", str(number), 0)
    assert len(health._dead) == DEAD_HOSTS_MAX


def test_a_peer_that_the_route_does_not_have_is_no_concern() -> None:
    health = route()
    health.dial_failed("c", "h", 0)
    health.dial_succeeded("c")
    health.probe_failed("c", "no", 0)
    health.probe_succeeded("c", 0)
    assert causes(health, 0) == {}


# --- probes -----------------------------------------------------------------------------------


def test_probes_pass_a_peer_over_and_bring_it_back() -> None:
    health = route(probed=True)
    for now in (0, 5):
        health.probe_failed("b", "10.0.0.1:443: host unreachable", now)
    assert causes(health, 5) == {}
    health.probe_failed("b", "10.0.0.1:443: host unreachable", 10)
    against = health.against("b", 10)
    assert against is not None
    assert against.sentence.startswith("3 probes failed, the last one: 10.0.0.1:443")
    assert causes(health, 1000) == {"b": "probe"}, "only a probe brings it back"
    health.probe_succeeded("b", 1000)
    assert causes(health, 1009) == {"b": "probe"}
    assert causes(health, 1010) == {}


@pytest.mark.parametrize("failing", ["again", "never"])
def test_with_probes_a_peer_that_fell_by_dials_comes_back_by_a_probe(failing: str) -> None:
    health = route(probed=True)
    for _ in range(3):
        health.dial_failed("a", "h", 0)
    assert causes(health, 500) == {"a": "dials"}
    health.probe_succeeded("a", 500)
    if failing == "again":
        health.probe_failed("a", "no", 505)
        assert causes(health, 600) == {"a": "dials"}
    else:
        assert causes(health, 510) == {}
