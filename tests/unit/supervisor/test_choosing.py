"""Which sessions new flows of each route go to, and what is said when that changes."""

import logging
from typing import Any

import pytest

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.settings import RouteSettings
from socks_tunnel.supervisor.choosing import Chooser


class Link:
    def __init__(self, rtt: float | None = None) -> None:
        self.accepts = True
        self.doubted = False
        self.resumed = True
        self.rtt = rtt


class Session:
    def __init__(self, number: int, peer: str, rank: int = 0) -> None:
        self.number = number
        self.peer = peer
        self.rank = rank
        self.flows = 0
        self.link: Link | None = Link()

    @property
    def transmits(self) -> bool:
        return self.link is not None and self.link.accepts and self.link.resumed


class World:
    def __init__(self, *routes: RouteSettings, peers: str = "ab") -> None:
        self.metrics = Metrics()
        self.chooser = Chooser(self.metrics)
        self.chooser.configure(routes)
        self.now = 1000.0
        self.sessions = {
            peer: Session(number, peer, number) for number, peer in enumerate(peers, 1)
        }

    def targets(self, seconds: float = 0) -> list[list[list[int]]]:
        self.now += seconds
        self.chooser.choose(self.sessions.values(), self.now)
        return self.chooser.table.targets

    def link(self, peer: str) -> Link:
        link = self.sessions[peer].link
        assert link is not None
        return link

    def row(self, peer: str) -> dict[str, Any]:
        (row,) = [row for row in self.chooser.rows() if row["peer"] == peer]
        return row

    def failovers(self, cause: str) -> float:
        return float(self.metrics.failovers_total.labels(cause).value)


def named(*peers: str, **fields: Any) -> RouteSettings:
    return RouteSettings("r", peers=peers, **{"failures": 3, "recover_after": 10, **fields})


def test_without_routes_the_first_configured_peer_takes_all() -> None:
    world = World(RouteSettings("default"), peers="abc")
    world.sessions["a"].rank, world.sessions["b"].rank = 2, 1
    assert world.targets() == [[[2, 1, 3], []]]
    world.sessions["b"].link = None
    assert world.targets() == [[[1, 3], []]]
    world.sessions["b"].link = Link()
    assert world.targets() == [[[2, 1, 3], []]], "and gets it back at once"
    assert world.chooser.rows() == []


def test_each_route_has_its_peers_in_its_order() -> None:
    routes = RouteSettings("x", peers=("b", "a")), RouteSettings("y", peers=("c",)), named("a", "d")
    assert World(*routes, peers="abc").targets() == [[[2, 1], []], [[3], []], [[1], []]]


def test_a_table_is_told_only_if_it_changed() -> None:
    world = World(named("a", "b"))
    assert world.chooser.choose(world.sessions.values(), 0)
    assert not world.chooser.choose(world.sessions.values(), 1)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("down", "its link is down"),
        ("doubt", "its link is in doubt"),
        ("goaway", "it takes no new flows"),
    ],
)
def test_a_peer_whose_link_fails_is_passed_over_and_comes_back_after_a_while(
    what: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(named("a", "b"))
    assert world.targets() == [[[1, 2], []]]
    if what == "down":
        world.sessions["a"].link = None
    elif what == "doubt":
        world.link("a").doubted = True
    else:
        world.link("a").accepts = False
    assert world.targets() == [[[2], [1] if what == "doubt" else []]]
    assert world.row("a")["why"] == sentence
    assert (world.row("a")["state"], world.row("b")["state"]) == ("passed over", "preferred")
    assert f"route r: a is passed over: {sentence}; new flows go to b" in caplog.text
    assert world.failovers("link") == 1
    (record,) = [r for r in caplog.records if r.name == "socks_tunnel.audit"]
    assert record.__dict__["fields"] == {"route": "r", "peer": "a", "instead": "b", "cause": "link"}
    assert world.metrics.route_peer_preferred.labels("r", "a").value == 0

    world.sessions["a"].link = Link()
    assert world.targets() == [[[2], [1]]], "it works, and is not trusted yet"
    assert world.row("a")["seconds_left"] == 10
    assert world.targets(9.9) == [[[2], [1]]]
    assert world.targets(0.1) == [[[1, 2], []]]
    assert "route r: a takes new flows again" in caplog.text
    assert world.metrics.route_peer_preferred.labels("r", "a").value == 1


def test_a_peer_that_comes_up_for_the_first_time_is_trusted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = World(named("a", "b"), peers="b")
    assert world.targets() == [[[1], []]]
    world.sessions["a"] = Session(5, "a")
    assert world.targets() == [[[5, 1], []]]
    assert world.failovers("link") == 0
    assert caplog.text == ""


def test_a_link_whose_flows_are_being_resumed_takes_nothing_and_is_not_blamed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(named("a", "b"))
    world.targets()
    world.link("a").resumed = False
    assert world.targets() == [[[2], []]]
    world.link("a").resumed = True
    assert world.targets() == [[[1, 2], []]]
    assert caplog.text == ""


def test_links_that_are_all_in_doubt_are_used_in_their_order() -> None:
    world = World(named("a", "b"))
    world.targets()
    for peer in "ab":
        world.link(peer).doubted = True
    assert world.targets() == [[[], [1, 2]]]


def test_a_peer_that_does_not_reach_its_targets_is_better_than_one_in_doubt() -> None:
    world = World(named("a", "b", "c"), peers="abc")
    world.targets()
    world.link("a").doubted = True
    for _ in range(3):
        world.chooser.dial_failed("r", "b", "h", world.now)
    world.sessions["c"].link = None
    assert world.targets() == [[[], [2, 1]]]
    world.sessions["c"].link = Link()
    assert world.targets() == [[[], [3, 2, 1]]], "one on trial is better than both"


def test_dials_count_for_their_route_alone() -> None:
    other = RouteSettings("other", peers=("a", "b"), failures=3, recover_after=10)
    world = World(named("a", "b"), other)
    world.targets()
    for _ in range(3):
        world.chooser.dial_failed("r", "a", "10.0.0.1", world.now)
        world.chooser.dial_failed("gone", "a", "10.0.0.1", world.now)
    assert world.targets() == [[[2], [1]], [[1, 2], []]]
    assert world.failovers("dials") == 1
    assert world.targets(10) == [[[1, 2], []], [[1, 2], []]]


def test_a_route_with_one_peer_never_passes_it_over_for_its_dials() -> None:
    world = World(named("a"))
    for _ in range(9):
        world.chooser.dial_failed("r", "a", "h", world.now)
    assert world.targets() == [[[1], []]]


def test_probes_count(caplog: pytest.LogCaptureFixture) -> None:
    world = World(named("a", "b", probe=("h", 443)))
    world.targets()
    for _ in range(3):
        world.chooser.probed("r", "a", "h:443: host unreachable", world.now)
    assert world.targets() == [[[2], [1]]]
    assert world.failovers("probe") == 1
    assert "the last one: h:443: host unreachable" in caplog.text
    assert world.targets(100) == [[[2], [1]]]
    world.chooser.probed("r", "a", None, world.now)
    assert world.targets(10) == [[[1, 2], []]]


# --- nearest ----------------------------------------------------------------------------------


def test_the_nearest_comes_first_and_stays_until_another_is_clearly_nearer() -> None:
    world = World(named("a", "b", policy="nearest"))

    def measured(a: float, b: float) -> list[int]:
        world.link("a").rtt, world.link("b").rtt = a, b
        for _ in range(30):
            world.chooser.tick(world.sessions.values())
        return world.targets()[0][0]

    assert measured(0.040, 0.020) == [2, 1]
    assert measured(0.018, 0.020) == [2, 1]
    assert measured(0.015, 0.020) == [1, 2]
    assert measured(0.015, 0.014) == [1, 2]
    assert measured(0.0010, 0.0002) == [1, 2], "a difference of less than 2 ms is none"
    world.sessions["a"].link = None
    assert world.targets() == [[[2], []]]


def test_one_that_was_never_measured_comes_last() -> None:
    world = World(named("a", "b", policy="nearest"))
    world.link("b").rtt = 0.5
    world.chooser.tick(world.sessions.values())
    assert world.targets() == [[[2, 1], []]]


# --- least loaded ---------------------------------------------------------------------------------


def balanced(workers: int = 1) -> tuple[World, dict[str, int]]:
    world = World(named("a", "b", policy="least-loaded"))
    reported: dict[str, int] = {}
    world.chooser.reported = lambda: dict(reported)
    world.chooser.tick(world.sessions.values(), workers)
    return world, reported


def beside(world: World, workers: int = 1) -> list[list[list[float]]]:
    world.chooser.tick(world.sessions.values(), workers)
    world.targets()
    return world.chooser.table.beside


def test_loads_count_by_our_part_in_all_flows() -> None:
    world, reported = balanced()
    world.sessions["a"].flows, world.sessions["b"].flows = 60, 40
    assert beside(world) == [[]], "nobody has said anything"
    reported |= {"a": 560, "b": 440}  # a tenth of all is ours
    assert beside(world) == [[[1, -4.0], [2, 4.0]]]
    assert beside(world, workers=4) == [[[1, -1.0], [2, 1.0]]]
    world.sessions["a"].flows = 90  # which the peer has not said yet
    assert beside(world) == [[[1, -4.0], [2, 4.0]]]
    reported["a"] = 600
    assert beside(world) == [[[1, -15.0], [2, 15.0]]]


def test_a_host_without_flows_goes_where_others_have_fewer() -> None:
    world, reported = balanced()
    reported |= {"a": 3, "b": 2}
    assert beside(world) == [[[1, 0.6], [2, 0.4]]]


def test_loads_count_only_where_each_peer_has_told() -> None:
    world, reported = balanced()
    reported["a"] = 100
    assert beside(world) == [[]]
    reported["b"] = 10
    assert beside(world) != [[]]
    world.sessions["a"].link = None
    assert [row[0] for row in beside(world)[0]] == [2]
    del reported["b"]  # its connection to the service has ended
    assert beside(world) == [[]]


def test_the_other_policies_do_not_ask() -> None:
    world = World(named("a", "b"))
    world.chooser.reported = lambda: {"a": 100, "b": 1}
    assert beside(world) == [[]]


def test_many_gateways_even_a_difference_out_without_overshooting() -> None:
    """Ten gateways with four workers each; loads are told when 400 new flows have come."""
    workers = [{"a": 0, "b": 0} for _ in range(40)]
    stay = {"a": 1000, "b": 0}  # flows of hosts that do not balance
    for _ in range(10):
        totals = {p: stay[p] + sum(worker[p] for worker in workers) for p in stay}
        for gateway in range(10):
            mine = workers[4 * gateway : 4 * gateway + 4]
            world, reported = balanced()
            reported |= totals
            for peer in stay:
                world.sessions[peer].flows = sum(worker[peer] for worker in mine)
            ((first, second),) = beside(world, workers=4)
            for worker in mine:
                for _ in range(10):
                    a, b = worker["a"] + first[1], worker["b"] + second[1]
                    worker["a" if a <= b else "b"] += 1
        flows = [stay[p] + sum(worker[p] for worker in workers) for p in stay]
        assert flows[0] >= flows[1] - 400, "the difference is not turned round"
    assert abs(flows[0] - flows[1]) <= 0.05 * sum(flows)


# --- reload -----------------------------------------------------------------------------------


def test_what_is_known_of_a_route_that_stays_the_same_survives_a_reload() -> None:
    world = World(named("a", "b"))
    world.targets()
    for _ in range(3):
        world.chooser.dial_failed("r", "a", "h", world.now)
    world.targets()
    world.chooser.configure([RouteSettings("new", peers=("b",)), named("a", "b")])
    assert world.targets() == [[[2], []], [[2], [1]]]
    world.chooser.configure([named("a", "b", failures=5)])
    assert world.targets() == [[[1, 2], []]]
    assert world.chooser.settings == [named("a", "b", failures=5)]
    assert world.metrics.route_peer_preferred.labels("new", "b").value == 0
