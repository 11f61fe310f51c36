"""The interface itself: what its implementations have in common."""

from dataclasses import FrozenInstanceError, fields

import pytest

from socks_tunnel.peer.transport import TransportStats


def test_a_transport_that_knows_nothing_says_none() -> None:
    stats = TransportStats()
    assert all(getattr(stats, field.name) is None for field in fields(stats))


def test_figures_are_of_one_moment() -> None:
    stats = TransportStats(rtt=0.05)
    with pytest.raises(FrozenInstanceError):
        stats.rtt = 0.1  # type: ignore[misc] # that is what is tested
