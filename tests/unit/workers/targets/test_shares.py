"""Shares: the accounts balance, whatever happens."""

from __future__ import annotations

import random

from socks_tunnel_workers.targets.shares import Share, Shares


def test_a_share_is_given_back_once() -> None:
    shares = Shares(each=2, total=3)
    one, two = shares.take("a"), shares.take("a")
    assert shares.full("a")
    assert not shares.full("b")
    other = shares.take("b")
    assert shares.full("c"), "three in all"
    one.end()
    one.end()
    assert shares.held("a") == 1
    assert not shares.full("a")
    two.end()
    other.end()
    assert len(shares) == shares.held("a") == shares.held("b") == 0


def test_the_sum_is_right_after_random_lives() -> None:
    rng = random.Random(21)
    shares = Shares(each=5, total=20)
    alive: list[tuple[str, Share]] = []
    for _ in range(5000):
        peer = rng.choice("abcdef")
        if rng.random() < 0.5 and not shares.full(peer):
            alive.append((peer, shares.take(peer)))
        elif alive:
            _, share = alive.pop(rng.randrange(len(alive)))
            share.end()
        assert len(shares) == len(alive) <= 20
        for name in "abcdef":
            assert shares.held(name) == sum(peer == name for peer, _ in alive) <= 5
