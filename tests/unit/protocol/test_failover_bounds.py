"""What is said against a peer of a route, and its bounds: exactly at each of them and beyond."""

import pytest

from socks_tunnel.protocol.failover import (
    DEAD_HOSTS_MAX,
    DEAD_SECONDS,
    FAILURE_WINDOW,
    FAILURES_REMEMBERED,
    STEADY_HOLDS,
    Against,
    RouteHealth,
    Standing,
)


def route(*peers: str, failures: int = 3, probed: bool = False) -> RouteHealth:
    return RouteHealth(peers, failures=failures, recover_after=10, probed=probed)


def failed(health: RouteHealth, peer: str) -> list[str]:
    return [host for _, host in health.peers[peer].failures]


# --- a standing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("steady", "wait"), [(STEADY_HOLDS * 10, 10), (STEADY_HOLDS * 10 - 1, 20)])
def test_a_steady_time_is_as_long_as_it_says(steady: float, wait: float) -> None:
    standing = Standing(10)
    standing.fall(0)
    standing.well(0)
    assert standing.good(10)
    standing.fall(10 + steady)
    assert standing.wait == wait


def test_a_fall_that_was_not_its_fault_makes_no_wait_longer() -> None:
    standing = Standing(10)
    for fallen, good in ((0, 10), (11, 31)):
        standing.fall(fallen)
        standing.well(fallen)
        assert standing.good(good)
    standing.fall(32)
    assert standing.wait == 40
    standing.acquit()
    assert standing.good(32)
    standing.fall(33)
    assert standing.wait == 40


# --- what is said ---------------------------------------------------------------------------------


def test_a_link_is_spoken_of_until_it_was_well_for_long() -> None:
    health = route("a")
    health.link_lost("a", 0, "no answer")
    assert health.against("a", 1) == Against("link", "no answer", None)
    health.link_well("a", 5)
    assert health.against("a", 5) == Against("link", "no answer", 10)
    assert health.against("a", 14.5) == Against("link", "no answer", 0.5)
    assert health.against("a", 15) is None
    health.link_lost("a", 16, "again")
    health.link_well("a", 16)
    assert health.against("a", 16) == Against("link", "again", 20)


def test_probes_are_spoken_of_until_one_was_good_for_long() -> None:
    health = route("a", probed=True)
    for _ in range(3):
        health.probe_failed("a", "late", 0)
    assert health.against("a", 1) == Against("probe", "3 probes failed, the last one: late", None)
    health.probe_succeeded("a", 5)
    assert health.against("a", 6) == Against("probe", "it has recovered", 9)
    assert health.against("a", 15) is None
    for _ in range(3):
        health.probe_failed("a", "again", 16)
    health.probe_succeeded("a", 16)
    assert health.against("a", 16) == Against("probe", "it has recovered", 20)


def test_dials_are_spoken_of_with_three_of_their_hosts() -> None:
    health = route("a", failures=4)
    for host in ("h4", "h3", "h2", "h1"):
        health.dial_failed("a", host, 0)
    assert health.against("a", 4) == Against("dials", "4 dials did not reach h1, h2, h3", 6)


def test_a_peer_on_trial_falls_by_one_dial_and_once() -> None:
    health = route("a")
    for host in ("h1", "h2", "h3"):
        health.dial_failed("a", host, 0)
    assert health.against("a", 10) is None, "it is on trial"
    health.dial_failed("a", "h1", 11)
    assert health.against("a", 11) == Against("dials", "1 dials did not reach h1", 20)
    health.dial_failed("a", "h2", 16)  # it had been begun before the fall
    assert health.against("a", 16) == Against("dials", "2 dials did not reach h1, h2", 15)


# --- hosts and other peers ------------------------------------------------------------------------


def test_a_failed_dial_is_recent_as_long_as_the_window() -> None:
    health = route("a")
    health.dial_failed("a", "h", 0)
    assert health.peers["a"].recent(FAILURE_WINDOW) == 1
    assert health.peers["a"].recent(FAILURE_WINDOW + 0.1) == 0


def test_a_host_is_dead_as_long_as_it_says() -> None:
    health = route("a", "b")
    health.dial_failed("a", "h", 100)
    health.dial_failed("b", "h", 100)
    assert (failed(health, "a"), failed(health, "b")) == ([], [])
    for now in (101, 100 + DEAD_SECONDS):
        health.dial_failed("b", "h", now)
        assert failed(health, "b") == []
    health.dial_failed("b", "h", 100 + DEAD_SECONDS + 0.1)
    assert failed(health, "b") == ["h"]


def test_of_too_many_dead_hosts_the_oldest_is_forgotten() -> None:
    health = route("a", "b")
    for number in range(DEAD_HOSTS_MAX + 1):
        for peer in ("a", "b"):
            health.dial_failed(peer, f"h{number}", 0)
    for number in (DEAD_HOSTS_MAX, 1, 0):
        health.dial_failed("b", f"h{number}", 1)
    assert failed(health, "b") == ["h0"]


@pytest.mark.parametrize("peer", ["a", "b", "c"])
def test_a_host_is_compared_among_all_peers_wherever_they_are_listed(peer: str) -> None:
    others = [name for name in ("a", "b", "c") if name != peer]
    for judge in others:
        health = route("a", "b", "c")
        for name in others:
            health.dial_failed(name, f"only {name}", 0)
        health.dial_failed(judge, "h", 0)
        health.dial_failed(peer, "h", 0)
        assert failed(health, peer) == []
        assert {name: failed(health, name) for name in others} == {
            name: [f"only {name}"] for name in others
        }
        assert health.peers[judge].failures.maxlen == FAILURES_REMEMBERED
