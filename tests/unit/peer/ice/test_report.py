"""What is said of paths, and of there being none."""

from types import SimpleNamespace
from typing import Any

import aioice
import pytest
from aioice.ice import CandidatePair

from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.datagram_relay import channel_address
from socks_tunnel.peer.ice.report import (
    LISTED_MAX,
    path_lost,
    selected_path,
    why_no_candidates,
    why_no_path,
)
from socks_tunnel.peer.ice.settings import IceSettings

PC: Any = object()


def candidate(kind: str, host: str, port: int = 1000) -> aioice.Candidate:
    return aioice.Candidate("f", 1, "udp", 1, host, port, kind)


@pytest.fixture
async def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    made: Any = IceConnection(ice_controlling=True)
    monkeypatch.setattr(aiortc_private, "ice_connection", lambda pc: made)
    return made


@pytest.mark.parametrize(
    ("own", "mapped", "theirs", "kind"),
    [
        ("host", ("192.0.2.1", 1000), "host", "host"),
        ("host", None, "host", "host"),
        ("host", ("198.51.100.1", 5), "host", "srflx"),
        ("host", ("198.51.100.1", 6), "host", "prflx"),
        ("host", ("192.0.2.1", 1000), "srflx", "srflx"),
        ("host", ("198.51.100.1", 5), "prflx", "prflx"),
        ("host", ("198.51.100.1", 6), "srflx", "prflx"),
        ("host", ("198.51.100.1", 5), "relay", "relay"),
        ("relay", ("203.0.113.1", 9), "srflx", "relay"),
    ],
)
async def test_kinds_of_paths(
    own: str, mapped: tuple[str, int] | None, theirs: str, kind: str, connection: Any
) -> None:
    local = candidate(own, "192.0.2.1")
    connection._local_candidates += [local, candidate("srflx", "198.51.100.1", 5)]
    base: Any = SimpleNamespace(local_candidate=local)
    pair = CandidatePair(base, candidate(theirs, "192.0.2.9"))
    connection._nominated[1] = pair
    if mapped is not None:
        connection.mapped[pair] = mapped
    path = selected_path(PC)
    assert path is not None
    assert (path.kind, path.family) == (kind, "ipv4")
    assert (path.local, path.remote) == (("192.0.2.1", 1000), ("192.0.2.9", 1000))
    relayed = ", relayed" if kind == "relay" else ""
    assert str(path) == f"192.0.2.1 port 1000 -> 192.0.2.9 port 1000{relayed}"


async def test_no_path_yet(connection: Any) -> None:
    assert selected_path(PC) is None
    assert path_lost(PC) is None


async def test_why_there_are_no_candidates(connection: Any) -> None:
    assert why_no_candidates(PC, IceSettings()).startswith("there is no local address but loopback")
    assert "(eth7)" in why_no_candidates(PC, IceSettings(addresses=["eth7"]))
    assert why_no_candidates(PC, IceSettings(policy="relay")).startswith("there is no relay: ")
    connection.problems = ["192.0.2.1: no UDP port is free"]
    assert why_no_candidates(PC, IceSettings(addresses=["eth7"])) == (
        "no ICE candidate can be made: 192.0.2.1: no UDP port is free"
    )


async def test_why_there_is_no_path(connection: Any) -> None:
    assert why_no_path(PC) == "ours: none; the peer's: none"
    connection._local_candidates.append(candidate("host", "192.0.2.1"))
    connection._remote_candidates.append(candidate("srflx", "192.0.2.9", 7))
    connection.problems = ["STUN server stun:a:3478: no answer"]
    assert why_no_path(PC) == (
        "ours: host 192.0.2.1 port 1000; the peer's: srflx 192.0.2.9 port 7; "
        "STUN server stun:a:3478: no answer"
    )


async def test_families_that_do_not_meet_are_named(connection: Any) -> None:
    connection._local_candidates.append(candidate("host", "192.0.2.1"))
    connection._remote_candidates.append(candidate("host", "2001:db8::1"))
    assert why_no_path(PC).endswith("one side has only IPv4 addresses, the other only IPv6")


async def test_a_sentence_stays_short(connection: Any) -> None:
    connection._remote_candidates += [candidate("host", "192.0.2.9", p) for p in range(1, 65)]
    text = why_no_path(PC)
    assert text.count("192.0.2.9") == LISTED_MAX
    assert text.endswith(f"and {64 - LISTED_MAX} more")


async def test_a_path_through_signalling_names_the_service(connection: Any) -> None:
    relay = SimpleNamespace(server="wss://meet.example/", family="ipv6")
    local = candidate("relay", channel_address(bytes(8)))
    base: Any = SimpleNamespace(
        local_candidate=local,
        transport=SimpleNamespace(get_extra_info={"relay": relay}.get),
    )
    connection._nominated[1] = CandidatePair(base, candidate("relay", local.host, 2))
    path = selected_path(PC)
    assert path is not None
    assert (path.kind, path.family) == ("relay", "ipv6")
    assert str(path) == "through wss://meet.example/, relayed"
    connection._local_candidates.append(local)
    assert "ours: relay of the rendezvous service;" in why_no_path(PC)
