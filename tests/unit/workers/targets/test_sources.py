"""How long sources wait for each other. Sources at work: tests/integration/test_resolver.py."""

from __future__ import annotations

from socks_tunnel_workers.targets import sources


def test_ipv4_waits_for_ipv6_less_than_the_other_way_round() -> None:
    # RFC 8305 section 3 recommends 50 ms. The other way round there would be nothing to fall back on.
    assert sources.RESOLUTION_DELAY == 0.05 < sources.FALLBACK_DELAY
    assert sources.INCOMPLETE_TTL < sources.UNKNOWN_TTL
