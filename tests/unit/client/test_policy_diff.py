"""What a changed policy would change."""

from datetime import UTC, datetime
from typing import Any

import pytest

from socks_tunnel.client import policy_diff
from socks_tunnel.client.policy_diff import Comparison, Side
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.policies import build_policies
from socks_tunnel.protocol.settings import PeerSettings, RuleSettings, WorkerSettings

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def side(hosts: tuple[str, ...], *peers: str) -> Side:
    settings = WorkerSettings(
        role="endpoint",
        peers=tuple(PeerSettings(name) for name in peers),
        policy=RuleSettings(allowed_hosts=hosts, allowed_ports=("*",)),
    )
    return Side(build_policies(settings), frozenset(peers))


def lookup(destination: HostPort) -> list[IPAddress]:
    address = parse_ip("192.0.2.1")
    assert address is not None
    return [address] if destination.host == "known.example" else []


def record(destination: str, **fields: Any) -> dict[str, Any]:
    usual = {"message": "policy decision", "peer": "a", "destination": destination}
    return usual | {"time": "2026-11-27T13:00:00.000+00:00"} | fields


def row(destination: str) -> dict[str, Any]:
    return {"peer": "a", "conn_id": 1, "destination": destination}


OLD = side(("192.0.2.0/24", "*.corp"), "a")


def test_names_and_addresses_are_compared_once() -> None:
    comparison = Comparison(OLD, side(("*.corp",), "a"), lookup)
    for _ in range(3):
        comparison.record(record("192.0.2.9:80"), NOON)
    comparison.record(record("wiki.corp:80"), NOON)
    comparison.record(record("known.example:80"), NOON)
    comparison.record(record("unknown.example:80"), NOON)
    comparison.flow(row("192.0.2.9:80"))
    found = comparison.changes()
    assert [(str(c.destination), c.times, len(c.flows)) for c in found] == [
        ("192.0.2.9:80", 3, 1),
        ("known.example:80", 1, 0),
        ("unknown.example:80", 1, 0),
    ]
    assert [(c.before.verdict, c.after.verdict) for c in found] == [
        ("allowed", "denied"),
        ("allowed", "denied"),
        ("unresolved", "denied"),
    ]
    assert comparison.compared == 4


def test_a_peer_that_is_gone_is_refused_everything() -> None:
    comparison = Comparison(OLD, side(("192.0.2.0/24",), "b"), lookup)
    comparison.flow(row("192.0.2.9:80"))
    [change] = comparison.changes()
    assert str(change.after) == "denied (there is no such peer)"


def test_what_a_gateway_refused_before_it_chose_a_peer() -> None:
    def gateway(*ports: str) -> Side:
        rules = RuleSettings(allowed_hosts=("0.0.0.0",), allowed_ports=ports)
        settings = WorkerSettings(role="gateway", peers=(PeerSettings("a"),), policy=rules)
        return Side(build_policies(settings), frozenset({"a"}))

    comparison = Comparison(gateway("443"), gateway("80"), lookup)
    comparison.record(record("192.0.2.9:80", peer="", verdict="denied"), NOON)
    [change] = comparison.changes()
    assert (change.before.verdict, change.after.verdict) == ("denied", "allowed")


def test_what_is_left_out() -> None:
    comparison = Comparison(OLD, side((), "a"), lookup)
    comparison.record(record("192.0.2.9:80", message="flow ended"), NOON)
    comparison.record(record("192.0.2.9:80", time="2026-11-27T11:59:00.000+00:00"), NOON)
    comparison.record(record("192.0.2.9"), NOON)  # a question for a name
    comparison.flow(row(""))
    assert (comparison.changes(), comparison.compared, comparison.associations) == ([], 0, 1)


def test_a_log_without_times_is_of_the_last_day() -> None:
    comparison = Comparison(OLD, side((), "a"), lookup)
    without = record("192.0.2.9:80")
    del without["time"]
    comparison.record(without, NOON)
    assert len(comparison.changes()) == 1


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_diff, "DESTINATIONS_MAX", 2)
    comparison = Comparison(OLD, side((), "a"), lookup)
    for number in (1, 2, 3, 1):
        comparison.record(record(f"192.0.2.{number}:80"), NOON)
    assert (comparison.compared, comparison.left_out) == (2, 1)
