"""What a node says of messages that it cannot use."""

import logging

import msgpack
import pytest

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.rendezvous import nodes
from socks_tunnel.rendezvous.nodes import join_others
from socks_tunnel.rendezvous.redis_bus import RedisBus
from socks_tunnel.rendezvous.registry import Registry
from socks_tunnel.rendezvous.relay import RelayHall
from unit.rendezvous.test_federation import Relaying


@pytest.fixture
async def bus() -> RedisBus:
    """One that is not started: its messages come from the test."""
    registry = Registry({}, clients="any")
    return join_others("redis://127.0.0.1:9/", registry, RelayHall(registry, Relaying()), BugLog())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_each_kind_of_a_newer_version_is_told_once(
    bus: RedisBus, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        for kind in ("weather", "tides\n"):
            bus.on_message(msgpack.packb({"node": "new", "kind": kind, "client": bytes(32)}))
    assert bus.counts["protocol: nodes"] == 6
    assert bus.counts["bugs"] == 0
    weather, tides = said(caplog)
    assert weather == (
        "another node sends a kind of message that is not known: weather; dropped: do all nodes "
        "have the same version?"
    )
    assert "\n" not in tides


async def test_garbage_is_told_once_and_not_without_end(
    bus: RedisBus, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        bus.on_message(b"garbage")
    assert len(said(caplog)) == 1
    for number in range(2 * nodes.TOLD_MAX):
        bus.on_message(msgpack.packb({"node": "new", "kind": str(number)}))
    assert len(said(caplog)) == nodes.TOLD_MAX
    assert bus.counts["protocol: nodes"] == 3 + 2 * nodes.TOLD_MAX
