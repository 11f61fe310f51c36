"""A gateway with two endpoints: which of them its workers are told to use, with real links."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from integration.links_world import Side, World, until
from socks_tunnel.ops.labels import ReconnectCause
from socks_tunnel.protocol.ipc import DialFailed, NewFlows

UNANSWERED: ReconnectCause = "unanswered"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    for side in made.sides:
        await side.manager.stop("the test is over")


async def two_offices(world: World, **route: object) -> tuple[Side, dict[str, Side]]:
    """The gateway and its two endpoints, linked."""
    offices = {name: world.endpoint(name) for name in ("berlin", "paris")}
    routes = [{"name": "both", "peers": ["berlin", "paris"], "recover_after": 0.5, **route}]
    gateway = world.gateway("laptop", "berlin", "paris", routes=routes)
    for office in offices.values():
        await office.manager.start()
    await gateway.manager.start()
    await until(lambda: preferred(gateway) == ["berlin", "paris"])
    return gateway, offices


def preferred(gateway: Side) -> list[str]:
    """The peers that new flows may go to, as the worker was told last."""
    (targets,) = gateway.worker.told(NewFlows)[-1].targets
    return [gateway.router.sessions[number].peer for number in targets[0]]


async def test_a_link_in_doubt_is_passed_over_until_it_was_well_for_a_while(world: World) -> None:
    gateway, _ = await two_offices(world, recover_after=8)
    (berlin,) = [link for link in gateway.up if link.peer.name == "berlin"]
    berlin.doubt("a test", UNANSWERED)
    assert preferred(gateway) == ["paris"]
    assert gateway.metric("failovers_total", cause="link") == 1
    # Another link is dialled beside it and takes over; after that it has to be well for a while.
    await until(berlin.ended.done)
    gateway.router.choose_target()
    assert preferred(gateway) == ["paris"]

    def again() -> bool:
        gateway.router.choose_target()  # as the instance does once a second
        return preferred(gateway) == ["berlin", "paris"]

    await until(again)


async def test_an_endpoint_that_ends_is_passed_over_at_once(world: World) -> None:
    gateway, offices = await two_offices(world)
    await offices["berlin"].manager.stop("a test")
    await until(lambda: preferred(gateway) == ["paris"])
    rows = {row["peer"]: row for row in gateway.router.chooser.rows()}
    assert rows["berlin"]["state"] == "passed over"
    assert rows["paris"]["state"] == "preferred"


async def test_dials_that_a_worker_tells_of_pass_a_peer_over(world: World) -> None:
    gateway, _ = await two_offices(world, failures=2)
    (number,) = [n for n, s in gateway.router.sessions.items() if s.peer == "berlin"]
    for _ in range(2):
        assert preferred(gateway) == ["berlin", "paris"]
        gateway.routes.dial_failed(number, DialFailed("both", "10.0.0.1", 4))
    assert preferred(gateway) == ["paris"]
    assert gateway.metric("failovers_total", cause="dials") == 1


async def test_a_reload_takes_other_routes(world: World) -> None:
    gateway, _ = await two_offices(world)
    config = world.config(
        "gateway", "berlin", "paris", routes=[{"name": "both", "peers": ["paris", "berlin"]}]
    )
    gateway.manager.apply(config)
    assert preferred(gateway) == ["paris", "berlin"]
