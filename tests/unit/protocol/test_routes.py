"""Routes: which session of a route is taken, which routes never decide, and rules with mistakes."""

import pytest

from socks_tunnel.protocol.routes import (
    DEFAULT,
    MATCHES_MAX,
    Candidates,
    RouteTable,
    pick,
    shadowed,
)
from socks_tunnel.protocol.rules import RuleError, RuleProblem, Rules
from socks_tunnel.protocol.settings import RouteSettings


def table(*routes: tuple[Rules, Rules]) -> RouteTable:
    return RouteTable.parse(
        RouteSettings(f"routes[{n}]", hosts, ports, ("a",))
        for n, (hosts, ports) in enumerate(routes)
    )


def test_rules_with_mistakes_are_all_named() -> None:
    with pytest.raises(RuleError) as raised:
        table((["*", "10.0.0.1/8", "a.*.b"], [0, "x"]))
    assert [(p.field, p.position, p.text) for p in raised.value.problems] == [
        ("hosts", "item 2", "10.0.0.1/8"),
        ("hosts", "item 3", "a.*.b"),
        ("ports", "item 1", "0"),
        ("ports", "item 2", "x"),
    ]
    assert isinstance(raised.value.problems[0], RuleProblem)


def test_without_routes_one_has_everything() -> None:
    implicit = RouteTable.parse([RouteSettings(DEFAULT)])
    assert implicit.implicit
    for host in ("10.0.0.1", "::1", "www.example.com"):
        assert implicit.match(host, 0) == (0, "hosts: *", "ports: *")
    assert not table(("*", "*")).implicit


def test_a_route_leads_where_it_was_written_to_lead() -> None:
    [route] = RouteTable.parse(
        [RouteSettings("corp", ("*.corp",), (443,), ("office", "home"), "nearest")]
    ).routes
    assert (route.name, route.peers, route.policy) == ("corp", ("office", "home"), "nearest")
    assert not route.any_host


# --- which session ----------------------------------------------------------------------------

CANDIDATES = Candidates((3, 1, 2), (5, 4))


@pytest.mark.parametrize(
    ("policy", "usable", "loads", "taken"),
    [
        ("first", {1, 2, 3, 4, 5}, {}, 3),
        ("first", {1, 2, 4, 5}, {}, 1),
        ("nearest", {1, 2, 3}, {1: 0, 2: 0, 3: 9}, 3),
        ("first", {4, 5}, {}, 5),
        ("first", {4}, {}, 4),
        ("first", set(), {}, None),
        ("least-loaded", {1, 2, 3}, {1: 7, 2: 2, 3: 5}, 2),
        ("least-loaded", {1, 2, 3}, {1: 2, 2: 2, 3: 2}, 3),
        ("least-loaded", {1, 3, 5}, {1: 7, 3: 9, 5: 0}, 1),  # 5 is passed over
        ("least-loaded", {4, 5}, {4: 0, 5: 9}, 5),
    ],
)
def test_pick(policy: str, usable: set[int], loads: dict[int, int], taken: int | None) -> None:
    assert (
        pick(policy, CANDIDATES, lambda n: n if n in usable else None, lambda n: loads.get(n, 0))
        == taken
    )


# --- routes that never decide -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "never"),
    [
        ([("*", "*"), ("10.0.0.0/8", "443")], {1: [0]}),
        ([("*", "443"), ("10.0.0.0/8", "443"), ("10.0.0.0/8", "*")], {1: [0]}),
        ([("10.0.0.0/8", "*"), ("10.1.0.0/16", "22")], {1: [0]}),
        ([("10.1.0.0/16", "*"), ("10.0.0.0/8", "22")], {}),
        ([("10.0.0.0/9", "*"), ("10.128.0.0/9", "1-65535"), ("10.0.0.0/8", "*")], {2: [0, 1]}),
        ([("10.0.0.0/9", "*"), ("10.128.0.0/9", "2-65535"), ("10.0.0.0/8", "*")], {}),
        ([("0.0.0.0\n::", "*"), ("fd00::/8\n10.0.0.1", "*"), ("www.x", "*")], {1: [0]}),
        ([("*.corp", "*"), ("*.a.corp\nb.corp", "80"), ("corp", "80")], {1: [0]}),
        ([("*.a.corp", "*"), ("*.corp", "*")], {}),
        ([("a.corp", "*"), ("a.corp\nb.corp", "*"), ("A.corp.", "*")], {2: [0]}),
        ([("a", "80-90\n91-100"), ("a", "85-95"), ("a", "85-101")], {1: [0]}),
        ([("0.0.0.0\n::", "*"), ("*", "*")], {}),
        ([("a.corp", "*"), ("10.0.0.0/8", "*"), ("a.corp\n10.1.0.0/16", "*")], {2: [0, 1]}),
        ([("10.0.0.0/8", "*"), ("192.0.2.0/24", "*"), ("10.1.0.0/16", "*")], {2: [0]}),
    ],
)
def test_shadowed(routes: list[tuple[str, str]], never: dict[int, list[int]]) -> None:
    assert shadowed(table(*routes)) == never


def test_matches_are_remembered_within_a_bound() -> None:
    rules = [RouteSettings("web", hosts=("*.example",), ports=("80",), peers=("office",))]
    table = RouteTable.parse(rules)
    first = table.match("www.example", 80)
    assert first is not None
    assert table.match("www.example", 80) is first
    assert table.match("www.example", 81) is None
    assert table.match("www.example", 81) is None
    for port in range(1000, 1000 + 3 * MATCHES_MAX):
        table.match("www.example", port)
        assert len(table._known) <= MATCHES_MAX
    assert table.match("www.example", 80) == first
