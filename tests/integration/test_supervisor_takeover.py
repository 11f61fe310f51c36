"""A newer link takes over from an older one: make before break, on both sides."""

import asyncio
import re

import pytest

from integration.link_pair import silence
from integration.links_world import Side, World, linked, until
from socks_tunnel.config.settings import Peer
from socks_tunnel.ops.labels import RECONNECT_CAUSES
from socks_tunnel.peer.transport import TransportError
from socks_tunnel.protocol.messages import Data
from socks_tunnel.signaling.carrier import IceServers, OutgoingCarrier, SignalingError
from socks_tunnel.supervisor import carriers, dialler, links
from socks_tunnel.supervisor.gateway_links import GatewayLinks
from socks_tunnel.supervisor.peerlink import REPLACED


@pytest.fixture(autouse=True)
def usual_features(soon_again: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "FEATURES", ("udp", "bind", "resume"))


class SlowCarrier:
    """The real carrier, with offers that wait until the test lets them go."""

    def __init__(self, inner: OutgoingCarrier) -> None:
        self.name = inner.name
        self.appeared = inner.appeared
        self.bye = inner.bye
        self.relay = inner.relay
        self.free = asyncio.Event()
        self.free.set()
        self.asked = 0
        self.fails: Exception | None = None
        self._inner = inner

    async def ice_servers(self, timeout: float) -> IceServers:
        return await self._inner.ice_servers(timeout)

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:
        self.asked += 1
        await self.free.wait()
        if self.fails is not None:
            raise self.fails
        return await self._inner.offer(envelope, timeout)


def manager(side: Side) -> GatewayLinks:
    assert isinstance(side.manager, GatewayLinks)
    return side.manager


async def with_slow_carrier(world: World) -> tuple[Side, Side, SlowCarrier]:
    """A gateway and an endpoint that are linked, and the way between them."""
    made: list[SlowCarrier] = []

    def carrier_for(peer: Peer) -> OutgoingCarrier:
        made.append(SlowCarrier(carriers.direct(peer)))
        return made[-1]

    endpoint, gateway = world.endpoint(), world.gateway()
    manager(gateway).carrier_for = carrier_for
    await endpoint.manager.start()
    await gateway.manager.start()
    await until(lambda: gateway.up and endpoint.up)
    (carrier,) = made
    assert carrier.asked == 1
    # The link is up before the attempt that made it has returned. A link that a test closes in
    # between is one that could not be made.
    (dialling,) = manager(gateway)._diallers.values()
    await until(lambda: dialling._dialled_at is None)
    return gateway, endpoint, carrier


async def test_a_link_in_doubt_is_replaced_by_another_that_is_up_before_it_ends(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, endpoint = await linked(world)
    (old,), (old_there,) = gateway.up, endpoint.up
    up_when_it_ended: list[int] = []
    old.ended.add_done_callback(lambda _: up_when_it_ended.append(len(gateway.up)))
    manager(gateway).path_changed("the addresses of this host have changed")
    await until(lambda: up_when_it_ended and old_there.ended.done())
    assert up_when_it_ended == [1]
    assert old.ended.result() in {REPLACED, "the peer closed the connection"}
    (new,) = gateway.up
    assert new is not old
    assert new.session == old.session
    await until(lambda: len(endpoint.up) == 1)
    assert "link office: the addresses of this host have changed" in caplog.text
    assert "its flows go on with the newer one" in caplog.text
    assert "flows wait for the next link" not in caplog.text
    await until(lambda: reconnects(gateway) == {"network-changed": 1})
    # And the newer one is kept like any other.
    await endpoint.up[0].close("a test")
    await until(lambda: gateway.up and gateway.up[0] is not new)
    assert gateway.up[0].session == old.session
    await until(lambda: reconnects(gateway) == {"network-changed": 1, "path-lost": 1})


async def test_a_link_in_doubt_that_its_peer_closes_first_counts_for_the_doubt(
    world: World,
) -> None:
    gateway, endpoint = await linked(world)
    (old,) = gateway.up
    old.doubt("its host has another address", "network-changed")
    await endpoint.up[0].close("a newer link is there already")
    await until(lambda: gateway.up and gateway.up[0] is not old)
    assert old.ended.done()
    await until(lambda: reconnects(gateway) == {"network-changed": 1})


def reconnects(side: Side) -> dict[str, float]:
    """Links that came up in place of another, by cause."""
    causes = {
        cause: side.metric("link_reconnects_total", cause=cause) for cause in RECONNECT_CAUSES
    }
    return {cause: number for cause, number in causes.items() if number}


@pytest.mark.parametrize("fast_path", ["auto", "off"])
async def test_a_path_that_swallows_everything_is_left_long_before_the_link_is_dead(
    world: World, fast_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    endpoint = world.endpoint(transport={"fast_path": fast_path})
    gateway = world.gateway(transport={"fast_path": fast_path})
    await endpoint.manager.start()
    await gateway.manager.start()
    await until(lambda: gateway.up and endpoint.up)
    (old,) = gateway.up
    silence(endpoint.up[0].link)
    old.link.send_many([Data(2, b"a keystroke").encode()])
    await until(old.ended.done)
    assert old.ended.result() == REPLACED, "and not dead, as it would be after 15 s"
    doubt = re.search(r"link office: its peer has not answered for (\d+\.\d)", caplog.text)
    assert doubt is not None
    assert float(doubt[1]) < 10, "1.2 s, and some for a busy machine"
    await until(lambda: len(gateway.up) == len(endpoint.up) == 1)
    await until(lambda: reconnects(gateway) == {"unanswered": 1})


async def test_a_link_that_works_again_is_kept_and_the_attempt_beside_it_ends(
    world: World,
) -> None:
    gateway, endpoint, carrier = await with_slow_carrier(world)
    (old,) = gateway.up
    carrier.free.clear()
    old.link_suspected(2.0)
    await until(lambda: carrier.asked == 2)
    assert len(gateway.manager.links) == 2
    old.link_trusted()
    await until(lambda: len(gateway.manager.links) == 1)
    assert gateway.up == [old]
    assert not old.ended.done()
    # Doubt comes back, and the next attempt is made as if nothing had been.
    carrier.free.set()
    old.link_suspected(2.0)
    await until(lambda: old.ended.done() and len(endpoint.up) == 1)
    assert len(gateway.up) == 1


async def test_a_link_that_ends_during_the_attempt_is_followed_by_it(world: World) -> None:
    gateway, _, carrier = await with_slow_carrier(world)
    (old,) = gateway.up
    carrier.free.clear()
    old.link_suspected(2.0)
    await until(lambda: carrier.asked == 2)
    await old.close("a test")
    carrier.free.set()
    await until(lambda: gateway.up)
    assert carrier.asked == 2
    assert gateway.up[0] is not old


@pytest.mark.parametrize("error", [SignalingError("down"), TransportError("no"), KeyError("oops")])
async def test_attempts_that_fail_leave_the_link_and_are_repeated(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, _, carrier = await with_slow_carrier(world)
    (old,) = gateway.up
    carrier.fails = error
    old.link_suspected(2.0)
    await until(lambda: carrier.asked >= 4)
    assert gateway.up == [old]
    assert "beside its link" in caplog.text
    carrier.fails = None
    await until(lambda: old.ended.done() and len(gateway.up) == 1)


async def test_a_drain_makes_no_attempt_beside(world: World) -> None:
    gateway, _, carrier = await with_slow_carrier(world)
    (old,) = gateway.up
    gateway.manager.goaway()
    old.link_suspected(2.0)
    await old.close("a test")
    await until(lambda: not gateway.manager.links)
    assert carrier.asked == 1


async def test_without_resume_doubt_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "FEATURES", ("udp", "bind"))
    gateway, _, carrier = await with_slow_carrier(world)
    (old,) = gateway.up
    old.link_suspected(2.0)
    old.link_trusted()
    old.link_suspected(2.0)
    await old.close("a test")
    await until(lambda: gateway.up)
    assert carrier.asked == 2


async def test_a_peer_that_appears_is_dialled_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler, "FIRST_DELAY", 3600.0)
    monkeypatch.setattr(dialler, "LONGEST_DELAY", 3600.0)
    appeared = asyncio.Event()

    class Presence(SlowCarrier):
        def __init__(self, inner: OutgoingCarrier) -> None:
            super().__init__(inner)
            self.appeared = self.wait

        async def wait(self) -> None:
            await appeared.wait()

    endpoint, gateway = world.endpoint(), world.gateway()
    manager(gateway).carrier_for = lambda peer: Presence(carriers.direct(peer))
    await gateway.manager.start()
    await until(lambda: "cannot be reached" in gateway.detail("office"))
    await endpoint.manager.start()
    appeared.set()
    await until(lambda: gateway.up)
