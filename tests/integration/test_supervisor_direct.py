"""While the path of a link is relayed, a gateway looks for a direct one beside it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.links_world import Side, World, until
from integration.test_supervisor_takeover import SlowCarrier, with_slow_carrier
from socks_tunnel.peer import quiet_loop_exceptions
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.supervisor import answerer, dialler
from socks_tunnel.supervisor.peerlink import PeerLink


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Paths on loopback; the first link of each gateway passes for a relayed one."""
    relayed: set[bytes] = set()
    first: set[PeerLink] = set()

    def is_relayed(link: PeerLink) -> bool:
        if link.attached is not None and link.session not in relayed:
            relayed.add(link.session)
            first.add(link)
        return link in first

    monkeypatch.setattr(dialler, "_relayed", is_relayed)
    monkeypatch.setattr(dialler, "DIRECT_FIRST", 0.05)
    monkeypatch.setattr(dialler, "DIRECT_LONGEST", 0.2)
    quiet_loop_exceptions(asyncio.get_running_loop())
    made = World(tmp_path)
    yield made
    for side in made.sides:
        await side.manager.stop("the test is over")


async def linked_slowly(world: World) -> tuple[Side, Side, SlowCarrier, PeerLink]:
    """The sides, the carrier, which lets no further offer through, and the relayed link."""
    gateway, endpoint, carrier = await with_slow_carrier(world)
    carrier.free.clear()
    (old,) = gateway.up
    return gateway, endpoint, carrier, old


async def test_a_direct_link_takes_over_from_a_relayed_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway, endpoint, carrier, old = await linked_slowly(world)
    up_when_it_ended: list[int] = []
    old.ended.add_done_callback(lambda _: up_when_it_ended.append(len(gateway.up)))
    carrier.free.set()
    await until(lambda: len(up_when_it_ended) == 1)  # callbacks run a turn after the end
    (new,) = gateway.up
    assert up_when_it_ended == [1]
    assert new.session == old.session
    assert new.link.transport._connection._ice.policy == "direct"  # type: ignore[attr-defined]
    await until(lambda: gateway.metric("link_reconnects_total", cause="better-path") == 1)
    await until(lambda: endpoint.metric("link_reconnects_total", cause="replaced") == 1)
    await until(lambda: len(endpoint.up) == 1)
    asked = carrier.asked
    await asyncio.sleep(0.5)  # a direct path is not looked for any more
    assert carrier.asked == asked
    assert "flows wait for the next link" not in caplog.text


async def test_looks_that_fail_leave_the_relayed_link_and_are_no_failures(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway, _, carrier, old = await linked_slowly(world)
    carrier.fails = SignalingError("not now")
    carrier.free.set()
    await until(lambda: carrier.asked >= 5)
    assert gateway.up == [old]
    await until(lambda: gateway.metric("link_events_total", outcome="vain") >= 3)
    assert gateway.metric("link_events_total", outcome="failed") == 0
    told = [m for m in caplog.messages if "link office stays relayed: not now" in m]
    assert len(told) == 1
    carrier.fails = None
    await until(lambda: old.ended.done() and len(gateway.up) == 1)


async def test_a_look_has_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialler, "DIRECT_TIMEOUT", 0.1)
    gateway, _, carrier, old = await linked_slowly(world)
    await until(lambda: carrier.asked >= 4)
    assert gateway.up == [old]
    assert len(gateway.manager.links) <= 2


async def test_doubt_ends_the_look_and_dials_over_all_paths(world: World) -> None:
    gateway, endpoint, carrier, old = await linked_slowly(world)
    await until(lambda: carrier.asked == 2)
    old.link_suspected(2.0)
    await until(lambda: carrier.asked == 3)
    await until(lambda: len(gateway.manager.links) == 2)
    carrier.free.set()
    await until(lambda: old.ended.done() and len(endpoint.up) == 1)
    (new,) = gateway.up
    assert new.link.transport._connection._ice.policy == "all"  # type: ignore[attr-defined]


async def test_after_a_doubt_that_was_wrong_the_look_goes_on(world: World) -> None:
    gateway, _, carrier, old = await linked_slowly(world)
    await until(lambda: carrier.asked == 2)
    old.link_suspected(2.0)
    await until(lambda: carrier.asked == 3)
    old.link_trusted()
    await until(lambda: carrier.asked == 4)
    assert gateway.up == [old]
    carrier.free.set()
    await until(lambda: old.ended.done() and len(gateway.up) == 1)


async def test_a_relayed_link_that_ends_during_a_look_is_followed_by_another(world: World) -> None:
    gateway, endpoint, carrier, old = await linked_slowly(world)
    await until(lambda: carrier.asked == 2)
    await old.close("a test")
    carrier.free.set()
    await until(lambda: gateway.up and len(endpoint.up) == 1)
    assert gateway.up[0] is not old


async def test_who_wants_relayed_paths_looks_for_no_other(world: World) -> None:
    gateway, _, _, old = await linked_slowly(world)
    ice = gateway.manager.ice
    assert dialler.may_be_better(old, ice)
    assert not dialler.may_be_better(old, replace(ice, policy="relay"))


async def test_a_goodbye_ends_what_is_still_coming_up_of_the_session(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of a look that the gateway has given up: its offer was answered, and no more came."""
    caplog.set_level(logging.INFO)
    gateway, endpoint, _, _ = await linked_slowly(world)
    (up,) = endpoint.up
    left = endpoint.manager.new_link(up.peer, up.session)
    await gateway.manager.stop("the test is over")
    await until(lambda: left.ended.done() and not endpoint.manager.links)
    assert left.ended.result() == answerer.SAID_GOODBYE
    await until(lambda: not endpoint.router.sessions)
    (told,) = [record for record in caplog.records if "did not come up" in record.message]
    assert told.levelno == logging.INFO


async def test_looks_give_way_to_peers_without_a_link(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer, "HANDSHAKES_MAX", 1)
    _, endpoint, _, _ = await linked_slowly(world)
    (up,) = endpoint.up
    left = endpoint.manager.new_link(up.peer, up.session)
    manager = endpoint.manager
    assert isinstance(manager, answerer.EndpointLinks)
    assert manager._make_room("another")
    await until(left.ended.done)
    assert left.ended.result() == "room was needed for a peer without a link"
