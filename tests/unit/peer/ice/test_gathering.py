"""Ports and candidates of gathering. What takes time: tests/integration/test_ice_gathering.py."""

from __future__ import annotations

import errno
import random
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from socks_tunnel.peer.ice.gathering import PORT_TRIES_MAX, _bind, _candidate, _version


class Sock:
    """A socket that can be bound to the free ports alone."""

    def __init__(self, free: set[int], error: int = errno.EADDRINUSE) -> None:
        self.free = free
        self.error = error
        self.tried: list[int] = []

    def bind(self, address: tuple[str, int]) -> None:
        self.tried.append(address[1])
        if address[1] not in self.free:
            raise OSError(self.error, "scripted")


def bind(sock: Sock, ports: tuple[int, int] | None) -> None:
    _bind(cast("socket.socket", sock), "192.0.2.1", ports)


def test_without_a_range_the_system_chooses() -> None:
    sock = Sock({0})
    bind(sock, None)
    assert sock.tried == [0]


@pytest.mark.parametrize("start", range(4))
def test_all_ports_of_a_range_are_tried_from_a_random_one_on(
    monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    monkeypatch.setattr(random, "randrange", lambda _count: start)
    sock = Sock(set())
    with pytest.raises(OSError, match=r"no UDP port of 50000-50003 \(ice\.udp_ports\) is free"):
        bind(sock, (50_000, 50_003))
    ports = [50_000, 50_001, 50_002, 50_003]
    assert sock.tried == ports[start:] + ports[:start]
    sock = Sock({50_002})
    bind(sock, (50_000, 50_003))
    assert sock.tried[-1] == 50_002


def test_the_tries_are_bounded() -> None:
    sock = Sock(set())
    with pytest.raises(OSError, match="is free"):
        bind(sock, (10_000, 60_000))
    assert len(sock.tried) == PORT_TRIES_MAX


def test_an_address_that_is_not_ours_is_told_at_once() -> None:
    sock = Sock(set(), errno.EADDRNOTAVAIL)
    with pytest.raises(OSError, match=r"192\.0\.2\.1: scripted") as caught:
        bind(sock, (50_000, 50_003))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert len(sock.tried) == 1


def test_a_candidate_tells_its_base_and_its_kind() -> None:
    host = _candidate("host", "192.0.2.1", 5, preference=7)
    reflexive = _candidate(
        "srflx", "198.51.100.1", 6, preference=7, base="192.0.2.1", related=("192.0.2.1", 5)
    )
    assert (reflexive.related_address, reflexive.related_port) == ("192.0.2.1", 5)
    assert host.related_address is None
    assert host.foundation != reflexive.foundation
    assert host.priority > reflexive.priority
    other = _candidate("srflx", "198.51.100.2", 6, preference=7, base="192.0.2.1")
    assert other.foundation == reflexive.foundation, "RFC 8445 section 5.1.1.3: of the same base"


@pytest.mark.parametrize(
    ("host", "version"), [("192.0.2.1", 4), ("2001:db8::1", 6), ("x.local", 0)]
)
def test_the_version_of_a_base_is_that_of_its_address(host: str, version: int) -> None:
    protocol: Any = SimpleNamespace(local_candidate=SimpleNamespace(host=host))
    assert _version(protocol) == version
