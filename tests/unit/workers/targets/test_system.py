"""What the C library is asked. Threads and turns: tests/integration/test_resolver.py."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from socks_tunnel_workers.targets import system


def test_order_is_kept_and_duplicates_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_args: object, **_kwargs: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.1", 0)),
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET6, 1, 6, "", ("fe80::1%eth0", 0, 0, 2)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    expected = [ip_address(text) for text in ("2001:db8::1", "192.0.2.1", "fe80::1")]
    assert system.lookup("a.test") == expected


def test_a_peer_gets_half_of_the_threads_at_most() -> None:
    assert 0 < system.THREADS_PER_PEER * 2 <= system.THREADS
