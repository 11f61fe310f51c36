"""The form in which a sender is named. Associations: tests/integration/test_worker_udp.py."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from socks_tunnel_workers.targets import udp
from socks_tunnel_workers.targets.routes import ROUTES_MAX, Route
from socks_tunnel_workers.targets.udp import _as_asked


def route(*, mapped: bool) -> Route:
    return Route([ip_address("192.0.2.1")], now=0, expires=None, mapped=mapped)


@pytest.mark.parametrize(
    ("routes", "host"),
    [
        ([], "192.0.2.1"),
        ([route(mapped=False)], "192.0.2.1"),
        ([route(mapped=True)], "::ffff:192.0.2.1"),
        ([route(mapped=True), route(mapped=False)], "192.0.2.1"),
    ],
)
def test_a_sender_is_named_as_it_was_asked_for(routes: list[Route], host: str) -> None:
    assert _as_asked("192.0.2.1", routes) == host


def test_what_an_association_keeps_for_names_is_bounded() -> None:
    assert udp.PENDING_BYTES_MAX <= 1 << 18
    assert udp.PENDING_NAMES_MAX * udp.PENDING_PER_NAME_MAX <= ROUTES_MAX
    assert udp.UNRESOLVED_SECONDS < udp.RESOLVE_SECONDS
