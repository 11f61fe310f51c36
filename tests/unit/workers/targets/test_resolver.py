"""Limits of the resolver. The resolver at work: tests/integration/test_resolver.py."""

from __future__ import annotations

from socks_tunnel_workers.targets import resolver, sources


def test_a_thousand_dead_names_of_a_peer_leave_room_for_more() -> None:
    questions_of_a_name = 3
    assert 2 * 1000 * questions_of_a_name <= resolver.QUESTIONS_PER_PEER_MAX
    assert resolver.QUESTIONS_MAX >= 4 * resolver.QUESTIONS_PER_PEER_MAX
    # A question has 16 bits of identification in DNS (RFC 1035 section 4.1.1).
    assert resolver.QUESTIONS_MAX < 1 << 16


def test_what_may_pass_is_remembered_for_seconds() -> None:
    assert resolver.SOFT_SECONDS <= 5
    assert sources.INCOMPLETE_TTL < sources.UNKNOWN_TTL
