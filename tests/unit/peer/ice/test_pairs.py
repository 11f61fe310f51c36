"""Priorities and pruning (RFC 8445)."""

import itertools

from aioice.candidate import candidate_priority as aioice_candidate_priority

from socks_tunnel.peer.ice.pairs import PAIRS_MAX, candidate_priority, pair_priority, prune

Pair = tuple[str, str, int]
"""Types of the local and the remote candidate, priority of the pair."""


def pruned(pairs: list[Pair], limit: int = PAIRS_MAX) -> list[Pair]:
    return prune(pairs, lambda p: p[2], lambda p: p[:2], limit)


def test_priorities_are_those_of_the_rfc() -> None:
    for kind in ("host", "prflx", "srflx", "relay"):
        assert candidate_priority(kind, 65_535) == aioice_candidate_priority(1, kind)
    assert candidate_priority("host", 65_535) == 2_130_706_431  # RFC 8445 section 15.1's example
    assert candidate_priority("host", 65_534) == 2_130_706_175


def test_pair_priorities_are_those_of_the_rfc() -> None:
    assert pair_priority(3, 2) == 2 * 2**32 + 2 * 3 + 1
    assert pair_priority(2, 3) == 2 * 2**32 + 2 * 3
    assert pair_priority(2, 2) == 2 * 2**32 + 2 * 2


def test_the_first_pairs_are_the_best_of_both_sides() -> None:
    """With 16 addresses on each side, what both think best is checked first."""
    sides = [candidate_priority("host", 65_535 - rank) for rank in range(16)]
    pairs = [("host", "host", pair_priority(g, d)) for g, d in itertools.product(sides, sides)]
    kept = pruned(pairs)
    assert len(kept) == PAIRS_MAX
    assert kept == sorted(pairs, key=lambda p: -p[2])[:PAIRS_MAX]


def test_few_pairs_all_stay() -> None:
    pairs = [("host", "host", 2), ("host", "relay", 1), ("host", "srflx", 3)]
    assert pruned(pairs) == [pairs[2], pairs[0], pairs[1]]


def test_pairs_with_a_relay_stay_whatever_else_there_is() -> None:
    """Many addresses on both sides must not push out the pairs that alone may work."""
    hosts = [("host", "host", 10_000 + number) for number in range(400)]
    relays = [("relay", "relay", number) for number in range(4)]
    kept = pruned([*hosts, *relays])
    assert len(kept) == PAIRS_MAX
    assert kept[-4:] == relays[::-1]
    assert kept[:96] == hosts[:-97:-1]


def test_each_kind_has_its_share() -> None:
    pairs = [
        (local, remote, number)
        for local, remote in itertools.product(("host", "relay"), ("host", "srflx"))
        for number in range(50)
    ]
    kept = pruned(pairs)
    assert len(kept) == PAIRS_MAX
    assert {sum(p[:2] == kind for p in kept) for kind in {p[:2] for p in pairs}} == {25}
